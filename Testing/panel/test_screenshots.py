"""The script that makes the README's pictures goes through the tutorial; panel and views are as they should be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from DiffDRRCore.datasets.phantom import phantom
from DiffDRRSlicerLib import sample_data
from Testing.mrml.offscreen import can_render

SCRIPT = Path(__file__).resolve().parents[2] / "Resources" / "make_screenshots.py"
pytestmark = pytest.mark.skipif(not can_render(), reason="no OpenGL to draw with")


@pytest.fixture
def tutorial(slicer_app, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_data, "_PIXELS", 96)
    monkeypatch.setattr(sample_data, "_SPACING", 4.0)
    spec = importlib.util.spec_from_file_location("make_screenshots", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.set_theme(dark=False)
    return module.Tutorial(slicer_app, tmp_path)


def test_the_tutorial_is_pictured_and_the_panel_fits_400_pixels(tutorial, slicer_app, capsys):
    tutorial.run(phantom(shape=(48, 36, 42), spacing=8.0))
    assert not slicer_app.messages
    assert "pixels wide" not in capsys.readouterr().out
    sizes = {path.name: Image.open(path).size for path in tutorial.output.iterdir()}
    assert set(sizes) == {"start.jpg", "landmarks.jpg", "registered.jpg", "panel.png"}
    assert sizes["start.jpg"] == sizes["landmarks.jpg"] == sizes["registered.jpg"] == (1600, 760)


def beam(picture):
    """[H, W] where the frustum's colour is."""
    return np.abs(picture.astype(int) - (51, 204, 255)).max(axis=2) < 30


def test_c_arm_and_free_view_show_what_they_are_for(tutorial):
    """The C-arm view looks from the source past the frustum's mark there; the free view holds the whole frustum."""
    tutorial.load(phantom(shape=(48, 36, 42), spacing=8.0))
    tutorial.show()
    from_source = tutorial.views["DiffDRRCArm"].grab()
    assert beam(from_source).mean() < 0.02
    assert from_source.std(axis=(0, 1)).min() > 15  # not one colour
    around = tutorial.views["1"].grab()
    rows, columns = np.nonzero(beam(around))
    assert len(rows) > 200
    assert rows.min() > 5 and rows.max() < around.shape[0] - 6
    assert columns.min() > 5 and columns.max() < around.shape[1] - 6
