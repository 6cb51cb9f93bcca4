"""Slicer's widgets of markups over PySide6: placing control points through the scene's interaction node."""
# ruff: noqa: N801, N815 (the names are Qt's, CTK's and Slicer's)

from __future__ import annotations

import slicer
from PySide6 import QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from .ctk_widgets import stored
from .mrml_widgets import NODE_SLOT, checked, qMRMLNodeComboBox, qSlicerWidget
from .pythonqt import cpp


class _Markups(qSlicerWidget):
    """What the two widgets of markups share."""

    def currentNode(self):
        return self.__dict__.get("_current")

    def _set_current(self, node):
        self._current = checked(node, slicer.vtkMRMLNode)

    def interactionNode(self):
        scene = self.mrmlScene()
        return scene.GetNodeByID("vtkMRMLInteractionNodeSingleton") if scene is not None else None

    def selectionNode(self):
        scene = self.mrmlScene()
        return scene.GetNodeByID("vtkMRMLSelectionNodeSingleton") if scene is not None else None


@cpp
class qSlicerMarkupsPlaceWidget(_Markups):
    activeMarkupsFiducialPlaceModeChanged, activeMarkupsPlaceModeChanged = Signal(bool), Signal(bool)
    _slots = (*NODE_SLOT, "setPlaceModeEnabled(bool)", "setPlaceModePersistency(bool)", "setCurrentNodeActive(bool)")
    _slots += ("deleteLastPoint()", "deleteAllPoints()", "setButtonsVisible(bool)")
    ShowPlaceMultipleMarkupsOption, HidePlaceMultipleMarkupsOption = 0, 1
    ForcePlaceSingleMarkup, ForcePlaceMultipleMarkups = 2, 3

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._place, self._delete = QtWidgets.QToolButton(), QtWidgets.QToolButton()
        for button, text in ((self._place, "Place"), (self._delete, "Delete")):
            button.text, button.enabled = text, False
            layout.addWidget(button)
        self._place.checkable = True
        self._place.connect("toggled(bool)", self.setPlaceModeEnabled)
        self._delete.connect("clicked()", self.deleteLastPoint)  # Slicer's button unsets or deletes, by an option

    def setCurrentNode(self, node):
        if node is not None and not node.IsA("vtkMRMLMarkupsNode"):
            node = None
        self._set_current(node)
        self._place.enabled = self._delete.enabled = node is not None

    def currentMarkupsNode(self):
        return self.currentNode()

    currentMarkupsFiducialNode = currentMarkupsNode

    def placeButton(self):
        return self._place

    def deleteButton(self):
        return self._delete

    def _active(self):
        selection, node = self.selectionNode(), self.currentNode()
        return bool(selection and node and selection.GetActivePlaceNodeID() == node.GetID())

    def setCurrentNodeActive(self, active):
        selection, node = self.selectionNode(), self.currentNode()
        if selection is None or node is None:
            return
        if active:
            selection.SetReferenceActivePlaceNodeClassName(node.GetClassName())
            selection.SetActivePlaceNodeID(node.GetID())
        elif self._active():
            selection.SetReferenceActivePlaceNodeID(None)

    def _placing(self):
        interaction = self.interactionNode()
        place = slicer.vtkMRMLInteractionNode.Place
        return bool(interaction and self._active() and interaction.GetCurrentInteractionMode() == place)

    def setPlaceModeEnabled(self, enable):
        interaction, was = self.interactionNode(), self._placing()
        if interaction is None or self.currentNode() is None:
            return
        modes = slicer.vtkMRMLInteractionNode
        if enable:
            self.setCurrentNodeActive(True)
        interaction.SetCurrentInteractionMode(modes.Place if enable else modes.ViewTransform)
        self._place.checked = enable
        if was != enable:
            self.activeMarkupsPlaceModeChanged(enable)
            self.activeMarkupsFiducialPlaceModeChanged(enable)

    def _persistency(self):
        return bool(self.interactionNode() and self.interactionNode().GetPlaceModePersistence())

    def setPlaceModePersistency(self, value):
        self.interactionNode().SetPlaceModePersistence(value)

    def deleteLastPoint(self):
        node = self.currentNode()
        if node is not None and node.GetNumberOfControlPoints():
            node.RemoveNthControlPoint(node.GetNumberOfControlPoints() - 1)

    def deleteAllPoints(self):
        if self.currentNode() is not None:
            self.currentNode().RemoveAllControlPoints()

    def setButtonsVisible(self, visible):
        self._place.setVisible(visible)
        self._delete.setVisible(visible)

    currentNodeActive = Property(bool, _active, setCurrentNodeActive)
    placeModeEnabled = Property(bool, _placing, setPlaceModeEnabled)
    placeModePersistency = Property(bool, _persistency, setPlaceModePersistency)
    placeMultipleMarkups = stored(int, "placeMultipleMarkups", 0)
    buttonsVisible = Property(bool, lambda self: not self._place.isHidden(), setButtonsVisible)
    deleteAllControlPointsOptionVisible = stored(bool, "deleteAllControlPointsOptionVisible", True)
    unsetLastControlPointOptionVisible = stored(bool, "unsetLastControlPointOptionVisible", False)
    unsetAllControlPointsOptionVisible = stored(bool, "unsetAllControlPointsOptionVisible", False)
    nodeColor = stored(QtGui.QColor, "nodeColor", QtGui.QColor("black"))
    defaultNodeColor = stored(QtGui.QColor, "defaultNodeColor", QtGui.QColor("black"))


@cpp
class qSlicerSimpleMarkupsWidget(_Markups):
    markupsNodeChanged, updateFinished = Signal(), Signal()
    _slots = (*NODE_SLOT, "setNodeBaseName(QString)", "setNodeSelectorVisible(bool)", "setOptionsVisible(bool)")

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QtWidgets.QVBoxLayout(self)
        self._table, self._place, self._selector = QtWidgets.QTableWidget(), None, qMRMLNodeComboBox()
        self._place = qSlicerMarkupsPlaceWidget()
        self._selector.nodeTypes = ["vtkMRMLMarkupsFiducialNode"]
        for widget in (self._selector, self._place, self._table):
            layout.addWidget(widget)
        self._selector.connect("currentNodeChanged(vtkMRMLNode*)", self.setCurrentNode)

    def setMRMLScene(self, scene):
        super().setMRMLScene(scene)
        self._place.setMRMLScene(scene)
        self._selector.setMRMLScene(scene)

    def setCurrentNode(self, node):
        if node is not self.currentNode():
            self._set_current(node)
            self._place.setCurrentNode(node)
            self._selector.setCurrentNode(node)
            self.markupsNodeChanged()

    def tableWidget(self):
        return self._table

    def markupsPlaceWidget(self):
        return self._place

    def markupsSelectorComboBox(self):
        return self._selector

    def setNodeBaseName(self, name):
        self._selector.baseName = name

    def setNodeSelectorVisible(self, visible):
        self._selector.setVisible(visible)

    def setOptionsVisible(self, visible):
        self._place.setVisible(visible)

    nodeSelectorVisible = Property(bool, lambda self: not self._selector.isHidden(), setNodeSelectorVisible)
    optionsVisible = Property(bool, lambda self: not self._place.isHidden(), setOptionsVisible)
    enterPlaceModeOnNodeChange = stored(bool, "enterPlaceModeOnNodeChange", True)
    jumpToSliceEnabled, viewGroup = stored(bool, "jumpToSliceEnabled", False), stored(int, "viewGroup", -1)


WIDGETS = (qSlicerMarkupsPlaceWidget, qSlicerSimpleMarkupsWidget)
