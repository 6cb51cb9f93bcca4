"""Simulated sweeps: a sequence whose frames are single X-rays, and which moves the C-arm as it plays."""

from __future__ import annotations

import gc
import itertools
import weakref

import numpy as np
import pytest
import slicer
import slicer.util
import torch

from DiffDRRCore import CArm, Pose
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.devices import device, orbit
from DiffDRRSlicerLib.scene import simulation
from DiffDRRSlicerLib.scene.accuracy import reference_errors
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.nodes import transform_to_world
from DiffDRRSlicerLib.scene.simulation import Scanned, simulate_xray
from DiffDRRSlicerLib.scene.simulation_settings import Settings
from DiffDRRSlicerLib.scene.sweeps import find_sweep, frames, simulate_sweep, simulating_sweep
from DiffDRRSlicerLib.scene.xrays import core_xray
from Testing.core.samples import rigid
from Testing.scene import kit

SETTINGS = Settings(dose=1.0)


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    simulation.forget()


@pytest.fixture
def scanned(scene):
    ct = phantom(shape=(24, 18, 21), spacing=16.0)
    above = kit.add_transform(scene, rigid(np.random.default_rng(3)))
    node = kit.add_volume(scene, ct.hu.numpy(), ct.ijk_to_ras.numpy(), above)
    numbers = ct.labels.numpy().astype(np.int16)
    labels = kit.add_volume(scene, numbers, ct.ijk_to_ras.numpy(), above, "L", "vtkMRMLLabelMapVolumeNode")
    return Scanned(Anatomy(node, labels), SETTINGS)


@pytest.fixture
def arm(scanned):
    return CArm(1000.0, 700.0, scanned.anatomy.center, 10.0, 5.0)


def camera_of(arm):
    return arm.camera(24, 28, (12.0, 12.0), view_from="detector")


def show(sweep, number):
    sweep.browser.SetSelectedItemNumber(number)


def pixels(node):
    return slicer.util.arrayFromVolume(node)[0]


def test_each_frame_is_the_single_xray_of_its_pose_and_seed(scene, scanned, arm):
    arms = list(orbit(arm, -30.0, 50.0, 4))
    sweep = simulate_sweep(scene, scanned, camera_of(arm), arms, seed=7)
    carm = CArmNode(sweep.carm)
    for number in (0, 2, 3, 1):
        show(sweep, number)
        single = simulate_xray(
            scene, scanned, camera_of(arm), arms[number].pose, seed=7 + number, source_to_isocenter=700.0
        )
        assert torch.equal(core_xray(carm).image, core_xray(single).image)
        assert np.allclose(carm.pose.matrix, arms[number].pose.matrix, atol=1e-9)
        assert np.array_equal(kit.to_world(carm.referred("xray")), kit.to_world(single.referred("xray")))
        assert reference_errors(carm, scanned.anatomy)["mtre_mm"] < 1e-6
    assert [node.GetNumberOfDataNodes() for node in (sweep.images, sweep.motion)] == [4, 4] and sweep.masks is None


def test_moving_the_carm_does_not_change_the_sequence(scene, scanned, arm):
    arms = list(orbit(arm, 0.0, 20.0, 3))
    sweep = simulate_sweep(scene, scanned, camera_of(arm), arms)
    carm = CArmNode(sweep.carm)
    carm.move_arm(primary=44.0)
    assert reference_errors(carm, scanned.anatomy)["mtre_mm"] > 10
    carm.node.SetAttribute("mine", "kept")
    carm.referred("xray").SetAttribute("DiffDRR.Tint", "grey")
    for number in (2, 0):
        show(sweep, number)
    assert carm.node.GetAttribute("mine") == "kept"
    assert float(carm.arm.primary) == pytest.approx(44.0)  # how far it was moved from the true pose is kept
    carm.pose = arms[0].pose
    show(sweep, 1)
    assert np.allclose(carm.pose.matrix, arms[1].pose.matrix, atol=1e-9)


def test_what_the_carm_knows_outlives_playing(scene, scanned, arm):
    sweep = simulate_sweep(scene, scanned, camera_of(arm), orbit(arm, 0.0, 20.0, 3))
    carm = CArmNode(sweep.carm)
    name, image = carm.name, carm.referred("xray")
    show(sweep, 2)
    assert carm.name == name and carm.referred("xray") is image and image.GetParentTransformNode() is carm.plane
    assert torch.equal(carm.camera.K, camera_of(arm).K) and carm.meta["simulated"]


def test_masks_go_with_the_frames(scene, scanned, arm):
    arms = list(orbit(arm, 0.0, 90.0, 2))
    sweep = simulate_sweep(scene, scanned, camera_of(arm), arms, masks=True)
    carm = CArmNode(sweep.carm)
    for number in (0, 1):
        show(sweep, number)
        single = simulate_xray(scene, scanned, camera_of(arm), arms[number].pose, masks=True)
        found, alone = (pixels(one.referred("segmentation")) for one in (carm, single))
        assert np.array_equal(found, alone) and found.max() > 0
    assert carm.referred("segmentation").GetDisplayNode().GetColorNode() is not None


def test_a_scene_with_a_sweep_is_saved_and_loaded(scene, scanned, arm, tmp_path):
    from Testing.scene.conftest import new_scene

    arms = list(orbit(arm, -20.0, 20.0, 3))
    sweep = simulate_sweep(scene, scanned, camera_of(arm), arms)
    show(sweep, 2)
    expected = pixels(CArmNode(sweep.carm).referred("xray")).copy()
    folder = tmp_path / "saved"
    folder.mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(folder), None)
    other, _logics = new_scene()
    other.SetURL(str(next(folder.glob("*.mrml"))))
    assert other.Connect()
    (carm,) = CArmNode.all(other)
    browser = other.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    assert np.array_equal(pixels(carm.referred("xray")), expected)
    browser.SetSelectedItemNumber(0)
    assert np.allclose(carm.pose.matrix, arms[0].pose.matrix, atol=1e-6)
    browser.SetSelectedItemNumber(2)
    assert np.array_equal(pixels(carm.referred("xray")), expected)


def test_secondary_angles_go_on_beyond_90_degrees(scene, scanned, arm):
    sweep = simulate_sweep(scene, scanned, camera_of(arm), orbit(arm, 70.0, 120.0, 6, "secondary"))
    carm, sources = CArmNode(sweep.carm), []
    for number in range(6):
        show(sweep, number)
        sources.append(carm.pose.rotation.numpy())
    turns = [np.degrees(np.arccos((np.trace(b @ a.T) - 1) / 2)) for a, b in itertools.pairwise(sources)]
    axes = [b @ a.T for a, b in itertools.pairwise(sources)]
    assert turns == pytest.approx([10.0] * 5, abs=1e-6) and all(np.allclose(one, axes[0]) for one in axes)


def test_the_frames_of_a_sweep_are_found_again(scene, scanned, arm):
    arms = list(orbit(arm, -30.0, 50.0, 3))
    sweep = simulate_sweep(scene, scanned, camera_of(arm), arms, masks=True)
    carm = CArmNode(sweep.carm)
    assert find_sweep(carm) == sweep
    show(sweep, 1)
    found = list(frames(carm, sweep))
    assert torch.equal(found[1].image, core_xray(carm).image) and not torch.equal(found[0].image, found[1].image)
    for one, at in zip(found, arms, strict=True):
        assert np.allclose(one.pose.matrix, at.pose.matrix, atol=1e-9)
    shift = kit.add_transform(scene, rigid(np.random.default_rng(9)))
    carm.node.GetParentTransformNode().SetAndObserveTransformNodeID(shift.GetID())
    for one, at in zip(frames(carm, sweep), arms, strict=True):
        assert np.allclose(one.pose.matrix, transform_to_world(shift) @ at.pose.matrix.numpy(), atol=1e-9)
    carm.node.SetAndObserveTransformNodeID(None)
    assert find_sweep(carm) is None
    assert find_sweep(simulate_xray(scene, scanned, camera_of(arm), arm.pose)) is None


def test_only_pixels_are_kept_of_each_frame(scene, scanned, arm, monkeypatch):
    """An image holds its simulator and what the ground truth is made of: many times its pixels."""
    alive, most, image = weakref.WeakSet(), [0], Scanned.image

    def watched(self, *args):
        gc.collect()
        made = image(self, *args)
        alive.add(made)
        most[0] = max(most[0], len(alive))
        return made

    monkeypatch.setattr(Scanned, "image", watched)
    simulate_sweep(scene, scanned, camera_of(arm), orbit(arm, -30.0, 50.0, 5), masks=True)
    assert most[0] <= 2


def test_cancelling_leaves_the_scene_as_it_was(scene, scanned, arm):
    before = kit.node_ids(scene)
    work = simulating_sweep(scene, scanned, camera_of(arm), orbit(arm, -20.0, 20.0, 5))
    fractions = []
    for step in work:
        fractions.append(step.fraction)
        assert kit.node_ids(scene) == before
        if step.text == "X-ray 4 of 5":
            break
    work.close()
    assert kit.node_ids(scene) == before and fractions == sorted(fractions) and fractions[-1] == pytest.approx(0.6)


@pytest.mark.parametrize("count", [0, 1001])
def test_too_few_or_many(scene, scanned, arm, count):
    before = kit.node_ids(scene)
    with pytest.raises(SceneError, match="1 to 1000 positions"):
        simulate_sweep(scene, scanned, camera_of(arm), [arm] * count)
    assert kit.node_ids(scene) == before


def test_beyond_a_device_nothing_begins(scene, scanned, arm):
    with pytest.raises(PhysicsError, match="out of reach"):
        simulate_sweep(scene, scanned, camera_of(arm), orbit(arm, -170.0, 0.0, 3, device=device("cios")))


def test_one_frame_where_the_ct_is_scaled(scene, arm):
    ct = phantom(shape=(24, 18, 21), spacing=16.0)
    above = kit.add_transform(scene, np.diag([1.1, 0.9, 1.0, 1.0]))
    anatomy = Anatomy(kit.add_volume(scene, ct.hu.numpy(), ct.ijk_to_ras.numpy(), above))
    arm = CArm(1000.0, 700.0, anatomy.center)
    sweep = simulate_sweep(scene, Scanned(anatomy, SETTINGS), camera_of(arm), [arm])
    assert isinstance(CArmNode(sweep.carm).pose, Pose) and sweep.images.GetNumberOfDataNodes() == 1
