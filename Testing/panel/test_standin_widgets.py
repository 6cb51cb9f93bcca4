"""The stand-in's CTK and MRML widgets and its .ui reader."""

from __future__ import annotations

import pytest
import slicer

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Panel</class>
<widget class="qMRMLWidget" name="Panel"><layout class="QFormLayout" name="form">
<item row="0" column="0"><widget class="QLabel" name="label">
 <property name="text"><string>CT:</string></property></widget></item>
<item row="0" column="1"><widget class="qMRMLNodeComboBox" name="selector">
 <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
 <property name="noneEnabled"><bool>true</bool></property>
 <property name="SlicerParameterName" stdset="0"><string>ct</string></property></widget></item>
<item row="1" column="0" colspan="2"><layout class="QHBoxLayout" name="row">
 <item><widget class="QPushButton" name="go"><property name="checkable"><bool>true</bool></property></widget></item>
 <item><spacer name="space"><property name="orientation"><enum>Qt::Horizontal</enum></property>
  <property name="sizeHint" stdset="0"><size><width>5</width><height>1</height></size></property></spacer></item>
 <item><widget class="QComboBox" name="mode"><item>
  <property name="text"><string>one</string></property></item></widget></item>
</layout></item></layout></widget>
<customwidgets><customwidget><class>qMRMLWidget</class></customwidget>
<customwidget><class>qMRMLNodeComboBox</class></customwidget></customwidgets>
<connections><connection><sender>Panel</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""


@pytest.fixture
def load(slicer_app, tmp_path):
    def load(text):
        path = tmp_path / "panel.ui"
        path.write_text(text)
        widget = slicer.util.loadUI(str(path))
        return widget, slicer.util.childWidgetVariables(widget)

    return load


def test_ui_file(load, slicer_app):
    widget, ui = load(UI)
    widget.setMRMLScene(slicer.mrmlScene)
    assert ui.selector.mrmlScene() is slicer_app.scene
    assert ui.selector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert (ui.label.text, ui.go.checkable, ui.mode.currentText) == ("CT:", True, "one")
    assert ui.selector.property("SlicerParameterName") == "ct"
    assert slicer_app.grab(widget).width() > 10


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('class="QPushButton"', 'class="QPusButton"', "not declared"),
        ("<class>qMRMLNodeComboBox</class>", "<class>other</class>", "not declared"),
        ('name="checkable"', 'name="chekable"', "no property 'chekable'"),
        ("mrmlSceneChanged(vtkMRMLScene*)<", "mrmlSceneChanged()<", "has no signal"),
        ("setMRMLScene(vtkMRMLScene*)<", "setScene(vtkMRMLScene*)<", "has no slot"),
        ("<receiver>selector", "<receiver>sellector", "no object"),
        ('name="go"', 'name="label"', "two objects"),
        (
            "<bool>true</bool></property></widget></item>\n <item><spacer",
            "<bool>yes</bool></property></widget></item>\n <item><spacer",
            "no bool",
        ),
    ],
)
def test_ui_file_with_a_mistake(load, old, new, said):
    assert UI.count(old) >= 1
    with pytest.raises(ValueError, match=said):
        load(UI.replace(old, new))


@pytest.fixture
def selector(slicer_app):
    made = slicer.qMRMLNodeComboBox()
    made.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    made.noneEnabled = True
    made.setMRMLScene(slicer_app.scene)
    return made


def _add(scene, name, kind="vtkMRMLScalarVolumeNode"):
    return scene.AddNewNodeByClass(kind, name)


def test_selector_follows_the_scene(selector, slicer_app):
    got = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", got.append)
    ct = _add(slicer_app.scene, "CT")
    _add(slicer_app.scene, "line", "vtkMRMLModelNode")
    assert selector.nodeCount() == 1
    assert selector.currentNode() is None
    selector.setCurrentNode(ct)
    assert got == [ct]
    assert selector.currentNodeID == ct.GetID()
    ct.SetName("head")
    assert selector._combo.currentText == "head"
    slicer_app.scene.RemoveNode(ct)
    assert selector.currentNode() is None
    assert got == [ct, None]


def test_selector_without_none_takes_the_first(slicer_app):
    made = slicer.qMRMLNodeComboBox()
    made.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    assert made.enabled
    first = _add(slicer_app.scene, "first")
    made.setMRMLScene(slicer_app.scene)
    assert made.currentNode() is first


def test_selector_filters(selector, slicer_app):
    hidden, labels = _add(slicer_app.scene, "hidden"), _add(slicer_app.scene, "labels", "vtkMRMLLabelMapVolumeNode")
    hidden.SetHideFromEditors(1)
    ct = _add(slicer_app.scene, "CT")
    assert [selector.nodeFromIndex(i) for i in range(selector.nodeCount())] == [labels, ct]
    selector.showChildNodeTypes = False
    assert selector.nodeCount() == 1
    selector.addAttribute("vtkMRMLScalarVolumeNode", "role", "xray")
    assert selector.nodeCount() == 0
    ct.SetAttribute("role", "xray")
    assert selector.nodeCount() == 1
    selector.showChildNodeTypes = True
    selector.removeAttribute("vtkMRMLScalarVolumeNode", "role")
    selector.showHidden = True
    assert selector.nodeCount() == 3


def test_selector_adds_and_refuses(selector, slicer_app):
    added = []
    selector.connect("nodeAddedByUser(vtkMRMLNode*)", added.append)
    selector.baseName = "Result"
    node = selector.addNode()
    assert (node.GetName(), selector.currentNode(), added) == ("Result", node, [node])
    with pytest.raises(ValueError, match="not among"):
        selector.addNode("vtkMRMLModelNode")
    with pytest.raises(TypeError):
        selector.setCurrentNode(5)
    selector.removeCurrentNode()
    assert slicer_app.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


@pytest.mark.parametrize(
    ("cls", "absent"),
    [
        ("ctkCollapsibleButton", "setCollapsed"),
        ("ctkCollapsibleGroupBox", "setCollapsed"),
        ("ctkSliderWidget", "setMinimum"),
        ("ctkSliderWidget", "setRange"),
        ("ctkSliderWidget", "setSuffix"),
        ("ctkPathLineEdit", "setNameFilters"),
        ("qMRMLNodeComboBox", "setNodeTypes"),
    ],
)
def test_setters_that_are_no_slots_are_not_there(slicer_app, cls, absent):
    import ctk

    made = getattr(ctk, cls, None) or getattr(slicer, cls)
    assert not hasattr(made(), absent)


def test_slider_widget(slicer_app):
    import ctk

    slider, changed, moving = ctk.ctkSliderWidget(), [], []
    slider.minimum, slider.maximum, slider.decimals = -100.0, 100.0, 1
    slider.connect("valueChanged(double)", changed.append)
    slider.connect("valueIsChanging(double)", moving.append)
    slider.value = 12.34
    assert slider.value == pytest.approx(12.3)
    slicer.util.findChild(slider, "Slider")._bar.value = 750
    assert slider.value == pytest.approx(50.0)
    slider.value = 1e9
    assert slider.value == 100.0
    assert changed == pytest.approx([12.3, 50.0, 100.0])
    slider.tracking = False
    slicer.util.findChild(slider, "Slider")._bar.sliderDown = True
    slicer.util.findChild(slider, "Slider")._bar.value = 500
    assert (len(changed), moving[-1], slicer.util.findChild(slider, "SpinBox").value) == (3, 0.0, 0.0)
    slicer.util.findChild(slider, "Slider")._bar.sliderDown = False
    assert changed[-1] == 0.0


def test_a_slider_widget_works_by_the_signals_of_what_is_in_it(slicer_app):
    """As CTK's: whoever finds a child by its name and blocks it takes slider and spin box apart."""
    import ctk
    import qt

    root = qt.QWidget()
    slider, changed = ctk.ctkSliderWidget(root), []
    slider.connect("valueChanged(double)", changed.append)
    ui = slicer.util.childWidgetVariables(root)
    assert (
        ui.SpinBox is slicer.util.findChild(slider, "SpinBox"),
        ui.Slider is slicer.util.findChild(slider, "Slider"),
    ) == (True, True)
    slider.blockSignals(True)
    slider.value = 5.0
    slider.blockSignals(False)
    assert (slider.value, ui.SpinBox.value, changed) == (5.0, 5.0, [])
    ui.SpinBox.blockSignals(True)
    slider.value = 7.0
    ui.SpinBox.blockSignals(False)
    assert (slider.value, ui.SpinBox.value) == (5.0, 7.0)
    slider.maximum = 6.0
    assert (slider.value, ui.SpinBox.value) == (5.0, 6.0)


def test_collapsible_button(slicer_app):
    import ctk
    import qt

    button, got = ctk.ctkCollapsibleButton(), []
    button.text = "Advanced"
    child = qt.QLabel("x")
    qt.QVBoxLayout(button).addWidget(child)
    button.connect("contentsCollapsed(bool)", got.append)
    button.collapsed = True
    assert (got, child.isHidden()) == ([True], True)
    button.click()
    assert (button.collapsed, child.isHidden(), got) == (False, False, [True, False])


def test_collapsible_group_box(slicer_app):
    import ctk
    import qt

    box, got = ctk.ctkCollapsibleGroupBox("More"), []
    box.connect("toggled(bool)", got.append)
    layout, button, secret = qt.QVBoxLayout(box), qt.QPushButton(), qt.QLabel()
    layout.addWidget(button)
    layout.addWidget(secret)
    secret.setVisible(False)
    box.collapsed = True
    assert (box.title, box.checked, got) == ("More", False, [False])
    assert button.isHidden() and not button.enabled
    box.collapsed = False
    assert button.enabled and not button.isHidden() and secret.isHidden()


def test_path_line_edit(slicer_app):
    import ctk

    path, got = ctk.ctkPathLineEdit(), []
    path.connect("currentPathChanged(QString)", got.append)
    path.filters = ctk.ctkPathLineEdit.Files | ctk.ctkPathLineEdit.Readable
    path.nameFilters = ["*.nrrd"]
    path.currentPath = "/a/b.nrrd"
    assert (path.currentPath, got, path.nameFilters) == ("/a/b.nrrd", ["/a/b.nrrd"], ("*.nrrd",))


def test_checkable_combo_box(slicer_app):
    import ctk
    import qt

    box, got = ctk.ctkCheckableComboBox(), []
    box.connect("checkedIndexesChanged()", lambda: got.append(1))
    box.addItem("L1")
    box.addItem("L2")
    assert box.noneChecked()
    index = box.model().index(1, 0)
    before = len(got)
    box.setCheckState(index, qt.Qt.Checked)
    assert len(got) == before + 1
    assert [i.row() for i in box.checkedIndexes()] == [1]
    assert not box.allChecked()


def test_place_widget(slicer_app):
    place = slicer.qSlicerMarkupsPlaceWidget()
    place.setMRMLScene(slicer_app.scene)
    assert not place.placeButton().enabled
    node = _add(slicer_app.scene, "F", "vtkMRMLMarkupsFiducialNode")
    place.setCurrentNode(node)
    place.setPlaceModeEnabled(True)
    assert place.placeModeEnabled and place.currentNodeActive
    assert place.placeButton().checked
    mode = slicer_app.kit.interaction_node.GetCurrentInteractionMode()
    assert mode == slicer.vtkMRMLInteractionNode.Place
    place.placeButton().click()
    assert not place.placeModeEnabled
