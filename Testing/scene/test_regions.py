"""Masks of regions, against pixels counted by hand and against points on rays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import vtk

from DiffDRRCore import Camera, CArm
from Testing.scene import kit

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import nodes, regions  # noqa: E402
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.xrays import add_xray  # noqa: E402

HEIGHT, WIDTH = 30, 44


def a_carm(scene, view_from="source", image=None, meta=None) -> CArmNode:
    arm = CArm(1000.0, 700.0, (5.0, -7.0, 11.0), 23.0, -12.0, 8.0)
    camera = Camera(HEIGHT, WIDTH, (3.0, 2.0), 1000.0, (20.0, 16.5), view_from)
    if image is None:
        return CArmNode.create(scene, camera, arm.pose, 700.0)
    return add_xray(scene, image, camera, arm.pose, meta)


def on_plane(carm, uv) -> np.ndarray:
    """World points in the X-ray's plane that are seen at pixels."""
    return kit.apply(nodes.transform_to_world(carm.referred("plane")), pixels_to_points(carm.camera, uv))


def curve(scene, points):
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode", "region")
    node.SetCurveTypeToLinear()
    for point in points:
        node.AddControlPointWorld(vtk.vtkVector3d(*point))
    return node


def test_a_triangle_by_hand():
    mask = regions.polygon_mask([(0.5, 0.5), (4.5, 0.5), (0.5, 4.5)], 6, 7)
    expected = np.zeros((6, 7), bool)
    expected[1, 1:4] = expected[2, 1:3] = expected[3, 1] = True  # u + v < 5, the hypotenuse itself outside
    expected[1, 4] = expected[2, 3] = expected[3, 2] = expected[4, 1] = False
    assert np.array_equal(mask, expected)


def test_a_notch_and_parts_outside_the_image():
    notched = [(-5, -5), (20, -5), (20, 20), (3, 20), (3, 1.5), (1.5, 1.5), (1.5, 20), (-5, 20)]
    mask = regions.polygon_mask(notched, 5, 6)
    assert not mask[2:, 2].any()
    mask[2:, 2] = True
    mask_rest = np.ones((5, 6), bool)
    assert np.array_equal(mask, mask_rest)


def test_neighbours_share_no_pixel_and_leave_none_out():
    left = regions.polygon_mask([(-1, -1), (3, -1), (3, 9), (-1, 9)], 8, 8)
    right = regions.polygon_mask([(3, -1), (9, -1), (9, 9), (3, 9)], 8, 8)
    assert not (left & right).any() and (left | right).all()


def test_a_random_polygon_against_winding(scene):
    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 11))
    polygon = np.c_[20 + 14 * np.cos(angles), 15 + 11 * np.sin(angles)] + rng.normal(0, 0.5, (11, 2))
    loop = vtk.vtkPolygon()
    points = [(*corner, 0.0) for corner in polygon]
    flat, bounds, normal = vtk.vtkPoints(), [0.0] * 6, [0.0, 0.0, 1.0]
    for point in points:
        flat.InsertNextPoint(point)
        loop.GetPoints().InsertNextPoint(point)
    flat.GetBounds(bounds)
    mask = regions.polygon_mask(polygon, HEIGHT, WIDTH)
    data = np.ravel(points).tolist()
    for row, column in np.ndindex(HEIGHT, WIDTH):
        inside = loop.PointInPolygon((float(column), float(row), 0.0), len(points), data, bounds, normal) == 1
        assert inside == mask[row, column], (row, column)


@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_a_curve_drawn_in_the_view_keeps_its_pixels(scene, view_from):
    carm = a_carm(scene, view_from)
    corners = np.array([(4.5, 3.5), (20.5, 3.5), (20.5, 12.5), (4.5, 12.5)])
    parent = kit.add_transform(scene, kit.rigid(np.random.default_rng(3)))
    region = curve(scene, on_plane(carm, corners))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[4:13, 5:21] = True
    assert np.array_equal(regions.region_mask(carm, region), expected)
    world = [region.GetNthControlPointPositionWorld(n) for n in range(4)]
    region.SetAndObserveTransformNodeID(parent.GetID())
    for number, point in enumerate(world):
        region.SetNthControlPointPositionWorld(number, *point)
    assert np.array_equal(regions.region_mask(carm, region), expected)


@pytest.mark.parametrize("view_from", ["source", "detector"])
@pytest.mark.parametrize("thick", [20.0, 2.0])
def test_a_roi_is_its_section_with_the_plane(scene, view_from, thick):
    carm = a_carm(scene, view_from)
    corners = on_plane(carm, [(4.5, 3.5), (20.5, 3.5), (20.5, 12.5)])
    box = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    across, down = corners[1] - corners[0], corners[2] - corners[1]
    to_world = np.eye(4)
    to_world[:3, 0], to_world[:3, 1] = across / np.linalg.norm(across), down / np.linalg.norm(down)
    to_world[:3, 2] = np.cross(to_world[:3, 0], to_world[:3, 1])
    to_world[:3, 3] = (corners[0] + corners[2]) / 2 + 0.3 * thick * to_world[:3, 2]
    box.SetSize(np.linalg.norm(across), np.linalg.norm(down), thick)
    box.SetAndObserveObjectToNodeMatrix(kit.matrix(to_world))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[4:13, 5:21] = True
    assert np.array_equal(regions.region_mask(carm, box), expected)


def test_a_roi_beside_the_plane_is_its_shadow(scene):
    carm = a_carm(scene)
    box = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    center = carm.pose.translation + 560 * carm.pose.rotation[:, 2]
    box.SetCenterWorld(*center.tolist())
    box.SetSizeWorld((22.0, 14.0, 10.0))
    box_to_world = nodes.from_vtk(box.GetObjectToWorldMatrix())
    mask = regions.region_mask(carm, box)
    source = carm.pose.translation.numpy()
    for row, column in itertools.product(range(0, HEIGHT, 2), range(1, WIDTH, 3)):
        pixel = on_plane(carm, [(column, row)])[0]
        local = kit.apply(np.linalg.inv(box_to_world), source + np.linspace(0.6, 1.1, 2001)[:, None] * (pixel - source))
        surely, perhaps = ((np.abs(local) < scale * np.array([11, 7, 5])).all(axis=1).any() for scale in (0.97, 1.03))
        assert surely <= mask[row, column] <= perhaps, (row, column)
    assert mask.sum() > 100


def test_a_plane_markup_is_its_rectangle(scene):
    carm = a_carm(scene, "detector")
    corners = on_plane(carm, [(4.5, 3.5), (20.5, 3.5), (20.5, 12.5)])
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsPlaneNode", "rectangle")
    node.SetPlaneType(slicer.vtkMRMLMarkupsPlaneNode.PlaneTypePointNormal)
    node.SetSizeMode(slicer.vtkMRMLMarkupsPlaneNode.SizeModeAbsolute)
    across, down = corners[1] - corners[0], corners[2] - corners[1]
    x, y = across / np.linalg.norm(across), down / np.linalg.norm(down)
    node.SetCenterWorld(((corners[0] + corners[2]) / 2).tolist())
    node.SetAxesWorld(x.tolist(), y.tolist(), np.cross(x, y).tolist())
    node.SetSizeWorld(np.linalg.norm(across), np.linalg.norm(down))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[4:13, 5:21] = True
    assert np.array_equal(regions.region_mask(carm, node), expected)


def test_the_collimator_of_both_intensities_and_of_large_images(scene):
    image = np.full((HEIGHT, WIDTH), 20.0, np.float32)
    image[6:25, 10:38] = 900.0
    for sign, intensity in ((1, "transmission"), (-1, "attenuation")):
        found = regions.collimator_mask(a_carm(scene, image=sign * image, meta={"intensity": intensity}))
        assert (found != (image > 100)).sum() <= 4  # a median filter rounds the corners off
    assert regions.combined_mask(a_carm(scene, image=0 * image + 5)) is None
    large = np.kron(image, np.ones((40, 40), np.float32))
    camera = Camera(*large.shape, (0.1, 0.1), 1000.0)
    carm = add_xray(scene, large, camera, CArm(1000, 700).pose, {"intensity": "transmission"})
    found = regions.collimator_mask(carm)
    assert found.shape == large.shape and (found != (large > 100)).mean() < 0.02


def test_region_and_collimator_together(scene):
    image = np.full((HEIGHT, WIDTH), 20.0, np.float32)
    image[6:25, 10:38] = 900.0
    carm = a_carm(scene, image=image, meta={"intensity": "transmission"})
    region = curve(scene, on_plane(carm, [(4.5, 3.5), (20.5, 3.5), (20.5, 12.5), (4.5, 12.5)]))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[6:13, 10:21] = True
    found = regions.combined_mask(carm, region)
    assert not (found & ~expected).any() and (found != expected).sum() <= 1  # the field's corner is rounded off
    assert regions.combined_mask(carm, region, find_collimator=False).sum() == 9 * 16
    hidden = curve(scene, on_plane(carm, [(0.5, 0.5), (4.5, 0.5), (4.5, 4.5)]))
    with pytest.raises(SceneError, match="behind the collimator"):
        regions.combined_mask(carm, hidden)


def test_regions_that_cannot_be_used(scene):
    carm = a_carm(scene)
    with pytest.raises(SceneError, match="Draw a region"):
        regions.region_mask(carm, None)
    with pytest.raises(SceneError, match="not drawn yet"):
        regions.region_mask(carm, curve(scene, []))
    with pytest.raises(SceneError, match="not drawn yet"):
        regions.region_mask(carm, scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "empty"))
    with pytest.raises(SceneError, match="does not surround anything"):
        regions.region_mask(carm, scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points"))
    with pytest.raises(SceneError, match="beside the X-ray"):
        regions.region_mask(carm, curve(scene, on_plane(carm, [(100, 100), (110, 100), (110, 120)])))
    behind = carm.pose.translation.numpy() - 100 * carm.pose.rotation[:, 2].numpy()
    with pytest.raises(SceneError, match="behind the X-ray source"):
        regions.region_mask(carm, curve(scene, behind + np.eye(3)))
