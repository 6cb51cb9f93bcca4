"""Fixtures of the panel's tests: the stand-in for the Slicer application, and the module's widget made in it."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
MODULE_FOLDER = Path(__file__).resolve().parents[2] / "DiffDRRSlicer"


class SlicerDouble:
    """What a test does as a user, and what it sees."""

    def __init__(self, kit, standin):
        self.kit, self._standin, self._widgets = kit, standin, []

    @property
    def scene(self):
        return self.kit.scene

    @property
    def state(self):
        return self._standin.slicer_modules.state

    @property
    def messages(self):
        """Messages shown so far: objects with kind (error, warning, info, confirm, file, input, dialog) and text."""
        return self.state.messages

    @property
    def errors(self):
        """Exceptions that slots raised; one that is left here at the end fails the test."""
        return self._standin.pythonqt.errors

    @property
    def answer(self):
        """How the user answers questions: True (OK, Yes) or False."""
        return self.state.answer

    @answer.setter
    def answer(self, value):
        self.state.answer = value

    def process_events(self):
        from PySide6 import QtWidgets

        QtWidgets.QApplication.processEvents()

    def wait_until(self, condition, seconds=5.0):
        """Run the event loop until condition() holds; fail after `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not so within {seconds} s"
            self.process_events()
            time.sleep(0.002)

    def grab(self, widget, path=None):
        """A picture of a widget, as QPixmap, kept in a file if a path is given."""
        self.process_events()
        picture = widget.grab()
        if path is not None:
            assert picture.save(str(path))
        return picture

    def make_widget(self, module_name="DiffDRRSlicer", folder=MODULE_FOLDER, enter=True):
        """Import the module afresh, make its widget as Slicer does, call setup() and enter()."""
        import slicer

        path = Path(folder) / f"{module_name}.py"
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
        entry = self._standin.application.Module(str(path))
        setattr(slicer.modules, module_name.lower(), entry)
        getattr(module, module_name)(entry)
        widget = self._make_panel(getattr(module, f"{module_name}Widget"))
        setattr(slicer.modules, f"{module_name}Widget", widget)
        widget.setup()
        if enter:
            self.enter(widget)
        return widget

    def _make_panel(self, cls):
        import qt
        import slicer

        panel = ModulePanel(slicer)
        panel.widget.setLayout(qt.QVBoxLayout())
        panel.widget.setMRMLScene(slicer.mrmlScene)
        widget = cls(panel.widget)
        self._widgets.append(widget)
        return widget

    def enter(self, widget):
        widget.parent._entered = True
        widget.enter()

    def leave(self, widget):
        widget.parent._entered = False
        widget.exit()

    def startup_completed(self):
        """What Slicer announces when it has started."""
        import slicer

        slicer.app.startupCompleted()

    def clean(self):
        for widget in self._widgets:
            if widget.parent.isEntered:
                self.leave(widget)
            widget.cleanup()
            widget.parent.setMRMLScene(None)
            widget.parent.deleteLater()
        self._widgets.clear()
        self.process_events()


class ModulePanel:
    """The parent of a module's widget."""

    def __init__(self, slicer):
        from PySide6.QtCore import Property

        entered = Property(bool, lambda panel: panel.__dict__.get("_entered", False))
        content = {"isEntered": entered, "_is_cpp": True}
        self.widget = type("qSlicerScriptedLoadableModuleWidget", (slicer.qMRMLWidget,), content)()


@pytest.fixture
def slicer_app():
    """The Slicer application's stand-in, with an empty scene; see SlicerDouble."""
    from Testing.panel import standin

    kit, before = standin.install(), set(sys.modules)
    double = SlicerDouble(kit, standin)
    try:
        yield double
        assert not double.errors, f"a slot raised: {double.errors!r}"
    finally:
        double.clean()
        standin.uninstall(kit)
        for name in set(sys.modules) - before:
            if name.startswith("DiffDRRSlicerLib.panel") or name == "DiffDRRSlicer":
                del sys.modules[name]


@pytest.fixture
def make_widget(slicer_app):
    """make_widget("DiffDRRSlicer"): the module's widget, set up and entered."""
    return slicer_app.make_widget


@pytest.fixture
def fresh_modules():
    """A reload imports DiffDRRSlicerLib anew; other tests go on with what they have imported."""
    before = {name: module for name, module in sys.modules.items() if name.startswith("DiffDRRSlicerLib")}
    yield
    for name in [name for name in sys.modules if name.startswith("DiffDRRSlicerLib")]:
        del sys.modules[name]
    sys.modules.update(before)
