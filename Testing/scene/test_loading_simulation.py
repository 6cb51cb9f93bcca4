"""Simulated X-rays: of the anatomy as it lies in the world, with the true pose kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, Pose, Renderer, Volume
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRSlicerLib.scene import patient
from DiffDRRSlicerLib.scene.accuracy import reference_errors
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.nodes import transform_to_world
from DiffDRRSlicerLib.scene.simulation import REFERENCE, simulate_xray
from DiffDRRSlicerLib.scene.xrays import core_xray, prepared_xray
from Testing.core.samples import looking_at, rigid
from Testing.scene import kit

CAMERA = Camera(24, 28, (12.0, 12.0), 1000.0, None, "detector")


@pytest.fixture(scope="module")
def ct():
    return phantom(shape=(32, 24, 28), spacing=12.0)


def add_anatomy(scene, ct, parent):
    above = kit.add_transform(scene, parent)
    return Anatomy(kit.add_volume(scene, ct.hu.numpy(), ct.ijk_to_ras.numpy(), above))


@pytest.mark.parametrize("make", [rigid, kit.scaled])
def test_it_shows_the_ct_where_it_lies(scene, ct, make):
    rng = np.random.default_rng(1)
    anatomy = add_anatomy(scene, ct, make(rng))
    pose = looking_at(rng, anatomy.center, 750.0)
    carm = simulate_xray(scene, anatomy, CAMERA, pose, photons=1e9, source_to_isocenter=720.0)
    in_world = Volume(ct.hu, kit.to_world(anatomy.ct))
    truth = Renderer(in_world, integrator="siddon")(CAMERA, pose)[0, 0]
    image = (core_xray(carm).image - 3.0) / 0.7  # the gain and offset of the simulation
    correlation = np.corrcoef(image.ravel(), truth.ravel())[0, 1]
    assert truth.max() > 2 and correlation > 0.995  # it averages intensities within a pixel, the rendering does not
    assert prepared_xray(carm).intensity == "attenuation" and carm.meta["simulated"]
    assert np.allclose(carm.pose.matrix, pose.matrix, atol=1e-9) and carm.source_to_isocenter == 720.0


def test_the_true_pose_stays_where_the_carm_was(scene, ct):
    rng = np.random.default_rng(2)
    anatomy = add_anatomy(scene, ct, np.eye(4))
    pose = looking_at(rng, anatomy.center, 750.0)
    carm = simulate_xray(scene, anatomy, CAMERA, pose)
    carm.pose = looking_at(rng, anatomy.center, 600.0)
    reference = carm.referred("reference")
    assert reference.GetAttribute(REFERENCE) and reference.GetParentTransformNode() is None
    assert np.allclose(transform_to_world(reference), pose.matrix)


@pytest.mark.parametrize("moved_before", [False, True])
def test_errors_against_the_true_pose_go_with_the_patient(scene, ct, moved_before):
    rng = np.random.default_rng(5)
    anatomy = add_anatomy(scene, ct, rigid(rng))
    turns, place = np.zeros(3), np.zeros(3)
    if moved_before:  # the patient transform is there, and not the identity, when the X-ray is taken
        turns, place = np.array([10.0, -5.0, 20.0]), np.array([15.0, 8.0, -30.0])
        patient.place_patient(anatomy, turns, place)
    pose = looking_at(rng, anatomy.center, 750.0)
    carm = simulate_xray(scene, anatomy, CAMERA, pose)
    assert reference_errors(carm, anatomy)["mtre_mm"] < 1e-6
    patient.place_patient(anatomy, turns, place + np.array([2.0, -3.0, 6.0]))
    assert reference_errors(carm, anatomy)["mtre_mm"] == pytest.approx(7.0, abs=1e-6)
    shift = np.eye(4)
    shift[:3, 3] = 2.0, -3.0, 6.0
    carm.pose = Pose(shift) @ pose
    assert reference_errors(carm, anatomy)["mtre_mm"] < 1e-6
    assert transform_to_world(carm.referred("reference")) == pytest.approx(pose.matrix.numpy())


def test_the_seed_and_the_photons_make_the_noise(scene, ct):
    anatomy = add_anatomy(scene, ct, np.eye(4))
    pose = looking_at(np.random.default_rng(3), anatomy.center, 750.0)

    def image(**options):
        return core_xray(simulate_xray(scene, anatomy, CAMERA, pose, **options)).image

    first, same, other, clean = image(), image(), image(seed=1), image(photons=1e9)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert float((first - clean).abs().mean()) > 10 * float((image(photons=1e8) - clean).abs().mean())


@pytest.mark.parametrize("photons", [0, -5.0, float("nan"), float("inf")])
def test_bad_photons(scene, ct, photons):
    anatomy = add_anatomy(scene, ct, np.eye(4))
    before = kit.node_ids(scene)
    with pytest.raises(SceneError, match="photons must be positive"):
        simulate_xray(scene, anatomy, CAMERA, looking_at(np.random.default_rng(4), anatomy.center, 750.0), photons)
    assert kit.node_ids(scene) == before
