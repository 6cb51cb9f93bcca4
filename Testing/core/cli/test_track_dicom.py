"""`track` on runs of DICOM: two files of many frames, whose headers say how the C-arms stand, and one that turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from DiffDRRCore import CArm, Pose
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.tracking import TrackingResult

SIZE, FRAMES = 64, 4
QUICK = ("--sizes", 32, 64, "--search", 16)


def volume():
    return phantom((48, 40, 48), 5.0, seed=1)


def motion(steps: float) -> Pose:
    turn = [0.01 * steps, -0.01 * steps, 0.01 * steps, 1.0 * steps, 1.0 * steps, -1.0 * steps]
    return Pose.identity().retract(torch.tensor(turn, dtype=torch.float64))


def header(angles: list[float]) -> Dataset:
    """Of an XA run whose primary angle goes through these; nothing but what the standard has."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.12.1", generate_uid()
    dataset.Modality, dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "XA", "LIN", 1
    dataset.Rows = dataset.Columns = SIZE
    dataset.NumberOfFrames, dataset.SamplesPerPixel = len(angles), 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.ImagerPixelSpacing = [5.0, 5.0]
    dataset.DistanceSourceToDetector, dataset.DistanceSourceToPatient = 1000.0, 700.0
    dataset.PositionerPrimaryAngle, dataset.PositionerSecondaryAngle = angles[0], 0.0
    if len(set(angles)) > 1:
        dataset.PositionerMotion = "DYNAMIC"
        dataset.PositionerPrimaryAngleIncrement = [angle - angles[0] for angle in angles]
        dataset.PositionerSecondaryAngleIncrement = [0.0] * len(angles)
    return dataset


def write(path, angles: list[float], motions: list[Pose], seed: int) -> None:
    """The phantom after these motions, with counts in 16 bit; the isocentre is its centre."""
    dataset = header(angles)
    dataset.PixelData = np.zeros((len(angles), SIZE, SIZE), np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    frames = []
    for number, (angle, moved) in enumerate(zip(angles, motions, strict=True)):
        arm, camera = CArm(1000.0, 700.0, volume().center, angle), XRay.read(path, number).camera
        pose = moved.inverse() @ arm.pose
        made = simulated_xray(volume(), camera, pose, oversampling=2, seed=10 * seed + number)
        frames.append((60000 * np.exp(-made.image.numpy().clip(0))).round().astype(np.uint16))
    dataset.PixelData = np.stack(frames).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def off(found: Pose, truth: Pose) -> float:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 60.0
    return float((found.transform(points) - truth.transform(points)).norm(dim=-1).mean())


@pytest.fixture
def ct(tmp_path):
    volume().write(tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def tracked(run, ct, folder, *runs) -> TrackingResult:
    code, out, err = run("track", ct, *runs, "--init", "header", *QUICK, "-o", folder / "out")
    assert code == 0, err
    assert f"{FRAMES} frames, 0 lost" in out
    return TrackingResult.load(folder / "out" / "tracking.json")


def test_two_runs_of_many_frames(run, ct, tmp_path):
    """Cameras and poses are of the headers alone; the body moves by 1 degree and 2 mm a frame."""
    path = [motion(n) for n in range(FRAMES)]
    for view, angle in enumerate((0.0, 90.0)):
        write(tmp_path / f"{view}.dcm", [angle] * FRAMES, path, view)
    result = tracked(run, ct, tmp_path, tmp_path / "0.dcm", tmp_path / "1.dcm")
    assert result.frames == tuple(range(FRAMES))
    assert max(off(Pose(m), truth) for m, truth in zip(result.motions.matrix[:, 0], path, strict=True)) < 0.7


def test_a_carm_that_turns_as_its_header_says_moves_nobody(run, ct, tmp_path):
    """By 8 degrees a frame about a patient who lies still."""
    angles = [8.0 * n for n in range(FRAMES)]
    write(tmp_path / "turn.dcm", angles, [Pose.identity()] * FRAMES, 0)
    result = tracked(run, ct, tmp_path, tmp_path / "turn.dcm")
    assert max(off(Pose(m), Pose.identity()) for m in result.motions.matrix[:, 0]) < 4.0  # depth of one view
    turned = result.carms.matrix[0, 0, :3, :3].T @ result.carms.matrix[-1, 0, :3, :3]
    angle = math.degrees(math.acos((float(turned.diagonal().sum()) - 1) / 2))
    assert angle == pytest.approx(angles[-1], abs=1e-3)


def test_one_frame_is_no_run(run, ct, tmp_path):
    write(tmp_path / "one.dcm", [0.0], [Pose.identity()], 0)
    code, _, err = run("track", ct, tmp_path / "one.dcm", "--init", "header", *QUICK, "-o", tmp_path / "out")
    assert code == 2
    assert "use register" in err
    assert not (tmp_path / "out").exists()
