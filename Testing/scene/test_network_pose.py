"""A network finds poses in the scene: below transforms, of several views, of the patient; and one end to end."""

from __future__ import annotations

import time

import numpy as np
import pytest
import SimpleITK
import torch

from DiffDRRCore import Pose
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.errors import DiffDRRError
from Testing.scene import kit, moved_bones
from Testing.scene.networks import DEVIATIONS, Answer, answering
from Testing.scene.test_regions import curve, on_plane
from Testing.scene.test_registration import QUICK, Case

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import results  # noqa: E402
from DiffDRRSlicerLib.scene.accuracy import PARAMETERS  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.network_pose import NetworkRegistration, network_summary, read_network  # noqa: E402
from DiffDRRSlicerLib.scene.regions import attach  # noqa: E402
from DiffDRRSlicerLib.scene.training import TrainingSettings, prepare_training  # noqa: E402
from DiffDRRSlicerLib.scene.training_curve import read_losses  # noqa: E402

FAR = [1.2, -0.8, 0.6, 90.0, -70.0, 120.0]


def wait(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


@pytest.fixture
def case(scene):
    """Below rotated transforms, and where no registration would come back from."""
    case = Case(scene)
    lose(case)
    return case


def lose(case):
    """Move all C-arms away, together."""
    motion = Pose.exp(torch.tensor(FAR, dtype=torch.float64))
    for carm in case.carms:
        carm.pose = motion @ carm.pose


def near(case, view=0, away=(0.03, -0.02, 0.04, 5.0, -6.0, 10.0)):
    """What a fair network says: the true pose in the CT's coordinates, nearly; by plain matrices."""
    center = torch.from_numpy(case.anatomy.center)
    pose = case.truths[view].retract(torch.tensor(away, dtype=torch.float64), about=center)
    below = np.linalg.inv(case.first @ np.linalg.inv(case.grid))
    return Answer(Pose(torch.from_numpy(below @ pose.matrix.numpy())))


def run(case, **options):
    found = NetworkRegistration(case.anatomy, case.carms, "model.safetensors", **{**QUICK, **options})
    return list(found.steps()), found


def test_from_anywhere_below_moved_transforms(case, monkeypatch):
    answering(monkeypatch, near(case))
    progress, found = run(case)
    in_plane, depth = case.errors()
    assert in_plane < 0.5 and depth < 3.0 and found.ending == ""
    texts = [one.text for one in progress]
    assert texts.index("The network has found a pose") < len(texts) - 10 and texts[-1] == "Done"
    fractions = [one.fraction for one in progress]
    assert fractions == sorted(fractions)
    rows = {name: value for name, value, _ in found.outcome.rows()}
    said = [rows[f"network: standard deviation, {name}"] for name in PARAMETERS]
    assert said == pytest.approx(DEVIATIONS) and rows["network: similarity"] == 0.75
    table = results.read_results_table(case.carms[0])
    assert table[0] == ("network: similarity", "0.75", "") and "12.0 mm in depth" in network_summary(table)
    assert found.outcome.to_dict()["start"][0] == {"quantity": "network: similarity", "value": 0.75, "unit": ""}


def test_the_patient_moves_in_place_of_the_c_arm(case, monkeypatch):
    before = case.carms[0].to_world
    answering(monkeypatch, near(case))
    run(case, target="patient")
    in_plane, depth = case.errors()
    assert in_plane < 0.5 and depth < 3.0 and np.array_equal(case.carms[0].to_world, before)


def test_two_c_arms_stay_fixed_to_each_other(scene, monkeypatch):
    case = Case(scene, primaries=(0.0, 80.0))
    between = np.linalg.inv(case.truths[0].matrix.numpy()) @ case.truths[1].matrix.numpy()
    for carm, truth in zip(case.carms, case.truths, strict=True):
        carm.pose = truth
    lose(case)
    answer = near(case)
    answering(monkeypatch, answer)
    _, found = run(case, refine=False, candidates=False, find_collimator=False)
    assert answer.asked == [True, True] and len(answer.masks) == 2  # once each
    assert all(bool(mask.all()) for mask in answer.masks)
    first, second = (carm.to_world for carm in case.carms)
    assert np.allclose(np.linalg.inv(first) @ second, between, atol=1e-6)
    expected = case.anatomy.pose_in_world(found.prediction.pose).matrix
    assert np.allclose(first, expected, atol=1e-9)


@pytest.mark.parametrize("locked", [True, False])
def test_where_bones_move_the_network_says_where_all_of_them_are(scene, monkeypatch, locked):
    """It sees the CT moved by M from a C-arm that stays; what is locked, and all else, stay too."""
    far = Pose.exp(torch.tensor([0.5, 0.3, -0.4, 20.0, -15.0, 25.0]).double())
    case = moved_bones.Case(scene, motions={0: Pose.identity(), 1: Pose.identity(), 2: far})
    left, right = case.make_bones()
    left.locked = locked
    before = [carm.to_world for carm in case.carms]
    start = case.anatomy.pose_in_volume(case.carms[0].pose)
    answering(monkeypatch, Answer((moved_bones.OFF @ far).inverse() @ start))
    progress, _ = run(case, target="bodies", refine=False, find_collimator=False)
    assert progress[-1].text == "Done" and np.allclose(right.motion(case.anatomy), (moved_bones.OFF @ far).matrix)
    assert left.is_moved(case.anatomy) is not locked
    assert all(np.array_equal(carm.to_world, old) for carm, old in zip(case.carms, before, strict=True))
    if locked:
        right.put_back(case.anatomy)
        run(case, target="bodies", find_collimator=False, sizes=(32, 48), search=0)
        assert case.error(right) < 0.5 and not left.is_moved(case.anatomy)


@pytest.mark.parametrize("refine", [False, True])
def test_the_region_counts_for_the_network_too(case, scene, monkeypatch, refine):
    answer, carm = near(case), case.carms[0]
    answering(monkeypatch, answer)
    corners = [[12.0, 10.0], [52.0, 10.0], [52.0, 50.0], [12.0, 50.0]]
    region = curve(scene, on_plane(carm, np.array(corners)))
    attach(carm, region)
    run(case, refine=refine, region=region, find_collimator=False)
    (mask,) = answer.masks
    expected = np.zeros((60, 64), bool)
    expected[11:50, 13:52] = True
    edge = np.ones((60, 64), bool)
    edge[12:49, 14:51] = edge[:9] = edge[52:] = edge[:, :11] = edge[:, 54:] = False
    assert np.array_equal(mask.numpy() | edge, expected | edge)


def test_an_error_after_the_network_puts_all_back(case, monkeypatch):
    before = case.carms[0].to_world
    answering(monkeypatch, near(case))
    with pytest.raises(DiffDRRError):
        run(case, structures=["nothing of that name"])
    assert np.array_equal(case.carms[0].to_world, before)


def test_doubts_of_the_network_are_told(case, monkeypatch):
    answer = near(case)
    answer.doubt = "The network may be wrong here."
    answering(monkeypatch, answer)
    _, found = run(case)
    assert ("warning", "The network may be wrong here.", "") in list(found.outcome.rows())


def test_no_network_was_chosen(case):
    with pytest.raises(SceneError, match="Choose a network first"):
        NetworkRegistration(case.anatomy, case.carms, " ")


def of_a_template(path, kind="template"):
    """A network's file without training, which knows a template's frame alone."""
    from DiffDRRCore.geometry import Camera
    from DiffDRRCore.imaging.camera_file import camera_to_dict
    from DiffDRRCore.learning.network.model_file import write_model
    from DiffDRRCore.learning.network.pose_net import Architecture, PoseNet
    from DiffDRRCore.learning.network.targets import Target

    camera = Camera(48, 48, (6.0, 6.0), 1000.0)
    poses = Pose.exp(torch.tensor([[0.1, 0, 0, 0, 0, -600.0], [0, 0.1, 0, 10.0, 0, -650.0]], dtype=torch.float64))
    target = Target.from_views(camera, poses)
    ranges = {"primary": [-5, 5], "sod": [580, 620]}
    description = {"target": target.to_dict(), "camera": camera_to_dict(camera), "ranges": ranges}
    write_model(path, PoseNet(Architecture("resnet10", (48, 48))), {**description, "frame": {"kind": kind}})
    return path


def test_a_network_in_the_frame_of_a_template(scene, tmp_path):
    """The frame is where a point of the template lies in the CT, by plain matrices; the file says the same."""
    path = of_a_template(tmp_path / "model.safetensors")
    with pytest.raises(SceneError, match=r"frame of a template: choose the rigid transform .*Learn, Advanced"):
        read_network(path)
    to_template = kit.rigid(np.random.default_rng(5))
    node = kit.add_transform(scene, to_template, name="warp")
    volume = phantom((8, 8, 8), 10.0)
    frame = read_network(path, node).frame_to_world(volume).matrix.numpy()
    point = np.array([3.0, -4.0, 5.0, 1.0])
    assert np.allclose(to_template @ frame @ point, point, atol=1e-6)
    transform = SimpleITK.Euler3DTransform()
    to_template_lps = np.diag([-1.0, -1, 1, 1]) @ to_template @ np.diag([-1.0, -1, 1, 1])
    transform.SetMatrix(to_template_lps[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation(to_template_lps[:3, 3].tolist())
    SimpleITK.WriteTransform(transform, str(tmp_path / "warp.tfm"))
    assert np.allclose(read_network(path, tmp_path / "warp.tfm").frame_to_world(volume).matrix, frame, atol=1e-6)
    node.SetMatrixTransformToParent(kit.matrix(np.diag([2.0, 1, 1, 1])))
    with pytest.raises(SceneError, match="not rigid"):
        read_network(path, node)
    with pytest.raises(DiffDRRError, match="without a template"):
        read_network(of_a_template(tmp_path / "other.safetensors", "own_center"), kit.add_transform(scene, to_template))


@pytest.mark.slow
def test_train_in_a_process_of_its_own_and_find_the_pose(scene, tmp_path):
    """End to end: CT below transforms, real trainer, real network; another patient's CT is refused."""
    case = Case(scene)
    settings = TrainingSettings(
        *(6.0, 6.0, 4.0, 8.0, 15.0), steps=40, batch=8, size=48, backbone="resnet10", device="cpu"
    )
    case.carms[0].pose = case.truths[0]
    training = prepare_training(tmp_path, case.carms[0], case.anatomy, settings)
    training.start()
    wait(lambda: training.state.step > 4)
    training.stop()
    wait(lambda: not training.state.going)
    state = training.state
    assert state.status == "stopped" and 4 < state.step < 40 and training.resumable, state
    training.resume()
    wait(lambda: not training.state.going)
    state = training.state
    assert (state.status, state.step) == ("finished", 40), state
    assert [step for step, _ in read_losses(training.folder)] == list(range(1, 41))
    assert 0 < state.best["mm"] < 40 and training.model.is_file()
    lose(case)
    lost = max(case.errors())
    found = NetworkRegistration(case.anatomy, case.carms, training.model, refine=False)
    assert [one.text for one in found.steps()][-1] == "Done"
    assert max(case.errors()) < 30 < lost
    rows = {name: value for name, value, _ in results.read_results_table(case.carms[0])}
    assert all(float(rows[f"network: standard deviation, {name}"]) > 0 for name in PARAMETERS)
    voxels = slicer.util.arrayFromVolume(case.ct)
    voxels[10:20] -= 50
    slicer.util.arrayFromVolumeModified(case.ct)
    with pytest.raises(DiffDRRError, match="another CT"):
        list(NetworkRegistration(type(case.anatomy)(case.ct), case.carms, training.model).steps())
    assert np.isfinite(kit.to_world(case.ct)).all()
