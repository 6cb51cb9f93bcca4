"""Image files: grids against hand-worked numbers and SimpleITK, and clear refusals."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError, VolumeError
from DiffDRRCore.imaging.volume import Volume
from Testing.core.imaging.ct_files import random_axes, ras, save_itk, write_nifti

HU = np.random.default_rng(0).integers(-1000, 3000, (3, 4, 5)).astype(np.int16)
SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".nhdr"]


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DiffDRRWarning)
        yield


# ---- grids


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_axial_ct_by_hand(tmp_path, suffix):
    """LPS origin (10, 20, 30), spacing (0.5, 0.75, 2): voxel (4, 2, 1) is at LPS (12, 21.5, 32)."""
    save_itk(tmp_path / f"ct{suffix}", HU, (0.5, 0.75, 2), (10, 20, 30))
    volume = Volume.read(tmp_path / f"ct{suffix}")
    assert volume.dtype == torch.float32 and volume.hu.tolist() == HU.astype(float).tolist()
    assert ras(volume, 4, 2, 1) == pytest.approx([-12, -21.5, 32])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("handedness", [1, -1])
def test_oblique_grids_equal_simpleitk(tmp_path, suffix, handedness):
    path = tmp_path / f"ct{suffix}"
    image = save_itk(path, HU, (0.4, 0.7, 3.1), (-100, 50.5, 7), random_axes(3, handedness))
    volume = Volume.read(path)
    for index in [(0, 0, 0), (4, 0, 0), (0, 3, 2), (4, 3, 2)]:
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        assert ras(volume, *index) == pytest.approx([-left, -posterior, superior], abs=1e-4)


@given(st.integers(0, 10**6), st.sampled_from([1, -1]), st.sampled_from([".nii.gz", ".nrrd", ".mha"]))
@settings(max_examples=20, deadline=None)
def test_written_volumes_come_back(tmp_path_factory, seed, handedness, suffix):
    generator = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = random_axes(seed, handedness) * generator.uniform(0.3, 5, 3)
    affine[:3, 3] = generator.uniform(-300, 300, 3)
    labels = generator.integers(0, 4, (3, 4, 5))
    volume = Volume(generator.normal(size=(3, 4, 5)) * 700, affine, labels, {1: "femur", 3: "hip, left"})
    folder = tmp_path_factory.mktemp("written")
    volume.write(folder / f"ct{suffix}", folder / "labels.seg.nrrd")
    again = Volume.read(folder / f"ct{suffix}", folder / "labels.seg.nrrd")
    torch.testing.assert_close(again.ijk_to_ras, volume.ijk_to_ras, rtol=0, atol=5e-5 if "nii" in suffix else 1e-9)
    assert torch.equal(again.hu, volume.hu) and torch.equal(again.labels, volume.labels)
    assert again.label_names == {1: "femur", 3: "hip, left"}
    assert sorted(item.name for item in folder.iterdir()) == sorted([f"ct{suffix}", "labels.seg.nrrd"])


def test_a_sheared_nifti_is_read_exactly_and_not_written(tmp_path):
    sform = np.array([[0.5, 0, 0.2, 1], [0, 0.5, -0.7, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
    volume = Volume.read(write_nifti(tmp_path / "ct.nii", HU, sform))
    np.testing.assert_allclose(volume.ijk_to_ras.numpy(), sform, atol=1e-6)
    with pytest.raises(VolumeError, match="not perpendicular"):
        volume.write(tmp_path / "out.nii")
    assert not (tmp_path / "out.nii").exists()


def test_nifti_qform_by_hand(tmp_path):
    """A quarter turn about S, (b, c, d) = (0, 0, sin 45): i runs along A, j along L; qfac -1 turns k to I."""
    path = write_nifti(tmp_path / "ct.nii", HU, qform=(1, (0, 0, 0.5**0.5), (1, 2, 3), (-1, 0.5, 0.6, 2)))
    volume = Volume.read(path)
    assert ras(volume, 0, 0, 0) == pytest.approx([1, 2, 3])
    assert ras(volume, 1, 0, 0) == pytest.approx([1, 2.5, 3], abs=1e-6)
    assert ras(volume, 0, 1, 0) == pytest.approx([0.4, 2, 3], abs=1e-6)
    assert ras(volume, 0, 0, 1) == pytest.approx([1, 2, 1])
    left, posterior, superior = SimpleITK.ReadImage(str(path)).TransformIndexToPhysicalPoint((4, 3, 2))
    assert ras(volume, 4, 3, 2) == pytest.approx([-left, -posterior, superior], abs=1e-5)


@pytest.mark.parametrize(("sform_code", "used"), [(1, "sform"), (2, "qform")])
def test_two_positions_that_differ_are_said(tmp_path, sform_code, used):
    sform = np.diag([1.0, 1, 1, 1])
    sform[:3, 3] = (7, 8, 9)
    path = write_nifti(tmp_path / "ct.nii", HU, sform, sform_code, qform=(1, (0, 0, 0), (1, 2, 3), (1, 1, 1, 1)))
    with pytest.warns(DiffDRRWarning, match=rf"differ by up to 10\.4 mm; the {used} is used"):
        volume = Volume.read(path)
    assert ras(volume, 0, 0, 0) == ([7, 8, 9] if used == "sform" else [1, 2, 3])


def test_a_nifti_without_a_position_is_said(tmp_path):
    with pytest.warns(DiffDRRWarning, match="has no position"):
        volume = Volume.read(write_nifti(tmp_path / "ct.nii", HU))
    assert ras(volume, 1, 1, 1) == [-1, -1, 1]


@pytest.mark.parametrize(("units", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 1e-3)])
def test_nifti_lengths_become_mm(tmp_path, units, factor):
    volume = Volume.read(write_nifti(tmp_path / "ct.nii", HU, np.diag([1.0, 2, 3, 1]), units=units))
    assert ras(volume, 1, 1, 1) == pytest.approx([factor, 2 * factor, 3 * factor])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint16", "float32", "float64"])
def test_nifti_types_byte_orders_and_scaling(tmp_path, order, dtype):
    stored = np.abs(HU).astype(dtype)
    plain = Volume.read(write_nifti(tmp_path / "plain.nii", stored, np.eye(4), order=order))
    assert plain.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert plain.hu.tolist() == stored.astype(float).tolist()
    path = write_nifti(tmp_path / "scaled.nii", stored, np.eye(4), slope=0.5, intercept=-1024, order=order)
    assert Volume.read(path).hu.tolist() == (0.5 * stored.astype(float) - 1024).tolist()


def test_a_nifti_with_a_fourth_axis_of_one(tmp_path):
    path = write_nifti(tmp_path / "ct.nii", HU, np.eye(4), dim=(4, 5, 4, 3, 1))
    assert Volume.read(path).shape == (3, 4, 5)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_an_itk_image_with_a_fourth_axis_of_one(tmp_path, suffix):
    image = SimpleITK.JoinSeries(SimpleITK.GetImageFromArray(HU))
    image.SetOrigin((1, 2, 3, 0))
    SimpleITK.WriteImage(image, str(tmp_path / f"ct{suffix}"))
    volume = Volume.read(tmp_path / f"ct{suffix}")
    assert volume.shape == (3, 4, 5) and ras(volume, 0, 0, 0) == [-1, -2, 3]


# ---- refusals


def damaged_file(folder, kind):
    path = folder / "ct.nii.gz"
    if kind == "text":
        path.write_text("this is no image\n" * 50)
    elif kind == "missing":
        return folder / "nowhere.nrrd"
    elif kind == "2D":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(HU[0]), str(path))
    elif kind == "one slice":
        save_itk(path, HU[:1])
    elif kind == "4D":
        write_nifti(folder / "ct.nii", np.stack([HU, HU]), np.eye(4))
        return folder / "ct.nii"
    elif kind == "vector":
        path = folder / "ct.nrrd"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([HU, HU], -1), isVector=True), str(path))
    elif kind == "zero size":
        write_nifti(folder / "ct.nii", HU, np.eye(4), dim=(3, 5, 0, 3))
        return folder / "ct.nii"
    elif kind == "singular":
        write_nifti(folder / "ct.nii", HU, np.diag([1.0, 1, 0, 1]))
        return folder / "ct.nii"
    elif kind == "NaN":
        array = HU.astype(np.float32)
        array[1, 2, :3] = np.nan
        write_nifti(folder / "ct.nii", array, np.eye(4))
        return folder / "ct.nii"
    elif kind == "picture":
        path = folder / "ct.png"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(HU[0].astype(np.uint8)), str(path))
    elif kind == "promises too much":
        write_nifti(folder / "ct.nii", HU, np.eye(4), dim=(3, 30000, 30000, 30000))
        return folder / "ct.nii"
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "not a NIfTI"),
        ("missing", "no file or folder"),
        ("2D", "2D image"),
        ("one slice", "2D image"),
        ("4D", "4 dimensions"),
        ("vector", "2 values per voxel"),
        ("zero size", "without voxels"),
        ("singular", "singular"),
        ("NaN", "3 of the 60"),
        ("picture", "not that of a NIfTI"),
        ("promises too much", "promises"),
    ],
)
def test_unusable_files_are_refused_in_one_sentence(tmp_path, kind, words):
    with pytest.raises(DiffDRRError, match=words) as caught:
        Volume.read(damaged_file(tmp_path, kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.97])
def test_truncated_files_are_refused_without_noise(tmp_path, capfd, suffix, share):
    path = tmp_path / f"ct{suffix}"
    save_itk(path, np.tile(HU, (5, 5, 5)))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ReadError, match=r"ct\.") as caught:
        Volume.read(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_wrong_gzip_checksum_is_refused(tmp_path):
    save_itk(tmp_path / "ct.nii.gz", HU)
    data = bytearray((tmp_path / "ct.nii.gz").read_bytes())
    data[-6] ^= 0xFF
    (tmp_path / "ct.nii.gz").write_bytes(bytes(data))
    with pytest.raises(ReadError, match="damaged"):
        Volume.read(tmp_path / "ct.nii.gz")


def test_a_series_of_a_file_is_refused(tmp_path):
    path = write_nifti(tmp_path / "ct.nii", HU, np.eye(4))
    with pytest.raises(ReadError, match="not DICOM"):
        Volume.read(path, series="1.2")
    with pytest.raises(ReadError, match="uneven"):
        Volume.read(path, uneven="ignore")
    with pytest.raises(ReadError, match="labelmap"):
        Volume.read(path, tmp_path)


@pytest.mark.parametrize("name", ["ct.mhd", "ct", "ct.dcm", "ct.png"])
def test_unknown_file_types_are_not_written(tmp_path, name):
    with pytest.raises(VolumeError, match=r"\.nii, \.nii\.gz, \.nrrd, \.mha"):
        Volume(HU, np.eye(4)).write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_labels_that_are_not_there_are_not_written(tmp_path):
    with pytest.raises(VolumeError, match="no labels"):
        Volume(HU, np.eye(4)).write(tmp_path / "ct.nrrd", tmp_path / "labels.nrrd")
    assert not list(tmp_path.iterdir())


# ---- real scans


def test_the_chest_ct(shared_data):
    """512 x 512 x 133, ITK direction (1, 0, 0, 0, -1, 0, 0, 0, 1) in LPS, origin (-166, 187.597, -340)."""
    folder: Path = shared_data / "chest_ct"
    volume = Volume.read(folder / "cxr.nii.gz", folder / "mask.nii.gz")
    expected = [[-0.703125, 0, 0, 166], [0, 0.703125, 0, -187.59688], [0, 0, 2.5, -340], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.ijk_to_ras.numpy(), expected, atol=1e-4)
    assert float(torch.linalg.det(volume.ijk_to_ras)) < 0
    image = SimpleITK.ReadImage(str(folder / "cxr.nii.gz"))
    assert np.array_equal(volume.hu.numpy(), SimpleITK.GetArrayViewFromImage(image))
    assert len(volume.labels.unique()) == 90
    assert (volume.label_names[5], volume.label_id("rib_left_1")) == ("liver", 92)
    # the names fit the tissue
    mean = {name: float(volume.hu[volume.labels == volume.label_id(name)].mean()) for name in ("liver", "vertebrae_T9")}
    assert 0 < mean["liver"] < 150 < mean["vertebrae_T9"]
