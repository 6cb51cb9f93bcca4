import numpy as np
import pytest
import slicer.util
import torch

from DiffDRRCore import Camera, CArm, Renderer, Volume
from DiffDRRSlicerLib.scene import colors, xrays
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.drr import render_drr, resized_camera
from DiffDRRSlicerLib.scene.errors import SceneError
from Testing.core.samples import rigid
from Testing.scene import kit

SHAPE = (20, 24, 18)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def voxels(rng):
    hu = np.full(SHAPE, -1000, dtype=np.int16)
    hu[4:-4, 5:-5, 3:-3] = rng.integers(-100, 1500, (12, 14, 12))
    return hu


def camera():
    return Camera(30, 44, (2.1, 1.6), 900.0, (20.3, 16.1), "detector")


def setting(scene, rng, above=None):
    grid = kit.grid(rng, SHAPE, spacing=(2.0, 5.0))
    parent = None if above is None else kit.add_transform(scene, above)
    ct = kit.add_volume(scene, voxels(rng), grid, parent)
    middle = kit.apply(np.eye(4) if above is None else above, [0.0, 0.0, 0.0])
    carm = CArmNode.create(scene, camera(), CArm(900.0, 600.0, torch.tensor(middle), 33.0, -12.0, 8.0).pose)
    return ct, carm, (np.eye(4) if above is None else above) @ grid


def expected(ct, carm, grid, camera):
    """By a volume that is in the world itself."""
    hu = torch.tensor(slicer.util.arrayFromVolume(ct).astype(np.float32))
    return Renderer(Volume(hu, grid), "siddon", "torch")(camera, carm.pose)[0, 0].numpy()


def pixels(volume):
    return slicer.util.arrayFromVolume(volume)[0]


@pytest.mark.parametrize("above", ["nothing", "rigid", "scaled"])
def test_is_what_the_renderer_gives_in_the_world(scene, rng, above):
    above = {"nothing": None, "rigid": rigid(rng, 40.0), "scaled": kit.scaled(rng, 40.0)}[above]
    ct, carm, grid = setting(scene, rng, above)
    image = pixels(render_drr(carm, Anatomy(ct)))
    reference = expected(ct, carm, grid, carm.camera)
    assert image.dtype == np.float32 and image.shape == (30, 44)
    assert reference.std() > 0.05 * reference.max()  # there is something to compare
    assert np.abs(image - reference).max() < 2e-4 * reference.max()


def test_parent_of_the_c_arm_counts(scene, rng):
    ct, carm, grid = setting(scene, rng)
    before = pixels(render_drr(carm, Anatomy(ct))).copy()
    parent = kit.add_transform(scene, rigid(rng, 20.0))
    carm.node.SetAndObserveTransformNodeID(parent.GetID())
    image = pixels(render_drr(carm, Anatomy(ct)))
    reference = expected(ct, carm, grid, carm.camera)
    assert np.abs(image - reference).max() < 2e-4 * before.max()
    assert np.abs(image - before).max() > 0.1 * before.max()


def test_a_draft_averages_voxels_that_are_smaller_than_a_pixel(scene, rng):
    """Pixels of 6.3 and 4.8 mm are shadows of 3.2 mm at 600 of 900 mm: blocks of one voxel of 2 mm, of 3 of 0.9 mm."""
    grid = np.diag([0.9, 2.0, 5.0, 1.0])
    grid[:3, 3] = -grid[:3, :3] @ (np.array(SHAPE[::-1]) - 1) / 2
    ct = kit.add_volume(scene, voxels(rng), grid)
    carm = CArmNode.create(scene, camera(), CArm(900.0, 600.0, (0.0, 0.0, 0.0), 33.0, -12.0, 8.0).pose)
    small = resized_camera(carm.camera, 15)
    hu = torch.tensor(slicer.util.arrayFromVolume(ct).astype(np.float32))
    volume, seen = Volume(hu, grid), carm.pose
    blocks = Renderer(volume.coarsened((1, 1, 3)), "siddon", "torch")(small, seen)[0, 0].numpy()
    exact = Renderer(volume, "siddon", "torch")(small, seen)[0, 0].numpy()
    assert np.abs(blocks - exact).max() > 0.01 * exact.max()
    assert np.abs(pixels(render_drr(carm, Anatomy(ct), size=15, draft=True)) - blocks).max() < 2e-4 * exact.max()
    assert np.abs(pixels(render_drr(carm, Anatomy(ct), size=15)) - exact).max() < 2e-4 * exact.max()
    carm.move_arm(isocenter=carm.arm.isocenter + carm.pose.matrix[:3, 2] * -700)  # the anatomy behind the source
    assert not pixels(render_drr(carm, Anatomy(ct), size=15, draft=True)).any()


def test_a_reduced_size_covers_the_same_area(scene, rng):
    ct, carm, grid = setting(scene, rng)
    full = render_drr(carm, Anatomy(ct))
    corners = [
        kit.apply(kit.to_world(full), [[-0.5, -0.5, 0], [43.5, -0.5, 0], [43.5, 29.5, 0]]),
    ]
    small = render_drr(carm, Anatomy(ct), size=22)
    assert small is full and pixels(small).shape == (15, 22)
    corners.append(kit.apply(kit.to_world(small), [[-0.5, -0.5, 0], [21.5, -0.5, 0], [21.5, 14.5, 0]]))
    assert np.allclose(*corners, atol=1e-9)
    reference = expected(ct, carm, grid, camera().resized(15, 22))
    assert np.abs(pixels(small) - reference).max() < 2e-4 * reference.max()


@pytest.mark.parametrize(("size", "shape"), [(None, (384, 512)), (100, (75, 100)), (1024, (768, 1024)), (1, (1, 1))])
def test_size_is_of_the_longest_side(size, shape):
    resized = resized_camera(Camera(768, 1024, (0.3, 0.3), 1000.0), size)
    assert (resized.height, resized.width) == shape


def test_structures_alone(scene, rng):
    ct, carm, grid = setting(scene, rng)
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[6:10] = 3
    node = kit.add_volume(scene, labels, grid, name="labels", kind="vtkMRMLLabelMapVolumeNode")
    everything = pixels(render_drr(carm, Anatomy(ct, node))).copy()
    part = pixels(render_drr(carm, Anatomy(ct, node), structures=[3])).copy()
    hu = np.where(labels == 3, slicer.util.arrayFromVolume(ct), -1000).astype(np.float32)
    reference = Renderer(Volume(hu, grid), "siddon", "torch")(carm.camera, carm.pose)[0, 0].numpy()
    assert np.abs(part - reference).max() < 2e-4 * reference.max()
    assert part.sum() < 0.8 * everything.sum()


def test_window_is_found_once_and_the_users_afterwards(scene, rng):
    ct, carm, _ = setting(scene, rng)
    volume = render_drr(carm, Anatomy(ct))
    display, image = volume.GetDisplayNode(), pixels(volume)
    low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    inside = image[image > 0]
    assert 0.9 < ((inside >= low) & (inside <= high)).mean() < 1.0
    assert not display.GetAutoWindowLevel()
    display.SetWindowLevel(0.7, 0.9)
    carm.move_arm(primary=80.0)
    render_drr(carm, Anatomy(ct))
    assert (display.GetWindow(), display.GetLevel()) == (0.7, 0.9)


@pytest.mark.parametrize(("intensity", "inverted"), [("transmission", True), ("attenuation", False)])
def test_looks_as_the_x_ray_does(scene, rng, intensity, inverted):
    ct, bare, _ = setting(scene, rng)
    image = rng.uniform(1, 2, (30, 44))
    carm = xrays.add_xray(scene, image, camera(), bare.pose, {"intensity": intensity})
    volume = render_drr(carm, Anatomy(ct))
    colored = shown(volume)
    values = pixels(volume)
    dark, bright = values.argmin(), values.argmax()
    assert (colored.reshape(-1, 4)[dark, 0] > colored.reshape(-1, 4)[bright, 0]) == inverted
    colors.set_inverted(volume, not inverted)
    render_drr(carm, Anatomy(ct))
    assert colors.is_inverted(volume) is not inverted  # the user's from now on


def shown(volume):
    """[H, W, 4] as a view colours it."""
    connection = volume.GetDisplayNode().GetImageDataConnection()
    connection.GetProducer().Update()
    picture = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
    from vtk.util.numpy_support import vtk_to_numpy

    width, height, _ = picture.GetDimensions()
    return vtk_to_numpy(picture.GetPointData().GetScalars()).reshape(height, width, 4).astype(int)


def test_a_c_arm_that_is_sheared_is_refused_and_nothing_changes(scene, rng):
    ct, carm, _ = setting(scene, rng)
    carm.node.SetAndObserveTransformNodeID(kit.add_transform(scene, kit.scaled(rng)).GetID())
    before = kit.node_ids(scene)
    with pytest.raises(SceneError, match="scaled"):
        render_drr(carm, Anatomy(ct))
    assert kit.node_ids(scene) == before
