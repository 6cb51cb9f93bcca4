"""Labels on the CT's grid: labelmaps and segmentations on any grid, below any linear transform."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import slicer
import slicer.util
import vtk

from DiffDRRCore.errors import DiffDRRWarning, VolumeError
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.labels import labels_state, read_labels, reading_labels
from Testing.core.samples import rigid
from Testing.scene import kit

SHAPE = (9, 10, 11)
CT_GRID = kit.grid(np.random.default_rng(7), SHAPE)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DiffDRRWarning)
        yield


def add_ct(scene, parent=None, ijk_to_ras=CT_GRID):
    return kit.add_volume(scene, np.zeros(SHAPE, np.int16), ijk_to_ras, parent)


def add_labelmap(scene, voxels, ijk_to_ras=CT_GRID, parent=None, dtype=np.int16):
    kind = "vtkMRMLLabelMapVolumeNode"
    return kit.add_volume(scene, np.asarray(voxels, dtype), ijk_to_ras, parent, "labels", kind)


def numbered(seed=0, shape=SHAPE, high=9):
    return np.random.default_rng(seed).integers(0, high, shape)


def add_segmentation(scene, masks, ijk_to_ras=CT_GRID, parent=None, names=None):
    """A segmentation with one binary labelmap a segment, as `ImportLabelmap...` would not share them."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segments")
    for index, mask in enumerate(masks):
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(*mask.shape[::-1])
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[:] = mask.ravel()
        image.SetGeometryFromImageToWorldMatrix(kit.matrix(ijk_to_ras))
        segment = slicer.vtkSegment()
        segment.SetName(names[index] if names else f"part {index}")
        segment.AddRepresentation("Binary labelmap", image)
        node.GetSegmentation().AddSegment(segment, f"id{index}")
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def add_spheres(scene, centers, radius, parent=None):
    """A segmentation of closed surfaces alone."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    for index, center in enumerate(centers):
        source = vtk.vtkSphereSource()
        source.SetCenter(center)
        source.SetRadius(radius)
        source.SetThetaResolution(64)
        source.SetPhiResolution(64)
        source.Update()
        segment = slicer.vtkSegment()
        segment.SetName(f"ball {index}")
        segment.AddRepresentation("Closed surface", source.GetOutput())
        node.GetSegmentation().AddSegment(segment, f"ball{index}")
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def positions(shape, affine):
    """[K, J, I, 3] of the voxel centres."""
    k, j, i = np.indices(shape)
    return kit.apply(affine, np.stack([i, j, k], -1))


def nearest_by_search(voxels, grid_to_world, points):
    """The label whose voxel centre is nearest in index space, by looking at each point alone; 0 outside."""
    result = np.zeros(points.shape[:-1], int)
    at = kit.apply(np.linalg.inv(grid_to_world), points)
    for index in np.ndindex(result.shape):
        i, j, k = (int(np.floor(value + 0.5)) for value in at[index])
        if 0 <= k < voxels.shape[0] and 0 <= j < voxels.shape[1] and 0 <= i < voxels.shape[2]:
            result[index] = voxels[k, j, i]
    return result


def test_a_labelmap_on_the_same_grid_is_copied_exactly(scene):
    voxels = numbered()
    labels, names = read_labels(add_labelmap(scene, voxels), add_ct(scene))
    assert labels.dtype == np.int16 and np.array_equal(labels, voxels)
    assert names == {number: str(number) for number in range(1, 9)}


def test_the_result_is_a_copy(scene):
    node = add_labelmap(scene, numbered())
    labels, _ = read_labels(node, add_ct(scene))
    labels[:] = 77
    assert slicer.util.arrayFromVolume(node).max() < 9


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_any_type_of_whole_numbers_will_do(scene, dtype):
    voxels = numbered()
    labels, _ = read_labels(add_labelmap(scene, voxels, dtype=dtype), add_ct(scene))
    assert labels.dtype == np.int16 and np.array_equal(labels, voxels)


def test_negative_labels_are_kept(scene):
    voxels = numbered() - 3
    labels, _ = read_labels(add_labelmap(scene, voxels), add_ct(scene))
    assert np.array_equal(labels, voxels)


@pytest.mark.parametrize("parents", ["none", "rigid", "scaled", "both"])
def test_a_labelmap_on_another_grid_below_other_transforms(scene, parents):
    rng = np.random.default_rng(3)
    above_ct = kit.add_transform(scene, rigid(rng, 10)) if parents in ("rigid", "both") else None
    inner = kit.add_transform(scene, kit.scaled(rng)) if parents in ("scaled", "both") else None
    ct = add_ct(scene, above_ct)
    voxels = numbered(1, (12, 8, 10))
    node = add_labelmap(scene, voxels, kit.grid(rng, voxels.shape, False, (3, 4)), inner)
    warnings.simplefilter("ignore", DiffDRRWarning)
    labels, _ = read_labels(node, ct)
    expected = nearest_by_search(voxels, kit.to_world(node), positions(SHAPE, kit.to_world(ct)))
    assert (expected > 0).mean() > 0.2
    assert (labels != expected).mean() < 1e-3  # ties of rounding apart


def test_flipped_and_permuted_axes_are_exact(scene):
    voxels = numbered()
    flip = np.array([[0, 0, 1, 0], [0, -1, 0, SHAPE[1] - 1], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    turned = np.transpose(voxels[:, ::-1, :], (2, 1, 0))  # index (i', j', k') of it is flip of (i, j, k)
    labels, _ = read_labels(add_labelmap(scene, turned, CT_GRID @ np.linalg.inv(flip)), add_ct(scene))
    assert np.array_equal(labels, voxels)


def test_a_finer_labelmap_is_sampled_at_the_lower_of_two_equally_near_voxels(scene):
    fine = np.repeat(np.repeat(np.repeat(numbered(), 2, 0), 2, 1), 2, 2)
    half = CT_GRID @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    labels, _ = read_labels(add_labelmap(scene, fine, half), add_ct(scene))
    assert np.array_equal(labels, numbered())


def add_colors(scene, node, names):
    table = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "names")
    table.SetTypeToUser()
    table.SetNumberOfColors(8)
    for number, name in names.items():
        table.SetColor(number, name, 1, 0, 0, 1)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
    return table


def test_names_come_from_the_colour_table(scene):
    node = add_labelmap(scene, numbered(high=6))
    add_colors(scene, node, {0: "background", 1: "femur", 2: "None", 3: "pelvis", 4: "", 7: "absent"})
    assert read_labels(node, add_ct(scene))[1] == {1: "femur", 2: "2", 3: "pelvis", 4: "4", 5: "5"}


def test_each_name_chooses_one_structure(scene):
    node = add_labelmap(scene, numbered(high=4))
    add_colors(scene, node, {1: "rib", 2: "rib", 3: "pelvis"})
    assert read_labels(node, add_ct(scene))[1] == {1: "rib (1)", 2: "rib (2)", 3: "pelvis"}


def test_the_state_of_a_labelmap(scene):
    ct, node = add_ct(scene), add_labelmap(scene, numbered())
    table = add_colors(scene, node, {1: "femur"})
    seen = [labels_state(node, ct)]

    def is_new():
        state = labels_state(node, ct)
        assert state == labels_state(node, ct)
        seen.append(state)
        return state not in seen[:-1]

    slicer.util.arrayFromVolume(node)[0, 0, 0] += 1
    slicer.util.arrayFromVolumeModified(node)
    assert is_new()
    table.SetColorName(1, "tibia")
    assert is_new()
    slicer.util.updateVolumeFromArray(node, numbered(5).astype(np.int16))
    assert is_new()
    node.SetIJKToRASMatrix(kit.matrix(CT_GRID @ kit.scaled(np.random.default_rng(0))))
    assert is_new()
    node.SetAndObserveTransformNodeID(kit.add_transform(scene, rigid(np.random.default_rng(1))).GetID())
    assert is_new()


def test_the_state_does_not_change_with_colours_names_of_nodes_and_common_motion(scene):
    rng = np.random.default_rng(2)
    patient = kit.add_transform(scene, rigid(rng))
    own, other = (kit.add_transform(scene, rigid(rng), patient) for _ in range(2))
    ct, node = add_ct(scene, own), add_labelmap(scene, numbered(), parent=other)
    table = add_colors(scene, node, {1: "femur"})
    segmentation = add_segmentation(scene, [numbered(i) > 5 for i in range(2)], parent=other)
    before = labels_state(node, ct), labels_state(segmentation, ct)
    for _ in range(20):
        patient.SetMatrixTransformToParent(kit.matrix(rigid(rng)))
        node.SetName("renamed")
        table.SetColor(1, 0, 1, 0)
        assert (labels_state(node, ct), labels_state(segmentation, ct)) == before
    other.SetMatrixTransformToParent(kit.matrix(rigid(rng)))
    after = labels_state(node, ct), labels_state(segmentation, ct)
    assert after[0] != before[0] and after[1] != before[1]


def test_moving_labels_and_ct_together_does_not_change_the_labels(scene):
    rng = np.random.default_rng(5)
    own = kit.add_transform(scene, kit.scaled(rng))
    ct, node = add_ct(scene), add_labelmap(scene, numbered(), CT_GRID, own)
    warnings.simplefilter("ignore", DiffDRRWarning)
    before, _ = read_labels(node, ct)
    patient = kit.add_transform(scene, rigid(rng))
    for moved in (ct, own):
        moved.SetAndObserveTransformNodeID(patient.GetID())
    assert np.array_equal(read_labels(node, ct)[0], before) and before.any()


def test_segments_are_numbered_in_their_order_and_the_later_one_wins(scene):
    masks = [numbered(i, high=2).astype(bool) for i in range(3)]
    node = add_segmentation(scene, masks, names=["femur", "pelvis", "implant"])
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetSegmentVisibility("id1", False)
    labels, names = read_labels(node, add_ct(scene))
    expected = np.zeros(SHAPE, int)
    for number, mask in enumerate(masks, start=1):
        expected[mask] = number
    assert names == {1: "femur", 2: "pelvis", 3: "implant"}
    assert labels.dtype == np.int16 and np.array_equal(labels, expected)


def test_segments_in_a_shared_labelmap(scene):
    voxels = numbered(high=5)
    labelmap = add_labelmap(scene, voxels)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "imported")
    slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labelmap, node)
    first = node.GetSegmentation().GetNthSegment(0)
    shared = first.GetRepresentation("Binary labelmap")
    assert shared is node.GetSegmentation().GetNthSegment(1).GetRepresentation("Binary labelmap")
    assert np.array_equal(read_labels(node, add_ct(scene))[0], voxels)


def test_segments_in_a_labelmap_that_is_cut_to_their_extent(scene):
    voxels = np.zeros(SHAPE, int)
    voxels[3:6, 4:9, 2:10] = numbered(shape=(3, 5, 8), high=2)
    labelmap = add_labelmap(scene, voxels)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "imported")
    slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labelmap, node)
    extent = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap").GetExtent()
    assert extent[0] > 0 and extent[4] > 0
    assert np.array_equal(read_labels(node, add_ct(scene))[0], voxels)


@pytest.mark.parametrize("offset", [(-4, 3, 2), (5, -2, -6), (0, 0, 0)])
def test_a_segment_beyond_the_ct_is_cut(scene, offset):
    shift = np.eye(4)
    shift[:3, 3] = offset
    voxels = numbered(high=2)
    labels, _ = read_labels(add_segmentation(scene, [voxels.astype(bool)], CT_GRID @ shift), add_ct(scene))
    expected = nearest_by_search(voxels, CT_GRID @ shift, positions(SHAPE, CT_GRID))
    assert expected.any() and np.array_equal(labels, expected)


def test_segments_on_another_grid_below_other_transforms(scene):
    rng = np.random.default_rng(11)
    ct = add_ct(scene, kit.add_transform(scene, rigid(rng, 5)))
    ball = np.linalg.norm(np.indices((24, 24, 24)).T - 11.5, axis=-1) < 9
    parent = kit.add_transform(scene, rigid(rng, 5))
    node = add_segmentation(scene, [ball], kit.grid(rng, ball.shape, True, (0.9, 1.1)), parent)
    labels, _ = read_labels(node, ct)
    expected = nearest_by_search(
        ball, kit.to_world(parent_volume(scene, node, ball)), positions(SHAPE, kit.to_world(ct))
    )
    assert 100 < expected.sum() < expected.size
    assert (labels != expected).mean() < 1e-3


def test_segments_on_another_grid_are_what_slicer_exports(scene):
    rng = np.random.default_rng(11)
    parent = kit.add_transform(scene, rigid(rng, 5))
    ct = add_ct(scene, parent)
    ball = np.linalg.norm(np.indices((24, 24, 24)).T - 11.5, axis=-1) < 9
    node = add_segmentation(scene, [ball], kit.grid(rng, ball.shape, True, (0.9, 1.1)), parent)
    labels, _ = read_labels(node, ct)
    export = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "export")
    slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(node, ["id0"], export, ct)
    assert (slicer.util.arrayFromVolume(export) != labels).mean() < 1e-3 and labels.any()


def parent_volume(scene, segmentation, mask):
    """A volume at the place of a segment, whose way to the world MRML works out."""
    image = segmentation.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    geometry = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(geometry)
    affine = np.array([[geometry.GetElement(row, column) for column in range(4)] for row in range(4)])
    return kit.add_volume(scene, mask.astype(np.uint8), affine, segmentation.GetParentTransformNode(), "same place")


@pytest.mark.parametrize("left_handed", [False, True])
def test_a_segmentation_of_surfaces_alone(scene, left_handed):
    rng = np.random.default_rng(21)
    shape = (30, 28, 32)
    affine = kit.grid(rng, shape, left_handed, (0.9, 1.6))
    parent_ct, parent = (kit.add_transform(scene, rigid(rng, 3)) for _ in range(2))
    ct = kit.add_volume(scene, np.zeros(shape, np.int16), affine, parent_ct)
    middle = kit.apply(kit.to_world(ct), (np.array(shape[::-1]) - 1) / 2)
    world = middle + np.array([[-8, 0, 0], [8, 1, 2]])
    inverse = np.linalg.inv(read_matrix(parent))
    node = add_spheres(scene, kit.apply(inverse, world), 6.0, parent)
    node.GetSegmentation().AddSegment(empty_surface(), "empty")
    modified, ids = node.GetMTime(), kit.node_ids(scene)
    labels, names = read_labels(node, ct)
    points = positions(shape, kit.to_world(ct))
    for number, center in enumerate(world, start=1):
        distance = np.linalg.norm(points - center, axis=-1)
        assert (labels[distance < 5.7] == number).all() and (distance < 5.7).sum() > 100
        assert not (labels[distance > 6.1] == number).any()
    assert names == {1: "ball 0", 2: "ball 1", 3: "nothing"}
    assert kit.node_ids(scene) == ids and node.GetMTime() == modified
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")
    assert node.GetNumberOfDisplayNodes() == 0


def read_matrix(transform):
    result = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToParent(result)
    return np.array([[result.GetElement(row, column) for column in range(4)] for row in range(4)])


def empty_surface():
    segment = slicer.vtkSegment()
    segment.SetName("nothing")
    segment.AddRepresentation("Closed surface", vtk.vtkPolyData())
    return segment


def test_reading_changes_neither_segmentation_nor_scene(scene):
    ct, node = add_ct(scene), add_segmentation(scene, [numbered(high=2)])
    before = kit.node_ids(scene), node.GetMTime(), labels_state(node, ct), ct.GetMTime()
    read_labels(node, ct)
    assert (kit.node_ids(scene), node.GetMTime(), labels_state(node, ct), ct.GetMTime()) == before


def test_the_state_of_a_segmentation(scene):
    ct, node = add_ct(scene), add_segmentation(scene, [numbered(high=2), numbered(1, high=2)])
    segmentation = node.GetSegmentation()
    seen = [labels_state(node, ct)]

    def is_new():
        seen.append(labels_state(node, ct))
        return seen[-1] not in seen[:-1]

    segmentation.GetNthSegment(1).SetName("renamed")
    assert is_new()
    array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, "id0")
    array[0, 0, 0] = 1 - array[0, 0, 0]
    segmentation.GetSegment("id0").GetRepresentation("Binary labelmap").GetPointData().GetScalars().Modified()
    assert is_new()
    segmentation.RemoveSegment("id1")
    assert is_new()


def test_visibility_and_colour_of_segments_do_not_change_the_state(scene):
    ct, node = add_ct(scene), add_segmentation(scene, [numbered(high=2)])
    node.CreateDefaultDisplayNodes()
    before = labels_state(node, ct)
    node.GetDisplayNode().SetSegmentVisibility("id0", False)
    node.GetSegmentation().GetNthSegment(0).SetColor(0.1, 0.2, 0.3)
    assert labels_state(node, ct) == before


def test_an_edited_surface_changes_the_state(scene):
    ct, node = add_ct(scene), add_spheres(scene, [(0, 0, 0)], 5)
    before = labels_state(node, ct)
    surface = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Closed surface")
    surface.GetPoints().SetPoint(0, 1, 2, 3)
    surface.GetPoints().Modified()
    assert labels_state(node, ct) != before


def far_away():
    far = CT_GRID.copy()
    far[:3, 3] += 1e4
    return far


def each_kind(scene):
    """Labelmaps and a segmentation on the grid, beside it, and of types with other numbers."""
    beside = CT_GRID.copy()
    beside[:3, 3] += 0.4
    yield add_labelmap(scene, numbered())
    yield add_labelmap(scene, numbered(), beside)
    yield add_labelmap(scene, numbered(), dtype=np.float32)
    yield add_segmentation(scene, [numbered(high=2), numbered(1, high=2)])
    yield add_segmentation(scene, [numbered(high=2)], beside)


def test_labels_are_read_slice_by_slice(scene):
    """For event loops: no piece looks at more than some slices of the labels."""
    ct = add_ct(scene)
    for node in each_kind(scene):
        whole, names = read_labels(node, ct)
        work, pieces = reading_labels(node, ct), 0
        while True:
            try:
                next(work)
            except StopIteration as end:
                found = end.value
                break
            pieces += 1
        assert pieces >= SHAPE[0]
        assert np.array_equal(found[0], whole) and found[1] == names and whole.any()


@pytest.mark.parametrize("function", [read_labels, labels_state])
def test_what_is_no_labels(scene, function):
    ct = add_ct(scene)
    with pytest.raises(SceneError, match="not by nothing"):
        function(None, ct)
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "bone")
    with pytest.raises(SceneError, match="a labelmap volume or a segmentation, not by 'bone'"):
        function(model, ct)
    empty = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "blank")
    with pytest.raises(SceneError, match="'blank' has no voxels"):
        function(empty, ct)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "blank")
    with pytest.raises(SceneError, match="has no segments"):
        function(segmentation, ct)
    bent = add_labelmap(scene, numbered(), parent=kit.add_bend(scene))
    with pytest.raises(SceneError, match="'bend' above 'labels' is not linear"):
        function(bent, ct)


def test_voxels_that_are_no_labels(scene):
    ct = add_ct(scene)
    with pytest.raises(SceneError, match="not whole numbers"):
        read_labels(add_labelmap(scene, numbered() + 0.5, dtype=np.float32), ct)
    with pytest.raises(SceneError, match="go from 0 to 40000"):
        read_labels(add_labelmap(scene, numbered() * 5000, dtype=np.int32), ct)
    colours = kit.add_volume(scene, np.zeros((*SHAPE, 3), np.uint8), CT_GRID, None, "rgb", "vtkMRMLVectorVolumeNode")
    with pytest.raises(SceneError, match="'rgb' has colours"):
        read_labels(colours, ct)


def test_labels_outside_the_ct(scene):
    ct = add_ct(scene)
    with pytest.raises(VolumeError, match="None of the labels in 'labels' lies inside the CT"):
        read_labels(add_labelmap(scene, numbered(), far_away()), ct)
    with pytest.raises(VolumeError, match="None of the segments of 'segments' lies inside the CT"):
        read_labels(add_segmentation(scene, [numbered(high=2)], far_away()), ct)
    with pytest.raises(VolumeError, match="None of the segments of 'surfaces' lies inside the CT"):
        read_labels(add_spheres(scene, [(1e4, 0, 0)], 5), ct)


def test_a_segmentation_that_cannot_be_converted(scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "contours")
    node.GetSegmentation().SetSourceRepresentationName("Planar contour")
    segment = slicer.vtkSegment()
    line = vtk.vtkPolyData()
    line.SetPoints(vtk.vtkPoints())
    line.GetPoints().InsertNextPoint(0, 0, 0)
    segment.AddRepresentation("Planar contour", line)
    node.GetSegmentation().AddSegment(segment, "line")
    with pytest.raises(SceneError, match=r"'contours' \(Planar contour\) cannot be converted"):
        read_labels(node, add_ct(scene))


def test_a_segment_without_any_shape(scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "broken")
    segment = slicer.vtkSegment()
    segment.SetName("ghost")
    node.GetSegmentation().AddSegment(segment, "ghost")
    segment.RemoveAllRepresentations()
    with pytest.raises(SceneError, match="'ghost' of 'broken' is damaged"):
        read_labels(node, add_ct(scene))
