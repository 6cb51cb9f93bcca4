"""`dcm2nii`: the file that `convert ct` writes, and which series there are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from Testing.core.imaging.ct_files import write_series


def test_dicom_to_nifti(run, tmp_path):
    """Voxels and grid by SimpleITK, from what was written; it and NIfTI go by LPS."""
    stored = write_series(tmp_path / "dicom", [0, 2, 4, 6])
    target = tmp_path / "out" / "ct.nii.gz"
    code, out, err = run("dcm2nii", tmp_path / "dicom", target, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"output": str(target)}
    image = sitk.ReadImage(str(target))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), stored - 1024.0)
    assert image.GetSpacing() == pytest.approx((0.5, 0.7, 2.0))
    assert image.GetOrigin() == pytest.approx((10, 20, 30))
    assert run("convert", "ct", tmp_path / "dicom", tmp_path / "other.nii.gz")[0] == 0
    again = sitk.ReadImage(str(tmp_path / "other.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(image))


def test_the_series_is_chosen(run, tmp_path):
    folder = tmp_path / "dicom"
    write_series(folder, [0, 2, 4], ["a0", "a1", "a2"], SeriesInstanceUID="1.2.3")
    stored = write_series(folder, [0, 3, 6], ["b0", "b1", "b2"], seed=1, SeriesInstanceUID="1.2.4")
    code, _, err = run("dcm2nii", folder, tmp_path / "ct.nii")
    assert code == 2
    assert "1.2.3" in err
    assert "1.2.4" in err
    assert not (tmp_path / "ct.nii").exists()
    assert run("dcm2nii", folder, tmp_path / "ct.nii", "--series", "1.2.4")[0] == 0
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ct.nii")))
    np.testing.assert_array_equal(written, stored - 1024.0)


def test_a_nifti_file_is_no_dicom(run, files, tmp_path):
    code, _, err = run("dcm2nii", files.ct, tmp_path / "ct.nii.gz")
    assert code == 2
    assert "is no DICOM file" in err
    assert not (tmp_path / "ct.nii.gz").exists()


def test_uneven_slices_are_interpolated_where_asked_for(run, tmp_path):
    """Slices at 0, 2, 6 mm: the one at 4 is the mean of its neighbours."""
    stored = write_series(tmp_path / "dicom", [0, 2, 6])
    for command in (["dcm2nii"], ["convert", "ct"]):
        target = tmp_path / f"{command[0]}.nii.gz"
        code, _, err = run(*command, tmp_path / "dicom", target)
        assert code == 2
        assert "`dcm2nii --resample-uneven`" in err
        assert run(*command, tmp_path / "dicom", target, "--resample-uneven")[0] == 0
        image = sitk.ReadImage(str(target))
        assert image.GetSpacing()[2] == pytest.approx(2.0)
        slices = stored.astype(float) - 1024
        expected = np.stack([slices[0], slices[1], (slices[1] + slices[2]) / 2, slices[2]])
        np.testing.assert_allclose(sitk.GetArrayFromImage(image), expected, atol=1e-3)


def test_only_nifti(run, tmp_path):
    write_series(tmp_path / "dicom", [0, 2])
    code, _, err = run("dcm2nii", tmp_path / "dicom", tmp_path / "ct.nrrd")
    assert code == 2
    assert ".nii.gz" in err
