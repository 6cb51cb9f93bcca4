"""Cameras: K by hand, and image operations that must leave every physical ray where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore import Camera, Pose, project
from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry import pixel_grid, pixel_rays
from Testing.core import samples
from Testing.core.samples import differences, jacobian, seeds

VIEWS = ("source", "detector")
views = st.sampled_from(VIEWS)


def detector_points(camera: Camera, uv) -> torch.Tensor:
    """Where pixels lie on the detector, in the camera frame, mm."""
    return pixel_rays(camera, Pose.identity(), np.asarray(uv, dtype=float))[1][0]


def random_camera(seed: int, view_from: str, parallel: bool) -> Camera:
    camera = samples.camera(np.random.default_rng(seed), view_from)
    if not parallel:
        return camera
    return Camera.parallel_beam(
        camera.height,
        camera.width,
        camera.pixel_spacing,
        camera.source_to_detector,
        camera.principal_point,
        camera.view_from,
    )


@pytest.mark.parametrize("view_from, fx", [("source", 500.0), ("detector", -500.0)])
def test_K_by_hand(view_from, fx):
    camera = Camera(200, 300, pixel_spacing=(4, 2), source_to_detector=1000, view_from=view_from)
    assert camera.K.tolist() == [[fx, 0, 149.5], [0, 250, 99.5], [0, 0, 1]]
    assert camera.K.dtype == torch.float64
    assert camera.pixel_spacing.tolist() == [4, 2]
    assert camera.principal_point.tolist() == [149.5, 99.5]
    assert camera.view_from == view_from
    assert (camera.height, camera.width, camera.parallel) == (200, 300, False)


def test_pixels_by_hand():
    """Row spacing 4, column spacing 2; columns run along -x where the image is seen from the detector."""
    uv = [[149.5, 99.5], [150.5, 99.5], [149.5, 100.5]]
    camera = Camera(200, 300, pixel_spacing=(4, 2), source_to_detector=1000)
    assert np.allclose(detector_points(camera, uv), [[0, 0, 1000], [2, 0, 1000], [0, 4, 1000]])
    camera = Camera(200, 300, pixel_spacing=(4, 2), source_to_detector=1000, view_from="detector")
    assert np.allclose(detector_points(camera, uv), [[0, 0, 1000], [-2, 0, 1000], [0, 4, 1000]])


def test_the_pixel_grid_goes_row_by_row():
    camera = Camera(2, 3, (1, 1), 100)
    assert pixel_grid(camera).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    assert pixel_grid(camera, 2, 4).tolist() == [[2, 0], [0, 1]]


@given(seed=seeds, view_from=views, parallel=st.booleans(), height=st.integers(1, 90), width=st.integers(1, 90))
@settings(max_examples=30, deadline=None)
def test_resized_covers_the_same_detector(seed, view_from, parallel, height, width):
    """The image's corners, which are half a pixel outside the first and last centres, stay where they are."""
    camera = random_camera(seed, view_from, parallel)
    small = camera.resized(height, width)
    corners = [[x, y] for x in (-0.5, camera.width - 0.5) for y in (-0.5, camera.height - 0.5)]
    same = [[x, y] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)]
    assert np.allclose(detector_points(small, same), detector_points(camera, corners), atol=1e-9)
    ratio = torch.tensor([camera.height / height, camera.width / width], dtype=torch.float64)
    assert torch.allclose(small.pixel_spacing, camera.pixel_spacing * ratio)
    assert (small.view_from, small.parallel) == (camera.view_from, parallel)


def test_a_binned_pixel_lies_in_the_middle_of_the_pixels_it_is_made_of():
    camera = Camera(4, 6, (1, 2), 100, principal_point=(1.2, 3.4))
    four = detector_points(camera, [[2, 0], [3, 0], [2, 1], [3, 1]]).mean(0)
    assert np.allclose(detector_points(camera.resized(2, 3), [[1, 0]])[0], four)


@given(seed=seeds, view_from=views, parallel=st.booleans(), sides=st.tuples(*[st.integers(-9, 9)] * 4))
@settings(max_examples=30, deadline=None)
def test_cropped_pixels_keep_their_rays(seed, view_from, parallel, sides):
    camera = random_camera(seed, view_from, parallel)
    top, bottom, left, right = sides
    part = camera.cropped(top, bottom, left, right)
    assert (part.height, part.width) == (camera.height - top - bottom, camera.width - left - right)
    uv = pixel_grid(part)
    assert np.allclose(detector_points(part, uv), detector_points(camera, uv + torch.tensor([left, top])), atol=1e-9)
    assert torch.allclose(part.pixel_spacing, camera.pixel_spacing)


@given(seed=seeds, view_from=views, parallel=st.booleans())
@settings(max_examples=20, deadline=None)
def test_flipped_is_the_mirrored_image_of_the_same_rays(seed, view_from, parallel):
    camera = random_camera(seed, view_from, parallel)
    mirror = camera.flipped()
    every = torch.arange(camera.height * camera.width).reshape(camera.height, camera.width)
    uv = pixel_grid(camera)
    assert np.allclose(detector_points(mirror, uv), detector_points(camera, uv)[every.flip(1).flatten()], atol=1e-9)
    assert {camera.view_from, mirror.view_from} == set(VIEWS)
    assert torch.allclose(mirror.flipped().K, camera.K)


def test_from_intrinsics_keeps_K_and_finds_the_distance():
    K = [[-800.0, 1.5, 60.0], [0.0, 400.0, 50.0], [0.0, 0.0, 1.0]]
    by_spacing = Camera.from_intrinsics(K, 100, 120, pixel_spacing=(2.5, 1.25))
    by_distance = Camera.from_intrinsics(K, 100, 120, source_to_detector=1000)
    for camera in (by_spacing, by_distance):
        assert camera.K.tolist() == K
        assert camera.view_from == "detector"
        assert float(camera.source_to_detector) == 1000
        assert camera.pixel_spacing.tolist() == [2.5, 1.25]
    assert torch.allclose(by_distance.resized(200, 240).K[0], torch.tensor([-1600.0, 3.0, 120.5]).double())


def test_skew_is_kept_by_every_image_operation():
    K = [[800.0, 1.5, 60.0], [0.0, 400.0, 50.0], [0.0, 0.0, 1.0]]
    camera = Camera.from_intrinsics(K, 100, 120, source_to_detector=1000)
    uv = np.array([[3.0, 4.0]])
    assert np.allclose(detector_points(camera.flipped(), [[116, 4]]), detector_points(camera, uv))
    assert np.allclose(detector_points(camera.cropped(1, 0, 2, 0), uv - [[2, 1]]), detector_points(camera, uv))


@pytest.mark.parametrize("view_from, side", [("source", 1), ("detector", -1)])
def test_parallel_beam(view_from, side):
    camera = Camera.parallel_beam(5, 7, (3, 2), 100, view_from=view_from)
    source, target = pixel_rays(camera, Pose.identity(), [[3.0, 2.0], [4.0, 4.0]])
    assert np.allclose(source[0], [[0, 0, 0], [2 * side, 6, 0]])
    assert np.allclose(target[0], [[0, 0, 100], [2 * side, 6, 100]])
    assert camera.pixel_spacing.tolist() == [3, 2]
    points = np.array([[2.0 * side, 6.0, z] for z in (-50, 0, 50, 500)])
    assert np.allclose(project(camera, Pose.identity(), points), [[[4, 4]] * 4])


def test_batches_of_cameras():
    distances = torch.tensor([1000.0, 1200.0], dtype=torch.float64)
    for make in (Camera, Camera.parallel_beam):
        batch = make(4, 5, (2, 3), distances)
        source, target = pixel_rays(batch, Pose.identity())
        for index, distance in enumerate(distances.tolist()):
            one_source, one_target = pixel_rays(make(4, 5, (2, 3), distance), Pose.identity())
            assert torch.allclose(target[index], one_target[0])
            assert torch.allclose(source.expand_as(target)[index], one_source.expand_as(one_target)[0])
    points = (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert Camera(4, 5, (2, 3), 100, principal_point=points).principal_point.tolist() == [[1, 3], [2, 4]]
    assert Camera(4, 5, [[2, 3], [4, 5]], 100).pixel_spacing.tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize("view_from", VIEWS)
@pytest.mark.parametrize("parallel", [False, True])
def test_gradients_reach_every_number_of_the_camera(view_from, parallel):
    """Numbers: row and column spacing, SDD, principal point. Rays are those of a resized and cropped image."""
    make = Camera.parallel_beam if parallel else Camera
    uv = np.array([[3.0, 4.0], [20.0, 10.0]])

    def rays(numbers):
        camera = make(30, 40, numbers[:2], numbers[2], numbers[3:], view_from)
        source, target = pixel_rays(camera.resized(15, 10).cropped(1, 2, 3, 4), Pose.identity(), uv)
        return torch.cat([source.expand_as(target), target])

    at = torch.tensor([0.7, 1.1, 900.0, 18.0, 13.0], dtype=torch.float64)
    assert torch.allclose(jacobian(rays, at), differences(rays, at, 1e-4), rtol=1e-6, atol=1e-6)


def test_gradients_reach_K():
    at = torch.tensor([[-900.0, 2.0, 20.0], [0.0, 700.0, 15.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    rows, columns = [0, 0, 0, 1, 1], [0, 1, 2, 1, 2]

    def pixels(entries):
        K = at.clone()
        K[rows, columns] = entries
        camera = Camera.from_intrinsics(K, 30, 40, pixel_spacing=(1.43, 1.11))
        points = [[10.0, -20.0, 500.0], [3.0, 5.0, 800.0]]
        ends = pixel_rays(camera, Pose.identity(), [[3.0, 4.0], [30.0, 20.0]])[1]
        return torch.cat([project(camera, Pose.identity(), points), ends[..., :2]], dim=1)

    entries = at[rows, columns]
    assert torch.allclose(jacobian(pixels, entries), differences(pixels, entries, 1e-4), rtol=1e-6, atol=1e-6)


def test_detached_has_no_graph_and_to_casts():
    camera = Camera(4, 5, (1, 1), torch.tensor(100.0, requires_grad=True))
    assert camera.K.requires_grad
    assert not (camera.detached().K.requires_grad or camera.detached().source_to_detector.requires_grad)
    assert camera.to(torch.float32).K.dtype == torch.float32
    assert "100.0 mm" in repr(camera)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"height": 0}, "at least one row"),
        ({"width": 2.5}, "at least one row"),
        ({"height": float("nan")}, "at least one row"),
        ({"height": "tall"}, "at least one row"),
        ({"pixel_spacing": (0, 1)}, "Pixel spacing must be positive"),
        ({"pixel_spacing": (1, float("nan"))}, "Pixel spacing must be positive"),
        ({"pixel_spacing": 1.0}, "pixel_spacing is a pair"),
        ({"pixel_spacing": None}, "Expected numbers"),
        ({"source_to_detector": 0}, "Source-to-detector distance must be positive"),
        ({"source_to_detector": -1000}, "Source-to-detector distance"),
        ({"source_to_detector": float("inf")}, "Source-to-detector distance"),
        ({"principal_point": (1, 2, 3)}, "principal_point is a pair"),
        ({"principal_point": (1, float("nan"))}, "not finite"),
        ({"view_from": "left"}, "'source' or 'detector'"),
    ],
)
def test_bad_numbers_are_refused(arguments, sentence):
    good = {"height": 4, "width": 5, "pixel_spacing": (1, 1), "source_to_detector": 100}
    Camera(**good)
    with pytest.raises(GeometryError, match=sentence):
        Camera(**{**good, **arguments})


@pytest.mark.parametrize(
    "K, arguments, sentence",
    [
        (np.diag([0.0, 100, 1]), {"source_to_detector": 100}, "focal lengths of K must not be zero"),
        (np.diag([100.0, -100, 1]), {"source_to_detector": 100}, "rotate"),
        (np.diag([100.0, 100, 2]), {"source_to_detector": 100}, "K\\[2, 2\\] = 1"),
        (np.array([[100.0, 0, 0], [1, 100, 0], [0, 0, 1]]), {"source_to_detector": 100}, "upper triangular"),
        (np.diag([100.0, np.nan, 1]), {"source_to_detector": 100}, "not finite"),
        (np.eye(4), {"source_to_detector": 100}, "3 x 3"),
        (np.diag([100.0, 100, 1]), {}, "either pixel_spacing or source_to_detector"),
        (np.diag([100.0, 100, 1]), {"source_to_detector": 100, "pixel_spacing": (1, 1)}, "not both"),
        (np.diag([100.0, 100, 1]), {"pixel_spacing": (1, 2)}, "100.0 mm by rows"),
        (np.diag([100.0, 100, 1]), {"source_to_detector": -5}, "must be positive"),
    ],
)
def test_bad_intrinsics_are_refused(K, arguments, sentence):
    with pytest.raises(GeometryError, match=sentence):
        Camera.from_intrinsics(K, 4, 5, **arguments)


def test_an_image_cannot_be_cropped_or_resized_to_nothing():
    camera = Camera(4, 5, (1, 1), 100)
    with pytest.raises(GeometryError, match="0 x 5"):
        camera.cropped(2, 2, 0, 0)
    with pytest.raises(GeometryError, match="4 x 0"):
        camera.resized(4, 0)
