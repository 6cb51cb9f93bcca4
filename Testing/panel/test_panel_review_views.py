"""What the panel shows and keeps of one C-arm among several: windows, inversion, models, lists, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer
import slicer.util

from DiffDRRCore import Camera, Pose
from DiffDRRCore.geometry.itk_transform import read_itk_transform
from DiffDRRCore.imaging.camera_file import write_camera
from Testing.core.samples import rigid
from Testing.mrml.offscreen import can_render
from Testing.panel.kit import (
    SMALL,
    load_scene,
    open_all,
    picture,
    registered,
    save_scene,
    sections,
    settle,
    simulated,
)
from Testing.scene.dicom_files import FULL, frames, write_dicom

RUN = frames(4, 48, 64)
README = Path(__file__).resolve().parents[2] / "README.md"
needs_views = pytest.mark.skipif(not can_render(), reason="no OpenGL to draw with")


@pytest.fixture
def panel(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    simulated(slicer_app, widget, **SMALL)
    open_all(widget.panel)
    settle(slicer_app, widget.panel)
    assert not slicer_app.messages
    return widget.panel


def load_file(app, panel, path, frame=-1):
    load = sections(panel)["Load"].ui
    load.xrayPath.currentPath = str(path)
    load.frameSpinBox.value = frame
    load.loadXRayButton.click()
    settle(app, panel)


def window_of(carm, role):
    display = carm.referred(role).GetDisplayNode()
    return display.GetWindowLevelMin(), display.GetWindowLevelMax()


# files


def save(app, panel, folder):
    """Press "Save the results"; returns the names of the files."""
    keep = sections(panel)["Keep"].ui
    keep.outputPath.currentPath = str(folder)
    keep.saveButton.click()
    settle(app, panel)
    return sorted(path.name for path in folder.iterdir())


def written(folder):
    """The pose and the projection matrix of the only C-arm in a folder."""
    (pose,), (matrix,) = folder.glob("*camera_to_world.tfm"), folder.glob("*projection_world.txt")
    return read_itk_transform(pose).numpy(), np.loadtxt(matrix)


def matrix_shown(panel):
    text = sections(panel)["Keep"].ui.projectionMatrix.plainText
    return np.array([line.split() for line in text.splitlines()], float)


def register_quickly(app, panel):
    from DiffDRRSlicerLib import choices

    panel.parameters.preset, panel.parameters.similarity = choices.Preset.FAST, choices.Similarity.ZNCC
    panel.parameters.findCollimator = False
    registered(app, panel)
    assert panel.outcome is not None


def test_saving_writes_the_chosen_c_arm_as_it_stands_and_a_result_only_while_it_is_true(panel, slicer_app, tmp_path):
    register_quickly(slicer_app, panel)
    first, notes, found = panel.carm, sections(panel)["Keep"].ui.keepNotes, panel.carm.pose.matrix.numpy().copy()
    assert {"registration.json", "registration.csv"} <= set(save(slicer_app, panel, tmp_path / "found"))
    assert np.allclose(written(tmp_path / "found")[0], found, atol=1e-6) and "left" not in notes.text
    sections(panel)["Move"].ui.primarySlider.value = 33
    settle(slicer_app, panel)
    assert "registration.json" not in save(slicer_app, panel, tmp_path / "moved") and "have moved since" in notes.text
    pose, matrix = written(tmp_path / "moved")
    assert np.abs(pose - found).max() > 100 and np.allclose(pose, first.pose.matrix.numpy(), atol=1e-6)
    assert np.allclose(matrix, matrix_shown(panel), rtol=1e-6, atol=1e-6)
    sections(panel)["Move"].ui.undoButton.click()
    settle(slicer_app, panel)
    assert "registration.json" in save(slicer_app, panel, tmp_path / "undone")
    sections(panel)["Move"].ui.patientTranslationA.value = 15
    settle(slicer_app, panel)
    assert "registration.json" not in save(slicer_app, panel, tmp_path / "patient")
    sections(panel)["Move"].ui.undoButton.click()
    sections(panel)["Camera"].ui.principalU.value += 2
    settle(slicer_app, panel)
    assert "registration.json" not in save(slicer_app, panel, tmp_path / "camera")
    sections(panel)["Load"].ui.addCArmButton.click()
    settle(slicer_app, panel)
    names = save(slicer_app, panel, tmp_path / "other")
    assert panel.carm != first and all(name.startswith(f"{panel.carm.name}_") for name in names)
    assert np.allclose(written(tmp_path / "other")[0], panel.carm.pose.matrix.numpy(), atol=1e-6)
    slicer_app.scene.RemoveNode(first.node)
    settle(slicer_app, panel)
    assert save(slicer_app, panel, tmp_path / "deleted") == names and not slicer_app.messages


def test_a_frame_of_a_file_is_typed_and_the_sentence_is_the_readmes(panel, slicer_app, tmp_path):
    write_dicom(tmp_path / "run.dcm", RUN, **FULL)
    before = panel.carm
    load_file(slicer_app, panel, tmp_path / "run.dcm")
    (message,) = slicer_app.messages
    assert panel.carm == before and "has 4 frames; choose one of 0 to 3" in message.text
    assert "frame=" not in message.text and "| `; choose one of 0 to` |" in README.read_text(encoding="utf-8")
    load_file(slicer_app, panel, tmp_path / "run.dcm", 2)
    assert np.array_equal(slicer.util.arrayFromVolume(panel.carm.referred("xray"))[0], RUN[2])
    write_dicom(tmp_path / "one.dcm", RUN[1], **FULL)
    load_file(slicer_app, panel, tmp_path / "one.dcm")
    assert np.array_equal(slicer.util.arrayFromVolume(panel.carm.referred("xray"))[0], RUN[1])
    assert len(slicer_app.messages) == 1


def test_a_camera_file_with_a_pose_puts_an_assumed_isocentre_at_the_ct(panel, slicer_app, tmp_path):
    from PIL import Image

    Image.fromarray(RUN[0].astype(np.uint16)).save(tmp_path / "shot.png")
    load_file(slicer_app, panel, tmp_path / "shot.png")
    load, camera = sections(panel)["Load"].ui, sections(panel)["Camera"].ui
    assert "source-to-isocentre" in load.loadNotes.text
    motion = rigid(np.random.default_rng(7))
    motion[:3, 3] = panel.anatomy.center - 640.0 * motion[:3, 2] + 30.0 * motion[:3, 0]
    write_camera(tmp_path / "camera.json", Camera(48, 64, (0.4, 0.5), 1111.0), Pose(motion))
    camera.cameraPath.currentPath = str(tmp_path / "camera.json")
    camera.loadCameraButton.click()
    settle(slicer_app, panel)
    assert panel.carm.source_to_isocenter == pytest.approx(640.0) and camera.sourceToIsocenter.value == 640.0
    assert "source-to-isocentre" not in load.loadNotes.text and not slicer_app.messages


# windows and inversion


def test_auto_window_of_a_checkerboard_is_the_drrs(panel, slicer_app):
    from DiffDRRSlicerLib.choices import Overlay

    view, carm = sections(panel)["View"].ui, panel.carm
    panel.parameters.overlayMode = Overlay.CHECKERBOARD
    settle(slicer_app, panel)
    carm.referred("drr").GetDisplayNode().SetWindowLevelMinMax(-1e4, 1e4)
    view.windowButton.click()
    settle(slicer_app, panel)
    pixels = picture(panel)[picture(panel) != 0]
    expected = pytest.approx(np.percentile(pixels, (2, 99.5)), rel=1e-4)
    assert window_of(carm, "drr") == expected and window_of(carm, "overlay") == expected
    panel.parameters.overlayMode = Overlay.EDGES
    settle(slicer_app, panel)
    before = window_of(carm, "overlay")
    view.windowButton.click()
    settle(slicer_app, panel)
    assert window_of(carm, "overlay") == before and not slicer_app.messages


def test_auto_window_of_a_difference_has_zero_in_its_middle(panel, slicer_app):
    from DiffDRRSlicerLib.choices import Overlay
    from DiffDRRSlicerLib.scene.carm import CArmNode

    for carm in [carm for carm in CArmNode.all(slicer_app.scene) if carm.referred("xray") is None]:
        slicer_app.scene.RemoveNode(carm.node)
    panel.parameters.overlayMode = Overlay.DIFFERENCE
    sections(panel)["Move"].ui.primarySlider.value = 40
    settle(slicer_app, panel)
    panel.carm.referred("overlay").GetDisplayNode().SetWindowLevelMinMax(-50, 70)
    sections(panel)["View"].ui.windowButton.click()
    settle(slicer_app, panel)
    low, high = window_of(panel.carm, "overlay")
    values = slicer.util.arrayFromVolume(panel.carm.referred("overlay"))
    assert high == pytest.approx(np.abs(np.percentile(values[values != 0], (2, 99.5))).max(), rel=1e-4)
    assert low == pytest.approx(-high) and not slicer_app.messages


def inverted(carm):
    """What is inverted by its colour table: X-ray, DRR."""
    return [
        carm.referred(role).GetDisplayNode().GetColorNode().GetName().endswith("inverted") for role in ("xray", "drr")
    ]


def test_each_c_arm_keeps_its_own_inversion(panel, slicer_app, tmp_path):
    from DiffDRRSlicerLib.choices import Overlay

    view, first = sections(panel)["View"].ui, panel.carm
    write_dicom(tmp_path / "x.dcm", RUN[0], **FULL)
    load_file(slicer_app, panel, tmp_path / "x.dcm")
    second = panel.carm
    assert first.meta["intensity"] == "attenuation" and second.meta["intensity"] == "transmission"
    assert inverted(second) == [False, True] and inverted(first) == [False, False]
    assert (view.invertXRay.checked, view.invertDRR.checked) == (False, True)
    panel.parameters.carm = first.node
    settle(slicer_app, panel)
    assert inverted(second) == [False, True] and inverted(first) == [False, False]
    assert (view.invertXRay.checked, view.invertDRR.checked) == (False, False)
    panel.parameters.overlayMode = Overlay.CHECKERBOARD
    view.invertXRay.click()
    view.invertDRR.click()
    settle(slicer_app, panel)
    assert inverted(first) == [True, True] and inverted(second) == [False, True]
    assert (
        first.referred("overlay").GetDisplayNode().GetColorNode()
        is first.referred("drr").GetDisplayNode().GetColorNode()
    )
    panel.parameters.carm = second.node
    settle(slicer_app, panel)
    view.invertDRR.click()
    settle(slicer_app, panel)
    assert inverted(first) == [True, True] and inverted(second) == [False, False]
    panel.parameters.carm = first.node
    settle(slicer_app, panel)
    assert (view.invertXRay.checked, view.invertDRR.checked) == (True, True) and not slicer_app.messages
    sections(panel)["Load"].ui.addCArmButton.click()
    settle(slicer_app, panel)
    assert not view.invertXRay.enabled and view.invertDRR.enabled and not view.invertDRR.checked


def test_frustum_and_detector_are_those_of_all_c_arms(panel, slicer_app):
    from DiffDRRSlicerLib.scene.carm import CArmNode

    view = sections(panel)["View"].ui
    for _ in range(2):
        sections(panel)["Load"].ui.addCArmButton.click()
        settle(slicer_app, panel)

    def visible(role):
        shown = (carm.referred(role).GetDisplayNode() for carm in CArmNode.all(slicer_app.scene))
        return [bool(display.GetVisibility()) for display in shown]

    assert visible("frustum") == visible("detector") == [True] * 4
    view.showFrustum.checked = False
    settle(slicer_app, panel)
    assert visible("frustum") == [False] * 4 and visible("detector") == [True] * 4
    view.showDetector.checked, view.showFrustum.checked = False, True
    settle(slicer_app, panel)
    assert visible("frustum") == [True] * 4 and visible("detector") == [False] * 4 and not slicer_app.messages


# lists and views


@needs_views
def test_points_on_the_x_ray_are_not_drawn_in_ct_slices(panel, slicer_app):
    from DiffDRRSlicerLib.scene.carm import pixels_to_points

    sections(panel)["View"].ui.layoutButton.click()
    panel.parameters.ctLandmarks = ct_list = slicer_app.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "CT")
    center = np.array(panel.anatomy.center)
    ct_list.AddControlPointWorld(*center)
    settle(slicer_app, panel)
    (point,) = pixels_to_points(panel.carm.camera, [[30.0, 30.0]])
    panel.carm.referred("landmarks").AddControlPoint(*point)
    settle(slicer_app, panel)
    manager = slicer.app.layoutManager()
    red, xray = (manager.sliceWidget(name).view for name in ("Red", "DiffDRRXRay"))
    red.show(panel.parameters.ct, fit=True)
    red.node.JumpSliceByCentering(*center)
    ct_list.GetDisplayNode().SetVisibility(False)
    slicer_app.process_events()
    on_xray = [panel.carm.referred("landmarks"), panel.carm.referred("fiducials")]
    with_points = [view.grab() for view in (red, xray)]
    for markups in on_xray:
        markups.GetDisplayNode().SetVisibility(False)
    slicer_app.process_events()
    without = [view.grab() for view in (red, xray)]
    assert (with_points[0] == without[0]).all() and (with_points[1] != without[1]).any()


def offered(selector):
    return [selector.nodeFromIndex(index).GetName() for index in range(selector.nodeCount())]


def test_an_x_rays_list_is_made_when_it_is_needed_and_is_no_list_on_the_ct(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    simulated(slicer_app, widget, **SMALL)
    panel, scene = widget.panel, slicer_app.scene
    landmarks, view = sections(panel)["Landmarks"], sections(panel)["View"].ui
    for section in panel.sections.values():
        section.refresh()
    assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") == 0
    landmarks.button.collapsed = False
    settle(slicer_app, panel)
    first = panel.carm.referred("landmarks")
    assert landmarks.ui.xrayPlaceWidget.currentNode() is first is not None
    ct_list = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "on the CT")
    settle(slicer_app, panel)
    landmarks.button.collapsed = True
    sections(panel)["Load"].ui.addCArmButton.click()
    settle(slicer_app, panel)
    assert panel.carm.referred("landmarks") is None and landmarks.ui.xrayPlaceWidget.currentNode() is None
    panel.parameters.ctLandmarks = ct_list
    settle(slicer_app, panel)
    assert panel.carm.referred("landmarks") is not None and panel.carm.referred("landmarks") is not first
    for selector in (landmarks.ui.ctLandmarksSelector, view.fiducialsSelector):
        assert offered(selector) == ["on the CT"]
    panel.parameters.fiducials = ct_list
    settle(slicer_app, panel)
    for selector in (landmarks.ui.ctLandmarksSelector, view.fiducialsSelector):
        assert selector.currentNode() is ct_list and offered(selector) == ["on the CT"]
    assert not slicer_app.messages


@needs_views
def test_x_ray_view_and_c_arm_view_are_a_group_again_after_a_scene_is_loaded(panel, slicer_app, tmp_path):
    from DiffDRRSlicerLib.scene.layout import view_nodes

    sections(panel)["View"].ui.layoutButton.click()
    settle(slicer_app, panel)
    group = view_nodes(slicer_app.scene).xray.GetViewGroup()
    load_scene(slicer_app.scene, save_scene(slicer_app.scene, tmp_path / "saved"))
    settle(slicer_app, panel)
    views = view_nodes(slicer_app.scene)
    assert views.xray.GetViewGroup() == views.carm.GetViewGroup() == group > 1
    assert views.free.GetViewGroup() != group and not slicer_app.messages


# texts


def test_tool_tips_say_where_things_are(panel, slicer_app):
    load, view = sections(panel)["Load"].ui, sections(panel)["View"].ui
    sections(panel)["Load"].ui.addCArmButton.click()
    settle(slicer_app, panel)
    assert panel.carm.pose.translation[1] < panel.anatomy.center[1] - 500  # posterior of the CT
    assert "behind the CT" in load.addCArmButton.toolTip and "behind the CT" in load.simulateButton.toolTip
    panel.parameters.showBone = True
    settle(slicer_app, panel)
    from DiffDRRSlicerLib.scene.surfaces import find_bone_surface

    in_slices = bool(find_bone_surface(panel.anatomy).GetDisplayNode().GetVisibility2D())
    assert ("X-ray view" in view.showBone.toolTip) == in_slices
    assert "file" in load.frameSpinBox.toolTip
