"""The CT of a scene as the renderer gets it: where its voxels are, when it is read again, and bad CTs."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer.util
import torch

from DiffDRRCore import Camera, Pose, Renderer, Volume
from DiffDRRCore.errors import VolumeError
from DiffDRRSlicerLib.scene import anatomy as anatomy_file
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.errors import SceneError
from Testing.core.samples import looking_at, rigid
from Testing.scene import kit

SHAPE = (7, 8, 9)
MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])


def hu(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def add_ct(scene, rng, parents=(), left_handed=True, voxels=None):
    """A CT on an oblique grid below nested transforms, the outermost first."""
    above = None
    for matrix in parents:
        above = kit.add_transform(scene, matrix, above)
    voxels = hu() if voxels is None else voxels
    return kit.add_volume(scene, voxels, kit.grid(rng, voxels.shape, left_handed), above)


def voxel_to_world(anatomy):
    return anatomy.to_world @ anatomy.volume.ijk_to_ras.numpy()


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("kinds", [(), ("rigid",), ("rigid", "rigid"), ("scaled",), ("rigid", "scaled"), ("mirror",)])
def test_voxels_lie_where_mrml_says(scene, left_handed, kinds):
    rng = np.random.default_rng(1)
    make = {"rigid": rigid, "scaled": kit.scaled, "mirror": lambda rng: rigid(rng) @ MIRROR}
    ct = add_ct(scene, rng, [make[kind](rng) for kind in kinds], left_handed)
    anatomy = Anatomy(ct)
    assert np.allclose(voxel_to_world(anatomy), kit.to_world(ct), atol=1e-9)
    assert anatomy.volume.hu.dtype == torch.float32 and np.array_equal(anatomy.volume.hu, hu())
    middle = kit.apply(kit.to_world(ct), (np.array(SHAPE[::-1]) - 1) / 2)
    assert np.allclose(anatomy.center, middle, atol=1e-9)


def test_rigid_parents_stay_out_of_the_volume_and_others_go_into_its_grid(scene):
    rng = np.random.default_rng(2)
    moved, stretched = add_ct(scene, rng, [rigid(rng)]), add_ct(scene, rng, [kit.scaled(rng)])
    assert not np.allclose(Anatomy(moved).to_world, np.eye(4))
    assert np.array_equal(Anatomy(stretched).to_world, np.eye(4))


@pytest.mark.parametrize("make", [rigid, kit.scaled])
def test_a_pose_in_the_world_renders_the_transformed_ct(scene, make):
    """Against a volume that is put into the world by hand."""
    rng = np.random.default_rng(3)
    ct = add_ct(scene, rng, [rigid(rng, 20), make(rng)])
    anatomy = Anatomy(ct)
    camera = Camera(20, 24, (1.0, 1.4), 400.0)
    pose = looking_at(rng, anatomy.center, 300.0)
    image = anatomy.renderer()(camera, anatomy.pose_in_volume(pose))
    truth = Renderer(Volume(hu().astype(np.float32), kit.to_world(ct)), integrator="siddon")(camera, pose)
    assert truth.max() > 0.5 and torch.allclose(image, truth, atol=2e-4 * float(truth.max()))


def test_poses_go_to_the_volume_and_back(scene):
    rng = np.random.default_rng(4)
    parent = rigid(rng)
    anatomy, pose = Anatomy(add_ct(scene, rng, [parent])), Pose(rigid(rng))
    assert np.allclose(anatomy.pose_in_volume(pose).matrix, np.linalg.inv(parent) @ pose.matrix.numpy())
    assert np.allclose(anatomy.pose_in_world(anatomy.pose_in_volume(pose)).matrix, pose.matrix)


def test_moving_the_patient_does_not_read_the_ct_again(scene):
    rng = np.random.default_rng(5)
    ct = add_ct(scene, rng, [rigid(rng)])
    volume, renderer = Anatomy(ct).volume, Anatomy(ct).renderer()
    ct.GetParentTransformNode().SetMatrixTransformToParent(kit.matrix(rigid(rng)))
    assert Anatomy(ct).volume is volume and Anatomy(ct).renderer() is renderer
    ct.SetName("renamed")
    ct.SetAndObserveTransformNodeID(None)
    assert Anatomy(ct).volume is volume
    assert np.array_equal(Anatomy(ct).to_world, np.eye(4))


def test_a_ct_that_changes_is_read_again(scene):
    rng = np.random.default_rng(6)
    ct = add_ct(scene, rng)
    seen = [Anatomy(ct).volume]

    def is_new():
        seen.append(Anatomy(ct).volume)
        return all(seen[-1] is not volume for volume in seen[:-1])

    slicer.util.arrayFromVolume(ct)[0, 0, 0] = 1234
    slicer.util.arrayFromVolumeModified(ct)
    assert is_new() and float(seen[-1].hu[0, 0, 0]) == 1234
    slicer.util.updateVolumeFromArray(ct, hu(1))
    assert is_new() and np.array_equal(seen[-1].hu, hu(1))
    slicer.util.updateVolumeFromArray(ct, hu(2, (3, 4, 5)))
    assert is_new() and seen[-1].shape == (3, 4, 5)
    ct.SetIJKToRASMatrix(kit.matrix(kit.grid(rng, SHAPE)))
    assert is_new()
    stretch = kit.add_transform(scene, kit.scaled(rng))
    ct.SetAndObserveTransformNodeID(stretch.GetID())
    assert is_new()
    stretch.SetMatrixTransformToParent(kit.matrix(kit.scaled(rng)))
    assert is_new() and np.allclose(voxel_to_world(Anatomy(ct)), kit.to_world(ct))


def test_the_scene_is_not_changed_when_the_volume_is(scene):
    ct = add_ct(scene, np.random.default_rng(7))
    Anatomy(ct).volume.hu.fill_(0)
    assert np.array_equal(slicer.util.arrayFromVolume(ct), hu())


def test_two_cts_are_kept_and_forgotten_together(scene):
    rng = np.random.default_rng(8)
    first, second = Anatomy(add_ct(scene, rng)), Anatomy(add_ct(scene, rng))
    volumes = first.volume, second.volume
    assert first.volume is volumes[0] and second.volume is volumes[1]
    anatomy_file.forget()
    assert first.volume is not volumes[0]


def test_structures_follow_a_labelmap(scene):
    ct = add_ct(scene, np.random.default_rng(9))
    voxels = np.zeros(SHAPE, np.int16)
    voxels[2:4], voxels[5] = 3, 4
    affine = kit.to_world(ct)
    labels = kit.add_volume(scene, voxels, affine, None, "labels", "vtkMRMLLabelMapVolumeNode")
    anatomy = Anatomy(ct, labels)
    assert anatomy.structures == {3: "3", 4: "4"} and Anatomy(ct).structures == {}
    table = scene.AddNewNodeByClass("vtkMRMLColorTableNode")
    table.SetTypeToUser()
    table.SetNumberOfColors(5)
    table.SetColor(3, "femur", 1, 0, 0)
    labels.CreateDefaultDisplayNodes()
    labels.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
    assert anatomy.structures == {3: "femur", 4: "4"}
    slicer.util.arrayFromVolume(labels)[5] = 0
    slicer.util.arrayFromVolumeModified(labels)
    assert anatomy.structures == {3: "femur"}


def test_a_renderer_of_structures_shows_them_alone(scene):
    rng = np.random.default_rng(10)
    voxels = np.zeros(SHAPE, np.int16)
    voxels[:, :, :4] = 1
    bone = np.where(voxels == 1, 1000, 2000).astype(np.int16)
    ct = add_ct(scene, rng, voxels=bone)
    labels = kit.add_volume(scene, voxels, kit.to_world(ct), None, "labels", "vtkMRMLLabelMapVolumeNode")
    anatomy = Anatomy(ct, labels)
    camera, pose = Camera(16, 16, (1.5, 1.5), 400.0), looking_at(rng, anatomy.center, 300.0)
    alone = anatomy.renderer([1])(camera, anatomy.pose_in_volume(pose))
    air = np.where(voxels == 1, 1000.0, -1000.0).astype(np.float32)
    truth = Renderer(Volume(air, kit.to_world(ct)), integrator="siddon")(camera, pose)
    assert truth.max() > 0 and torch.allclose(alone, truth, atol=1e-5)


def test_a_transform_that_is_not_linear(scene):
    ct = add_ct(scene, np.random.default_rng(11))
    inner = kit.add_transform(scene, np.eye(4), kit.add_bend(scene), "straight")
    ct.SetAndObserveTransformNodeID(inner.GetID())
    for use in ("volume", "to_world", "center"):
        with pytest.raises(SceneError, match="'straight' above 'CT' is not linear; harden it"):
            getattr(Anatomy(ct), use)


def test_bad_cts(scene):
    with pytest.raises(SceneError, match="Choose a CT volume first"):
        Anatomy(None)
    with pytest.raises(SceneError, match="'empty' has no voxels"):
        Anatomy(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))
    colours = kit.add_volume(scene, np.zeros((*SHAPE, 3), np.uint8), np.eye(4), None, "rgb", "vtkMRMLVectorVolumeNode")
    with pytest.raises(SceneError, match="'rgb' has colours"):
        Anatomy(colours)
    broken = add_ct(scene, np.random.default_rng(12), voxels=np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(VolumeError, match="NaN"):
        _ = Anatomy(broken).volume
