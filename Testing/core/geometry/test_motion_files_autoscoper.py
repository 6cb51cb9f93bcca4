"""Autoscoper's coordinates: from how it reads its cameras and samples its volume, and on the real radius."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from DiffDRRCore import Volume, project
from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.converters import from_opencv
from DiffDRRCore.geometry.motion_files import CTFrame, Motion, ras_to_ct_frame, ras_to_volume
from Testing.core import samples
from Testing.core.samples import seeds


def grid(rng, right_handed: bool = True) -> np.ndarray:
    """ijk_to_ras of a rotated grid with three spacings."""
    affine = samples.rigid(rng)
    affine[:3, :3] = affine[:3, :3] @ np.diag([0.4, 0.5, 0.6 if right_handed else -0.6])
    return affine


def test_autoscopers_corner_by_hand():
    """Two, three and four voxels of 1, 2 and 3 mm: the stack fills 0..2, 0..6 and -12..0 mm, its rows running down."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    to_volume = ras_to_volume(affine, (4, 3, 2)).numpy()
    first, last = to_volume @ affine @ [0, 0, 0, 1], to_volume @ affine @ [1, 2, 3, 1]
    assert np.allclose(first[:3], [0.5, 5.0, -1.5])
    assert np.allclose(last[:3], [1.5, 1.0, -10.5])


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_autoscopers_texture_coordinates(seed):
    """Its ray caster samples the cropped volume at (p.x, 1 - p.y, -p.z), p = q / (spacing dim) + VolumeDescription's
    offset, where texture coordinate t is cropped voxel t dim - 1/2: every voxel must be found in its own place."""
    rng = np.random.default_rng(seed)
    size = rng.integers(8, 20, 3)  # I, J, K
    low = rng.integers(0, 4, 3)
    high = size - 1 - rng.integers(0, 4, 3)
    dim = high - low + 1
    affine = grid(rng)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    voxel = rng.integers(low, high + 1)
    q = (ras_to_volume(affine, size[::-1].tolist()).numpy() @ affine @ [*voxel, 1])[:3]
    offset = np.array([-low[0], -(size[1] - high[1] - 1), low[2]]) / dim
    p = q / (spacing * dim) + offset
    texture = np.array([p[0], 1 - p[1], -p[2]])
    assert np.allclose(texture * dim - 0.5 + low, voxel, atol=1e-6)


def test_a_flip_mirrors_within_the_box_and_makes_a_left_handed_ct_right():
    rng = np.random.default_rng(4)
    affine, shape = grid(rng, right_handed=False), (6, 5, 4)
    with pytest.raises(GeometryError, match="shows this CT mirrored"):
        ras_to_volume(affine, shape)
    with pytest.raises(GeometryError, match="shows this CT mirrored"):
        ras_to_volume(grid(rng), shape, (True, False, False))
    voxel, mirrored = np.array([1, 2, 0, 1]), np.array([1, 2, 5, 1])
    flipped = ras_to_volume(affine, shape, (False, False, True)).numpy() @ affine @ voxel
    upright = affine.copy()
    upright[:3, 2] *= -1
    assert np.allclose(flipped, ras_to_volume(upright, shape).numpy() @ upright @ mirrored)
    sheared = affine @ (np.eye(4) + np.diag([0.3, 0, 0], 1))
    with pytest.raises(GeometryError, match="scales or shears"):
        ras_to_volume(sheared, shape, (False, False, True))


def test_lps_and_ras():
    assert np.array_equal(ras_to_ct_frame(CTFrame.LPS), np.diag([-1.0, -1, 1, 1]))
    assert np.array_equal(ras_to_ct_frame(CTFrame.RAS), np.eye(4))
    with pytest.raises(GeometryError, match="need the grid of the CT"):
        ras_to_ct_frame(CTFrame.AUTOSCOPER)


def test_the_middle_of_the_real_radius(shared_data):
    """reference.json puts the CT's LPS zero at the middle of the stack: 68 x 86 x 128 voxels."""
    folder = shared_data / "wrist_biplane"
    volume = Volume.read(folder / "ct" / "radius.nii.gz")
    to_volume = ras_to_volume(volume.ijk_to_ras, volume.shape)
    half = torch.tensor([68 * 0.39625, 86 * 0.39625, -128 * 0.625]).double() / 2
    assert torch.allclose(to_volume[:3, 3], half, atol=2e-4)
    pose = json.loads((folder / "reference.json").read_text())["reference_poses"][0]
    from_lps = np.eye(4)
    from_lps[:3, :3], from_lps[:3, 3] = pose["R"], pose["T"]
    reference = Motion((2,), from_lps[None]).after(ras_to_ct_frame(CTFrame.LPS))
    tracked = reference.after(torch.linalg.inv(to_volume))  # what Autoscoper would save
    assert np.allclose(tracked.at(2).transform(half[None])[0], pose["T"], atol=1e-3)


def test_autoscopers_world_is_the_calibrations():
    """As Camera::loadMayaCam2 makes its camera frame (x right, y up, looking along -z) out of R and t, whose x and z it
    negates, inverts and turns; its images count rows upwards. The pixel is that of our camera of that calibration."""
    rng = np.random.default_rng(2)
    K = np.array([[900.0, 0, 31.5], [0, 1010, 18.25], [0, 0, 1]])
    height, R, t = 40, samples.rotation(rng), np.array([5.0, -8.0, 700.0])
    negate = np.diag([-1.0, 1, -1])
    center = -(negate @ R).T @ (negate @ t)
    axes = np.diag([-1.0, -1, 1]) @ (negate @ R)  # rows: right, up, backwards
    point = np.array([12.0, 20.0, -9.0])
    x, y, z = axes @ (point - center)
    row_from_below = K[1, 1] * y / -z + (height - 1 - K[1, 2])
    camera, pose = from_opencv(K, R, t, height, 70, source_to_detector=1000.0)
    expected = [K[0, 0] * x / -z + K[0, 2], height - 1 - row_from_below]
    assert np.allclose(project(camera, pose, point[None])[0, 0], expected)
