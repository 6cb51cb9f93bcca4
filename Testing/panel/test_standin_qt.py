"""PythonQt's rules in the stand-in: what fails in Slicer fails here, and what Slicer forgives in silence raises."""

from __future__ import annotations

import sys

import pytest
import slicer


@pytest.fixture
def qt(slicer_app):
    import qt

    return qt


def test_property_is_an_attribute_and_cannot_be_called(qt):
    label = qt.QLabel("one")
    assert label.text == "one"
    with pytest.raises(TypeError, match="'str' object is not callable"):
        label.text()
    label.text = "two"
    assert label.text == "two"
    label.setText("three")
    assert label.text == "three"
    box = qt.QComboBox()
    box.addItems(["a", "b"])
    box.currentIndex = 1
    assert (box.currentText, box.count) == ("b", 2)


def test_getters_that_are_no_properties_are_called(qt):
    widget = qt.QWidget()
    layout = qt.QVBoxLayout(widget)
    layout.spacing = 3
    assert widget.layout() is layout
    assert layout.spacing == 3
    table = qt.QTableWidget()
    table.rowCount = 2
    table.setColumnCount(1)
    table.setItem(0, 0, qt.QTableWidgetItem("x"))
    assert (table.rowCount, table.item(0, 0).text()) == (2, "x")


def test_name_is_the_object_name(qt):
    widget = qt.QWidget()
    widget.name = "panel"
    assert (widget.name, widget.objectName) == ("panel", "panel")


@pytest.mark.parametrize(
    ("name", "value"), [("text", 5), ("enabled", "yes"), ("maximumWidth", "wide"), ("toolTip", None)]
)
def test_property_of_another_type_is_refused(qt, name, value):
    with pytest.raises(AttributeError, match="does not accept"):
        setattr(qt.QLabel(), name, value)


def test_attributes_cannot_be_added_or_slots_replaced(qt):
    label = qt.QLabel()
    for name in ("tooltip", "_cache", "setText", "linkActivated"):
        with pytest.raises(AttributeError):
            setattr(label, name, 1)
    with pytest.raises(AttributeError):
        label.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match="not writable"):
        label.sizeHint = qt.QSize(1, 1)

    class Panel(qt.QWidget):
        def __init__(self):
            super().__init__()
            self.mine = 1

    panel = Panel()
    panel.other = 2
    assert panel.mine + panel.other == 3


def test_signals_connect_by_signature_and_give_its_arguments(qt):
    button, got = qt.QPushButton(), []
    button.checkable = True
    button.connect("clicked(bool)", lambda *given: got.append(("bool", given)))
    button.connect("clicked()", lambda *given: got.append(("none", given)))
    button.clicked.connect(lambda: got.append("few"))
    button.click()
    assert got == [("bool", (True,)), ("none", ()), "few"]


@pytest.mark.parametrize("signature", ["clicked(int)", "pressed(bool)", "clicked", "currentIndexChanged(QString)"])
def test_wrong_signature_raises(qt, signature):
    for widget in (qt.QPushButton(), qt.QComboBox()):
        with pytest.raises(ValueError, match="has no signal"):
            widget.connect(signature, print)


def test_connect_to_a_slot_by_signature(qt):
    button, box = qt.QPushButton(), qt.QComboBox()
    button.checkable = True
    button.connect("toggled(bool)", box, "setDisabled(bool)")
    button.click()
    assert not box.enabled
    with pytest.raises(ValueError, match="has no slot"):
        button.connect("toggled(bool)", box, "disable(bool)")
    with pytest.raises(ValueError, match="wants more arguments"):
        button.connect("clicked()", box, "setDisabled(bool)")
    with pytest.raises(TypeError):
        button.connect("clicked()", None)


def test_disconnect(qt):
    button, got = qt.QPushButton(), []

    def slot():
        got.append(1)

    button.connect("clicked()", slot)
    button.disconnect("clicked()", slot)
    with pytest.raises(ValueError, match="not connected"):
        button.disconnect("clicked()", slot)
    button.connect("clicked()", slot)
    button.disconnect("clicked()")
    button.click()
    assert got == []


def test_an_exception_in_a_slot_is_kept(qt, slicer_app):
    button = qt.QPushButton()
    button.connect("clicked()", lambda: {}["key"])
    button.click()
    assert [type(error) for error in slicer_app.errors] == [KeyError]
    slicer_app.errors.clear()


def test_signals_are_emitted_by_a_call(qt):
    box, got = qt.QSpinBox(), []
    box.connect("valueChanged(int)", got.append)
    box.valueChanged(7)
    assert got == [7]
    assert not hasattr(box.valueChanged, "emit")


def test_timer(qt, slicer_app):
    timer, got = qt.QTimer(), []
    timer.interval = 1
    timer.connect("timeout()", lambda: got.append("tick"))
    assert not timer.active
    timer.start()
    qt.QTimer.singleShot(0, lambda: got.append("once"))
    slicer_app.wait_until(lambda: {"tick", "once"} <= set(got))
    assert timer.active
    timer.stop()
    with pytest.raises(TypeError):
        qt.QTimer.singleShot(0.5, print)


def test_event_filter_of_a_derived_class(qt):
    class Filter(qt.QObject):
        seen = 0

        def eventFilter(self, watched, event):
            self.seen += event.type() == qt.QEvent.Show
            return False

    keeper, widget = Filter(), qt.QWidget()
    widget.installEventFilter(keeper)
    widget.show()
    assert keeper.seen == 1
    assert widget.visible


def test_dialogs_answer_at_once(qt, slicer_app):
    dialog = qt.QDialog()
    dialog.windowTitle = "Choose"
    assert dialog.exec_() == 1
    slicer_app.answer = False
    assert dialog.exec_() == 0
    with pytest.raises(AttributeError):
        dialog.exec  # noqa: B018
    slicer_app.state.file_answer = "/a/b.nrrd"
    assert qt.QFileDialog.getOpenFileName(None, "Open", "", "*.nrrd") == "/a/b.nrrd"
    assert [message.kind for message in slicer_app.messages] == ["dialog", "dialog", "file"]


def test_flat_modules_and_enums(qt):
    assert qt.QSizePolicy.Expanding is not None
    assert qt.Qt.AlignLeft | qt.Qt.AlignTop
    assert qt.QIcon(":/Icons/none.png").isNull()
    assert qt.QShortcut(qt.QKeySequence("Ctrl+Z"), qt.QWidget()).enabled
    assert not hasattr(qt, "QThread")
    assert not hasattr(qt, "QtWidgets")


def test_margins_differ_between_qt_versions(qt):
    with pytest.raises(AttributeError, match="Qt 5"):
        qt.QVBoxLayout().contentsMargins  # noqa: B018


def test_everything_is_taken_away_again():
    from PySide6 import QtWidgets

    from Testing.panel import standin

    kept = {name: sys.modules.get(name) for name in ("qt", "ctk", "slicer.i18n", "PyTorchUtils")}
    attributes = set(vars(slicer)), slicer.util.messageBox
    kit = standin.install()
    with pytest.raises(RuntimeError, match="already installed"):
        standin.install()
    standin.uninstall(kit)
    assert {name: sys.modules.get(name) for name in kept} == kept
    assert (set(vars(slicer)), slicer.util.messageBox) == attributes
    assert QtWidgets.QLabel("plain").text() == "plain"
