"""Runs tracked in the scene: bones that moved by a known screw are found again, and move as the browser plays."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import SimpleITK
import slicer
import slicer.util
import torch

from DiffDRRCore import CArm, Pose, Renderer, Volume
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene import tracking_course as courses
from DiffDRRSlicerLib.scene import tracking_keys as keys
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import set_rest
from DiffDRRSlicerLib.scene.body_parts import add_body
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.joints import add_joint
from DiffDRRSlicerLib.scene.tracking import SceneTracking, tracked
from DiffDRRSlicerLib.scene.tracking_results import kept_result, save_tracking
from DiffDRRSlicerLib.scene.tracking_run import find_run, require_run, use_run
from DiffDRRSlicerLib.scene.xrays import add_xray, core_xray
from Testing.scene import bones, kit

QUICK = {"sizes": (32, 48), "search": 0, "find_collimator": False}
QUICK["beyond_ends"] = True  # the patient of these images ends where the CT ends
FRAMES = 5
SIZE = 48, 52  # height, width
_made: dict[tuple, np.ndarray] = {}


def screw(frame: float) -> Pose:
    """Of the right bone: 0.01 rad and 1.5 mm or so a frame."""
    return Pose.exp(frame * torch.tensor([0.012, -0.01, 0.01, 1.0, -0.6, 1.2]).double())


class Case:
    """A CT of two bones below a turned transform, and runs of images of it in which bones move; nothing is tracked."""

    def __init__(self, scene, primaries=(0.0, 80.0), count=FRAMES, whole=False):
        self.scene = scene
        above = kit.add_transform(scene, kit.rigid(np.random.default_rng(11)), name="above")
        self.anatomy = Anatomy(bones.add_ct(scene, above), bones.add_labelmap(scene, above))
        self.carms, self.images = [], []
        for primary in primaries:
            arm = CArm(1000.0, 600.0, self.anatomy.center, primary, 5.0)
            camera = arm.camera(*SIZE, (6.5, 6.5), view_from="detector")
            seen = self.anatomy.pose_in_volume(arm.pose)
            run = [self.image(camera, seen, frame, whole) for frame in range(count)]
            name = f"View {primary:g}"
            self.carms.append(add_xray(scene, run[0], camera, arm.pose, {"intensity": "attenuation"}, name, 600.0))
            self.images.append(run)
        self.truths = [carm.pose for carm in self.carms]

    @staticmethod
    def image(camera, pose, frame, whole):
        """Bones added up, by moving their grids; `whole` moves all. Made once."""
        key = pose.matrix.numpy().tobytes(), frame, whole
        if key not in _made:
            _made[key] = Case._image(camera, pose, screw(frame), whole)
        return _made[key]

    @staticmethod
    def _image(camera, pose, motion, whole):
        hu, labels = (torch.from_numpy(one) for one in bones.voxels())
        total = 0.0
        for number in (0, 1, 2):
            part = torch.where(labels == number, hu.float(), torch.tensor(-1000.0))
            grid = bones.grid() if number != 2 and not whole else motion.matrix.numpy() @ bones.grid()
            total = total + Renderer(Volume(part, torch.from_numpy(grid)), integrator="siddon")(camera, pose)[0, 0]
        return total.numpy()

    def sequence(self, view=0, name="loaded run", missing=()):
        """As Slicer loads a run: a sequence of volumes of its own place."""
        node = self.scene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
        for number, image in enumerate(self.images[view]):
            if number in missing:
                continue
            volume = slicer.vtkMRMLScalarVolumeNode()
            slicer.util.updateVolumeFromArray(volume, image[None].astype(np.float32))
            node.SetDataNodeAtValue(volume, str(number))
        return node

    def use(self, missing=()):
        for view, carm in enumerate(self.carms):
            use_run(carm, self.sequence(view, f"loaded {view}", missing if view else ()), self.carms)
        return require_run(self.carms)

    def bones(self):
        left, right = (add_body(self.anatomy, [name], name) for name in bones.NAMES.values())
        left.locked = True
        return left, right

    def track(self, carms=None, **options):
        run = SceneTracking(self.anatomy, carms or self.carms, **{**QUICK, **options})
        return run, tracked(run.steps(), run)


def error(found, truth):
    """Mean distance in mm of the right bone's voxels under two motions."""
    points = kit.apply(bones.grid(), np.argwhere(bones.voxels()[1] == 2)[:, ::-1])
    matrices = [one.matrix.numpy() if isinstance(one, Pose) else np.asarray(one) for one in (found, truth)]
    return np.linalg.norm(kit.apply(matrices[0], points) - kit.apply(matrices[1], points), axis=1).mean()


def test_a_run_becomes_the_xrays_of_its_c_arm(scene):
    case = Case(scene, primaries=(0.0,))
    carm, image = case.carms[0], case.images[0]
    place, count = kit.to_world(carm.referred("xray")), scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")
    run = use_run(carm, case.sequence())
    assert len(run) == FRAMES and scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") == count + 1
    for number in (3, 0, 4):
        run.show(number)
        assert np.array_equal(core_xray(carm).image.numpy(), image[number].astype(np.float32))
        assert np.array_equal(kit.to_world(carm.referred("xray")), place)
        assert run.frame == number and torch.equal(run.xray(carm, number).image, core_xray(carm).image)
    again = use_run(carm, case.sequence())
    assert find_run([carm]).browser is again.browser and len(again) == FRAMES
    assert scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") == count + 1
    with pytest.raises(SceneError, match="there is no frame 5"):
        again.show(5)


def test_bones_are_found_in_all_frames_and_move_as_the_browser_plays(scene):
    case = Case(scene)
    run = case.use(missing=(2,))
    left, right = case.bones()
    set_rest(case.anatomy.ct, "stays")
    names = left.node.GetName(), right.node.GetName()
    _, result = case.track(target="bodies", smooth=False)
    assert not result.lost and result.frames == tuple(range(FRAMES))
    assert result.seen.tolist()[2] == [True, False]
    assert courses.moved_nodes(run) == [right.node]
    for number in (4, 0, 2, 3, 1):
        run.show(number)
        assert error(right.motion(case.anatomy), screw(number)) < (2.0 if number == 2 else 0.8)  # one view: its depth
        assert error(left.motion(case.anatomy), Pose.identity()) < 1e-9
        shown = nodes.parent_to_world(right.surface)
        assert error(shown, case.anatomy.to_world @ right.motion(case.anatomy)) < 1e-9
        assert all(error(carm.pose, truth) < 1e-9 for carm, truth in zip(case.carms, case.truths, strict=True))
    run.show(0)
    right.locked = True
    run.show(3)  # what was set since is not overwritten by the browser
    assert right.locked and (left.node.GetName(), right.node.GetName()) == names
    sequence = courses.sequence_of(right.node, courses.UNSMOOTHED)
    assert sequence.GetNumberOfDataNodes() == FRAMES
    assert error(nodes.transform_to_parent(sequence.GetNthDataNode(3)), result.motion("right bone").matrices[3]) < 1e-6


@pytest.mark.parametrize("target", ["carm", "patient"])
def test_a_ct_that_moves_as_one_is_found(scene, target):
    case = Case(scene, whole=True)
    run = case.use()
    before = nodes.parent_to_world(case.anatomy.ct)
    _, result = case.track(target=target)
    assert result.bodies == ("CT",) and not result.lost
    for number in range(FRAMES):
        run.show(number)
        for carm, truth in zip(case.carms, case.truths, strict=True):
            seen = screw(number).inverse() @ Pose(np.linalg.inv(before)) @ truth
            assert error(case.anatomy.pose_in_volume(carm.pose).inverse(), seen.inverse()) < 0.8
        moved = error(nodes.parent_to_world(case.anatomy.ct), before) > 1e-6
        assert moved == (target == "patient")


def test_keyframes_are_starts_and_are_kept_on_the_nodes(scene):
    """The bone jumps by more than what follows; the keyframe leads there."""
    case = Case(scene)
    run = case.use()
    _, right = case.bones()
    run.show(1)
    right.move(case.anatomy, screw(1.5))
    assert keys.set_keyframe(run, case.anatomy) == 1
    run.show(4)
    right.move(case.anatomy, screw(3.5))
    keys.set_keyframe(run, case.anatomy)
    right.put_back(case.anatomy)
    assert keys.keyframes(run) == [1, 4]
    keys.show_keyframe(run, case.anatomy, 1, "bodies")
    assert run.frame == 1 and error(right.motion(case.anatomy), screw(1.5)) < 1e-9
    _, result = case.track(target="bodies", first=1)
    assert result.keyframes == (1, 4) and result.frames == (1, 2, 3, 4)
    assert run.frame == 1 and error(right.motion(case.anatomy), screw(1)) < 0.8
    keys.remove_keyframe(run, case.anatomy, 4)
    assert keys.keyframes(run) == [1]
    run.show(4)
    assert keys.keyframes(run) == [1] and error(right.motion(case.anatomy), screw(4)) < 0.8


def test_a_keyframe_counts_as_it_was_even_where_the_c_arm_has_moved_since(scene):
    case = Case(scene, whole=True)
    run = case.use()
    keys.set_keyframe(run, case.anatomy)
    shift = Pose.exp(torch.tensor([0.2, 0.1, -0.1, 30.0, -20.0, 10.0]).double())
    for carm in case.carms:
        carm.pose = shift @ carm.pose
    _, result = case.track(target="carm", last=2)
    assert not result.lost
    for carm, truth in zip(case.carms, case.truths, strict=True):
        assert error(carm.pose.inverse(), truth.inverse()) < 0.8


def test_smoothed_and_not_are_both_there_and_tracking_again_replaces_them(scene):
    case = Case(scene, count=4)
    run = case.use()
    _, right = case.bones()
    _, result = case.track(target="bodies")
    assert result.is_smoothed
    count = kit.node_ids(scene)
    found = {}
    for kind, motions in ((courses.UNSMOOTHED, result.unsmoothed), (courses.SMOOTHED, result.motions)):
        courses.show_variant(run, [right.node], kind)
        run.show(0)
        run.show(2)
        found[kind] = right.motion(case.anatomy)
        assert error(found[kind], motions.matrix[2, result.number("right bone")]) < 1e-6
    assert error(*found.values()) > 1e-6
    _, again = case.track(target="bodies", first=0, last=2)
    assert len(kit.node_ids(scene)) == len(count) and again.frames == (0, 1, 2)
    run.show(3)  # beyond: as in the last one
    assert error(right.motion(case.anatomy), again.motions.matrix[2, again.number("right bone")]) < 1e-6
    courses.remove_courses(run)
    assert courses.moved_nodes(run) == [] and error(right.motion(case.anatomy), screw(2)) < 0.8
    run.show(0)
    assert error(right.motion(case.anatomy), screw(2)) < 0.8


def test_steps_leave_frames_that_are_interpolated(scene):
    case = Case(scene, whole=True)
    case.use()
    _, result = case.track(step=2)
    assert result.interpolated.tolist() == [False, True, False, True, False] and not result.lost


def test_cancelled_keeps_what_is_done(scene):
    case = Case(scene, count=3)
    run = case.use()
    _, right = case.bones()
    job = SceneTracking(case.anatomy, case.carms, target="bodies", **QUICK)
    result = tracked(job.steps(), job, lambda step: "2 of" not in step.text)
    assert job.ending == "Cancelled: the frames so far are kept."
    assert set(result.lost) == {2} and "stopped" in result.lost[2]
    run.show(1)
    assert error(right.motion(case.anatomy), screw(1)) < 0.8
    case.track(target="bodies", smooth=False)
    job = SceneTracking(case.anatomy, case.carms, target="bodies", **QUICK)
    assert tracked(job.steps(), job, lambda step: False) is None and "nothing was moved" in job.ending
    assert error(right.motion(case.anatomy), screw(1)) < 0.8


def test_an_error_puts_all_back(scene):
    case = Case(scene)
    run = case.use()
    _, right = case.bones()
    run.show(2)
    away = Pose.exp(torch.tensor([0.0, 0, 0, 4000.0, 4000.0, 4000.0]).double())
    right.move(case.anatomy, away)
    places = [carm.to_world for carm in case.carms]
    with pytest.raises(ValueError, match=r"\w"):
        case.track(target="carm", options_that_are_not=1)
    with pytest.raises(ValueError, match=r"\w"):
        case.track(target="bodies")
    assert run.frame == 2 and error(right.motion(case.anatomy), away) < 1e-9
    assert all(np.array_equal(carm.to_world, place) for carm, place in zip(case.carms, places, strict=True))


def test_what_cannot_be_tracked_is_said_in_a_sentence(scene):
    case = Case(scene, count=3)
    first, second = case.carms
    with pytest.raises(SceneError, match="'View 0' is a single image: choose its run"):
        SceneTracking(case.anatomy, case.carms)
    use_run(first, case.sequence(0))
    use_run(second, case.sequence(1))
    with pytest.raises(SceneError, match="do not play together"):
        SceneTracking(case.anatomy, case.carms)
    case.use()
    with pytest.raises(SceneError, match="two frames or more; register"):
        SceneTracking(case.anatomy, case.carms, first=1, last=1)
    with pytest.raises(SceneError, match="frames 0 to 2; frames 0 to 7"):
        SceneTracking(case.anatomy, case.carms, last=7)
    with pytest.raises(SceneError, match="no bones to move"):
        SceneTracking(case.anatomy, case.carms, target="bodies")
    with pytest.raises(SceneError, match="track the run first"):
        save_tracking(require_run(case.carms), "motions.csv")
    ids = kit.node_ids(scene)
    small = kit.add_volume(scene, np.zeros((3, 8, 9)), np.eye(4), name="small")
    with pytest.raises(SceneError, match="8 x 9 pixels"):
        use_run(first, small)
    one = kit.add_volume(scene, np.zeros((1, *SIZE)), np.eye(4), name="one")
    with pytest.raises(SceneError, match="this one has one"):
        use_run(first, one)
    assert kit.node_ids(scene) - ids == {small.GetID(), one.GetID()}
    assert len(require_run(case.carms)) == 3


def test_motions_are_kept_with_the_scene_and_written(scene, tmp_path):
    case = Case(scene, count=3)
    run = case.use()
    case.bones()
    _, result = case.track(target="bodies")
    kept = kept_result(run)
    assert torch.equal(kept.unsmoothed.matrix, result.unsmoothed.matrix) and not kept.is_smoothed
    path = save_tracking(run, tmp_path / "motions.csv")
    with path.open(encoding="utf-8") as file:
        assert len(list(csv.reader(file))) > 3
    rows = np.loadtxt(save_tracking(run, tmp_path / "motions.tra", smooth=False), delimiter=",")
    number = kept.number("right bone")
    numbers = rows.reshape(3, len(kept.bodies), 16)[:, number].reshape(3, 4, 4)
    assert np.allclose(numbers, kept.unsmoothed.matrix[:, number], atol=1e-5)
    with pytest.raises(ValueError, match=r"\.csv or \.tra"):
        save_tracking(run, tmp_path / "motions.txt")


def test_a_file_of_many_frames_is_a_run(scene, tmp_path):
    case = Case(scene, primaries=(0.0,), count=3)
    path = tmp_path / "run.nrrd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack(case.images[0]).astype(np.float32)), str(path))
    run = use_run(case.carms[0], path)
    for number in range(3):
        assert np.allclose(run.xray(case.carms[0], number).image, case.images[0][number])


def test_a_stiff_joint_of_the_scene_keeps_the_bones_together(scene):
    """The images show one bone that moves; with 0.01 mm and degrees both stay together, and without the joint not."""
    case = Case(scene, primaries=(0.0,), count=3)
    case.use()
    left, right = (add_body(case.anatomy, [name], name) for name in bones.NAMES.values())
    set_rest(case.anatomy.ct, "left out")
    joint = add_joint(case.anatomy, left, right, deviations=(0.01,) * 6, weight=1.0)
    apart = []
    for _ in range(2):
        _, result = case.track(target="bodies", similarity="zncc", smooth=False)
        one, other = (result.motion(name).matrices[2] for name in bones.NAMES.values())
        change = np.linalg.inv(one.numpy()) @ other.numpy()
        apart.append(np.linalg.norm(change[:3, 3]))
        nodes.remove_node(joint.node)
        for body in (left, right):
            body.put_back(case.anatomy)
    assert apart[0] < 0.3 and apart[1] > 1.0
