"""The logic's methods from a script: nodes in, nodes out, against the library and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer.util

from DiffDRRCore import CArm, Pose
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.geometry import project
from DiffDRRCore.imaging.camera_file import write_camera
from Testing.panel.kit import add_phantom


@pytest.fixture
def logic(slicer_app, make_widget):
    return make_widget("DiffDRRSlicer").logic


@pytest.fixture
def ct(slicer_app):
    return add_phantom(slicer_app.scene, spacing=12.0, shape=(32, 24, 28))


@pytest.fixture
def carm_node():
    from DiffDRRSlicerLib.scene.carm import CArmNode

    return CArmNode


def test_a_c_arm_stands_where_its_angles_say(logic, ct, carm_node):
    node = logic.createCArm(ct, 40, 60, (2.0, 1.5), 1100.0, 700.0, primary=30, secondary=-10)
    carm = carm_node(node)
    arm = CArm(1100.0, 700.0, carm.arm.isocenter, 30, -10)
    assert np.allclose(carm.pose.matrix.numpy(), arm.pose.matrix.numpy(), atol=1e-9)
    assert (carm.camera.height, carm.camera.width) == (40, 60) and carm.camera.pixel_spacing.tolist() == [2.0, 1.5]
    logic.moveCArm(node, primary=-15)
    assert float(carm.arm.primary) == pytest.approx(-15) and float(carm.arm.secondary) == pytest.approx(-10)


def test_a_matrix_a_k_and_a_file_set_the_camera(logic, ct, carm_node, tmp_path):
    first = logic.createCArm(ct, 40, 60, (2.0, 1.5), primary=25, secondary=8, roll=5)
    second = logic.createCArm(ct, 40, 60)
    logic.setCamera(second, -3.7 * logic.projectionMatrix(first), ct)  # known up to a factor
    assert np.allclose(carm_node(second).pose.matrix, carm_node(first).pose.matrix, atol=1e-6)
    K = [[-700.0, 0.0, 31.0], [0.0, 650.0, 18.0], [0.0, 0.0, 1.0]]
    logic.setCamera(second, K)
    assert np.allclose(carm_node(second).camera.K, K)
    write_camera(tmp_path / "camera.json", carm_node(first).camera)
    logic.setCamera(second, tmp_path / "camera.json")
    assert np.allclose(carm_node(second).camera.K, carm_node(first).camera.K)
    with pytest.raises(DiffDRRError, match="12 of a 3 x 4"):
        logic.setCamera(second, [[1.0, 2.0]])


def test_two_x_rays_are_registered_together(logic, ct, carm_node):
    carms = [logic.simulateXRay(ct, carm=logic.createCArm(ct, 64, 64, (6, 6), primary=angle)) for angle in (0, 90)]
    truth = [carm_node(node).pose for node in carms]
    center = carm_node(carms[0]).arm.isocenter
    motion = Pose.from_parameters([3.0, -2.0, 4.0], [6.0, -5.0, 9.0], "euler_angles", "ZXY", degrees=True)
    for node, pose in zip(carms, truth, strict=True):
        carm_node(node).pose = motion @ pose
    outcome = logic.register(carms, ct)
    assert len(outcome.views) == 2
    for node, pose in zip(carms, truth, strict=True):
        off = carm_node(node).pose.inverse().transform(center[None]) - pose.inverse().transform(center[None])
        assert off.norm() < 1.0  # in depth too: the other view sees it


def test_an_epipolar_line_goes_through_the_point(logic, ct, carm_node):
    carms = [logic.createCArm(ct, 64, 64, (6, 6), primary=angle) for angle in (10, 70)]
    point = np.add(carm_node(carms[0]).arm.isocenter.numpy(), (10, -20, 15))
    pixels = [project(carm_node(node).camera, carm_node(node).pose, point[None])[0, 0].numpy() for node in carms]
    from DiffDRRSlicerLib.scene.carm import pixels_to_points

    (clicked,) = pixels_to_points(carm_node(carms[0]).camera, pixels[0][None])
    logic.xrayLandmarks(carms[0]).AddControlPoint(*clicked)
    model = logic.showEpipolarLines(*carms)
    ends = slicer.util.arrayFromModelPoints(model)
    (there,) = pixels_to_points(carm_node(carms[1]).camera, pixels[1][None])
    along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    assert np.linalg.norm(np.cross(there - ends[0], along)) < 1e-3 * 6


def test_the_ct_is_resliced_in_the_plane_of_the_x_ray(logic, ct, carm_node):
    node = logic.createCArm(ct, 64, 64, (6, 6), primary=30)
    volume = logic.resliceCT(node, ct, depth=760.0)
    image = slicer.util.arrayFromVolume(volume)
    assert image.shape[0] == 1 and image.max() > 100 and image.min() == -1000
    assert carm_node(node).depth == pytest.approx(760.0)


def test_the_self_test_of_the_logic_passes_and_finds_a_wrong_camera(logic, slicer_app, monkeypatch):
    from DiffDRRSlicerLib import scene, selftest

    said = []
    selftest.run_logic(logic, slicer_app.scene, said.append)
    assert said == ["An X-ray was loaded from a file through the logic"]
    right = scene.loading.load_xray_file

    def turned(*arguments):
        carm = right(*arguments)
        carm.move_arm(primary=float(carm.arm.primary) + 1)
        return carm

    monkeypatch.setattr(scene.loading, "load_xray_file", turned)
    with pytest.raises(AssertionError, match="difference of the loaded pose"):
        selftest.run_logic(logic, slicer_app.scene, str)


def test_what_is_there_is_chosen_when_the_module_opens(slicer_app):
    from DiffDRRSlicerLib import sample_data

    ct = add_phantom(slicer_app.scene, "CTChest", spacing=12.0, shape=(32, 24, 28))
    carm = sample_data.simulate(slicer_app.scene, ct)
    panel = slicer_app.make_widget().panel
    assert panel.parameters.ct is ct and panel.parameters.carm is carm.node
    other = add_phantom(slicer_app.scene, "other", spacing=12.0, shape=(32, 24, 28))
    panel.parameters.ct = other
    slicer_app.leave(slicer_app._widgets[0])
    slicer_app.enter(slicer_app._widgets[0])
    assert panel.parameters.ct is other  # what the user chose stays
