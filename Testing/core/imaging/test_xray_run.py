"""Runs of X-rays in folders and stacks, trials of Autoscoper, and calibrated cameras out and in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffDRRCore import Camera, CArm
from DiffDRRCore.errors import GeometryError, ReadError
from DiffDRRCore.geometry import project
from DiffDRRCore.imaging.calibration_file import read_calibrated_camera, read_calibration, write_calibrated_camera
from DiffDRRCore.imaging.trial_file import Trial, TrialVolume, read_trial, write_trial
from DiffDRRCore.imaging.xray_run import frame_numbers, read_run

CAMERA = Camera(6, 8, (1.0, 1.0), 1000.0)
IMAGES = np.arange(3 * 6 * 8, dtype=np.float32).reshape(3, 6, 8)


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, image in zip((2, 10, 99), IMAGES, strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / f"cam1_UND.{number:04d}.tif"))
    (tmp_path / "notes7.txt").write_text("not an image")
    return tmp_path


def test_a_folder_by_the_numbers_in_its_names(folder):
    assert frame_numbers(folder) == [2, 10, 99]
    found = dict(read_run(folder, camera=CAMERA))
    assert list(found) == [2, 10, 99]
    assert torch.equal(found[10].image, torch.from_numpy(IMAGES[1]))
    assert [number for number, _ in read_run(folder, [99], CAMERA)] == [99]
    with pytest.raises(ReadError, match="has no frame 3; it has 2 to 99"):
        list(read_run(folder, [3], CAMERA))


def test_a_stack_counts_from_0(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(IMAGES), str(tmp_path / "run.nrrd"))
    assert frame_numbers(tmp_path / "run.nrrd") == [0, 1, 2]
    assert torch.equal(dict(read_run(tmp_path / "run.nrrd", camera=CAMERA))[2].image, torch.from_numpy(IMAGES[2]))


def test_a_single_image_is_frame_0(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(IMAGES[0]), str(tmp_path / "one.mha"))
    assert [number for number, _ in read_run(tmp_path / "one.mha", camera=CAMERA)] == [0]


def test_folders_that_are_no_run(tmp_path, folder):
    with pytest.raises(ReadError, match="no file"):
        frame_numbers(tmp_path / "nothing.dcm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="no numbered images"):
        frame_numbers(tmp_path / "empty")
    sitk.WriteImage(sitk.GetImageFromArray(IMAGES[0]), str(folder / "other_10.mha"))
    with pytest.raises(ReadError, match="both frame 10"):
        frame_numbers(folder)


def test_a_calibrated_camera_projects_as_its_file_says(tmp_path):
    """w (u, v, 1) = K (R X + t), by plain matrices."""
    arm = CArm(1000.0, 700.0, torch.tensor([10.0, -20.0, 30.0]).double(), 25.0, -10.0)
    camera = arm.camera(60, 80, (0.5, 0.4))
    write_calibrated_camera(tmp_path / "cam.txt", camera, arm.pose)
    size, K, rotation, translation = read_calibration(tmp_path / "cam.txt")
    assert size == (80, 60)
    points = torch.tensor([[0.0, 0.0, 0.0], [30.0, -10.0, 50.0]]).double()
    beam = (points @ rotation.T + translation) @ K.T
    assert torch.allclose(beam[:, :2] / beam[:, 2:], project(camera, arm.pose, points)[0])
    again, pose = read_calibrated_camera(tmp_path / "cam.txt", source_to_detector=1000.0)
    assert (again.height, again.width) == (60, 80)
    assert torch.allclose(project(again, pose, points), project(camera, arm.pose, points))
    with pytest.raises(ReadError, match="but the image has 60 x 90"):
        read_calibrated_camera(tmp_path / "cam.txt", (60, 90), source_to_detector=1000.0)
    with pytest.raises(GeometryError, match="point source"):
        write_calibrated_camera(tmp_path / "p.txt", Camera.parallel_beam(6, 8, (1.0, 1.0), 1000.0), arm.pose)


def test_a_trial_as_autoscoper_writes_it(tmp_path):
    """Version 1.1 with relative paths, a comment, and settings of the program."""
    (tmp_path / "trial.cfg").write_text(
        "# wrist\nVersion 1.1\nFilterFolder xParameters\nmayaCam_csv Calibration/cam 01.txt\n"
        "mayaCam_csv Calibration\\cam02.txt\nCameraRootDir XMA/c1\nCameraRootDir XMA/c2\nVolumeFile Models/rad.tif\n"
        "VolumeFlip 0 1 0\nVoxelSize 0.39625 0.39625 0.625\nRenderResolution 880 880\n"
    )
    trial = read_trial(tmp_path / "trial.cfg")
    assert trial.calibrations == (tmp_path / "Calibration/cam 01.txt", tmp_path / "Calibration/cam02.txt")
    assert trial.runs[1] == tmp_path / "XMA" / "c2"
    assert trial.volumes == (
        TrialVolume(tmp_path / "Models" / "rad.tif", (0.39625, 0.39625, 0.625), (False, True, False)),
    )


def test_a_trial_comes_back(tmp_path):
    volumes = (TrialVolume(tmp_path / "m" / "a.tif", (0.3, 0.3, 0.625), (True, False, False)),)
    trial = Trial((tmp_path / "c.txt",), (tmp_path / "x",), volumes)
    write_trial(tmp_path / "sub" / "t.cfg", trial)
    text = (tmp_path / "sub" / "t.cfg").read_text()
    assert "mayaCam_csv ../c.txt\n" in text
    again = read_trial(tmp_path / "sub" / "t.cfg")
    assert [path.resolve() for path in again.calibrations] == [tmp_path / "c.txt"]
    assert again.volumes[0].flip == (True, False, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Version 1.1\n", "0 mayaCam_csv and 0 CameraRootDir"),
        ("mayaCam_csv a\nCameraRootDir b\n", "0 VolumeFile and 0 VoxelSize"),
        ("mayaCam_csv a\nCameraRootDir b\nVolumeFile c\nVoxelSize 1 2\n", "VoxelSize must be three numbers"),
        ("Version one\n", "not like 1.1"),
    ],
)
def test_damaged_trials(tmp_path, text, words):
    (tmp_path / "t.cfg").write_text(text)
    with pytest.raises(ReadError, match=words):
        read_trial(tmp_path / "t.cfg")
