import numpy as np
import pytest
import slicer.util
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.surfaces import bone_surface, find_bone_surface
from Testing.core.samples import rigid
from Testing.scene import kit

SHAPE = (40, 44, 48)
RADIUS = 14.0


def ball(grid, center, radius=RADIUS, inside=1000.0):
    """HU of a ball in the coordinates of `grid`, its edge one mm soft."""
    indices = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")[::-1], -1)
    distance = np.linalg.norm(kit.apply(grid, indices) - center, axis=-1)
    return (-1000 + (inside + 1000) * np.clip(radius - distance + 0.5, 0, 1)).astype(np.float32)


@pytest.fixture(params=[True, False], ids=["left-handed", "right-handed"])
def grid(request):
    return kit.grid(np.random.default_rng(2), SHAPE, left_handed=request.param, spacing=(0.8, 1.2))


def points_of(model):
    points = vtk_to_numpy(model.GetPolyData().GetPoints().GetData()).astype(float)
    return points, vtk_to_numpy(model.GetPolyData().GetPointData().GetNormals()).astype(float)


def enclosed(data) -> float:
    """Volume in mm^3 by the divergence theorem: negative where the triangles face inwards."""
    corners = vtk_to_numpy(data.GetPolys().GetConnectivityArray()).reshape(-1, 3)
    points = vtk_to_numpy(data.GetPoints().GetData()).astype(float)
    a, b, c = (points[corners[:, one]] for one in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_a_ball_is_found_where_it_is_with_normals_outwards(scene, grid):
    center = np.array([1.0, -2.0, 0.5])
    ct = kit.add_volume(scene, ball(grid, center), grid)
    model = bone_surface(Anatomy(ct), threshold=0.0)
    points, normals = points_of(model)
    arms = points - center
    distance = np.linalg.norm(arms, axis=1)
    assert np.abs(distance.mean() - RADIUS) < 0.3 and distance.std() < 0.3
    assert np.abs(points.mean(0) - center).max() < 0.3
    assert ((arms / distance[:, None]) * normals).sum(1).min() > 0.8
    assert enclosed(model.GetPolyData()) == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.06)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.45, 0.7, 3.0), (2.0, 0.6, 1.0)])
def test_averaging_keeps_the_place(scene, spacing):
    """Blocks of several voxels, and incomplete ones at the far sides."""
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = -grid[:3, :3] @ (np.array(SHAPE[::-1]) - 1) / 2 + [3, 4, 5]
    center, radius = np.array([3.0, 4.0, 5.0]), 7.0
    ct = kit.add_volume(scene, ball(grid, center, radius), grid)
    points, _ = points_of(bone_surface(Anatomy(ct), threshold=0.0))
    low, high = points.min(0), points.max(0)
    assert np.abs((low + high) / 2 - center).max() < 0.35
    assert np.abs((high - low) / 2 - radius).max() < 1.2


def test_the_table_is_left_out_and_a_second_leg_is_not(scene):
    """Two bodies of water with bone in them, one smaller, and a dense plate apart from both."""
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[4:36, 8:28, 4:24], voxels[4:36, 10:26, 30:44] = 0, 0  # 12800 and 7168 voxels
    voxels[10:30, 14:20, 10:16], voxels[10:30, 14:20, 34:40] = 900, 900
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    plate = voxels.copy()
    plate[4:34, 38, 4:20] = 900  # 480 voxels
    ct = kit.add_volume(scene, plate, grid)
    without = enclosed(bone_surface(Anatomy(kit.add_volume(scene, voxels, grid))).GetPolyData())
    model = bone_surface(Anatomy(ct))
    low, high = np.array(model.GetPolyData().GetBounds()).reshape(3, 2).T
    assert high[1] < 2 * 21 and low[0] < 2 * 11 and high[0] > 2 * 38  # no plate, both bones
    assert enclosed(model.GetPolyData()) == pytest.approx(without, rel=1e-6)
    connected = plate.copy()
    connected[20, 28:38, 12] = 0  # now it hangs on the body: nothing says that it is not bone
    slicer.util.updateVolumeFromArray(ct, connected)
    assert bone_surface(Anatomy(ct)).GetPolyData().GetBounds()[3] > 2 * 37


def test_it_goes_with_the_ct(scene, grid):
    rng = np.random.default_rng(3)
    parent = kit.add_transform(scene, rigid(rng, 50.0))
    ct = kit.add_volume(scene, ball(grid, np.zeros(3)), grid, parent)
    model = bone_surface(Anatomy(ct))
    assert model.GetParentTransformNode() is parent
    ct.SetAndObserveTransformNodeID(None)
    assert bone_surface(Anatomy(ct)) is model and model.GetParentTransformNode() is None


def test_bone_that_is_cut_by_the_edge_of_the_ct_is_closed(scene):
    grid = np.diag([1.5, 1.5, 1.5, 1.0])
    ct = kit.add_volume(scene, np.full(SHAPE, 800, np.int16), grid)
    data = bone_surface(Anatomy(ct)).GetPolyData()
    edges = vtk.vtkFeatureEdges()
    edges.SetInputData(data)
    edges.FeatureEdgesOff()
    edges.ManifoldEdgesOff()
    edges.Update()
    assert edges.GetOutput().GetNumberOfCells() == 0
    assert enclosed(data) > 0.9 * np.prod(SHAPE) * 1.5**3


def test_made_anew_only_where_something_changed(scene, grid):
    ct = kit.add_volume(scene, ball(grid, np.zeros(3)), grid)
    assert find_bone_surface(Anatomy(ct)) is None
    model = bone_surface(Anatomy(ct))
    first = model.GetPolyData()
    assert bone_surface(Anatomy(ct)) is model and model.GetPolyData() is first
    assert find_bone_surface(Anatomy(ct)) is model
    assert bone_surface(Anatomy(ct), threshold=900.0) is model and model.GetPolyData() is not first
    second = model.GetPolyData()
    ct.GetImageData().Modified()
    bone_surface(Anatomy(ct), threshold=900.0)
    assert model.GetPolyData() is not second


def test_structures(scene, grid):
    left, right = np.array([-8.0, 0, 0]), np.array([9.0, 0, 0])
    labels = np.where(ball(grid, left, 6.0) > 0, 1, 0) + np.where(ball(grid, right, 5.0) > 0, 4, 0)
    node = kit.add_volume(scene, labels.astype(np.int16), grid, name="labels", kind="vtkMRMLLabelMapVolumeNode")
    ct = kit.add_volume(scene, ball(grid, np.zeros(3)), grid)
    points, normals = points_of(bone_surface(Anatomy(ct, node), structures=[4]))
    assert np.abs(points.mean(0) - right).max() < 0.6
    assert ((points - right) * normals).sum(1).min() > 0
    both, _ = points_of(bone_surface(Anatomy(ct, node), structures=[1, 4]))
    assert len(both) > 1.7 * len(points)


def test_errors_leave_no_model(scene, grid):
    ct = kit.add_volume(scene, ball(grid, np.zeros(3)), grid)
    before = kit.node_ids(scene)
    with pytest.raises(SceneError, match="denser than 5000 HU"):
        bone_surface(Anatomy(ct), threshold=5000.0)
    with pytest.raises(SceneError, match="no segmentation"):
        bone_surface(Anatomy(ct), structures=[1])
    assert kit.node_ids(scene) == before
