"""DICOM CT: series and Enhanced CT, against numbers worked out by hand and against SimpleITK."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pytest
import SimpleITK
import torch

from DiffDRRCore.errors import DiffDRRWarning, MissingGeometryError, ReadError
from DiffDRRCore.imaging.volume import Volume
from Testing.core.imaging.ct_files import ras, write_enhanced, write_series, write_slice


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DiffDRRWarning)
        yield


def test_a_series_by_hand(tmp_path):
    stored = write_series(tmp_path, [0, 2, 4, 6])
    volume = Volume.read(tmp_path)
    assert volume.dtype == torch.float32
    assert volume.hu.tolist() == (stored.astype(float) - 1024).tolist()
    # rows 0.7 mm, columns 0.5 mm apart; LPS (10 + 0.5 i, 20 + 0.7 j, 30 + 2 k) is RAS (-10 - 0.5 i, -20 - 0.7 j, ...)
    assert ras(volume, 0, 0, 0) == pytest.approx([-10, -20, 30])
    assert ras(volume, 3, 2, 1) == pytest.approx([-11.5, -21.4, 32])


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [2, 0, 3, 1]])
def test_slices_are_sorted_by_position_not_by_name(tmp_path, order):
    stored = write_series(tmp_path, [2.0 * n for n in order], names=[f"I{n}" for n in range(4)])
    volume = Volume.read(tmp_path)
    assert volume.hu.tolist() == (stored[np.argsort(order)].astype(float) - 1024).tolist()
    assert ras(volume, 0, 0, 3) == pytest.approx([-10, -20, 36])


def test_oblique_and_sagittal_planes(tmp_path):
    """Rows along S downwards, columns along P: the normal is the cross product (0, 1, 0) x (0, 0, -1) = (-1, 0, 0)."""
    stored = write_series(tmp_path, [0, 3, 6], step=(1, 0, 0), orientation=(0, 1, 0, 0, 0, -1))
    volume = Volume.read(tmp_path)
    assert volume.hu.tolist() == (stored[::-1].astype(float) - 1024).tolist()
    assert ras(volume, 0, 0, 0) == pytest.approx([-16, -20, 30])
    assert ras(volume, 1, 1, 1) == pytest.approx([-13, -20.5, 29.3])


def test_each_slice_has_its_own_rescaling(tmp_path):
    stored = np.arange(12, dtype=np.int16).reshape(3, 4)
    write_slice(tmp_path / "a", stored, (0, 0, 0), RescaleSlope=2, RescaleIntercept=-1000)
    write_slice(tmp_path / "b", stored, (0, 0, 1), RescaleSlope=0.5, RescaleIntercept=-1024)
    hu = Volume.read(tmp_path).hu
    assert hu[0].tolist() == (2.0 * stored - 1000).tolist()
    assert hu[1].tolist() == (0.5 * stored - 1024).tolist()


def test_absent_rescaling_is_said(tmp_path):
    stored = write_series(tmp_path, [0, 1], RescaleIntercept=None, RescaleSlope=None)
    with pytest.warns(DiffDRRWarning, match="2 of the 2 slices .* no rescale intercept"):
        volume = Volume.read(tmp_path)
    assert volume.hu.tolist() == stored.astype(float).tolist()


def test_a_tilted_gantry_is_an_exact_shear(tmp_path):
    """Tilt about the x axis by 20 degrees: the table moves along z, the planes lean; DICOM LPS."""
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    stored = write_series(tmp_path, [0, 5, 10], orientation=(1, 0, 0, 0, c, -s))
    with pytest.warns(DiffDRRWarning, match=r"tilted by 20\.0 degrees"):
        volume = Volume.read(tmp_path)
    assert volume.hu.tolist() == (stored.astype(float) - 1024).tolist()
    assert ras(volume, 0, 0, 2) == pytest.approx([-10, -20, 40])
    assert ras(volume, 2, 2, 1) == pytest.approx([-11, -20 - 1.4 * c, 35 - 1.4 * s])


def test_missing_slices_are_named(tmp_path):
    write_series(tmp_path, [0, 2, 4, 10, 12, 14, 18])
    with pytest.raises(ReadError, match=r"lacks 3 slices.* 34\.00 and 40\.00, 44\.00 and 48\.00 mm"):
        Volume.read(tmp_path)


def test_uneven_slices_are_named(tmp_path):
    write_series(tmp_path, [0, 2, 4, 7, 10])
    with pytest.raises(ReadError, match=r"2 to 3 mm apart.*between .*37\.00.*uneven='resample'"):
        Volume.read(tmp_path)


def test_a_small_error_of_each_gap_that_adds_up_is_uneven(tmp_path):
    write_series(tmp_path, np.concatenate([np.arange(20) * 1.0, 19 + np.arange(1, 21) * 1.02]))
    with pytest.raises(ReadError, match="unevenly spaced"):
        Volume.read(tmp_path)


def test_rounded_positions_are_even(tmp_path):
    depths = [round(n * 0.625, 2) for n in range(9)]
    write_series(tmp_path, depths)
    assert float(Volume.read(tmp_path).spacing[2]) == pytest.approx(0.625)


def test_resampling_uneven_slices_interpolates_linearly(tmp_path):
    stored = write_series(tmp_path, [0, 2, 4, 10, 12])
    hu = stored.astype(np.float32) - 1024
    volume = Volume.read(tmp_path, uneven="resample")
    between = [hu[2] * (2 / 3) + hu[3] / 3, hu[2] / 3 + hu[3] * (2 / 3)]
    expected = np.stack([hu[0], hu[1], hu[2], *between, hu[3], hu[4]])
    np.testing.assert_allclose(volume.hu.numpy(), expected, rtol=1e-5, atol=1e-3)
    assert ras(volume, 0, 0, 6) == pytest.approx([-10, -20, 42])
    assert float(volume.spacing[2]) == pytest.approx(2)


@pytest.mark.parametrize("uneven", ["error", "resample"])
def test_slices_at_the_same_place_are_refused(tmp_path, uneven):
    write_series(tmp_path, [0, 2, 2, 4])
    with pytest.raises(ReadError, match=r"same place.*32\.00 mm"):
        Volume.read(tmp_path, uneven=uneven)


def test_slices_shifted_sideways_are_refused(tmp_path):
    write_series(tmp_path, [0, 2, 4])
    write_slice(tmp_path / "x.dcm", np.zeros((3, 4), np.int16), (12, 20, 36))
    with pytest.raises(ReadError, match="sideways"):
        Volume.read(tmp_path)


def test_mixed_sizes_are_refused(tmp_path):
    write_series(tmp_path, [0, 2])
    write_slice(tmp_path / "x.dcm", np.zeros((5, 4), np.int16), (10, 20, 34))
    with pytest.raises(ReadError, match=r"mixes slices.*x\.dcm"):
        Volume.read(tmp_path)


def test_two_series_are_listed_and_one_can_be_chosen(tmp_path):
    write_series(tmp_path, [0, 1, 2])
    soft = write_series(
        tmp_path, [0, 1], ["s0", "s1"], seed=1, SeriesInstanceUID="1.2.4", SeriesDescription="soft tissue"
    )
    with pytest.raises(ReadError, match=r"1\.2\.3 \('bone', 3 files\); 1\.2\.4 \('soft tissue', 2 files\)"):
        Volume.read(tmp_path)
    expected = (soft.astype(float) - 1024).tolist()
    assert Volume.read(tmp_path, series="1.2.4").hu.tolist() == expected
    assert Volume.read(tmp_path / "s1").hu.tolist() == expected
    with pytest.raises(ReadError, match=r"no CT series 9\.9"):
        Volume.read(tmp_path, series="9.9")
    with pytest.raises(ReadError, match=r"belongs to the series 1\.2\.4"):
        Volume.read(tmp_path / "s1", series="1.2.3")


def test_localizers_and_other_files_are_left_aside(tmp_path):
    write_series(tmp_path, [0, 1, 2])
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "orientation": (0, 1, 0, 0, 0, -1)}
    write_slice(tmp_path / "scout.dcm", np.zeros((9, 9), np.int16), (0, 0, 0), **scout)
    write_slice(tmp_path / "mr.dcm", np.zeros((9, 9), np.int16), (0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "subfolder").mkdir()
    assert Volume.read(tmp_path).shape == (3, 3, 4)
    with pytest.raises(ReadError, match="localizer"):
        Volume.read(tmp_path / "scout.dcm")
    with pytest.raises(ReadError, match="not a CT"):
        Volume.read(tmp_path / "mr.dcm")


@pytest.mark.parametrize("tag", ["position", "orientation", "spacing"])
def test_missing_geometry_is_named(tmp_path, tag):
    write_series(tmp_path, [0, 1])
    write_slice(tmp_path / "x.dcm", np.zeros((3, 4), np.int16), **{"position": (10, 20, 32), tag: None})
    name = {"position": "ImagePositionPatient", "orientation": "ImageOrientationPatient", "spacing": "PixelSpacing"}[
        tag
    ]
    with pytest.raises(MissingGeometryError, match=f"x.dcm.*{name}") as caught:
        Volume.read(tmp_path)
    assert caught.value.missing == (name,)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "perpendicular"),
        ({"orientation": (2, 0, 0, 0, 1, 0)}, "perpendicular"),
        ({"spacing": (0, 0.5)}, "positive"),
        ({"spacing": (1, 1, 1)}, "PixelSpacing"),
    ],
)
def test_impossible_geometry_is_refused(tmp_path, tags, words):
    write_series(tmp_path, [0, 1], **tags)
    with pytest.raises(ReadError, match=words):
        Volume.read(tmp_path)


def test_folders_without_a_ct(tmp_path):
    with pytest.raises(ReadError, match="empty"):
        Volume.read(tmp_path)
    write_series(tmp_path / "series", [0, 1])
    with pytest.raises(ReadError, match=r"subfolders .*\(series\)"):
        Volume.read(tmp_path)
    (tmp_path / "series" / "000.dcm").unlink()
    with pytest.raises(ReadError, match="single CT slice"):
        Volume.read(tmp_path / "series")


@pytest.mark.parametrize("size", [135, 140, 200, 250, *range(300, 720, 15), -1, -20])
def test_a_truncated_slice_is_refused_by_name(tmp_path, size):
    write_series(tmp_path, [0, 1, 2])
    damaged = tmp_path / "001.dcm"
    damaged.write_bytes(damaged.read_bytes()[:size])
    for path in (tmp_path, damaged):
        with pytest.raises(ReadError, match=r"001\.dcm"):
            Volume.read(path)


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG"])
def test_compressed_slices(tmp_path, compressor):
    """Lossless JPEG of 0, 10, 20 mm written by GDCM."""
    hu = np.random.default_rng(0).integers(-1000, 2000, (3, 32, 32)).astype(np.int16)
    for n, plane in enumerate(hu):
        image = SimpleITK.GetImageFromArray(plane[None])
        tags = {"0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0060": "CT", "0020|000e": "1.2.3"}
        tags |= {"0008|0018": f"1.2.3.{n}", "0028|1052": "-1024", "0028|1053": "1"}
        tags |= {"0020|0032": f"0\\0\\{10 * n}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(tmp_path / f"{n}.dcm"))
        writer.Execute(image)
    assert Volume.read(tmp_path).hu.tolist() == hu.tolist()


@pytest.mark.parametrize("shared_geometry", [True, False])
def test_an_enhanced_ct(tmp_path, shared_geometry):
    stored = np.random.default_rng(0).integers(0, 3000, (4, 5, 6)).astype(np.int16)
    depths = [4, 0, 2, 6]
    slopes, intercepts = [1, 2, 1, 0.5], [-1024, -1000, -900, 0]
    path = write_enhanced(
        tmp_path / "enhanced.dcm",
        stored,
        [(10, 20, 30 + depth) for depth in depths],
        (1, 0, 0, 0, 1, 0),
        (0.7, 0.5),
        slopes,
        intercepts,
        shared_geometry,
    )
    hu = stored * np.reshape(slopes, (4, 1, 1)) + np.reshape(intercepts, (4, 1, 1))
    for source in (path, tmp_path):
        volume = Volume.read(source)
        assert volume.hu.tolist() == hu[[1, 2, 0, 3]].tolist()
        assert ras(volume, 1, 1, 1) == pytest.approx([-10.5, -20.7, 32])


def test_an_enhanced_ct_that_does_not_describe_its_frames(tmp_path):
    stored, positions = np.zeros((2, 2, 2), np.int16), [(0, 0, 0), (0, 0, 1)]
    path = write_enhanced(tmp_path / "e.dcm", stored, positions, (1, 0, 0, 0, 1, 0), (1, 1), [1, 1], [0, 0])
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = 3
    dataset.save_as(path)
    with pytest.raises(MissingGeometryError, match="does not describe each of its frames"):
        Volume.read(path)
    dataset.NumberOfFrames = 2
    del dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence
    dataset.save_as(path)
    with pytest.raises(MissingGeometryError, match="lacks ImagePositionPatient"):
        Volume.read(path)


# ---- real scans


def test_the_head_phantom_equals_simpleitk(shared_data):
    folder = shared_data / "skull_phantom" / "ct_bone"
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = SimpleITK.ReadImage(names)
    volume = Volume.read(folder)
    assert np.array_equal(volume.hu.numpy(), SimpleITK.GetArrayViewFromImage(image))
    for index in [(0, 0, 0), (511, 0, 0), (0, 511, 139), (511, 511, 139)]:
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        assert ras(volume, *index) == pytest.approx([-left, -posterior, superior], abs=1e-6)


def test_the_head_phantom_and_its_localizer_are_kept_apart(shared_data, tmp_path):
    for n, name in enumerate(["I10", "I20", "I30"]):
        (tmp_path / f"{n}").write_bytes((shared_data / "skull_phantom" / "ct_bone" / name).read_bytes())
    (tmp_path / "scout").write_bytes((shared_data / "skull_phantom" / "localizer" / "I10").read_bytes())
    assert Volume.read(tmp_path).shape[1:] == (512, 512)
    with pytest.raises(ReadError, match="only 1 localizer"):
        Volume.read(shared_data / "skull_phantom" / "localizer")


def test_the_tilted_head(shared_data):
    folder = shared_data / "tilted_ct" / "ge_tilt_uneven"
    with pytest.raises(ReadError, match="unevenly spaced"):
        Volume.read(folder)
    with pytest.warns(DiffDRRWarning, match=r"tilted by 18\.5 degrees"):
        volume = Volume.read(folder, uneven="resample")
    # headers of the first slice: position (-125, -123.54, 5.836), column direction (0, 0.9483237, -0.3173047)
    assert ras(volume, 0, 0, 0) == pytest.approx([125, 123.5404569, 5.8360586])
    assert ras(volume, 0, 100, 0) == pytest.approx(
        [125, 123.5404569 - 48.82812 * 0.9483237, 5.8360586 - 48.82812 * 0.3173047]
    )
    top = ras(volume, 0, 0, volume.shape[0] - 1)
    assert top[:2] == pytest.approx([125, 123.5404569])
    first = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "01.dcm")))[0]
    assert any(np.array_equal(volume.hu[k].numpy(), first) for k in (0, -1))


def test_fluoroscopy_is_not_a_ct(shared_data):
    with pytest.raises(ReadError, match="no CT: its 6 DICOM files"):
        Volume.read(shared_data / "hip_fluoroscopy")
