"""Optimisers in the corners: bounds, scaled differences, a parallel beam; and options that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from DiffDRRCore import Camera, Registration, Volume, XRay, register
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.registration import Landmarks, Limits
from Testing.core.registration import scene

SCALE = np.array([0.02] * 3 + [2.0] * 3)


@pytest.mark.parametrize("optimizer", ["levenberg_marquardt", "lbfgs"])
@pytest.mark.parametrize("bounds", [(None,) * 5 + (3.0,), (1.0,) + (None,) * 5, (1.0, 1.0, None, 2.0, 2.0, 2.0)])
def test_bounded_optimum_is_that_of_scipy(bounds, optimizer):
    """L-BFGS-B on q from beside the answer finds nothing better; bounds in tilt, shift and depth at once included."""
    xray, limits = scene.xray(), Limits(bounds=bounds)
    start = scene.moved(xray.pose)
    told = {"limits": limits, "beyond_ends": True}  # the same pixels wherever it starts
    result = register(scene.ct(), xray, start, sizes=scene.SIZES, optimizer=optimizer, **told)
    objective = Registration(scene.ct(), xray, start, sizes=(64,), **told).levels[-1].objective
    unknowns = objective.unknowns

    def cost(z):
        state = unknowns.state(torch.from_numpy(z * SCALE)[None])
        at = objective.linearize(state)
        slope = torch.linalg.solve(unknowns.coordinates_and_slope(state)[1].mT, at.gradient)
        return float(at.cost), slope[0].numpy() * SCALE

    largest = [
        (None if b is None else (np.radians(b) if axis < 3 else b) / SCALE[axis]) for axis, b in enumerate(bounds)
    ]
    q = unknowns.motions[0].frame.coordinates(result.poses[0] @ start.inverse()).numpy()
    box = [(None if b is None else -b, b) for b in largest]
    best = minimize(cost, 0.97 * q / SCALE, jac=True, bounds=box, method="L-BFGS-B", options={"maxiter": 40})
    assert result.converged
    assert result.at_bound
    assert 1 - result.similarity < best.fun + 1e-4


@pytest.mark.parametrize("optimizer", ["levenberg_marquardt", "adam"])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_differences_do_not_stop_early_where_images_are_faint(optimizer, scale):
    """The sum of squares falls with the square of the images' unit; where the search ends must not."""
    truth = scene.xray()
    image = scene.image_of(scene.ct(), truth.camera, truth.pose).image * scale
    faint = Volume.from_attenuation(scene.ct().attenuation * scale, scene.ct().ijk_to_ras)
    options = {"similarity": "ssd", "optimizer": optimizer, "sizes": scene.SIZES}
    result = register(faint, XRay(image, truth.camera), scene.moved(truth.pose), **options)
    assert scene.error(result.poses[0], truth.pose) < 1.0


def test_mutual_information_by_lbfgs_is_the_automatic_choice():
    """As good as where SciPy's L-BFGS-B ends from the truth, in far fewer steps than Adam takes."""
    xray = scene.xray()
    start = scene.moved(xray.pose)
    registration = Registration(scene.ct(), xray, start, sizes=scene.SIZES, similarity="mutual_information", search=0)
    for _ in registration.steps():
        pass
    result = registration.result()
    again = register(
        scene.ct(), xray, start, sizes=scene.SIZES, similarity="mutual_information", optimizer="lbfgs", search=0
    )
    assert torch.equal(result.poses.matrix, again.poses.matrix)
    assert result.converged
    assert len(result.history) < 80
    objective = registration.levels[-1].objective
    unknowns = objective.unknowns

    def cost(z):
        state = unknowns.state(torch.from_numpy(z * SCALE)[None])
        at = objective.linearize(state)
        slope = torch.linalg.solve(unknowns.coordinates_and_slope(state)[1].mT, at.gradient)
        return float(at.cost), slope[0].numpy() * SCALE

    q = unknowns.motions[0].frame.coordinates(xray.pose @ start.inverse()).numpy()
    best = minimize(cost, q / SCALE, jac=True, method="L-BFGS-B", options={"maxiter": 60})
    assert 1 - result.similarity < best.fun + 1e-3
    assert scene.error(result.poses[0], xray.pose) < 2.0


def test_parallel_beam_says_that_it_does_not_know_the_depth():
    """The depth stays where it was, the rest is found; the stated deviation along the beam is useless and finite."""
    truth = scene.xray()
    camera = Camera.parallel_beam(64, 64, (5.0, 5.0), 1000.0)
    xray = scene.image_of(scene.ct(), camera, truth.pose)
    result = register(scene.ct(), xray, scene.moved(truth.pose), sizes=scene.SIZES)
    across = truth.pose.rotation[:, :2]
    found = result.poses[0].transform(torch.tensor([[0.0, 0.0, 600.0]], dtype=torch.float64))[0]
    expected = truth.pose.transform(torch.tensor([[0.0, 0.0, 600.0]], dtype=torch.float64))[0]
    assert float(((found - expected) @ across).norm()) < 0.5
    shift = result.covariance[3:, 3:]
    beam = truth.pose.rotation[:, 2]
    assert 100 < float((beam @ shift @ beam).sqrt()) < float("inf")
    assert float(result.standard_deviations[:3].max()) < 1.0


def test_xray_of_another_floating_type():
    xray = scene.xray()
    start = scene.moved(xray.pose)
    double = register(scene.ct(), XRay(xray.image.double(), xray.camera), start, sizes=(32,))
    single = register(scene.ct(), xray, start, sizes=(32,))
    assert torch.allclose(double.poses.matrix, single.poses.matrix, atol=1e-3)


def test_a_start_that_fails_alone_is_rescued_by_others():
    xray = scene.xray()
    lost = scene.moved(xray.pose, (0.0, 0.0, 1.6, 0.0, 0.0, 0.0))
    options = {"sizes": (16, 32), "start_spread": (35.0, 10.0, 10.0), "max_steps": 25}
    assert scene.error(register(scene.ct(), xray, lost, search=0, **options).poses[0], xray.pose) > 20
    assert scene.error(register(scene.ct(), xray, lost, search=0, starts=12, **options).poses[0], xray.pose) < 2


MARKS = torch.tensor([[0.0, 0, 0], [30, 0, 0], [0, 0, 50], [0, 20, 20]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"similarity": "mutual_information", "optimizer": "levenberg_marquardt"}, "not a sum of squares"),
        ({"starts": 2.5}, "whole number"),
        ({"search": -1}, "search is a whole number of 0 or more"),
        ({"pixels": 3}, "pixels is a whole number of 16 or more"),
        ({"max_steps": 0}, "whole number"),
        ({"max_seconds": -1}, "max_seconds must be a positive"),
        ({"start_spread": (1.0, 2.0)}, "start_spread"),
        ({"learning_rate": (1e-3,)}, "learning_rate"),
        ({"weights": [None, None]}, "1 X-rays but 2 weights"),
        ({"weights": [torch.ones(5, 5)]}, "64 x 64 pixels"),
        ({"weights": [torch.zeros(64, 64)]}, "some above"),
        ({"initial": "pose.json"}, "one Pose"),
        ({"landmarks": Landmarks(MARKS, [torch.ones(4, 2)] * 2)}, "landmarks for 2"),
        ({"landmarks": Landmarks(MARKS - torch.tensor([0, 1e4, 0]), [torch.ones(4, 2)])}, "behind the X-ray source"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(RegistrationError, match=words):
        Registration(scene.ct(), scene.xray(), **options)


@pytest.mark.parametrize("marks", [(MARKS[:, :2], [MARKS[:, :2]]), (MARKS, [MARKS])])
def test_landmarks_of_wrong_shape(marks):
    with pytest.raises(RegistrationError, match=r"\[N, 3\] points"):
        Landmarks(*marks)
