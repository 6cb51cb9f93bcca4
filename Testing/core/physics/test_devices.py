"""Devices as data, by numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from DiffDRRCore import CArm, project
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics import devices
from DiffDRRCore.physics.devices import Device, device, device_names, orbit, sweep
from DiffDRRCore.physics.elements import TABLES


@pytest.mark.parametrize("key", device_names())
def test_every_device_is_complete_and_names_its_sources(key):
    one = device(key)
    assert one.modality == ("DX" if one.kind == "radiography" else "XA")
    assert one.generic == (one.maker == "generic")
    assert "geometry" in one.sources and (one.primary is None) == ("limits" not in one.sources)
    assert bool(one.focal_spots) == bool(one.kvp) == bool(one.filtration) == ("tube" in one.sources)
    if one.generic:
        assert any("no particular device" in text for text in one.sources.values())
    assert one.violations(one.carm()) == []
    side = max(one.height * one.pixel_spacing[0], one.width * one.pixel_spacing[1])
    assert 170 < side < 430  # mm: detectors of 20 to 43 cm
    assert one.field_diameter is None or math.isclose(one.field_diameter, side, rel_tol=0.01)
    assert 1.1 < one.source_to_detector / one.source_to_isocenter < 2


def test_the_cios_has_deepdrr_s_numbers():
    """f = SDD / pixel = 5257.73, a field of 298 mm, and a magnification of 1020 / 530 at the isocentre."""
    one = device("cios")
    camera = one.camera()
    assert (camera.height, camera.width) == (1536, 1536)
    assert float(camera.K[0, 0]) == pytest.approx(5257.73, abs=0.005)
    assert float(camera.pixel_spacing[0]) * camera.height == pytest.approx(298, abs=0.05)
    arm = one.carm((1.0, 2.0, 3.0))
    assert arm.pose.translation.tolist() == pytest.approx([1, 2 - 530, 3])
    u, v = project(camera, arm.pose, torch.tensor([[11.0, 2.0, 3.0]], dtype=torch.float64))[0, 0].tolist()
    assert (u, v) == pytest.approx((767.5 + 10 * 1020 / 530 / 0.194, 767.5))


def test_binning_keeps_the_detector():
    camera = device("angiography-frontal").camera(binning=4, view_from="detector", source_to_detector=1000.0)
    assert (camera.height, camera.width, camera.view_from) == (480, 620, "detector")
    assert camera.pixel_spacing.tolist() == pytest.approx([0.616, 0.616])
    assert float(camera.source_to_detector) == 1000
    assert device("cios").camera(binning=1000).height == 1  # one whole pixel, the rest is cut off
    for binning in (0, 1.5, 2000):
        with pytest.raises(PhysicsError, match="Binning"):
            device("cios").camera(binning)


def test_the_round_field_of_an_intensifier():
    """229 mm across 1024 pixels of 0.224 mm: the corners are dark, and pi / 4 of the square is open."""
    one = device("mobile-9in")
    field = one.collimator().field(256, 256, (0.896, 0.896))
    assert field[0, 0] == 0 and field[128, 128] == 1
    assert float(field.mean()) == pytest.approx(math.pi / 4 * (229 / 229.376) ** 2, rel=2e-3)
    assert device("cios").collimator() is None


def test_limits_are_enforced_or_reported():
    one = device("cios")
    assert float(one.carm(primary=-110, secondary=225).primary) == -110
    with pytest.raises(PhysicsError, match=r"Cios.*a primary of 41 degrees is out of reach, it must be -110 to 40"):
        one.carm(primary=41)
    arm = one.carm(primary=41, secondary=-230, source_to_detector=1100, check=False)
    assert [text.split(" of ")[0] for text in one.violations(arm)] == [
        "a primary",
        "a secondary",
        "a source-to-detector distance",
    ]
    assert "must be 1020 mm" in one.violations(arm)[2]
    with pytest.raises(PhysicsError, match="source-to-isocentre"):
        one.check(CArm(1020, 600))
    with pytest.raises(PhysicsError, match="tube voltage of 130 kVp"):
        device("mobile-9in").check(device("mobile-9in").carm(), kvp=130)
    assert one.violations(one.carm(), kvp=130) == []  # not known, so not judged


def test_limits_hold_for_every_arm_of_a_batch():
    arm = CArm(1020.0, 530.0, primary=torch.tensor([0.0, 40.0, 50.0]))
    assert device("cios").violations(arm)[0].startswith("a primary of 50 degrees")


def test_the_distance_can_be_changed_where_the_device_can():
    one = device("angiography-frontal")
    assert float(one.carm(source_to_detector=900).source_to_detector) == 900
    with pytest.raises(PhysicsError, match="899 mm is out of reach, it must be 900 to 1200 mm"):
        one.carm(source_to_detector=899)


def test_a_lateral_plane_stands_at_90_degrees():
    """The beam of a lateral plane runs to the patient's left."""
    rotation = device("angiography-lateral").carm().pose.rotation
    assert rotation[:, 2].tolist() == pytest.approx([-1, 0, 0], abs=1e-12)


def test_an_orbit_goes_about_the_isocentre_in_even_steps():
    one, center = device("cios"), (10.0, -20.0, 30.0)
    arms = list(orbit(one.carm(center, secondary=5.0), -100, 40, 8, device=one))
    assert [float(arm.primary) for arm in arms] == pytest.approx([-100, -80, -60, -40, -20, 0, 20, 40])
    for arm in arms:
        assert float(arm.secondary) == 5
        source = arm.pose.translation
        assert float((source - torch.tensor(center)).norm()) == pytest.approx(530)
        theta, phi = math.radians(float(arm.primary)), math.radians(5)
        beam = [-math.sin(theta) * math.cos(phi), math.cos(theta) * math.cos(phi), math.sin(phi)]
        assert ((torch.tensor(center) - source) / 530).tolist() == pytest.approx(beam, abs=1e-6)


def test_other_angles_and_a_single_position():
    arm = CArm(1000, 700)
    assert [float(one.secondary) for one in orbit(arm, -10, 10, 3, "secondary")] == [-10, 0, 10]
    assert [float(one.roll) for one in orbit(arm, 0, 90, 2, "roll")] == [0, 90]
    assert [float(one.primary) for one in orbit(arm, 7, 9, 1)] == [7]


def test_a_sweep_moves_everything():
    first, last = CArm(1000, 700, (0, 0, 0), 0, 0), CArm(1200, 800, (0, 0, 100), 30, 10, 4, (8, 0))
    middle = list(sweep(first, last, 3))[1]
    assert (float(middle.source_to_detector), float(middle.source_to_isocenter)) == (1100, 750)
    assert middle.isocenter.tolist() == [0, 0, 50]
    assert (float(middle.primary), float(middle.secondary), float(middle.roll)) == (15, 5, 2)
    assert middle.detector_offset.tolist() == [4, 0]


def test_bad_sweeps_are_refused_before_they_begin():
    one = device("cios")
    with pytest.raises(PhysicsError, match="primary of 41"):
        orbit(one.carm(), 0, 41, 42, device=one)
    for count in (0, -1, 2.5):
        with pytest.raises(PhysicsError, match="whole number of positions"):
            orbit(one.carm(), 0, 10, count)
    with pytest.raises(PhysicsError, match="not 'propeller'"):
        orbit(one.carm(), 0, 10, 3, "propeller")


def test_what_cannot_be_a_device_is_refused():
    with pytest.raises(PhysicsError, match="no device 'cioss'; there are: cios, "):
        device("cioss")
    content = json.loads((TABLES / "devices.json").read_text())["cios"]
    with pytest.raises(PhysicsError, match="isocentre"):
        devices._device("x", {**content, "source_to_isocenter": 1100.0})
    with pytest.raises(PhysicsError, match="limits of primary"):
        Device("x", "X", "me", "angiography", False, 1000, 700, 8, 8, (1, 1), primary=(10, -10))
