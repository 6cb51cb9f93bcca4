"""X-rays in the scene and back: pixels, camera, pose, display; another camera for images that are there."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import torch

from DiffDRRCore import Camera, Pose, project
from DiffDRRCore.errors import GeometryError, XRayError
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.nodes import get_image
from DiffDRRSlicerLib.scene.xrays import add_xray, core_xray, prepared_xray, set_camera, xray_volume
from Testing.core.samples import rigid
from Testing.scene import kit

CAMERA = Camera(30, 40, (0.8, 1.3), 950.0, (21.5, 12.25), "detector")
POSE = Pose(rigid(np.random.default_rng(0)))
META = {"intensity": "attenuation", "kvp": 70.5, "collimator_edges": {"left": 3}, "missing": []}


def picture(seed=0, camera=CAMERA):
    return np.random.default_rng(seed).random((camera.height, camera.width), np.float32) * 1000


def test_an_xray_comes_back_as_it_went_in(scene):
    carm = add_xray(scene, picture(), CAMERA, POSE, META, "left", 600.0)
    xray = core_xray(carm)
    assert xray.image.dtype == torch.float32 and np.array_equal(xray.image, picture())
    assert torch.equal(xray.camera.K, CAMERA.K.double()) and xray.meta == META
    assert np.allclose(xray.pose.matrix, POSE.matrix, atol=1e-12)
    assert carm.name == "left" and carm.source_to_isocenter == 600.0 and carm.depth == pytest.approx(600.0)


def test_the_image_is_a_volume_below_the_plane(scene):
    carm = add_xray(scene, torch.from_numpy(picture()).int(), CAMERA, POSE)
    volume = xray_volume(carm)
    assert volume.IsA("vtkMRMLScalarVolumeNode") and volume.GetParentTransformNode() is carm.plane
    assert volume.GetImageData().GetScalarTypeAsString() == "float"
    assert carm.source_to_isocenter == pytest.approx(0.75 * 950)


def test_the_world_pose_counts(scene):
    parent = rigid(np.random.default_rng(1))
    carm = add_xray(scene, picture(), CAMERA, POSE)
    carm.node.SetAndObserveTransformNodeID(kit.add_transform(scene, parent).GetID())
    assert np.allclose(core_xray(carm).pose.matrix, parent @ POSE.matrix.numpy())


def test_two_xrays_have_names_of_their_own(scene):
    first, second = (add_xray(scene, picture(i), CAMERA, POSE) for i in range(2))
    assert first.name != second.name and xray_volume(first).GetName() != xray_volume(second).GetName()
    assert np.array_equal(core_xray(first).image, picture(0)) and np.array_equal(core_xray(second).image, picture(1))


def test_the_window_leaves_out_the_extreme_pixels(scene):
    image = np.linspace(0, 100, CAMERA.height * CAMERA.width, dtype=np.float32).reshape(30, 40)
    image[0, 0], image[-1, -1] = -1e6, 1e6
    display = xray_volume(add_xray(scene, image, CAMERA, POSE)).GetDisplayNode()
    assert display.GetWindowLevelMin() == pytest.approx(1, abs=0.2)
    assert display.GetWindowLevelMax() == pytest.approx(99, abs=0.2)
    assert not display.GetAutoWindowLevel() and display.GetInterpolate()
    assert display.GetColorNodeID() == "vtkMRMLColorTableNodeGrey"


@pytest.mark.parametrize("peak", [0.0, 5.0])
def test_the_window_of_an_image_of_one_value(scene, peak):
    image = np.full((30, 40), 7.0, np.float32)
    image[3, 3] += peak  # one pixel in 1200: both percentiles miss it
    display = xray_volume(add_xray(scene, image, CAMERA, POSE)).GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (7.0, 12.0 if peak else 8.0)


def test_a_transmission_image_becomes_line_integrals(scene):
    truth = np.random.default_rng(2).uniform(0, 3, (30, 40))
    truth[:3] = 0  # more than one pixel in a thousand passes nothing
    counts = (50_000 * np.exp(-truth)).astype(np.float32)
    ready = prepared_xray(add_xray(scene, counts, CAMERA, POSE, {"intensity": "transmission"}))
    assert ready.intensity == "attenuation" and np.allclose(ready.image, truth, atol=1e-3)


def test_a_logarithmic_transmission_image_is_turned_over(scene):
    truth = np.random.default_rng(3).uniform(0, 3, (30, 40))
    truth[:3] = 0
    values = (2.0 - truth).astype(np.float32)
    meta = {"intensity": "transmission", "logarithmic": True}
    assert np.allclose(prepared_xray(add_xray(scene, values, CAMERA, POSE, meta)).image, truth, atol=1e-6)


def test_an_attenuation_image_stays(scene):
    ready = prepared_xray(add_xray(scene, picture(), CAMERA, POSE, {"intensity": "attenuation"}))
    assert np.array_equal(ready.image, picture())


def test_an_xray_that_does_not_say_what_is_bright(scene):
    with pytest.raises(XRayError, match="does not say what is bright"):
        prepared_xray(add_xray(scene, picture(), CAMERA, POSE))


def test_a_carm_without_an_xray(scene):
    carm = CArmNode.create(scene, CAMERA, POSE, name="bare")
    for use in (core_xray, prepared_xray, xray_volume):
        with pytest.raises(SceneError, match="'bare' has no X-ray; load one"):
            use(carm)
    carm = add_xray(scene, picture(), CAMERA, POSE, name="was there")
    scene.RemoveNode(carm.referred("xray"))
    with pytest.raises(SceneError, match="'was there' has no X-ray"):
        core_xray(carm)


@pytest.mark.parametrize(
    ("image", "meta", "error", "message"),
    [
        (np.zeros((30, 41)), {}, XRayError, "30 x 41 pixels but its camera 30 x 40"),
        (np.full((30, 40), np.nan), {}, XRayError, "NaN"),
        (np.zeros((2, 30, 40)), {}, XRayError, r"an image \[H, W\]"),
        (np.zeros((30, 40)), {"intensity": "bright"}, XRayError, "intensity"),
        (np.zeros((30, 40)), {"who": object()}, SceneError, "no plain value"),
    ],
)
def test_nothing_is_left_of_an_xray_that_cannot_be_added(scene, image, meta, error, message):
    before = kit.node_ids(scene)
    with pytest.raises(error, match=message):
        add_xray(scene, image, CAMERA, POSE, meta)
    assert kit.node_ids(scene) == before


def test_nothing_is_left_where_the_camera_cannot_be_kept(scene):
    K = CAMERA.K.clone()
    K[0, 1] = 3.0
    skewed = Camera._of(K, 30, 40, CAMERA.source_to_detector, parallel=True)
    before = kit.node_ids(scene)
    with pytest.raises(GeometryError, match="skew"):
        add_xray(scene, picture(), skewed, POSE)
    assert kit.node_ids(scene) == before


OTHERS = {
    "sdd": Camera(30, 40, (0.8, 1.3), 1234.0, (21.5, 12.25), "detector"),
    "spacing": Camera(30, 40, (0.5, 0.6), 950.0, (21.5, 12.25), "detector"),
    "side": Camera(30, 40, (0.8, 1.3), 950.0, (3.0, 28.0), "source"),
    "skew": Camera.from_intrinsics([[700.0, 30, 20], [0, 800, 10], [0, 0, 1]], 30, 40, source_to_detector=900.0),
    "parallel": Camera.parallel_beam(30, 40, (0.8, 1.3), 1000.0),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_camera_places_all_images_anew(scene, kind):
    carm, camera = add_xray(scene, picture(), CAMERA, POSE), OTHERS[kind]
    small = carm.below("drr", "vtkMRMLScalarVolumeNode", "DRR")
    carm.place_image(small, np.zeros((15, 20), np.float32), CAMERA.resized(15, 20))
    carm.set_depth(640.0)
    set_camera(carm, camera)
    assert carm.depth == pytest.approx(640.0) and carm.source_to_isocenter == pytest.approx(0.75 * 950)
    assert np.array_equal(core_xray(carm).image, picture()) and get_image(small).shape == (15, 20)
    point = kit.apply(POSE.matrix.numpy(), [12.0, -7.0, 640.0])
    u, v = project(camera, carm.pose, point[None])[0, 0].tolist()
    assert np.allclose(kit.apply(kit.to_world(xray_volume(carm)), [u, v, 0]), point, atol=1e-6)
    small_uv = [(u + 0.5) / 2 - 0.5, (v + 0.5) / 2 - 0.5, 0]
    assert np.allclose(kit.apply(kit.to_world(small), small_uv), point, atol=1e-6)


def test_a_camera_of_another_size_is_refused(scene):
    carm = add_xray(scene, picture(), CAMERA, POSE)
    before = kit.to_world(xray_volume(carm)), carm.camera.K
    with pytest.raises(SceneError, match=r"for 40 x 30 pixels, but the X-ray of 'X-ray' has 30 x 40"):
        set_camera(carm, Camera(40, 30, (1, 1), 900.0))
    assert np.array_equal(kit.to_world(xray_volume(carm)), before[0]) and torch.equal(carm.camera.K, before[1])


def test_without_an_xray_the_size_may_change(scene):
    carm = CArmNode.create(scene, CAMERA, POSE)
    set_camera(carm, Camera(64, 48, (1, 1), 900.0))
    assert (carm.camera.height, carm.camera.width) == (64, 48)


def test_what_was_given_is_no_assumption_any_more(scene):
    missing = [
        "source-to-detector distance (1000 mm assumed)",
        "pixel spacing (0.3 mm assumed)",
        "principal point (image centre assumed)",
        "side of the image (seen from the detector assumed)",
        "patient position (isocentre at the origin assumed)",
    ]
    carm = add_xray(scene, picture(), CAMERA, POSE, {"missing": missing})
    set_camera(carm, CAMERA)
    assert carm.meta["missing"] == missing
    set_camera(carm, OTHERS["spacing"])
    assert carm.meta["missing"] == [missing[0], *missing[2:]]
    set_camera(carm, Camera(30, 40, (0.5, 0.6), 1300.0, (1.0, 2.0), "source"))
    assert carm.meta["missing"] == missing[4:]


def test_a_user_replaced_the_volume(scene):
    """Other pixels in the X-ray's node count at once; those of another size are an error that says so."""
    carm = add_xray(scene, picture(), CAMERA, POSE)
    slicer.util.updateVolumeFromArray(xray_volume(carm), picture(4)[None])
    assert np.array_equal(core_xray(carm).image, picture(4))
    slicer.util.updateVolumeFromArray(xray_volume(carm), np.zeros((1, 10, 10)))
    with pytest.raises(XRayError, match="10 x 10 pixels but its camera 30 x 40"):
        core_xray(carm)
