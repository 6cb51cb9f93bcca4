"""Labelmaps: on to the grid of the CT, against SimpleITK and worked numbers, and the names of the structures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from DiffDRRCore.errors import DiffDRRWarning, ReadError, VolumeError
from DiffDRRCore.imaging.volume import Volume
from Testing.core.imaging.ct_files import random_axes, ras, save_itk, write_nifti

HU = np.random.default_rng(0).integers(-1000, 3000, (3, 4, 5)).astype(np.int16)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DiffDRRWarning)
        yield


def labelled(folder, suffix=".nii.gz"):
    """A CT and its labels, each voxel's label is its own number."""
    labels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    save_itk(folder / f"ct{suffix}", HU, (1, 2, 3), (5, 6, 7))
    return labels


def test_labels_on_the_same_grid(tmp_path):
    labels = labelled(tmp_path)
    save_itk(tmp_path / "labels.nrrd", labels, (1, 2, 3), (5, 6, 7))
    assert Volume.read(tmp_path / "ct.nii.gz", tmp_path / "labels.nrrd").labels.tolist() == labels.tolist()


@pytest.mark.parametrize("order", [(2, 1, 0), (0, 2, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_labels_on_flipped_and_permuted_grids_are_exact(tmp_path, order, flips):
    """The same voxels stored in another order; ITK works out where they are."""
    labels = labelled(tmp_path)
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((5, 6, 7))
    image = SimpleITK.PermuteAxes(SimpleITK.Flip(image, [axis in flips for axis in range(3)]), order)
    SimpleITK.WriteImage(image, str(tmp_path / "labels.nrrd"))
    assert Volume.read(tmp_path / "ct.nii.gz", tmp_path / "labels.nrrd").labels.tolist() == labels.tolist()


def test_labels_on_any_grid_equal_simpleitk(tmp_path):
    labels = np.random.default_rng(1).integers(0, 9, (12, 11, 10)).astype(np.int16)
    image = save_itk(tmp_path / "labels.nrrd", labels, (0.9, 1.1, 1.3), (2, 3, 4), random_axes(5, 1))
    axes = random_axes(6, -1)
    center = np.array(image.TransformContinuousIndexToPhysicalPoint((4.5, 5, 5.5)))
    origin = center - axes @ ((np.array([9, 8, 7]) - 1) / 2 * [0.8, 0.7, 0.9])
    ct = save_itk(tmp_path / "ct.nrrd", np.zeros((7, 8, 9), np.int16), (0.8, 0.7, 0.9), origin.tolist(), axes)
    expected = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(image, ct, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0)
    )
    with pytest.warns(DiffDRRWarning, match="outside the CT"):
        result = Volume.read(tmp_path / "ct.nrrd", tmp_path / "labels.nrrd").labels.numpy()
    assert (result > 0).mean() > 0.5
    assert np.array_equal(result, expected)


def test_labels_of_another_patient_are_refused(tmp_path):
    labels = labelled(tmp_path)
    save_itk(tmp_path / "labels.nrrd", labels, (1, 2, 3), (500, 6, 7))
    with pytest.raises(VolumeError, match="another patient"):
        Volume.read(tmp_path / "ct.nii.gz", tmp_path / "labels.nrrd")


def test_labels_partly_outside_are_said(tmp_path):
    labels = labelled(tmp_path)
    save_itk(tmp_path / "labels.nrrd", np.ones_like(labels), (1, 2, 3), (7, 6, 7))
    with pytest.warns(DiffDRRWarning, match="40% of the labelled voxels"):
        volume = Volume.read(tmp_path / "ct.nii.gz", tmp_path / "labels.nrrd")
    assert volume.labels[0, 0].tolist() == [0, 0, 1, 1, 1]


def test_a_labelmap_of_fractions_is_refused(tmp_path):
    labels = labelled(tmp_path)
    save_itk(tmp_path / "labels.nrrd", labels + 0.5, (1, 2, 3), (5, 6, 7))
    with pytest.raises(VolumeError, match="whole numbers"):
        Volume.read(tmp_path / "ct.nii.gz", tmp_path / "labels.nrrd")
    save_itk(tmp_path / "labels.nrrd", labels.astype(np.float32), (1, 2, 3), (5, 6, 7))
    assert Volume.read(tmp_path / "ct.nii.gz", tmp_path / "labels.nrrd").labels.tolist() == labels.tolist()


def test_names_from_a_slicer_segmentation(tmp_path):
    labels = labelled(tmp_path)
    fields = {"Segment0_LabelValue": "2", "Segment0_Name": "right femur", "Segment1_LabelValue": "1"}
    save_itk(tmp_path / "s.seg.nrrd", labels, (1, 2, 3), (5, 6, 7), **fields, Segment1_Name="pelvis")
    volume = Volume.read(tmp_path / "ct.nii.gz", tmp_path / "s.seg.nrrd")
    assert volume.label_names == {1: "pelvis", 2: "right femur"}
    assert volume.select("right femur").labels.unique().tolist() == [0, 2]


def test_names_from_a_nifti_extension(tmp_path):
    xml = b'<LabelTable><Label Key="0"><![CDATA[none]]></Label>\n<Label Key="12" Red="1"><![CDATA[rib]]></Label>'
    extension = (len(xml) + 8).to_bytes(4, "little") + (30).to_bytes(4, "little") + xml
    extension += bytes(-len(extension) % 16)
    labels = np.full((3, 4, 5), 12, np.uint8)
    path = write_nifti(tmp_path / "labels.nii", labels, np.eye(4), extension=extension)
    ct = write_nifti(tmp_path / "ct.nii", HU, np.eye(4))
    assert Volume.read(ct, path).label_names == {0: "none", 12: "rib"}


def test_names_from_csv_files(tmp_path):
    labels = labelled(tmp_path)
    save_itk(tmp_path / "labels.nrrd", labels, (1, 2, 3), (5, 6, 7))
    paths = tmp_path / "ct.nii.gz", tmp_path / "labels.nrrd"
    assert Volume.read(*paths).label_names == {}
    (tmp_path / "structures.csv").write_text("group,original_idx,structure,id\nribs,1,rib_left_1,92\n\n")
    assert Volume.read(*paths).label_names == {92: "rib_left_1"}
    (tmp_path / "labels.csv").write_text('Label Value,Name\n3,"hip, left"\n')
    assert Volume.read(*paths).label_names == {3: "hip, left"}
    assert Volume.read(*paths, label_names=tmp_path / "structures.csv").label_names == {92: "rib_left_1"}
    assert Volume.read(*paths, label_names={4: "talus"}).label_names == {4: "talus"}


@pytest.mark.parametrize(
    ("text", "words"),
    [("a,b\n1,2\n", "header"), ("", "header"), ("id,name\nx,rib\n", "Line 2"), ("id,name\n1\n", "Line 2")],
)
def test_csv_files_without_names_are_refused(tmp_path, text, words):
    ct = write_nifti(tmp_path / "ct.nii", HU, np.eye(4))
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(ReadError, match=words):
        Volume.read(ct, ct, label_names=tmp_path / "names.csv")


def test_names_without_labels_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="without a labelmap"):
        Volume.read(write_nifti(tmp_path / "ct.nii", HU, np.eye(4)), label_names={1: "x"})


# ---- real scans


def test_the_pelvis_and_its_labels(shared_data):
    folder: Path = shared_data / "pelvis_labels"
    volume = Volume.read(folder / "ct.nii.gz", folder / "labels.nii.gz")
    image = SimpleITK.ReadImage(str(folder / "ct.nii.gz"))
    for index in [(0, 0, 0), (121, 100, 111)]:
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        assert ras(volume, *index) == pytest.approx([-left, -posterior, superior], abs=1e-4)
    assert len(volume.labels.unique()) == 62
    # left of the patient is -x in RAS
    centers = {}
    for name in ("hip_left", "hip_right"):
        k, j, i = torch.nonzero(volume.labels == volume.label_id(name)).double().mean(dim=0).tolist()
        centers[name] = ras(volume, i, j, k)
    assert centers["hip_left"][0] < centers["hip_right"][0] - 50
    assert float(volume.select("hip_left").attenuation.sum()) > 0


def test_the_labels_of_one_patient_do_not_fit_another(shared_data):
    with pytest.raises(VolumeError, match="another patient"):
        Volume.read(shared_data / "pelvis_labels" / "ct.nii.gz", shared_data / "chest_ct" / "mask.nii.gz")
