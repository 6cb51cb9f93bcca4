"""Reasons to doubt a registration: each from numbers by hand, and all of them on right and wrong answers."""

from __future__ import annotations

import math
import re

import pytest
import torch

from DiffDRRCore import Pose, Renderer
from DiffDRRCore.registration.certainty.appearance import Appearance, appearance, disagreement, looks_negative
from DiffDRRCore.registration.certainty.doubts import doubts, target_deviations
from Testing.core.registration import scene

GOOD = Appearance(grey=0.98, edges=0.95, unexplained=0.03, blob=0.0, blob_at=None)


def test_nothing_to_doubt():
    covariance = torch.diag(torch.tensor([1e-6] * 3 + [0.01] * 3)).double()
    numbers = {"similarity": 0.98, "initial_similarity": 0.8, "covariance": covariance, "disagreements": [(0.3, 1.0)]}
    assert doubts(appearances=[GOOD], first_level_similarity=0.98, **numbers) == []


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"appearances": [Appearance(0.97, 0.3, 0.0, 0.0, None)]}, "The outlines in the X-ray"),
        ({"appearances": [GOOD, Appearance(0.5, 0.95, 0.0, 0.0, None)]}, "grey values of X-ray 2"),
        ({"appearances": [Appearance(0.98, 0.95, 0.2, 0.12, (30.0, 40.0))]}, r"pixel \(30, 40\).*12% of"),
        ({"appearances": [Appearance(0.98, 0.95, 0.3, 0.0, None)]}, "30% of the CT's shadow"),
        ({"disagreements": [(0.1, 30.0)]}, "0.1 mm across and 30.0 mm along"),
        ({"at_bound": ["depth"]}, "bound of depth"),
        ({"negative": [2]}, "X-ray 2 looks like a negative"),
        ({"converged": False}, "not converged"),
        ({"similarity": 0.7, "initial_similarity": 0.8}, "no better than the start"),
        ({"alternatives": [{"similarity": 0.9}], "first_level_similarity": 0.9001}, "nearly as good"),
        ({"covariance": torch.eye(6).double() * math.nan}, "not finite"),
    ],
)
def test_each_reason_is_one_sentence(numbers, words):
    (sentence,) = doubts(**numbers)
    assert re.search(words, sentence)
    assert sentence[0].isupper()
    assert sentence.endswith(".")


def test_depth_that_is_not_determined():
    """By hand: 4 mm along y, and 0.01 rad about z at 300 mm along x, which is 3 mm along y: 5 mm together."""
    covariance = torch.diag(torch.tensor([0.0, 0.0, 1e-4, 0.0, 16.0, 0.0])).double()
    about, point = torch.zeros(3), torch.tensor([[300.0, 0.0, 0.0]])
    size, axis = target_deviations(covariance, about, point)
    assert size == pytest.approx(5.0)
    assert axis.abs().tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-9)
    (sentence,) = doubts(covariance=covariance, about=about, points=point)
    assert "back-front direction to ±5.0 mm" in sentence


def test_disagreement_by_hand():
    """The camera looks along y: 3 mm along x and 4 mm along y are 3 across and 4 along the beam."""
    truth = Pose(torch.tensor([[1, 0, 0, 0], [0, 0, 1, -850], [0, -1, 0, 0], [0, 0, 0, 1]]).double())
    moved = truth.retract(torch.tensor([0, 0, 0, 3.0, 4.0, 0]).double())
    assert disagreement(truth, moved, torch.randn(5, 3).double()) == pytest.approx((3.0, 4.0))


def test_right_and_wrong_poses_of_the_phantom():
    xray, renderer = scene.xray(), Renderer(scene.ct())
    right = appearance(renderer, xray, xray.pose)
    wrong = appearance(renderer, xray, scene.moved(xray.pose))
    assert doubts(appearances=[right]) == []
    assert any("outlines" in sentence for sentence in doubts(appearances=[wrong]))


def test_a_blob_is_found_where_it_is_and_not_where_it_does_not_count():
    clean = scene.xray()
    image = clean.image.clone()
    image[20:34, 30:44] += 3.0
    spoilt, renderer = clean.with_image(image), Renderer(scene.ct())
    found = appearance(renderer, spoilt, clean.pose)
    assert found.blob > 0.03
    assert found.blob_at == pytest.approx((36.5, 26.5), abs=2)
    weight = torch.ones(64, 64)
    weight[19:35, 29:45] = 0
    assert appearance(renderer, spoilt, clean.pose, weight).blob < 0.01


def test_a_negative_is_seen_from_a_far_start():
    xray = scene.xray()
    with torch.no_grad():
        rendered = Renderer(scene.ct())(xray.camera, scene.moved(xray.pose))[0, 0]
    assert looks_negative(-xray.image, rendered)
    assert not looks_negative(xray.image, rendered)
    assert not looks_negative(torch.zeros(64, 64), rendered)
