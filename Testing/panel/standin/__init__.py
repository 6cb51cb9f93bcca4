"""A small, strict stand-in for the Slicer application: PythonQt's rules over PySide6, on slicer-core's real MRML.

install() puts `qt`, `ctk` and Slicer's Python modules into sys.modules and slicer.app, slicer.mrmlScene and
slicer.modules into the package `slicer`; uninstall() takes all of it away. Where PythonQt is silent about a mistake
(a signal that does not exist), the stand-in raises.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import fields

import slicer
import slicer.util
from PySide6 import QtGui, QtWidgets

from Testing.mrml.app import MRMLApp

from . import application, pythonqt, slicer_modules

_saved: dict = {}
_ABSENT = object()


def _put(owner, name, value) -> None:
    _saved[id(owner), name] = (owner, name, owner.__dict__.get(name, _ABSENT))
    setattr(owner, name, value)


def _lend_references() -> None:
    """PySide6 6.12 gives more references to True back than it takes, and Python dies at zero; 3.12 counts none."""
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(True)).value += 1_000_000


def install() -> MRMLApp:
    """Start the stand-in with an empty scene; returns the kit that holds the scene, the logics and the views."""
    if _saved:
        raise RuntimeError("the stand-in is already installed")
    QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    _lend_references()
    for item in fields(slicer_modules.State):
        setattr(slicer_modules.state, item.name, getattr(slicer_modules.State(), item.name))
    pythonqt.errors.clear()
    pythonqt.patch()
    _put(pythonqt, "was_shown", slicer_modules.was_shown)
    kit = MRMLApp()
    for name, module in slicer_modules.modules().items():
        _saved[name] = sys.modules.get(name)
        sys.modules[name] = module
        if name.startswith("slicer."):
            _put(slicer, name.removeprefix("slicer."), module)
    for name, module in (("qt", application.qt_module()), ("ctk", application.ctk_module())):
        _saved[name] = sys.modules.get(name)
        sys.modules[name] = module
    for cls in application.slicer_widgets():
        _put(slicer, cls.__name__, cls)
    _put(slicer, "mrmlScene", kit.scene)
    _put(slicer, "app", application.SlicerApp(kit))
    _put(slicer, "modules", application.Modules(kit))
    _put(slicer, "dicomDatabase", slicer_modules.DicomDatabase())
    _put(slicer.util, "messageBox", slicer_modules.message_box)
    _put(slicer.util, "selectModule", lambda name: setattr(slicer_modules.state, "selected_module", name))
    _put(slicer.util, "reloadScriptedModule", application.reload_scripted_module)
    _put(slicer.util, "saveNode", application.save_node)
    _put(slicer.util, "loadVolume", application.load_volume)
    for cls in (QtWidgets.QDialog, QtWidgets.QMenu):
        _put(cls, "exec_", application._exec)
    _put(QtGui.QDrag, "exec_", application._exec)
    return kit


def uninstall(kit: MRMLApp) -> None:
    """Close the scene and take everything away that install() put in."""
    slicer.app.layoutManager().close()
    kit.close()
    for key, value in reversed(list(_saved.items())):
        if isinstance(key, tuple):
            owner, name, old = value
            delattr(owner, name) if old is _ABSENT else setattr(owner, name, old)
        elif value is None:
            sys.modules.pop(key, None)
        else:
            sys.modules[key] = value
    _saved.clear()
    pythonqt.unpatch()
