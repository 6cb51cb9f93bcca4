"""Metal found in X-rays: simulated, where the objects rendered alone are the truth, and real."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from DiffDRRCore import Camera, Renderer, XRay, register
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.imaging.exposure import exposed_field
from DiffDRRCore.imaging.preprocessing import preprocess
from DiffDRRCore.pieces import finished
from DiffDRRCore.registration.masks import metal
from DiffDRRCore.registration.masks.automatic import automatic_weights, finding_weights
from DiffDRRCore.registration.masks.metal import metal_mask
from Testing.core.registration import scene
from Testing.protocol import adversities

SIZE = 192


@cache
def plain():
    carm = scene.arm()
    camera = carm.camera(SIZE, SIZE, (1.6, 1.6))
    return adversities.simulator(scene.ct(), camera), camera, carm.pose


@cache
def taken(kind: str, seed: int = 3):
    simulator, camera, pose = plain()
    objects = [] if kind == "none" else adversities.metal(kind, scene.ct().center, _generator(seed), 30.0)
    return adversities.taken(simulator, camera, pose, objects)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_disk(line_integral: float, radius: float, blur: float = 0.7) -> tuple[XRay, np.ndarray]:
    """A disk of that height on a slope with noise, in closed form."""
    rows, columns = np.mgrid[:200, :200]
    disk = np.hypot(rows - 90, columns - 120) < radius
    noise = 0.02 * np.random.default_rng(0).standard_normal((200, 200))
    image = 2 + columns / 100 + line_integral * ndimage.gaussian_filter(disk.astype(float), blur) + noise
    camera = Camera(200, 200, (1.0, 1.0), 1000.0)
    return XRay(image.astype(np.float32), camera, meta={"intensity": "attenuation", "logarithmic": True}), disk


@pytest.mark.parametrize("radius", [2.0, 25.0])
def test_a_disk_is_found_to_its_edge_and_a_faint_one_is_not(radius):
    xray, disk = with_disk(1.0, radius)
    found = metal_mask(xray, margin=0).numpy()
    assert found[ndimage.binary_erosion(disk)].all()
    assert not found[~ndimage.binary_dilation(disk, iterations=2)].any()
    assert not metal_mask(with_disk(0.15, radius)[0]).any()


def test_the_same_height_without_an_edge_is_not_metal():
    assert not metal_mask(with_disk(2.0, 25.0, blur=12.0)[0]).any()


def test_gain_and_offset_are_no_matter_where_the_unit_is_not_known():
    xray, disk = with_disk(1.5, 6.0)
    scaled = XRay(37 * xray.image + 500, xray.camera, meta={"intensity": "attenuation"})
    assert metal_mask(scaled).numpy()[disk].all()


@pytest.mark.parametrize("kind", ["ball", "wire", "plate"])
def test_simulated_metal(kind):
    xray, truth = taken(kind)
    found = metal_mask(xray).numpy()
    near = ndimage.binary_dilation(truth.numpy(), iterations=4)
    assert truth.sum() > 50
    assert found[truth.numpy()].mean() > 0.6
    assert (found & ~near).mean() < 0.01


def test_bone_is_not_metal_and_the_ct_explains_the_rest():
    xray, _ = taken("none")
    assert float(metal_mask(xray).double().mean()) < 0.01
    with torch.no_grad():
        rendered = Renderer(scene.ct())(xray.camera, scene.moved(xray.pose, (0.02, 0, 0.02, 2, 2, 5)))[0, 0]
    assert float(metal_mask(xray, rendered=rendered).double().mean()) < 0.002


def test_a_field_with_metal_in_it_becomes_a_weight():
    xray, truth = taken("plate")
    field = adversities.turned_field(SIZE, SIZE, 25.0, 0.8)
    (weight,) = automatic_weights([adversities.collimated(xray, field)])
    assert float(weight[~field].max()) == 0
    assert float(weight[truth & field].mean()) < 0.4
    assert float(weight[field & ~truth].mean()) > 0.7  # but for a margin
    half = torch.full((SIZE, SIZE), 0.5)
    (combined,) = automatic_weights([adversities.collimated(xray, field)], weights=[half])
    assert torch.equal(combined, 0.5 * weight)


@pytest.mark.parametrize("degrees, shift", [(0.0, (0, 0)), (20.0, (0, 0)), (12.0, (20, 10)), (None, (20, -15))])
def test_fields_of_any_angle_and_place(degrees, shift):
    shape = (SIZE, SIZE)
    square = degrees is not None
    field = (
        adversities.turned_field(*shape, degrees, 0.7, shift)
        if square
        else adversities.round_field(*shape, 0.75, shift)
    )
    xray, _ = taken("none")
    found = exposed_field(adversities.collimated(xray, field), margin=False)
    assert float((found & field).sum() / (found | field).sum()) > 0.95
    assert bool(exposed_field(xray).all())


def test_a_tool_no_longer_draws_the_registration_away():
    simulator, camera, pose = plain()
    xray, _ = adversities.taken(simulator, camera, pose, adversities.tool(scene.ct().center, pose))
    start = scene.moved(pose, (0.03, -0.03, 0.03, 4.0, -4.0, 6.0))
    weights = automatic_weights([xray], scene.ct(), [start])
    without = register(scene.ct(), xray, start, sizes=(48,))
    masked = register(scene.ct(), xray, start, sizes=(48,), weights=weights)
    before, after = (scene.error(result.poses[0], pose) for result in (without, masked))
    assert after < 0.5 * before


@pytest.mark.parametrize("size", [3, 17])
def test_a_median_in_pieces_is_the_median(size):
    pixels = np.random.default_rng(0).random((50, 64)).astype(np.float32)
    expected = ndimage.median_filter(pixels, size, mode="nearest")
    work = metal._median(pixels, size)
    assert np.array_equal(finished(work), expected)


def test_weights_come_in_pieces():
    xray, _ = taken("plate")
    pieces = sum(1 for _ in finding_weights([xray], scene.ct(), [xray.pose]))
    assert pieces > 100


def test_bad_input():
    xray, _ = with_disk(1.0, 5.0)
    with pytest.raises(RegistrationError, match="convert the X-ray first"):
        metal_mask(xray.with_image(xray.image, intensity="transmission"))
    with pytest.raises(RegistrationError, match=r"The field has \[3, 3\] pixels, the X-ray \[200, 200\]"):
        metal_mask(xray, torch.ones(3, 3))
    assert not metal_mask(xray, torch.zeros(200, 200)).any()


# By eye, in 1024 pixels: the ends (column, row) of the wire's middle line, and rows and columns of bone without metal.
WIRES = {
    "0038": (((735, 320), (290, 890)), (slice(550, 900), slice(600, 850))),
    "0042": (((675, 300), (175, 770)), (slice(550, 850), slice(450, 750))),
}


@pytest.mark.parametrize("name", sorted(WIRES))
def test_the_guide_wire_of_a_real_hip(shared_data, name):
    camera = Camera(1024, 1024, (0.2, 0.2), 1000.0)
    path = shared_data / "hip_fluoroscopy" / f"IM-0001-{name}.dcm"
    xray = preprocess(XRay.read(path, camera=camera))
    found = metal_mask(xray).numpy()
    ends, bone = WIRES[name]
    columns, rows = np.rint(np.linspace(*ends, 200)).astype(int).T
    assert found[rows, columns].mean() > 0.95
    assert not found[bone].any()
    assert 0.01 < found.mean() < 0.06


def test_a_real_hand_without_metal_in_it(shared_data):
    """Skin beads and the letter at the border are metal; less than 2 pixels in 1000 are taken for it in all."""
    path = shared_data / "wrist_biplane" / "xray" / "xr_rad_uln_cam01_UND.0099.tif"
    camera = Camera(1760, 1760, (0.2, 0.2), 1000.0)
    read = XRay.read(path, camera=camera)
    xray = preprocess(read.with_image(read.image, intensity="transmission"), i0=255.0)
    assert float(metal_mask(xray).double().mean()) < 0.002
