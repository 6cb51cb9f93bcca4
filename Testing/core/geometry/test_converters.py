"""OpenCV, projection matrices, RTK and LPS: against numbers of the packages and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry import Camera, CArm, Pose, backproject, project
from DiffDRRCore.geometry.converters import (
    IEC_SUPINE_HEAD_FIRST_TO_RAS,
    RTKProjection,
    from_opencv,
    from_projection_matrix,
    from_rtk,
    lps_to_ras,
    lps_transform_to_ras,
    to_opencv,
    to_projection_matrix,
    to_rtk,
)

POINTS = np.array([[0.0, 0, 0], [30, -20, 50], [-60, 45, -25], [12.5, 80, -70], [55, -5, 33], [-20, -60, 10]])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# cv2.Rodrigues((0.4, -1.1, 0.7)), opencv-python-headless 5.0.0.93
OPENCV_R = np.array(
    [
        [0.273847282, -0.690255382, -0.669742618],
        [0.314364563, 0.722353373, -0.615938736],
        [0.908945866, -0.041870197, 0.414806339],
    ]
)
OPENCV_T = np.array([12.0, -30.0, 900.0])
OPENCV_K = np.array([[640.0, 0, 201.25], [0, 810.0, 98.5], [0, 0, 1]])
# cv2.projectPoints(POINTS, rvec, t, K, None), and with K[0, 0] = -640; opencv-python-headless 5.0.0.93
OPENCV_PIXELS = np.array(
    [
        [209.783333333, 71.5],
        [201.609776918, 42.317459174],
        [186.848799665, 97.56916754],
        [206.408472154, 167.461134738],
        [206.834950101, 67.703298269],
        [230.957104663, 20.289936308],
    ]
)
OPENCV_MIRRORED_U = [192.716666667, 200.890223082, 215.651200335, 196.091527846, 195.665049899, 171.542895337]

rigid = st.builds(
    lambda rotvec, shift: Pose(_rigid(rotvec, shift)),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.floats(-900, 900)] * 3),
)
cameras = st.builds(
    lambda size, spacing, distance, centre, side, skew: _camera(size, spacing, distance, centre, side, skew),
    st.tuples(st.integers(2, 400), st.integers(2, 400)),
    st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
    st.floats(300, 2000),
    st.tuples(st.floats(-100, 500), st.floats(-100, 500)),
    st.sampled_from(["source", "detector"]),
    st.floats(-20, 20),
)


def _rigid(rotvec, shift) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def _camera(size, spacing, distance, centre, side, skew=0.0) -> Camera:
    camera = Camera(*size, spacing, distance, centre, side)
    K = camera.K.numpy().copy()
    K[0, 1] = skew
    return Camera.from_intrinsics(K, *size, source_to_detector=distance)


def by_matrix(P: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Dehomogenised P X."""
    homogeneous = np.c_[points, np.ones(len(points))] @ np.asarray(P).T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def in_front_of(pose: Pose) -> np.ndarray:
    """A few world points before the source."""
    local = np.array([[0.0, 0, 500], [80, -40, 600], [-60, 70, 300], [10, 20, 900]])
    return pose.transform(local).numpy()


class TestOpenCV:
    def test_pixels_of_project_points(self):
        camera, pose = from_opencv(OPENCV_K, OPENCV_R, OPENCV_T, 200, 400, source_to_detector=1020.0)
        np.testing.assert_allclose(project(camera, pose, POINTS)[0], OPENCV_PIXELS, atol=1e-5)
        assert camera.view_from == "source"

    def test_negative_focal_length(self):
        K = OPENCV_K * [[-1, 1, 1], [1, 1, 1], [1, 1, 1]]
        camera, pose = from_opencv(K, OPENCV_R, OPENCV_T[:, None], 200, 400, pixel_spacing=(0.8, 1.0125))
        uv = project(camera, pose, POINTS)[0]
        np.testing.assert_allclose(uv, np.c_[OPENCV_MIRRORED_U, OPENCV_PIXELS[:, 1]], atol=1e-5)
        assert camera.view_from == "detector"
        assert float(camera.source_to_detector) == pytest.approx(648.0)

    @settings(max_examples=30, deadline=None)
    @given(cameras, rigid)
    def test_round_trip(self, camera, pose):
        K, R, t = to_opencv(camera, pose)
        again, pose_again = from_opencv(
            K, R, t, camera.height, camera.width, source_to_detector=camera.source_to_detector
        )
        np.testing.assert_allclose(pose_again.matrix, pose.matrix, atol=1e-9)
        np.testing.assert_allclose(again.K, camera.K)
        points = in_front_of(pose)
        pixels = by_matrix(K.numpy() @ np.c_[R.numpy(), t.numpy()], points)
        np.testing.assert_allclose(project(camera, pose, points)[0], pixels, atol=1e-6)

    def test_errors(self):
        with pytest.raises(GeometryError, match="Rodrigues"):
            from_opencv(OPENCV_K, [0.4, -1.1, 0.7], OPENCV_T, 200, 400, source_to_detector=1020.0)
        with pytest.raises(GeometryError, match="reflection"):
            from_opencv(OPENCV_K, -OPENCV_R, OPENCV_T, 200, 400, source_to_detector=1020.0)
        with pytest.raises(GeometryError, match="three numbers"):
            from_opencv(OPENCV_K, OPENCV_R, [1.0, 2.0], 200, 400, source_to_detector=1020.0)
        with pytest.raises(GeometryError, match="parallel beam"):
            to_opencv(Camera.parallel_beam(9, 9, (1.0, 1.0), 1000.0), Pose.identity())


class TestProjectionMatrix:
    @pytest.mark.parametrize("factor", [1.0, -1.0, 1e-4, -2.5, 3e5])
    @pytest.mark.parametrize("side", [1.0, -1.0])
    def test_any_scale_and_sign(self, factor, side):
        K = OPENCV_K.copy()
        K[0, :2] = side * 640.0, 3.5
        P = factor * K @ np.c_[OPENCV_R, OPENCV_T]
        camera, pose = from_projection_matrix(P, 200, 400, source_to_detector=1020.0)
        np.testing.assert_allclose(camera.K, K, atol=1e-5)
        np.testing.assert_allclose(pose.rotation, OPENCV_R.T, atol=1e-8)
        # opencv-python-headless 5.0.0.93, decomposeProjectionMatrix: the camera's centre
        np.testing.assert_allclose(pose.translation, [-811.906510108, 67.636842634, -383.766955799], atol=1e-5)
        assert camera.view_from == ("source" if side > 0 else "detector")
        np.testing.assert_allclose(project(camera, pose, POINTS)[0], by_matrix(P, POINTS), atol=1e-8)

    def test_by_hand(self):
        """Source at (0, -700, 0), beam to +A, rows to the feet, radiological display, 2 mm pixels, SDD 1000."""
        P = [[-500.0, 50.0, 0.0, 35000.0], [0.0, 40.0, -500.0, 28000.0], [0.0, 1.0, 0.0, 700.0]]
        camera, pose = from_projection_matrix(P, 81, 101, source_to_detector=1000.0)
        np.testing.assert_allclose(camera.K, [[-500, 0, 50], [0, 500, 40], [0, 0, 1]], atol=1e-10)
        np.testing.assert_allclose(pose.matrix, CArm(1000.0, 700.0).pose.matrix, atol=1e-10)
        # 100 mm to the patient's right, in the isocentre's plane: magnified 10/7, on the left of the image
        np.testing.assert_allclose(project(camera, pose, [[100.0, 0, 0]])[0], [[50 - 500 / 7, 40]], atol=1e-9)

    def test_patient_on_the_other_side(self):
        camera, pose = Camera(100, 120, (1.0, 1.0), 1000.0), Pose(_rigid((0.3, 0.2, -0.1), (5000.0, 0, 0)))
        P = to_projection_matrix(camera, pose).numpy()
        there = pose.transform(np.array([[0.0, 0, 600]])).numpy()[0]
        _, found_pose = from_projection_matrix(-P, 100, 120, source_to_detector=1000.0, in_front=there)
        np.testing.assert_allclose(found_pose.matrix, pose.matrix, atol=1e-8)
        behind = pose.transform(np.array([[0.0, 0, -600]])).numpy()[0]
        _, other = from_projection_matrix(P, 100, 120, source_to_detector=1000.0, in_front=behind)
        np.testing.assert_allclose(other.rotation[:, 2], -pose.rotation[:, 2], atol=1e-9)

    @settings(max_examples=50, deadline=None)
    @given(cameras, rigid, st.floats(1e-5, 1e5), st.sampled_from([1, -1]))
    def test_round_trip(self, camera, pose, size, sign):
        points = in_front_of(pose)
        P = sign * size * to_projection_matrix(camera, pose)
        np.testing.assert_allclose(by_matrix(P, points), project(camera, pose, points)[0], atol=1e-6)
        found, found_pose = from_projection_matrix(
            P, camera.height, camera.width, source_to_detector=camera.source_to_detector, in_front=points[0]
        )
        np.testing.assert_allclose(found_pose.matrix, pose.matrix, atol=1e-6)
        np.testing.assert_allclose(found.K, camera.K, atol=1e-5)
        np.testing.assert_allclose(project(found, found_pose, points), project(camera, pose, points), atol=1e-5)

    def test_batch_and_gradient(self):
        P = torch.from_numpy(np.stack([k * OPENCV_K @ np.c_[OPENCV_R, OPENCV_T] for k in (1.0, -3.0)])).requires_grad_()
        camera, pose = from_projection_matrix(P, 200, 400, pixel_spacing=(0.8, 1.0125))
        assert camera.K.shape == (2, 3, 3)
        assert len(pose) == 2
        uv = project(camera, pose, POINTS)
        np.testing.assert_allclose(uv.detach(), [OPENCV_PIXELS] * 2, atol=1e-5)
        uv[0, 1, 0].backward()
        point = np.append(POINTS[1], 1.0)
        depth = float(P[0, 2].detach() @ torch.from_numpy(point))
        np.testing.assert_allclose(P.grad[0, 0], point / depth, atol=1e-9)  # d u / d P[0] = X / w

    def test_parallel_beam_is_affine(self):
        camera = Camera.parallel_beam(50, 60, (0.5, 2.0), 1000.0)
        pose = Pose(_rigid((0.3, -0.4, 0.5), (10.0, 20.0, 30.0)))
        P = to_projection_matrix(camera, pose)
        np.testing.assert_allclose(P[2], [0, 0, 0, 1], atol=1e-12)
        np.testing.assert_allclose(by_matrix(P, POINTS), project(camera, pose, POINTS)[0], atol=1e-9)
        with pytest.raises(GeometryError, match="singular"):
            from_projection_matrix(P, 50, 60, source_to_detector=1000.0)

    @pytest.mark.parametrize(
        ("P", "message"),
        [
            (np.zeros((3, 4)), "singular"),
            (np.c_[np.ones((3, 3)), [1.0, 2, 3]], "singular"),
            (np.full((3, 4), np.nan), "not finite"),
            (np.eye(3), "3 x 4"),
            (np.c_[np.eye(3), [0.0, 0, 0]], "in_front"),
        ],
    )
    def test_errors(self, P, message):
        with pytest.raises(GeometryError, match=message):
            from_projection_matrix(P, 10, 10, source_to_detector=1000.0)

    def test_scale_is_asked_for(self):
        with pytest.raises(GeometryError, match=r"pixel_spacing|source_to_detector"):
            from_projection_matrix(OPENCV_K @ np.c_[OPENCV_R, OPENCV_T], 10, 10)


# itk-rtk 2.7.0.post1, ThreeDCircularProjectionGeometry.AddProjection(sid, sdd, gantry, projection offset x, y,
# out of plane, in plane, source offset x, y): source, and detector coordinates (mm) of POINTS[:4] by GetMatrix.
RTK = [
    (
        RTKProjection(1000.0, 1500.0),
        [0.0, 0.0, 1000.0],
        [[0.0, 0.0], [47.368421, -31.578947], [-87.804878, 65.853659], [17.523364, 112.149533]],
    ),
    (
        RTKProjection(1000.0, 1500.0, 30.0),
        [500.0, 0.0, 866.025404],
        [[0.0, 0.0], [1.562223, -31.857322], [-56.285124, 64.184814], [65.193301, 113.811847]],
    ),
    (
        RTKProjection(1000.0, 1536.0, 40.0, (12.5, -20.25), 6.0, -7.0),
        [639.266352, -104.528463, 761.847972],
        [[-12.5, 20.25], [-24.582598, -4.05419], [-62.232761, 70.560725], [53.16811, 138.164116]],
    ),
    (
        RTKProjection(800.0, 1100.0, 200.0, (10.0, -20.0), 15.0, 25.0, (3.0, -4.0)),
        [-268.227671, -209.332287, -724.057256],
        [[-11.125, 21.5], [-42.553113, -12.789828], [83.864781, 63.917003], [-1.161393, 165.609505]],
    ),
]


class TestRTK:
    @pytest.mark.parametrize(("projection", "source", "detector_mm"), RTK)
    def test_numbers_of_rtk(self, projection, source, detector_mm):
        origin = (-40.0, 25.0)
        camera, pose = from_rtk(projection, 120, 200, pixel_spacing=(0.5, 0.8), origin=origin)
        np.testing.assert_allclose(pose.translation, source * np.array([-1, -1, 1]), atol=1e-5)
        points = lps_to_ras(POINTS[:4])
        indices = (np.array(detector_mm) - origin) / [0.8, 0.5]
        np.testing.assert_allclose(project(camera, pose, points)[0], indices, atol=1e-5)
        np.testing.assert_allclose(camera.pixel_spacing, [0.5, 0.8])
        assert float(camera.source_to_detector) == projection.source_to_detector

    def test_last_matrix_of_rtk(self):
        """GetMatrix(0) of the same package: equal up to a factor."""
        rtk = np.array(
            [
                [980.280178, -447.22795, -221.55571, 8900.0],
                [-353.879921, -967.109813, 386.941355, -17200.0],
                [-0.330366, -0.258819, -0.907673, -800.0],
            ]
        )
        camera, pose = from_rtk(RTK[3][0], 3, 3, pixel_spacing=(1.0, 1.0), origin=(0.0, 0.0), fixed_to_ras=np.eye(4))
        ours = to_projection_matrix(camera, pose).numpy()
        np.testing.assert_allclose(ours / ours[2, 3], rtk / rtk[2, 3], atol=1e-5)

    def test_supine_patient_by_hand(self):
        """IEC frame, gantry 0: the tube above a supine patient, so the source lies in front (+A), u to the left."""
        camera, pose = from_rtk(
            RTKProjection(1000.0, 1500.0), 11, 21, (2.0, 2.0), fixed_to_ras=IEC_SUPINE_HEAD_FIRST_TO_RAS
        )
        np.testing.assert_allclose(pose.translation, [0, 1000, 0], atol=1e-9)
        head_left = project(camera, pose, [[-4.0, 0.0, 8.0]])[0]  # 4 mm left, 8 mm up: magnified by 1.5, 2 mm pixels
        np.testing.assert_allclose(head_left, [[10 + 3, 5 + 6]], atol=1e-9)

    @settings(max_examples=50, deadline=None)
    @given(rigid, st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)), st.tuples(st.floats(-9, 99), st.floats(-9, 99)))
    def test_round_trip(self, pose, spacing, centre):
        camera = Camera(60, 90, spacing, 1200.0, centre, view_from="detector")
        projection = to_rtk(camera, pose)
        found, found_pose = from_rtk(projection, 60, 90, spacing)
        np.testing.assert_allclose(found_pose.matrix, pose.matrix, atol=1e-9)
        np.testing.assert_allclose(found.K, camera.K, atol=1e-9)

    def test_angles_survive_the_round_trip(self):
        projection = RTK[3][0]
        again = to_rtk(*from_rtk(projection, 120, 200, (0.5, 0.8)))
        assert again.gantry_angle % 360 == pytest.approx(200.0)
        assert again.out_of_plane_angle == pytest.approx(15.0)
        assert again.in_plane_angle == pytest.approx(25.0)
        assert again.source_offset == pytest.approx((3.0, -4.0))
        assert again.projection_offset == pytest.approx((10.0, -20.0))
        assert again.source_to_isocenter == pytest.approx(800.0)

    def test_errors(self):
        with pytest.raises(GeometryError, match="flipped"):
            to_rtk(Camera(9, 9, (1.0, 1.0), 1000.0), Pose.identity())
        with pytest.raises(GeometryError, match="positive"):
            from_rtk(RTKProjection(1000.0, -1500.0), 9, 9, (1.0, 1.0))
        with pytest.raises(GeometryError, match="skew"):
            to_rtk(_camera((9, 9), (1.0, 1.0), 900.0, (4.0, 4.0), "detector", skew=2.0), Pose.identity())
        with pytest.raises(GeometryError, match="one by one"):
            to_rtk(Camera(9, 9, (1.0, 1.0), 900.0, None, "detector"), Pose(torch.eye(4).expand(2, 4, 4)))
        with pytest.raises(GeometryError, match="not rigid"):
            from_rtk(RTKProjection(1000.0, 1500.0), 9, 9, (1.0, 1.0), fixed_to_ras=np.diag([2.0, 2, 2, 1]))
        with pytest.raises(GeometryError, match="pair"):
            from_rtk(RTKProjection(1000.0, 1500.0), 9, 9, 1.0)
        with pytest.raises(GeometryError, match="positive"):
            from_rtk(RTKProjection(1000.0, 1500.0), 9, 9, (0.0, 1.0))


class TestLPS:
    def test_points(self):
        assert lps_to_ras([1.0, 2.0, 3.0]).tolist() == [-1.0, -2.0, 3.0]
        np.testing.assert_array_equal(lps_to_ras(POINTS[:3]), POINTS[:3] * [-1, -1, 1])
        assert lps_to_ras(torch.ones(2, 5, 3)).dtype == torch.float32

    @settings(max_examples=20, deadline=None)
    @given(rigid)
    def test_frames(self, pose):
        camera_to_lps = pose.matrix
        moved = Pose(lps_to_ras(camera_to_lps)).transform(POINTS)
        np.testing.assert_allclose(moved, lps_to_ras(pose.transform(POINTS)), atol=1e-9)
        np.testing.assert_array_equal(lps_to_ras(lps_to_ras(camera_to_lps)), camera_to_lps)

    @settings(max_examples=20, deadline=None)
    @given(rigid)
    def test_transforms(self, pose):
        ras = Pose(lps_transform_to_ras(pose.matrix))
        np.testing.assert_allclose(ras.transform(lps_to_ras(POINTS)), lps_to_ras(pose.transform(POINTS)), atol=1e-9)
        np.testing.assert_allclose(lps_transform_to_ras(pose.matrix), LPS @ pose.matrix.numpy() @ LPS)

    def test_errors(self):
        for value in (np.eye(2), np.zeros((5, 4)), 3.0):
            with pytest.raises(GeometryError):
                lps_to_ras(value)
        with pytest.raises(GeometryError):
            lps_transform_to_ras(np.eye(3))


@settings(max_examples=20, deadline=None)
@given(cameras, rigid)
def test_rays_meet_at_the_source(camera, pose):
    """Every converter agrees with backproject: the pixel of a point on a ray is the ray's pixel."""
    uv = np.array([[0.0, 0.0], [camera.width - 1.0, camera.height - 1.0], [0.3, 0.7]])
    assume(math.hypot(*pose.translation.tolist()) > 1)
    origin, direction = backproject(camera, pose, uv)
    P = to_projection_matrix(camera, pose)
    np.testing.assert_allclose(by_matrix(P, (origin + 400 * direction)[0].numpy()), uv, atol=1e-6)
