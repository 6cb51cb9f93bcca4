"""DiffDRR 0.6.1 and nanodrr 0.1.7: every number below was computed by the packages themselves, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry import Camera, Pose, project
from DiffDRRCore.geometry.converters import diffdrr_matrix, from_diffdrr, from_nanodrr, to_diffdrr, to_nanodrr
from DiffDRRCore.geometry.projection import pixel_rays

POINTS = np.array([[0.0, 0, 0], [30, -20, 50], [-60, 45, -25], [12.5, 80, -70]])
DETECTOR = {"sdd": 1020.0, "height": 120, "delx": 2.0, "width": 201, "dely": 1.5, "x0": 10.0, "y0": -20.0}
EULER = [20.0, -10.0, 7.0]  # ZXY, degrees
TRANSLATION = {"AP": [15.0, 850.0, -25.0], "PA": [15.0, -850.0, -25.0], None: [15.0, -25.0, -850.0]}

# diffdrr 0.6.1. Pose: convert([EULER], [TRANSLATION], "euler_angles", "ZXY", degrees=True). Per (orientation,
# reverse_x_axis): DRR.perspective_projection of POINTS; Detector.forward: source, and the detector points of the
# pixels in (row, column) (0, 0) and (30, 150).
DIFFDRR = {
    ("AP", True): (
        [[114.5, 26.666667], [105.037186, -8.104281], [140.645255, 41.120421], [85.102499, 70.073546]],
        [-273.590863, 786.306826, -173.837898],
        [[271.202531, -76.403144, 45.76909], [-13.276053, -181.442397, 37.78843]],
    ),
    ("AP", False): (
        [[86.5, 26.666667], [95.962814, -8.104281], [60.354745, 41.120421], [115.897501, 70.073546]],
        [-273.590863, 786.306826, -173.837898],
        [[-104.767973, -204.236998, 93.776239], [174.709199, -117.52547, 13.784856]],
    ),
    ("PA", True): (
        [[114.5, 26.666667], [104.994709, -13.131219], [135.566816, 41.921846], [88.690897, 65.955728]],
        [299.010088, -786.901357, 121.364004],
        [[156.68234, 238.238493, -13.271291], [-127.796243, 133.19924, -21.25195]],
    ),
    ("PA", False): (
        [[86.5, 26.666667], [96.005291, -13.131219], [65.433184, 41.921846], [112.309103, 65.955728]],
        [299.010088, -786.901357, 121.364004],
        [[-219.288163, 110.404639, 34.735859], [60.189009, 197.116167, -45.255525]],
    ),
    (None, True): (
        [[114.5, 26.666667], [105.041921, 55.993177], [138.63361, -27.92164], [85.882617, -44.428572]],
        [-24.716059, -191.436829, -828.306137],
        [[206.026053, 147.475263, 131.481461], [-60.79474, 9.956127, 175.300991]],
    ),
    (None, False): (
        [[86.5, 26.666667], [95.958079, 55.993177], [62.36639, -27.92164], [115.117383, -44.428572]],
        [-24.716059, -191.436829, -828.306137],
        [[-169.94445, 19.641409, 179.488611], [127.190511, 73.873054, 151.297417]],
    ),
}

# diffdrr 0.6.1, convert(rotation, [10, 800, -20], parameterization, convention).matrix, first three rows
CONVERTED = [
    (
        "axis_angle",
        None,
        [0.3, -0.2, 0.5],
        [
            [0.859533899, -0.497991537, -0.114916954, -387.499551538],
            [0.439867633, 0.835315605, -0.329794338, 679.247047249],
            [0.260226714, 0.232921164, 0.937032437, 170.198549822],
        ],
    ),
    (
        "quaternion",
        None,
        [0.9, 0.1, -0.3, 0.2],
        [
            [0.726315789, -0.442105263, -0.526315789, -335.894736842],
            [0.315789474, 0.894736842, -0.315789474, 725.263157895],
            [0.610526316, 0.063157895, 0.789473684, 40.842105263],
        ],
    ),
    (
        "quaternion_adjugate",
        None,
        [0.81, 0.09, -0.27, 0.18, 0.01, -0.03, 0.02, 0.09, -0.06, 0.04],
        [
            [0.726315789, -0.442105263, -0.526315789, -335.894736842],
            [0.315789474, 0.894736842, -0.315789474, 725.263157895],
            [0.610526316, 0.063157895, 0.789473684, 40.842105263],
        ],
    ),
    (
        "rotation_6d",
        None,
        [0.9, 0.1, 0.2, -0.1, 1.0, 0.3],
        [
            [0.970494959, 0.107832773, 0.215665546, 91.657857223],
            [-0.165622431, 0.948160631, 0.271220626, 751.447867991],
            [-0.175239108, -0.298937302, 0.938044639, -259.663125802],
        ],
    ),
    (
        "rotation_9d",
        None,
        [0.9, 0.1, 0.2, -0.1, 1.0, 0.3, 0.1, -0.2, 0.8],
        [
            [0.991164901, 0.112967935, 0.069500975, 98.89597758],
            [-0.127759232, 0.953932735, 0.271458866, 756.439418306],
            [-0.035633107, -0.277939891, 0.959937341, -241.906990498],
        ],
    ),
    (
        "rotation_10d",
        None,
        [1.0, 0.1, 0.2, 0.3, 2.0, -0.1, 0.2, 3.0, 0.4, 4.0],
        [
            [0.972591517, 0.17395777, -0.154286861, 151.977868459],
            [-0.144372443, 0.971931785, 0.18575576, 772.386588744],
            [0.182269962, -0.158389705, 0.970407318, -144.297210738],
        ],
    ),
    (
        "se3_log_map",
        None,
        [0.3, -0.2, 0.5],
        [
            [0.859533899, -0.497991537, -0.114916954, -190.623069503],
            [0.439867633, 0.835315605, -0.329794338, 761.07721241],
            [0.260226714, 0.232921164, 0.937032437, 84.804726666],
        ],
    ),
    (
        "euler_angles",
        "XYX",
        [0.3, -0.2, 0.5],
        [
            [0.980066578, -0.095247151, -0.17434874, -62.910080152],
            [-0.058710802, 0.699530875, -0.71218649, 573.28132201],
            [0.189796061, 0.70822633, 0.679994794, 554.879128865],
        ],
    ),
]

# nanodrr 0.1.7: make_rt_inv([EULER], [TRANSLATION], orientation, isocenter=(5, -6, 7)), and the detector points (world)
# of the pixels in (row, column) (0, 0) and (30, 150), from make_k_inv(1020, 2, 1.5, 10, -20, 120, 201).
NANODRR_K_INV = [
    [0.00196078431372549, 0, -0.2068627450980392],
    [0, 0.0014705882352941176, -0.06862745098039215],
    [0, 0, 1],
]
NANODRR = {
    "AP": (
        [
            [-0.939926258, -0.055571241, 0.336824089, -268.590862662],
            [-0.319584636, -0.203641393, -0.925416578, 780.306826353],
            [0.120017874, -0.977467145, 0.173648178, -166.837897764],
            [0, 0, 0, 1],
        ],
        [[276.202530548, -82.403143614, 52.769089682], [-8.276052675, -187.442397064, 44.78843041]],
    ),
    "PA": (
        [
            [-0.939926258, -0.055571241, -0.336824089, 304.010088355],
            [-0.319584636, -0.203641393, 0.925416578, -792.901356924],
            [0.120017874, -0.977467145, -0.173648178, 128.364004269],
            [0, 0, 0, 1],
        ],
        [[161.682340345, 232.238493041, -6.271290725], [-122.796242878, 127.199239591, -14.251949994]],
    ),
    None: (
        [
            [-0.939926258, 0.336824089, 0.055571241, -19.716058669],
            [-0.319584636, -0.925416578, 0.203641393, -197.436828944],
            [0.120017874, 0.173648178, 0.977467145, -821.306137227],
            [0, 0, 0, 1],
        ],
        [[211.026053058, 141.475263473, 138.481461155], [-55.794740327, 3.956126679, 182.300991222]],
    ),
}
CORNER_PIXELS = np.array([[0.0, 0.0], [150.0, 30.0]])  # (u, v)
CENTER = np.array([12.0, -34.0, 56.0])

poses = st.builds(
    lambda rotvec, shift: _pose(rotvec, shift),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.floats(-900, 900)] * 3),
)


def _pose(rotvec, shift) -> Pose:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    matrix[:3, 3] = shift
    return Pose(matrix)


def their_pose(orientation) -> torch.Tensor:
    return diffdrr_matrix(EULER, TRANSLATION[orientation], "euler_angles", "ZXY", degrees=True)


@pytest.mark.parametrize(("orientation", "reverse"), DIFFDRR)
@pytest.mark.parametrize("center", [np.zeros(3), CENTER], ids=["not centred", "centred"])
def test_diffdrr_pixels_and_rays(orientation, reverse, center):
    pixels, source, corners = DIFFDRR[orientation, reverse]
    camera, pose = from_diffdrr(
        their_pose(orientation),
        **DETECTOR,
        orientation=orientation,
        reverse_x_axis=reverse,
        volume_center=center,
    )
    np.testing.assert_allclose(project(camera, pose, POINTS + center)[0] + 0.5, pixels, atol=2e-6)
    origin, target = pixel_rays(camera, pose, CORNER_PIXELS)
    np.testing.assert_allclose(origin[0, 0].numpy() - center, source, atol=2e-6)
    np.testing.assert_allclose(target[0].numpy() - center, corners, atol=2e-6)
    assert float(torch.linalg.det(pose.rotation)) == pytest.approx(1.0)


def test_pa_of_diffdrr_is_a_view_from_the_detector():
    views = {
        key: from_diffdrr(their_pose(key[0]), **DETECTOR, orientation=key[0], reverse_x_axis=key[1])[0].view_from
        for key in DIFFDRR
    }
    assert [views["AP", True], views["PA", True], views[None, True]] == ["source", "detector", "source"]
    assert [views["AP", False], views["PA", False], views[None, False]] == ["detector", "source", "detector"]


@pytest.mark.parametrize(("name", "convention", "rotation", "expected"), CONVERTED, ids=[row[0] for row in CONVERTED])
def test_diffdrr_parameterizations(name, convention, rotation, expected):
    matrix = diffdrr_matrix([rotation], [[10.0, 800.0, -20.0]], name, convention)
    np.testing.assert_allclose(matrix[0, :3], expected, atol=1e-6)


def test_diffdrr_defaults_are_square():
    camera, pose = from_diffdrr(torch.eye(4), 1000.0, 64, 2.0)
    assert (camera.height, camera.width) == (64, 64)
    np.testing.assert_allclose(camera.pixel_spacing, [2.0, 2.0])
    np.testing.assert_allclose(camera.principal_point, [31.5, 31.5])
    assert pose.matrix.dtype == torch.float32


@pytest.mark.parametrize(("orientation", "reverse"), DIFFDRR)
def test_diffdrr_round_trip_of_their_numbers(orientation, reverse):
    matrix = torch.stack([their_pose(orientation)] * 2)
    camera, pose = from_diffdrr(
        matrix, **DETECTOR, orientation=orientation, reverse_x_axis=reverse, volume_center=CENTER
    )
    theirs = to_diffdrr(camera, pose, orientation, volume_center=CENTER)
    np.testing.assert_allclose(theirs.matrix, matrix, atol=1e-12)
    assert theirs.reverse_x_axis is reverse
    for name, value in DETECTOR.items():
        assert getattr(theirs, name) == pytest.approx(value), name


@settings(max_examples=50, deadline=None)
@given(
    pose=poses,
    spacing=st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
    centre=st.tuples(st.floats(-50, 150), st.floats(-50, 150)),
    view=st.sampled_from(["source", "detector"]),
    orientation=st.sampled_from(["AP", "PA", None]),
)
def test_round_trip_of_our_numbers(pose, spacing, centre, view, orientation):
    camera = Camera(45, 76, spacing, 1100.0, centre, view)
    theirs = to_diffdrr(camera, pose, orientation, volume_center=CENTER)
    assert float(torch.linalg.det(theirs.matrix)) == pytest.approx(1.0)
    found, found_pose = from_diffdrr(**vars(theirs), volume_center=CENTER)
    np.testing.assert_allclose(found_pose.matrix, pose.matrix, atol=1e-9)
    np.testing.assert_allclose(found.K, camera.K, atol=1e-9)
    k_inv, rt_inv, sdd = to_nanodrr(camera, pose)
    assert k_inv[0, 0] > 0
    again, again_pose = from_nanodrr(k_inv, rt_inv, sdd, 45, 76)
    np.testing.assert_allclose(again_pose.matrix, pose.matrix, atol=1e-9)
    np.testing.assert_allclose(again.K, camera.K, atol=1e-9)


@pytest.mark.parametrize("orientation", NANODRR)
def test_nanodrr_rays(orientation):
    rt_inv, corners = NANODRR[orientation]
    camera, pose = from_nanodrr([NANODRR_K_INV], [rt_inv], torch.tensor([1020.0]).double(), 120, 201)
    origin, target = pixel_rays(camera, pose, CORNER_PIXELS)
    np.testing.assert_allclose(origin[0, 0], np.array(rt_inv)[:3, 3], atol=1e-9)
    np.testing.assert_allclose(target[0], corners, atol=2e-6)
    assert camera.view_from == ("detector" if orientation == "PA" else "source")


@pytest.mark.parametrize("orientation", NANODRR)
def test_to_nanodrr_gives_back_what_their_functions_make(orientation):
    rt_inv = torch.tensor([NANODRR[orientation][0]], dtype=torch.float64)
    k_inv = torch.tensor([NANODRR_K_INV], dtype=torch.float64)
    again = to_nanodrr(*from_nanodrr(k_inv, rt_inv, 1020.0, 120, 201))
    np.testing.assert_allclose(again[0], k_inv, atol=1e-15)
    np.testing.assert_allclose(again[1], rt_inv, atol=1e-12)
    assert float(again[2]) == 1020.0


@pytest.mark.parametrize("orientation", ["AP", "PA"])
def test_both_packages_mean_the_same_view(orientation):
    """Same numbers to both, isocentre at the origin: same rays as DiffDRR with reverse_x_axis=True."""
    rt_inv = np.array(NANODRR[orientation][0])
    rt_inv[:3, 3] -= [5, -6, 7]
    nano = from_nanodrr(NANODRR_K_INV, rt_inv, 1020.0, 120, 201)
    diff = from_diffdrr(their_pose(orientation), **DETECTOR, orientation=orientation)
    np.testing.assert_allclose(nano[0].K, diff[0].K, atol=1e-9)
    np.testing.assert_allclose(nano[1].matrix, diff[1].matrix, atol=1e-6)


def test_errors():
    camera, pose = Camera(10, 10, (1.0, 1.0), 1000.0), Pose.identity()
    with pytest.raises(GeometryError, match="orientation"):
        from_diffdrr(np.eye(4), 1000.0, 10, 1.0, orientation="LAT")
    with pytest.raises(GeometryError, match="spacing must be positive"):
        from_diffdrr(np.eye(4), 1000.0, 10, 0.0)
    with pytest.raises(GeometryError, match="4 x 4"):
        from_diffdrr(np.eye(3), 1000.0, 10, 1.0)
    with pytest.raises(GeometryError, match="parallel beam"):
        to_diffdrr(Camera.parallel_beam(10, 10, (1.0, 1.0), 1000.0), pose)
    with pytest.raises(GeometryError, match="parallel beam"):
        to_nanodrr(Camera.parallel_beam(10, 10, (1.0, 1.0), 1000.0), pose)
    skewed = camera.K.clone()
    skewed[0, 1] = 5.0
    with pytest.raises(GeometryError, match="skew"):
        to_diffdrr(Camera.from_intrinsics(skewed, 10, 10, source_to_detector=1000.0), pose)
    with pytest.raises(GeometryError, match="one by one"):
        to_diffdrr(Camera(10, 10, (1.0, 1.0), torch.tensor([900.0, 1000.0])), pose)
    with pytest.raises(GeometryError, match="k_inv"):
        from_nanodrr(np.zeros((3, 3)), np.eye(4), 1000.0, 10, 10)
    with pytest.raises(GeometryError, match="Unknown parameterization"):
        diffdrr_matrix([0.0, 0, 0], [0.0, 0, 0], "so3")
