"""Whatever a user may have as CT, structures and X-ray, chosen, typed and clicked in the panel."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffDRRCore import Camera
from DiffDRRCore.geometry import project
from DiffDRRCore.imaging.camera_file import write_camera
from Testing.core.samples import rigid
from Testing.panel.kit import (
    SMALL,
    add_blocks,
    choose_structures,
    open_all,
    picture,
    sections,
    settle,
    simulated,
)
from Testing.scene.dicom_files import FULL, add_run, frames, write_dicom
from Testing.scene.kit import add_bend, add_transform, add_volume

RUN = frames(4, 48, 64)


@pytest.fixture
def panel(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    simulated(slicer_app, widget, **SMALL)
    open_all(widget.panel)
    assert not slicer_app.messages
    return widget.panel


def grid_of(volume):
    from DiffDRRSlicerLib.scene.nodes import volume_grid

    return volume_grid(volume)


def test_structures_of_a_segmentation_are_rendered_alone_and_together(panel, slicer_app):
    ct, everything = panel.parameters.ct, picture(panel)
    panel.parameters.labels, masks = add_blocks(slicer_app.scene, grid_of(ct))
    settle(slicer_app, panel)
    assert choose_structures(panel, ["left"]) == ["left", "right"]
    settle(slicer_app, panel)
    left = picture(panel)
    choose_structures(panel, ["right"])
    settle(slicer_app, panel)
    right = picture(panel)
    choose_structures(panel, ["left", "right"])
    settle(slicer_app, panel)
    assert picture(panel) == pytest.approx(left + right, abs=1e-4)  # line integrals add up
    middle = np.argwhere(masks[0]).mean(axis=0)[::-1]
    world = grid_of(ct)[:3, :3] @ middle + grid_of(ct)[:3, 3]
    u, v = project(panel.carm.camera, panel.carm.pose, world[None])[0, 0].round().int().tolist()
    assert left[v, u] > 0 and left[v, u] <= everything[v, u] + 1e-4 and right.max() > 0
    panel.parameters.labels.GetSegmentation().GetNthSegment(0).SetName("other")
    settle(slicer_app, panel)
    assert list(panel.parameters.structures) == ["right"] and picture(panel) == pytest.approx(right)
    panel.parameters.labels.GetSegmentation().RemoveAllSegments()
    settle(slicer_app, panel)
    assert ["no segments" in message.text for message in slicer_app.messages] == [True]
    slicer_app.scene.RemoveNode(panel.parameters.labels)
    settle(slicer_app, panel)
    assert not panel.parameters.structures and picture(panel) == pytest.approx(everything)
    assert len(slicer_app.messages) == 1


def test_a_labelmap_on_another_grid_chooses_what_it_covers(panel, slicer_app):
    ct = panel.parameters.ct
    grid = grid_of(ct) @ np.diag([2.0, 3.0, 1.0, 1.0])
    fine = np.zeros((24, 6, 11), np.int16)
    fine[:, :, :5] = 7
    labels = add_volume(slicer_app.scene, fine, grid, name="half", kind="vtkMRMLLabelMapVolumeNode")
    everything = picture(panel)
    panel.parameters.labels = labels
    settle(slicer_app, panel)
    assert choose_structures(panel, ["7"]) == ["7"]
    settle(slicer_app, panel)
    half = picture(panel)
    assert 0.2 * everything.sum() < half.sum() < 0.8 * everything.sum() and (half <= everything + 1e-4).all()
    panel.parameters.labels = None
    settle(slicer_app, panel)
    assert not panel.parameters.structures and picture(panel) == pytest.approx(everything)
    assert not slicer_app.messages


def test_a_ct_and_its_c_arm_below_an_oblique_transform_look_the_same(panel, slicer_app):
    before, parent = picture(panel), add_transform(slicer_app.scene, rigid(np.random.default_rng(5)))
    panel.parameters.ct.SetAndObserveTransformNodeID(parent.GetID())
    settle(slicer_app, panel)
    assert np.abs(picture(panel) - before).max() > 0.1 * before.max()
    panel.carm.node.SetAndObserveTransformNodeID(parent.GetID())
    settle(slicer_app, panel)
    assert picture(panel) == pytest.approx(before, abs=1e-3 * float(before.max()))
    sections(panel)["Move"].ui.patientTranslationS.value = 20
    settle(slicer_app, panel)
    assert np.abs(picture(panel) - before).max() > 0.01 * before.max()
    sections(panel)["Move"].ui.undoButton.click()
    settle(slicer_app, panel)
    assert picture(panel) == pytest.approx(before, abs=1e-3 * float(before.max())) and not slicer_app.messages


def add_xray(app, panel, node, frame=-1):
    load = sections(panel)["Load"].ui
    load.xraySelector.setCurrentNode(node)
    load.frameSpinBox.value = frame
    load.addXRayButton.click()
    settle(app, panel)


def pixels(panel):
    return slicer.util.arrayFromVolume(panel.carm.referred("xray"))[0]


def test_frames_of_a_sequence_and_of_its_proxy(panel, slicer_app):
    sequence, browser, proxy = add_run(slicer_app.scene, RUN, browser=True)
    browser.SetSelectedItemNumber(3)
    for node in (sequence, proxy):
        add_xray(slicer_app, panel, node)
        assert np.array_equal(pixels(panel), RUN[3])
        add_xray(slicer_app, panel, node, 1)
        assert np.array_equal(pixels(panel), RUN[1])
    browser.SetSelectedItemNumber(0)
    settle(slicer_app, panel)
    assert np.array_equal(pixels(panel), RUN[1]) and not slicer_app.messages


def test_what_a_dicom_header_lacks_is_said_and_typed(panel, slicer_app, tmp_path):
    attributes = {key: value for key, value in FULL.items() if key.startswith("Positioner")}
    uid = write_dicom(tmp_path / "a.dcm", RUN[0], **attributes)
    slicer_app.state.dicom_files[uid] = tmp_path / "a.dcm"
    node = add_volume(slicer_app.scene, RUN[:1] + 7, np.eye(4), name="loaded")  # + 7: not the file's own pixels
    node.SetAttribute("DICOM.instanceUIDs", uid)
    add_xray(slicer_app, panel, node)
    assert np.array_equal(pixels(panel), RUN[0]) and float(panel.carm.arm.primary) == pytest.approx(30)
    notes, camera = sections(panel)["Load"].ui.loadNotes, sections(panel)["Camera"].ui
    for what in ("source-to-detector distance", "pixel spacing", "source-to-isocentre distance"):
        assert what in notes.text and what in camera.cameraNotes.text
    exact = panel.carm.camera.principal_point.tolist()
    camera.sourceToDetector.value = 1234.5
    settle(slicer_app, panel)
    assert "source-to-detector" not in notes.text and "pixel spacing" in notes.text
    assert float(panel.carm.camera.source_to_detector) == 1234.5
    camera.rowSpacing.value = 0.31
    camera.columnSpacing.value = 0.33
    camera.sourceToIsocenter.value = 801
    settle(slicer_app, panel)
    assert panel.carm.camera.pixel_spacing.tolist() == pytest.approx([0.31, 0.33])
    assert panel.carm.camera.principal_point.tolist() == exact and panel.carm.source_to_isocenter == 801
    assert not any(what in notes.text for what in ("pixel spacing", "isocentre distance", "source-to"))
    assert not slicer_app.messages


def test_a_file_by_its_path_with_a_camera_beside_it(panel, slicer_app, tmp_path):
    from PIL import Image

    Image.fromarray(RUN[0].astype(np.uint16)).save(tmp_path / "shot.png")
    load, camera = sections(panel)["Load"].ui, sections(panel)["Camera"].ui
    load.xrayPath.currentPath = str(tmp_path / "shot.png")
    load.loadXRayButton.click()
    settle(slicer_app, panel)
    assert np.array_equal(pixels(panel), RUN[0]) and "pixel spacing" in load.loadNotes.text
    pose = panel.carm.pose
    write_camera(tmp_path / "camera.json", Camera(48, 64, (0.4, 0.5), 1111.0, (30.5, 20.25)), pose)
    camera.cameraPath.currentPath = str(tmp_path / "camera.json")
    camera.loadCameraButton.click()
    settle(slicer_app, panel)
    assert (camera.principalU.value, camera.sourceToDetector.value) == (30.5, 1111.0)
    assert "pixel spacing" not in load.loadNotes.text and not slicer_app.messages


def test_matrices_pasted_as_text(panel, slicer_app):
    camera, truth = sections(panel)["Camera"].ui, panel.carm.pose.matrix.numpy().copy()
    keep = sections(panel)["Keep"].ui
    matrix = keep.projectionMatrix.plainText
    panel.carm.move_arm(primary=40, isocenter=panel.carm.arm.isocenter + 30)
    settle(slicer_app, panel)
    assert keep.projectionMatrix.plainText != matrix
    camera.matrixText.plainText = matrix
    camera.applyMatrixButton.click()
    settle(slicer_app, panel)
    assert panel.carm.pose.matrix.numpy() == pytest.approx(truth, abs=1e-4)
    sections(panel)["Move"].ui.undoButton.click()
    assert float(panel.carm.arm.primary) == pytest.approx(40)
    before = panel.carm.pose.matrix.numpy().copy()
    camera.matrixText.plainText = "-200 0 30\n0 210 35\n0 0 1"
    camera.applyMatrixButton.click()
    settle(slicer_app, panel)
    assert panel.carm.camera.K.tolist() == [[-200, 0, 30], [0, 210, 35], [0, 0, 1]]
    assert np.array_equal(panel.carm.pose.matrix.numpy(), before) and not slicer_app.messages
    camera.principalU.value = 31
    assert panel.carm.camera.K.numpy() == pytest.approx(np.array([[-200, 0, 31], [0, 210, 35], [0, 0, 1]]), rel=1e-12)


def model_points(node):
    """World coordinates of a model's points."""
    from DiffDRRSlicerLib.scene import nodes

    points = node.GetPolyData().GetPoints()
    local = np.array([points.GetPoint(index) for index in range(points.GetNumberOfPoints())]).reshape(-1, 3)
    return nodes.transformed(nodes.parent_to_world(node), local)


def test_a_point_of_one_x_ray_is_a_line_on_the_other_and_a_ray_in_the_ct(panel, slicer_app):
    from DiffDRRSlicerLib.scene import carm as carms
    from DiffDRRSlicerLib.scene import projections

    first, world = panel.carm, panel.anatomy.center + np.array([20, -30, 40])
    sections(panel)["Load"].ui.addCArmButton.click()
    sections(panel)["Move"].ui.leftLateralButton.click()
    settle(slicer_app, panel)
    second = panel.carm
    panel.parameters.carm = first.node
    settle(slicer_app, panel)
    points = sections(panel)["Landmarks"].ui
    points.showRays.checked = points.showEpipolar.checked = True
    uv = project(first.camera, first.pose, world[None])[0].numpy()
    points.xrayPlaceWidget.currentNode().AddControlPoint(*carms.pixels_to_points(first.camera, uv)[0])
    settle(slicer_app, panel)
    ((ray, _),) = projections.companions(first, "rays")
    source, end = model_points(ray)
    along = (end - source) / np.linalg.norm(end - source)
    assert np.allclose(source, first.pose.matrix[:3, 3]) and np.abs(np.cross(world - source, along)).max() < 1e-3
    found = [node for node, of in projections.companions(second, "epipolar") if node.GetPolyData().GetNumberOfLines()]
    ends = project(second.camera, second.pose, model_points(found[0]))[0].numpy()
    through = project(second.camera, second.pose, np.stack([world, source + 700 * along]))[0].numpy()
    normal = np.array([through[1, 1] - through[0, 1], through[0, 0] - through[1, 0]])
    assert len(found) == 1 and np.abs((ends - through[0]) @ normal).max() / np.linalg.norm(normal) < 1e-3
    points.showRays.checked = points.showEpipolar.checked = False
    settle(slicer_app, panel)
    assert not ray.GetDisplayNode().GetVisibility() and not found[0].GetDisplayNode().GetVisibility()
    assert not slicer_app.messages


def add_colours(scene):
    return add_volume(scene, np.zeros((1, 6, 8, 3), np.uint8), np.eye(4), None, "rgb", "vtkMRMLVectorVolumeNode")


@pytest.mark.parametrize(
    ("make", "words"),
    [(add_colours, "has colours"), (lambda scene: add_volume(scene, RUN[:3], np.eye(4)), "3 slices")],
)
def test_images_that_are_no_x_ray_are_refused_in_one_sentence(panel, slicer_app, make, words):
    before = panel.carm
    add_xray(slicer_app, panel, make(slicer_app.scene))
    assert len(slicer_app.messages) == 1 and words in slicer_app.messages[0].text and panel.carm == before


def test_a_ct_below_a_bent_transform_is_said_once_and_hardened_it_works(panel, slicer_app):
    ct = panel.parameters.ct
    ct.SetAndObserveTransformNodeID(add_bend(slicer_app.scene).GetID())
    settle(slicer_app, panel)
    for _ in range(20):
        panel.tick()
    for action in (sections(panel)["Move"].ui.laoButton, sections(panel)["Register"].ui.registerButton):
        action.click()
        settle(slicer_app, panel)
    slicer_app.wait_until(lambda: sections(panel)["Register"].running is None, 30)
    texts = [message.text for message in slicer_app.messages]
    assert texts and len(texts) <= 2 and all("not linear" in text for text in texts), texts
    ct.SetAndObserveTransformNodeID(None)
    settle(slicer_app, panel)
    count = len(slicer_app.messages)
    sections(panel)["Move"].ui.apButton.click()
    settle(slicer_app, panel)
    assert len(slicer_app.messages) == count and picture(panel).max() > 0
