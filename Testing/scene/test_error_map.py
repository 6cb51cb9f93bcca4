"""The map of expected errors: scalars against random draws, below moved transforms, shown and hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vtk.util.numpy_support import vtk_to_numpy

from DiffDRRCore import Pose
from DiffDRRCore.registration import FoundBody
from Testing.scene import bones, kit

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import nodes  # noqa: E402
from DiffDRRSlicerLib.scene.anatomy import Anatomy  # noqa: E402
from DiffDRRSlicerLib.scene.bodies import BodyNode  # noqa: E402
from DiffDRRSlicerLib.scene.body_parts import add_body, remove_body  # noqa: E402
from DiffDRRSlicerLib.scene.error_map import (  # noqa: E402
    ARRAY,
    expected_errors,
    has_errors,
    hide_error_map,
    show_error_map,
)
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.found_bodies import FOUND, _kept  # noqa: E402
from DiffDRRSlicerLib.scene.surfaces import find_bone_surface  # noqa: E402

ABOUT = torch.tensor([20.0, -30.0, 10.0]).double()


def covariance(scale=1.0) -> torch.Tensor:
    """Turns of about half a degree, shifts of about half a mm, correlated."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    root[:3] *= 0.004
    root[3:] *= 0.3
    return scale**2 * root @ root.T


def know(node, scale=1.0) -> None:
    nodes.write_json(node, FOUND, _kept(FoundBody("bone", Pose.identity(), covariance(scale), ABOUT)))


@pytest.fixture
def legends(scene):
    """What the Colors module does for every scene of the application."""
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())


@pytest.fixture(params=["rigid", "scaled"])
def anatomy(scene, request):
    rng = np.random.default_rng(5)
    above = kit.add_transform(scene, kit.rigid(rng) if request.param == "rigid" else np.diag([1.2, 0.9, 1, 1]))
    return Anatomy(bones.add_ct(scene, above), bones.add_labelmap(scene, above))


def scalars(model) -> np.ndarray:
    return vtk_to_numpy(model.GetPolyData().GetPointData().GetArray(ARRAY))


def mesh_points(model) -> np.ndarray:
    return vtk_to_numpy(model.GetPolyData().GetPoints().GetData()).astype(float)


def drawn_errors(anatomy, points, scale=1.0) -> np.ndarray:
    """Root mean square of how far points move in 4000 random small motions, by plain matrices."""
    to_volume = np.linalg.inv(anatomy.to_world) @ nodes.parent_to_world(anatomy.ct)
    points = kit.apply(to_volume, points)
    draws = np.random.default_rng(1).multivariate_normal(np.zeros(6), covariance(scale).numpy(), 4000)
    moved = np.cross(draws[:, None, :3], points[None] - ABOUT.numpy()) + draws[:, None, 3:]
    return np.sqrt((moved**2).sum(-1).mean(0))


def test_scalars_are_the_spread_of_random_motions(anatomy):
    body = add_body(anatomy, ["right bone"])
    know(body.node)
    body.move(anatomy, Pose.exp(torch.tensor([0.3, 0.1, 0.2, 20.0, 0, 0]).double()))  # the CT's own points count
    (model,) = show_error_map(anatomy)
    assert model is body.surface
    picked = slice(None, None, 29)
    wanted = drawn_errors(anatomy, mesh_points(model)[picked])
    assert np.abs(scalars(model)[picked] / wanted - 1).max() < 0.05
    assert np.ptp(wanted) > 0.05
    assert np.allclose(expected_errors(anatomy, mesh_points(model)[picked], body), scalars(model)[picked], atol=1e-4)


def test_all_bones_share_one_range_and_one_legend(legends, anatomy):
    left, right = (add_body(anatomy, [name]) for name in bones.NAMES.values())
    know(left.node)
    know(right.node, 2.0)
    models = show_error_map(anatomy)
    top = float(max(scalars(model).max() for model in models))
    assert top == pytest.approx(scalars(right.surface).max())
    for model in models:
        display = model.GetDisplayNode()
        assert display.GetScalarVisibility() and display.GetActiveScalarName() == ARRAY
        assert np.allclose(display.GetScalarRange(), (0, top)) and "expected error" in display.GetColorNode().GetName()
    legends = [slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model) for model in models]
    assert legends[0].GetVisibility() and legends[0].GetTitleText() == ARRAY and legends[1] is None
    hide_error_map(anatomy)
    assert not legends[0].GetVisibility()
    assert not any(model.GetDisplayNode().GetScalarVisibility() for model in models)
    assert left.visible and right.visible
    show_error_map(anatomy)
    assert legends[0].GetVisibility()


def test_the_ct_as_one_is_coloured_where_there_are_no_bones(anatomy):
    with pytest.raises(SceneError, match="register it first"):
        show_error_map(anatomy)
    assert not has_errors(anatomy)
    know(anatomy.ct)
    (model,) = show_error_map(anatomy)
    assert has_errors(anatomy) and model is find_bone_surface(anatomy)
    wanted = drawn_errors(anatomy, mesh_points(model)[::50])
    assert np.abs(scalars(model)[::50] / wanted - 1).max() < 0.05


def test_a_second_call_changes_nothing_and_a_new_covariance_does(anatomy):
    body = add_body(anatomy, ["left bone"])
    know(body.node)
    (model,) = show_error_map(anatomy)
    stamps = model.GetPolyData().GetMTime(), model.GetDisplayNode().GetMTime()
    show_error_map(anatomy)
    assert (model.GetPolyData().GetMTime(), model.GetDisplayNode().GetMTime()) == stamps
    before = scalars(model).copy()
    know(body.node, 3.0)
    show_error_map(anatomy)
    assert np.allclose(scalars(model), 3 * before, rtol=1e-4)


def test_a_map_goes_with_its_bone_and_with_the_scene(legends, scene, tmp_path):
    anatomy = Anatomy(bones.add_ct(scene), bones.add_labelmap(scene))
    body = add_body(anatomy, ["left bone"])
    know(body.node)
    before = scalars(show_error_map(anatomy)[0]).copy()
    (tmp_path / "saved").mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "saved"), None)
    scene.Clear(True)
    scene.SetURL(str(next((tmp_path / "saved").glob("*.mrml"))))
    assert scene.Connect()
    (again,) = BodyNode.all(scene)
    assert np.allclose(scalars(again.surface), before)
    loaded = Anatomy(scene.GetFirstNodeByName("CT"), scene.GetFirstNodeByName("labels"))
    assert show_error_map(loaded) == [again.surface]
    assert again.surface.GetDisplayNode().GetColorNode() is not None
    remove_body(again)
    assert scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode") == 0
