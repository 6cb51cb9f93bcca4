"""The losses against evaluation's measures, hand-worked cases and a descent on the phantom."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from DiffDRRCore import Camera, Pose, Renderer
from DiffDRRCore.datasets import phantom
from DiffDRRCore.errors import LearningError
from DiffDRRCore.evaluation import measures
from DiffDRRCore.geometry import stack_poses
from DiffDRRCore.learning.network.losses import (
    LossWeights,
    PoseLosses,
    consistency_loss,
    dice_loss,
    geodesic_loss,
    likelihood_loss,
    ncc_loss,
    pose_error,
    seen_loss,
    soft_mask,
)
from Testing.core import samples

LABELS = ("vertebrae", "hip_right", "hip_left", "femur_left")
CAMERA = Camera(32, 32, (12.0, 12.0), 1000.0)
SPREAD = (0.2, 0.1, 0.05, 0.03)  # rad, widths, heights, log scale
EVERY = LossWeights(seen=1.0, ncc=1.0, geodesic=1e-2, dice=1.0, consistency=1e-2, likelihood=0.1)
FRAME_TO_WORLD = Pose.from_parameters([0.1, -0.2, 0.3], [5.0, -8.0, 0.0], "axis_angle")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(phantom((40, 26, 34), 10.0), backend="torch")


def poses(count: int = 2) -> Pose:
    """camera_to_frame of views from the front, a little to the sides, the frame's origin 700 mm away."""
    front = torch.eye(4, dtype=torch.float64)
    front[:3, :3] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, -1.0, 0.0]]) @ torch.diag(
        torch.tensor([-1.0, 1.0, 1.0])
    )
    front[:3, 3] = -700 * front[:3, 2]
    views = [Pose(front).retract([0.0, 0.0, 0.25 * n, 10.0 * n, 5.0, 0.0]) for n in range(count)]
    return FRAME_TO_WORLD.inverse() @ stack_poses(views)


def random_poses(seed: int, count: int = 6) -> Pose:
    rng = np.random.default_rng(seed)
    return stack_poses([samples.looking_at(rng, rng.normal(0, 30, 3), rng.uniform(500, 900)) for _ in range(count)])


def off_by(xi, pose: Pose) -> Pose:
    return pose.retract(torch.as_tensor(xi, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_the_geodesic_is_evaluations(seed):
    estimate, truth = random_poses(seed), random_poses(seed + 100)
    distance = torch.linspace(800, 1300, 6, dtype=torch.float64)
    camera = Camera(32, 32, (12.0, 12.0), distance)
    expected = measures.double_geodesic(estimate, truth, distance, [0.0, 0.0, 0.0]).total
    torch.testing.assert_close(geodesic_loss(estimate, truth, camera), expected, rtol=1e-9, atol=1e-6)
    near = off_by([1e-5, 0, 2e-5, 0.01, 0, -0.02], truth)
    expected = measures.double_geodesic(near, truth, distance, [0.0, 0.0, 0.0]).total
    torch.testing.assert_close(geodesic_loss(near, truth, camera), expected, rtol=1e-6, atol=1e-6)


def test_the_geodesic_by_hand():
    """One degree about the frame's origin: an arc at 500 mm; and 3, 4, 12 mm."""
    truth = poses()
    turned = geodesic_loss(off_by([0, 0, math.radians(1), 0, 0, 0], truth), truth, CAMERA)
    torch.testing.assert_close(turned, torch.full((2,), 500 * math.pi / 180, dtype=torch.float64))
    moved = geodesic_loss(off_by([0, 0, 0, 3, 4, 12], truth), truth, CAMERA)
    torch.testing.assert_close(moved, torch.full((2,), 13.0, dtype=torch.float64))
    both = geodesic_loss(off_by([0, math.pi, 0, 0, 0, 0], truth), truth, CAMERA)
    torch.testing.assert_close(both, torch.full((2,), 500 * math.pi, dtype=torch.float64))


def test_what_is_seen_by_hand():
    """Of an anatomy straight ahead: a turn of 0.3 rad; twice the depth; 8 of 32 pixels aside. None changes the others.

    |R - 1|^2 of a turn by an angle a is 4 (1 - cos a).
    """
    truth = poses(1)
    depth = float(truth.inverse().translation[0, 2])
    turn, far, swung = (torch.eye(4, dtype=torch.float64) for _ in range(3))
    turn[:3, :3] = torch.from_numpy(Rotation.from_rotvec([0.0, 0.0, 0.3]).as_matrix())
    far[2, 3] = depth
    straight = truth.inverse().matrix.clone()
    straight[:, :2, 3] = 0.0
    expected = {
        "turn": (turn, 2 * (1 - math.cos(0.3)) / SPREAD[0] ** 2 / 2),
        "far": (far, (math.log(2) / SPREAD[3]) ** 2 / 6),
    }
    for name, (motion, value) in expected.items():
        found = seen_loss(Pose(motion @ straight).inverse(), Pose(straight).inverse(), CAMERA, SPREAD)
        assert float(found) == pytest.approx(value, rel=1e-9), name
    # the same sight from the side: the least rotation towards it turns the anatomy as well
    toward = np.array([8 * depth / float(CAMERA.K[0, 0]), 0.0, depth])
    swung[:3, :3] = torch.from_numpy(Rotation.align_vectors(toward[None], [[0.0, 0.0, 1.0]])[0].as_matrix())
    swung[:3, 3] = torch.from_numpy(toward) - swung[:3, :3] @ torch.tensor([0.0, 0.0, depth]).double()
    found = seen_loss(Pose(swung @ straight).inverse(), Pose(straight).inverse(), CAMERA, SPREAD)
    assert float(found) == pytest.approx((8 / 32 / SPREAD[1]) ** 2 / 6, rel=1e-9)


def test_consistency_sees_the_views_to_each_other_only():
    truth = poses(3)
    frame = Pose.from_parameters([0.3, -0.5, 0.2], [20.0, 10.0, -40.0], "axis_angle")
    assert float(consistency_loss(frame @ truth, truth, CAMERA)) < 1e-5
    assert float(geodesic_loss(frame @ truth, truth, CAMERA).min()) > 100
    assert float(consistency_loss(truth[:1], truth[:1], CAMERA)) == 0
    # one of three views is 6 mm off: two of the three pairs are
    wrong = stack_poses([truth[0], off_by([0, 0, 0, 6, 0, 0], truth[1]), truth[2]])
    assert float(consistency_loss(wrong, truth, CAMERA)) == pytest.approx(4.0, abs=1e-5)
    turned = stack_poses([truth[0], truth[1], off_by([0, 0.02, 0, 0, 0, 0], truth[2])])
    assert float(consistency_loss(turned, truth, CAMERA)) == pytest.approx(2 / 3 * 500 * 0.02, abs=1e-5)


def test_the_pose_error_leads_from_estimate_to_truth():
    estimate, truth = (random_poses(seed).inverse().matrix.numpy() for seed in (1, 2))
    xi = pose_error(random_poses(1), random_poses(2)).numpy()
    turned = Rotation.from_rotvec(xi[:, :3]).as_matrix() @ estimate[:, :3, :3]
    np.testing.assert_allclose(turned, truth[:, :3, :3], atol=1e-9)
    np.testing.assert_allclose(estimate[:, :3, 3] + xi[:, 3:], truth[:, :3, 3], atol=1e-9)


def test_small_pose_errors_as_motions_of_the_camera():
    truth = random_poses(3)
    zeta = 1e-5 * torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    xi = pose_error(truth, truth.retract(zeta))
    back = -(truth.rotation[:, None] @ xi.reshape(6, 2, 3, 1)).reshape(6, 6)
    torch.testing.assert_close(back, zeta, rtol=0, atol=1e-9)


def test_the_most_likely_deviation_is_the_rms_of_the_errors():
    rng, truth = np.random.default_rng(4), random_poses(4, 200)
    xi = torch.tensor(rng.normal(0, [0.02, 0.05, 0.1, 1.0, 3.0, 30.0], (200, 6)))
    estimate = off_by(xi, truth)
    rms = pose_error(estimate, truth).square().mean(dim=0).sqrt()
    best = rms.log().requires_grad_()
    loss = likelihood_loss(estimate, truth, best.expand(200, 6)).mean()
    (slope,) = torch.autograd.grad(loss, best)
    torch.testing.assert_close(slope, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(loss.detach()) == pytest.approx(float((0.5 + rms.log()).mean()))
    best = best.detach()
    for change in (-0.1, 0.1):
        assert float(likelihood_loss(estimate, truth, (best + change).expand(200, 6)).mean()) > float(loss.detach())


def test_the_likelihood_leaves_the_pose_alone_unless_asked():
    truth = poses()
    xi = torch.full((2, 6), 0.1, dtype=torch.float64, requires_grad=True)
    deviation = torch.zeros(2, 6, requires_grad=True)
    likelihood_loss(truth.retract(xi), truth, deviation).sum().backward()
    assert xi.grad is None or not bool(xi.grad.any())
    assert bool(deviation.grad.all())
    likelihood_loss(truth.retract(xi), truth, deviation, stop_mean=False).sum().backward()
    assert bool(xi.grad.all())


def test_dice_by_hand():
    """Opaque squares of 4 x 4: half of it covered is Dice 2 * 8 / 32; without a common pixel 0."""
    true = torch.zeros(1, 3, 16, 16)
    true[0, :2, 4:8, 4:8] = 100.0
    found = torch.zeros(1, 3, 16, 16)
    found[0, 0, 4:8, 6:10] = 100.0
    found[0, 1, 12:16, 4:8] = 100.0
    found[0, 2] = 100.0  # not in the true image: does not count
    assert float(dice_loss(found, true)) == pytest.approx((0.5 + 1.0) / 2, abs=1e-6)
    assert float(dice_loss(true, true)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(found, torch.zeros_like(true))) == 0
    torch.testing.assert_close(soft_mask(torch.tensor([0.0, 0.1])), torch.tensor([0.0, 1 - math.exp(-1)]))


def test_ncc_is_that_of_the_images(renderer):
    with torch.no_grad():
        image = renderer(CAMERA, FRAME_TO_WORLD @ poses())
    whole = ncc_loss(image, 3 * image + 2, (None,))
    torch.testing.assert_close(whole, torch.zeros(2), rtol=0, atol=1e-5)
    other = image.flip(-1)
    expected = [1 - np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(image, other, strict=True)]
    torch.testing.assert_close(ncc_loss(image, other, (None,)), torch.tensor(expected, dtype=torch.float32))
    assert bool((ncc_loss(image, other) > ncc_loss(image, image)).all())


def terms(renderer, weights, xi, truth, deviation):
    with torch.no_grad():
        clean = renderer(CAMERA, FRAME_TO_WORLD @ truth)
    losses = PoseLosses(weights, SPREAD, labels=LABELS, stop_mean=False)
    return losses(truth.retract(xi), truth, CAMERA, deviation, renderer, FRAME_TO_WORLD, clean)


@pytest.mark.parametrize("term", ["seen", "ncc", "geodesic", "dice", "consistency", "likelihood"])
def test_every_term_moves_every_part_of_the_pose(renderer, term):
    """At a wrong pose the gradient by each of the six numbers of each view is finite and not 0."""
    truth, knows = poses(), {"seen": 0, "ncc": 1e-12, "geodesic": 0, "dice": 0, "consistency": 0, "likelihood": 0}
    weights = LossWeights(**{**knows, term: 1.0})
    xi = torch.tensor([[0.05, -0.04, 0.08, 6.0, -9.0, 12.0], [-0.03, 0.06, 0.02, 8.0, 5.0, -9.0]]).double()
    xi.requires_grad_()
    losses = terms(renderer, weights, xi, truth, torch.zeros(2, 6))
    assert bool(losses.total.isfinite())
    assert set(losses.terms) == {"ncc", term}
    (slope,) = torch.autograd.grad(losses.total, xi)
    assert bool(slope.isfinite().all())
    assert bool((slope.abs() > 1e-9).all()), slope


def test_every_term_is_finite_at_the_true_pose_and_far_beside(renderer):
    truth = poses()
    for offset in ([0.0] * 6, [0, 0, 0, 5000.0, 0, 0], [math.pi, 0, 0, 0, 0, 0]):
        xi = torch.tensor([offset, offset], dtype=torch.float64, requires_grad=True)
        losses = terms(renderer, EVERY, xi, truth, torch.zeros(2, 6, requires_grad=True))
        (slope,) = torch.autograd.grad(losses.total, xi)
        assert bool(losses.total.isfinite())
        assert bool(slope.isfinite().all())
    at_truth = terms(renderer, EVERY, torch.zeros(2, 6), truth, None)
    assert set(at_truth.terms) == {"seen", "ncc", "geodesic", "dice", "consistency"}
    assert max(float(at_truth.terms[name]) for name in ("seen", "geodesic", "dice", "consistency")) < 1e-5
    assert float(at_truth.terms["ncc"]) < 0.1


def test_the_total_is_the_weighted_sum(renderer):
    xi = torch.full((2, 6), 0.05, dtype=torch.float64)
    losses = terms(renderer, EVERY, xi, poses(), torch.zeros(2, 6))
    expected = sum(getattr(EVERY, name) * value for name, value in losses.terms.items())
    assert float(losses.total) == pytest.approx(float(expected))
    assert set(losses.terms) == set(EVERY.__dataclass_fields__)
    assert not any(value.requires_grad for value in losses.terms.values())


def test_dice_alone_finds_the_way(renderer):
    """Steps down its gradient lower it and bring the pose nearer, which a thresholded mask cannot."""
    truth, scale = poses(1), torch.tensor([0.1] * 3 + [10.0] * 3, dtype=torch.float64)
    xi = torch.tensor([[0.0, 0.0, 0.5, 2.0, 0.0, -1.5]], dtype=torch.float64, requires_grad=True)
    losses = PoseLosses(LossWeights(seen=0, ncc=0, geodesic=0, dice=1, likelihood=0), labels=LABELS)
    history, errors = [], []
    for step in range(15):
        estimate = truth.retract(xi * scale)
        loss = losses(estimate, truth, CAMERA, None, renderer, FRAME_TO_WORLD).total
        (slope,) = torch.autograd.grad(loss, xi)
        xi = (xi - 0.4 * 0.93**step * slope / slope.norm()).detach().requires_grad_()
        history.append(float(loss.detach()))
        errors.append(float(geodesic_loss(estimate.detach(), truth, CAMERA)))
    assert history[-1] < history[0] / 10, history
    assert errors[-1] < errors[0] / 3, errors


def test_what_is_refused():
    with pytest.raises(LearningError, match="weight of the loss 'ncc' is a number from 0 up, not -1"):
        LossWeights(ncc=-1)
    with pytest.raises(LearningError, match="needs a loss that knows the pose"):
        LossWeights(seen=0, ncc=0, geodesic=0, consistency=1)
    with pytest.raises(LearningError, match="'dice' needs labels"):
        PoseLosses(LossWeights(dice=1), SPREAD)
    with pytest.raises(LearningError, match="'seen' needs the spread"):
        PoseLosses()
