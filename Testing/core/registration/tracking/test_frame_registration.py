"""A frame's last step without an image: what is foretold is what is rendered, and the answer stays the same."""

from __future__ import annotations

import pytest
import torch

from DiffDRRCore.pieces import finished
from DiffDRRCore.registration import Limits, Registration
from DiffDRRCore.registration.tracking import Tracking
from DiffDRRCore.registration.tracking.frame_registration import FrameRegistration
from Testing.core.registration.tracking.runs import ct, error, frame, motion, starts


def registration(kind=Registration, **options):
    shown = frame(0.1)
    return kind(ct(), shown, starts(), sizes=(64,), search=0, second=None, **options)


def answers(**options) -> dict:
    """{whether the last step was trusted: (what was found, images rendered)}."""
    found = {}
    for trusts in (False, True):
        one, count = registration(FrameRegistration, tolerance=0.02, **options), [0]
        one.trusts_last_step = trusts
        objective = one.levels[-1].objective
        rendered = objective.images.linearizing

        def counted(view, state, rendered=rendered, count=count):
            count[0] += 1
            return rendered(view, state)

        objective.images.linearizing = counted
        list(one.steps())
        found[trusts] = (finished(one.finding()), count[0])
    return found


def test_foretold_images_are_the_rendered_ones_to_first_order():
    """Halving the step quarters what they miss."""
    objective = registration().levels[-1].objective
    at = objective.linearize(objective.unknowns.start())
    step = torch.tensor([[0.004, -0.003, 0.002, 0.3, -0.4, 0.5]], dtype=torch.float64)
    missed, costs = [], []
    for share in (1.0, 0.5):
        state = objective.unknowns.moved(at.state, share * step)
        foretold, true = finished(objective.foretelling(at, state, share * step)), objective.linearize(state)
        pairs = zip(foretold.images, true.images, strict=True)
        missed.append(sum(float((a[0] - b[0]).norm()) for a, b in pairs))
        costs.append(abs(float(foretold.cost - true.cost)) / abs(float(at.cost - true.cost)))
    assert 3.0 < missed[0] / missed[1] < 5.0
    assert max(costs) < 0.1


@pytest.mark.parametrize("options", [{}, {"limits": Limits((None, None, None, 0.06, None, None))}, {"robust": "huber"}])
def test_the_answer_is_the_same_with_fewer_images(options):
    found = answers(**options)
    (plain, more), (trusted, fewer) = found[False], found[True]
    assert fewer < more
    assert trusted["converged"]
    assert error(plain["patient_motion"], trusted["patient_motion"]) < 0.05
    assert trusted["similarity"] == pytest.approx(plain["similarity"], abs=2e-5)
    assert torch.allclose(trusted["covariance"].diagonal(), plain["covariance"].diagonal(), rtol=0.1)


def test_a_tolerance_that_is_asked_for_is_kept():
    """Of a run: then the end of each frame is confirmed by an image."""
    errors = []
    for options in ({}, {"tolerance": 0.001}):
        tracking = Tracking(ct(), [frame(float(n)) for n in range(3)], starts(), sizes=(32, 64), search=16, **options)
        list(tracking.steps())
        errors.append([error(pose, motion(n)) for n, pose in enumerate(tracking.result().motions.matrix[:, 0])])
    assert max(abs(a - b) for a, b in zip(*errors, strict=True)) < 0.05
    assert max(errors[0]) < 0.5
