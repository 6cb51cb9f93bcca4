"""What the README says of the panel: its names, keys, pictures and methods are the module's."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from DiffDRRSlicerLib import choices, sample_data

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "DiffDRRSlicer"
PANEL = MODULE / "DiffDRRSlicerLib" / "panel"
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split("\n"))


def section(title: str) -> str:
    return README.split(f" ## {title} ")[1].split("  ## ")[0]


def assigned(path: Path, name: str):
    """Values of the assignments to a name in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            yield ast.literal_eval(node.value)


@pytest.fixture(scope="module")
def shown() -> set[str]:
    """Texts of all widgets, titles of sections, choices and samples."""
    found = {sample_data.TITLE, sample_data.CT_NAME, sample_data.FLUOROSCOPY_NAME}
    for path in (MODULE / "Resources" / "UI").glob("*.ui"):
        for place in (".//property[@name='text']/string", ".//property[@name='title']/string"):
            found |= {text.text or "" for text in ElementTree.parse(path).iterfind(place)}
    for kind in (
        choices.Overlay,
        choices.Side,
        choices.Preset,
        choices.Moves,
        choices.Rest,
        choices.Scatter,
        choices.Device,
    ):
        found |= {one.label() for one in kind}
    for path in PANEL.glob("*.py"):
        found |= set(assigned(path, "title"))
    return {text.rstrip(":") for text in found}


@pytest.mark.parametrize("title, least", [("Three minutes in Slicer", 30), ("Troubleshooting", 8)])
def test_bold_names_are_on_the_screen(shown, title, least):
    named = {text for text in re.findall(r"\*\*([^*]+)\*\*", section(title)) if not re.match(r"\d\. ", text)}
    assert len(named) >= least
    assert named - shown == set()


def test_keys_are_the_shortcuts():
    nudges = next(assigned(PANEL / "move.py", "_NUDGES"))
    said = section("Three minutes in Slicer").split("### Keys")[1].split("###")[0]
    pressed = {key.split("+")[-1] for key, _ in nudges.values()}
    assert pressed == {"Left", "Right", "Up", "Down", "PgUp", "PgDown"}
    assert all(keys in said for keys in ("Alt + arrow keys", "Alt + Shift + Left, Right", "Alt + PgUp, PgDown"))
    source = (PANEL / "move.py").read_text(encoding="utf-8")
    for keys in ("Alt + Z", "Alt + Shift + Z"):
        assert keys in said and f'"{keys.replace(" ", "")}"' in source


def test_methods_exist():
    parts = [MODULE / "DiffDRRSlicer.py", *(MODULE / "DiffDRRSlicerLib").glob("*_logic.py")]
    nodes = [node for path in parts for node in ast.parse(path.read_text(encoding="utf-8")).body]
    logic = [node for node in nodes if getattr(node, "name", "").endswith("Logic")]
    methods = {node.name for one in logic for node in one.body if isinstance(node, ast.FunctionDef)}
    named = set(re.findall(r"logic\.(\w+)\(", README)) | set(re.findall(r"`([a-z]+[A-Z]\w+)`", README))
    assert len(named) > 8
    assert named <= methods


def test_pictures_are_those_of_the_script_and_small():
    script = (ROOT / "Resources" / "make_screenshots.py").read_text(encoding="utf-8")
    made = set(re.findall(r'"(\w+\.(?:jpg|png))"', script))
    pictures = [ROOT / path for path in re.findall(r"!\[[^]]+\]\((Resources/[^)]+)\)", README)]
    assert made <= {picture.name for picture in pictures}
    assert sum(picture.stat().st_size for picture in pictures) < 2.5e6
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    urls = re.search(r'EXTENSION_SCREENSHOTURLS "([^"]+)"', cmake).group(1).split()
    assert urls and all((ROOT / url.split("/main/")[1]).is_file() for url in urls)
