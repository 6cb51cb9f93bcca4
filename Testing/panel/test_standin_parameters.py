"""The stand-in's parameter node: types, validators, references, binding to widgets."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Optional, Union

import pytest
import slicer


class Mode(enum.Enum):
    BLEND = "blend"
    EDGES = "edges"

    def label(self):
        return self.value.title()


@pytest.fixture
def wrapper(slicer_app):
    from slicer.parameterNodeWrapper import Choice, Minimum, WithinRange, parameterNodeWrapper

    class Parameters:
        ct: slicer.vtkMRMLScalarVolumeNode
        labels: Union[slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007
        carm: Optional[slicer.vtkMRMLLinearTransformNode]  # noqa: UP045
        opacity: Annotated[float, WithinRange(0, 1)] = 0.5
        count: Annotated[int, Minimum(1)] = 3
        inverted: bool = True
        name: str = "X-ray"
        mode: Mode = Mode.EDGES
        folder: Path
        regions: list[str]
        backend: Annotated[str, Choice(["cpu", "cuda"])] = "cpu"

    hints = Parameters.__annotations__  # with future annotations these are strings of local names
    scope = {"Annotated": Annotated, "WithinRange": WithinRange, "Minimum": Minimum, "Choice": Choice}
    scope |= {"Optional": Optional, "Union": Union, "slicer": slicer, "Mode": Mode, "Path": Path}
    Parameters.__annotations__ = {k: eval(v, scope) for k, v in hints.items()}
    return parameterNodeWrapper(Parameters)


@pytest.fixture
def node(slicer_app):
    return slicer_app.scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


@pytest.fixture
def parameters(wrapper, node):
    return wrapper(node)


def test_defaults(parameters):
    assert (parameters.opacity, parameters.count, parameters.inverted, parameters.name) == (0.5, 3, True, "X-ray")
    assert (parameters.mode, parameters.folder, list(parameters.regions)) == (Mode.EDGES, Path(), [])
    assert (parameters.ct, parameters.labels, parameters.carm) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ct", "CT"),
        ("opacity", "0.5"),
        ("count", 2.5),
        ("inverted", 1),
        ("name", None),
        ("mode", "EDGES"),
        ("folder", "/tmp"),
        ("regions", ["a", 1]),
        ("regions", "a"),
    ],
)
def test_a_value_of_another_type_raises(parameters, name, value):
    before = getattr(parameters, name)
    with pytest.raises(TypeError):
        setattr(parameters, name, value)
    assert getattr(parameters, name) == before


def test_a_node_of_another_class_raises(parameters, slicer_app):
    model = slicer_app.scene.AddNewNodeByClass("vtkMRMLModelNode")
    for name in ("ct", "labels", "carm"):
        with pytest.raises(TypeError):
            setattr(parameters, name, model)


@pytest.mark.parametrize(("name", "value"), [("opacity", 1.1), ("count", 0), ("backend", "mps")])
def test_validators(parameters, name, value):
    with pytest.raises(ValueError):
        setattr(parameters, name, value)


def test_unknown_names_raise(parameters):
    with pytest.raises(AttributeError, match="no parameter 'opacty'"):
        parameters.opacty = 1.0
    with pytest.raises(ValueError):
        parameters.getValue("opacty")


def test_values_live_in_the_node(parameters, wrapper, node, slicer_app):
    ct = slicer_app.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    parameters.ct, parameters.mode, parameters.inverted, parameters.opacity = ct, Mode.BLEND, False, 0.1
    parameters.regions = ["L1"]
    parameters.regions.append("L2")
    ct.SetName("head")
    again = wrapper(node)
    assert node.GetParameter("mode") == "BLEND"
    assert again.ct is ct
    assert (again.mode, again.inverted, again.opacity, list(again.regions)) == (Mode.BLEND, False, 0.1, ["L1", "L2"])
    slicer_app.scene.RemoveNode(ct)
    assert again.ct is None


def test_reserved_names_and_unsupported_types_are_refused(slicer_app):
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    with pytest.raises(ValueError, match="reserved"):
        parameterNodeWrapper(type("A", (), {"__annotations__": {"default": int}}))
    with pytest.raises(TypeError, match="serializer"):
        parameterNodeWrapper(type("B", (), {"__annotations__": {"point": complex}}))


def test_unions_are_as_slicer_takes_them(node, slicer_app):
    """Written with typing.Union, or the selectors do not connect; None only where the union names it."""
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    kinds = slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLLabelMapVolumeNode
    with pytest.raises(TypeError, match="Unable to create serializer"):
        parameterNodeWrapper(type("Bars", (), {"__annotations__": {"labels": kinds[0] | kinds[1]}}))
    without = parameterNodeWrapper(type("Without", (), {"__annotations__": {"labels": Union[kinds]}}))  # noqa: UP007
    with pytest.raises(TypeError, match="must be of type"):
        without(node).labels = None


def test_observers(parameters):
    import vtk

    got = []
    tag = parameters.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: got.append(1))
    parameters.name = "other"
    assert got
    parameters.RemoveObserver(tag)
    del got[:]
    parameters.name = "third"
    assert got == []


@pytest.fixture
def gui(slicer_app):
    import ctk
    import qt

    widgets = {
        "ct": slicer.qMRMLNodeComboBox(),
        "opacity": ctk.ctkSliderWidget(),
        "count": qt.QSpinBox(),
        "inverted": qt.QCheckBox(),
        "name": qt.QLineEdit(),
        "mode": qt.QComboBox(),
        "folder": ctk.ctkPathLineEdit(),
        "backend": qt.QComboBox(),
    }
    widgets["ct"].noneEnabled = True
    widgets["ct"].setMRMLScene(slicer_app.scene)
    widgets["opacity"].decimals = 2
    for name, widget in widgets.items():
        widget.setProperty("SlicerParameterName", name)
    return SimpleNamespace(**{f"{name}Widget": widget for name, widget in widgets.items()})


def test_gui_shows_and_changes_parameters(parameters, gui, slicer_app):
    ct = slicer_app.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    tag = parameters.connectGui(gui)
    assert (gui.modeWidget.currentText, gui.countWidget.value, gui.invertedWidget.checked) == ("Edges", 3, True)
    assert (gui.opacityWidget.maximum, gui.countWidget.minimum) == (1.0, 1)
    gui.ctWidget.setCurrentNode(ct)
    gui.modeWidget.currentIndex = 0
    gui.invertedWidget.click()
    gui.nameWidget.text = "run 2"
    gui.opacityWidget.value = 0.25
    gui.folderWidget.currentPath = "/a"
    gui.backendWidget.currentIndex = 1
    assert parameters.ct is ct
    assert (parameters.mode, parameters.inverted, parameters.name) == (Mode.BLEND, False, "run 2")
    assert (parameters.opacity, parameters.folder, parameters.backend) == (0.25, Path("/a"), "cuda")
    parameters.count = 9
    parameters.ct = None
    assert (gui.countWidget.value, gui.ctWidget.currentNode()) == (9, None)
    parameters.disconnectGui(tag)
    gui.nameWidget.text = "later"
    parameters.count = 4
    assert (parameters.name, gui.countWidget.value) == ("run 2", 9)


def test_unsupported_widgets_raise(parameters, slicer_app):
    import ctk
    import qt

    slider = ctk.ctkSliderWidget()
    for name, widget in (
        ("opacity", qt.QSpinBox()),
        ("name", qt.QPlainTextEdit()),
        ("name", qt.QComboBox()),
        ("ct", qt.QComboBox()),
        ("regions", ctk.ctkCheckableComboBox()),
        ("count", slider),  # no upper bound
        ("inverted", qt.QToolButton()),
    ):
        with pytest.raises(RuntimeError):
            parameters.connectParametersToGui({name: widget})
    with pytest.raises(ValueError):
        parameters.connectParametersToGui({"nothing": slider})
