"""Calibration in the scene: X-rays of a bead phantom drawn by closed forms, and what becomes of the C-arms."""

from __future__ import annotations

import json

import numpy as np
import pytest

from DiffDRRCore import Camera, XRay
from DiffDRRCore.errors import CalibrationError, ReadError, XRayError
from Testing.scene import bead_images as made
from Testing.scene import kit

slicer = pytest.importorskip("slicer")

from DiffDRRCore.calibration import BeadPhantom, read_calibrated  # noqa: E402
from DiffDRRSlicerLib.scene import calibration, calibration_marks, nodes, undistortion  # noqa: E402
from DiffDRRSlicerLib.scene.calibration import Calibration, CalibrationSettings, phantom_of  # noqa: E402
from DiffDRRSlicerLib.scene.calibration_use import apply_calibration, calibration_of  # noqa: E402
from DiffDRRSlicerLib.scene.carm import CArmNode, points_to_pixels  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.landmarks import xray_landmarks, xray_list_ids  # noqa: E402
from DiffDRRSlicerLib.scene.loading import load_camera_file  # noqa: E402
from DiffDRRSlicerLib.scene.xrays import add_xray, core_xray  # noqa: E402

pytestmark = pytest.mark.usefixtures("once")
once = made.once
POSES = made.poses(3)
LABELS = [str(number) for number in range(1, len(made.PHANTOM) + 1)]


@pytest.fixture(scope="module")
def straight() -> list[XRay]:
    return [made.xray(pose, seed=number) for number, pose in enumerate(POSES[:2])]


@pytest.fixture(scope="module")
def bent() -> list[XRay]:
    return [made.xray(pose, seed=number, k1=made.K1) for number, pose in enumerate(POSES)]


def add(scene, xrays) -> list[CArmNode]:
    """C-arms that stand anywhere, here where C-arms do when a file says nothing."""
    from DiffDRRCore import CArm

    pose = CArm(1000.0, 750.0).pose
    return [add_xray(scene, one.image, one.camera, pose, one.meta, f"shot {k}") for k, one in enumerate(xrays)]


def steps(carms, phantom=made.PHANTOM, labels=LABELS, **settings):
    return calibration.calibrating(carms, phantom, labels, CalibrationSettings.of(**settings))


def calibrated(carms, *phantom, **settings) -> Calibration:
    generator = steps(carms, *phantom, **settings)
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def marks(carm, role) -> dict[str, np.ndarray]:
    """{name: pixel in the image that is shown there} of a list, by MRML's own transforms."""
    markups, volume = carm.referred(role), carm.referred("xray")
    to_pixels, found = np.linalg.inv(kit.to_world(volume)), {}
    for number in range(markups.GetNumberOfControlPoints()):
        world = markups.GetNthControlPointPositionWorld(number)
        found[markups.GetNthControlPointLabel(number)] = kit.apply(to_pixels, world)[:2]
    return found


def pixels_of(carm) -> np.ndarray:
    return np.array(slicer.util.arrayFromVolume(carm.referred("xray"))[0])


def test_the_camera_is_found_and_told_with_its_deviations(scene, straight):
    carms = add(scene, straight)
    before = [(carm.camera.K.tolist(), carm.to_world.tolist(), carm.meta) for carm in carms]
    found = calibrated(carms)
    camera, distortion = found.parts
    deviations = found.content["deviations"]
    assert distortion is None and deviations["source_to_detector"] < 5
    assert abs(float(camera.source_to_detector) - made.SDD) < 4 * deviations["source_to_detector"]
    assert np.abs(camera.principal_point.numpy() - made.POINT).max() < 4 * deviations["principal_point_u"] + 0.5
    assert [(carm.camera.K.tolist(), carm.to_world.tolist(), carm.meta) for carm in carms] == before
    rows = {row[0]: row for row in found.values()}
    assert set(rows) == {"source to detector", "principal point, column", "principal point, row"}
    _, value, deviation, unit = rows["source to detector"]
    assert float(value) == pytest.approx(float(camera.source_to_detector), abs=0.1) and unit == "mm"
    assert deviation.startswith("± ") and float(deviation[2:]) == pytest.approx(
        deviations["source_to_detector"], rel=0.1
    )
    assert Calibration.of(carms[0]).content["view"] == "shot 0" and found.has(carms[1])


def test_beads_lie_on_the_image_and_the_table_is_their_distance(scene, straight):
    carms = add(scene, straight)
    found = calibrated(carms)
    for carm, pose, row in zip(carms, POSES, found.residuals(), strict=False):
        truth = made.pixels(made.CAMERA, pose, made.PHANTOM.positions)
        beads, expected = marks(carm, "beads found"), marks(carm, "beads expected")
        beads.pop("?", None)  # two that overlap
        assert len(beads) == int(row[1]) + int(row[2]) >= 14
        for name, pixel in beads.items():
            assert np.linalg.norm(pixel - truth[int(name) - 1]) < 0.5
        misses = sorted(np.linalg.norm(expected[name] - pixel) for name, pixel in beads.items())
        misses = misses[: int(row[1])]  # what was left out is worst
        assert row[0] == carm.name and int(row[2]) <= 1
        assert float(row[3]) == pytest.approx(np.sqrt(np.mean(np.square(misses))), abs=2e-3)
        assert float(row[4]) == pytest.approx(max(misses), abs=2e-3)
        assert carm.referred("beads found").GetLocked()
    last = found.residuals()[-1]
    assert last[0] == "all" and int(last[1]) == sum(int(row[1]) for row in found.residuals()[:-1])


def test_residuals_are_lines_from_found_towards_expected(scene, straight):
    carm = add(scene, straight)[0]
    calibrated([carm])
    times = calibration_marks.exaggeration(carm)
    model = carm.referred("bead residuals").GetPolyData()
    points = np.array([model.GetPoint(number) for number in range(model.GetNumberOfPoints())])
    ends = points_to_pixels(carm.camera, points).reshape(-1, 2, 2)
    beads, expected = marks(carm, "beads found"), marks(carm, "beads expected")
    assert model.GetNumberOfLines() == len(ends) == len(beads) and times > 1
    starts = np.array(list(beads.values()))
    wanted = np.array([expected[name] for name in beads]) - starts
    np.testing.assert_allclose(ends[:, 0], starts, atol=1e-6)
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], times * wanted, atol=1e-6)
    longest = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1).max()
    assert 0.01 * made.SIZE < longest <= 0.04 * made.SIZE * 1.001


@pytest.mark.parametrize("times, rounded", [(9.99, 5), (10.0, 10), (0.3, 0.2), (49, 20), (1.0, 1)])
def test_exaggerations_are_round(times, rounded):
    assert calibration_marks._round(times) == pytest.approx(rounded)


def test_apply_moves_the_image_and_what_is_marked_on_it(scene, straight):
    carms = add(scene, straight)
    found = calibrated(carms)
    landmarks = xray_landmarks(carms[0])
    landmarks.AddControlPointWorld(*kit.apply(kit.to_world(carms[0].referred("xray")), [50.0, 60.0, 0.0]))
    before = [marks(carms[0], role) for role in ("beads found", "beads expected", "landmarks")]
    pose, image = carms[0].to_world.copy(), pixels_of(carms[0])
    apply_calibration(carms[0], found)
    assert np.array_equal(carms[0].camera.K, found.parts[0].K) and np.allclose(carms[0].to_world, pose)
    after = [marks(carms[0], role) for role in ("beads found", "beads expected", "landmarks")]
    for one, other in zip(before, after, strict=True):
        assert list(one) == list(other)
        np.testing.assert_allclose(list(one.values()), list(other.values()), atol=1e-6)
    assert np.array_equal(pixels_of(carms[0]), image) and carms[0].referred("recorded") is None
    assert np.array_equal(carms[1].camera.K, made.START.K)  # the other one stays
    assert carms[0].meta["camera_source"] == "calibration"


def test_a_distortion_is_found_and_undone_and_the_recorded_image_stays(scene, bent):
    carms = add(scene, bent)
    found = calibrated(carms, distortion="radial")
    distortion = found.parts[1]
    assert found.content["values"]["k1"] == pytest.approx(made.K1, abs=4 * found.content["deviations"]["k1"] + 0.002)
    largest = {row[0]: float(row[1]) for row in found.values()}["distortion, at most"]
    assert largest == pytest.approx(made.K1 * made.SIZE / np.sqrt(2), rel=0.1)  # in a corner, r = 1
    recorded = pixels_of(carms[0])
    beads = marks(carms[0], "beads found")
    apply_calibration(carms[0], found)
    ideal, shown = made.image(POSES[0]), pixels_of(carms[0])
    inner = slice(20, made.SIZE - 20)
    assert np.abs(recorded - ideal)[inner, inner].max() > 0.8  # beads are elsewhere
    assert np.abs(shown - ideal)[inner, inner].max() < 0.35  # of 1.5 at a bead's rim, by the error of k1
    assert np.sqrt(np.mean((shown - ideal)[inner, inner] ** 2)) < 0.15 * np.sqrt(
        np.mean((recorded - ideal)[inner, inner] ** 2)
    )
    moved = marks(carms[0], "beads found")
    truth = made.pixels(made.CAMERA, POSES[0], made.PHANTOM.positions)
    shifts = [np.linalg.norm(moved[name] - beads[name]) for name in beads]
    assert max(shifts) > 1.5
    assert max(np.linalg.norm(moved[name] - truth[int(name) - 1]) for name in moved) < 0.5
    kept = undistortion.recorded_xray(carms[0])
    assert np.array_equal(kept.image, recorded) and "undistorted" not in kept.meta
    assert core_xray(carms[0]).meta["undistorted"] == distortion.to_dict()
    for carm in carms[1:]:
        apply_calibration(carm, found)
    again = calibrated(carms, distortion="radial")  # from the images as recorded
    assert again.content["values"]["k1"] == pytest.approx(found.content["values"]["k1"], abs=1e-3)
    apply_calibration(carms[0], Calibration({**found.content, "distortion": None}))
    assert np.array_equal(pixels_of(carms[0]), recorded) and "undistorted" not in carms[0].meta
    np.testing.assert_allclose(marks(carms[0], "beads found")["1"], beads["1"], atol=0.1)


def test_an_x_ray_of_the_patient_gets_the_camera_of_the_phantoms(scene, bent):
    first, patient = add(scene, [bent[0], bent[1]])
    found = calibrated([first], distortion="radial")
    apply_calibration(patient, found, place=True)
    assert np.array_equal(patient.camera.K, found.parts[0].K) and patient.referred("recorded") is not None
    assert found.has(patient) and calibration_of(patient).pose is None and patient.referred("beads found") is None


def test_c_arms_are_placed_around_the_phantom(scene, straight):
    carms = add(scene, straight)
    found = calibrated(carms)
    for carm, pose in zip(carms, POSES, strict=False):
        apply_calibration(carm, found, place=True)
        moved = made.pixels(carm.camera, carm.pose, made.PHANTOM.positions)
        np.testing.assert_allclose(moved, made.pixels(made.CAMERA, pose, made.PHANTOM.positions), atol=0.3)


def test_a_phantom_of_points_lies_where_they_lie_in_the_world(scene, straight):
    above = kit.add_transform(scene, kit.rigid(np.random.default_rng(0)))
    markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "beads")
    markups.SetAndObserveTransformNodeID(above.GetID())
    for number, (point, radius) in enumerate(zip(made.PHANTOM.positions, made.PHANTOM.radii, strict=True)):
        markups.AddControlPoint(*point.tolist())
        markups.SetNthControlPointLabel(number, f"bead {number}")
        markups.SetNthControlPointDescription(number, f"{float(radius)}" if radius > 2 else "small")
    phantom, labels = phantom_of(markups, 1.6)
    matrix = nodes.transform_to_world(above)
    np.testing.assert_allclose(phantom.positions, kit.apply(matrix, made.PHANTOM.positions), atol=1e-9)
    np.testing.assert_allclose(phantom.radii, made.PHANTOM.radii)
    carm = add(scene, straight)[0]
    found = calibrated([carm], phantom, labels)
    assert set(marks(carm, "beads found")) <= {f"bead {number}" for number in range(16)}
    apply_calibration(carm, found, place=True)
    seen = made.pixels(carm.camera, carm.pose, phantom.positions)
    np.testing.assert_allclose(seen, made.pixels(made.CAMERA, POSES[0], made.PHANTOM.positions), atol=0.3)


def test_a_start_and_what_is_free(scene, straight):
    carm = add(scene, straight)[0]
    settings = CalibrationSettings.of(source_to_detector=1010.0, pixel_size=0.69)
    camera = settings.start(Camera(10, 20, (0.5, 0.6), 900.0, (3.0, 4.0), "detector"))
    assert float(camera.source_to_detector) == 1010 and camera.pixel_spacing.tolist() == pytest.approx([0.69, 0.828])
    assert (camera.principal_point.tolist(), camera.view_from) == ([3.0, 4.0], "detector")
    found = calibrated(
        [carm], source_to_detector=made.SDD, free=("pixel_size", "principal_point"), priors={"pixel_size": 0.1}
    )
    assert float(found.parts[0].source_to_detector) == made.SDD
    assert found.content["values"]["pixel_size"] == pytest.approx(made.SPACING, rel=0.01)


def test_both_of_sdd_and_pixel_size_are_doubtful(scene, straight):
    found = calibrated(add(scene, straight), free=("source_to_detector", "principal_point", "pixel_size"))
    assert any("The images do not determine" in text and "source_to_detector" in text for text in found.warnings)


def test_cancelling_leaves_the_scene_as_it_was(scene, straight):
    carms = add(scene, straight)
    before, generator = kit.node_ids(scene), steps(carms)
    texts = [next(generator) for _ in range(4)]
    assert texts[0].text == "shot 0: looking for beads" and 0 <= texts[0].fraction < texts[-1].fraction < 1
    generator.close()
    assert kit.node_ids(scene) == before and Calibration.of(carms[0]) is None


def test_a_failure_leaves_the_scene_as_it_was(scene, straight):
    carms = add(scene, [straight[0]])
    before = kit.node_ids(scene)
    blank = add_xray(scene, np.ones((made.SIZE, made.SIZE)), made.START, carms[0].pose, straight[0].meta, "empty")
    with pytest.raises(CalibrationError, match="none of the images: Only 0 beads were found"):
        calibrated([blank])
    assert kit.node_ids(scene) >= before and Calibration.of(blank) is None


def test_an_image_without_the_phantom_is_left_out_and_told(scene, straight):
    carms = add(scene, straight[:1])
    blank = add_xray(scene, np.ones((made.SIZE, made.SIZE)), made.START, carms[0].pose, straight[0].meta, "empty")
    found = calibrated([*carms, blank])
    assert [text for text in found.warnings if text.startswith("Image empty is left out. Only 0 beads")]
    assert Calibration.of(blank) is None and blank.referred("beads found") is None and found.has(carms[0])


def test_the_wrong_phantom(scene, straight):
    with pytest.raises(CalibrationError, match="do not fit"):
        calibrated(add(scene, straight[:1]), BeadPhantom.plate(4, 4, 20.0, (1.6, 2.6)), LABELS)


def test_one_image_twice(scene, straight):
    carms = add(scene, [straight[0], straight[0]])
    with pytest.raises(CalibrationError, match="The images shot 0 and shot 1 are the same: leave one out"):
        calibrated(carms)


def test_images_of_two_settings_contradict_each_other(scene, straight):
    other = XRay(straight[1].image, Camera(made.SIZE, made.SIZE, (0.7, 0.7), 1200.0), None, straight[1].meta)
    with pytest.raises(CalibrationError, match="contradict each other"):
        calibrated(add(scene, [straight[0], other]))


def test_bad_input_is_one_sentence(scene, straight, tmp_path):
    carms = add(scene, straight[:1])
    with pytest.raises(SceneError, match="Choose the X-rays"):
        calibrated([])
    with pytest.raises(SceneError, match="Choose the phantom first"):
        phantom_of(None)
    empty = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "none")
    with pytest.raises(CalibrationError, match="six beads or more"):
        phantom_of(empty)
    with pytest.raises(ReadError, match="nowhere"):
        phantom_of(tmp_path / "nowhere.json")
    with pytest.raises(SceneError, match="no setting 'sdd'"):
        CalibrationSettings.of(sdd=1000.0)
    with pytest.raises(SceneError, match="one of radial, tangential, grid"):
        CalibrationSettings.of(distortion="lens")
    with pytest.raises(SceneError, match="'shot 0' is not calibrated"):
        calibration_of(carms[0])
    bare = CArmNode.create(scene, made.START, carms[0].pose)
    with pytest.raises(SceneError, match="has no X-ray"):
        calibrated([bare])
    with pytest.raises(CalibrationError, match="nothing called 'nothing' to calibrate"):
        calibrated(carms, free=("nothing",))


def hand_made(camera=made.CAMERA, k1=made.K1) -> Calibration:
    """A calibration with the least that a file needs."""
    from DiffDRRCore.imaging.camera_file import camera_to_dict
    from DiffDRRCore.imaging.distortion import RadialDistortion

    distortion = RadialDistortion.of_image(camera, (k1, 0.0, 0.0, 0.0)).to_dict() if k1 else None
    return Calibration(
        {"units": "mm", "kind": "calibration", "camera": camera_to_dict(camera), "distortion": distortion}
    )


def test_what_cannot_be_applied_changes_nothing(scene, straight):
    carm = add(scene, straight[:1])[0]
    small = hand_made(Camera(100, 100, (1.0, 1.0), 1000.0))
    with pytest.raises(SceneError, match="for 100 x 100 pixels, but the X-ray of 'shot 0' has 288 x 288"):
        apply_calibration(carm, small)
    carm.meta = {**carm.meta, "undistorted": hand_made().content["distortion"]}  # as XRay.read leaves it
    with pytest.raises(XRayError, match="undone already"):
        apply_calibration(carm, hand_made())
    with pytest.raises(SceneError, match="was undistorted when it was read"):
        calibrated([carm], distortion="radial")
    assert np.array_equal(carm.camera.K, made.START.K) and carm.referred("recorded") is None
    assert Calibration.of(carm) is None


def test_a_segmentation_would_stay_distorted(scene, straight):
    carm = add(scene, straight[:1])[0]
    carm.below("segmentation", "vtkMRMLLabelMapVolumeNode", "mask")
    with pytest.raises(SceneError, match="segmentation, which would stay distorted"):
        apply_calibration(carm, hand_made())
    apply_calibration(carm, hand_made(k1=0))  # nothing to undo
    assert np.array_equal(carm.camera.K, made.CAMERA.K)


def test_the_file_is_a_camera_for_the_scene_and_for_everything_else(scene, bent, tmp_path):
    carm, other = add(scene, bent[:2])
    found = calibrated([carm], distortion="radial")
    path = found.save(tmp_path / "c-arm")
    assert path.name == "c-arm.json" and np.array_equal(read_calibrated(path).camera.K, found.parts[0].K)
    assert "view" not in json.loads(path.read_text())
    load_camera_file(other, path)
    undone = XRay(bent[1].image, found.parts[0], None, bent[1].meta).undistorted(found.parts[1])
    np.testing.assert_allclose(pixels_of(other), undone.image, atol=1e-5)
    assert np.array_equal(other.camera.K, found.parts[0].K) and other.referred("recorded") is not None
    assert Calibration.read(path).residuals() == found.residuals()


def test_points_of_x_rays_are_not_offered_as_points_of_the_ct(scene, straight):
    carm = add(scene, straight[:1])[0]
    calibrated([carm])
    ids = [carm.referred(role).GetID() for role in ("beads found", "beads expected")]
    assert xray_list_ids(scene) == ids


def test_only_the_chosen_c_arm_s_beads_are_shown(scene, straight):
    carms = add(scene, straight)
    calibrated(carms)
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode", "X")
    roles = ("beads found", "beads expected", "bead residuals")

    def visible(carm):
        return {carm.referred(role).GetDisplayNode().GetVisibility() for role in roles}

    calibration_marks.show_only(scene, carms[1], [view])
    assert visible(carms[0]) == {0} and visible(carms[1]) == {1}
    assert list(carms[1].referred("beads found").GetDisplayNode().GetViewNodeIDs()) == [view.GetID()]
    calibration_marks.show_only(scene, None)
    assert visible(carms[1]) == {0}


def test_a_c_arm_that_was_deleted_meanwhile(scene, straight):
    carms = add(scene, straight)
    generator = steps(carms)
    next(generator)
    scene.RemoveNode(carms[0].node)
    with pytest.raises(StopIteration) as end:
        while True:
            next(generator)
    assert end.value.value.has(carms[1])
