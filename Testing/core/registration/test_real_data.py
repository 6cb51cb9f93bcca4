"""Registration on real CTs and real X-rays. Numbers of many more starts are in Testing/benchmarks/RESULTS.md."""

from __future__ import annotations

import pytest
import torch

from DiffDRRCore import Pose, Renderer, Volume, register
from DiffDRRCore.evaluation.measures import components, target_registration_error
from DiffDRRCore.similarity import GradientNCC
from Testing.protocol.real import CT_FILES, FRAMES, WRIST_OPTIONS, crop_wrist, skull_scout, wrist
from Testing.protocol.simulated import errors, make_case, moved_by, random_starts


def test_chest_from_twenty_starts(shared_data):
    """Starts of 5 degrees per axis, 10 mm, 30 mm in depth: all end below 1 mm in the plane, 19 of 20 below 2 mm."""
    case = make_case("chest", Volume.read(shared_data / CT_FILES["chest"]), primary=10.0, secondary=5.0)
    found = [errors(case, register(case.volume, case.xray, start).poses[0]) for start in random_starts(case, 20)]
    assert max(error["mtre_in_plane_mm"] for error in found) < 1.0
    assert sum(error["mtre_mm"] < 2.0 for error in found) >= 19


@pytest.mark.parametrize("name", ["hips", "hip", "knee", "pelvis"])
def test_other_anatomy_with_the_same_settings(shared_data, name):
    case = make_case(name, Volume.read(shared_data / CT_FILES[name]), primary=10.0, secondary=5.0)
    for start in random_starts(case, 3):
        error = errors(case, register(case.volume, case.xray, start).poses[0])
        assert error["mtre_in_plane_mm"] < 1.0
        assert error["mtre_mm"] < 2.0


@pytest.mark.parametrize("frame", FRAMES)
def test_real_wrist_from_two_views(shared_data, frame):
    """The radius in two real X-rays, from 10 degrees and 10 mm away, ends below 1 mm of an independent registration."""
    case = wrist(shared_data, frame)
    motion = moved_by(case.volume.center, degrees=10.0, millimetres=10.0, seed=2)
    starts = [motion @ truth for truth in case.truth]
    result = register(case.volume, crop_wrist(case, starts), starts, **WRIST_OPTIONS)
    for found, truth in zip(result.poses, case.truth, strict=True):
        assert float(target_registration_error(found, truth, case.targets)) < 1.0


def test_skull_phantom_looks_like_its_scout_at_the_place_the_headers_say(shared_data):
    """A real X-ray in the CT's own frame, with no fitting: geometry and intensity are absolute."""
    scout = skull_scout(shared_data)
    renderer, measure = Renderer(scout.volume), GradientNCC(sigma=1.0)

    def likeness(offset: tuple[float, float, float]) -> float:
        shift = torch.tensor(offset, dtype=torch.float64)
        with torch.no_grad():
            image = renderer.trace(scout.source + shift, scout.target + shift)
        return float(measure(image[None], scout.image[None, None], scout.inside[None, None]))

    at_header = likeness((0.0, 0.0, 0.0))
    assert at_header > 0.75
    assert all(likeness(offset) < at_header - 0.1 for offset in ((0, 0, 3), (0, 0, -3), (0, 3, 0), (0, -3, 0)))


def test_components_of_a_depth_error_are_depth():
    """The measure these tests rest on, by hand: 5 mm along the beam of an AP view."""
    truth = Pose(torch.tensor([[1, 0, 0, 0], [0, 0, 1, -850], [0, -1, 0, 0], [0, 0, 0, 1]]).double())
    moved = truth.retract([0, 0, 0, 0, 5.0, 0])
    error = components(moved, truth, torch.zeros(1, 3).double())
    assert float(error.depth) == pytest.approx(5.0)
    assert float(error.in_plane) == pytest.approx(0.0, abs=1e-9)
