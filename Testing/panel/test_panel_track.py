"""The section Track as a user meets it: a run, its frames, keyframes, Track, Cancel, lost frames, smoothing, Save."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer.util
import torch

from DiffDRRCore import Pose
from DiffDRRSlicerLib.choices import Moves
from Testing.panel.kit import add_phantom, load_scene, save_scene, sections, settle

SIZE = 48
COUNT = 4


def moved(frame):
    """How the patient moves: about 0.6 degrees and 2 mm a frame."""
    return Pose.exp(frame * torch.tensor([0.006, -0.006, 0.006, 1.2, 1.0, -1.2]).double())


@pytest.fixture
def widget(make_widget):
    return make_widget("DiffDRRSlicer")


@pytest.fixture
def panel(widget, slicer_app):
    """With a phantom and its X-ray, the section open; nothing is a run yet."""
    panel = widget.panel
    panel.parameters.ct = add_phantom(slicer_app.scene, shape=(24, 18, 21), spacing=16.0)
    panel.parameters.carm = panel.logic.createCArm(panel.parameters.ct, SIZE, SIZE, (8.0, 8.0))
    sections(panel)["Track"].button.collapsed = False
    settle(slicer_app, panel)
    add_run(panel, slicer_app.scene)
    settle(slicer_app, panel)
    return panel


def add_run(panel, scene, blank=()):
    """An X-ray of the phantom, and a sequence of images in which it moves, as Slicer loads one."""
    from DiffDRRSlicerLib.scene.xrays import add_xray

    carm, renderer = panel.carm, panel.anatomy.renderer()
    images = [renderer(carm.camera, moved(frame).inverse() @ carm.pose)[0, 0].numpy() for frame in range(COUNT)]
    images = [image * (number not in blank) for number, image in enumerate(images)]
    run = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "run")
    for number, image in enumerate(images):
        volume = slicer.vtkMRMLScalarVolumeNode()
        slicer.util.updateVolumeFromArray(volume, image[None])
        run.SetDataNodeAtValue(volume, str(number))
    made = add_xray(scene, images[0], carm.camera, carm.pose, {"intensity": "attenuation"}, "shot", 750.0)
    scene.RemoveNode(carm.node)
    panel.parameters.carm, panel.parameters.trackImages = made.node, run


def ui(panel):
    return sections(panel)["Track"].ui


def press(app, panel, name):
    getattr(ui(panel), name).click()
    settle(app, panel)


def tracked(app, panel):
    ui(panel).trackButton.click()
    app.wait_until(lambda: sections(panel)["Track"].running is None, 60)
    settle(app, panel)
    assert not app.messages, app.messages[-1].text


def error(panel, truth, frame):
    """mm across the beam, of the CT's centre in the camera: one view tells little of the depth."""
    center = [*panel.anatomy.center, 1.0]
    found = np.linalg.inv(panel.carm.to_world) @ center
    wanted = np.linalg.inv(truth) @ moved(frame).matrix.numpy() @ center
    return np.linalg.norm((found - wanted)[:2])


def test_a_single_image_is_no_run_until_one_is_chosen(slicer_app, panel):
    widgets = ui(panel)
    assert "is a single image" in widgets.runText.text and not widgets.trackButton.enabled
    assert not widgets.frameSlider.enabled and not widgets.setKeyframeButton.enabled
    press(slicer_app, panel, "useRunButton")
    assert widgets.runText.text == f"{COUNT} frames of shot." and widgets.trackButton.enabled
    assert widgets.frameSlider.maximum == COUNT - 1
    panel.parameters.trackImages = None
    press(slicer_app, panel, "useRunButton")
    assert "Choose the run's images first" in slicer_app.messages[-1].text


def test_slider_and_browser_follow_each_other(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    browser = sections(panel)["Track"].run.browser
    ui(panel).frameSlider.value = 2
    settle(slicer_app, panel)
    assert browser.GetSelectedItemNumber() == 2
    browser.SetSelectedItemNumber(3)
    settle(slicer_app, panel)
    assert ui(panel).frameSlider.value == 3


def test_track_moves_the_c_arm_over_the_frames_and_the_files_are_written(slicer_app, panel, tmp_path):
    press(slicer_app, panel, "useRunButton")
    truth, widgets = panel.carm.to_world, ui(panel)
    assert not widgets.saveMotionsButton.enabled and not widgets.lostTable.visible
    tracked(slicer_app, panel)
    assert widgets.trackText.text == f"{COUNT} of {COUNT} frames found, 0 lost."
    errors = []
    for frame in (3, 1, 2, 0):
        widgets.frameSlider.value = frame
        settle(slicer_app, panel)
        errors.append(error(panel, truth, frame))
    assert max(errors) < 0.5 and error(panel, truth, 3) > 2.0
    from DiffDRRSlicerLib.scene import tracking_course as courses

    course = courses.course_of(panel.carm.node)
    browser = sections(panel)["Track"].run.browser
    assert browser.GetSequenceNode(course) is courses.sequence_of(panel.carm.node, "motion")
    widgets.trackSmooth.click()
    settle(slicer_app, panel)
    assert browser.GetSequenceNode(course) is courses.sequence_of(panel.carm.node, "motion unsmoothed")
    for name in ("motions.csv", "motions.tra"):
        widgets.motionsPath.currentPath = str(tmp_path / name)
        press(slicer_app, panel, "saveMotionsButton")
        assert (tmp_path / name).stat().st_size > 100
    assert not panel.can_undo
    panel.carm.move_arm(primary=20.0)  # off its motion, which has it back with the next frame
    widgets.frameSlider.value = 1
    settle(slicer_app, panel)
    assert error(panel, truth, 1) < 0.5


def test_keyframes_are_set_listed_shown_and_removed(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    widgets = ui(panel)
    widgets.frameSlider.value = 2
    settle(slicer_app, panel)
    panel.carm.move_arm(primary=3.0)
    place = panel.carm.to_world
    press(slicer_app, panel, "setKeyframeButton")
    panel.carm.move_arm(primary=0.0)
    widgets.frameSlider.value = 0
    settle(slicer_app, panel)
    press(slicer_app, panel, "setKeyframeButton")
    assert [widgets.keyframesTable.item(row, 0).text() for row in range(widgets.keyframesTable.rowCount)] == [
        "Frame 0",
        "Frame 2",
    ]
    widgets.keyframesTable.cellClicked(1, 0)
    settle(slicer_app, panel)
    assert widgets.frameSlider.value == 2 and np.allclose(panel.carm.to_world, place)
    press(slicer_app, panel, "removeKeyframeButton")
    assert widgets.keyframesTable.rowCount == 1
    press(slicer_app, panel, "removeKeyframeButton")
    assert "Frame 2 has no keyframe" in slicer_app.messages[-1].text


def test_lost_frames_are_listed_and_shown_by_a_click(slicer_app, panel):
    add_run(panel, slicer_app.scene, blank=(2,))
    settle(slicer_app, panel)
    press(slicer_app, panel, "useRunButton")
    tracked(slicer_app, panel)
    widgets = ui(panel)
    assert "1 lost" in widgets.trackText.text and widgets.lostTable.rowCount == 1
    assert widgets.lostTable.item(0, 1).text() == "2" and len(widgets.lostTable.item(0, 0).text()) > 10
    widgets.lostTable.cellClicked(0, 0)
    settle(slicer_app, panel)
    assert widgets.frameSlider.value == 2


def test_the_panel_is_alive_and_cancel_keeps_the_frames_so_far(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    widgets, section = ui(panel), sections(panel)["Track"]
    widgets.trackButton.click()
    assert panel.running and not sections(panel)["Move"].root.enabled
    slicer_app.wait_until(lambda: widgets.trackText.text.startswith("Frame"), 30)
    assert not widgets.frameSlider.enabled and widgets.cancelTrackButton.enabled
    widgets.cancelTrackButton.click()
    slicer_app.wait_until(lambda: section.running is None, 30)
    settle(slicer_app, panel)
    assert "Cancelled: the frames so far are kept." in widgets.trackText.text and not slicer_app.messages
    assert sections(panel)["Move"].root.enabled and widgets.frameSlider.enabled


def test_what_is_wrong_is_one_sentence(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    panel.parameters.trackLast = 0
    press(slicer_app, panel, "trackButton")
    assert "two frames or more" in slicer_app.messages[-1].text and not panel.running
    panel.parameters.trackLast = -1
    panel.parameters.moves = Moves.BODIES
    press(slicer_app, panel, "trackButton")
    assert "no bones to move" in slicer_app.messages[-1].text
    press(slicer_app, panel, "saveMotionsButton")
    assert len(slicer_app.messages) == 2  # it is not enabled


def test_a_saved_scene_plays_its_motions(slicer_app, panel, tmp_path):
    press(slicer_app, panel, "useRunButton")
    press(slicer_app, panel, "setKeyframeButton")
    tracked(slicer_app, panel)
    ui(panel).frameSlider.value = 3
    settle(slicer_app, panel)
    place = panel.carm.to_world
    load_scene(slicer_app.scene, save_scene(slicer_app.scene, tmp_path / "saved"))
    settle(slicer_app, panel)
    sections(panel)["Track"].button.collapsed = False
    settle(slicer_app, panel)
    widgets = ui(panel)
    assert widgets.trackText.text == f"{COUNT} of {COUNT} frames found, 0 lost." and widgets.frameSlider.value == 3
    widgets.frameSlider.value = 0
    settle(slicer_app, panel)
    assert not np.allclose(panel.carm.to_world, place, atol=0.1) and widgets.keyframesTable.rowCount == 1
    widgets.frameSlider.value = 3
    settle(slicer_app, panel)
    assert np.allclose(panel.carm.to_world, place, atol=1e-4)


def test_the_logic_does_the_same_from_a_script(slicer_app, panel):
    logic, ct, carm, run = panel.logic, panel.parameters.ct, panel.parameters.carm, panel.parameters.trackImages
    browser = logic.useRun(carm, run)
    logic.setKeyframe(carm, ct, frame=1)
    assert logic.keyframes(carm) == [1] and browser.GetSelectedItemNumber() == 1
    logic.removeKeyframe(carm, ct, 1)
    browser.SetSelectedItemNumber(0)
    result = logic.track(carm, ct, sizes=(32, 48), search=0, last=2)
    assert result.frames == (0, 1, 2) and not result.lost
    assert logic.motionSequence(carm).GetNumberOfDataNodes() == COUNT
    logic.showSmoothed(carm, False)
    assert browser.GetProxyNode(logic.motionSequence(carm, False)) is carm.GetParentTransformNode()


def keep_hinge(panel, degrees=5.0):
    """As if two bones had been tracked, of which the second turns about the CT's left-right axis."""
    from DiffDRRCore.registration.tracking import TrackingResult
    from DiffDRRSlicerLib.scene.tracking_results import keep_result

    turns = [Pose.exp([np.radians(degrees * frame), 0, 0, 0, 0, 0]).matrix for frame in range(COUNT)]
    motions = Pose(torch.stack([torch.stack([torch.eye(4).double(), turn.double()]) for turn in turns]))
    result = TrackingResult(
        tuple(range(COUNT)),
        ("femur", "tibia"),
        motions,
        motions,
        1e-6 * torch.eye(6, dtype=torch.float64).repeat(COUNT, 2, 1, 1),
        torch.zeros(2, 3, dtype=torch.float64),
        Pose(torch.eye(4, dtype=torch.float64).repeat(COUNT, 1, 1, 1)),
        torch.ones(COUNT, dtype=torch.float64),
        torch.ones(COUNT, 1, dtype=torch.bool),
        torch.zeros(COUNT, dtype=torch.bool),
    )
    keep_result(sections(panel)["Track"].run, result)
    panel.changed()


def choose_bones(app, panel, proximal, distal):
    widgets = ui(panel)
    for combo, row in ((widgets.trackProximalSelector, proximal), (widgets.trackDistalSelector, distal)):
        combo.currentIndex = row
        combo.activated(row)
    settle(app, panel)


def of_tracking(scene):
    """Nodes that are there for motions and angles alone."""
    classes = "vtkMRMLTableNode", "vtkMRMLPlotSeriesNode", "vtkMRMLPlotChartNode", "vtkMRMLTextNode"
    return [scene.GetNumberOfNodesByClass(name) for name in classes]


def test_joint_angles_of_two_bones_are_shown_saved_and_removed(slicer_app, panel, tmp_path):
    press(slicer_app, panel, "useRunButton")
    widgets, before = ui(panel), of_tracking(slicer_app.scene)
    assert "Track two bones or more" in widgets.trackJointText.text
    widgets.trackJointsGroup.collapsed = False
    keep_hinge(panel)
    settle(slicer_app, panel)
    combo = widgets.trackDistalSelector
    assert [combo.itemText(row) for row in range(combo.count)] == ["(none)", "femur", "tibia"]
    choose_bones(slicer_app, panel, 1, 2)
    table = widgets.trackJointTable
    shown = [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]
    assert shown == [
        ["0", "0.0", "0.0"],
        ["1", "-5.0", "0.0"],
        ["2", "-10.0", "0.0"],
        ["3", "-15.0", "0.0"],
    ]
    table.cellClicked(2, 0)
    settle(slicer_app, panel)
    assert widgets.frameSlider.value == 2
    widgets.motionsPath.currentPath = str(tmp_path / "knee.tra")
    press(slicer_app, panel, "saveMotionsButton")
    rows = (tmp_path / "knee_joint.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == COUNT + 1 and rows[2].startswith("1,-5.0") and not slicer_app.messages
    choose_bones(slicer_app, panel, 1, 1)
    assert "two bones" in widgets.trackJointText.text and table.rowCount == 0
    choose_bones(slicer_app, panel, 1, 0)
    added = [after - count for after, count in zip(of_tracking(slicer_app.scene), before, strict=True)]
    assert added == [0, 0, 0, 1]  # the tracking itself


def test_a_saved_scene_has_its_joint_angles(slicer_app, panel, tmp_path):
    press(slicer_app, panel, "useRunButton")
    keep_hinge(panel)
    settle(slicer_app, panel)
    choose_bones(slicer_app, panel, 1, 2)
    count = of_tracking(slicer_app.scene)
    load_scene(slicer_app.scene, save_scene(slicer_app.scene, tmp_path / "saved"))
    settle(slicer_app, panel)
    sections(panel)["Track"].button.collapsed = False
    settle(slicer_app, panel)
    assert ui(panel).trackJointTable.item(3, 1).text() == "-15.0" and of_tracking(slicer_app.scene) == count


def scripted_joint(panel):
    """As `logic.jointAngles` makes its table and plots, for which nothing is chosen in the panel."""
    from DiffDRRSlicerLib.scene import tracking_joints as of

    run, joint = sections(panel)["Track"].run, of.Joint("femur", "tibia")
    of.show_joint(run, joint, *of.joint_course(run, panel.anatomy, joint))


def test_joint_angles_of_a_script_stay_until_something_else_is_tracked(slicer_app, panel, tmp_path):
    press(slicer_app, panel, "useRunButton")
    keep_hinge(panel)
    settle(slicer_app, panel)
    scripted_joint(panel)
    count, table = of_tracking(slicer_app.scene), ui(panel).trackJointTable
    ui(panel).trackSmooth.click()
    settle(slicer_app, panel)
    assert of_tracking(slicer_app.scene) == count and table.item(3, 1).text() == "-15.0"
    ct, panel.parameters.ct = panel.parameters.ct, None
    settle(slicer_app, panel)
    panel.parameters.ct = ct
    settle(slicer_app, panel)
    assert of_tracking(slicer_app.scene) == count
    load_scene(slicer_app.scene, save_scene(slicer_app.scene, tmp_path / "saved"))
    settle(slicer_app, panel)
    sections(panel)["Track"].button.collapsed = False
    settle(slicer_app, panel)
    assert of_tracking(slicer_app.scene) == count and table.item(3, 1).text() == "-15.0"
    keep_hinge(panel, 6.0)
    settle(slicer_app, panel)
    assert of_tracking(slicer_app.scene) == [0, 0, 0, count[3]] and table.rowCount == 0


def test_joint_angles_are_computed_when_the_ct_is_chosen(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    keep_hinge(panel)
    ct, panel.parameters.ct = panel.parameters.ct, None
    settle(slicer_app, panel)
    choose_bones(slicer_app, panel, 1, 2)
    assert ui(panel).trackJointTable.rowCount == 0
    panel.parameters.ct = ct
    settle(slicer_app, panel)
    assert ui(panel).trackJointTable.rowCount == COUNT


@pytest.mark.parametrize("what", ["C-arm", "browser", "course"])
def test_what_is_deleted_leaves_nothing_behind(slicer_app, panel, what):
    """Node by node: what only the C-arm needs goes with it, motions with their browser; what was moved stays there.

    Images stay as long as their C-arm: they cannot be computed again.
    """
    scene = slicer_app.scene
    press(slicer_app, panel, "useRunButton")
    section = sections(panel)["Track"]
    ui(panel).trackStepSpinBox.value = 1
    panel.parameters.trackLast = 1
    tracked(slicer_app, panel)
    keep_hinge(panel)
    settle(slicer_app, panel)
    choose_bones(slicer_app, panel, 1, 2)
    from DiffDRRSlicerLib.scene import tracking_course as courses

    carm, course, browser = panel.carm.node, courses.course_of(panel.carm.node), section.run.browser
    place = panel.carm.to_world
    sequences = "vtkMRMLSequenceNode"
    given = 1  # the sequence that the run was copied from
    scene.RemoveNode({"C-arm": carm, "browser": browser, "course": course}[what])
    settle(slicer_app, panel)
    assert not slicer_app.messages
    if what == "C-arm":
        assert of_tracking(scene) == [0, 0, 0, 0]
        assert scene.GetNumberOfNodesByClass(sequences) == given
        assert scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") == 0 and course.GetScene() is None
        return
    assert np.allclose(panel.carm.to_world, place, atol=1e-6)
    assert courses.course_of(carm) is None and courses.sequence_of(carm) is None
    assert scene.GetNumberOfNodesByClass(sequences) == given + 1
    if what == "browser":
        assert "is a single image" in ui(panel).runText.text


@pytest.mark.parametrize("masks", [False, True])
def test_images_are_put_from_one_browser_into_another(slicer_app, panel, masks):
    """They are in none for a while, in which the panel looks at the scene; those of a simulated sweep, and of a run."""
    if masks:
        from DiffDRRCore.physics.devices import orbit
        from DiffDRRSlicerLib.scene import simulation, simulation_settings, sweeps
        from DiffDRRSlicerLib.scene.anatomy import Anatomy

        labelled = Anatomy(*add_phantom(slicer_app.scene, "labelled", shape=(24, 18, 21), spacing=16.0, labels=True))
        scanned = simulation.Scanned(labelled, simulation_settings.Settings(noise=False, energy=70.0))
        made = sweeps.simulate_sweep(
            slicer_app.scene, scanned, panel.carm.camera, orbit(panel.carm.arm, 0.0, 4.0, 2), masks=True
        )
        browser, kept = made.browser, [one for one in (made.images, made.masks) if one is not None]
        assert len(kept) == 2
    else:
        press(slicer_app, panel, "useRunButton")
        browser = sections(panel)["Track"].run.browser
        kept = [browser.GetSequenceNode(panel.carm.referred("xray"))]
    counts = [sequence.GetNumberOfDataNodes() for sequence in kept]
    for sequence in kept:
        browser.RemoveSynchronizedSequenceNode(sequence.GetID())
    settle(slicer_app, panel)
    assert all(sequence.GetScene() is slicer_app.scene for sequence in kept)
    assert [sequence.GetNumberOfDataNodes() for sequence in kept] == counts
    other = slicer_app.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "other")
    for sequence in kept:
        other.AddSynchronizedSequenceNodeID(sequence.GetID())
    settle(slicer_app, panel)
    assert other.GetNumberOfSynchronizedSequenceNodes(True) == len(kept)


def test_a_run_is_loaded_from_a_file_or_from_numbered_images(slicer_app, panel, tmp_path):
    import SimpleITK

    pixels = np.stack([np.full((SIZE, SIZE), 100.0 * number, np.float32) for number in range(3)])
    widgets = ui(panel)
    for number, image in enumerate(pixels, start=8):
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(image.astype(np.uint16)), str(tmp_path / f"shot{number:03}.tif")
        )
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels), str(tmp_path / "frames.nrrd"))
    press(slicer_app, panel, "loadRunButton")
    assert "Choose a file of the run first" in slicer_app.messages.pop().text
    shot, before = panel.carm, slicer.util.arrayFromVolume(panel.carm.referred("xray")).copy()
    for name in ("frames.nrrd", "shot009.tif"):  # the second is the same run, from other files
        widgets.runPath.currentPath = str(tmp_path / name)
        if name != "frames.nrrd":
            (tmp_path / "frames.nrrd").unlink()
        press(slicer_app, panel, "loadRunButton")
        assert not slicer_app.messages and widgets.runText.text.startswith("3 frames of frames.")
    assert panel.carm != shot and before.any()
    assert np.array_equal(slicer.util.arrayFromVolume(shot.referred("xray")), before)
    count = slicer_app.scene.GetNumberOfNodes()
    (tmp_path / "alone").mkdir()
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(7 + pixels[:1]), str(tmp_path / "alone" / "single1.nrrd"))
    widgets.runPath.currentPath = str(tmp_path / "alone" / "single1.nrrd")
    press(slicer_app, panel, "loadRunButton")
    assert "this one has one" in slicer_app.messages.pop().text and slicer_app.scene.GetNumberOfNodes() == count
    widgets.runPath.currentPath = str(tmp_path / "shot009.tif")
    panel.parameters.carm = None
    settle(slicer_app, panel)
    press(slicer_app, panel, "loadRunButton")
    assert not slicer_app.messages and panel.carm is not None and widgets.runText.text.startswith("3 frames of shot009")
