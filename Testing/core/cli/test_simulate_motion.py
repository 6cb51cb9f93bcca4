"""Sweeps of `simulate`: DICOM runs, poses beyond 90 and 180 degrees, lag."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from DiffDRRCore import CArm, Pose, XRay
from DiffDRRCore.imaging.camera_file import read_camera
from Testing.core.cli.test_simulate import CIOS

PIXEL = 48 * 0.194  # mm, of CIOS
MAGNIFICATION = 1020 / 530  # at its isocentre


def test_lag_is_the_recursive_filter(simulate, tmp_path):
    """Weight 1, retention r: y_k = r y_(k-1) + (1 - r) x_k, and y_0 = x_0."""
    sweep = (*CIOS, "--sweep", 0, -90, 3, "--no-noise", "--seed", 0)
    simulate(*sweep, output="x.tif")
    simulate(*sweep, "--lag", 1, 0.4, output="y.tif")
    x, y = ([XRay.read(tmp_path / f"{name}_{n:04d}.tif").image for n in range(3)] for name in "xy")
    assert torch.allclose(x[0], y[0], rtol=1e-6)
    for number in (1, 2):
        expected = 0.4 * y[number - 1] + 0.6 * x[number]
        assert torch.allclose(y[number], expected, rtol=1e-5)
        assert not torch.allclose(y[number], x[number], rtol=1e-2)


def test_a_dicom_run_has_a_json_with_all_poses(simulate, tmp_path, files):
    r, a, s = files.volume.center.tolist()
    points = tmp_path / "points.csv"
    points.write_text(f"tip,{r},{a},{s + 30}\n")  # above the isocentre
    told = simulate(*CIOS, "--sweep", -20, 20, 3, "--seed", 4, "--landmarks", points, output="run.dcm")
    beside = read_camera(tmp_path / "run.json")
    assert beside.pose is None and beside.intensity == "transmission"
    assert (beside.meta["seed"], beside.meta["i0"], beside.meta["simulation"]["frames"]) == (4, told["i0"], 3)
    for number, primary in enumerate((-20.0, 0.0, 20.0)):
        pose = CArm(1020.0, 530.0, (r, a, s), primary).pose
        assert np.allclose(beside.meta["poses"][number], pose.matrix, atol=1e-5)
        frame = XRay.read(tmp_path / "run.dcm", frame=number, camera=tmp_path / "run.json")
        assert float((frame.pose.rotation - pose.rotation).abs().max()) < 1e-6
    assert beside.meta["landmarks"] == told["landmarks"] and len(told["landmarks"]) == 3
    up = 15.5 - 30 * MAGNIFICATION / PIXEL
    for frame in told["landmarks"]:  # on the axis that the C-arm turns about
        assert frame["tip"]["pixel"] == pytest.approx([15.5, up], abs=1e-3) and frame["tip"]["visible"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("angle, start, stop", [("secondary", -100, 100), ("primary", -200, 200), ("roll", -200, 200)])
def test_poses_turn_on_evenly_beyond_90_and_180_degrees(simulate, tmp_path, angle, start, stop):
    """From frame to frame the camera turns by the step; DICOM files give the same rotation back, but for a roll."""
    simulate(*CIOS, "--ignore-limits", "--sweep", start, stop, 9, "--sweep-angle", angle, output="x.dcm")
    is_run = angle == "primary"
    names = ["x"] if is_run else [f"x_{number:04d}" for number in range(9)]
    assert sorted(path.name for path in tmp_path.glob("*.dcm")) == [f"{name}.dcm" for name in names]
    if is_run:
        poses = [Pose(torch.tensor(one)) for one in read_camera(tmp_path / "x.json").meta["poses"]]
    else:
        poses = [read_camera(tmp_path / f"{name}.json").pose for name in names]
    for one, other in pairwise(poses):
        turn = float(torch.trace(one.rotation.T @ other.rotation).double())
        step = math.degrees(math.acos(min(1.0, (turn - 1) / 2)))
        assert step == pytest.approx((stop - start) / 8, abs=1e-3)
    for number, pose in enumerate(poses if angle != "roll" else ()):
        image = XRay.read(tmp_path / "x.dcm", frame=number) if is_run else XRay.read(tmp_path / f"{names[number]}.dcm")
        assert float((image.pose.rotation - pose.rotation).abs().max()) < 1e-6
