"""An application without Slicer, and its views; the tests are skipped where nothing can be drawn."""

from __future__ import annotations

import pytest

from Testing.mrml.offscreen import can_render, prefer_offscreen

prefer_offscreen()


@pytest.fixture
def app():
    """A new MRMLApp, closed after the test."""
    if not can_render():
        pytest.skip("VTK finds no OpenGL to draw with here (neither EGL nor OSMesa)")
    from Testing.mrml.app import MRMLApp

    made = MRMLApp()
    yield made
    made.close()


@pytest.fixture
def slice_view(app):
    """A slice view of 400 x 300 pixels."""
    return app.slice_view("Red")


@pytest.fixture
def threed_view(app):
    """A 3D view of 400 x 300 pixels."""
    return app.threed_view("1")
