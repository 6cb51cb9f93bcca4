import numpy as np
import pytest
import torch
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from DiffDRRCore import Camera, CArm
from DiffDRRCore.geometry import project
from DiffDRRSlicerLib.scene import frustum, xrays
from DiffDRRSlicerLib.scene.carm import CArmNode
from Testing.core.samples import rigid
from Testing.scene import kit

CAMERAS = {
    "non-square pixels, off centre": Camera(30, 44, (2.1, 1.6), 900.0, (12.3, 18.1)),
    "from the detector": Camera(30, 44, (2.1, 1.6), 900.0, (12.3, 18.1), "detector"),
    "parallel": Camera.parallel_beam(30, 44, (2.1, 1.6), 900.0, (12.3, 18.1)),
}


@pytest.fixture(params=list(CAMERAS))
def camera(request):
    return CAMERAS[request.param]


def pose():
    return CArm(900.0, 600.0, torch.tensor([10.0, 20.0, -30.0]), 40.0, -15.0, 5.0).pose


def points_of(model):
    return vtk_to_numpy(model.GetPolyData().GetPoints().GetData()).astype(float)


def lines_of(model):
    data, found = model.GetPolyData(), []
    ids = vtk.vtkIdList()
    data.GetLines().InitTraversal()
    while data.GetLines().GetNextCell(ids):
        found.append([data.GetPoint(ids.GetId(end)) for end in range(2)])
    return np.array(found)


def corner(camera, u, v):
    """By hand: pixel to mm on the detector."""
    rows, columns = camera.pixel_spacing.tolist()
    sign = 1 if camera.view_from == "source" else -1
    return [sign * columns * (u - 12.3), rows * (v - 18.1), 900.0]


def test_edges_and_frame_end_at_the_outer_corners(scene, camera):
    carm = CArmNode.create(scene, camera, pose())
    model = frustum.create_frustum(carm)
    lines = lines_of(model)
    corners = np.array([corner(camera, u, v) for u, v in ((-0.5, -0.5), (43.5, -0.5), (43.5, 29.5), (-0.5, 29.5))])
    starts = corners * [1, 1, 0] if camera.parallel else np.zeros((4, 3))
    expected = [*zip(starts, corners, strict=True), *zip(corners, np.roll(corners, -1, 0), strict=True)]
    expected.append(([0, 0, 0], [0, 0, 900.0]))
    assert len(lines) == len(expected)
    for pair in np.array(expected):
        either = (np.abs(lines - pair).max((1, 2)) < 1e-3) | (np.abs(lines[:, ::-1] - pair).max((1, 2)) < 1e-3)
        assert either.sum() == 1
    assert model.GetParentTransformNode() is carm.node


def test_a_second_call_is_the_same_node_and_a_new_camera_is_followed(scene):
    carm = CArmNode.create(scene, CAMERAS["from the detector"], pose())
    model, detector = frustum.create_frustum(carm), frustum.show_detector(carm)
    carm.camera = Camera(30, 44, (2.1, 1.6), 700.0)
    frustum.update_frustum(carm)
    assert carm.referred("frustum") is model and carm.referred("detector") is detector
    assert np.allclose(points_of(detector)[:, 2], 700.0)
    assert lines_of(model)[..., 2].max() == pytest.approx(700.0)


def test_update_makes_nothing(scene):
    carm = CArmNode.create(scene, CAMERAS["parallel"], pose())
    before = kit.node_ids(scene)
    frustum.update_frustum(carm)
    assert kit.node_ids(scene) == before


@pytest.mark.parametrize("pixel", [(0, 0), (43, 0), (0, 29), (43, 29), (7, 21)])
def test_the_picture_is_the_right_way_round(scene, camera, pixel):
    """A bright pixel, found in the texture, mapped by texture coordinates into the room, is projected on to itself."""
    image = np.ones((30, 44), np.float32)
    image[pixel[1], pixel[0]] = 9.0
    carm = xrays.add_xray(scene, image, camera, pose(), {"intensity": "attenuation"})
    carm.node.SetAndObserveTransformNodeID(kit.add_transform(scene, rigid(np.random.default_rng(1), 50.0)).GetID())
    carm.referred("xray").GetDisplayNode().SetWindowLevelMinMax(0.0, 9.0)
    model = frustum.show_detector(carm)
    s, t = brightest(model)
    assert np.allclose(project(camera, carm.pose, world_at(model, s, t)[None])[0].numpy(), [pixel], atol=1e-3)


def brightest(model):
    """Texture coordinates of the brightest texel's middle; OpenGL's t = 0 is the image's first row."""
    connection = model.GetDisplayNode().GetTextureImageDataConnection()
    connection.GetProducer().Update()
    picture = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
    width, height, _ = picture.GetDimensions()
    grey = vtk_to_numpy(picture.GetPointData().GetScalars()).reshape(height, width, 4)[..., 0]
    row, column = np.unravel_index(grey.argmax(), grey.shape)
    assert (grey == grey.max()).sum() == 1
    return (column + 0.5) / width, (row + 0.5) / height


def world_at(model, s, t):
    """World mm of a point of the quad, from its corners and their texture coordinates."""
    points = points_of(model)
    texture = vtk_to_numpy(model.GetPolyData().GetPointData().GetTCoords()).astype(float)
    weights = np.abs(1 - texture[:, 0] - s) * np.abs(1 - texture[:, 1] - t)
    world = [0.0, 0.0, 0.0]
    model.TransformPointToWorld((weights[:, None] * points).sum(0), world)
    return torch.tensor(world, dtype=torch.float64)


def test_the_texture_follows_the_window(scene):
    carm = xrays.add_xray(scene, np.arange(1320.0).reshape(30, 44), CAMERAS["parallel"], pose(), {})
    connection = frustum.show_detector(carm).GetDisplayNode().GetTextureImageDataConnection()
    display = carm.referred("xray").GetDisplayNode()
    means = []
    for window in ((0, 1320), (0, 200)):
        display.SetWindowLevelMinMax(*window)
        connection.GetProducer().Update()
        picture = connection.GetProducer().GetOutputDataObject(0)
        means.append(vtk_to_numpy(picture.GetPointData().GetScalars())[:, 0].mean())
    assert means[1] > means[0] + 50


def test_without_an_x_ray_the_detector_is_bare(scene):
    carm = CArmNode.create(scene, CAMERAS["parallel"], pose())
    assert frustum.show_detector(carm).GetDisplayNode().GetTextureImageDataConnection() is None
