"""The stand-in's application: messages and answers, module classes, packages, views, the module made as Slicer does."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from Testing.mrml.offscreen import can_render

MODULE = """
import vtk
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin
from slicer.parameterNodeWrapper import parameterNodeWrapper, WithinRange
from slicer import vtkMRMLScalarVolumeNode

class Sample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Sample")
        slicer.app.connect("startupCompleted()", started)

def started():
    slicer.started = True

@parameterNodeWrapper
class SampleParameterNode:
    ct: vtkMRMLScalarVolumeNode

class SampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self):
        import qt
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = SampleLogic()
        self.button = qt.QPushButton("Go")
        self.layout.addWidget(self.button)
        self.button.connect("clicked(bool)", self.onGo)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onClosed)
        self.calls = []

    def onGo(self):
        with slicer.util.tryWithErrorDisplay(_("It failed."), waitCursor=True):
            raise ValueError("no CT")

    def onClosed(self, caller, event):
        self.calls.append("closed" if self.parent.isEntered else "hidden")

    def enter(self):
        self.calls.append("enter")

    def exit(self):
        self.calls.append("exit")

    def cleanup(self):
        self.removeObservers()

class SampleLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return SampleParameterNode(super().getParameterNode())
"""


@pytest.fixture
def widget(slicer_app, tmp_path):
    (tmp_path / "Sample.py").write_text(MODULE)
    yield slicer_app.make_widget("Sample", tmp_path)
    vars(slicer).pop("started", None)


def test_module_lives_as_in_slicer(widget, slicer_app):
    assert widget.calls == ["enter"]
    assert widget.resourcePath("UI/a.ui").endswith("Resources/UI/a.ui")
    first = widget.logic.getParameterNode()
    assert widget.logic.getParameterNode().parameterNode is first.parameterNode
    assert first.parameterNode.GetSingletonTag() == "Sample"
    slicer_app.scene.Clear()
    assert widget.calls == ["enter", "closed"]
    slicer_app.leave(widget)
    slicer_app.scene.Clear()
    assert widget.calls[2:] == ["exit", "hidden"]
    assert not hasattr(slicer, "started")
    slicer_app.startup_completed()
    assert slicer.started


def test_error_of_a_button_is_one_message(widget, slicer_app):
    widget.button.click()
    assert [(m.kind, m.text) for m in slicer_app.messages] == [("error", "It failed.\n\nno CT")]
    assert "ValueError" in slicer_app.messages[0].details


def test_messages_and_answers(slicer_app):
    slicer.util.warningDisplay("doubtful")
    slicer.util.infoDisplay("done")
    assert slicer.util.confirmOkCancelDisplay("sure?")
    slicer_app.answer = False
    assert not slicer.util.confirmOkCancelDisplay("sure?")
    assert not slicer.util.confirmYesNoDisplay("really?")
    assert [m.kind for m in slicer_app.messages] == ["warning", "info", "confirm", "confirm", "confirm"]


def test_status_and_main_window(slicer_app):
    assert slicer.util.showStatusMessage("working", 1000)
    assert slicer.util.mainWindow().statusBar().currentMessage() == "working"


def test_settings(slicer_app):
    import qt

    assert slicer.util.settingsValue("a/b", 3, converter=int) == 3
    qt.QSettings().setValue("a/b", "5")
    assert slicer.util.settingsValue("a/b", 3, converter=int) == 5


def test_packages(slicer_app, tmp_path):
    import PyTorchUtils
    import slicer.packaging

    (tmp_path / "requirements.txt").write_text("roma>=1.4  # rotations\n\nscipy\n")
    wanted = slicer.packaging.load_requirements(tmp_path / "requirements.txt")
    slicer.packaging.pip_ensure(wanted, requester="Sample")
    assert slicer_app.state.installs == []
    slicer_app.state.packages_missing = True
    assert not slicer.packaging.pip_check(wanted)
    slicer_app.answer = False
    with pytest.raises(RuntimeError, match="declined"):
        slicer.packaging.pip_ensure(wanted)
    slicer_app.answer = True
    slicer.packaging.pip_ensure(wanted)
    assert slicer_app.state.installs == ["roma>=1.4", "scipy"]
    assert PyTorchUtils.PyTorchUtilsLogic().torchInstalled()
    with pytest.raises(TypeError):
        slicer.packaging.pip_ensure(wanted, nonsense=True)


def test_translation_takes_text_only():
    from Testing.panel.standin.slicer_modules import tr

    assert tr("CT") == "CT"
    with pytest.raises(TypeError):
        tr(5)


def test_volumes_are_saved_and_loaded(slicer_app, tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    node = slicer.util.addVolumeFromArray(values, name="CT")
    assert slicer.util.saveNode(node, str(tmp_path / "ct.nrrd"))
    again = slicer.util.loadVolume(str(tmp_path / "ct.nrrd"))
    assert np.array_equal(slicer.util.arrayFromVolume(again), values)
    with pytest.raises(RuntimeError):
        slicer.util.loadVolume(str(tmp_path / "none.nrrd"))


def test_module_logics_and_layout(slicer_app):
    assert slicer.modules.markups.logic().IsA("vtkSlicerMarkupsLogic")
    manager = slicer.app.layoutManager()
    layout = manager.layoutLogic().GetLayoutNode()
    xml = '<layout type="horizontal"><item><view class="vtkMRMLSliceNode" singletontag="XRay1"></view></item></layout>'
    layout.AddLayoutDescription(5871, xml)
    assert manager.sliceWidget("XRay1") is None
    manager.setLayout(5871)
    assert manager.layout == 5871
    assert "XRay1" in manager.sliceViewNames()


@pytest.mark.skipif(not can_render(), reason="no offscreen rendering here")
def test_views(slicer_app):
    manager = slicer.app.layoutManager()
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    red = manager.sliceWidget("Red")
    assert red.mrmlSliceNode().GetLayoutName() == "Red"
    assert red.sliceLogic().GetSliceCompositeNode() is not None
    assert red.sliceView().renderWindow().GetClassName()
    assert manager.threeDWidget(0).mrmlViewNode().IsA("vtkMRMLViewNode")
    assert manager.threeDWidget(99) is None


def test_wait_until_gives_up(slicer_app):
    with pytest.raises(AssertionError):
        slicer_app.wait_until(lambda: False, 0.02)
