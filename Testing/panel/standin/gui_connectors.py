"""Which widget can show which kind of parameter, as slicer.parameterNodeWrapper binds them; other pairs raise."""

from __future__ import annotations

import enum
import pathlib
import typing

from PySide6 import QtWidgets

from . import ctk_widgets, mrml_widgets


class Connector:
    """A widget's property as a parameter's value."""

    def __init__(self, widget, signal, name):
        self.widget, self.signal, self.name, self.slot = widget, signal, name, None

    def connect(self, changed):
        self.slot = changed
        if self.signal:
            self.widget.connect(self.signal, changed)

    def disconnect(self):
        if self.signal and self.slot:
            self.widget.disconnect(self.signal, self.slot)
        self.slot = None

    def read(self):
        return getattr(self.widget, self.name)

    def write(self, value):
        if value != self.read():
            setattr(self.widget, self.name, value)


class _Number(Connector):
    def __init__(self, widget, signal, kind, annotations):
        super().__init__(widget, signal, "value")
        self.kind = kind
        low = [a.minimum for a in annotations if hasattr(a, "minimum") and a.minimum != float("-inf")]
        high = [a.maximum for a in annotations if hasattr(a, "maximum") and a.maximum != float("inf")]
        bounded = isinstance(widget, (ctk_widgets.ctkSliderWidget, QtWidgets.QSlider))
        if bounded and not (low and high):
            raise RuntimeError(f"Cannot connect {widget.className()} to an unbounded number: annotate WithinRange")
        whole = isinstance(widget, (QtWidgets.QSpinBox, QtWidgets.QSlider))
        ends = (-(2**31), 2**31 - 1) if whole else (float("-inf"), float("inf"))
        for annotation in annotations:
            if type(annotation).__name__ in ("Decimals", "SingleStep"):
                name = {"Decimals": "decimals", "SingleStep": "singleStep"}[type(annotation).__name__]
                setattr(widget, name, annotation.value)
        if kind is int and not whole:
            widget.decimals = 0
        widget.minimum, widget.maximum = (low or ends[:1])[0], (high or ends[1:])[0]

    def read(self):
        return self.kind(self.widget.value)


class _Choice(Connector):
    def __init__(self, widget, labels, values):
        super().__init__(widget, "currentIndexChanged(int)", "currentIndex")
        self.values = values
        widget.clear()
        for label in labels:
            widget.addItem(label)

    def read(self):
        return self.values[self.widget.currentIndex]

    def write(self, value):
        self.widget.currentIndex = self.values.index(value)


class _Text(Connector):
    def read(self):
        return self.widget.toPlainText()

    def write(self, value):
        self.widget.setPlainText(value)


class _Path(Connector):
    def read(self):
        return pathlib.Path(super().read())

    def write(self, value):
        setattr(self.widget, self.name, str(value))


class _Node(Connector):
    def __init__(self, widget, kinds):
        super().__init__(widget, "currentNodeChanged(vtkMRMLNode*)", None)
        widget.nodeTypes = [kind.__name__ for kind in kinds]

    def read(self):
        return self.widget.currentNode()

    def write(self, value):
        self.widget.setCurrentNode(value)


def _number(widget, parameter):
    kind, exact = parameter.kind, type(widget)
    if kind is int and exact in (QtWidgets.QSlider, QtWidgets.QSpinBox):
        return _Number(widget, "valueChanged(int)", int, parameter.annotations)
    doubles = (QtWidgets.QDoubleSpinBox, ctk_widgets.ctkSliderWidget, ctk_widgets.ctkDoubleSpinBox)
    doubles += (mrml_widgets.qMRMLSliderWidget, mrml_widgets.qMRMLSpinBox)
    if kind in (int, float) and exact in doubles:
        return _Number(widget, "valueChanged(double)", kind, parameter.annotations)
    return None


def _combo(widget, parameter):
    if type(widget) not in (QtWidgets.QComboBox, ctk_widgets.ctkComboBox):
        return None
    kind = parameter.kind
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        label = getattr(kind, "label", lambda value: value.name)
        return _Choice(widget, [label(value) for value in kind], list(kind))
    choices = [a.choices for a in parameter.annotations if hasattr(a, "choices")]
    if kind in (int, float, str, bool) and choices:
        return _Choice(widget, [str(c) for c in choices[0]], list(choices[0]))
    return None


def create_connector(widget, parameter) -> Connector:
    """The connector of a widget and a Parameter; raises RuntimeError when Slicer has none for the pair."""
    kind, exact = parameter.kind, type(widget)
    found = _number(widget, parameter) or _combo(widget, parameter)
    if found:
        return found
    if typing.get_origin(kind) is None and kind is bool:
        if exact is QtWidgets.QCheckBox:
            return Connector(widget, "toggled(bool)", "checked")
        if exact is QtWidgets.QPushButton:
            widget.checkable = True
            return Connector(widget, "toggled(bool)", "checked")
    if kind is str:
        if exact is QtWidgets.QLineEdit:
            return Connector(widget, "textChanged(QString)", "text")
        if exact is QtWidgets.QLabel:
            return Connector(widget, None, "text")
        if exact is QtWidgets.QTextEdit:
            return _Text(widget, "textChanged()", None)
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        if exact is ctk_widgets.ctkPathLineEdit:
            return _Path(widget, "currentPathChanged(QString)", "currentPath")
        if exact is ctk_widgets.ctkDirectoryButton:
            return _Path(widget, "directoryChanged(QString)", "directory")
    if parameter.nodes and exact is mrml_widgets.qMRMLNodeComboBox:
        return _Node(widget, parameter.nodes)
    raise RuntimeError(f"Unable to create GUI connector from '{parameter.hint}' to a {widget.className()}")
