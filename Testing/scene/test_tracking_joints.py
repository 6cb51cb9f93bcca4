"""Joint angles of a run in the scene: hinges turned by known angles, table, plots and file."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from DiffDRRCore import CArm, Pose
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.geometry import stack_poses
from DiffDRRCore.registration.tracking import TrackingResult
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.body_parts import add_body
from DiffDRRSlicerLib.scene.carm import belongings, remove_carm
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.tracking_joints import (
    Joint,
    Side,
    clear_joint,
    joint_charts,
    joint_course,
    joint_rows,
    save_joint,
    show_joint,
)
from DiffDRRSlicerLib.scene.tracking_results import keep_result
from DiffDRRSlicerLib.scene.tracking_run import use_run
from DiffDRRSlicerLib.scene.xrays import add_xray
from Testing.scene import bones, kit

FRAMES = 4
PIVOT = (12.0, -7.0, 30.0)
ROOM = Pose.exp(torch.tensor([0.3, -0.2, 0.1, 5.0, 6.0, -7.0]).double())  # both bones move so as well, a frame


def turned(axis: int, degrees: float, shift=(0.0, 0.0, 0.0)) -> Pose:
    """About an axis of the CT through the pivot, then a shift."""
    turn = np.zeros(6)
    turn[axis] = np.radians(degrees)
    there = np.eye(4)
    there[:3, 3] = PIVOT
    matrix = there @ Pose.exp(torch.from_numpy(turn)).matrix.numpy() @ np.linalg.inv(there)
    matrix[:3, 3] += shift
    return Pose(matrix)


class Case:
    """A run of two bones whose tracking is said to have found these motions of the distal one."""

    def __init__(self, scene, distal, lost=()):
        above = kit.add_transform(scene, kit.rigid(np.random.default_rng(11)), name="above")
        self.anatomy = Anatomy(bones.add_ct(scene, above), bones.add_labelmap(scene, above))
        self.bodies = [add_body(self.anatomy, [name], name) for name in bones.NAMES.values()]
        arm = CArm(1000.0, 600.0, self.anatomy.center)
        camera = arm.camera(8, 8, (40.0, 40.0), view_from="detector")
        image = np.zeros((8, 8), np.float32)
        self.carm = add_xray(scene, image, camera, arm.pose, {"intensity": "attenuation"}, "View", 600.0)
        self.run = use_run(self.carm, kit.add_volume(scene, np.zeros((FRAMES, 8, 8)), np.eye(4), name="images"))
        keep_result(self.run, self._result([[ROOM] * FRAMES, [ROOM @ one for one in distal]], lost))
        self.joint = Joint(*bones.NAMES.values())

    @staticmethod
    def _result(motions, lost):
        found = Pose(torch.stack([stack_poses(list(row)).matrix for row in zip(*motions, strict=True)]))
        return TrackingResult(
            tuple(range(FRAMES)),
            tuple(bones.NAMES.values()),
            found,
            found,
            1e-6 * torch.eye(6, dtype=torch.float64).repeat(FRAMES, 2, 1, 1),
            torch.tensor([[0.0, 0.0, 0.0], PIVOT], dtype=torch.float64),
            Pose(torch.eye(4, dtype=torch.float64).repeat(FRAMES, 1, 1, 1)),
            torch.ones(FRAMES, dtype=torch.float64),
            torch.ones(FRAMES, 1, dtype=torch.bool),
            torch.tensor([frame in lost for frame in range(FRAMES)]),
            dict.fromkeys(lost, "blank"),
        )

    def angles(self, joint=None, **options):
        options = {"smooth": False, **options}
        _, motion = joint_course(self.run, self.anatomy, joint or self.joint, **options)
        return torch.cat([motion.angles, motion.translations], dim=-1).numpy()

    def points(self, positions, below=None):
        node = self.carm.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "axes")
        if below is not None:
            node.SetAndObserveTransformNodeID(below.GetID())
        for position in positions:
            node.AddControlPoint(*position)
        return node


@pytest.mark.parametrize(
    ("axis", "place", "side", "sign"),
    [
        (0, 0, Side.RIGHT, -1),
        (1, 1, Side.RIGHT, -1),
        (1, 1, Side.LEFT, 1),
        (2, 2, Side.RIGHT, -1),
        (2, 2, Side.LEFT, 1),
    ],
)
def test_a_turn_about_one_axis_is_one_angle(scene, axis, place, side, sign):
    """Without points: the CT's axes, x right, y anterior, z superior, at the distal bone's pivot."""
    case = Case(scene, [turned(axis, 5.0 * frame) for frame in range(FRAMES)])
    found = case.angles(Joint(*bones.NAMES.values(), side))
    wanted = np.zeros((FRAMES, 6))
    wanted[:, place] = sign * 5.0 * np.arange(FRAMES)
    assert np.allclose(found, wanted, atol=1e-6)


def test_shifts_are_along_the_bodys_axes(scene):
    case = Case(scene, [turned(0, 0.0, (1.0 * frame, 2.0 * frame, 3.0 * frame)) for frame in range(FRAMES)])
    assert np.allclose(case.angles()[2], [0, 0, 0, 2.0, 4.0, -6.0], atol=1e-6)


@pytest.mark.parametrize("below", ["CT", "bone"])
def test_points_give_the_axes_wherever_they_hang(scene, below):
    """Bones whose long axis is the CT's A, and whose right is its R: a turn about A is rotation."""
    case = Case(scene, [turned(1, 5.0 * frame) for frame in range(FRAMES)])
    x, y, z = PIVOT
    positions = [(x, y - 50, z), (x, y + 50, z), (x - 20, y, z), (x + 20, y, z)]
    above = case.anatomy.ct.GetParentTransformNode()
    lists = [case.points(positions, above if below == "CT" else body.node) for body in case.bodies]
    for body in case.bodies:
        body.move(case.anatomy, turned(2, 20.0, (9.0, 0.0, 0.0)))  # as a frame has it that is shown
    found = case.angles(Joint(*bones.NAMES.values(), points=tuple(lists)))
    wanted = np.zeros((FRAMES, 6))
    wanted[:, 2] = -5.0 * np.arange(FRAMES)
    assert np.allclose(found, wanted, atol=1e-5)


def test_table_plots_and_file(scene, tmp_path):
    case = Case(scene, [turned(0, 5.0 * frame) for frame in range(FRAMES)], lost=(2,))
    course = joint_course(case.run, case.anatomy, case.joint, smooth=False)
    before = kit.node_ids(scene)
    for _ in range(2):  # again writes into the same nodes
        show_joint(case.run, case.joint, *course)
    assert len(kit.node_ids(scene) - before) == 1 + 2 + 6
    assert np.allclose([row[:2] for row in joint_rows(case.run)], [(n, -5.0 * n) for n in range(FRAMES)], atol=1e-6)
    series = joint_charts(case.run)[1].GetNthPlotSeriesNode(2)
    assert series.GetName() == "distraction" and series.GetYColumnName() == "distraction, mm"
    path = save_joint(case.run, case.anatomy, case.joint, tmp_path / "knee.csv", smooth=False)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["flexion_deg"]) for row in rows] == pytest.approx([-5.0 * n for n in range(FRAMES)], abs=1e-5)
    assert np.isnan(case.angles(interpolated=False)[2]).all() and not np.isnan(case.angles()[2]).any()
    clear_joint(case.run)
    assert kit.node_ids(scene) == before and joint_rows(case.run) == []


def test_nothing_is_left_when_the_c_arm_is_removed(scene):
    before = kit.node_ids(scene)
    case = Case(scene, [turned(0, 5.0 * frame) for frame in range(FRAMES)])
    show_joint(case.run, case.joint, *joint_course(case.run, case.anatomy, case.joint))
    made = [node for node in belongings(case.carm) if node.IsA("vtkMRMLTableNode") or "Plot" in node.GetClassName()]
    assert len(made) == 1 + 2 + 6 and kit.node_ids(scene) > before
    remove_carm(case.carm)
    classes = "vtkMRMLTableNode", "vtkMRMLPlotChartNode", "vtkMRMLPlotSeriesNode", "vtkMRMLTextNode"
    assert [scene.GetNumberOfNodesByClass(name) for name in classes] == [0] * 4


def test_what_makes_no_joint_is_said_in_a_sentence(scene, tmp_path):
    case = Case(scene, [Pose.identity()] * FRAMES)
    left, right = bones.NAMES.values()
    three, four = case.points([(0, 0, 0)] * 3), case.points([(0, 0, 0)] * 4)
    for joint, words in (
        (Joint(left, left), "two bones"),
        (Joint(left, right, points=(four, None)), "both bones, or of neither"),
        (Joint(left, right, points=(three, four)), "has 3"),
        (Joint(left, right, points=(four, four)), "no length"),
        (Joint(left, "Tibia"), "no motion of the body 'Tibia'"),
    ):
        with pytest.raises(DiffDRRError, match=words):
            case.angles(joint)
    with pytest.raises(SceneError, match=r"as \.csv"):
        save_joint(case.run, case.anatomy, case.joint, tmp_path / "knee.txt")
    nodes.remove_node(case.carm.referred("tracking"))
    with pytest.raises(SceneError, match="track the run first"):
        case.angles()
