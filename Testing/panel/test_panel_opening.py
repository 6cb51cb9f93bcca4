"""Opening the module."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_panel_opens_on_an_empty_scene(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    slicer_app.process_events()
    titles = [section.button.text for section in widget.panel.sections.values()]
    assert titles[1:] == ["Load", "Camera", "View", "Move", "Landmarks", "Register", "Keep"]
    assert not slicer_app.messages
