"""`track` and `joints`, from files to files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffDRRCore import CArm, Pose
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import moved_apart, simulated_xray
from DiffDRRCore.geometry.motion_files import Motion, read_table, read_tra, write_table
from DiffDRRCore.imaging.calibration_file import read_calibrated_camera, write_calibrated_camera
from DiffDRRCore.imaging.camera_file import write_camera
from DiffDRRCore.registration.tracking import TrackingResult

QUICK = ("--sizes", 32, 64, "--search", 16)
LEG = ("hip_right", "femur_right")


def motion(steps: float) -> Pose:
    turn = [0.01 * steps, -0.01 * steps, 0.01 * steps, 1.0 * steps, 1.0 * steps, -1.0 * steps]
    return Pose.identity().retract(torch.tensor(turn, dtype=torch.float64))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The CT, and in each view's folder images 10, 11, 12, 13, of the second without 12; cameras in two formats."""
    folder = tmp_path_factory.mktemp("track")
    volume = phantom((48, 40, 48), 5.0, seed=1)
    volume.write(folder / "ct.nii.gz", folder / "labels.nrrd")
    for view, primary in enumerate((0.0, 90.0), start=1):
        arm = CArm(1000.0, 700.0, volume.center, primary)
        camera = arm.camera(64, 64, (5.0, 5.0))
        run = folder / f"cam{view}"
        run.mkdir()
        write_camera(folder / f"cam{view}.json", camera, arm.pose, "attenuation")
        write_calibrated_camera(folder / f"cam{view}.txt", camera, arm.pose)
        images = []
        for frame in (10, 11, 12, 13):
            pose = motion(frame - 10).inverse() @ arm.pose
            image = simulated_xray(volume, camera, pose, oversampling=2, seed=2 * frame + view).image.numpy()
            images.append(image)
            if (view, frame) != (2, 12):
                sitk.WriteImage(sitk.GetImageFromArray(image), str(run / f"image{frame:04d}.mha"))
        sitk.WriteImage(sitk.GetImageFromArray(np.stack(images)), str(folder / f"stack{view}.mha"))
    return folder


def off(found: Pose, steps: float) -> float:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 60.0
    return float((found.transform(points) - motion(steps).transform(points)).norm(dim=-1).mean())


def test_folders_with_json_cameras(run, made, tmp_path):
    views = [made / "cam1", made / "cam2", "--camera", made / "cam1.json", "--camera", made / "cam2.json"]
    code, out, err = run("track", made / "ct.nii.gz", *views, *QUICK, "--smooth", "-o", tmp_path, "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["frames"], said["lost"], said["bodies"], said["smoothed"]) == (4, {}, ["CT"], True)
    result = TrackingResult.load(tmp_path / "tracking.json")
    assert result.frames == (10, 11, 12, 13)
    assert result.seen.tolist() == [[True, True], [True, True], [True, False], [True, True]]
    table = read_table(tmp_path / "motions.csv")["CT"]
    rows = read_tra(tmp_path / "motions.tra", ["CT"], first_frame=10)["CT"]
    for frame in (10, 11, 13):
        assert off(table.at(frame), frame - 10) < 0.7
        assert torch.allclose(table.at(frame).matrix, rows.at(frame).matrix)


def test_stacks_with_calibrations_and_keyframes(run, made, tmp_path):
    """MayaCam cameras; the frames of a stack are from 0. The motion in frame 2 is set by hand, 2 mm off."""
    keys = tmp_path / "keys.csv"
    write_table(keys, {"CT": Motion((2,), motion(2.4).matrix[None])})
    views = [made / "stack1.mha", made / "stack2.mha", "--camera", made / "cam1.txt", "--camera", made / "cam2.txt"]
    more = ("--source-to-detector", 1000, "--intensity", "attenuation", "--keyframes", keys, "--frames", "0:3")
    code, out, err = run("track", made / "ct.nii.gz", *views, *more, *QUICK, "-o", tmp_path / "out")
    assert code == 0, err
    assert "4 frames, 0 lost" in out
    table = read_table(tmp_path / "out" / "motions.csv")["CT"]
    assert max(off(table.at(frame), frame) for frame in range(4)) < 0.7


def test_bodies(run, made, tmp_path):
    """A leg that has moved, the rest as a locked body."""
    volume = phantom((48, 40, 48), 5.0, seed=1)
    for view, primary in enumerate((0.0, 90.0), start=1):
        arm = CArm(1000.0, 700.0, volume.center, primary)
        for frame in (0, 1):
            apart = moved_apart(volume, dict.fromkeys(LEG, motion(2.0 * frame)))
            (tmp_path / f"cam{view}").mkdir(exist_ok=True)
            xray = simulated_xray(apart, arm.camera(64, 64, (5.0, 5.0)), arm.pose, oversampling=2, seed=frame)
            xray.write(tmp_path / f"cam{view}" / f"{frame}.nii.gz")
    bodies = ("--labelmap", made / "labels.nrrd", "--body", f"leg={','.join(LEG)}", "--body", "rest=rest")
    names = tmp_path / "names.csv"
    names.write_text("label,name\n" + "".join(f"{number},{name}\n" for number, name in volume.label_names.items()))
    views = (made / "ct.nii.gz", tmp_path / "cam1", tmp_path / "cam2")
    code, _, err = run(
        "track", *views, *bodies, "--label-names", names, "--locked", "rest", *QUICK, "-o", tmp_path / "out"
    )
    assert code == 0, err
    result = TrackingResult.load(tmp_path / "out" / "tracking.json")
    assert result.bodies == ("leg", "rest")
    points = torch.tensor([[60.0, 0.0, -80.0]]).double()
    found = result.found(1, "leg").motion.transform(points) - motion(2.0).transform(points)
    assert float(found.norm()) < 1.0


def test_joint_angles(run, tmp_path):
    """From a table: the distal bone turns by 20 degrees about x, which is flexion of a right knee."""
    turned = torch.eye(4, dtype=torch.float64)
    cos, sin = np.cos(np.radians(-20)), np.sin(np.radians(-20))
    turned[1:3, 1:3] = torch.tensor([[cos, -sin], [sin, cos]])
    still = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    write_table(
        tmp_path / "m.csv",
        {"femur": Motion((1, 2), still), "tibia": Motion((1, 2), torch.stack([still[0], turned]))},
    )
    (tmp_path / "points.csv").write_text("m,0,0,0\nl,10,0,0\ntop,5,0,50\nlow,5,0,-50\n")
    bone = {"origin": ["m", "l"], "up": ["low", "top"], "right": ["m", "l"]}
    joint = {"side": "right", "proximal": {"body": "femur", **bone}, "distal": {"body": "tibia", **bone}}
    (tmp_path / "knee.json").write_text(json.dumps(joint))
    given = ("--landmarks", tmp_path / "points.csv", "-o", tmp_path / "angles.csv")
    code, out, err = run("joints", tmp_path / "m.csv", tmp_path / "knee.json", *given)
    assert code == 0, err
    assert "2 frames, 0 without a pose" in out
    rows = list(csv.DictReader((tmp_path / "angles.csv").open()))
    assert float(rows[1]["flexion_deg"]) == pytest.approx(20.0, abs=1e-4)
    joint["side"] = "middle"
    (tmp_path / "knee.json").write_text(json.dumps(joint))
    code, _, err = run("joints", tmp_path / "m.csv", tmp_path / "knee.json", *given)
    assert code == 2
    assert "left" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: [made / "ct.nii.gz", made / "cam1"], "tells nothing of the X-ray camera"),
        (
            lambda made: [made / "ct.nii.gz", made / "cam1", "--camera", made / "cam1.json", "--frames", "10:10"],
            "less than two frames",
        ),
        (
            lambda made: [made / "ct.nii.gz", made / "cam1", "--camera", made / "cam1.json", "--frames", "x"],
            "FIRST:LAST",
        ),
        (lambda made: [made / "ct.nii.gz", made / "cam1", "--camera", made / "cam1.txt"], "--source-to-detector"),
        (
            lambda made: [made / "ct.nii.gz", made / "cam1", made / "cam2", "--camera", made / "cam1.json"],
            "2 X-rays but 1 times --camera",
        ),
        (lambda made: [made / "ct.nii.gz", made], "no numbered images"),
        (lambda made: [made / "ct.nii.gz", made / "cam1", "--body", "femur"], "--body needs --labelmap"),
        (lambda made: [made / "ct.nii.gz", made / "cam1", "--locked", "femur"], "there is no --body"),
    ],
)
def test_bad_input(run, made, tmp_path, change, words):
    empty = tmp_path / "empty"
    arguments = [empty if part == made else part for part in change(made)]
    empty.mkdir()
    code, _, err = run("track", *arguments, *QUICK, "-o", tmp_path / "out")
    assert code == 2
    assert words in err
    assert not (tmp_path / "out").exists()


def test_a_calibrated_camera_comes_back(made):
    arm = CArm(1000.0, 700.0, phantom((48, 40, 48), 5.0, seed=1).center, 90.0)
    camera, pose = read_calibrated_camera(made / "cam2.txt", source_to_detector=1000.0)
    assert torch.allclose(camera.K, arm.camera(64, 64, (5.0, 5.0)).K)
    assert torch.allclose(pose.matrix, arm.pose.matrix)
