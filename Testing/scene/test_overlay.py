import numpy as np
import pytest
import slicer
import slicer.util
import torch
from vtk.util.numpy_support import vtk_to_numpy

from DiffDRRCore import Camera, CArm
from DiffDRRCore.errors import XRayError
from DiffDRRSlicerLib.scene import colors, overlay, xrays
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.overlay import OverlayMode, update_overlay
from Testing.scene import kit

CAMERA = Camera(48, 64, (2.0, 1.5), 1000.0)


def disc(shape=(48, 64), center=(24.0, 30.0), radius=14.0):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.clip(radius - np.hypot(rows - center[0], columns - center[1]) + 0.5, 0, 1).astype(np.float32) + 0.5


def setting(scene, xray=None, drr=None, intensity="attenuation"):
    pose = CArm(1000.0, 700.0, torch.zeros(3), 25.0, 10.0).pose
    meta = {} if intensity is None else {"intensity": intensity}
    carm = xrays.add_xray(scene, disc() if xray is None else xray, CAMERA, pose, meta)
    volume = carm.below("drr", "vtkMRMLScalarVolumeNode", "DRR")
    image = disc() if drr is None else drr
    carm.place_image(volume, image, CAMERA.resized(*image.shape))
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevelMinMax(0.2, 1.6)
    colors.apply_colors(volume)
    return carm


def pixels(volume):
    return slicer.util.arrayFromVolume(volume)[0]


def shown(volume):
    """[H, W, 4] as the display node colours it."""
    connection = volume.GetDisplayNode().GetImageDataConnection()
    connection.GetProducer().Update()
    picture = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
    width, height, _ = picture.GetDimensions()
    return vtk_to_numpy(picture.GetPointData().GetScalars()).reshape(height, width, 4).astype(int)


def in_slice_view(volume, zoom):
    """[H zoom, W zoom, 4]: what Slicer's slice logic makes of a volume in the plane of its own pixels."""
    scene = volume.GetScene()
    logic = slicer.vtkMRMLSliceLayerLogic()
    logic.SetMRMLScene(scene)
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetLayoutName("test")
    height, width = pixels(volume).shape
    ijk_to_world, center = kit.to_world(volume), np.eye(4)
    columns = ijk_to_world[:3, :3] / np.linalg.norm(ijk_to_world[:3, :3], axis=0)
    center[:3, :3] = np.column_stack([columns[:, 0], -columns[:, 1], np.cross(columns[:, 0], -columns[:, 1])])
    center[:3, 3] = kit.apply(ijk_to_world, [(width - 1) / 2, (height - 1) / 2, 0])
    view.GetSliceToRAS().DeepCopy(kit.matrix(center))
    spacing = np.linalg.norm(ijk_to_world[:3, :2], axis=0)
    view.SetDimensions(width * zoom, height * zoom, 1)
    view.SetFieldOfView(width * spacing[0], height * spacing[1], 1.0)
    view.UpdateMatrices()
    logic.SetSliceNode(view)
    logic.SetVolumeNode(volume)
    connection = logic.GetImageDataConnection()
    connection.GetProducer().Update()
    picture = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
    wide, high, _ = picture.GetDimensions()
    array = vtk_to_numpy(picture.GetPointData().GetScalars()).reshape(high, wide, -1).astype(int)[::-1]
    scene.RemoveNode(view)
    return array


def test_blend_is_the_drr_itself(scene):
    carm = setting(scene)
    assert update_overlay(carm, OverlayMode.BLEND) is carm.referred("drr")
    assert carm.referred("overlay") is None


def test_checkerboard_shows_the_drr_in_every_other_square(scene):
    carm = setting(scene)
    front = update_overlay(carm, "checkerboard", squares=8)
    colored = shown(front)
    rows, columns = np.mgrid[:48, :64]
    expected = (rows // 8 + columns // 8) % 2 == 0
    assert np.array_equal(colored[..., 3] > 0, expected)
    of_drr = shown(carm.referred("drr"))
    assert np.array_equal(colored[expected][:, :3], of_drr[expected][:, :3])
    assert of_drr[..., 3].min() == 255


def test_checkerboard_in_a_slice_view_keeps_its_squares(scene):
    carm = setting(scene)
    picture = in_slice_view(update_overlay(carm, "checkerboard", squares=8), zoom=4)
    assert picture.shape[:2] == (192, 256)
    rows, columns = np.mgrid[:192, :256]
    expected = (rows // 32 + columns // 32) % 2 == 0
    border = np.minimum(np.minimum(rows % 32, 31 - rows % 32), np.minimum(columns % 32, 31 - columns % 32)) < 4
    assert np.array_equal((picture[..., 3] > 0)[~border], expected[~border])


def test_checkerboard_squares_are_the_same_at_a_reduced_size(scene):
    carm = setting(scene, drr=np.ones((24, 32), np.float32))
    alpha = shown(update_overlay(carm, "checkerboard", squares=4))[..., 3] > 0
    rows, columns = np.mgrid[:24, :32]
    assert np.array_equal(alpha, (rows // 8 + columns // 8) % 2 == 0)


def test_edges_are_thin_rings_in_the_tint_and_clear_elsewhere(scene):
    carm = setting(scene)
    front = update_overlay(carm, "edges", tint="cyan")
    colored = shown(front)
    drawn = colored[..., 3] > 0
    rows, columns = np.nonzero(drawn)
    radius = np.hypot(rows - 24.0, columns - 30.0)
    assert np.abs(radius - 14.0).max() < 1.5
    angles = np.sort(np.arctan2(rows - 24.0, columns - 30.0))
    assert np.diff(angles).max() < 0.2  # all around
    assert len(rows) < 1.6 * 2 * np.pi * 14
    assert np.abs(colored[drawn][:, :3] / 255 - colors.TINTS["cyan"]).max() < 0.01


def test_strength_leaves_weak_edges_out(scene):
    image = disc(center=(24, 16), radius=9) + 0.2 * disc(center=(24, 46), radius=9)
    carm = setting(scene, drr=image)
    weak = pixels(update_overlay(carm, "edges", strength=0.05)).copy()
    strong = pixels(update_overlay(carm, "edges", strength=0.5)).copy()
    assert weak[:, 34:].sum() > 30 and strong[:, 34:].sum() == 0
    assert strong[:, :30].sum() > 30


def test_an_even_image_has_no_edges_and_no_difference(scene):
    carm = setting(scene, drr=np.full((48, 64), 2.0, np.float32))
    assert pixels(update_overlay(carm, "edges")).max() == 0
    found = pixels(update_overlay(carm, "difference"))
    assert np.isfinite(found).all() and found.std() == pytest.approx(1.0, rel=1e-3)  # the X-ray alone


def test_difference_ignores_gain_and_offset(scene):
    carm = setting(scene, xray=3.0 * disc() + 7.0)
    assert np.abs(pixels(update_overlay(carm, "difference"))).max() < 1e-4


@pytest.mark.parametrize("intensity", ["attenuation", "transmission"])
def test_difference_has_one_sign_for_more_in_the_x_ray(scene, intensity):
    extra = disc()
    extra[4:9, 4:9] += 0.8
    image = extra if intensity == "attenuation" else 5000 * np.exp(-extra)
    carm = setting(scene, xray=image, intensity=intensity)
    front = update_overlay(carm, "difference")
    values, colored = pixels(front), shown(front)
    first, second = (one - one.mean() for one in (extra.astype(float), disc().astype(float)))
    expected = first / first.std() - second / second.std()
    assert np.abs(values - expected).max() < 2e-3
    assert colored[6, 6, 0] > colored[6, 6, 2]  # red
    assert colored[..., 3].min() == 255
    display = front.GetDisplayNode()
    assert display.GetWindowLevelMin() == -display.GetWindowLevelMax()


def test_difference_averages_the_x_ray_over_larger_pixels(scene):
    rng = np.random.default_rng(0)
    image = rng.uniform(1, 2, (48, 64))
    small = image.reshape(24, 2, 32, 2).mean((1, 3)).astype(np.float32)
    carm = setting(scene, xray=image, drr=small)
    assert np.abs(pixels(update_overlay(carm, "difference"))).max() < 1e-4


def test_difference_follows_a_new_x_ray(scene):
    carm = setting(scene)
    update_overlay(carm, "difference")
    carm.place_image(carm.referred("xray"), disc(center=(10, 10), radius=6))
    assert np.abs(pixels(update_overlay(carm, "difference"))).max() > 0.5


def test_windows_are_kept_apart(scene):
    carm = setting(scene)
    xray, drr = (carm.referred(role).GetDisplayNode() for role in ("xray", "drr"))
    before = [(one.GetWindow(), one.GetLevel()) for one in (xray, drr)]
    display = update_overlay(carm, "difference").GetDisplayNode()
    display.SetWindowLevel(2.0, 0.1)
    update_overlay(carm, "difference")
    assert (display.GetWindow(), display.GetLevel()) == (2.0, 0.1)
    update_overlay(carm, "edges")
    update_overlay(carm, "checkerboard")
    assert (display.GetWindow(), display.GetLevel()) == before[1]
    assert [(one.GetWindow(), one.GetLevel()) for one in (xray, drr)] == before
    update_overlay(carm, "difference")
    assert (display.GetWindow(), display.GetLevel()) == (6.0, 0.0)


def test_tints_run_from_black_and_invert_backwards(scene):
    drr = setting(scene).referred("drr")
    colors.set_tint(drr, "orange")
    drr.GetDisplayNode().SetWindowLevelMinMax(0.5, 1.5)
    normal = shown(drr)
    colors.set_inverted(drr, True)
    inverted = shown(drr)
    assert normal[0, 0, :3].tolist() == [0, 0, 0]
    assert np.abs(normal[24, 30, :3] / 255 - colors.TINTS["orange"]).max() < 0.01
    assert np.array_equal(inverted[0, 0], normal[24, 30]) and np.array_equal(inverted[24, 30], normal[0, 0])
    colors.set_tint(drr, "green", False)
    assert shown(drr)[24, 30, 1] > 250 and not colors.is_inverted(drr)


def test_colour_tables_are_made_once_and_not_saved(scene):
    first, second = (setting(scene).referred("drr") for _ in range(2))
    colors.set_tint(first, "red")
    count = scene.GetNumberOfNodes()
    colors.set_tint(second, "red")
    assert scene.GetNumberOfNodes() == count
    assert first.GetDisplayNode().GetColorNode() is second.GetDisplayNode().GetColorNode()
    assert not first.GetDisplayNode().GetColorNode().GetSaveWithScene()


def test_colours_come_back_after_their_table_went(scene):
    carm = setting(scene)
    drr = carm.referred("drr")
    colors.set_tint(drr, "red", True)
    before = shown(drr)
    scene.RemoveNode(drr.GetDisplayNode().GetColorNode())
    colors.apply_colors(drr)
    assert np.array_equal(shown(drr), before)


def test_errors(scene):
    carm = setting(scene, intensity=None)
    with pytest.raises(XRayError, match="intensity"):
        update_overlay(carm, "difference")
    with pytest.raises(SceneError, match="no tint 'pink'"):
        update_overlay(carm, "edges", tint="pink")
    with pytest.raises(SceneError, match="no overlay 'xor'"):
        update_overlay(carm, "xor")
    with pytest.raises(SceneError, match="tint"):
        colors.set_tint(carm.referred("drr"), "pink")
    scene.RemoveNode(carm.referred("xray"))
    with pytest.raises(SceneError, match="no X-ray"):
        update_overlay(carm, "difference")
    scene.RemoveNode(carm.referred("drr"))
    with pytest.raises(SceneError, match="render it first"):
        update_overlay(carm, "edges")
    assert carm.referred("overlay") is None


@pytest.fixture(autouse=True)
def forgotten():
    yield
    overlay.forget()
