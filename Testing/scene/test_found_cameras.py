"""Cameras that a registration finds: settings, the camera on the C-arm, its distortion, and the way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, CArm, Pose, project
from DiffDRRCore.registration import FoundCamera
from DiffDRRCore.registration.problem.lens import Lens

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import landmarks, nodes, xrays  # noqa: E402
from DiffDRRSlicerLib.scene.body_results import VIEWS, read_table  # noqa: E402
from DiffDRRSlicerLib.scene.carm import pixels_to_points  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.found_cameras import (  # noqa: E402
    apply_found,
    camera_rows,
    camera_text,
    check_cameras,
    distortion_of,
)
from DiffDRRSlicerLib.scene.poses import PoseHistory  # noqa: E402
from DiffDRRSlicerLib.scene.results import read_results_table  # noqa: E402
from DiffDRRSlicerLib.scene.view_settings import camera_options, engine_options, set_view  # noqa: E402
from Testing.scene.moved_bones import Case  # noqa: E402

STILL = dict.fromkeys(range(3), Pose.identity())


def shifted(camera: Camera, mm=(0.0, 0.0), longer=0.0) -> Camera:
    """With its principal point (right, down in mm) and source-to-detector distance changed; by plain numbers."""
    rows, columns = camera.pixel_spacing.tolist()
    u, v = camera.principal_point.tolist()
    return Camera(
        camera.height,
        camera.width,
        (rows, columns),
        float(camera.source_to_detector) + longer,
        (u + mm[0] / columns, v + mm[1] / rows),
        camera.view_from,
    )


def found(camera: Camera, changes) -> FoundCamera:
    changes = torch.tensor(changes, dtype=torch.float64)
    return FoundCamera(Lens(camera).camera(camera, changes), changes, (changes != 0).double() * 0.1)


def test_what_is_to_be_found_is_told_to_the_engine(scene):
    case = Case(scene)
    one, two = case.carms
    assert camera_options(case.carms) == {}
    set_view(two, source_to_detector=20.0, radial=1.5)
    known, free = camera_options(case.carms)["free_cameras"]
    assert known is None and (free.source_to_detector, free.principal_point, free.radial) == (20.0, None, 1.5)
    assert engine_options(case.carms) == {} and "free_cameras" in camera_options([two])
    set_view(two, free=True, degrees=0.0, mm=10.0, most_degrees=3.0)
    (_, limits) = engine_options(case.carms)["free_views"]
    assert limits.bounds == (3.0, 3.0, 3.0, None, None, None)
    assert limits.deviations == (None, None, None, 10.0, 10.0, 10.0)
    with pytest.raises(SceneError, match="A bound is 0 or more"):
        set_view(two, most_mm=-1.0)
    with pytest.raises(SceneError, match="0 or more mm, not nan"):
        set_view(one, principal_point=math.nan)


def test_a_shifted_principal_point_is_found_and_put_on_the_c_arm(scene):
    """The X-ray is of another camera than the C-arm's; the pose is right, so the images differ by the camera alone."""
    case = Case(scene, (0.0, 80.0), motions=STILL)
    carm = case.carms[0]
    told = shifted(carm.camera, (9.0, -6.0))
    truth, before = carm.camera, carm.pose.matrix
    xrays.set_camera(carm, told)
    set_view(carm, principal_point=20.0)
    history = PoseHistory(scene)
    _, run = case.run()
    seen, known = carm.camera.principal_point, truth.principal_point
    off = (told.principal_point - known).norm()
    assert float((seen - known).norm()) < 0.2 * float(off)
    assert np.allclose(carm.camera.pixel_spacing, told.pixel_spacing, rtol=1e-9)
    rows = {name: float(value) for name, value, _ in read_results_table(carm) if "principal" in name}
    assert rows["View 0: principal point, to the right"] == pytest.approx(_mm(carm.camera, told)[0], rel=1e-3)
    assert rows["View 0: principal point, down"] == pytest.approx(_mm(carm.camera, told)[1], rel=1e-3)
    assert 0 < rows["View 0: standard deviation, principal point, down"] < 2
    table = read_table(carm, VIEWS)
    assert "principal point moved by" in table[0]["camera"] and table[1]["camera"] == ""
    assert table[0]["similarity"] > 0.995  # measured with the camera that was found
    history.rest("registration")
    assert history.undo() == "registration"
    assert torch.allclose(carm.camera.principal_point, told.principal_point)
    assert torch.allclose(carm.pose.matrix, before) and run.outcome.views[0].name == "View 0"


def _mm(new: Camera, old: Camera) -> list[float]:
    rows, columns = new.pixel_spacing.tolist()
    u, v = (new.principal_point - old.principal_point).tolist()
    return [u * columns, v * rows]


def test_an_error_at_the_end_puts_the_camera_back(scene, monkeypatch):
    case = Case(scene, (0.0,), motions=STILL)
    (carm,) = case.carms
    told = shifted(carm.camera, (9.0, -6.0))
    xrays.set_camera(carm, told)
    set_view(carm, principal_point=20.0)

    def fail(*_):
        assert not torch.allclose(carm.camera.principal_point, told.principal_point)
        raise SceneError("broken")

    monkeypatch.setattr("DiffDRRSlicerLib.scene.registration.bone_motions", fail)
    with pytest.raises(SceneError, match="broken"):
        case.run(sizes=(32,))
    assert torch.allclose(carm.camera.principal_point, told.principal_point)


@pytest.mark.parametrize("corner", [6.0, -6.0])
def test_the_distortion_is_the_one_that_the_engine_has_seen(corner):
    """A ray of the ideal camera and the engine's own for the pixel that the distortion brings it to are the same."""
    camera = CArm(1000.0, 600.0).camera(200, 240, (1.5, 1.2), view_from="detector")
    camera = shifted(camera, (15.0, -10.0))
    new = found(camera, (30.0, 4.0, -3.0, corner))
    distortion = distortion_of(camera, corner)
    ideal = torch.cartesian_prod(torch.linspace(0, 239, 9), torch.linspace(0, 199, 9)).double()
    nominal = Lens(camera).seen(new.changes[None], distortion.distort(ideal))[0][0]
    rays = [torch.linalg.solve(own.K, _homogeneous(uv)) for own, uv in ((new.camera, ideal), (camera, nominal))]
    assert float((rays[0] - rays[1]).norm(dim=0).max()) * 1000 < 0.01  # mm on the detector


def _homogeneous(uv: torch.Tensor) -> torch.Tensor:
    return torch.cat([uv, torch.ones(len(uv), 1)], dim=1).T


def test_a_distortion_straightens_the_x_ray_keeps_points_on_their_pixels_and_can_be_undone(scene):
    case = Case(scene, (0.0,), motions=STILL)
    (carm,) = case.carms
    points = landmarks.xray_landmarks(carm)
    pixels = np.array([[5.0, 6.0], [40.0, 30.0]])
    for point in pixels_to_points(carm.camera, pixels):
        points.AddControlPoint(*point)
    before, image, history = carm.camera, nodes.get_image(carm.referred("xray")), PoseHistory(scene)
    apply_found(carm, found(before, (0.0, 0.0, 0.0, 8.0)))
    straight = nodes.get_image(carm.referred("xray"))
    assert np.abs(straight - image).max() > 0.05 * image.max()
    moved = landmarks.points_in_xray(carm, points, [0, 1])
    assert np.allclose(distortion_of(before, 8.0).distort(torch.from_numpy(moved)), pixels, atol=1e-6)
    with pytest.raises(SceneError, match="undone already"):
        set_view(carm, radial=1.0)
        check_cameras([carm])
    history.rest("registration")
    assert history.undo() == "registration" and np.array_equal(nodes.get_image(carm.referred("xray")), image)
    assert np.allclose(landmarks.points_in_xray(carm, points, [0, 1]), pixels, atol=1e-6)
    assert history.redo() == "registration" and np.allclose(nodes.get_image(carm.referred("xray")), straight)


def test_points_on_an_x_ray_stay_on_their_pixels_with_another_camera(scene):
    case = Case(scene, (0.0,))
    (carm,) = case.carms
    points = landmarks.xray_landmarks(carm)
    apart = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "in space")
    for markups, place in ((points, pixels_to_points(carm.camera, [[12.0, 30.0]])[0]), (apart, (1.0, 2.0, 3.0))):
        markups.AddControlPoint(*place)
    xrays.set_camera(carm, shifted(carm.camera, (20.0, 10.0), longer=100.0))
    assert np.allclose(landmarks.points_in_xray(carm, points, [0]), [[12.0, 30.0]])
    assert np.allclose(apart.GetNthControlPointPosition(0), (1.0, 2.0, 3.0))
    # and it is there that a point of space is seen now, which projects to that pixel
    place = nodes.transformed(nodes.transform_to_world(carm.plane), points.GetNthControlPointPosition(0))
    assert np.allclose(project(carm.camera, carm.pose, place[None])[0], [[12.0, 30.0]], atol=1e-6)


def test_rows_and_a_line_tell_what_was_found_alone():
    camera = CArm(1000.0, 600.0).camera(48, 52, (6.5, 6.5))
    rows = list(camera_rows("AP", found(camera, (12.0, 0.0, 0.0, 0.0))))
    assert rows == [
        ("AP: source to detector", pytest.approx(1012.0), "mm"),
        ("AP: standard deviation, source to detector", pytest.approx(0.1), "mm"),
    ]
    assert camera_text(found(camera, (12.0, 0.0, 0.0, 0.0))) == "source to detector 1012.0 ± 0.1 mm"
    nothing = found(camera, (0.0,) * 4)
    assert camera_text(nothing) == "" and list(camera_rows("AP", nothing)) == []
