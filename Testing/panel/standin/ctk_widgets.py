"""CTK's widgets over PySide6: the properties, signals and slots of the real classes, and nothing else.

A setter that is no slot in CTK (`setCollapsed`, `setMinimum` of a slider) cannot be called from Python in Slicer,
so it does not exist here either: the property is set instead.
"""
# ruff: noqa: N801, N815 (the names are Qt's, CTK's and Slicer's)

from __future__ import annotations

from contextlib import contextmanager

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


def _through(kind, name):
    """A Q_PROPERTY of the spin box inside."""
    return Property(kind, lambda self: getattr(self._box, name), lambda self, value: setattr(self._box, name, value))


@cpp
class ctkDoubleSpinBox(QtWidgets.QWidget):
    valueChanged = Signal(float)
    editingFinished = Signal()
    decimalsChanged = Signal(int)
    _slots = ("setValue(double)", "stepUp()", "stepDown()", "setDecimals(int)", "setReadOnly(bool)")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box = QtWidgets.QDoubleSpinBox()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.maximum = 99.0
        self._box.connect("valueChanged(double)", lambda value: self.valueChanged(value))
        self._box.connect("editingFinished()", lambda: self.editingFinished())

    def setValue(self, value):
        self._box.setValue(value)

    def setDecimals(self, decimals):
        self._box.setDecimals(decimals)
        self.decimalsChanged(decimals)

    def stepUp(self):
        self._box.stepUp()

    def stepDown(self):
        self._box.stepDown()

    def setReadOnly(self, value):
        self._box.readOnly = value

    value = Property(float, lambda self: self._box.value, setValue)
    decimals = Property(int, lambda self: self._box.decimals, setDecimals)
    minimum, maximum = _through(float, "minimum"), _through(float, "maximum")
    singleStep, prefix, suffix = _through(float, "singleStep"), _through(str, "prefix"), _through(str, "suffix")
    readOnly, frame = _through(bool, "readOnly"), _through(bool, "frame")
    cleanText = Property(str, lambda self: self._box.cleanText)


@cpp
class ctkDoubleSlider(QtWidgets.QWidget):
    valueChanged = Signal(float)
    sliderPressed, sliderReleased = Signal(), Signal()
    _slots = ("setValue(double)",)
    _STEPS = 1000

    def __init__(self, parent=None):
        super().__init__(parent)
        self._value, self._ends = 0.0, (0.0, 99.0)
        self._bar = QtWidgets.QSlider(Qt.Orientation.Horizontal)
        self._bar.maximum = self._STEPS
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._bar)
        self._bar.connect("valueChanged(int)", self._slid)
        self._bar.connect("sliderPressed()", lambda: self.sliderPressed())
        self._bar.connect("sliderReleased()", lambda: self.sliderReleased())

    def _slid(self, position):
        low, high = self._ends
        self._take(low + position / self._STEPS * (high - low))

    def _take(self, value):
        if value != self._value:
            self._value = value
            self.valueChanged(value)

    def setValue(self, value):
        low, high = self._ends
        value = min(max(value, low), high)
        self._bar.blockSignals(True)
        self._bar.setValue(round((value - low) / (high - low) * self._STEPS) if high > low else 0)
        self._bar.blockSignals(False)
        self._take(value)

    def _set_ends(self, low, high):
        self._ends = (low, high)
        self.setValue(self._value)

    value = Property(float, lambda self: self._value, setValue)
    minimum = Property(float, lambda self: self._ends[0], lambda self, low: self._set_ends(low, self._ends[1]))
    maximum = Property(float, lambda self: self._ends[1], lambda self, high: self._set_ends(self._ends[0], high))


@cpp
class ctkSliderWidget(QtWidgets.QWidget):
    """A slider and a spin box, which are named, and follow each other by their signals, as in CTK."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)
    _slots = ("setValue(double)", "reset()", "setSpinBoxVisible(bool)", "setDecimals(int)")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box, self._slider = ctkDoubleSpinBox(), ctkDoubleSlider()
        self._box.setObjectName("SpinBox")
        self._slider.setObjectName("Slider")
        self._one_way, self._changing, self._before = False, False, 0.0
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self._slider, self._box):
            layout.addWidget(widget)
        self._box.connect("valueChanged(double)", self._to_slider)
        self._slider.connect("valueChanged(double)", self._to_box)
        self._slider.connect("sliderPressed()", self._pressed)
        self._slider.connect("sliderReleased()", self._released)

    def _to_slider(self, value):
        if not self._one_way:
            self._slider.setValue(value)

    def _to_box(self, value):
        with self._box_alone():
            self._box.setValue(value)
        if not self.tracking:
            self.valueIsChanging(value)
        if not self._changing:
            self.valueChanged(value)

    @contextmanager
    def _box_alone(self):
        before, self._one_way = self._one_way, True
        yield
        self._one_way = before

    def _pressed(self):
        if not self.tracking:
            self._before, self._changing = self.value, True

    def _released(self):
        if not self.tracking:
            self._changing = False
            if self.value != self._before:
                self.valueChanged(self.value)

    def setValue(self, value):
        changing, self._changing = self._changing, False
        self._box.setValue(value)
        self._changing = changing

    def setDecimals(self, decimals):
        self._box.setDecimals(decimals)
        self._to_box(self._slider.value)
        self.decimalsChanged(decimals)

    def _set_end(self, name, value):
        with self._box_alone():
            setattr(self._box, name, value)
        setattr(self._slider, name, getattr(self._box, name))

    def reset(self):
        self.setValue(0.0)

    def setSpinBoxVisible(self, visible):
        self._box.setVisible(visible)

    value = Property(float, lambda self: self._before if self._changing else self._slider.value, setValue)
    decimals = Property(int, lambda self: self._box.decimals, setDecimals)
    minimum = Property(float, lambda self: self._slider.minimum, lambda self, value: self._set_end("minimum", value))
    maximum = Property(float, lambda self: self._slider.maximum, lambda self, value: self._set_end("maximum", value))
    singleStep, prefix, suffix = _through(float, "singleStep"), _through(str, "prefix"), _through(str, "suffix")
    pageStep, tickInterval = stored(float, "pageStep", 10.0), stored(float, "tickInterval", 0.0)
    tracking = stored(bool, "tracking", True)
    spinBoxVisible = Property(bool, lambda self: not self._box.isHidden(), setSpinBoxVisible)
    popupSlider = stored(bool, "popupSlider", False)
    invertedAppearance = stored(bool, "invertedAppearance", False)
    invertedControls = stored(bool, "invertedControls", False)


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
        self._valid = False
        self._combo.connect("editTextChanged(QString)", self._edited)

    def _edited(self, path):
        """As updateHasValidInput: its validator takes no empty path, of which currentPathChanged then says nothing."""
        was, self._valid = self._valid, bool(path)
        if self._valid:
            self.currentPathChanged(path)
        if self._valid != was:
            self.validInputChanged(self._valid)

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


WIDGETS = (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSliderWidget, ctkDoubleSlider, ctkDoubleSpinBox)
WIDGETS += (ctkPathLineEdit, ctkDirectoryButton, ctkComboBox, ctkCheckableComboBox, ctkColorPickerButton)
