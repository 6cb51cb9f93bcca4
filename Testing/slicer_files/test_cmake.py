"""The CMake files run, with a stand-in for Slicer's package, and install a tree that works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from Testing.slicer_files import cmake_lists

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_slicer.cmake")
MODULES = "lib/Slicer-5.12/qt-scripted-modules"
TOLD_AT_THE_END = """
tell("project=${PROJECT_NAME}")
foreach(key HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  tell("${key}=${EXTENSION_${key}}")
endforeach()
"""


def fake_slicer(folder: Path) -> Path:
    folder.mkdir()
    (folder / "SlicerConfig.cmake").write_text(FAKE.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "UseSlicer.cmake").write_text("set(used TRUE)\n", encoding="utf-8")
    (folder / "GenerateConfig.cmake").write_text('tell("generated=${used}")\n', encoding="utf-8")
    (folder / "CPack.cmake").write_text(TOLD_AT_THE_END, encoding="utf-8")
    return folder


def configure(source: Path, folder: Path) -> subprocess.CompletedProcess:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    works = [f"-DCMAKE_{language}_COMPILER_FORCED=ON" for language in ("C", "CXX")]  # nothing is compiled
    command = ["cmake", "-S", source, "-B", folder / "build", f"-DSlicer_DIR={fake_slicer(folder / 'slicer')}", *works]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cmake")
    result = configure(ROOT, folder)
    if "No CMAKE_C" in result.stderr:
        pytest.skip("there is no compiler, which CMake asks for although nothing is compiled")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr, result.stderr
    subprocess.run(["cmake", "--install", folder / "build", "--prefix", folder / "installed"], check=True)
    return folder


@pytest.fixture(scope="module")
def told(built) -> dict[str, str]:
    lines = (built / "build" / "told.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


def small_extension(folder: Path, listed: str) -> Path:
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    for name in ("DiffDRRCore", "Testing"):
        (folder / name).mkdir()
        (folder / name / "CMakeLists.txt").write_text("", encoding="utf-8")
    module = folder / "DiffDRRSlicer"
    module.mkdir()
    (module / "DiffDRRSlicer.py").write_text("", encoding="utf-8")
    text = (ROOT / "DiffDRRSlicer" / "CMakeLists.txt").read_text(encoding="utf-8")
    lists = {cmake_lists.SCRIPTS: ["DiffDRRSlicer.py", listed], cmake_lists.RESOURCES: []}
    (module / "CMakeLists.txt").write_text(cmake_lists.rewritten(text, lists), encoding="utf-8")
    return folder


@pytest.mark.parametrize("folder", cmake_lists.FOLDERS)
def test_every_file_is_listed_and_every_listed_file_is_there(folder):
    text = (ROOT / folder / "CMakeLists.txt").read_text(encoding="utf-8")
    found = cmake_lists.files(ROOT / folder)
    paste = "\n".join(cmake_lists.as_cmake(*item) for item in found.items())
    assert cmake_lists.listed(text) == found, (
        f"{folder}/CMakeLists.txt should have the lists below: paste them, or run "
        f"`python -m Testing.slicer_files.cmake_lists --write`\n{paste}"
    )


def test_lists_find_what_is_not_listed_and_what_is_not_there(tmp_path):
    for name in ("A.py", "Resources/a.json", "__pycache__/A.pyc", ".hidden/x.py", "ALib/b.py", "CMakeLists.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    found = cmake_lists.files(tmp_path)
    assert found == {cmake_lists.SCRIPTS: ["A.py", "ALib/b.py"], cmake_lists.RESOURCES: ["Resources/a.json"]}
    old = "set(MODULE_NAME A)\nset(MODULE_PYTHON_SCRIPTS ${MODULE_NAME}.py\n x.py)\nset(MODULE_PYTHON_RESOURCES)\nend()"
    assert cmake_lists.listed(old)[cmake_lists.SCRIPTS] == ["A.py", "x.py"]
    new = cmake_lists.rewritten(old, found)
    assert cmake_lists.listed(new) == found
    assert new.startswith("set(MODULE_NAME A)") and new.endswith("end()")


def test_a_listed_file_that_is_not_there_stops_the_build(tmp_path):
    (tmp_path / "source").mkdir()
    result = configure(small_extension(tmp_path / "source", "DiffDRRSlicerLib/gone.py"), tmp_path)
    assert result.returncode != 0
    assert "DiffDRRSlicerLib/gone.py" in result.stderr


def test_the_installed_tree_has_what_the_checkout_has(built):
    installed = built / "installed" / MODULES
    expected = {
        "DiffDRRCore": {
            f"DiffDRRCore/{path}" for paths in cmake_lists.files(ROOT / "DiffDRRCore").values() for path in paths
        },
        "DiffDRRSlicer": {path for paths in cmake_lists.files(ROOT / "DiffDRRSlicer").values() for path in paths},
    }
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert found == set.union(*expected.values())
    # Slicer takes every .py file in this folder itself for a module
    assert [path.name for path in installed.glob("*.py")] == ["DiffDRRSlicer.py"]


def test_the_installed_library_works_without_the_checkout(built):
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "import DiffDRRCore\n"
        "from DiffDRRCore import CArm, Renderer\n"
        "from DiffDRRCore.datasets.phantom import phantom\n"
        "assert DiffDRRCore.__file__.startswith(sys.argv[1]), DiffDRRCore.__file__\n"
        "arm = CArm(1020, 750)\n"
        "volume = phantom(shape=(8, 8, 8), spacing=20.0)\n"
        "print(float(Renderer(volume, backend='torch')(arm.camera(2, 2, (5.0, 5.0)), arm.pose).mean()))"
    )
    command = [sys.executable, "-c", code, str(built / "installed" / MODULES)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=built)
    assert result.returncode == 0, result.stderr
    # 160 mm of soft tissue: about 0.02 / mm
    assert 2 < float(result.stdout) < 5


def test_the_module_is_tested_in_slicer(built, told):
    assert told["generic test"] == "DiffDRRSlicer"
    assert Path(told["unittest"]) == ROOT / "DiffDRRSlicer" / "DiffDRRSlicer.py"
    listed = subprocess.run(["ctest", "-N"], cwd=built / "build", capture_output=True, text=True, check=True).stdout
    assert "py_DiffDRRSlicer" in listed


def test_the_metadata_agrees_with_the_catalogue_entry(told):
    entry = json.loads((ROOT / "DiffDRRSlicer.json").read_text(encoding="utf-8"))
    repository = entry["scm_url"].removesuffix(".git")
    assert told["project"] == "DiffDRRSlicer"
    assert told["generated"] == "TRUE"
    assert told["DEPENDS"].split() == entry["build_dependencies"]
    assert told["HOMEPAGE"] == repository
    assert "not a medical device" in told["DESCRIPTION"]
    assert len(told["DESCRIPTION"].split()) < 120


def test_pictures_of_the_catalogue_are_in_the_repository(told):
    entry = json.loads((ROOT / "DiffDRRSlicer.json").read_text(encoding="utf-8"))
    where = entry["scm_url"].removesuffix(".git").replace("//github.com", "//raw.githubusercontent.com")
    urls = [told["ICONURL"], *told["SCREENSHOTURLS"].split()]
    assert len(urls) >= 2
    for url in urls:
        path = ROOT / url.removeprefix(f"{where}/{entry['scm_revision']}/")
        assert path.read_bytes().startswith((b"\x89PNG", b"\xff\xd8\xff")), url


def test_the_index_can_read_the_metadata():
    """The Extensions Index does not run CMake: it looks for each of these on one line, as a quoted text."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.findall(r"project\s*\(\s*([^\s)]+)", text, re.I)[0] == "DiffDRRSlicer"
    for key in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"):
        assert len(re.findall(rf'^set\(EXTENSION_{key} "[^"\n]+"\)$', text, re.M)) == 1, key
