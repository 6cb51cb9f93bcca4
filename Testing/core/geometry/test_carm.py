"""C-arms against DICOM's definition of the positioner angles, by numbers worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore import CArm, project
from DiffDRRCore.errors import GeometryError, MissingGeometryError
from Testing.core.samples import differences, jacobian

RIGHT, LEFT = np.array([1.0, 0, 0]), np.array([-1.0, 0, 0])
ANTERIOR, SUPERIOR = np.array([0, 1.0, 0]), np.array([0, 0, 1.0])


def beam(carm: CArm) -> np.ndarray:
    """Unit vector from source to detector."""
    return carm.pose.rotation[:, 2].numpy()


def test_zero_position():
    carm = CArm(1200, 800)
    assert np.allclose(carm.pose.translation, [0, -800, 0])
    assert np.allclose(carm.pose.rotation.T, [RIGHT, -SUPERIOR, ANTERIOR])
    assert np.allclose(CArm(1200, 800, isocenter=(10, 20, 30)).pose.translation, [10, -780, 30])


@pytest.mark.parametrize("view_from, right_is_left_of_centre", [("detector", True), ("source", False)])
def test_display(view_from, right_is_left_of_centre):
    """Seen from the detector (radiological display) the patient's right is on the left; superior is on top in both."""
    carm = CArm(1200, 800)
    camera = carm.camera(101, 101, (1, 1), view_from)
    (u, v), (u_up, v_up) = project(camera, carm.pose, [20 * RIGHT, 20 * SUPERIOR])[0].tolist()
    assert u == pytest.approx(50 - 30 if right_is_left_of_centre else 50 + 30)  # magnification 1200 / 800
    assert v == pytest.approx(50)
    assert (u_up, v_up) == pytest.approx((50, 20))


def test_positive_primary_is_LAO_and_positive_secondary_is_CRA():
    """LAO: the detector is on the patient's left and anterior; CRA: it is towards the head."""
    assert np.allclose(beam(CArm(1200, 800, primary=30)), 0.5 * LEFT + np.sqrt(0.75) * ANTERIOR)
    assert np.allclose(beam(CArm(1200, 800, primary=90)), LEFT)
    assert np.allclose(
        beam(CArm(1200, 800, secondary=20)),
        np.cos(np.radians(20)) * ANTERIOR + np.sin(np.radians(20)) * SUPERIOR,
    )
    p, s = np.radians(-35), np.radians(25)
    expected = np.cos(s) * (np.sin(p) * LEFT + np.cos(p) * ANTERIOR) + np.sin(s) * SUPERIOR
    assert np.allclose(beam(CArm(1200, 800, primary=-35, secondary=25)), expected)


@given(angles=st.tuples(*[st.floats(-180, 180)] * 3), isocenter=st.tuples(*[st.floats(-300, 300)] * 3))
@settings(max_examples=30, deadline=None)
def test_the_central_ray_passes_the_isocentre_at_its_distance(angles, isocenter):
    carm = CArm(1200, 800, isocenter, *angles)
    assert np.allclose(carm.pose.inverse().transform([isocenter]), [[0, 0, 800]], atol=1e-9)
    assert np.isclose(np.linalg.det(carm.pose.rotation), 1)


def test_the_primary_angle_turns_about_the_long_axis_and_keeps_rows_along_it():
    for primary in (-70, 10, 120):
        assert np.allclose(CArm(1200, 800, primary=primary).pose.rotation[:, 1], -SUPERIOR)


def test_roll_turns_right_handed_about_the_beam():
    """+90: the camera's x axis goes to where its y axis was, the beam stays."""
    for angles in ({}, {"primary": 40, "secondary": -15}):
        plain, rolled = CArm(1200, 800, **angles).pose.rotation, CArm(1200, 800, roll=90, **angles).pose.rotation
        assert np.allclose(rolled[:, 0], plain[:, 1])
        assert np.allclose(rolled[:, 1], -plain[:, 0])
        assert np.allclose(rolled[:, 2], plain[:, 2])


@given(primary=st.floats(-179.9, 179.9), secondary=st.floats(-89.9, 89.9), roll=st.floats(-179.9, 179.9))
@settings(max_examples=50, deadline=None)
def test_angles_from_inverts(primary, secondary, roll):
    found = CArm.angles_from(CArm(1200, 800, (1, 2, 3), primary, secondary, roll).pose)
    assert np.allclose(torch.stack(found), [primary, secondary, roll], atol=1e-9)


@given(primary=st.floats(-179, 179), pole=st.sampled_from([90.0, -90.0]), roll=st.floats(-179, 179))
@settings(max_examples=30, deadline=None)
def test_angles_from_at_the_poles_gives_the_same_pose_with_no_roll(primary, pole, roll):
    pose = CArm(1200, 800, (1, 2, 3), primary, pole, roll).pose
    found = CArm.angles_from(pose)
    assert abs(float(found.roll)) < 1e-9
    assert float(found.secondary) == pytest.approx(pole)
    assert np.allclose(CArm(1200, 800, (1, 2, 3), *found).pose.matrix, pose.matrix, atol=1e-9)


@given(primary=st.floats(-180, 180), secondary=st.floats(-180, 180), roll=st.floats(-180, 180))
@settings(max_examples=50, deadline=None)
def test_angles_from_always_gives_the_pose_back(primary, secondary, roll):
    pose = CArm(1200, 800, (1, 2, 3), primary, secondary, roll).pose
    found = CArm.angles_from(pose)
    assert abs(float(found.secondary)) <= 90
    assert np.allclose(CArm(1200, 800, (1, 2, 3), *found).pose.matrix, pose.matrix, atol=1e-9)


def test_angles_from_a_batch_and_its_gradients():
    carm = CArm(1200, 800, (1, 2, 3), torch.tensor([10.0, 20.0]), torch.tensor([-30.0, 90.0]), 5.0)
    found = CArm.angles_from(carm.pose)
    assert found.primary.shape == (2,)
    assert float(found.primary[0]) == pytest.approx(10, abs=1e-4)
    for pose in carm.pose:
        turn = lambda xi, pose=pose: torch.stack(CArm.angles_from(pose.retract(xi)))  # noqa: E731
        at = torch.zeros(6, dtype=torch.float64)
        assert torch.isfinite(jacobian(turn, at)).all()
    pose = carm.pose[0].to(torch.float64)
    turn = lambda xi: torch.stack(CArm.angles_from(pose.retract(xi)))  # noqa: E731
    assert torch.allclose(jacobian(turn, at), differences(turn, at), rtol=1e-6, atol=1e-4)


def test_gradients_reach_all_numbers():
    """Angles (the identity of R0 included), isocentre, SOD, SID and detector offset."""
    for angles in ([0.0, 0.0, 0.0], [30.0, -20.0, 10.0], [15.0, 90.0, 0.0]):

        def pixels(numbers):
            carm = CArm(numbers[0], numbers[1], numbers[2:5], *numbers[5:8], numbers[8:10])
            return project(carm.camera(50, 60, (1, 2), "detector"), carm.pose, [[10.0, 20.0, -30.0], [0.0, 0.0, 5.0]])

        at = torch.tensor([1200.0, 800.0, 1.0, 2.0, 3.0, *angles, 4.0, 5.0], dtype=torch.float64)
        assert torch.allclose(jacobian(pixels, at), differences(pixels, at, 1e-5), rtol=1e-6, atol=1e-6)


def test_batches_broadcast():
    carm = CArm(1200, torch.tensor([700.0, 800.0]), primary=torch.tensor([0.0, 30.0]))
    for index, (sod, primary) in enumerate([(700, 0), (800, 30)]):
        assert np.allclose(carm.pose[index].matrix, CArm(1200, sod, primary=primary).pose.matrix, atol=1e-4)


@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_the_detector_offset_moves_the_detector_along_the_camera_axes(view_from):
    """The detector's centre, 30 mm to the right of the source's view and 12 mm down, is the image's middle pixel."""
    carm = CArm(1200, 800, primary=25, secondary=10, detector_offset=(30, 12))
    camera = carm.camera(100, 80, (3, 2), view_from)
    centre = carm.pose.transform([[30.0, 12.0, 1200.0]])
    assert np.allclose(project(camera, carm.pose, centre), [[[39.5, 49.5]]])
    assert np.allclose(camera.pixel_spacing, [3, 2])
    normal = carm.pose.transform([[0.0, 0.0, 1200.0]])
    side = 1 if view_from == "source" else -1
    assert np.allclose(project(camera, carm.pose, normal), [[[39.5 - side * 30 / 2, 49.5 - 12 / 3]]])


def header(**changes) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.DistanceSourceToDetector = "1100.5"
    dataset.DistanceSourceToPatient = "750"
    dataset.PositionerPrimaryAngle = "-30.5"
    dataset.PositionerSecondaryAngle = "15"
    for name, value in changes.items():
        setattr(dataset, name, value)
    return dataset


def test_from_dicom():
    carm = CArm.from_dicom(header(), isocenter=(1, 2, 3))
    assert np.allclose(carm.pose.matrix, CArm(1100.5, 750, (1, 2, 3), -30.5, 15).pose.matrix)
    assert float(carm.source_to_detector) == 1100.5


@pytest.mark.parametrize("empty", [True, False])
def test_from_dicom_names_what_is_missing(empty):
    tags = ("DistanceSourceToDetector", "DistanceSourceToPatient", "PositionerPrimaryAngle", "PositionerSecondaryAngle")
    for missing in itertools.chain.from_iterable(itertools.combinations(tags, n) for n in (1, 2, 4)):
        dataset = header()
        for name in missing:
            if empty:
                setattr(dataset, name, None)
            else:
                delattr(dataset, name)
        with pytest.raises(MissingGeometryError) as caught:
            CArm.from_dicom(dataset)
        assert caught.value.missing == missing
        assert all(name in str(caught.value) for name in missing)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"source_to_detector": 0}, "source_to_detector must be positive"),
        ({"source_to_isocenter": -800}, "source_to_isocenter must be positive"),
        ({"source_to_isocenter": float("nan")}, "source_to_isocenter must be positive"),
        ({"isocenter": (0, 0)}, "isocenter has 3 numbers"),
        ({"detector_offset": (0, 0, 0)}, "detector_offset has 2 numbers"),
        ({"primary": float("nan")}, "primary must be finite"),
    ],
)
def test_bad_numbers_are_refused(arguments, sentence):
    with pytest.raises(GeometryError, match=sentence):
        CArm(**{"source_to_detector": 1200, "source_to_isocenter": 800, **arguments})
