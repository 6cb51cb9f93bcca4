"""CTK's widgets over PySide6: the properties, signals and slots of the real classes, and nothing else.

A setter that is no slot in CTK (`setCollapsed`, `setMinimum` of a slider) cannot be called from Python in Slicer,
so it does not exist here either: the property is set instead.
"""
# ruff: noqa: N801, N815 (the names are Qt's, CTK's and Slicer's)

from __future__ import annotations

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal

from .pythonqt import cpp, raw


def stored(kind, name, default, after=None):
    """A Q_PROPERTY that only keeps its value; `after(self, value)` runs when it is set."""

    def set_value(self, value):
        self.__dict__[f"_{name}"] = value
        if after:
            after(self, value)

    return Property(kind, lambda self: self.__dict__.get(f"_{name}", default), set_value)


def show_children(box, visible):
    """Hide the children of a box, or show again those that were not hidden by themselves."""
    children = [child for child in box.children() if child.isWidgetType()]
    if not visible:
        box._hidden = [child for child in children if child.isHidden()]
    for child in children:
        if child not in box.__dict__.get("_hidden", ()):
            child.setVisible(visible)


@cpp
class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    contentsCollapsed = Signal(bool)

    def __init__(self, *arguments):
        text = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        super().__init__(arguments[-1] if arguments and not isinstance(arguments[-1], str) else None)
        self.text = text
        self.checkable = True
        self.checked = True
        self.toggled.connect(lambda checked: self._collapse(not checked))

    def _collapse(self, collapsed):
        if collapsed == self.__dict__.get("_collapsed", False):
            return
        self._collapsed = collapsed
        self.checked = not collapsed
        show_children(self, not collapsed)
        self.contentsCollapsed(collapsed)

    def paintEvent(self, event):
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.text, option.rect = self.text, QtCore.QRect(0, 0, self.width, 24)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButton, option)

    def event(self, event):
        if event.type() == QtCore.QEvent.Type.LayoutRequest and self.layout():
            margins = raw(self.layout(), "contentsMargins")()
            self.layout().setContentsMargins(margins.left(), max(margins.top(), 28), margins.right(), margins.bottom())
        return super().event(event)

    def sizeHint(self):
        return self.layout().sizeHint() if self.layout() else QtCore.QSize(100, 24)

    collapsed = Property(bool, lambda self: self.__dict__.get("_collapsed", False), _collapse)
    collapsedHeight = stored(int, "collapsedHeight", 10)
    flat = stored(bool, "flat", False)


@cpp
class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.checkable = True
        self.checked = True
        # as in Qt, the children of a collapsed (unchecked) box are disabled too: clicking them does nothing
        self.connect("toggled(bool)", lambda checked: show_children(self, checked))

    def _set_collapsed(self, value):
        self.checked = not value

    collapsed = Property(bool, lambda self: not self.checked, _set_collapsed)
    collapsedHeight = stored(int, "collapsedHeight", 14)


class _Number:
    """What ctkSliderWidget and ctkDoubleSpinBox share: a QDoubleSpinBox inside."""

    def _build(self, *widgets):
        self._box = QtWidgets.QDoubleSpinBox()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (*widgets, self._box):
            layout.addWidget(widget)
        self._box.maximum = 99.0
        self._box.connect("valueChanged(double)", self._changed)

    def setValue(self, value):
        self._box.setValue(value)

    def setDecimals(self, decimals):
        self._box.setDecimals(decimals)
        self.decimalsChanged(decimals)


def _through(kind, name):
    """A Q_PROPERTY of the spin box inside."""
    return Property(kind, lambda self: getattr(self._box, name), lambda self, value: setattr(self._box, name, value))


@cpp
class ctkSliderWidget(_Number, QtWidgets.QWidget):
    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)
    _slots = ("setValue(double)", "reset()", "setSpinBoxVisible(bool)", "setDecimals(int)")
    _STEPS = 1000

    def __init__(self, parent=None):
        QtWidgets.QWidget.__init__(self, parent)
        self._slider = QtWidgets.QSlider(Qt.Orientation.Horizontal)
        self._slider.maximum = self._STEPS
        self._build(self._slider)
        self._slider.connect("valueChanged(int)", self._slid)
        self._slider.connect("sliderReleased()", self._released)

    def _changed(self, value):
        span = self._box.maximum - self._box.minimum
        self._slider.blockSignals(True)
        self._slider.setValue(round((value - self._box.minimum) / span * self._STEPS) if span > 0 else 0)
        self._slider.blockSignals(False)
        self.valueIsChanging(value)
        if self.tracking or not self._slider.sliderDown:
            self.valueChanged(value)

    def _slid(self, position):
        self._box.setValue(self._box.minimum + position / self._STEPS * (self._box.maximum - self._box.minimum))

    def _released(self):
        if not self.tracking:
            self.valueChanged(self._box.value)

    def reset(self):
        self.setValue(0.0)

    def setSpinBoxVisible(self, visible):
        self._box.setVisible(visible)

    def spinBox(self):
        return self._box

    def slider(self):
        return self._slider

    value = Property(float, lambda self: self._box.value, _Number.setValue)
    decimals = Property(int, lambda self: self._box.decimals, _Number.setDecimals)
    minimum, maximum = _through(float, "minimum"), _through(float, "maximum")
    singleStep, prefix, suffix = _through(float, "singleStep"), _through(str, "prefix"), _through(str, "suffix")
    pageStep, tickInterval = stored(float, "pageStep", 10.0), stored(float, "tickInterval", 0.0)
    tracking = stored(bool, "tracking", True)
    spinBoxVisible = Property(bool, lambda self: not self._box.isHidden(), setSpinBoxVisible)
    popupSlider = stored(bool, "popupSlider", False)
    invertedAppearance = stored(bool, "invertedAppearance", False)
    invertedControls = stored(bool, "invertedControls", False)


@cpp
class ctkDoubleSpinBox(_Number, QtWidgets.QWidget):
    valueChanged = Signal(float)
    editingFinished = Signal()
    decimalsChanged = Signal(int)
    _slots = ("setValue(double)", "stepUp()", "stepDown()", "setDecimals(int)", "setReadOnly(bool)")

    def __init__(self, parent=None):
        QtWidgets.QWidget.__init__(self, parent)
        self._build()
        self._box.connect("editingFinished()", lambda: self.editingFinished())

    def _changed(self, value):
        self.valueChanged(value)

    def stepUp(self):
        self._box.stepUp()

    def stepDown(self):
        self._box.stepDown()

    def setReadOnly(self, value):
        self._box.readOnly = value

    value = Property(float, lambda self: self._box.value, _Number.setValue)
    decimals = Property(int, lambda self: self._box.decimals, _Number.setDecimals)
    minimum, maximum = _through(float, "minimum"), _through(float, "maximum")
    singleStep, prefix, suffix = _through(float, "singleStep"), _through(str, "prefix"), _through(str, "suffix")
    readOnly, frame = _through(bool, "readOnly"), _through(bool, "frame")
    cleanText = Property(str, lambda self: self._box.cleanText)


@cpp
class ctkPathLineEdit(QtWidgets.QWidget):
    validInputChanged = Signal(bool)
    currentPathChanged = Signal(str)
    _slots = ("setCurrentPath(QString)", "browse()", "retrieveHistory()", "addCurrentPathToHistory()")
    Dirs, Files, Drives, NoSymLinks, AllEntries = 1, 2, 4, 8, 7
    Readable, Writable, Executable, Hidden = 0x10, 0x20, 0x40, 0x100

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._combo, self._button, self._history = QtWidgets.QComboBox(), QtWidgets.QToolButton(), []
        self._combo.editable = True
        self._button.text = "..."
        layout.addWidget(self._combo, 1)
        layout.addWidget(self._button)
        self._combo.connect("editTextChanged(QString)", lambda path: self.currentPathChanged(path))

    def setCurrentPath(self, path):
        self._combo.setEditText(path)

    def browse(self):
        raise RuntimeError("ctkPathLineEdit.browse() opens a dialog: set currentPath instead")

    def retrieveHistory(self):
        self._combo.addItems(self._history)

    def addCurrentPathToHistory(self):
        self._history.append(self.currentPath)

    def comboBox(self):
        return self._combo

    def _show_button(self, visible):
        self._button.setVisible(visible)

    currentPath = Property(str, lambda self: self._combo.currentText, setCurrentPath)
    label, settingKey = stored(str, "label", ""), stored(str, "settingKey", "")
    filters, options = stored(int, "filters", 7), stored(int, "options", 0)
    nameFilters = stored("QStringList", "nameFilters", [])
    showBrowseButton = Property(bool, lambda self: not self._button.isHidden(), _show_button)
    showHistoryButton = stored(bool, "showHistoryButton", True)
    minimumContentsLength = stored(int, "minimumContentsLength", 0)


@cpp
class ctkDirectoryButton(QtWidgets.QWidget):
    directoryChanged = Signal(str)
    directorySelected = Signal(str)
    _slots = ("browse()",)

    def browse(self):
        raise RuntimeError("ctkDirectoryButton.browse() opens a dialog: set directory instead")

    def _set_directory(self, path):
        if path != self.directory:
            self._directory = path
            self.directoryChanged(path)

    directory = Property(str, lambda self: self.__dict__.get("_directory", "."), _set_directory)
    caption, text = stored(str, "caption", ""), stored(str, "text", "")


@cpp
class ctkComboBox(QtWidgets.QComboBox):
    defaultText = stored(str, "defaultText", "")
    forceDefault = stored(bool, "forceDefault", False)


@cpp
class ctkCheckableComboBox(QtWidgets.QComboBox):
    checkedIndexesChanged = Signal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setModel(QtGui.QStandardItemModel(0, 1, self))
        self.model().connect("rowsInserted(QModelIndex,int,int)", self._make_checkable)
        self.model().connect("dataChanged(QModelIndex,QModelIndex,QList<int>)", self._data_changed)

    def _make_checkable(self, parent, first, last):
        for row in range(first, last + 1):
            item = self.model().item(row)
            if item is not None and item.data(Qt.ItemDataRole.CheckStateRole) is None:
                item.setCheckable(True)
                item.setData(Qt.CheckState.Unchecked, Qt.ItemDataRole.CheckStateRole)

    def _data_changed(self, first, last, roles):
        if not roles or Qt.ItemDataRole.CheckStateRole in roles:
            self.checkedIndexesChanged()

    def _indexes(self):
        return [self.model().index(row, 0) for row in range(self.model().rowCount())]

    def checkableModel(self):
        return self.model()

    def checkState(self, index):
        return Qt.CheckState(self.model().data(index, Qt.ItemDataRole.CheckStateRole) or 0)

    def setCheckState(self, index, state):
        if self.checkState(index) != state:
            self.model().setData(index, state, Qt.ItemDataRole.CheckStateRole)

    def checkedIndexes(self):
        return tuple(index for index in self._indexes() if self.checkState(index) == Qt.CheckState.Checked)

    def allChecked(self):
        return len(self.checkedIndexes()) == len(self._indexes())

    def noneChecked(self):
        return not self.checkedIndexes()


@cpp
class ctkColorPickerButton(QtWidgets.QPushButton):
    colorChanged = Signal(QtGui.QColor)
    colorNameChanged = Signal(str)
    _slots = ("setColor(QColor)", "changeColor()", "setDisplayColorName(bool)")

    def setColor(self, color):
        if color != self.color:
            self._color = color
            self.colorChanged(color)
            self.colorNameChanged(color.name())

    def setDisplayColorName(self, value):
        self.displayColorName = value

    color = Property(QtGui.QColor, lambda self: self.__dict__.get("_color", QtGui.QColor("black")), setColor)
    displayColorName = stored(bool, "displayColorName", True)


WIDGETS = (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSliderWidget, ctkDoubleSpinBox, ctkPathLineEdit)
WIDGETS += (ctkDirectoryButton, ctkComboBox, ctkCheckableComboBox, ctkColorPickerButton)
