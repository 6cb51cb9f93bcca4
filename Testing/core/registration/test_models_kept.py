"""CT models that are kept between registrations must never answer for another CT."""

from __future__ import annotations

import gc

import pytest
import torch

from DiffDRRCore import CArm, Renderer, Volume, XRay, register
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.errors import RegistrationError


def case(shift: float = 0.0):
    volume = phantom(shape=(24, 20, 24), spacing=14.0)
    arm = CArm(1020.0, 750.0, volume.center)
    xray = simulated_xray(volume, arm.camera(48, 48, (8.0, 8.0)), arm.pose)
    start = arm.pose.retract([0.03, -0.02, 0.04, 5.0 + shift, -4.0, 6.0], volume.center)
    return volume, xray, start


def test_a_ct_that_is_moved_is_another_ct():
    volume, xray, start = case()
    register(volume, xray, start, sizes=(32,), search=0)
    volume.ijk_to_ras[0, 3] += 20
    again = register(volume, xray, start, sizes=(32,), search=0)
    fresh = register(Volume(volume.hu, volume.ijk_to_ras), xray, start, sizes=(32,), search=0)
    assert torch.allclose(again.poses.matrix, fresh.poses.matrix, atol=1e-9)


def test_a_renderer_sees_its_ct_move():
    volume, xray, start = case()
    renderer = Renderer(volume)
    before = renderer(xray.camera, start)
    volume.ijk_to_ras[0, 3] += 20
    assert torch.equal(renderer(xray.camera, start), Renderer(volume)(xray.camera, start))
    assert not torch.allclose(renderer(xray.camera, start), before, atol=1e-3)


def test_renderers_let_go_of_fields_and_tables():
    volume, xray, start = case()
    voxels = volume.attenuation.clone().requires_grad_(True)
    renderer = Renderer(Volume.from_attenuation(voxels, volume.ijk_to_ras))
    for _ in range(5):
        renderer(xray.camera, start)
    gc.collect()
    assert len(renderer._tracer._problems) == 0
    labelled = Renderer(Volume(volume.hu, volume.ijk_to_ras, (volume.hu > 0).int()))
    for number in range(12):
        labelled(xray.camera, start, labels=[number])
    gc.collect()
    assert len(labelled._tracer._problems) <= 4


def test_a_ct_with_a_graph_is_registered_without_it():
    volume, xray, start = case()
    voxels = volume.attenuation.clone().requires_grad_(True)
    found = register(Volume.from_attenuation(voxels, volume.ijk_to_ras), xray, start, sizes=(32,), search=0)
    plain = register(Volume.from_attenuation(voxels.detach(), volume.ijk_to_ras), xray, start, sizes=(32,), search=0)
    assert torch.equal(found.poses.matrix, plain.poses.matrix) and not found.poses.matrix.requires_grad


def test_a_weight_that_shows_nothing_is_refused():
    volume, xray, start = case()
    weight = torch.zeros(48, 48)
    weight[20, 20] = 1
    with pytest.raises(RegistrationError, match="nothing to register to"):
        register(volume, xray, start, weights=[weight])


@pytest.mark.parametrize("kind", ["huber", "tukey"])
def test_robust_weights_do_no_harm_without_noise(kind):
    """Most pixels are air whose residual is zero: their median says nothing of the rest."""
    volume = phantom(shape=(24, 20, 24), spacing=14.0)
    arm = CArm(1020.0, 750.0, volume.center)
    camera = arm.camera(48, 48, (12.0, 12.0))
    start = arm.pose.retract([0.03, -0.02, 0.04, 5.0, -4.0, 6.0], volume.center)
    with torch.no_grad():
        image = Renderer(volume)(camera, arm.pose)[0, 0]
    result = register(volume, XRay(image, camera), start, robust=kind, search=0)
    offset = result.poses.matrix[0] - arm.pose.matrix
    assert float(offset[:3, :3].abs().max()) < 2e-3 and float(offset[:3, 3].abs().max()) < 2.0


def test_inference_mode_is_one_sentence():
    volume, xray, start = case()
    with torch.inference_mode(), pytest.raises(RegistrationError, match="inference_mode"):
        register(volume, xray, start)
