"""X-rays of the scene as DICOM files, which bring camera, pose and pixels back."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import torch

from DiffDRRCore import Camera, CArm, XRay
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, XRayError
from DiffDRRCore.physics.devices import device, orbit
from DiffDRRSlicerLib.scene import simulation
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.loading import load_xray_file
from DiffDRRSlicerLib.scene.simulation import Scanned, simulate_xray
from DiffDRRSlicerLib.scene.simulation_settings import Settings, counts_of, seen_by
from DiffDRRSlicerLib.scene.sweeps import simulate_sweep
from DiffDRRSlicerLib.scene.xray_saving import save_dicom, technique_of
from DiffDRRSlicerLib.scene.xrays import add_xray, core_xray
from Testing.core.samples import rigid
from Testing.scene import kit


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    simulation.forget()


@pytest.fixture
def anatomy(scene):
    ct = phantom(shape=(24, 18, 21), spacing=16.0)
    above = kit.add_transform(scene, rigid(np.random.default_rng(1)))
    return Anatomy(kit.add_volume(scene, ct.hu.numpy(), ct.ijk_to_ras.numpy(), above))


def signal(carm):
    return counts_of(core_xray(carm).image, carm.meta)[0]


def arm_in_patient(carm, ct):
    """The C-arm with respect to the CT's own coordinates."""
    matrix = np.linalg.inv(kit.to_world(ct) @ np.linalg.inv(grid_of(ct))) @ carm.to_world
    return CArm.angles_from(type(carm.pose)(torch.from_numpy(matrix)))


def grid_of(ct):
    parent = ct.GetParentTransformNode()
    ct.SetAndObserveTransformNodeID(None)
    grid = kit.to_world(ct)
    ct.SetAndObserveTransformNodeID(parent.GetID())
    return grid


def test_pixels_camera_and_angles_about_the_patient_come_back(scene, anatomy, tmp_path):
    arm = CArm(1000.0, 700.0, anatomy.center, 25.0, -10.0)
    carm = simulate_xray(scene, anatomy, arm.camera(24, 28, (12.0, 10.0), view_from="detector"), arm.pose)
    path = save_dicom(tmp_path / "a.run", carm, anatomy.ct)
    assert path.name == "a.run.dcm"
    again = load_xray_file(scene, path)
    assert torch.equal(core_xray(again).image, signal(carm))
    assert torch.allclose(again.camera.K, carm.camera.K, rtol=1e-6)
    expected = arm_in_patient(carm, anatomy.ct)
    assert [float(again.arm.primary), float(again.arm.secondary)] == pytest.approx(
        [float(expected.primary), float(expected.secondary)], abs=1e-3
    )
    assert abs(float(expected.primary) - 25.0) > 1 or abs(float(expected.secondary) + 10.0) > 1
    alone = load_xray_file(scene, save_dicom(tmp_path / "world.dcm", carm))
    assert [float(alone.arm.primary), float(alone.arm.secondary)] == pytest.approx([25.0, -10.0], abs=1e-3)


def test_the_header_says_how_it_was_taken(scene, anatomy, tmp_path):
    arm = CArm(1000.0, 700.0, anatomy.center)
    settings = Settings(
        kvp=75.0,
        filtration={"Al": 3.5, "Cu": 0.3},
        focal_spot=0.3,
        scatter=True,
        grid=True,
        collimator=(24.0, 36.0, 10.0, 20.0),
    )
    carm = simulate_xray(scene, Scanned(anatomy, settings), arm.camera(24, 28, (12.0, 10.0)), arm.pose)
    header = pydicom.dcmread(save_dicom(tmp_path / "a.dcm", carm, anatomy.ct))
    assert float(header.KVP) == 75.0 and header.Modality == "XA" and float(header.FocalSpots) == 0.3
    edges = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
    # rows of 12 mm, columns of 10 mm; the first and the last that are open lie between (PS3.3 C.8.7.3)
    assert [int(header[f"Collimator{edge}Edge"].value) for edge in edges] == [2, 22, 1, 27]
    assert technique_of(carm).filters == {"Al": 3.5, "Cu": 0.3} and technique_of(carm).grid is True
    assert header.SyntheticData == "YES" and "DERIVED" in header.ImageType


def test_a_radiography_unit_makes_a_dx_image(scene, anatomy, tmp_path):
    stand = device("radiography-table")
    arm = CArm(1000.0, 700.0, anatomy.center)
    camera, arm = seen_by(stand, arm, "detector", 100)
    carm = simulate_xray(scene, Scanned(anatomy, device=stand), camera, arm.pose)
    header = pydicom.dcmread(save_dicom(tmp_path / "a.dcm", carm))
    assert header.Modality == "DX" and header.ManufacturerModelName.startswith("Digital radiography")
    settings = Settings(noise=False, bits=None)
    clean = simulate_xray(scene, Scanned(anatomy, settings, device=stand), camera, arm.pose)
    with pytest.warns(DiffDRRWarning, match="in steps of"):
        path = save_dicom(tmp_path / "clean.dcm", clean)
    again = load_xray_file(scene, path)
    assert torch.allclose(core_xray(again).image, signal(clean), atol=2e-5 * clean.meta["i0"])


def test_a_round_field_is_in_the_header(scene, anatomy, tmp_path):
    nine = device("mobile-9in")
    camera, arm = seen_by(nine, CArm(1000.0, 700.0, anatomy.center), "detector", 64)
    carm = simulate_xray(scene, Scanned(anatomy, Settings(noise=False, logarithm=False), device=nine), camera, arm.pose)
    header = pydicom.dcmread(save_dicom(tmp_path / "a.dcm", carm))
    assert header.CollimatorShape == "CIRCULAR"
    radius, center = int(header.RadiusOfCircularCollimator), [int(x) - 1 for x in header.CenterOfCircularCollimator]
    v, u = np.indices(header.pixel_array.shape)
    seen, distance = header.pixel_array > 0, np.hypot(v - center[0], u - center[1])
    assert seen[distance < radius - 2].all() and not seen[distance > radius + 2].any() and not seen.all()


@pytest.mark.parametrize("angle, ends", [("primary", (-30.0, 30.0)), ("secondary", (60.0, 120.0))])
def test_a_sweep_is_one_run_with_the_angles_of_each_frame(scene, anatomy, tmp_path, angle, ends):
    arm = CArm(1000.0, 700.0, anatomy.center, 20.0, 5.0)
    camera, arms = arm.camera(24, 28, (12.0, 10.0), view_from="detector"), list(orbit(arm, *ends, 7, angle))
    sweep = simulate_sweep(scene, Scanned(anatomy), camera, arms)
    carm = CArmNode(sweep.carm)
    path = save_dicom(tmp_path / "run.dcm", carm)
    header = pydicom.dcmread(path)
    assert int(header.NumberOfFrames) == 7 and header.PositionerMotion == "DYNAMIC" and header.Modality == "XA"
    changes = {"primary": header.PositionerPrimaryAngleIncrement, "secondary": header.PositionerSecondaryAngleIncrement}
    other = "primary" if angle == "secondary" else "secondary"
    assert [float(one) for one in changes[angle]] == pytest.approx([10.0 * n for n in range(7)], abs=1e-3)
    assert [float(one) for one in changes[other]] == pytest.approx([0.0] * 7, abs=1e-3)
    assert float(header.FrameTime) == pytest.approx(1000 / sweep.browser.GetPlaybackRateFps())
    for number, at in enumerate(arms):
        again = XRay.read(path, frame=number)
        sweep.browser.SetSelectedItemNumber(number)
        assert torch.equal(again.image, signal(carm))
        assert torch.allclose(again.pose.rotation.double(), at.pose.rotation.double(), atol=1e-4)
    shown = pydicom.dcmread(save_dicom(tmp_path / "one.dcm", carm, whole_sweep=False))
    assert "NumberOfFrames" not in shown and np.array_equal(shown.pixel_array, signal(carm).numpy())


def test_a_sweep_by_the_roll_is_no_run(scene, anatomy, tmp_path):
    arm = CArm(1000.0, 700.0, anatomy.center)
    sweep = simulate_sweep(scene, Scanned(anatomy), arm.camera(24, 28, (12.0, 10.0)), orbit(arm, 0.0, 40.0, 3, "roll"))
    with pytest.raises(XRayError, match="one by one"):
        save_dicom(tmp_path / "a.dcm", CArmNode(sweep.carm))
    assert not list(tmp_path.iterdir())


def test_an_xray_of_an_older_scene_is_saved(scene, anatomy, tmp_path):
    arm = CArm(1000.0, 700.0, anatomy.center)
    carm = simulate_xray(scene, anatomy, arm.camera(24, 28, (12.0, 10.0)), arm.pose)
    old = {"kvp": 75.0, "aluminium": 3.5, "copper": 0.3, "kerma": 2.0, "detector_blur": True, "focal_spot": 0.6}
    carm.meta = {**carm.meta, "settings": old}
    header = pydicom.dcmread(save_dicom(tmp_path / "a.dcm", carm))
    assert float(header.KVP) == 75.0 and [float(mm) for mm in header.FilterThicknessMaximum] == [3.5, 0.3]


def test_an_xray_from_elsewhere_is_saved_too(scene, tmp_path):
    camera = Camera(6, 8, (2.0, 2.0), 1000.0, None, "detector")
    image = torch.arange(48.0).reshape(6, 8)
    carm = add_xray(scene, image, camera, CArm(1000.0, 700.0).pose, {"intensity": "transmission"})
    assert technique_of(carm) is None
    again = load_xray_file(scene, save_dicom(tmp_path / "a.dcm", carm))
    assert torch.equal(core_xray(again).image, image)


def test_what_cannot_be_saved_is_one_sentence(scene, anatomy, tmp_path):
    arm = CArm(1000.0, 700.0, anatomy.center)
    empty = CArmNode.create(scene, arm.camera(24, 28, (12.0, 10.0)), arm.pose)
    with pytest.raises(SceneError, match="has no X-ray"):
        save_dicom(tmp_path / "a.dcm", empty)
    carm = simulate_xray(scene, anatomy, arm.camera(24, 28, (12.0, 10.0)), arm.pose)
    with pytest.raises(DiffDRRError):
        save_dicom(_file(tmp_path) / "a.dcm", carm, anatomy.ct)
    anatomy.ct.SetAndObserveTransformNodeID(kit.add_transform(scene, np.diag([1.2, 1, 1, 1.0])).GetID())
    with pytest.raises(SceneError, match="scaled, sheared or mirrored"):
        save_dicom(tmp_path / "a.dcm", carm, anatomy.ct)
    assert not list(tmp_path.glob("*.dcm"))


def _file(folder):
    path = folder / "file"
    path.write_text("")
    return path
