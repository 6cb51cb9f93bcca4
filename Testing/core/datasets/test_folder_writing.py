"""What is written of a subject is read back: pixels exactly, geometry to 1e-9, where the format can hold it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pydicom
import pytest
import SimpleITK
import torch

from DiffDRRCore import Camera, CArm, Pose, Volume, XRay
from DiffDRRCore.datasets import Folder, open_dataset
from DiffDRRCore.datasets.folder import write_subject
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError, XRayError
from DiffDRRCore.imaging.xray_dicom_writing import write_xray_dicom
from Testing.core import samples
from Testing.core.datasets.folder_files import STRUCTURES, beads, pinhole


def same(one, other, tolerance=1e-9) -> bool:
    if one is None or other is None:
        return one is other
    return float((one - other).abs().max()) <= tolerance


def matrix(pose):
    return None if pose is None else pose.matrix


def check_view(again, view) -> None:
    assert torch.equal(again.xray.image, view.xray.image)
    assert again.xray.intensity == view.xray.intensity
    assert again.xray.meta["kvp"] == 71.5
    assert (again.xray.camera.height, again.xray.camera.width) == (60, 90)
    assert same(again.xray.camera.K, view.xray.camera.K)
    assert same(again.xray.camera.source_to_detector, view.xray.camera.source_to_detector)
    assert same(matrix(again.xray.pose), matrix(view.xray.pose))
    assert same(matrix(again.header_pose), matrix(view.header_pose))
    assert list(again.landmarks) == list(view.landmarks)
    assert all(torch.equal(again.landmarks[name], point) for name, point in view.landmarks.items())
    assert torch.equal(again.segmentation, view.segmentation)
    assert list(again.body_poses) == list(view.body_poses)
    assert all(same(again.body_poses[name].matrix, pose.matrix) for name, pose in view.body_poses.items())


@pytest.mark.parametrize("xray_format", ["png", "dicom", "nii.gz", "nrrd", "tif"])
def test_everything_comes_back(tmp_path, xray_format):
    subject = beads()
    manifest = write_subject(subject, tmp_path / "out", xray_format, ct_format="nrrd")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    dataset = pickle.loads(pickle.dumps(open_dataset(manifest)))
    assert dataset.subject_names == ("patient 1",)
    again = dataset.subjects[0]
    assert torch.equal(again.volume.hu, subject.volume.hu)
    assert torch.equal(again.volume.labels, subject.volume.labels)
    assert again.volume.label_names == STRUCTURES
    assert same(again.volume.ijk_to_ras, subject.volume.ijk_to_ras)
    assert list(again.landmarks) == list(subject.landmarks)
    assert all(same(again.landmarks[name], point) for name, point in subject.landmarks.items())
    assert again.view_names == subject.view_names
    assert again.groups == subject.groups
    for name in subject.view_names:
        check_view(again.views[name], subject.views[name])
        assert torch.equal(again.xrays[name].image, subject.xrays[name].image)


@pytest.mark.parametrize("xray_format", ["png", "dicom"])
def test_beads_land_where_a_hand_written_pinhole_puts_them(tmp_path, xray_format):
    """The CT's voxels of 3000 HU, by the file's own grid, fall on the pixels that were marked."""
    write_subject(beads(seed=3), tmp_path / "out", xray_format)
    subject = Folder(tmp_path / "out").subjects[0]
    ijk = torch.nonzero(subject.volume.hu == 3000).flip(-1).double()
    voxels = (ijk @ subject.volume.ijk_to_ras[:3, :3].T + subject.volume.ijk_to_ras[:3, 3]).numpy()
    for view in subject.views:
        truth = torch.stack(list(view.landmarks.values())).numpy()
        uv = pinhole(view.xray.camera.K, view.xray.pose.matrix, voxels)
        order = [int(np.abs(uv - point).sum(axis=1).argmin()) for point in truth]
        assert np.abs(uv[order] - truth).max() < 1e-3
        marked = view.xray.image[tuple(np.rint(uv[order]).astype(int).T[::-1])]
        assert marked.tolist() == [1000 + n for n in range(len(truth))]


def test_a_ct_in_nifti_keeps_its_grid_as_float32(tmp_path):
    subject = beads()
    write_subject(subject, tmp_path / "out", xrays=[])
    again = Folder(tmp_path / "out").subjects[0]
    assert torch.equal(again.volume.hu, subject.volume.hu)
    assert same(again.volume.ijk_to_ras, subject.volume.ijk_to_ras, 1e-5)
    assert again.view_names == ()


def test_pixels_that_png_cannot_hold_become_tiff(tmp_path):
    subject = beads(fraction=0.37)
    write_subject(subject, tmp_path / "out", "png")
    assert sorted(path.suffix for path in (tmp_path / "out" / "xrays").glob("run*a.*"))[-1] == ".tif"
    for again, view in zip(Folder(tmp_path / "out").subjects[0].views, subject.views, strict=True):
        check_view(again, view)


def test_pixels_that_dicom_cannot_hold_are_rounded_with_a_warning(tmp_path):
    subject = beads(fraction=0.37, views=1)
    with pytest.warns(DiffDRRWarning, match="steps of"):
        write_subject(subject, tmp_path / "out", "dicom")
    again, image = Folder(tmp_path / "out").subjects[0].xrays[0].image, subject.xrays[0].image
    step = float(image.max() - image.min()) / 65535
    assert 0 < float((again - image).abs().max()) < 0.51 * step


def test_chosen_xrays_and_progress(tmp_path):
    seen = []
    write_subject(
        beads(), tmp_path / "out", xrays=["run/2.a", 1], progress=lambda done, total: seen.append((done, total))
    )
    again = Folder(tmp_path / "out").subjects[0]
    assert again.view_names == ("run/2.a", "run/1.a")
    assert again.groups == (("run/2.a",), ("run/1.a",))
    assert seen == [(1, 2), (2, 2)]


def test_names_that_differ_only_in_case_get_files_of_their_own(tmp_path):
    subject = beads(views=1)
    view = subject.views[0]
    subject.all_views, subject.view_names = {"a/b": view, "A b": view}, ("a/b", "A b")
    subject.groups = (("a/b",), ("A b",))
    write_subject(subject, tmp_path / "out")
    names = [
        item["file"] for item in json.loads((tmp_path / "out" / "dataset.json").read_text())["subjects"][0]["xrays"]
    ]
    assert names == ["xrays/a_b.png", "xrays/A_b_2.png"]


def test_nothing_is_left_of_what_could_not_be_written(tmp_path):
    subject = beads()
    subject.all_views["run/1.a"].xray.meta["text"] = object()
    with pytest.raises(ReadError, match="JSON cannot hold"):
        write_subject(subject, tmp_path / "new" / "out")
    assert not (tmp_path / "new" / "out").exists()
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("call", [1, 3, 4])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, call):
    """While the CT, the first X-ray or its segmentation is written."""
    write, calls = SimpleITK.WriteImage, []

    def fill_up(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == call:
            raise RuntimeError("Exception thrown in SimpleITK WriteImage:\nNo space left on device")
        write(*arguments, **keywords)

    monkeypatch.setattr(SimpleITK, "WriteImage", fill_up)
    with pytest.raises(DiffDRRError, match=r"Cannot write .*(No space|Exception thrown)"):
        write_subject(beads(), tmp_path / "out")
    assert len(calls) == call
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, says",
    [
        ({"xray_format": "jpg"}, "written as png"),
        ({"ct_format": "dcm"}, "CT is written as"),
        ({"xrays": ["nobody"]}, "Subject patient 1 has no X-ray 'nobody'; there are: run/0.a"),
        ({"xrays": [7]}, "Subject patient 1 has no X-ray 7"),
    ],
)
def test_what_cannot_be_written(tmp_path, change, says):
    with pytest.raises(DiffDRRError, match=says):
        write_subject(beads(), tmp_path / "out", **change)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(DiffDRRError, match="not empty"):
        write_subject(beads(), tmp_path)
    with pytest.raises(DiffDRRError, match="is a file"):
        write_subject(beads(), tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_tilted_gantry_is_refused(tmp_path):
    subject = beads(views=1)
    affine = subject.volume.ijk_to_ras.clone()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    subject.volume = Volume(subject.volume.hu, affine)
    with pytest.raises(DiffDRRError, match="tilted gantry"):
        write_subject(subject, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("view_from", ["source", "detector"])
@pytest.mark.parametrize("roll", [0.0, 90.0, 180.0])
def test_a_dicom_header_alone_holds_a_c_arm_about_the_origin(tmp_path, view_from, roll):
    """Camera, angles, side and a roll by quarter turns; the numbers of the standard's tags by hand."""
    arm = CArm(1130.25, 700.5, (0, 0, 0), 31.5, -12.25, roll)
    camera = Camera(60, 90, (0.31, 0.42), 1130.25, (41.25, 32.75), view_from)
    image = np.random.default_rng(0).integers(0, 65536, (60, 90)).astype(np.float32)
    write_xray_dicom(
        tmp_path / "x.dcm", XRay(image, camera, None, {"intensity": "attenuation"}), arm.pose, patient="Müller"
    )
    header = pydicom.dcmread(tmp_path / "x.dcm")
    assert [float(x) for x in header.ImagerPixelSpacing] == [0.31, 0.42]
    assert (float(header.DistanceSourceToDetector), float(header.DistanceSourceToPatient)) == (1130.25, 700.5)
    assert float(header.PositionerPrimaryAngle) == pytest.approx(31.5, abs=1e-9)
    assert float(header.PositionerSecondaryAngle) == pytest.approx(-12.25, abs=1e-9)
    assert (header.PatientName, header.pixel_array.dtype) == ("Müller", np.uint16)
    again = XRay.read(tmp_path / "x.dcm")
    assert np.array_equal(again.image.numpy(), image)
    assert again.intensity == "attenuation"
    assert same(again.camera.K, camera.K, 1e-5)
    assert same(again.pose.matrix, arm.pose.matrix, 1e-9)


def test_dicom_has_no_place_for_parallel_rays(tmp_path):
    camera = Camera.parallel_beam(60, 90, (0.3, 0.3), 1000.0)
    with pytest.raises(XRayError, match="parallel"):
        write_xray_dicom(tmp_path / "x.dcm", XRay(torch.zeros(60, 90), camera))
    assert not list(tmp_path.iterdir())


def test_a_flat_image_and_a_pose_beyond_the_isocentre(tmp_path):
    """No range to scale and no distance that is positive: the file is still one that can be read."""
    camera = Camera(60, 90, (0.3, 0.3), 1000.0)
    pose = Pose(samples.rigid(np.random.default_rng(0)))
    behind = pose.translation - 100 * pose.rotation[:, 2]
    with pytest.warns(DiffDRRWarning):
        write_xray_dicom(tmp_path / "x.dcm", XRay(torch.full((60, 90), -0.125), camera), pose, behind)
    again = XRay.read(tmp_path / "x.dcm", camera=camera)
    assert torch.equal(again.image, torch.full((60, 90), -0.125))
    assert again.pose is None
