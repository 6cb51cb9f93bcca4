"""What is missing is found without importing it; installing asks once and leaves alone what Slicer brings."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import slicer
import slicer.util
from packaging.requirements import Requirement

from DiffDRRSlicerLib import install

ROOT = Path(__file__).parents[2]
OTHERS = ("roma", "scipy", "pydicom", "tqdm")


class Package:
    """Writes what pip writes: a folder and its metadata, each only where asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, name: str, version: str | None, files: bool = True, init: bool = True) -> None:
        if files:
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name / "lib.txt").write_text("", encoding="utf-8")
        if files and init:
            (self.folder / name / "__init__.py").write_text("raise ImportError('not to be imported')", encoding="utf-8")
        for old in self.folder.glob(f"{name}-*.dist-info") if version else ():
            shutil.rmtree(old)
        if version:
            info = self.folder / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
            )


@pytest.fixture
def python(tmp_path, monkeypatch) -> Package:
    """A Python that has nothing but what the test puts there."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("torch", "numba", "h5py", "monai", "safetensors", *OTHERS):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return Package(tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """The question that Slicer would show; `confirm.answer` is the user's."""
    questions = []

    def confirm(text, windowTitle=None, parent=None, **kwargs):
        questions.append(text)
        return confirm.answer

    confirm.answer = True
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", confirm, raising=False)
    return types.SimpleNamespace(questions=questions, confirm=confirm)


@pytest.fixture
def app(monkeypatch):
    app = types.SimpleNamespace(testing=False)
    app.testingEnabled = lambda: app.testing
    monkeypatch.setattr(slicer, "app", app, raising=False)
    monkeypatch.setattr(slicer, "modules", types.SimpleNamespace(), raising=False)
    return app


@pytest.fixture
def pytorch(monkeypatch, python, app):
    """The PyTorch extension."""
    calls = []

    class PyTorchUtilsLogic:
        failure = None

        def installTorch(
            self,
            askConfirmation=False,
            forceComputationBackend=None,
            torchVersionRequirement=None,
            torchvisionVersionRequirement=None,
        ):
            calls.append({"ask": askConfirmation, "version": torchVersionRequirement})
            if PyTorchUtilsLogic.failure:
                raise PyTorchUtilsLogic.failure
            python.add("torch", "2.8.0")

    module = types.SimpleNamespace(PyTorchUtilsLogic=PyTorchUtilsLogic)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)
    slicer.modules.pytorchutils = object()
    return types.SimpleNamespace(calls=calls, logic=PyTorchUtilsLogic)


@pytest.fixture
def pip(monkeypatch, python):
    """slicer.packaging of 5.11 and newer; `fails` holds names that pip cannot install."""
    calls, fails = [], set()

    def pip_ensure(
        requirements,
        constraints=None,
        skip_packages=None,
        prompt_install=True,
        prompt_restart=True,
        requester=None,
        skip_in_testing=True,
        show_progress=True,
    ):
        assert not prompt_install, "it asked again"
        names = [Requirement(str(one)).name for one in requirements]
        calls.append((names, Path(constraints).read_text(encoding="utf-8").split(), requester))
        if fails & set(names):
            raise subprocess.CalledProcessError(1, ["pip"])
        for name in names:
            python.add(name, {"pydicom": "3.0.1"}.get(name, "9.0"))

    module = types.ModuleType("slicer.packaging")
    module.pip_ensure = pip_ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", module)
    monkeypatch.setattr(slicer, "packaging", module, raising=False)
    return types.SimpleNamespace(calls=calls, fails=fails)


@pytest.fixture
def older_pip(monkeypatch, python):
    """slicer.util.pip_install before 5.11: one argument, and no slicer.packaging."""
    calls = []

    def pip_install(requirements):
        calls.append(requirements)
        for text in requirements[: requirements.index("--constraint")]:
            python.add(Requirement(text).name, "9.0")

    monkeypatch.delattr(slicer, "packaging", raising=False)
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)  # an import of it fails
    monkeypatch.setattr(slicer.util, "pip_install", pip_install, raising=False)
    return calls


def test_nothing_is_missing_here_and_nothing_is_imported():
    code = (
        "import sys; sys.path.insert(0, 'DiffDRRSlicer')\n"
        "from DiffDRRSlicerLib import install\n"
        "assert install.missing_packages() == [], install.missing_packages()\n"
        "assert not {'torch', 'scipy', 'roma', 'numba', 'slicer', 'qt'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_all_is_missing_in_an_empty_python(python):
    assert install.missing_packages() == ["torch", *OTHERS]


@pytest.mark.parametrize(
    ("version", "files", "init", "there"),
    [
        ("2.8.0", True, True, True),
        ("2.8.0+cu128", True, True, True),
        ("2.9.0.dev20260101", True, True, True),
        ("2.3.1", True, True, False),  # too old
        (None, True, True, False),  # files without metadata: the installation was broken off
        (None, True, False, False),
        ("2.8.0", False, False, False),  # metadata without files
        ("2.8.0", True, False, False),  # imports as an empty namespace package
    ],
)
def test_half_a_torch_is_none(python, version, files, init, there):
    python.add("torch", version, files, init)
    assert ("torch" not in install.missing_packages()) is there


def test_metadata_without_a_version_counts_as_missing(python):
    python.add("torch", "2.8.0")
    (python.folder / "torch-2.8.0.dist-info" / "METADATA").unlink()
    assert "torch" in install.missing_packages()


def test_numba_is_wanted_but_not_needed(python):
    for name in ("torch", *OTHERS):
        python.add(name, "9.0")
    assert install.missing_packages() == []


def test_one_question_installs_all(python, app, asked, pytorch, pip, monkeypatch):
    python.add("numpy", "2.4.6")
    python.add("SimpleITK", "2.5.3")
    install.install()
    assert len(asked.questions) == 1
    assert all(name in asked.questions[0] for name in ("torch", *OTHERS, "GB"))
    assert pytorch.calls == [{"ask": False, "version": ">=2.4"}]
    pins = ["numpy==2.4.6", "SimpleITK==2.5.3", "torch==2.8.0"]  # pip does not know Slicer's vtk, and leaves it alone
    assert pip.calls == [([*OTHERS], pins, "DiffDRRSlicer"), (["numba"], pins, "DiffDRRSlicer")]
    assert install.missing_packages() == []
    install.install()
    assert len(asked.questions) == 1 and len(pip.calls) == 2


def test_only_what_is_missing_is_installed(python, app, asked, pytorch, pip):
    for name in ("torch", "scipy", "roma", "numba"):
        python.add(name, "9.0")
    python.add("tqdm", "4.1")  # too old
    install.install(ask=False)
    assert asked.questions == [] and pytorch.calls == []
    assert [names for names, *_ in pip.calls] == [["pydicom", "tqdm"]]


def test_no_means_no(python, app, asked, pytorch, pip):
    asked.confirm.answer = False
    with pytest.raises(install.InstallError, match="Nothing was installed"):
        install.install()
    assert pytorch.calls == [] and pip.calls == []


def test_without_the_pytorch_extension_it_says_so_before_asking(python, app, asked, pip):
    with pytest.raises(install.InstallError, match="extension 'PyTorch' from Slicer's Extensions Manager"):
        install.install()
    assert asked.questions == [] and pip.calls == []


def test_the_extension_is_not_needed_where_torch_is_there(python, app, asked, pip):
    python.add("torch", "2.8.0")
    install.install()
    assert install.missing_packages() == []


def test_testing_mode_changes_nothing(python, app, asked, pytorch, pip):
    app.testing = True
    with pytest.raises(install.InstallError, match=r"torch, roma, scipy, pydicom, tqdm.*testing mode"):
        install.install()
    assert asked.questions == [] and pytorch.calls == [] and pip.calls == []


def test_a_torch_that_fails_is_told(python, app, asked, pytorch, pip):
    pytorch.logic.failure = OSError("path too long")
    with pytest.raises(install.InstallError, match=r"PyTorch could not be installed \(path too long\).*PyTorch Utils"):
        install.install()
    assert pip.calls == []


def test_a_pip_that_fails_is_told(python, app, asked, pytorch, pip):
    pip.fails.add("scipy")
    with pytest.raises(install.InstallError, match=r"pip could not install roma, scipy.*internet"):
        install.install()


def test_numba_that_fails_is_only_a_warning(python, app, asked, pytorch, pip, caplog):
    pip.fails.add("numba")
    install.install()
    assert "numba could not be installed" in caplog.text
    assert install.missing_packages() == []


def test_what_is_still_missing_is_named(python, app, asked, pytorch, pip, monkeypatch):
    monkeypatch.setattr(slicer.packaging, "pip_ensure", lambda *args, **kwargs: None)
    with pytest.raises(install.InstallError, match="Still missing after the installation: roma, scipy, pydicom, tqdm"):
        install.install()


def test_a_package_in_use_that_was_replaced_asks_for_a_restart(python, app, asked, pytorch, pip, monkeypatch):
    for name in ("torch", "roma", "scipy", "pydicom", "numba"):
        python.add(name, "9.0")
    python.add("tqdm", "4.1")
    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(__spec__=types.SimpleNamespace(origin="there")))

    def upgrade(requirements, **kwargs):
        python.add("tqdm", "4.67")

    monkeypatch.setattr(slicer.packaging, "pip_ensure", upgrade)
    with pytest.raises(install.InstallError, match="Restart Slicer: it still uses the earlier tqdm"):
        install.install()


def test_h5py_is_installed_only_where_it_is_asked_for(python, app, asked, pip):
    assert "h5py" not in install.missing_packages()
    python.add("numpy", "2.4.6")
    install.install_hdf5()
    assert len(asked.questions) == 1 and "h5py" in asked.questions[0]
    assert pip.calls == [(["h5py"], ["numpy==2.4.6"], "DiffDRRSlicer")]
    install.install_hdf5()
    assert len(asked.questions) == len(pip.calls) == 1


def test_h5py_declined_failing_or_in_testing_mode(python, app, asked, pip, monkeypatch):
    asked.confirm.answer = False
    with pytest.raises(install.InstallError, match=r"Nothing was installed\. Without h5py"):
        install.install_hdf5()
    asked.confirm.answer = True
    pip.fails.add("h5py")
    with pytest.raises(install.InstallError, match=r"pip could not install h5py.*internet"):
        install.install_hdf5()
    monkeypatch.setattr(slicer.packaging, "pip_ensure", lambda *args, **kwargs: None)
    with pytest.raises(install.InstallError, match="h5py is still missing"):
        install.install_hdf5()
    app.testing = True
    with pytest.raises(install.InstallError, match="testing mode"):
        install.install_hdf5()
    assert len(asked.questions) == 3


def test_what_networks_need_is_installed_at_their_first_use_and_torch_stays(python, app, asked, pip):
    assert not {"monai", "safetensors"} & set(install.missing_packages())
    python.add("numpy", "2.4.6")
    python.add("torch", "2.8.0+cu128")
    python.add("safetensors", "0.5.0")
    install.install_learning()
    assert len(asked.questions) == 1 and "monai" in asked.questions[0]
    assert pip.calls == [(["monai"], ["numpy==2.4.6", "torch==2.8.0+cu128"], "DiffDRRSlicer")]
    install.install_learning()
    assert len(asked.questions) == len(pip.calls) == 1


def test_what_networks_need_declined(python, app, asked, pip):
    asked.confirm.answer = False
    with pytest.raises(install.InstallError, match="Without monai and safetensors no network can be trained or used"):
        install.install_learning()
    assert not pip.calls


def test_older_slicers_get_pip_arguments(python, app, asked, pytorch, older_pip):
    python.add("numpy", "2.0.2")
    install.install()
    assert len(asked.questions) == 1
    required, optional = older_pip
    assert required[:-2] == ["roma>=1.4", "scipy>=1.10", "pydicom>=3.0", "tqdm>=4.60"]
    assert required[-2] == "--constraint" and required[-1].endswith("constraints.txt")
    assert optional[0] == "numba>=0.61"


def test_requirements_leave_alone_what_slicer_brings():
    names = {one.name.lower() for one in install._requirements()}
    assert names == {"numba", *OTHERS}
    assert all(str(one.specifier).startswith(">=") for one in install._requirements())


def test_requirements_agree_with_the_library():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {Requirement(text).name: Requirement(text) for text in project["dependencies"]}
    declared |= {Requirement(text).name: Requirement(text) for text in project["optional-dependencies"]["fast"]}
    for one in install._requirements():
        assert str(declared[one.name].specifier) == str(one.specifier), one
    assert project["optional-dependencies"]["datasets"] == [install.HDF5]
    assert str(declared["torch"].specifier) == install.TORCH


def test_fakes_have_the_real_signature():
    """slicer-core has slicer.util, whose question has these parameters."""
    names = list(inspect.signature(slicer.util.confirmOkCancelDisplay).parameters)
    assert names == ["text", "windowTitle", "parent", "kwargs"]
