"""A user's way through the panel: every button is clicked on the real widgets, and the scene is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DiffDRRCore.geometry import project
from Testing.panel.kit import add_phantom, sections, settle, simulated


@pytest.fixture
def panel(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    simulated(slicer_app, widget)
    assert not slicer_app.messages
    return widget.panel


def test_simulating_gives_a_c_arm_with_an_x_ray_and_a_drr_over_it(panel):
    carm = panel.carm
    assert carm.referred("xray") is not None and carm.referred("drr") is not None
    xray = slicer.util.arrayFromVolume(carm.referred("xray"))[0]
    drr = slicer.util.arrayFromVolume(carm.referred("drr"))[0]
    assert xray.shape == drr.shape == (96, 96)
    assert np.corrcoef(xray.ravel(), drr.ravel())[0, 1] > 0.99
    assert carm.referred("reference") is not None and carm.referred("frustum") is not None


PRESETS = {
    "apButton": (180, 0),
    "paButton": (0, 0),
    "leftLateralButton": (90, 0),
    "rightLateralButton": (-90, 0),
    "laoButton": (45, 0),
    "raoButton": (-45, 0),
    "inletButton": (0, 40),
    "outletButton": (0, -40),
}


@pytest.mark.parametrize("button", PRESETS)
def test_preset_buttons_turn_the_c_arm_about_its_isocentre(panel, slicer_app, button):
    before = panel.carm.arm.isocenter.numpy()
    move = sections(panel)["Move"].ui
    getattr(move, button).click()
    settle(slicer_app, panel)
    arm = panel.carm.arm
    primary, secondary = PRESETS[button]
    assert np.cos(np.radians(float(arm.primary) - primary)) == pytest.approx(1, abs=1e-9)
    assert float(arm.secondary) == pytest.approx(secondary, abs=1e-6)
    assert arm.isocenter.numpy() == pytest.approx(before, abs=1e-6)
    assert move.secondarySlider.value == pytest.approx(secondary, abs=0.05)


def test_a_slider_moves_its_own_coordinate_and_no_other(panel, slicer_app):
    panel.carm.move_arm(primary=12.3456, secondary=-7.6543, roll=3.21)
    settle(slicer_app, panel)
    sections(panel)["Move"].ui.primarySlider.value = 20
    arm = panel.carm.arm
    angles = [float(angle) for angle in (arm.primary, arm.secondary, arm.roll)]
    assert angles == pytest.approx([20, -7.6543, 3.21], abs=1e-6)
    isocenter = arm.isocenter.numpy().copy()
    sections(panel)["Move"].ui.isocenterA.value = 33
    assert panel.carm.arm.isocenter.numpy() == pytest.approx([isocenter[0], 33, isocenter[2]], abs=1e-6)


def test_patient_sliders_turn_the_patient_about_the_anatomys_centre(panel, slicer_app):
    center, carm_before = panel.anatomy.center, panel.carm.pose.matrix.numpy().copy()
    move = sections(panel)["Move"].ui
    move.patientRotationS.value = 30
    settle(slicer_app, panel)
    assert panel.anatomy.center == pytest.approx(center, abs=1e-6)
    turn = panel.anatomy.to_world[:3, :3]
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    assert turn == pytest.approx(np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]), abs=1e-9)
    move.patientTranslationA.value = 12.5
    settle(slicer_app, panel)
    assert panel.anatomy.center - center == pytest.approx([0, 12.5, 0], abs=1e-6)
    assert panel.carm.pose.matrix.numpy() == pytest.approx(carm_before)
    assert move.patientRotationS.value == pytest.approx(30)


def test_undo_and_redo_bring_back_c_arm_and_patient(panel, slicer_app):
    move = sections(panel)["Move"].ui
    states = [panel.carm.pose.matrix.numpy().copy()]
    for name, value in (("primarySlider", 25), ("secondarySlider", 10)):
        getattr(move, name).value = value
        settle(slicer_app, panel)
        states.append(panel.carm.pose.matrix.numpy().copy())
    move.patientTranslationR.value = 15
    settle(slicer_app, panel)
    move.undoButton.click()
    settle(slicer_app, panel)
    assert panel.anatomy.to_world == pytest.approx(np.eye(4))
    assert panel.carm.pose.matrix.numpy() == pytest.approx(states[2])
    move.undoButton.click()
    assert panel.carm.pose.matrix.numpy() == pytest.approx(states[1])
    move.undoButton.click()
    settle(slicer_app, panel)
    assert panel.carm.pose.matrix.numpy() == pytest.approx(states[0])
    assert not move.undoButton.enabled and move.redoButton.enabled
    for _ in range(3):
        move.redoButton.click()
        settle(slicer_app, panel)
    assert panel.anatomy.to_world[0, 3] == pytest.approx(15)
    assert panel.carm.pose.matrix.numpy() == pytest.approx(states[2])


NUDGES = {  # how the centre's pixel moves (u, v), and whether the anatomy comes nearer to the source
    "nudgeLeft": (-1, 0, 0),
    "nudgeRight": (1, 0, 0),
    "nudgeUp": (0, -1, 0),
    "nudgeDown": (0, 1, 0),
    "nudgeNearer": (0, 0, -1),
    "nudgeFarther": (0, 0, 1),
}


@pytest.mark.parametrize("button", NUDGES)
@pytest.mark.parametrize("side", ["RADIOLOGICAL", "SOURCE"])
def test_nudges_move_the_picture_as_it_is_displayed(panel, slicer_app, button, side):
    panel.parameters.displaySide = type(panel.parameters.displaySide)[side]
    move = sections(panel)["Move"].ui
    move.nudgeStep.value = 5
    carm, center = panel.carm, panel.anatomy.center
    before, depth = (
        project(carm.camera, carm.pose, center[None])[0, 0],
        carm.pose.inverse().transform(center[None])[0, 2],
    )
    getattr(move, button).click()
    settle(slicer_app, panel)
    after, then = project(carm.camera, carm.pose, center[None])[0, 0], carm.pose.inverse().transform(center[None])[0, 2]
    right, down, away = NUDGES[button]
    # The stored columns run along -x (seen from the detector): on a radiological display they run to the right.
    scale = float(carm.camera.source_to_detector / depth / carm.camera.pixel_spacing[0]) * 5
    stored = right if side == "RADIOLOGICAL" else -right
    assert carm.camera.view_from == "detector"
    if not away:
        assert (after - before).tolist() == pytest.approx([stored * scale, down * scale], abs=1e-6)
    assert float(then - depth) == pytest.approx(5 * away, abs=1e-6)


@pytest.mark.parametrize(("button", "degrees"), [("nudgeTurnLeft", -10), ("nudgeTurnRight", 10)])
@pytest.mark.parametrize("side", ["RADIOLOGICAL", "SOURCE"])
def test_nudges_turn_the_picture_as_it_is_displayed(panel, slicer_app, button, degrees, side):
    """Right is clockwise: what lies right of the centre on the display goes down."""
    panel.parameters.displaySide = type(panel.parameters.displaySide)[side]
    move = sections(panel)["Move"].ui
    move.nudgeAngle.value = 10
    before = panel.carm.pose.matrix.numpy().copy()
    points = panel.anatomy.center + np.outer([0, 30], before[:3, 0])  # the second one beside the first, as deep

    def displayed():
        uv = project(panel.carm.camera, panel.carm.pose, points)[0].numpy()
        return (uv[1] - uv[0]) * (1 if side == "RADIOLOGICAL" else -1, 1)  # columns on the display, as above

    start = displayed()
    getattr(move, button).click()
    settle(slicer_app, panel)
    angle = np.radians(degrees)  # u to the right, v down: from u to v is clockwise
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ start
    assert displayed() == pytest.approx(turned, abs=1e-6)
    getattr(move, "nudgeTurnRight" if degrees < 0 else "nudgeTurnLeft").click()
    settle(slicer_app, panel)
    assert panel.carm.pose.matrix.numpy() == pytest.approx(before, abs=1e-9)


def test_poses_are_kept_by_name_and_reset_goes_back_to_the_first(panel, slicer_app):
    move, first = sections(panel)["Move"].ui, panel.carm.pose.matrix.numpy().copy()
    move.primarySlider.value = 40
    settle(slicer_app, panel)
    move.posesGroup.collapsed = False
    move.poseName.text = "oblique"
    move.savePoseButton.click()
    settle(slicer_app, panel)
    assert move.poseSelector.currentText == "oblique"
    move.resetButton.click()
    settle(slicer_app, panel)
    assert panel.carm.pose.matrix.numpy() == pytest.approx(first, abs=1e-9)
    move.goToPoseButton.click()
    settle(slicer_app, panel)
    assert float(panel.carm.arm.primary) == pytest.approx(40)
    move.deletePoseButton.click()
    settle(slicer_app, panel)
    assert move.poseSelector.count == 0
    move.goToPoseButton.click()
    assert "saved pose" in slicer_app.messages[-1].text


def test_landmarks_are_paired_named_measured_and_aligned(panel, slicer_app):
    carm, parameters = panel.carm, panel.parameters
    truth = carm.pose
    landmarks = sections(panel)["Landmarks"]
    ct_list = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "CT points")
    rng = np.random.default_rng(3)
    points = panel.anatomy.center + rng.uniform(-90, 90, (5, 3))
    for number, point in enumerate(points):
        ct_list.AddControlPoint(*point, f"tip {number}")
    parameters.ctLandmarks = ct_list
    settle(slicer_app, panel)
    assert landmarks.ui.nextLandmark.text == "next: tip 0"
    xray_list = landmarks.ui.xrayPlaceWidget.currentNode()
    from DiffDRRSlicerLib.scene.carm import pixels_to_points

    clicked = project(carm.camera, truth, points)[0].numpy()
    for number, point in enumerate(pixels_to_points(carm.camera, clicked)):
        xray_list.AddControlPoint(*point)
        settle(slicer_app, panel)
        assert xray_list.GetNthControlPointLabel(number) == f"tip {number}"
    assert landmarks.ui.nextLandmark.text == "all are placed"
    panel.carm.move_arm(primary=9, secondary=5, isocenter=panel.carm.arm.isocenter + 10)
    settle(slicer_app, panel)
    off = float(landmarks.ui.pairsTable.item(0, 1).text())
    projected = project(carm.camera, carm.pose, points)[0].numpy()
    assert off == pytest.approx(np.linalg.norm(projected - clicked, axis=1)[0], abs=0.06) and off > 5
    landmarks.ui.alignButton.click()
    settle(slicer_app, panel)
    assert panel.carm.pose.matrix.numpy() == pytest.approx(truth.matrix.numpy(), abs=1e-4)
    assert float(landmarks.ui.pairsTable.item(0, 1).text()) < 0.05
    sections(panel)["Move"].ui.undoButton.click()
    assert np.abs(panel.carm.pose.matrix.numpy() - truth.matrix.numpy()).max() > 1


def test_a_registration_runs_on_the_timer_to_its_end(panel, slicer_app):
    truth = panel.carm.pose
    panel.carm.move_arm(primary=4, secondary=-3, isocenter=panel.carm.arm.isocenter + 6)
    settle(slicer_app, panel)
    register = sections(panel)["Register"]
    poses, heights = [], []
    register.ui.registerButton.click()
    assert register.ui.cancelButton.enabled and not register.ui.registerButton.enabled
    assert not sections(panel)["Move"].root.enabled

    def done():
        poses.append(panel.carm.pose.matrix[0, 3].item())
        heights.append(register.ui.progressBar.value)
        return register.running is None

    slicer_app.wait_until(done, 120)
    settle(slicer_app, panel)
    assert len(set(poses)) > 4 and heights == sorted(heights)  # the C-arm moves while it runs, the bar never falls back
    center = panel.anatomy.center[None]
    in_camera = [pose.inverse().transform(center)[0].numpy() for pose in (panel.carm.pose, truth)]
    assert np.abs(in_camera[0] - in_camera[1])[:2].max() < 0.5
    assert register.ui.progressBar.value == register.ui.progressBar.maximum
    table = {register.ui.resultTable.item(row, 0).text(): row for row in range(register.ui.resultTable.rowCount)}
    assert "standard deviation, depth" in table and any("registration error" in name for name in table)
    assert sections(panel)["Move"].root.enabled and register.ui.registerButton.enabled
    chart = panel.carm.referred("convergence chart")
    assert register._plot.node.GetPlotChartNodeID() == chart.GetID()
    rows = panel.carm.referred("convergence table").GetTable().GetNumberOfRows()
    steps, similarity = (register._plot._view.chart().GetAxis(number) for number in (1, 0))
    assert steps.GetMinimum() <= 1 and steps.GetMaximum() >= rows > 1  # the axes grow with the curve
    assert similarity.GetMaximum() < 1.5 and similarity.GetMaximum() > similarity.GetMinimum() > 0


def test_cancel_keeps_the_best_pose_so_far(panel, slicer_app):
    panel.carm.move_arm(primary=5, isocenter=panel.carm.arm.isocenter + 10)
    settle(slicer_app, panel)
    start = panel.carm.pose.matrix.numpy().copy()
    register = sections(panel)["Register"]
    register.ui.registerButton.click()
    slicer_app.wait_until(lambda: np.abs(panel.carm.pose.matrix.numpy() - start).max() > 0.5, 120)
    register.ui.cancelButton.click()
    slicer_app.wait_until(lambda: register.running is None, 30)
    assert register.ui.progressText.text == "Cancelled: the best pose so far is kept."
    assert np.abs(panel.carm.pose.matrix.numpy() - start).max() > 0.5
    before, after = panel.outcome.similarity
    assert after > before


def test_cancel_before_the_first_step_moves_nothing(panel, slicer_app):
    panel.carm.move_arm(primary=5)
    settle(slicer_app, panel)
    start = panel.carm.pose.matrix.numpy().copy()
    register = sections(panel)["Register"]
    register.ui.registerButton.click()
    register.ui.cancelButton.click()
    slicer_app.wait_until(lambda: register.running is None, 30)
    assert register.ui.progressText.text == "Cancelled; nothing was moved."
    assert np.array_equal(panel.carm.pose.matrix.numpy(), start) and panel.outcome is None
    assert register.ui.registerButton.enabled


def test_closing_the_scene_in_the_middle_of_a_run_is_survived(panel, slicer_app):
    register = sections(panel)["Register"]
    panel.carm.move_arm(primary=5)
    register.ui.registerButton.click()
    for _ in range(5):
        slicer_app.process_events()
    slicer.mrmlScene.Clear()
    for _ in range(20):
        slicer_app.process_events()
    assert register.running is None and not register.timer.active
    assert panel.carm is None and panel.anatomy is None
    assert not slicer_app.messages
    panel.parameters.ct = add_phantom(slicer_app.scene)
    settle(slicer_app, panel)
    sections(panel)["Load"].ui.simulateButton.click()
    settle(slicer_app, panel)
    assert panel.carm.referred("drr") is not None


def test_saving_writes_pose_matrix_and_table(panel, slicer_app, tmp_path):
    keep = sections(panel)["Keep"]
    keep.ui.saveButton.click()
    assert "Choose a folder first" in slicer_app.messages[-1].text
    keep.ui.outputPath.currentPath = str(tmp_path / "out")
    keep.ui.saveButton.click()
    names = {path.name.rsplit("_", 1)[-1] for path in (tmp_path / "out").iterdir()}
    assert {"world.h5", "world.tfm", "world.txt"} <= names
    matrix = np.loadtxt(next((tmp_path / "out").glob("*projection_world.txt")))
    point = panel.anatomy.center + np.array([10, -20, 30])
    u, v, w = matrix[:, :3] @ point + matrix[:, 3]
    expected = project(panel.carm.camera, panel.carm.pose, point[None])[0, 0].tolist()
    assert (u / w, v / w) == pytest.approx(expected, abs=1e-6)
    settle(slicer_app, panel)
    shown = np.array([row.split() for row in keep.ui.projectionMatrix.plainText.splitlines()], dtype=float)
    assert shown == pytest.approx(matrix, rel=1e-6)


def volumes(scene):
    nodes = scene.GetNodesByClass("vtkMRMLScalarVolumeNode")
    return {nodes.GetItemAsObject(index).GetID() for index in range(nodes.GetNumberOfItems())}


def test_copies_do_not_follow_later_moves(panel, slicer_app):
    keep, before = sections(panel)["Keep"], volumes(slicer_app.scene)
    keep.ui.keepDRRButton.click()
    (added,) = volumes(slicer_app.scene) - before
    copy = slicer_app.scene.GetNodeByID(added)
    pixels = np.array(slicer.util.arrayFromVolume(copy))
    sections(panel)["Move"].ui.leftLateralButton.click()
    settle(slicer_app, panel)
    assert np.array_equal(slicer.util.arrayFromVolume(copy), pixels)
    assert not np.array_equal(slicer.util.arrayFromVolume(panel.carm.referred("drr")), pixels)
    keep.ui.resliceButton.click()
    assert len(volumes(slicer_app.scene) - before) == 2
    keep.ui.copyMatrixButton.click()
    assert not slicer_app.messages
