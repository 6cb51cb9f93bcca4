"""Which Python packages are missing, and their installation into Slicer.

torch comes through Slicer's extension PyTorch, which chooses the build for the machine's graphics card; the others
through pip. What Slicer brings itself (numpy, SimpleITK, vtk) is held at the version it has.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TORCH = ">=2.4"
HDF5 = "h5py>=3.8"
LEARNING = ("monai>=1.4", "safetensors>=0.4")
NAME = "DiffDRRSlicer"
_REQUIREMENTS = Path(__file__).parents[1] / "Resources" / "requirements.txt"
_OPTIONAL = ("numba",)  # renders faster; what it does, torch does too
_KEPT = ("numpy", "SimpleITK", "vtk", "torch")  # Slicer's own, and what the extension PyTorch chose
_SIZES = "PyTorch takes about 1 GB (up to 6 GB with a build for NVIDIA cards), the others 0.3 GB."
_HDF5_QUESTION = (
    "Datasets in HDF5 files are read by the Python package h5py, which Slicer does not bring. It is downloaded from "
    "the internet into Slicer's Python (about 5 MB).\n\nInstall it now?"
)
_LEARNING_QUESTION = (
    "Networks are built by the Python package monai and kept in files by the package safetensors, which Slicer does "
    "not bring. They are downloaded from the internet into Slicer's Python (about 5 MB).\n\nInstall them now?"
)


class InstallError(RuntimeError):
    """Packages are still missing, or work only after a restart; the message says why and what to do."""


def missing_packages() -> list[str]:
    """Names of the packages without which nothing can be rendered; nothing is imported to find out.

    A package counts as there only with its files and a version that will do: a broken installation has one of them.
    """
    needed = [_requirement(f"torch{TORCH}"), *(one for one in _requirements() if one.name not in _OPTIONAL)]
    return [one.name for one in needed if not _is_there(one)]


def install(ask: bool = True) -> None:
    """Install what is missing, after asking once; with `ask` False without asking.

    Raises InstallError where it was declined or did not succeed, and always in Slicer's testing mode, which must not
    change its Python.
    """
    import slicer

    missing = missing_packages()
    if not missing:
        return
    if slicer.app.testingEnabled():
        raise InstallError(f"Python packages are missing: {', '.join(missing)}. In testing mode nothing is installed.")
    if "torch" in missing and not hasattr(slicer.modules, "pytorchutils"):
        raise InstallError(
            "PyTorch is missing: install the extension 'PyTorch' from Slicer's Extensions Manager, restart Slicer, and "
            "try again."
        )
    if ask and not slicer.util.confirmOkCancelDisplay(_question(missing), f"Install packages for {NAME}"):
        raise InstallError(f"Nothing was installed. Without {', '.join(missing)} nothing can be rendered.")
    loaded = _loaded_versions(missing)
    if "torch" in missing:
        _install_torch()
    _install_others()
    _check(loaded)


def install_hdf5(ask: bool = True) -> None:
    """Install h5py where it is missing, after asking once; only datasets in HDF5 files need it. Raises as `install`."""
    _install_more([HDF5], _HDF5_QUESTION, "no dataset in an HDF5 file can be read", ask)


def install_learning(ask: bool = True) -> None:
    """Install what networks need where it is missing, after asking once. Raises as `install`."""
    _install_more(LEARNING, _LEARNING_QUESTION, "no network can be trained or used", ask)


def _install_more(texts, question: str, without: str, ask: bool) -> None:
    """Packages that only some use: install those that are missing, after asking once. Raises as `install`."""
    import slicer

    needed = [one for one in map(_requirement, texts) if not _is_there(one)]
    names = " and ".join(one.name for one in needed)
    if not needed:
        return
    if slicer.app.testingEnabled():
        raise InstallError(f"Python packages are missing: {names}. In testing mode nothing is installed.")
    if ask and not slicer.util.confirmOkCancelDisplay(question, f"Install packages for {NAME}"):
        raise InstallError(f"Nothing was installed. Without {names} {without}.")
    with _constraints() as constraints:
        _pip_or_tell(needed, constraints)
    importlib.invalidate_caches()
    missing = [one.name for one in needed if not _is_there(one)]
    if missing:
        names = " and ".join(missing) + (" is" if len(missing) == 1 else " are")
        raise InstallError(f"{names} still missing after the installation; the Python console shows what pip said.")


def _question(missing: list[str]) -> str:
    return (
        f"{NAME} needs Python packages that Slicer does not bring: {', '.join(missing)}. They are downloaded from the "
        f"internet into Slicer's Python, which takes some minutes. {_SIZES}\n\nInstall them now?"
    )


def _install_torch() -> None:
    import PyTorchUtils

    try:
        PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=TORCH)
    except Exception as error:  # whatever pip, light-the-torch or the first import of torch throw
        raise InstallError(
            f"PyTorch could not be installed ({error}). Restart Slicer, open the module 'PyTorch Utils', uninstall "
            "PyTorch there, and install it again."
        ) from error


def _install_others() -> None:
    """Those of requirements.txt; the optional ones apart, so that they cannot keep the others away."""
    needed = [one for one in _requirements() if not _is_there(one)]
    with _constraints() as constraints:
        _pip_or_tell([one for one in needed if one.name not in _OPTIONAL], constraints)
        try:
            _pip([one for one in needed if one.name in _OPTIONAL], constraints)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            logging.warning("%s renders more slowly: %s could not be installed (%s)", NAME, ", ".join(_OPTIONAL), error)


@contextmanager
def _constraints() -> Iterator[Path]:
    """A file that keeps pip from replacing what Slicer brings."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(_pins()) + "\n", encoding="utf-8")
        yield constraints


def _pip_or_tell(requirements: list, constraints: Path) -> None:
    try:
        _pip(requirements, constraints)
    except (subprocess.CalledProcessError, RuntimeError) as error:
        raise InstallError(
            f"pip could not install {', '.join(one.name for one in requirements)}: check the internet connection and "
            "the free disk space; the Python console shows pip's messages."
        ) from error


def _pip(requirements: list, constraints: Path) -> None:
    """Slicer 5.11 and newer have pip_ensure, older ones pass a list on as pip's arguments."""
    import slicer

    if not requirements:
        return
    try:
        from slicer import packaging
    except ImportError:
        slicer.util.pip_install([*map(str, requirements), "--constraint", str(constraints)])
    else:
        packaging.pip_ensure(requirements, constraints=constraints, prompt_install=False, requester=NAME)


def _pins() -> list[str]:
    """Constraints that keep what Slicer brings; some of it is not known to pip, which then leaves it alone."""
    versions = {name: _version(name) for name in _KEPT}
    return [f"{name}=={version}" for name, version in versions.items() if version]


def _check(loaded: dict[str, str]) -> None:
    importlib.invalidate_caches()
    missing = missing_packages()
    if missing:
        raise InstallError(
            f"Still missing after the installation: {', '.join(missing)}. Restart Slicer and try again; the Python "
            "console shows what pip said."
        )
    replaced = [name for name, version in loaded.items() if _version(name) != version]
    if replaced:
        raise InstallError(
            f"The packages are installed. Restart Slicer: it still uses the earlier {', '.join(replaced)}."
        )


def _loaded_versions(names: list[str]) -> dict[str, str | None]:
    return {name: _version(name) for name in names if name in sys.modules}


@functools.cache
def _requirements() -> tuple:
    """Requirement objects of requirements.txt."""
    lines = (line.strip() for line in _REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return tuple(_requirement(line) for line in lines if line and not line.startswith(("#", "-")))


def _requirement(text: str):
    try:
        from packaging.requirements import Requirement
    except ImportError:  # older Slicers have it inside pip only
        from pip._vendor.packaging.requirements import Requirement
    return Requirement(text)


def _is_there(requirement) -> bool:
    """These packages are imported by the name that they are installed by."""
    version = _version(requirement.name)
    if not version or not requirement.specifier.contains(version, prereleases=True):
        return False
    try:
        spec = importlib.util.find_spec(requirement.name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None  # a folder without __init__.py has no origin


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):  # the latter by the package importlib_metadata
        return None
