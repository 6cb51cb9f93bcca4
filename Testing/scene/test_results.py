"""What a result says of itself: deviations, doubts, errors, table, files; and the CT's slice in the X-ray's plane."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, CArm, Pose, RegistrationResult
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.geometry.itk_transform import read_itk_transform
from Testing.scene import kit

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import accuracy, landmarks, nodes, patient, poses  # noqa: E402
from DiffDRRSlicerLib.scene.anatomy import Anatomy  # noqa: E402
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points  # noqa: E402
from DiffDRRSlicerLib.scene.reslice import reslice  # noqa: E402
from DiffDRRSlicerLib.scene.results import Outcome, projection_matrix, save_poses, write_results_table  # noqa: E402


def result(**changes) -> RegistrationResult:
    """A result of 0.9 whose covariance is that of 0.1 degrees and 0.1, 0.2, 1 mm along a turned camera's axes."""
    pose = CArm(1000.0, 700.0, (5.0, -7.0, 11.0), 23.0, -12.0, 8.0).pose
    axes = torch.block_diag(pose.rotation, pose.rotation)
    deviations = torch.tensor([np.radians(0.1), np.radians(0.2), np.radians(0.3), 0.1, 0.2, 1.0]).double()
    fields = {
        "poses": Pose(pose.matrix[None]),
        "patient_motion": Pose.identity(),
        "similarity": 0.9,
        "initial_similarity": 0.5,
        "converged": True,
        "reason": "converged",
        "covariance": axes @ torch.diag(deviations.square()) @ axes.T,
        "about": torch.tensor([5.0, -7.0, 11.0]).double(),
        "history": [{"level": 0, "similarity": 0.8}, {"level": 0, "similarity": 0.85}, {"level": 1, "similarity": 0.9}],
    }
    return RegistrationResult(**{**fields, **changes})


def test_deviations_are_along_the_cameras_axes():
    assert np.allclose(accuracy.camera_deviations(result()), [0.1, 0.2, 0.3, 0.1, 0.2, 1.0])


def test_doubts_are_the_registrations_own(case):
    assert case.outcome(doubts=["It ended on a bound."]).warnings == ["It ended on a bound."]


class Case:
    """A phantom below a rotated transform, a C-arm, its true pose and five landmarks."""

    def __init__(self, scene, parallel=False):
        rng = np.random.default_rng(3)
        volume = phantom((24, 20, 24), 10.0)
        self.parent = kit.add_transform(scene, kit.rigid(rng, 20.0))
        self.grid = kit.rigid(rng, 20.0) @ volume.ijk_to_ras.numpy()
        self.ct = kit.add_volume(scene, volume.hu.numpy().astype(np.int16), self.grid, self.parent)
        self.anatomy = Anatomy(self.ct)
        arm = CArm(1000.0, 700.0, self.anatomy.center, 23.0, -12.0, 8.0)
        camera = Camera(40, 50, (4.0, 3.0), 1000.0, (20.0, 16.5), "detector")
        self.carm = CArmNode.create(scene, camera, arm.pose, 700.0, "C-arm: left/right")
        self.truth = kit.add_transform(scene, arm.pose.matrix.numpy())
        self.carm.refer("reference", self.truth)

    def outcome(self, **changes) -> Outcome:
        return Outcome.of(result(**changes), self.anatomy, [self.carm], "carm")


@pytest.fixture
def case(scene):
    return Case(scene)


def test_errors_against_the_reference_in_plane_and_in_depth(case):
    assert case.outcome().views[0].reference["mtre_mm"] < 1e-9
    poses.nudge(case.carm, case.anatomy, right=3.0, down=4.0, depth=2.0)
    errors = case.outcome().views[0].reference
    assert errors["mtre_in_plane_mm"] == pytest.approx(5.0, abs=1e-6)
    assert errors["mtre_depth_mm"] == pytest.approx(2.0, abs=1e-6)
    assert errors["mtre_mm"] == pytest.approx(np.sqrt(29), abs=1e-6) and errors["rotation_deg"] < 1e-6
    case.carm.refer("reference", None)
    assert case.outcome().views[0].reference is None


def test_another_reference_is_taken_once_and_the_c_arms_own_stays(scene, case):
    other = nodes.transform_to_parent(case.truth)
    other[:3, 3] += (0.0, 8.0, 0.0)
    node = kit.add_transform(scene, other)
    assert accuracy.reference_errors(case.carm, case.anatomy, node)["mtre_mm"] == pytest.approx(8.0, abs=1e-6)
    outcome = Outcome.of(result(), case.anatomy, [case.carm], "carm", references=[node])
    assert outcome.views[0].reference["mtre_mm"] == pytest.approx(8.0, abs=1e-6)
    assert case.carm.referred("reference") is case.truth
    assert case.outcome().views[0].reference["mtre_mm"] < 1e-9
    scene.RemoveNode(node)
    assert accuracy.reference_errors(case.carm, case.anatomy, node) is None


def test_the_reference_holds_for_the_patient_where_he_was(case):
    patient.place_patient(case.anatomy, (0, 0, 0), (6.0, 0, 0))
    assert case.outcome().views[0].reference["mtre_mm"] == pytest.approx(6.0, abs=1e-6)
    now = nodes.parent_to_world(case.ct)
    nodes.write_json(case.truth, "DiffDRR.CTToWorld", now.tolist())
    assert case.outcome().views[0].reference["mtre_mm"] < 1e-6


def test_bone_points_lie_in_bone(case):
    found = accuracy.bone_points(case.anatomy)
    ijk = kit.apply(np.linalg.inv(case.grid), found)
    assert np.allclose(ijk, ijk.round(), atol=1e-6) and 10 < len(found) <= 200
    i, j, k = ijk.round().astype(int).T
    assert (slicer.util.arrayFromVolume(case.ct)[k, j, i] > 150).all()


def test_landmarks_of_a_result(scene, case):
    ct = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "CT landmarks")
    xray = landmarks.xray_landmarks(case.carm)
    point = case.anatomy.center
    local = kit.apply(np.linalg.inv(case.carm.pose.matrix.numpy()), point[None])
    uv = (local / local[:, 2:] @ case.carm.camera.K.numpy().T)[:, :2] + (3.0, 4.0)
    ct.AddControlPointWorld(*point, "one")
    xray.AddControlPoint(*pixels_to_points(case.carm.camera, uv)[0], "one")
    outcome = Outcome.of(result(), case.anatomy, [case.carm], "carm", [(case.carm, ct, xray)])
    assert outcome.views[0].landmarks.rms_pixels == pytest.approx(5.0, abs=1e-6)
    assert ("C-arm: left/right: landmark one", pytest.approx(5.0, abs=1e-6), "pixels") in list(outcome.rows())


def test_the_table_is_made_once(scene, case):
    table = write_results_table(case.carm, case.outcome(doubts=["It had not converged."]))
    content = table.GetTable()
    rows = [
        [content.GetValue(row, column).ToString() for column in range(3)] for row in range(content.GetNumberOfRows())
    ]
    assert ["similarity", "0.9", ""] in rows and ["similarity at the start", "0.5", ""] in rows
    assert ["standard deviation, depth", "1", "mm"] in rows and [
        "standard deviation, tilt about image x",
        "0.1",
        "deg",
    ] in rows
    assert rows[-1] == ["warning", "It had not converged.", ""]
    before = kit.node_ids(scene)
    assert write_results_table(case.carm, case.outcome()) is table and kit.node_ids(scene) == before
    assert table.GetTable().GetNumberOfRows() == len(rows) - 1


def test_files_say_the_pose_in_the_world_and_in_the_ct(tmp_path, scene, case):
    paths = case.outcome().save(tmp_path / "out")
    names = sorted(path.name for path in paths)
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "C-arm_left_right_camera_to_world.h5" in names and "C-arm_left_right_projection_ct.txt" in names
    content = json.loads((tmp_path / "out" / "registration.json").read_text())
    view = content["views"][0]
    world = case.carm.pose.matrix.numpy()
    in_ct = np.linalg.inv(nodes.transform_to_world(case.parent)) @ world
    assert np.allclose(view["camera_to_world"], world) and np.allclose(view["camera_to_ct"], in_ct)
    assert content["standard_deviations"]["depth_mm"] == pytest.approx(1.0)
    for suffix in ("h5", "tfm"):
        for frame, pose in (("world", world), ("ct", in_ct)):
            path = tmp_path / "out" / f"C-arm_left_right_camera_to_{frame}.{suffix}"
            assert np.allclose(read_itk_transform(path), pose, atol=1e-6)
    with (tmp_path / "out" / "registration.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["quantity", "value", "unit"] and ["similarity", "0.9", ""] in rows


def test_an_outcome_holds_until_one_of_its_c_arms_or_the_ct_is_changed(scene, case):
    other = CArmNode.create(scene, case.carm.camera, case.carm.pose, name="other")
    stranger = CArmNode.create(scene, case.carm.camera, case.carm.pose, name="stranger")
    outcome = Outcome.of(result(), case.anatomy, [case.carm, other], "carm")
    assert outcome.holds(case.carm, case.ct) and outcome.holds(other, case.ct)
    same_ct = kit.add_volume(scene, np.zeros((2, 2, 2), np.int16), np.eye(4), case.parent)
    assert not outcome.holds(stranger, case.ct) and not outcome.holds(case.carm, same_ct)
    assert not outcome.holds(case.carm, None)
    pose, above = other.pose, nodes.transform_to_parent(case.parent)
    other.move_arm(isocenter=other.arm.isocenter + 1e-3)
    assert not outcome.holds(case.carm, case.ct)
    other.pose = pose
    assert outcome.holds(case.carm, case.ct)
    shift = np.eye(4)
    shift[2, 3] = 1e-3
    nodes.set_transform_to_parent(case.parent, shift @ above)
    assert not outcome.holds(case.carm, case.ct)
    nodes.set_transform_to_parent(case.parent, above)
    assert outcome.holds(case.carm, case.ct)
    scene.RemoveNode(other.node)
    assert not outcome.holds(case.carm, case.ct)


def test_projection_matrices_take_ct_points_to_pixels(tmp_path, case):
    case.outcome().save(tmp_path)
    point = np.array([3.0, -12.0, 7.0])  # in the CT's own coordinates
    world = kit.apply(nodes.transform_to_world(case.parent), point)
    local = kit.apply(np.linalg.inv(case.carm.pose.matrix.numpy()), world)
    expected = (case.carm.camera.K.numpy() @ (local / local[2]))[:2]
    for frame, where in (("ct", point), ("world", world)):
        matrix = np.loadtxt(tmp_path / f"C-arm_left_right_projection_{frame}.txt")
        homogeneous = matrix @ [*where, 1]
        assert matrix.shape == (3, 4) and np.allclose(homogeneous[:2] / homogeneous[2], expected, atol=1e-9)


def test_where_nothing_is_above_the_ct_there_is_one_frame(tmp_path, case):
    case.ct.SetAndObserveTransformNodeID(None)
    names = [path.name for path in case.outcome().save(tmp_path)]
    assert not any("_ct." in name for name in names) and len(names) == 5


def test_every_c_arm_has_files_of_its_own_whatever_it_is_called(tmp_path, scene):
    camera = Camera(20, 20, (1.0, 1.0), 1000.0)
    named = ["a_2", "A", "a", "a", "..", "C/arm: left?"]
    carms = [CArmNode.create(scene, camera, Pose.identity()) for _ in named]
    for carm, name in zip(carms, named, strict=True):
        carm.node.SetName(name)  # as a user renames: twice the same is possible
    matrices = [path.name for path in save_poses(tmp_path, carms) if path.suffix == ".txt"]
    stems = [name.removesuffix("_projection_world.txt") for name in matrices]
    assert stems == ["a_2", "A", "a_3", "a_4", "view", "C_arm_left"]


def test_a_folder_that_cannot_be_written_and_a_failed_write_leave_nothing(tmp_path, case, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DiffDRRError, match="is a file"):
        case.outcome().save(tmp_path / "file")
    outcome = case.outcome()
    outcome.save(tmp_path / "out")
    before = (tmp_path / "out" / "registration.json").read_bytes()
    monkeypatch.setattr(Outcome, "to_dict", lambda self: {"bad": object()})
    with pytest.raises(TypeError):
        outcome.save(tmp_path / "out")
    assert (tmp_path / "out" / "registration.json").read_bytes() == before
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_a_parallel_beam_has_no_projection_matrix():
    with pytest.raises(DiffDRRError, match="parallel"):
        projection_matrix(SimpleNamespace(parallel=True), Pose.identity())


def test_the_ct_in_the_xrays_plane(scene, case):
    """A CT whose values rise linearly along a world direction, so that trilinear samples are known exactly."""
    voxels = slicer.util.arrayFromVolume(case.ct)
    kji = np.indices(voxels.shape).transpose(1, 2, 3, 0)
    world = kit.apply(kit.to_world(case.ct), kji[..., ::-1])
    direction = np.array([0.7, -0.4, 1.1])
    slicer.util.updateVolumeFromArray(case.ct, world @ direction)
    case.carm.look_at(case.anatomy.center)
    volume = reslice(case.anatomy, case.carm)
    image = slicer.util.arrayFromVolume(volume)[0]
    rows, columns = np.indices(image.shape)
    at = kit.apply(kit.to_world(volume), np.stack([columns, rows, 0 * rows], axis=-1))
    ijk = kit.apply(np.linalg.inv(kit.to_world(case.ct)), at)
    inside = ((ijk > 0) & (ijk < np.array(voxels.shape[::-1]) - 1)).all(axis=-1)
    assert inside.sum() > 300 and np.allclose(image[inside], (at @ direction)[inside], atol=1e-2)
    depths = kit.apply(np.linalg.inv(case.carm.pose.matrix.numpy()), at)[..., 2]
    assert np.allclose(depths, case.carm.depth) and volume.GetParentTransformNode() is case.carm.referred("plane")
    assert reslice(case.anatomy, case.carm, depth=650.0) is volume and case.carm.depth == pytest.approx(650.0)
    beside = slicer.util.arrayFromVolume(reslice(case.anatomy, case.carm, depth=350.0))
    assert (beside == -1000).all()
