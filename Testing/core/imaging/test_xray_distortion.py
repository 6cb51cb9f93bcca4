"""Distortion in a camera file: `XRay.read` undoes it, once, against images that are known in closed form."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, XRay
from DiffDRRCore.errors import ReadError, XRayError
from DiffDRRCore.imaging.camera_file import camera_to_dict, read_camera, write_camera
from DiffDRRCore.imaging.distortion import RadialDistortion
from DiffDRRCore.imaging.distortion_grid import GridDistortion
from DiffDRRCore.imaging.xray_dicom_writing import write_xray_dicom
from Testing.scene import bead_images as made

CAMERA = made.CAMERA
RADIAL = RadialDistortion.of_image(CAMERA, (made.K1, 0.0, 0.0, 0.0))


def scene(uv) -> np.ndarray:
    """What an ideal detector shows at pixels [..., 2]: bumps on a slope, smooth."""
    u, v = np.moveaxis(np.asarray(uv, dtype=float), -1, 0)
    bumps = sum(np.exp(-((u - a) ** 2 + (v - b) ** 2) / 450) for a, b in ((60, 70), (220, 230), (150, 40), (30, 250)))
    return 20 + 10 * bumps + 0.01 * u - 0.02 * v


def grid() -> np.ndarray:
    v, u = np.meshgrid(np.arange(float(made.SIZE)), np.arange(float(made.SIZE)), indexing="ij")
    return np.stack([u, v], axis=-1)


IDEAL = scene(grid())
RECORDED = scene(made.undistorted(grid()))  # a recorded pixel shows what its ideal pixel shows
INSIDE = ((made.distorted(grid()) >= 6) & (made.distorted(grid()) <= made.SIZE - 7)).all(-1)  # the spline's borders


@pytest.fixture
def folder(tmp_path):
    """A recorded image with a camera that has the distortion."""
    XRay(RECORDED, CAMERA, meta={"intensity": "transmission"}).write(tmp_path / "a.nrrd")
    write_camera(tmp_path / "a.json", CAMERA, intensity="transmission", distortion=RADIAL)
    return tmp_path


def calibration(path, distortion=RADIAL, camera=CAMERA):
    content = {"units": "mm", "kind": "calibration", "camera": camera_to_dict(camera)}
    path.write_text(json.dumps({**content, "distortion": distortion and distortion.to_dict(), "rms": 0.2}))
    return path


def assert_ideal(xray) -> None:
    assert np.abs(RECORDED - IDEAL)[INSIDE].max() > 1.5  # it matters
    assert np.abs(xray.image.numpy() - IDEAL)[INSIDE].max() < 2e-3
    assert torch.equal(xray.camera.K, CAMERA.K)
    assert xray.meta["undistorted"]["k1"] == made.K1


def test_the_inverse_of_the_test_is_one():
    uv = np.random.default_rng(0).uniform(0, made.SIZE, (50, 2))
    np.testing.assert_allclose(made.undistorted(made.distorted(uv)), uv, atol=1e-9)
    np.testing.assert_allclose(RADIAL.distort(uv).numpy(), made.distorted(uv), atol=1e-9)


def test_a_camera_beside_the_image_with_a_distortion(folder):
    assert_ideal(XRay.read(folder / "a.nrrd"))


def test_what_is_written_is_not_undistorted_again(folder):
    first = XRay.read(folder / "a.nrrd")
    first.write(folder / "b.nii.gz")
    again = XRay.read(folder / "b.nii.gz")
    assert torch.equal(again.image, first.image) and again.meta["undistorted"] == first.meta["undistorted"]
    assert read_camera(folder / "b.json").distortion is None
    with pytest.raises(XRayError, match="undone already"):
        again.undistorted(RADIAL)


def test_a_calibration_file_in_place_of_the_camera(folder):
    (folder / "a.json").unlink()
    assert_ideal(XRay.read(folder / "a.nrrd", camera=calibration(folder / "calibration.json")))


def test_a_camera_alone_reads_the_image_as_it_was_recorded(folder):
    xray = XRay.read(folder / "a.nrrd", camera=CAMERA)
    np.testing.assert_array_equal(xray.image.numpy(), RECORDED.astype(np.float32))
    plain = XRay.read(folder / "a.nrrd", camera=calibration(folder / "plain.json", None))
    assert torch.equal(plain.image, xray.image) and "undistorted" not in plain.meta


def test_dicom(folder):
    counts = np.rint(1000 * RECORDED)
    write_xray_dicom(folder / "a.dcm", XRay(counts, CAMERA, meta={"intensity": "transmission"}), made.poses(1)[0])
    xray = XRay.read(folder / "a.dcm", camera=calibration(folder / "calibration.json"))
    assert_ideal(XRay(xray.image / 1000, xray.camera, None, xray.meta))


@pytest.mark.parametrize("intensity, value", [("transmission", RECORDED.min()), ("attenuation", RECORDED.max())])
def test_where_nothing_was_recorded_no_x_rays_arrive(intensity, value):
    xray = XRay(RECORDED, CAMERA, meta={"intensity": intensity}).undistorted(RADIAL)
    outside = ~((made.distorted(grid()) >= -0.5) & (made.distorted(grid()) <= made.SIZE - 0.5)).all(-1)
    assert outside.sum() > 100 and (xray.image.numpy()[outside] == value).all()


def test_a_grid_goes_through_the_file(tmp_path):
    known = GridDistortion(made.SIZE, made.SIZE, (2, 3), np.random.default_rng(0).normal(0, 2, (5, 6, 2)))
    write_camera(tmp_path / "c.json", CAMERA, distortion=known)
    assert torch.equal(read_camera(tmp_path / "c.json").distortion.coefficients, known.coefficients)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model": "pincushion"}, "model"),
        ({"k1": "much"}, "k1"),
        ({"k3": 0.1}, "k3"),
        ({"scale": [0, 1]}, "scale"),
    ],
)
def test_a_damaged_distortion_is_one_sentence(folder, change, says):
    content = json.loads((folder / "a.json").read_text())
    content["distortion"].update(change)
    (folder / "a.json").write_text(json.dumps(content))
    with pytest.raises(ReadError, match=says):
        XRay.read(folder / "a.nrrd")


def test_a_distortion_of_another_size(folder):
    other = GridDistortion(100, 100, (2, 2))
    with pytest.raises(ReadError, match="distortion is of 100 x 100 pixels but the camera of 288 x 288"):
        XRay.read(folder / "a.nrrd", camera=calibration(folder / "c.json", other))
    small = Camera(100, 100, (1.0, 1.0), 1000.0)
    with pytest.raises(ReadError, match="288 x 288 pixels but its camera is for 100 x 100"):
        XRay.read(folder / "a.nrrd", camera=calibration(folder / "c.json", other, small))


def test_a_dataset_of_recorded_images_is_refused(folder):
    from DiffDRRCore.datasets.folder.manifest import ViewFiles
    from DiffDRRCore.datasets.folder.reading import read_view

    with pytest.raises(ReadError, match="undistort the dataset's images first"):
        read_view(ViewFiles("a", folder / "a.nrrd"), lambda: torch.zeros(3))
