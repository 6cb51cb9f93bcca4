"""Icons and thumbnails: there, of the right size, and what the script and the SVG make."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parents[2]
ICONS = ROOT / "DiffDRRSlicer" / "Resources" / "Icons"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "Resources" / "make_icons.py"))


@pytest.mark.parametrize("name", ["SampleCT.png", "SampleXRay.png"])
def test_thumbnails(name):
    image = imread(ICONS / name)[..., :3].mean(axis=-1)
    assert image.shape == (280, 260)
    assert image.std() > 0.1  # not blank
    assert (ICONS / name).stat().st_size < 100_000


def test_extension_icon_is_the_modules(script, tmp_path):
    script["draw_svg"](ICONS / "DiffDRRSlicer.svg", tmp_path / "icon.png", 128)
    made, kept = imread(tmp_path / "icon.png"), imread(ROOT / "DiffDRRSlicer.png")
    assert made.shape == kept.shape == (128, 128, 4)
    # smoothing of edges may differ between versions of Qt
    assert np.abs(made - kept).mean() < 0.01
    assert kept[0, 0, 3] == 0 and kept[64, 10, 3] == 1


@pytest.mark.parametrize("theme", [0.94, 0.18])
def test_icon_reads_on_light_and_dark_themes(theme):
    icon = imread(ROOT / "DiffDRRSlicer.png")
    shown = icon[..., :3] * icon[..., 3:] + theme * (1 - icon[..., 3:])
    light = shown.mean(axis=-1)
    assert np.quantile(light, 0.99) - np.quantile(light, 0.05) > 0.5


def test_the_svg_uses_what_qt_can_draw():
    """Qt's SVG is Tiny 1.2: no filters, masks or style sheets."""
    tags = {element.tag.split("}")[-1] for element in ET.parse(ICONS / "DiffDRRSlicer.svg").iter()}
    assert tags <= {"svg", "g", "path", "rect", "circle", "line"}


def test_thumbnails_are_of_the_phantom(script):
    """The committed pictures are what the script draws: compared coarsely, on a coarse phantom."""
    volume = script["phantom"](shape=(96, 64, 84), spacing=4.0)
    for name, draw in (("SampleCT.png", "coronal_slice"), ("SampleXRay.png", "fluoroscopy")):
        kept = imread(ICONS / name)[..., :3].mean(axis=-1)
        drawn = script[draw](volume)
        blocks = [image[:270, :260].reshape(27, 10, 26, 10).mean(axis=(1, 3)).ravel() for image in (kept, drawn)]
        assert np.corrcoef(*blocks)[0, 1] > 0.95, name
