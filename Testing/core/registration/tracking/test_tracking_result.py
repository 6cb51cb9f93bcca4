"""Files of a tracking, and joint angles of two bodies."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from DiffDRRCore import Pose
from DiffDRRCore.errors import DiffDRRError, ReadError, RegistrationError
from DiffDRRCore.geometry.joints import Side
from DiffDRRCore.geometry.motion_files import read_table, read_tra
from DiffDRRCore.registration.tracking import TrackingResult, joint_motion, write_joint_motion
from DiffDRRCore.registration.tracking.motion_model import six

FRAMES = (4, 5, 6, 8)


def result() -> TrackingResult:
    """A femur that shifts, and a tibia that flexes by 10 degrees a frame about x; frame 6 is lost."""
    motions = torch.eye(4, dtype=torch.float64).repeat(4, 2, 1, 1)
    for place, frame in enumerate(FRAMES):
        motions[place, 0, 0, 3] = 3.0 * frame
        turned = Rotation.from_euler("x", -10.0 * (frame - 4), degrees=True).as_matrix()
        motions[place, 1, :3, :3] = torch.from_numpy(turned)
        motions[place, 1, 0, 3] = 3.0 * frame
    covariances = torch.diag(six((0.1, 0.2))).repeat(4, 2, 1, 1)
    covariances[2] = math.nan
    carms = torch.eye(4, dtype=torch.float64).repeat(4, 2, 1, 1)
    carms[..., 2, 3] = -500.0
    return TrackingResult(
        FRAMES,
        ("femur", "tibia"),
        Pose(motions),
        Pose(motions),
        covariances,
        torch.zeros(2, 3, dtype=torch.float64),
        Pose(carms),
        torch.tensor([0.9, 0.91, math.nan, 0.92], dtype=torch.float64),
        torch.tensor([[True, True]] * 4),
        torch.tensor([False, False, True, False]),
        {6: "the similarity drops"},
        (4,),
    )


def test_all_comes_back_from_json(tmp_path):
    one = result()
    again = TrackingResult.load(one.save(tmp_path / "tracking.json"))
    for name in ("frames", "bodies", "lost", "keyframes", "acceleration", "is_smoothed"):
        assert getattr(again, name) == getattr(one, name)
    for name in ("covariances", "about", "similarity", "seen", "interpolated"):
        assert torch.equal(getattr(again, name).nan_to_num(-7.0), getattr(one, name).nan_to_num(-7.0))
    for name in ("motions", "unsmoothed", "carms"):
        assert torch.equal(getattr(again, name).matrix, getattr(one, name).matrix)
    assert "NaN" not in (tmp_path / "tracking.json").read_text()


def test_poses_are_the_carms_as_the_first_body_sees_them():
    """The femur has moved by 12 mm to the right, so the C-arm stands 12 mm to its left."""
    assert torch.allclose(result().poses.matrix[0, 1, :3, 3], torch.tensor([-12.0, 0.0, -500.0]).double())
    assert result().found(5, "tibia").standard_deviations.tolist() == pytest.approx([0.1] * 3 + [0.2] * 3)
    assert result().standard_deviations.shape == (4, 2, 6)


def test_tables_and_tra(tmp_path):
    one = result()
    table = read_table(one.write_motions(tmp_path / "motions.csv", interpolated=False))
    assert table["tibia"].frames == FRAMES
    assert torch.equal(table["femur"].at(8).matrix, one.motions.matrix[3, 0])
    assert table["femur"].at(6) is None
    tra = read_tra(one.write_motions(tmp_path / "motions.tra"), ["femur", "tibia"], first_frame=4)
    assert torch.equal(tra["tibia"].at(6).matrix, one.motions.matrix[2, 1])
    assert tra["tibia"].at(7) is None


def test_joint_angles_are_those_of_the_hinge(tmp_path):
    one = result()
    motions = {body: one.motion(body, interpolated=False) for body in one.bodies}
    frames, found = joint_motion(motions, ("femur", Pose.identity()), ("tibia", Pose.identity()), Side.RIGHT)
    assert frames == FRAMES
    assert found.flexion.tolist() == pytest.approx([0.0, 10.0, math.nan, 40.0], nan_ok=True)
    assert np.allclose(found.abduction[[0, 1, 3]], 0.0)
    write_joint_motion(tmp_path / "angles.csv", frames, found)
    rows = list(csv.DictReader((tmp_path / "angles.csv").open()))
    assert [row["frame"] for row in rows] == ["4", "5", "6", "8"]
    assert float(rows[3]["flexion_deg"]) == pytest.approx(40.0)
    assert set(rows[2].values()) == {"6", ""}
    with pytest.raises(DiffDRRError, match="no motion of the body 'patella'"):
        joint_motion(motions, ("patella", Pose.identity()), ("tibia", Pose.identity()), Side.RIGHT)


def test_smoothing_fills_what_is_lost():
    """The tibia's turn is constant from frame to frame, its shift too: frame 6 lies where they lead."""
    one = result()
    smooth = one.smoothed((0.1, 0.1))
    assert torch.allclose(smooth.motions.matrix[2], one.motions.matrix[2], atol=1e-3)
    assert bool(torch.isfinite(smooth.covariances).all())
    deviations = smooth.standard_deviations[:, 0, 3]
    assert float(deviations[2]) > float(deviations[1])
    with pytest.raises(RegistrationError, match="two positive numbers"):
        one.smoothed((0.0, 1.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"motions": [[1]]}, "motions has shape"),
        ({"frames": [1]}, "differ in number"),
        ({"lost": 3}, "damaged"),
        ({"similarity": "x"}, "damaged"),
    ],
)
def test_damaged_files(tmp_path, change, words):
    path = result().save(tmp_path / "tracking.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ReadError, match=words):
        TrackingResult.load(path)


def test_no_tracking_at_all(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ReadError, match="not a tracking result"):
        TrackingResult.load(tmp_path / "other.json")
    for write, suffix in ((result().save, ".txt"), (result().write_motions, ".xlsx")):
        with pytest.raises(RegistrationError, match=f"not as '{suffix}'"):
            write(tmp_path / f"a{suffix}")
    with pytest.raises(RegistrationError, match="no body 'patella'"):
        result().motion("patella")
