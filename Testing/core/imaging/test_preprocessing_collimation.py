"""Finding the X-ray field: drawn ones of known size, and the real round and bladed ones."""

from __future__ import annotations

import math

import pydicom
import pytest
import torch

from DiffDRRCore.errors import XRayError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.imaging.collimation import collimation_mask, find_collimation
from DiffDRRCore.imaging.preprocessing import preprocess
from DiffDRRCore.imaging.xray import XRay


def grid(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")


def anatomy(height: int, width: int) -> torch.Tensor:
    """Transmission with noise: a bright field, a darker limb across it, and a metal rod."""
    rows, columns = grid(height, width)
    image = torch.full((height, width), 800.0)
    image[(columns - width / 2).abs() < width / 6] = 300.0
    image[(rows - 0.3 * columns - 20).abs() < 3] = 5.0
    return image + 20 * torch.rand(height, width, generator=torch.Generator().manual_seed(1))


def shielded(image: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    leak = 15 * torch.rand(image.shape, generator=torch.Generator().manual_seed(2))
    return torch.where(field, image, leak)


def test_rectangular_blades():
    rows, columns = grid(120, 160)
    field = (rows >= 13) & (rows < 120 - 22) & (columns >= 31) & (columns < 160 - 9)
    image = shielded(anatomy(120, 160), field)
    for fit in ("inscribed", "bounding"):
        assert list(find_collimation(image, fit)) == pytest.approx([13, 22, 31, 9], abs=1)
    assert float((collimation_mask(image) != field).sum()) / float(field.sum()) < 0.02


def test_a_round_field():
    rows, columns = grid(200, 240)
    field = (rows - 105) ** 2 + (columns - 110) ** 2 <= 80**2
    image = shielded(anatomy(200, 240), field)
    assert float((collimation_mask(image) != field).sum()) / float(field.sum()) < 0.03
    assert list(find_collimation(image, "bounding")) == pytest.approx([25, 14, 30, 49], abs=2)
    top, bottom, left, right = find_collimation(image)
    # the largest rectangle in a circle is its square, of side sqrt(2) r
    assert 200 - top - bottom == pytest.approx(80 * math.sqrt(2), abs=6)
    assert 240 - left - right == pytest.approx(80 * math.sqrt(2), abs=6)
    assert bool(collimation_mask(image)[top : 200 - bottom, left : 240 - right].all())


def test_turned_blades_leave_no_dark_corner():
    rows, columns = grid(200, 200)
    angle = math.radians(10)
    along = math.cos(angle) * (columns - 100) + math.sin(angle) * (rows - 100)
    across = -math.sin(angle) * (columns - 100) + math.cos(angle) * (rows - 100)
    field = (along.abs() < 70) & (across.abs() < 60)
    image = shielded(torch.full((200, 200), 500.0), field)
    top, bottom, left, right = find_collimation(image)
    assert float(image[top : 200 - bottom, left : 200 - right].min()) > 100
    assert (200 - top - bottom) * (200 - left - right) > 0.5 * float(field.sum())


def test_without_collimation_the_whole_image_stays():
    assert list(find_collimation(anatomy(100, 120))) == [0, 0, 0, 0]
    for image in (torch.zeros(20, 30), torch.full((20, 30), 7.0)):
        assert bool(collimation_mask(image).all())
        assert list(find_collimation(image)) == [0, 0, 0, 0]


def test_wrong_arguments():
    with pytest.raises(XRayError, match="fit"):
        find_collimation(torch.ones(4, 4), "loose")
    with pytest.raises(XRayError, match="one image"):
        collimation_mask(torch.ones(2, 4, 4))


# Read off the images: the round aperture is a circle of radius 482 about (512, 511); blades cut two of them.
ROUND, BLADES = (20, 24, 38), {29: (108, 122), 33: (128, 136)}


@pytest.mark.parametrize("number", [*ROUND, *BLADES])
def test_real_fluoroscopy(shared_data, number):
    path = shared_data / "hip_fluoroscopy" / f"IM-0001-00{number}.dcm"
    image = torch.from_numpy(pydicom.dcmread(path).pixel_array.astype("float32"))
    mask = collimation_mask(image)
    rows, columns = grid(1024, 1024)
    circle = (rows - 511) ** 2 + (columns - 512) ** 2 <= 482**2
    assert float((mask & ~circle).sum()) / float(circle.sum()) < 0.01
    top, bottom, left, right = find_collimation(image)
    assert bool(mask[top : 1024 - bottom, left : 1024 - right].all())
    assert (1024 - top - bottom) * (1024 - left - right) > 0.6 * float(mask.sum())
    if number in ROUND:
        assert float((circle & ~mask).sum()) / float(circle.sum()) < 0.03
    else:
        found = find_collimation(image, "bounding")
        assert (found.top, found.bottom) == pytest.approx(BLADES[number], abs=15)


def test_a_found_crop_moves_the_camera(shared_data):
    path = shared_data / "hip_fluoroscopy" / "IM-0001-0020.dcm"
    xray = XRay.read(path, camera=Camera(1024, 1024, (0.2, 0.2), 1000.0))
    crop = find_collimation(xray.image)
    done = preprocess(xray, crop="find")
    assert done.meta["preprocessing"]["crop"] == list(crop)
    assert done.camera.principal_point.tolist() == [511.5 - crop.left, 511.5 - crop.top]
    assert float(done.image.min()) >= -0.5
    assert 1 < float(done.image.max()) < 9.3
