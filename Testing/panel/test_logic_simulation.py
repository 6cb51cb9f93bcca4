"""The logic's simulations: nodes in, nodes out."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import slicer.util

from DiffDRRCore.errors import DiffDRRError
from Testing.panel.kit import add_phantom, node_count
from Testing.panel.test_panel_simulate import add_bead

UNROUNDED = {"noise": False, "bits": None, "logarithm": False}


@pytest.fixture
def logic(slicer_app):
    return slicer_app.make_widget().logic


@pytest.fixture
def patient(slicer_app):
    return add_phantom(slicer_app.scene, shape=(24, 18, 21), spacing=16.0, labels=True)


def pixels(node):
    from DiffDRRSlicerLib.scene.carm import CArmNode

    return np.array(slicer.util.arrayFromVolume(CArmNode(node).referred("xray"))[0])


def test_an_xray_without_a_carm_is_from_behind(logic, patient, slicer_app):
    before = node_count(slicer_app.scene)
    node = logic.simulateXRay(*patient)
    assert pixels(node).shape == (256, 256)
    more = node_count(slicer_app.scene) - before
    assert more["vtkMRMLLinearTransformNode"] == 3  # C-arm, its plane, the true pose: nothing is left of the other


def test_everything_can_be_said(logic, patient, slicer_app):
    ct, labels = patient
    carm = logic.createCArm(ct, 64, 64, (6, 6))
    bead = add_bead(slicer_app.scene, (0, 0, 0))
    options = {
        "materials": {"3": "PMMA"},
        "implants": {bead: "tungsten"},
        "masks": True,
        "kvp": 70,
        **UNROUNDED,
    }
    node = logic.simulateXRay(ct, labels, carm, **options)
    plain = logic.simulateXRay(ct, labels, carm, kvp=70, **UNROUNDED)
    from DiffDRRSlicerLib.scene.carm import CArmNode

    made = CArmNode(node)
    assert made.meta["settings"]["kvp"] == 70 and made.referred("segmentation") is not None
    assert (pixels(node) > 1.05 * pixels(plain)).any() and (pixels(node) < 0.1 * pixels(plain)).any()


def test_a_sweep_and_its_first_frame(logic, patient):
    ct, labels = patient
    carm = logic.createCArm(ct, 64, 64, (6, 6))
    sweep = logic.simulateSweep(ct, 0, 30, 3, labels, carm, seed=5)
    assert sweep.images.GetNumberOfDataNodes() == 3
    assert np.array_equal(pixels(sweep.carm), pixels(logic.simulateXRay(ct, labels, carm, seed=5)))


def test_a_sweep_is_saved_as_one_run(logic, patient, tmp_path):
    ct, labels = patient
    carm = logic.createCArm(ct, 64, 64, (6, 6))
    sweep = logic.simulateSweep(ct, 0, 30, 3, labels, carm)
    whole, shown = (pydicom.dcmread(logic.saveDICOM(tmp_path / "a.dcm", sweep.carm, ct, one)) for one in (True, False))
    assert whole.NumberOfFrames == 3 and "NumberOfFrames" not in shown
    assert np.array_equal(whole.pixel_array[0], shown.pixel_array)


def test_a_device_by_name_and_a_dicom_file(logic, patient, tmp_path):
    node = logic.simulateXRay(*patient, device="cardiac-frontal", size=128)
    assert max(pixels(node).shape) == 128
    file = logic.saveDICOM(tmp_path / "a.dcm", node, patient[0])
    assert pydicom.dcmread(file).ManufacturerModelName.startswith("Fixed cardiac")


@pytest.mark.parametrize(
    "options, text",
    [({"volts": 3}, "there is no 'volts'"), ({"device": "xyz"}, "no device 'xyz'"), ({"kvp": 0.1}, "40 to 150")],
)
def test_bad_input_leaves_nothing_behind(logic, patient, slicer_app, options, text):
    before = node_count(slicer_app.scene)
    with pytest.raises(DiffDRRError, match=text):
        logic.simulateXRay(*patient, **options)
    assert node_count(slicer_app.scene) == before
