"""One round through the module on a phantom, with numbers that are known beforehand. It runs in Slicer and outside.

`DiffDRRSlicerTest` in Slicer and the tests without Slicer call `run`; a failure is an AssertionError that says what was
found and what should have been.
"""

from __future__ import annotations

import json
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path

import numpy as np

from DiffDRRSlicerLib import install
from DiffDRRSlicerLib import scene as parts

CUBE = 100.0  # mm
WATER = 0.0194  # 1/mm at 70 keV (NIST XCOM), where an X-ray is rendered by default
NAMES = ("L5_center", "L3_center", "L1_center", "rib_12_tip_right", "asis_left", "femoral_head_right")
PHOTONS, SEED = 50_000, 1
ENERGY, ABSORBED = 70.0, 0.655  # keV, and the share of such photons that 0.6 mm of a flat panel's CsI absorbs


def run(scene, report: Callable[[str], object] = print) -> None:
    """Load, render, project, align, register and save in this scene, to which nodes are added; some seconds.

    Args:
        scene: a vtkMRMLScene.
        report: called with a sentence after each step.

    Raises unittest.SkipTest where Python packages are missing, AssertionError where something is wrong.
    """
    missing = install.missing_packages()
    if missing:
        raise unittest.SkipTest(f"Python packages are missing: {', '.join(missing)}.")
    _check_water(scene, report)
    anatomy = add_phantom(scene)
    carm, truth = _check_simulation(scene, anatomy, report)
    _check_drr(carm, anatomy, report)
    markups, points = add_landmarks(scene, anatomy)
    _check_fiducials(carm, markups, points, report)
    _check_frustum(carm, report)
    _check_alignment(carm, truth, markups, points, report)
    outcome = _check_registration(carm, truth, anatomy, points, report)
    _check_files(carm, anatomy, outcome, report)


def run_logic(logic, scene, report: Callable[[str], object] = print) -> None:
    """Through the module's logic: an X-ray is loaded from a file, seen by the CT, and chosen in the panel's parameters.

    Args:
        logic: a DiffDRRSlicerLogic.
        scene: the application's.
        report: called with a sentence at the end.

    Raises unittest.SkipTest and AssertionError as `run` does.
    """
    if install.missing_packages():
        raise unittest.SkipTest("Python packages are missing.")
    import slicer.util

    ct = add_phantom(scene).ct
    simulated = parts.carm.CArmNode(logic.simulateXRay(ct))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "xray.nii.gz"
        parts.xrays.core_xray(simulated).write(path)
        node = logic.loadXRay(path, ct=ct)
    loaded = parts.carm.CArmNode(node)
    images = [slicer.util.arrayFromVolume(one.referred("xray"))[0] for one in (simulated, loaded)]
    _near(np.abs(images[0] - images[1]).max(), 0.0, 1e-6, "difference of the loaded image")
    _near(np.abs(simulated.to_world - loaded.to_world).max(), 0.0, 1e-6, "difference of the loaded pose")
    _near(float((simulated.camera.K - loaded.camera.K).abs().max()), 0.0, 1e-6, "difference of the loaded camera")
    drr = slicer.util.arrayFromVolume(logic.renderDRR(node, ct))[0]
    likeness = np.corrcoef(drr.ravel(), parts.xrays.prepared_xray(loaded).image.numpy().ravel())[0, 1]
    assert likeness > 0.99, f"the DRR of the loaded X-ray is like it by {likeness:.3f} only"
    parameters = logic.getParameterNode()
    parameters.ct, parameters.carm = ct, node
    assert logic.getParameterNode().carm is node, "the parameter node forgot the C-arm"
    report("An X-ray was loaded from a file through the logic")


def add_volume(scene, volume, name: str):
    """A scalar volume node with the voxels and the grid of a DiffDRRCore.Volume."""
    node = parts.nodes.add_node(scene, "vtkMRMLScalarVolumeNode", name)
    parts.nodes.set_image(node, volume.hu.numpy(), volume.ijk_to_ras.numpy())
    return node


def add_phantom(scene, shape=(64, 48, 56), spacing=6.0):
    """An Anatomy of the built-in phantom, turned and moved by a transform node above it."""
    from DiffDRRCore import Pose
    from DiffDRRCore.datasets.phantom import phantom

    volume = phantom(shape=shape, spacing=spacing)
    node = add_volume(scene, volume, "Phantom CT")
    motion = Pose.from_parameters([8.0, -5.0, 12.0], [15.0, -20.0, 10.0], "euler_angles", "ZXY", degrees=True)
    patient = parts.nodes.add_node(scene, "vtkMRMLLinearTransformNode", "Phantom position")
    parts.nodes.set_transform_to_parent(patient, motion.matrix.numpy())
    node.SetAndObserveTransformNodeID(patient.GetID())
    return parts.anatomy.Anatomy(node)


def add_landmarks(scene, anatomy):
    """(fiducial list below the CT's transform, its points in the world [N, 3] mm)."""
    from DiffDRRCore.datasets.phantom import phantom_landmarks

    known = phantom_landmarks()
    markups = parts.nodes.add_node(
        scene, "vtkMRMLMarkupsFiducialNode", "Phantom landmarks", anatomy.ct.GetParentTransformNode()
    )
    for name in NAMES:
        number = markups.AddControlPoint(*known[name].tolist())
        markups.SetNthControlPointLabel(number, name)
    local = np.array([known[name].tolist() for name in NAMES])
    return markups, parts.nodes.transformed(parts.nodes.parent_to_world(anatomy.ct), local)


def _check_water(scene, report) -> None:
    """Beer and Lambert: the central ray of a cube of water is its thickness times water's attenuation."""
    import slicer.util
    import torch

    from DiffDRRCore import CArm, Volume

    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = -CUBE / 2 + 1.0
    size = int(CUBE / 2)
    anatomy = parts.anatomy.Anatomy(add_volume(scene, Volume(torch.zeros(size, size, size), grid), "Water"))
    arm = CArm(1000.0, 700.0, primary=0.0, secondary=0.0)
    carm = parts.loading.add_carm(scene, arm.camera(33, 33, (8.0, 8.0)), arm, name="Water C-arm")
    image = slicer.util.arrayFromVolume(parts.drr.render_drr(carm, anatomy))[0]
    _near(image[16, 16], CUBE * WATER, 0.01 * CUBE * WATER, "attenuation of 100 mm of water")
    _near(image[0, 0], 0.0, 1e-6, "attenuation of a ray that misses")
    # the cube's front side is magnified most: 1000 / (700 - 50) to a half of 77 mm, 9.6 pixels of 8 mm
    inside = np.flatnonzero(image[16] > 0)
    _near(inside[-1] - inside[0] + 1, 19, 0, "width of the cube's shadow in pixels")
    report(f"100 mm of water attenuate by {image[16, 16]:.3f}")


def _check_simulation(scene, anatomy, report):
    from DiffDRRCore import CArm

    arm = CArm(1020.0, 750.0, anatomy.center, primary=10.0, secondary=5.0)
    camera = arm.camera(128, 128, (3.0, 3.0), view_from="detector")
    settings = parts.simulation_settings.Settings(energy=ENERGY, photons=PHOTONS, integrator="siddon")
    scanned = parts.simulation.Scanned(anatomy, settings)
    carm = parts.simulation.simulate_xray(scene, scanned, camera, arm.pose, SEED, source_to_isocenter=750.0)
    reference = parts.nodes.transform_to_world(carm.referred("reference"))
    _near(np.abs(reference - arm.pose.matrix.numpy()).max(), 0.0, 1e-6, "difference of the kept true pose")
    _near(float(carm.arm.primary), 10.0, 1e-4, "primary angle")
    _near(float(carm.arm.secondary), 5.0, 1e-4, "secondary angle")
    report("An X-ray was simulated")
    return carm, arm.pose


def _check_drr(carm, anatomy, report) -> None:
    """The X-ray of one energy is exp(-line integral), and the noise of the photons that the detector absorbs.

    Half a degree away the difference would be 1.3 times the noise.
    """
    import slicer.util

    drr = slicer.util.arrayFromVolume(parts.drr.render_drr(carm, anatomy))[0].astype(float)
    xray = slicer.util.arrayFromVolume(carm.referred("xray"))[0].astype(float)
    assert drr.shape == xray.shape, f"the DRR has {drr.shape} pixels, the X-ray {xray.shape}"
    gain, offset = np.polyfit(drr.ravel(), xray.ravel(), 1)
    _near(gain, 1.0, 0.01, "slope of X-ray over DRR")
    _near(offset, 0.0, 0.02, "X-ray where the DRR is 0")
    noise = 1 / np.sqrt(PHOTONS * ABSORBED * np.exp(-drr))
    ratio = float(np.std((xray - drr) / noise))
    _near(ratio, 1.0, 0.1, "difference of X-ray and DRR, as a multiple of the photon noise")
    report(f"The DRR explains the X-ray: what is left is {ratio:.2f} times the photon noise")


def _check_fiducials(carm, markups, points, report) -> None:
    projected = parts.projections.project_fiducials(carm, markups)
    expected = pixels_of(carm, points)
    found = parts.landmarks.points_in_xray(carm, projected, range(len(points)))
    labels = [projected.GetNthControlPointLabel(number) for number in range(len(points))]
    assert labels == list(NAMES), f"the projected points are called {labels}"
    error = np.linalg.norm(found - expected, axis=1).max()
    _near(error, 0.0, 0.01, "distance of projected fiducials from their pixels")
    report(f"Fiducials are projected within {error:.4f} pixels")


def pixels_of(carm, points) -> np.ndarray:
    """[N, 2] pixels of world points [N, 3], by the pinhole equation alone."""
    camera = parts.nodes.transformed(np.linalg.inv(parts.nodes.transform_to_world(carm.node)), points)
    homogeneous = camera @ np.asarray(carm.camera.K, dtype=float).T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def _check_frustum(carm, report) -> None:
    """The frustum reaches from the source to the detector, 1020 mm away."""
    bounds = np.zeros(6)
    parts.frustum.create_frustum(carm).GetPolyData().GetBounds(bounds)
    _near(bounds[4], 0.0, 20.0, "the frustum's beginning, a mark round the source, mm")
    _near(bounds[5], 1020.0, 1e-2, "the frustum's end at the detector, mm")
    _near(bounds[1] - bounds[0], 128 * 3.0, 0.1, "the detector's width, mm")
    report("The frustum was drawn")


def _check_alignment(carm, truth, markups, points, report) -> None:
    """Landmarks clicked to the nearest pixel bring a C-arm back from 12 degrees and 40 mm."""
    clicked = parts.landmarks.xray_landmarks(carm)
    for name, (u, v) in zip(NAMES, np.rint(pixels_of(carm, points)), strict=True):
        number = clicked.AddControlPoint(*parts.carm.pixels_to_points(carm.camera, [u, v])[0])
        clicked.SetNthControlPointLabel(number, name)
    carm.move_arm(primary=-2.0, secondary=9.0, isocenter=np.add(carm.arm.isocenter.numpy(), (30.0, -10.0, 20.0)))
    assert distance_at(points, carm.pose, truth) > 20, "the C-arm was not moved"
    parts.landmarks.align(carm, markups, clicked)
    rms = parts.landmarks.reprojection_errors(carm, markups, clicked).rms_pixels
    _near(rms, 0.0, 1.0, "reprojection error after the alignment, pixels")
    away = distance_at(points, carm.pose, truth, across=True)
    _near(away, 0.0, 3.0, "distance of landmarks across the beam after the alignment, mm")
    report(f"Aligned to landmarks: {rms:.2f} pixels, {away:.2f} mm across the beam")


def _check_registration(carm, truth, anatomy, points, report):
    """From 5 degrees and 12 mm away to below half a millimetre across the beam."""
    carm.pose = truth
    carm.move_arm(primary=14.0, secondary=2.0, isocenter=np.add(carm.arm.isocenter.numpy(), (8.0, -5.0, 7.0)))
    before = distance_at(points, carm.pose, truth, across=True)
    run = parts.registration.SceneRegistration(anatomy, carm)
    for _ in run.steps():
        pass
    outcome = run.outcome
    assert outcome is not None, "the registration has no outcome"
    after = distance_at(points, carm.pose, truth, across=True)
    assert before > 5, f"the start was only {before:.2f} mm away"
    _near(after, 0.0, 0.5, "distance of landmarks across the beam after the registration, mm")
    in_space = distance_at(points, carm.pose, truth)
    _near(in_space, 0.0, 4.0, "distance of landmarks in space after the registration, mm")
    report(f"Registered: {before:.1f} mm became {after:.2f} mm across the beam, {in_space:.2f} mm in space")
    return outcome


def distance_at(points, pose, truth, across: bool = False) -> float:
    """Largest distance (mm) of world points as two poses see them; `across` leaves out the depth, along the beam."""
    matrices = [np.linalg.inv(one.matrix.detach().numpy().reshape(4, 4)) for one in (pose, truth)]
    difference = np.subtract(*(parts.nodes.transformed(matrix, points) for matrix in matrices))
    return float(np.linalg.norm(difference[:, : 2 if across else 3], axis=1).max())


def _check_files(carm, anatomy, outcome, report) -> None:
    from DiffDRRCore.geometry.itk_transform import read_itk_transform

    with tempfile.TemporaryDirectory() as folder:
        paths = outcome.save(folder)
        assert all(path.stat().st_size > 0 for path in paths), f"empty files among {paths}"
        kinds = {path.suffix for path in paths}
        assert {".h5", ".tfm", ".txt", ".json", ".csv"} <= kinds, f"only files of {sorted(kinds)} were written"
        text = next(path for path in paths if path.suffix == ".json").read_text(encoding="utf-8")
        _near(json.loads(text)["similarity"], outcome.result.similarity, 1e-6, "the saved similarity")
        saved = {path.stem: read_itk_transform(path).numpy() for path in paths if path.suffix == ".tfm"}
    pose = carm.pose.matrix.numpy()
    in_world = next(matrix for name, matrix in saved.items() if name.endswith("_to_world"))
    _near(np.abs(in_world - pose).max(), 0.0, 1e-4, "difference of the saved pose")
    in_ct = next(matrix for name, matrix in saved.items() if name.endswith("_to_ct"))
    again = parts.nodes.parent_to_world(anatomy.ct) @ in_ct
    _near(np.abs(again - pose).max(), 0.0, 1e-4, "difference of the saved pose in the CT's coordinates")
    report(f"Saved {len(paths)} files")


def _near(found: float, expected: float, tolerance: float, what: str) -> None:
    assert abs(found - expected) <= tolerance, f"{what}: {found:.6g}, expected {expected:g} within {tolerance:g}"
