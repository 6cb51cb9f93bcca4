"""Slicer's MRML widgets over PySide6, following a real vtkMRMLScene: properties, signals and slots of the real ones."""
# ruff: noqa: N801, N815 (the names are Qt's, CTK's and Slicer's)

from __future__ import annotations

import weakref
from types import SimpleNamespace

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Property, Signal

from .ctk_widgets import ctkDoubleSpinBox, ctkSliderWidget, stored
from .pythonqt import cpp

_SCENE_SIGNAL = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}
_SCENE_SLOT = ("setMRMLScene(vtkMRMLScene*)",)
NODE_SLOT = ("setCurrentNode(vtkMRMLNode*)",)


def checked(value, kind):
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is wanted, got {value!r}")
    return value


def while_alive(widget, method):
    """An observer that keeps no widget alive and falls silent when Qt has deleted it."""
    me = weakref.ref(widget)

    def observer(caller, event):
        if me() is not None and shiboken6.isValid(me()):
            getattr(me(), method)(caller, event)

    return observer


class _Scened:
    """The scene of a widget."""

    def mrmlScene(self):
        return self.__dict__.get("_scene")

    def setMRMLScene(self, scene):
        if scene is not self.mrmlScene():
            self._scene = checked(scene, slicer.vtkMRMLScene)
            self.mrmlSceneChanged(scene)


@cpp
class qMRMLWidget(_Scened, QtWidgets.QWidget):
    mrmlSceneChanged = Signal(object)
    _signals, _slots = _SCENE_SIGNAL, _SCENE_SLOT


@cpp
class qSlicerWidget(_Scened, QtWidgets.QWidget):
    mrmlSceneChanged = Signal(object)
    _signals, _slots = _SCENE_SIGNAL, _SCENE_SLOT


@cpp
class qMRMLSortFilterProxyModel(QtCore.QObject):
    """Of a selector: which nodes it leaves out by their IDs."""

    def _changed(self, _value):
        self.parent()._refresh()

    hiddenNodeIDs = stored("QStringList", "hiddenNodeIDs", [], _changed)


@cpp
class qMRMLNodeComboBox(QtWidgets.QWidget):
    currentNodeChanged, _currentNodeChangedValid = Signal(object), Signal(bool)
    currentNodeIDChanged, currentNodeRenamed = Signal(str), Signal(str)
    nodeActivated, nodeAdded, nodeAddedByUser, nodeAboutToBeRemoved = (Signal(object) for _ in range(4))
    nodeAddedByUserAction, nodeAboutToBeEdited = Signal(object), Signal(object)
    _signals = {
        f"{name}(vtkMRMLNode*)": name
        for name in ("currentNodeChanged", "nodeActivated", "nodeAdded", "nodeAddedByUser", "nodeAboutToBeRemoved")
    } | {
        "currentNodeChanged(bool)": "_currentNodeChangedValid",
        "nodeAboutToBeEdited(vtkMRMLNode*)": "nodeAboutToBeEdited",
    }
    _signals["nodeAddedByUserAction(vtkMRMLNode*)"] = "nodeAddedByUserAction"
    _slots = (*_SCENE_SLOT, *NODE_SLOT, "setCurrentNode(QString)", "setCurrentNodeID(QString)")
    _slots += ("setCurrentNodeIndex(int)", "addNode()", "removeCurrentNode()", "renameCurrentNode()")
    _EVENTS = ("NodeAddedEvent", "NodeRemovedEvent", "EndCloseEvent", "EndImportEvent", "EndBatchProcessEvent")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._combo, self._scene, self._current, self._nodes = QtWidgets.QComboBox(), None, None, []
        self._shown, self._filter = [], qMRMLSortFilterProxyModel(self)
        self._wanted, self._observed, self._attributes, self._filling, self._labels = None, [], {}, False, {}
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.connect("currentIndexChanged(int)", self._picked)

    # the scene
    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._unobserve()
        self._scene = checked(scene, slicer.vtkMRMLScene)
        self.setEnabled(scene is not None)
        wanted, self._wanted = self._wanted, None
        self._refresh()
        if wanted is not None:
            self.setCurrentNode(wanted)

    def _unobserve(self):
        for subject, tag in self._observed:
            subject.RemoveObserver(tag)
        self._observed = []

    def _observe(self):
        self._unobserve()
        if self._scene is None:
            return
        on_scene, on_node = while_alive(self, "_on_scene"), while_alive(self, "_on_node")
        for event in self._EVENTS:
            tag = self._scene.AddObserver(getattr(slicer.vtkMRMLScene, event), on_scene)
            self._observed.append((self._scene, tag))
        for node in self._of_types():
            self._observed.append((node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, on_node)))

    def _on_scene(self, caller, event):
        if not caller.IsBatchProcessing() and not caller.IsClosing():
            known = list(self._nodes)
            self._refresh()
            for node in [n for n in self._nodes if n not in known]:
                self.nodeAdded(node)

    def _on_node(self, caller, event):
        if self._scene is not None and self._shown != [(n, n.GetName()) for n in self._fitting()]:
            renamed = caller is self._current and self._combo.currentText != caller.GetName()
            self._refresh()
            if renamed:
                self.currentNodeRenamed(caller.GetName())

    # the list
    def _of_types(self):
        kinds, hidden, children = self.nodeTypes, self.hideChildNodeTypes, self.showChildNodeTypes
        known = {}  # {class name: whether it is shown}; each property is read once, which is what takes long here

        def fits(node):
            name = node.GetClassName()
            if name not in known:
                child = children and any(map(node.IsA, kinds)) and not any(map(node.IsA, hidden))
                known[name] = name in kinds or child
            return known[name]

        nodes = (self._scene.GetNthNode(index) for index in range(self._scene.GetNumberOfNodes()))
        return [node for node in nodes if fits(node)]

    def _fitting(self):
        hidden = self._filter.hiddenNodeIDs
        nodes = [n for n in self._of_types() if self.showHidden or not n.GetHideFromEditors()]
        nodes = [n for n in nodes if n.GetID() not in hidden]
        return [n for n in nodes if all(self._has(n, *key, value) for key, value in self._attributes.items())]

    def _has(self, node, kind, name, value):
        if not node.IsA(kind):
            return True
        return node.GetAttribute(name) is not None if value is None else node.GetAttribute(name) == value

    def _refresh(self):
        self._observe()
        self._nodes = self._fitting() if self._scene is not None else []
        self._shown = [(n, n.GetName()) for n in self._nodes]
        names = [self.noneDisplay] if self.noneEnabled else []
        self._filling = True
        self._combo.clear()
        self._combo.addItems([*names, *(node.GetName() or "" for node in self._nodes)])
        self._filling = False
        wanted = self._current if self._current in self._nodes else None
        if wanted is None and not self.noneEnabled and self._nodes:
            wanted = self._nodes[0]
        self._select(wanted)

    def _picked(self, index):
        if not self._filling:
            index -= bool(self.noneEnabled)
            self._select(self._nodes[index] if 0 <= index < len(self._nodes) else None)

    def _select(self, node):
        self._filling = True
        self._combo.currentIndex = -1 if node is None else self._nodes.index(node) + bool(self.noneEnabled)
        if node is None and self.noneEnabled:
            self._combo.currentIndex = 0
        self._filling = False
        if node is not self._current:
            self._current = node
            self.currentNodeChanged(node)
            self._currentNodeChangedValid.emit(node is not None)
            self.currentNodeIDChanged(self.currentNodeID)

    # what Python may call
    def currentNode(self):
        return self._current

    def setCurrentNode(self, node):
        if self._scene is None:
            self._wanted = node  # chosen when the scene comes
            return
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node)
        checked(node, slicer.vtkMRMLNode)
        self._select(node if node in self._nodes else None)

    def setCurrentNodeID(self, node_id):
        self.setCurrentNode(node_id or "")

    def setCurrentNodeIndex(self, index):
        self.setCurrentNode(self.nodeFromIndex(index))

    def nodeCount(self):
        return len(self._nodes)

    def nodeFromIndex(self, index):
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def addAttribute(self, kind, name, value=None):
        self._attributes[kind, name] = value if value is None else str(value)
        self._refresh()

    def removeAttribute(self, kind, name):
        self._attributes.pop((kind, name), None)
        self._refresh()

    def sortFilterProxyModel(self):
        return self._filter

    def setNodeTypeLabel(self, label, kind):
        self._labels[kind] = label

    def nodeTypeLabel(self, kind):
        return self._labels.get(kind, "")

    def addMenuAction(self, action):
        self._combo.addAction(action)

    def addNode(self, kind=None):
        kind = kind or self.nodeTypes[0]
        if kind not in self.nodeTypes:
            raise ValueError(f"{kind} is not among the node types {self.nodeTypes}")
        node = self._scene.CreateNodeByClass(kind)
        node.UnRegister(None)
        node.SetName(self._scene.GenerateUniqueName(self.baseName or node.GetNodeTagName()))
        for (of, name), value in self._attributes.items():
            if node.IsA(of):
                node.SetAttribute(name, value or "")
        self._scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser(node)
        self.nodeAddedByUserAction(node)
        return node

    def removeCurrentNode(self):
        if self._current is not None:
            self.nodeAboutToBeRemoved(self._current)
            self._scene.RemoveNode(self._current)

    def renameCurrentNode(self):
        raise RuntimeError("renameCurrentNode() opens a dialog: use SetName of the node")

    def _filter_changed(self, _value):
        self._refresh()

    def _current_id(self):
        return self._current.GetID() or "" if self._current is not None else ""

    currentNodeID = Property(str, _current_id, setCurrentNodeID)
    nodeTypes = stored("QStringList", "nodeTypes", [], _filter_changed)
    hideChildNodeTypes = stored("QStringList", "hideChildNodeTypes", [], _filter_changed)
    showHidden = stored(bool, "showHidden", False, _filter_changed)
    showChildNodeTypes = stored(bool, "showChildNodeTypes", True, _filter_changed)
    noneEnabled = stored(bool, "noneEnabled", False, _filter_changed)
    noneDisplay = stored(str, "noneDisplay", "None", _filter_changed)
    addEnabled, removeEnabled = stored(bool, "addEnabled", True), stored(bool, "removeEnabled", True)
    editEnabled, renameEnabled = stored(bool, "editEnabled", False), stored(bool, "renameEnabled", False)
    selectNodeUponCreation = stored(bool, "selectNodeUponCreation", True)
    baseName = stored(str, "baseName", "")
    interactionNodeSingletonTag = stored(str, "interactionNodeSingletonTag", "")
    sizeAdjustPolicy = stored("QVariant", "sizeAdjustPolicy", None)


@cpp
class qMRMLPlotWidget(qMRMLWidget):
    _slots = ("setMRMLPlotViewNode(vtkMRMLPlotViewNode*)",)

    def mrmlPlotViewNode(self):
        return self.__dict__.get("_view")

    def setMRMLPlotViewNode(self, node):
        self._view = checked(node, slicer.vtkMRMLPlotViewNode)


class _Chart:
    """The view's axes and what they would be fitted to: the rows there were at the last Update."""

    def __init__(self):
        self.node, self._bounds, self._axes = None, None, ((0.0, 1.0), (0.0, 1.0))

    def Update(self):
        rows = [_points(self.node.GetNthPlotSeriesNode(n)) for n in range(self.node.GetNumberOfPlotSeriesNodes())]
        points = [point for series in rows for point in series]
        self._bounds = tuple((min(values), max(values)) for values in zip(*points, strict=True)) or None

    def fit(self):
        self._axes = self._bounds or self._axes

    def GetAxis(self, number):
        """Left is 0, bottom 1."""
        least, most = self._axes[1 - number]
        return SimpleNamespace(GetMinimum=lambda: least, GetMaximum=lambda: most)


def _points(series):
    table = series.GetTableNode().GetTable()
    x, y = (table.GetColumnByName(name) for name in (series.GetXColumnName(), series.GetYColumnName()))
    return [(x.GetValue(row), y.GetValue(row)) for row in range(table.GetNumberOfRows())]


@cpp
class qMRMLPlotView(qMRMLWidget):
    """Its own class, not a plot widget: the node that it shows can be set from Python, not asked for.

    Its axes do not follow the rows that come later: they have to be fitted, to what the chart was updated with.
    """

    _slots = ("setMRMLPlotViewNode(vtkMRMLPlotViewNode*)", "fitToContent()")

    def setMRMLPlotViewNode(self, node):
        self._view = checked(node, slicer.vtkMRMLPlotViewNode)

    def chart(self):
        made = self.__dict__.setdefault("_chart", _Chart())
        made.node = self._view.GetPlotChartNode()
        return made

    def fitToContent(self):
        self.chart().fit()


@cpp
class qMRMLTableView(_Scened, QtWidgets.QTableView):
    mrmlSceneChanged = Signal(object)
    _signals = _SCENE_SIGNAL
    _slots = (*_SCENE_SLOT, "setMRMLTableNode(vtkMRMLNode*)")

    def mrmlTableNode(self):
        return self.__dict__.get("_table")

    def setMRMLTableNode(self, node):
        self._table = checked(node, slicer.vtkMRMLTableNode)

    transposed = stored(bool, "transposed", False)
    firstRowLocked, firstColumnLocked = stored(bool, "firstRowLocked", False), stored(bool, "firstColumnLocked", False)


@cpp
class qMRMLSliderWidget(_Scened, ctkSliderWidget):
    mrmlSceneChanged = Signal(object)
    _slots = (*_SCENE_SLOT, "setQuantity(QString)")
    quantity = stored(str, "quantity", "")


@cpp
class qMRMLSpinBox(_Scened, ctkDoubleSpinBox):
    mrmlSceneChanged = Signal(object)
    _slots = (*_SCENE_SLOT, "setQuantity(QString)")
    quantity = stored(str, "quantity", "")


WIDGETS = (qMRMLWidget, qSlicerWidget, qMRMLNodeComboBox)
WIDGETS += (qMRMLPlotWidget, qMRMLPlotView, qMRMLTableView, qMRMLSliderWidget, qMRMLSpinBox)
