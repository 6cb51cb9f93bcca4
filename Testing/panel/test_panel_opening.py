"""Opening the module: fast, without torch, and with one clear word where packages are missing."""

from __future__ import annotations

import logging
import sys

import pytest

from Testing.panel.kit import add_phantom, sections, settle


def test_the_panel_opens_on_an_empty_scene(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    settle(slicer_app, widget.panel)
    titles = [section.button.text for section in widget.panel.sections.values() if not section.button.isHidden()]
    assert titles == [
        *("Load", "Dataset", "Camera", "View", "Move", "Landmarks", "Bones and X-rays", "Register", "Track"),
        *("Learn", "Simulate", "Calibrate", "Keep"),
    ]
    assert not slicer_app.messages


def test_what_can_be_clicked_before_anything_is_loaded_says_what_is_missing(make_widget, slicer_app):
    panel = make_widget("DiffDRRSlicer").panel
    settle(slicer_app, panel)
    load = sections(panel)["Load"].ui
    assert not load.simulateButton.enabled and not sections(panel)["Register"].ui.registerButton.enabled
    load.addXRayButton.click()
    assert "Choose an image of the scene first" in slicer_app.messages[-1].text
    load.loadXRayButton.click()
    assert "Choose a file first" in slicer_app.messages[-1].text
    for title in ("Camera", "Keep", "Landmarks"):
        assert not sections(panel)[title].root.enabled


def test_nothing_of_torch_is_needed_to_open_the_panel(make_widget, slicer_app, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("torch", "DiffDRRCore")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("DiffDRRSlicerLib.scene")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    monkeypatch.setattr("DiffDRRSlicerLib.install.missing_packages", lambda: ["torch", "roma"])
    panel = make_widget("DiffDRRSlicer").panel
    slicer_app.process_events()
    first = next(iter(panel.sections.values()))
    assert not first.button.isHidden() and "torch, roma" in first.ui.setupText.text
    assert not any(section.button.enabled for section in list(panel.sections.values())[1:])
    add_phantom_without_torch(slicer_app.scene)
    panel.tick()
    assert not slicer_app.messages


def add_phantom_without_torch(scene):
    return scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")


def test_installing_asks_once_and_then_the_panel_works(make_widget, slicer_app, monkeypatch):
    missing = ["roma"]
    monkeypatch.setattr("DiffDRRSlicerLib.install.missing_packages", lambda: list(missing))
    asked = []

    def install():
        asked.append(True)
        missing.clear()

    monkeypatch.setattr("DiffDRRSlicerLib.install.install", install)
    panel = make_widget("DiffDRRSlicer").panel
    first = next(iter(panel.sections.values()))
    first.ui.installButton.click()
    slicer_app.process_events()
    assert asked == [True] and first.button.isHidden()
    panel.parameters.ct = add_phantom(slicer_app.scene)
    settle(slicer_app, panel)
    assert sections(panel)["Load"].ui.simulateButton.enabled


def test_declining_the_installation_is_said_and_leaves_the_panel_as_it_was(make_widget, slicer_app, monkeypatch):
    from DiffDRRSlicerLib.install import InstallError

    def declined():
        raise InstallError("Nothing was installed. Without roma nothing can be rendered.")

    monkeypatch.setattr("DiffDRRSlicerLib.install.missing_packages", lambda: ["roma"])
    monkeypatch.setattr("DiffDRRSlicerLib.install.install", declined)
    panel = make_widget("DiffDRRSlicer").panel
    next(iter(panel.sections.values())).ui.installButton.click()
    assert "Nothing was installed" in slicer_app.messages[-1].text
    assert not sections(panel)["Load"].button.enabled


@pytest.mark.parametrize("again", range(2))
def test_entering_and_leaving_again_and_again_is_fine(make_widget, slicer_app, again):
    widget = make_widget("DiffDRRSlicer")
    widget.panel.parameters.ct = add_phantom(slicer_app.scene)
    settle(slicer_app, widget.panel)
    for _ in range(3):
        slicer_app.leave(widget)
        slicer_app.process_events()
        slicer_app.enter(widget)
        settle(slicer_app, widget.panel)
    assert widget.panel.parameters.ct is not None
    assert sections(widget.panel)["Load"].ui.ctSelector.currentNode() is widget.panel.parameters.ct


def test_the_compiler_does_not_fill_the_log(make_widget, monkeypatch):
    """Slicer's root logger takes debug messages, and numba would write thousands for each function that it compiles."""
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("numba"), "level", logging.NOTSET)
    make_widget("DiffDRRSlicer")
    logging.getLogger("numba")._cache.clear()
    assert not logging.getLogger("numba").isEnabledFor(logging.DEBUG)
    assert logging.getLogger("numba").isEnabledFor(logging.WARNING)
