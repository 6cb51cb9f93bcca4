"""Cost, gradient and Gauss-Newton Hessian against differences, in float64."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from DiffDRRCore import CArm, Pose, Renderer, Volume, project
from DiffDRRCore.registration import Landmarks, Limits
from DiffDRRCore.registration.objective.knowledge import Knowledge
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.objective.views import Model, View
from DiffDRRCore.registration.problem.unknowns import State, Unknown, Unknowns
from DiffDRRCore.similarity import SIMILARITIES, LeastSquaresSimilarity
from Testing.core.registration import scene
from Testing.core.samples import differences

POINTS = torch.tensor([[30.0, 10, -40], [-25, 40, 20], [0, -30, 60], [50, 0, 0]]).double()


@cache
def in_air() -> Volume:
    """The phantom in float64 and 10 mm voxels, air all around: at a cut through tissue the field would jump."""
    coarse = scene.ct().coarsened(2).to(dtype=torch.float64)
    mu = coarse.attenuation.clone()
    for axis in range(3):
        mu.select(axis, 0).zero_()
        mu.select(axis, -1).zero_()
    return Volume.from_attenuation(mu, coarse.ijk_to_ras)


def objective(measure, views=1, limits=None, landmarks=False, weighted=False, truth=(0.0,) * 6) -> Objective:
    """X-rays of 20 x 24 pixels rendered after the motion `truth`, plus a pattern that the CT does not explain."""
    volume = in_air()
    renderer, center = Renderer(volume), volume.center
    motion = Pose.identity().retract(truth, about=center)
    made, pixels = [], []
    for primary in (10.0, 80.0)[:views]:
        arm = CArm(1000.0, 600.0, center, primary=primary, secondary=5.0)
        camera = arm.camera(20, 24, (16.0, 14.0))
        image = renderer(camera, motion @ arm.pose)
        weight = (torch.arange(480).reshape(1, 1, 20, 24) % 7 > 1).double() if weighted else None
        made.append(View(image, weight, camera, arm.pose, camera))
        pixels.append(project(camera, motion @ arm.pose, POINTS)[0])
    marks = Landmarks(POINTS, pixels) if landmarks else None
    unknowns = Unknowns([Unknown("", center, made[0].start.rotation, 100.0, limits or Limits())])
    models = [Model(renderer)]
    return Objective(models, made, measure, unknowns, Knowledge(unknowns, models, made, marks))


STILL = State.start()


def retracted(target: Objective, state: State, xi) -> State:
    """By `Pose.retract`, not by the code under test."""
    return State.of(state.first.retract(xi, about=target.unknowns.motions[0].pivot))


def here(target: Objective) -> State:
    return retracted(target, STILL, [0.02, -0.03, 0.01, 2.0, 3.0, -4.0])


def again(target: Objective, view: View) -> Objective:
    """The same with another view."""
    return Objective(target.models, [view], target.measure, target.unknowns)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("views", [1, 2])
def test_gradient(name, views):
    limits = Limits(deviations=(3.0, None, 5.0, 10.0, 10.0, 20.0), weight=0.05)
    target = objective(SIMILARITIES[name](), views, limits, landmarks=True, weighted=views == 2)
    state = here(target)
    expected = differences(
        lambda xi: target.linearize(retracted(target, state, xi)).cost[0], torch.zeros(6).double(), step=1e-6
    )
    found = target.linearize(state).gradient[0]
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


@pytest.mark.parametrize("name", ["zncc", "gradient_ncc", "gradient_correlation", "gradient_orientation", "ssd"])
@pytest.mark.parametrize("extras", [False, True])
def test_hessian_is_exact_where_images_agree(name, extras):
    limits = Limits(deviations=(3.0,) * 3 + (None,) * 3, weight=0.05) if extras else None
    target = objective(SIMILARITIES[name](), 2, limits, landmarks=extras)
    expected = differences(
        lambda xi: target.linearize(retracted(target, STILL, xi)).gradient[0],
        torch.zeros(6).double(),
        step=1e-6,
    )
    found = target.linearize(STILL).hessian[0]
    scale = expected.diagonal().sqrt()
    assert float(((found - expected) / torch.outer(scale, scale)).abs().max()) < 1e-3


def test_hessian_shrinks_with_the_agreement():
    """An X-ray half of whose signal is not in the CT: the curvature of 1 - zncc is zncc times that of agreement."""
    target = objective(SIMILARITIES["zncc"](), 1)
    view, exact = target.views[0], target.linearize(STILL).hessian
    noise = torch.randn(view.fixed.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = View(view.fixed + view.fixed.std() * noise, None, view.camera, view.start, view.full_camera)
    at = again(target, noisy).linearize(STILL)
    assert 0.6 < at.similarity < 0.8
    assert torch.allclose(at.hessian, float(at.similarity) * exact, rtol=1e-6)


@pytest.mark.parametrize("name", ["zncc", "ssd", "mutual_information"])
def test_cost_is_the_mean_over_views_plus_prior_and_landmarks(name):
    measure = SIMILARITIES[name]()
    limits = Limits(deviations=(None,) * 5 + (4.0,), weight=0.01)
    target = objective(measure, 2, limits, landmarks=True)
    state = target.unknowns.state(torch.tensor([[0, 0, 0, 0, 0, 8.0]], dtype=torch.float64))
    scores, squares = [], []
    for view, clicked in zip(target.views, target.knowledge.landmarks.points_2d, strict=True):
        pose = state.first @ view.start
        scores.append(float(measure(target.renderer(view.camera, pose), view.fixed)))
        squares.append(float((project(view.camera, pose, POINTS)[0] - clicked).square().sum(-1).mean()))
    at = target.linearize(state)
    assert float(at.similarity) == pytest.approx(sum(scores) / 2, abs=1e-12)
    prior, landmarks = 0.01 * (8 / 4) ** 2, 1e-2 * sum(squares) / 2 / 2.0**2
    assert float(at.cost) == pytest.approx(1 - sum(scores) / 2 + prior + landmarks, rel=1e-9)
    assert (at.hessian is not None) == isinstance(measure, LeastSquaresSimilarity)


def test_what_the_mask_hides_does_not_count():
    target = objective(SIMILARITIES["zncc"](), 1, weighted=True)
    view = target.views[0]
    spoilt = torch.where(view.weight > 0, view.fixed, 1e3)
    other = View(spoilt, view.weight, view.camera, view.start, view.full_camera)
    a, b = target.linearize(here(target)), again(target, other).linearize(here(target))
    assert torch.allclose(a.cost, b.cost, atol=1e-12)
    assert torch.allclose(a.gradient, b.gradient)
    assert torch.allclose(a.hessian, b.hessian)


def test_landmark_that_a_view_does_not_show():
    target = objective(SIMILARITIES["zncc"](), 2, landmarks=True)
    target.knowledge.landmarks.points_2d[1][0] = math.nan
    at = target.linearize(here(target))
    assert bool(torch.isfinite(at.cost).all())
    assert bool(torch.isfinite(at.gradient).all())


def test_nothing_in_sight_costs_infinitely():
    target = objective(SIMILARITIES["zncc"](), 1)
    away = retracted(target, STILL, [0, 0, 0, 5000.0, 0, 0])
    assert target.linearize(away).cost == math.inf


@pytest.mark.parametrize("rows", [40, 10])
def test_variance_is_that_of_the_noise_in_the_pixels_that_count(rows):
    """SSD, one view, a CT in the middle of air: twice the variance of the noise, over the number of pixels."""
    camera, pose = CArm(1000.0, 600.0, in_air().center).camera(40, 40, (8.0, 8.0)), CArm(1000.0, 600.0).pose
    renderer = Renderer(in_air())
    noise = 0.1 * torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = (torch.arange(40) < rows).double()[None, None, :, None].expand(1, 1, 40, 40)
    view = View(renderer(camera, pose) + noise, mask, camera, pose, camera)
    unknowns = Unknowns([Unknown("", in_air().center, pose.rotation, 100.0)])
    at = Objective([Model(renderer)], [view], SIMILARITIES["ssd"](), unknowns).linearize(STILL)
    assert float(at.variance) == pytest.approx(2 * 0.1**2 / (40 * rows), rel=0.2)
