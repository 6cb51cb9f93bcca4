"""Per-label channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import CArm, Renderer, Volume
from DiffDRRCore.errors import RenderError, VolumeError
from Testing.core import samples
from Testing.core.rendering import reference
from Testing.core.samples import differences, jacobian

MODES = [("trilinear", "nearest"), ("trilinear", "soft"), ("siddon", "nearest"), ("siddon", "soft")]
SHAPE = (6, 7, 8)
NAMES = {1: "femur", 2: "pelvis"}


def labelled(seed: int = 0) -> Volume:
    """Random attenuation, dense up to the volume's rim, with labels 0, 1, 2 and 5 in random voxels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 5], SHAPE)
    affine = samples.oblique_grid(rng, SHAPE, spacing=(2.0, 4.0))
    return reference.double(rng.uniform(0.01, 0.05, SHAPE), affine, labels, label_names=NAMES)


def view(volume: Volume, size: int = 12):
    off_centre = (
        volume.center + 0.7
    )  # no pixel's ray runs exactly through a voxel's edge, where Siddon has no derivative
    carm = CArm(900, 600, off_centre, primary=23, secondary=-31)
    return carm.camera(size, size, (60 / size, 60 / size)), carm.pose


def only(volume: Volume, label: int) -> Volume:
    mu = torch.where(volume.labels == label, volume.attenuation, 0.0)
    return Volume.from_attenuation(mu, volume.ijk_to_ras)


@pytest.mark.parametrize("integrator, mode", MODES)
def test_the_channels_of_all_labels_sum_to_the_plain_image(integrator, mode):
    volume = labelled()
    renderer, (camera, pose) = Renderer(volume, integrator), view(volume)
    channels = renderer(camera, pose, labels=[0, 1, 2, 5], label_mode=mode)
    plain = renderer(camera, pose)
    assert channels.shape == (1, 4, 12, 12)
    assert (plain > 0).sum() > 50
    assert torch.allclose(channels.sum(1, keepdim=True), plain, rtol=1e-12, atol=1e-12)
    assert (channels.flatten(2).sum(-1) > 0).all()


@pytest.mark.parametrize("integrator, mode", [mode for mode in MODES if mode != ("trilinear", "nearest")])
def test_a_channel_is_the_image_of_a_volume_with_only_that_label(integrator, mode):
    volume = labelled(1)
    camera, pose = view(volume)
    channels = Renderer(volume, integrator)(camera, pose, labels=[5, 1], label_mode=mode)
    for channel, label in zip(channels[0], (5, 1), strict=True):
        assert torch.allclose(channel, Renderer(only(volume, label), integrator)(camera, pose)[0, 0], rtol=1e-12)


def test_a_nearest_channel_is_the_interpolated_field_where_the_nearest_voxel_has_the_label():
    """A bar of four voxels of 1 per mm labelled 1, 1, 2, 2: the field's ramps at its ends go to the outer labels."""
    volume = reference.double(np.ones((1, 1, 4)), np.eye(4), np.array([[[1, 1, 2, 2]]]))
    renderer = Renderer(volume, "trilinear", step=0.001)
    channels = renderer.trace([[-9.0, 0, 0]], [[9.0, 0, 0]], labels=[1, 2])[:, 0]
    assert channels.tolist() == pytest.approx([2, 2], rel=1e-3)
    volume = reference.double(np.array([[[1.0, 3.0]]]), np.eye(4), np.array([[[1, 2]]]))
    channels = Renderer(volume, "trilinear", step=0.001).trace([[-9.0, 0, 0]], [[9.0, 0, 0]], labels=[1, 2])[:, 0]
    by_hand = [0.5 + (1 + 2) / 2 / 2, (2 + 3) / 2 / 2 + 1.5]  # ramp 0..1, then 1..2 | 2..3, ramp 3..0
    assert channels.tolist() == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("integrator, mode", [("trilinear", "soft"), ("siddon", "nearest")])
def test_gradients_of_a_channel_to_the_pose(integrator, mode):
    volume = labelled(2)
    camera, pose = view(volume, 5)
    renderer = Renderer(volume, integrator)
    render = lambda xi: renderer(camera, pose.retract(xi, volume.center), [1, 2], mode)  # noqa: E731
    at = torch.zeros(6, dtype=torch.float64)
    expected = differences(render, at, 1e-7)
    scale = expected.flatten(0, -2).abs().amax(0)
    assert float(((jacobian(render, at) - expected).abs() / scale).max()) < 1e-3


@pytest.mark.parametrize("integrator, mode", MODES)
def test_gradients_of_a_channel_to_the_volume(integrator, mode):
    volume = labelled(3)
    camera, pose = view(volume, 4)
    at = volume.attenuation[:3, :3, :3].clone()
    labels = volume.labels[:3, :3, :3]

    def render(mu):
        small = Volume.from_attenuation(mu, volume.ijk_to_ras, labels)
        return Renderer(small, integrator)(camera, pose, [1], mode).sum()

    assert torch.allclose(jacobian(render, at), differences(render, at, 1e-3), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
def test_names_numbers_and_absent_labels(integrator):
    volume = labelled(4)
    renderer, (camera, pose) = Renderer(volume, integrator), view(volume)
    by_number = renderer(camera, pose, labels=[2, 1])
    assert torch.equal(renderer(camera, pose, labels=["pelvis", "femur"]), by_number)
    assert torch.equal(renderer(camera, pose, labels=["pelvis", 1]), by_number)
    assert torch.equal(renderer(camera, pose, labels="femur"), by_number[:, 1:])
    assert torch.equal(renderer(camera, pose, labels=1), by_number[:, 1:])
    assert renderer(camera, pose, labels=[99]).abs().max() == 0


def test_what_cannot_be_rendered_is_refused():
    volume = labelled(5)
    renderer, (camera, pose) = Renderer(volume), view(volume)
    with pytest.raises(VolumeError, match="tibia"):
        renderer(camera, pose, labels=["tibia"])
    with pytest.raises(RenderError, match="empty"):
        renderer(camera, pose, labels=[])
    with pytest.raises(RenderError, match="'nearest' or 'soft'"):
        renderer(camera, pose, labels=[1], label_mode="hard")
    with pytest.raises(RenderError, match="no labelmap"):
        Renderer(only(volume, 1))(camera, pose, labels=[1])
