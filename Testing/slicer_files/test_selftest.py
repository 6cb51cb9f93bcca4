"""The test that runs in Slicer, run here on real MRML; and that it fails where something is wrong."""

from __future__ import annotations

import unittest

import pytest
import slicer

from DiffDRRSlicerLib import install, selftest
from DiffDRRSlicerLib import scene as parts


@pytest.fixture
def scene():
    made = slicer.vtkMRMLScene()
    yield made
    parts.anatomy.forget()
    made.Clear(True)


@pytest.fixture
def simulated(scene):
    """(C-arm, anatomy, landmark list, its world points) as the self-test makes them."""
    anatomy = selftest.add_phantom(scene, shape=(32, 24, 28), spacing=12.0)
    carm, _ = selftest._check_simulation(scene, anatomy, str)
    return carm, anatomy, *selftest.add_landmarks(scene, anatomy)


def test_all_of_it(scene):
    sentences = []
    selftest.run(scene, sentences.append)
    assert len(sentences) == 8
    assert sentences[-1].startswith("Saved")


def test_twice_in_one_scene(scene):
    """Reload and Test, twice, without clearing the scene."""
    for _ in range(2):
        selftest.run(scene, str)


def test_without_packages_it_is_skipped(scene, monkeypatch):
    monkeypatch.setattr(install, "missing_packages", lambda: ["torch", "roma"])
    with pytest.raises(unittest.SkipTest, match="torch, roma"):
        selftest.run(scene)
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


def test_a_wrong_attenuation_is_found(scene, monkeypatch):
    right = selftest.add_volume

    def denser(scene, volume, name):
        volume.hu.add_(50.0)
        return right(scene, volume, name)

    monkeypatch.setattr(selftest, "add_volume", denser)
    with pytest.raises(AssertionError, match="100 mm of water"):
        selftest._check_water(scene, str)


def test_a_drr_from_elsewhere_is_found(simulated):
    carm, anatomy, *_ = simulated
    selftest._check_drr(carm, anatomy, str)
    carm.move_arm(primary=10.5)
    with pytest.raises(AssertionError, match="multiple of the photon noise"):
        selftest._check_drr(carm, anatomy, str)


def test_fiducials_elsewhere_are_found(simulated, monkeypatch):
    carm, _, markups, points = simulated
    selftest._check_fiducials(carm, markups, points, str)
    markups.SetAndObserveTransformNodeID(None)  # as if the CT's transform were forgotten
    with pytest.raises(AssertionError, match="distance of projected fiducials"):
        selftest._check_fiducials(carm, markups, points, str)


def test_a_registration_that_goes_nowhere_is_found(simulated, monkeypatch):
    carm, anatomy, _, points = simulated
    monkeypatch.setattr(parts.placement.Placement, "move", lambda self, motions, carms: None)
    with pytest.raises(AssertionError, match="landmarks across the beam after the registration"):
        selftest._check_registration(carm, carm.pose, anatomy, points, str)
