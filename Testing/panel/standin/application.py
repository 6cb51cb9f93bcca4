"""`slicer.app`, its layout manager, dialogs that answer at once, and the flat `qt` and `ctk` modules."""
# ruff: noqa: N815 (the names are Qt's, CTK's and Slicer's)

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from pathlib import Path

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from Testing.mrml.offscreen import can_render

from . import ctk_widgets, markups_widgets, mrml_widgets, pythonqt, ui_file
from .slicer_modules import Message, state


class _View:
    """The part of a slice or 3D view that panels use, over an offscreen view of Testing.mrml."""

    def __init__(self, view):
        self.view = view

    def renderWindow(self):
        return self.view.window

    def scheduleRender(self):
        pass

    def forceRender(self):
        self.view.render()

    def displayableManagerByClassName(self, name):
        return self.view.manager(name)

    def mrmlViewNode(self):
        return self.view.node


class _SliceWidget:
    def __init__(self, view):
        self.view = view

    def sliceView(self):
        return _View(self.view)

    def mrmlSliceNode(self):
        return self.view.node

    def sliceLogic(self):
        return self.view.logic


class _ThreeDWidget(_SliceWidget):
    def threeDView(self):
        return _View(self.view)

    def mrmlViewNode(self):
        return self.view.node

    def viewLogic(self):
        return self.view.logic

    sliceView = mrmlSliceNode = sliceLogic = None


class LayoutManager:
    """Views are made of the view nodes when a module's own layout is arranged, and else when they are asked for."""

    def __init__(self, kit):
        self.kit, self.views = kit, {}
        self.node = kit.layout_node
        self._arranged = self.layout
        self._tag = self.node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._arrange)

    def _arrange(self, _node, _event):
        before, self._arranged = self._arranged, self.layout
        if self.layout in (before, *range(1000)) or not can_render():  # Slicer's own layouts end below 1000
            return
        shown = self.layoutLogic().GetViewNodes()
        for node in [shown.GetItemAsObject(index) for index in range(shown.GetNumberOfItems())]:
            if node.IsA("vtkMRMLSliceNode"):
                self.sliceWidget(node.GetLayoutName())
            elif node.IsA("vtkMRMLViewNode"):
                self.threeDWidget(node.GetLayoutName())

    def close(self):
        """Let go of the layout node and the views."""
        self.node.RemoveObserver(self._tag)
        self.views.clear()

    def layoutLogic(self):
        return self.kit._layout_logic

    def mrmlScene(self):
        return self.kit.scene

    @property
    def layout(self):
        return self.node.GetViewArrangement()

    def setLayout(self, layout):
        self.node.SetViewArrangement(layout)

    def _nodes(self, kind):
        nodes = slicer.util.getNodesByClass(kind, self.kit.scene)
        return {node.GetLayoutName(): node for node in nodes}

    def sliceViewNames(self):
        return tuple(self._nodes("vtkMRMLSliceNode"))

    def sliceWidget(self, name):
        node = self._nodes("vtkMRMLSliceNode").get(name)
        return _SliceWidget(self._view(node, self.kit.slice_view)) if node is not None else None

    @property
    def threeDViewCount(self):
        return len(self._nodes("vtkMRMLViewNode"))

    def threeDWidget(self, which):
        nodes = self._nodes("vtkMRMLViewNode")
        node = nodes.get(which) if isinstance(which, str) else dict(enumerate(nodes.values())).get(which)
        return _ThreeDWidget(self._view(node, self.kit.threed_view)) if node is not None else None

    def _view(self, node, make):
        if node.GetID() not in self.views:
            self.views[node.GetID()] = make(node)
        return self.views[node.GetID()]

    def resetSliceViews(self):
        pass

    def resetThreeDViews(self):
        pass


class Settings:
    """QSettings in memory."""

    def value(self, key, default=None):
        return state.settings.get(key, default)

    def setValue(self, key, value):
        state.settings[key] = value

    def contains(self, key):
        return key in state.settings

    def remove(self, key):
        state.settings.pop(key, None)


@pythonqt.cpp
class SlicerApp(QtCore.QObject):
    startupCompleted = QtCore.Signal()
    aboutToQuit = QtCore.Signal()

    def __init__(self, kit):
        super().__init__()
        self._kit, self._layout_manager = kit, LayoutManager(kit)
        self._window = QtWidgets.QMainWindow()
        self._window.name = "qSlicerMainWindow"

    applicationName = QtCore.Property(str, lambda self: "Slicer")
    applicationVersion = QtCore.Property(str, lambda self: "5.12.3")
    majorVersion = QtCore.Property(int, lambda self: 5)
    minorVersion = QtCore.Property(int, lambda self: 12)
    defaultScenePath = QtCore.Property(str, lambda self: QtCore.QDir.tempPath())
    temporaryPath = QtCore.Property(str, lambda self: QtCore.QDir.tempPath())

    def layoutManager(self):
        return self._layout_manager

    def applicationLogic(self):
        return self._kit.logic

    def mrmlScene(self):
        return self._kit.scene

    def processEvents(self, *_):
        QtWidgets.QApplication.processEvents()

    def settings(self):
        return Settings()

    userSettings = revisionUserSettings = settings

    def testingEnabled(self):
        return False

    def commandOptions(self):
        return types.SimpleNamespace(noMainWindow=False, testingEnabled=False)

    def topLevelWidgets(self):
        return (self._window,)

    def palette(self):
        return QtWidgets.QApplication.palette()

    def setOverrideCursor(self, cursor):
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self):
        QtWidgets.QApplication.restoreOverrideCursor()

    def pauseRender(self):
        pass

    def resumeRender(self):
        pass

    def clipboard(self):
        return QtWidgets.QApplication.clipboard()

    def moduleDocumentationUrl(self, name):
        return f"https://slicer.readthedocs.io/{name}"


def _note(kind, text):
    state.messages.append(Message(kind, str(text)))


class QUiLoader:
    """Reads .ui files with the widgets of the stand-in."""

    def load(self, qfile):
        return ui_file.load(qfile.fileName(), widget_classes())


class QFileDialog(QtWidgets.QFileDialog):
    @staticmethod
    def _asked(*arguments, **_options):
        title = arguments[1] if len(arguments) > 1 else ""
        _note("file", title)
        return state.file_answer

    getOpenFileName = getSaveFileName = getExistingDirectory = getOpenFileNames = _asked


class QInputDialog(QtWidgets.QInputDialog):
    @staticmethod
    def getText(parent, title, label, *_):
        _note("input", label)
        return state.text_answer


class QTimer(QtCore.QTimer):
    @staticmethod
    def singleShot(milliseconds, slot):
        if not isinstance(milliseconds, int):
            raise TypeError("singleShot wants whole milliseconds")
        QtCore.QTimer.singleShot(milliseconds, pythonqt.guarded(slot, 0))


def _exec(dialog, *_):
    """No dialog waits in a test: it is answered at once."""
    _note("dialog", dialog.windowTitle)
    return int(state.answer)


def slicer_widgets() -> tuple:
    """The widget classes that are reached as slicer.qMRML... and slicer.qSlicer..."""
    return mrml_widgets.WIDGETS + markups_widgets.WIDGETS


@functools.cache
def widget_classes() -> dict:
    """Every widget that a .ui file may name."""
    found = {n: c for n, c in qt_classes().items() if isinstance(c, type) and issubclass(c, QtWidgets.QWidget)}
    return found | {c.__name__: c for c in (*ctk_widgets.WIDGETS, *slicer_widgets())}


@functools.cache
def qt_classes() -> dict:
    special = (QUiLoader, QFileDialog, QInputDialog, QTimer)
    return pythonqt.classes() | {c.__name__: c for c in special} | {"QSettings": Settings}


def qt_module():
    made = types.ModuleType("qt")
    made.__dict__.update(qt_classes())
    made.__dict__.pop("QThread")  # does not work from Python in Slicer
    return made


def ctk_module():
    made = types.ModuleType("ctk")
    made.__dict__.update({c.__name__: c for c in ctk_widgets.WIDGETS})
    return made


class Module:
    """An entry of slicer.modules, and the `parent` of a scripted module."""

    def __init__(self, path="", logic=None):
        self.path, self._logic = path, logic

    def logic(self):
        return self._logic


class Modules(types.SimpleNamespace):
    def __init__(self, kit):
        super().__init__(**{name.lower(): Module(logic=logic) for name, logic in kit.modules.items()})


def save_node(node, filename, properties=None):
    """slicer.util.saveNode through the node's own storage node."""
    storage = node.CreateDefaultStorageNode()
    if storage is None:
        return False
    storage.UnRegister(None)
    storage.SetFileName(str(filename))
    return bool(storage.WriteData(node))


def load_volume(filename, properties=None, returnNode=False):
    """slicer.util.loadVolume; RuntimeError where the file cannot be read."""
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(filename))
    label = bool((properties or {}).get("labelmap"))
    node = slicer.vtkMRMLLabelMapVolumeNode() if label else slicer.vtkMRMLScalarVolumeNode()
    if not Path(filename).is_file() or not storage.ReadData(node):
        raise RuntimeError(f"Failed to load node from file: {filename}")
    node.SetName((properties or {}).get("name") or Path(filename).name.split(".")[0])
    return slicer.mrmlScene.AddNode(node)


def reload_scripted_module(name):
    """slicer.util.reloadScriptedModule: the file read again, a new widget on the parent of the old one."""
    path = slicer.util.modulePath(name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    widget = getattr(slicer.modules, f"{name}Widget")
    parent, layout = widget.parent, widget.parent.layout()
    for child in parent.children():
        if isinstance(child, QtWidgets.QWidget):
            child.hide()
    widget.cleanup()
    while layout.count():
        layout.takeAt(0)
    new = getattr(module, f"{name}Widget")(parent)
    setattr(slicer.modules, f"{name}Widget", new)
    new.setup()
    return module
