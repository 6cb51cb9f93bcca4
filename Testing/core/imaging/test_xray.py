"""XRay: what it accepts, cropping and resampling with geometry, files other than DICOM."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK
import torch

from DiffDRRCore.errors import MissingGeometryError, ReadError, XRayError
from DiffDRRCore.geometry import Camera, Pose, project
from DiffDRRCore.imaging.xray import XRay

CAMERA = Camera(4, 6, (0.5, 0.25), 1000.0, (1.5, 2.25), "detector")
POSE = Pose.exp(torch.tensor([0.1, -0.2, 0.3, 5.0, -700.0, 20.0], dtype=torch.float64))


def ramp(height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.arange(height * width, dtype=torch.float32).reshape(height, width)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (torch.zeros(4, 6, dtype=torch.float64), torch.float64),
        (torch.zeros(4, 6, dtype=torch.float16), torch.float16),
        (torch.zeros(4, 6, dtype=torch.int16), torch.float32),
        (np.zeros((4, 6)), torch.float64),
        (np.zeros((4, 6), dtype=np.uint16), torch.float32),
        ([[1, 2, 3, 4, 5, 6]] * 4, torch.float32),
    ],
)
def test_floats_keep_their_dtype_and_the_rest_becomes_float32(given, dtype):
    assert XRay(given, CAMERA).image.dtype == dtype


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 4, 6), r"\[H, W\]"),
        (torch.zeros(0, 6), "at least one pixel"),
        (torch.full((4, 6), float("nan")), "NaN or infinite"),
        (torch.zeros(6, 4), "6 x 4 pixels but its camera 4 x 6"),
    ],
)
def test_unusable_images_are_refused(image, words):
    with pytest.raises(XRayError, match=words):
        XRay(image, CAMERA)


def test_batches_and_unknown_intensities_are_refused():
    with pytest.raises(XRayError, match="not a batch"):
        XRay(ramp(), Camera(4, 6, (0.5, 0.25), torch.tensor([1000.0, 900.0])))
    with pytest.raises(XRayError, match="not a batch"):
        XRay(ramp(), CAMERA, Pose(torch.eye(4).expand(2, 4, 4)))
    with pytest.raises(XRayError, match="intensity"):
        XRay(ramp(), CAMERA, meta={"intensity": "bright"})
    with pytest.raises(XRayError, match="does not say what is bright"):
        _ = XRay(ramp(), CAMERA).intensity


def test_a_crop_moves_projected_points_by_the_removed_pixels():
    xray = XRay(ramp(), CAMERA, POSE, {"intensity": "transmission"})
    cropped = xray.cropped(1, 0, 2, 1)
    assert torch.equal(cropped.image, ramp()[1:, 2:5])
    points = torch.tensor([[3.0, -400.0, 500.0], [-20.0, -600.0, 814.0]], dtype=torch.float64)
    moved = project(xray.camera, POSE, points) - project(cropped.camera, cropped.pose, points)
    torch.testing.assert_close(moved, torch.tensor([2.0, 1.0], dtype=torch.float64).expand(1, 2, 2))
    assert cropped.meta == xray.meta
    assert torch.equal(xray.image, ramp())


@pytest.mark.parametrize("sides", [(4, 0, 0, 0), (2, 2, 0, 0), (0, 0, 3, 3), (-1, 0, 0, 0), (0.5, 0, 0, 0)])
def test_impossible_crops_are_refused(sides):
    with pytest.raises(XRayError, match="crop"):
        XRay(ramp(), CAMERA).cropped(*sides)


def test_resampling_halves_the_size_and_keeps_the_detector():
    half = XRay(ramp(), CAMERA).resampled(2, 3)
    # means of 2 x 2 blocks: of 0, 1, 6, 7 and so on.
    assert half.image.tolist() == [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]
    assert half.camera.pixel_spacing.tolist() == [1.0, 0.5]
    assert XRay(ramp(), CAMERA).resampled(half.camera).image.tolist() == half.image.tolist()


def test_with_pose_and_with_image_leave_the_original():
    xray = XRay(ramp(), CAMERA, None, {"intensity": "transmission"})
    assert xray.with_pose(POSE).pose is POSE
    assert xray.pose is None
    changed = xray.with_image(ramp() + 1, intensity="attenuation")
    assert (changed.intensity, xray.intensity) == ("attenuation", "transmission")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".tif", ".png"])
def test_writing_and_reading_gives_everything_back(tmp_path, suffix):
    xray = XRay(ramp() * 7, CAMERA, POSE, {"intensity": "attenuation", "source": "a.dcm", "kvp": 70.5})
    xray.write(tmp_path / f"x{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"x{suffix}", "x.json"])
    again = XRay.read(tmp_path / f"x{suffix}")
    assert torch.equal(again.image, xray.image)
    assert torch.equal(again.camera.K, CAMERA.K)
    assert torch.equal(again.pose.matrix, POSE.matrix)
    assert again.meta == xray.meta


def test_png_refuses_values_it_cannot_hold(tmp_path):
    for image in (ramp() + 0.5, ramp() - 1, ramp() * 1e5):
        with pytest.raises(XRayError, match="PNG holds whole numbers"):
            XRay(image, CAMERA).write(tmp_path / "x.png")
    with pytest.raises(XRayError, match="use one of"):
        XRay(ramp(), CAMERA).write(tmp_path / "x.jpg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_8_and_16_bit_images_from_elsewhere(tmp_path, dtype, suffix):
    pixels = np.array([[0, 1, 200], [3, np.iinfo(dtype).max, 5]], dtype=dtype)
    image = SimpleITK.GetImageFromArray(pixels)
    image.SetSpacing((0.7, 0.7))
    SimpleITK.WriteImage(image, str(tmp_path / f"x{suffix}"))
    with pytest.raises(MissingGeometryError, match=r"x\.json") as caught:
        XRay.read(tmp_path / f"x{suffix}")
    assert caught.value.missing == ("pixel_spacing (mm)", "source_to_detector (mm)")
    xray = XRay.read(tmp_path / f"x{suffix}", camera=Camera(2, 3, (0.3, 0.3), 1000.0))
    assert xray.image.tolist() == pixels.tolist()
    assert xray.camera.pixel_spacing.tolist() == pytest.approx([0.3, 0.3])  # the file's 0.7 is no detector's
    assert "intensity" not in xray.meta


def test_a_camera_given_by_path_wins_over_the_one_beside(tmp_path):
    XRay(ramp(), CAMERA, POSE, {"intensity": "transmission"}).write(tmp_path / "x.nrrd")
    other = {"height": 4, "width": 6, "pixel_spacing": [1, 1], "source_to_detector": 800, "intensity": "attenuation"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    xray = XRay.read(tmp_path / "x.nrrd", camera=tmp_path / "other.json")
    assert float(xray.camera.source_to_detector) == 800
    assert xray.pose is None
    assert xray.intensity == "attenuation"


def test_one_slice_is_an_image_and_several_are_frames(tmp_path):
    run = np.stack([np.full((4, 6), 1.0), np.full((4, 6), 5.0), np.full((4, 6), 3.0)]).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(run[:1]), str(tmp_path / "one.nii.gz"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(run), str(tmp_path / "run.nii.gz"))
    assert XRay.read(tmp_path / "one.nii.gz", camera=CAMERA).image.tolist() == run[0].tolist()
    with pytest.raises(ReadError, match="3 frames; choose one of 0 to 2"):
        XRay.read(tmp_path / "run.nii.gz", camera=CAMERA)
    for frame, value in ((1, 5), ("mean", 3), ("max", 5), ("min", 1)):
        xray = XRay.read(tmp_path / "run.nii.gz", frame, CAMERA)
        assert xray.image.unique().tolist() == [value]
        assert (xray.meta["frame"], xray.meta["frames"]) == (frame, 3)
    for frame in (3, -1, "median", 1.0, True):
        with pytest.raises(ReadError, match="frame"):
            XRay.read(tmp_path / "run.nii.gz", frame, CAMERA)


def test_wrong_files_get_one_sentence(tmp_path):
    with pytest.raises(ReadError, match="folder"):
        XRay.read(tmp_path)
    with pytest.raises(ReadError, match="no file"):
        XRay.read(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ReadError, match="not an image of a known format"):
        XRay.read(tmp_path / "text.png", camera=CAMERA)
    colour = SimpleITK.GetImageFromArray(np.zeros((4, 6, 3), dtype=np.uint8), isVector=True)
    SimpleITK.WriteImage(colour, str(tmp_path / "colour.png"))
    with pytest.raises(ReadError, match="colour"):
        XRay.read(tmp_path / "colour.png", camera=CAMERA)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.full((4, 6), np.nan)), str(tmp_path / "nan.nrrd"))
    with pytest.raises(ReadError, match="NaN"):
        XRay.read(tmp_path / "nan.nrrd", camera=CAMERA)
    XRay(ramp(), CAMERA).write(tmp_path / "x.tif")
    with pytest.raises(ReadError, match="4 x 6 pixels but its camera is for 8 x 6"):
        XRay.read(tmp_path / "x.tif", camera=CAMERA.resized(8, 6))
    with pytest.raises(ReadError, match="camera is a Camera or the path"):
        XRay.read(tmp_path / "x.tif", camera=3)


def test_the_real_wrist(shared_data):
    folder = shared_data / "wrist_biplane"
    K = json.loads((folder / "reference.json").read_text())["cameras"]["cam1"]["K"]
    camera = Camera.from_intrinsics(K, 1760, 1760, source_to_detector=1500.0)
    xray = XRay.read(folder / "xray" / "xr_rad_uln_cam01_UND.0002.tif", camera=camera)
    reference = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "xray" / "xr_rad_uln_cam01_UND.0002.tif")))
    assert reference.dtype == np.uint8
    assert np.array_equal(xray.image.numpy(), reference)
