"""X-rays from files: what the header says, what is assumed, where the patient is put."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK
import torch

from DiffDRRCore import Camera, CArm, Pose
from DiffDRRCore.errors import GeometryError, MissingGeometryError, ReadError
from DiffDRRCore.imaging.camera_file import write_camera
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.loading import add_carm, load_camera_file, load_xray_file
from DiffDRRSlicerLib.scene.xrays import add_xray, core_xray, prepared_xray, xray_volume
from Testing.core.samples import rigid
from Testing.scene import kit
from Testing.scene.dicom_files import FULL, frames, write_dicom

IMAGE = frames(1)[0]
CAMERA = Camera(6, 8, (0.4, 0.6), 1100.0, (3.0, 2.0), "source")
POSE = Pose(rigid(np.random.default_rng(4)))
PATIENT = "patient position (isocentre at the origin assumed)"


def words(carm):
    return [entry.split(" (")[0] for entry in carm.meta["missing"]]


def save(path, array, spacing=None):
    image = SimpleITK.GetImageFromArray(array)
    if spacing:
        image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))
    return path


def test_a_header_that_says_everything(scene, tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE, PatientOrientation=["R", "F"], **FULL)
    carm = load_xray_file(scene, tmp_path / "a.dcm")
    assert np.array_equal(core_xray(carm).image, IMAGE) and carm.name == "a"
    assert carm.camera.K.tolist()[1] == [0, 4800, 2.5] and float(carm.camera.source_to_detector) == 1200
    arm = carm.arm
    assert np.allclose(arm.isocenter, 0, atol=1e-9) and float(arm.source_to_isocenter) == pytest.approx(800)
    assert float(arm.primary) == pytest.approx(30) and float(arm.secondary) == pytest.approx(-20)
    assert carm.depth == pytest.approx(800)
    assert carm.meta["intensity"] == "transmission" and carm.meta["source"] == "a.dcm"


def test_the_isocentre_goes_where_the_anatomy_is(scene, tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE, **FULL)
    carm = load_xray_file(scene, tmp_path / "a.dcm", isocenter=np.array([10.0, -20.0, 30.0]))
    arm = carm.arm
    assert np.allclose(arm.isocenter, (10, -20, 30)) and float(arm.primary) == pytest.approx(30)
    assert carm.meta["missing"] == [
        "principal point (image centre assumed)",
        "side of the image (seen from the detector assumed)",
        "patient position (isocentre at the centre of the anatomy assumed)",
    ]


MISSING = {
    "DistanceSourceToDetector": "source-to-detector distance (1000 mm assumed)",
    "DistanceSourceToPatient": "source-to-isocentre distance (900 mm assumed)",
    "ImagerPixelSpacing": "pixel spacing (37.5 mm assumed)",
    "PositionerPrimaryAngle": "primary angle (0 degrees assumed)",
    "PositionerSecondaryAngle": "secondary angle (0 degrees assumed)",
}


@pytest.mark.parametrize("keyword", MISSING)
def test_one_value_is_missing(scene, tmp_path, keyword):
    write_dicom(tmp_path / "a.dcm", np.tile(IMAGE, (100, 100)), **{k: v for k, v in FULL.items() if k != keyword})
    carm = load_xray_file(scene, tmp_path / "a.dcm")
    expected = MISSING[keyword].replace("37.5", "0.375")  # 300 mm on 800 columns
    assert carm.meta["missing"][0] == expected and len(carm.meta["missing"]) == 4
    arm, camera = carm.arm, carm.camera
    values = {
        "DistanceSourceToDetector": float(camera.source_to_detector),
        "DistanceSourceToPatient": float(arm.source_to_isocenter),
        "ImagerPixelSpacing": camera.pixel_spacing.tolist(),
        "PositionerPrimaryAngle": float(arm.primary),
        "PositionerSecondaryAngle": float(arm.secondary),
    }
    assumed = {
        "DistanceSourceToDetector": 1000,
        "DistanceSourceToPatient": 900,
        "ImagerPixelSpacing": [0.375, 0.375],
        "PositionerPrimaryAngle": 0,
        "PositionerSecondaryAngle": 0,
    }
    for name, value in values.items():
        truth = assumed[name] if name == keyword else FULL[name]
        assert value == pytest.approx(truth, abs=1e-9), name


def test_a_header_without_any_geometry(scene, tmp_path):
    write_dicom(tmp_path / "a.dcm", np.tile(IMAGE, (100, 100)), "RF")
    carm = load_xray_file(scene, tmp_path / "a.dcm")
    assert words(carm) == [
        "source-to-detector distance",
        "pixel spacing",
        "source-to-isocentre distance",
        "primary angle",
        "secondary angle",
        "principal point",
        "side of the image",
        "patient position",
    ]
    arm = carm.arm
    assert float(arm.source_to_detector) == 1000 and float(arm.source_to_isocenter) == pytest.approx(750)
    assert np.allclose(carm.pose.rotation[:, 2], (0, 1, 0))  # from behind


def test_the_intensifier_tells_the_spacing(scene, tmp_path):
    write_dicom(tmp_path / "a.dcm", np.tile(IMAGE, (100, 100)), "RF", IntensifierSize=240)
    carm = load_xray_file(scene, tmp_path / "a.dcm")
    assert carm.camera.pixel_spacing.tolist() == pytest.approx([0.3, 0.3])
    assert "pixel spacing (0.3 mm assumed)" in carm.meta["missing"]


def test_spacing_in_the_patient_is_enlarged_although_the_distance_is_missing(scene, tmp_path):
    attributes = {"PixelSpacing": [0.3, 0.3], "EstimatedRadiographicMagnificationFactor": 1.5}
    write_dicom(tmp_path / "a.dcm", IMAGE, **attributes)
    carm = load_xray_file(scene, tmp_path / "a.dcm")
    assert carm.camera.pixel_spacing.tolist() == pytest.approx([0.45, 0.45])
    assert "pixel spacing" not in words(carm) and "source-to-detector distance" in words(carm)


def test_real_fluoroscopy(scene, shared_data):
    path = shared_data / "hip_fluoroscopy" / "IM-0001-0020.dcm"
    carm = load_xray_file(scene, path, isocenter=(0.0, 50.0, -100.0))
    camera = carm.camera
    assert (camera.height, camera.width) == (1024, 1024) and float(camera.source_to_detector) == 1000
    assert camera.pixel_spacing.tolist() == pytest.approx([229 / 1024] * 2)
    assert carm.meta["missing"][0] == "pixel spacing (0.2236 mm assumed)"
    assert "source-to-detector distance" not in words(carm)
    assert np.allclose(carm.arm.isocenter, (0, 50, -100))
    stored = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0]
    assert np.array_equal(core_xray(carm).image, stored)
    ready = prepared_xray(carm)
    assert ready.intensity == "attenuation" and float(ready.image.max()) > 1


@pytest.mark.parametrize("frame", [0, 2])
def test_a_frame_of_a_run(scene, tmp_path, frame):
    run = frames(3)
    angles = {"PositionerPrimaryAngleIncrement": [0, 5, 10], "PositionerSecondaryAngleIncrement": [0, 0, 0]}
    write_dicom(tmp_path / "run.dcm", run, **{**FULL, **angles})
    carm = load_xray_file(scene, tmp_path / "run.dcm", frame)
    assert np.array_equal(core_xray(carm).image, run[frame]) and carm.meta["frame"] == frame
    assert float(carm.arm.primary) == pytest.approx(30 + 5 * frame)


def test_the_mean_of_a_run_of_a_moving_carm_has_assumed_angles(scene, tmp_path):
    run = frames(3)
    angles = {"PositionerPrimaryAngleIncrement": [0, 5, 10], "PositionerSecondaryAngleIncrement": [0, 0, 0]}
    write_dicom(tmp_path / "run.dcm", run, **{**FULL, **angles})
    carm = load_xray_file(scene, tmp_path / "run.dcm", "mean")
    assert np.allclose(core_xray(carm).image, run.mean(0))
    assert "primary angle (0 degrees assumed)" in carm.meta["missing"] and float(carm.arm.primary) == pytest.approx(0)


def test_a_given_camera_replaces_the_header(scene, tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE, PositionerPrimaryAngle=15, PositionerSecondaryAngle=0)
    carm = load_xray_file(scene, tmp_path / "a.dcm", camera=CAMERA)
    assert torch.equal(carm.camera.K, CAMERA.K.double()) and float(carm.arm.primary) == pytest.approx(15)
    assert carm.meta["missing"] == ["source-to-isocentre distance (825 mm assumed)", PATIENT]


def test_a_given_camera_file_with_a_pose_places_the_patient(scene, tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE, **FULL)
    write_camera(tmp_path / "c.json", CAMERA, POSE)
    inside = kit.apply(POSE.matrix.numpy(), [5.0, 6.0, 777.0])
    carm = load_xray_file(scene, tmp_path / "a.dcm", camera=tmp_path / "c.json", isocenter=inside)
    assert np.allclose(carm.pose.matrix, POSE.matrix) and carm.meta["missing"] == []
    assert carm.source_to_isocenter == pytest.approx(777.0)


def test_an_image_with_a_camera_beside_it(scene, tmp_path):
    path = save(tmp_path / "a.nrrd", IMAGE)
    write_camera(tmp_path / "a.json", CAMERA, POSE, "attenuation", {"who": "me"})
    carm = load_xray_file(scene, str(path), isocenter=(1e4, 1e4, 1e4))
    assert np.allclose(carm.pose.matrix, POSE.matrix) and carm.meta["missing"] == []
    assert carm.meta["intensity"] == "attenuation" and carm.meta["who"] == "me"


def test_an_image_with_a_camera_but_no_pose(scene, tmp_path):
    save(tmp_path / "a.nrrd", IMAGE)
    write_camera(tmp_path / "a.json", CAMERA, None, "attenuation")
    carm = load_xray_file(scene, tmp_path / "a.nrrd", isocenter=(1.0, 2.0, 3.0))
    assert np.allclose(carm.arm.isocenter, (1, 2, 3))
    assert words(carm) == ["source-to-isocentre distance", "primary angle", "secondary angle", "patient position"]


@pytest.mark.parametrize(
    ("name", "dtype", "spacing", "expected", "bright"),
    [
        ("a.png", np.uint16, None, 0.375, "air is bright"),
        ("a.tif", np.float32, (0.35, 0.35), 0.375, "bone is bright"),  # a TIFF's spacing is its print resolution
        ("a.nrrd", np.float32, (0.5, 0.4), None, "bone is bright"),
        ("a.nii.gz", np.uint8, (1.0, 1.0), 0.375, "air is bright"),
        ("a.mha", np.uint16, (0.0001, 0.0001), 0.375, "air is bright"),
    ],
)
def test_an_image_without_a_camera(scene, tmp_path, name, dtype, spacing, expected, bright):
    pixels = np.tile(IMAGE, (100, 100)).astype(dtype) + (0.5 if dtype == np.float32 else 0)
    carm = load_xray_file(scene, save(tmp_path / name, pixels.astype(dtype), spacing))
    assert np.array_equal(core_xray(carm).image, pixels.astype(dtype))
    assert carm.camera.pixel_spacing.tolist() == pytest.approx([0.4, 0.5] if expected is None else [expected] * 2)
    assert ("pixel spacing" in words(carm)) == (expected is not None)
    assert f"intensity ({bright} assumed)" in carm.meta["missing"]
    assert float(carm.camera.source_to_detector) == 1000 and carm.camera.view_from == "detector"
    assert words(carm)[-1] == "patient position"


def colour(path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((6, 8, 3), np.uint8), isVector=True), str(path))


def text(path):
    path.write_text("not an image")


ERRORS = {
    "there is no file": ("none.png", lambda path: None, {}, ReadError, "There is no file"),
    "a folder": ("folder", lambda path: path.mkdir(), {}, ReadError, "is a folder"),
    "not an image": ("a.png", text, {}, ReadError, "cannot be read"),
    "not DICOM": ("a.dcm", text, {}, ReadError, "is not a DICOM file"),
    "colour": ("a.png", colour, {}, ReadError, "colour image"),
    "a CT slice": ("a.dcm", lambda path: write_dicom(path, IMAGE, "CT", **FULL), {}, SceneError, "modality CT"),
    "no frame chosen": (
        "a.dcm",
        lambda path: write_dicom(path, frames(3)),
        {},
        ReadError,
        "has 3 frames; choose one of 0 to 2",
    ),
    "no such frame": ("a.dcm", lambda path: write_dicom(path, frames(3)), {"frame": 3}, ReadError, "no frame 3"),
    "camera of another size": (
        "a.dcm",
        lambda path: write_dicom(path, IMAGE),
        {"camera": Camera(5, 5, (1, 1), 900.0)},
        ValueError,
        "6 x 8 pixels but its camera",
    ),
    "no camera": ("a.dcm", lambda path: write_dicom(path, IMAGE), {"camera": 7}, ReadError, "camera is a Camera"),
    "metres": (
        "a.dcm",
        lambda path: write_dicom(path, IMAGE, **{**FULL, "DistanceSourceToDetector": 1.2}),
        {},
        ReadError,
        "looks like metres",
    ),
    "isocentre": (
        "a.dcm",
        lambda path: write_dicom(path, IMAGE, **FULL),
        {"isocenter": (1.0, float("nan"), 0.0)},
        SceneError,
        "isocentre is three numbers",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_files_leave_the_scene_as_it_was(scene, tmp_path, case):
    name, write, arguments, error, message = ERRORS[case]
    write(tmp_path / name)
    before = kit.node_ids(scene)
    with pytest.raises(error, match=message):
        load_xray_file(scene, tmp_path / name, **arguments)
    assert kit.node_ids(scene) == before


def test_a_carm_of_a_pose(scene):
    carm = add_carm(scene, CAMERA, POSE, name="plan")
    assert carm.name == "plan" and np.allclose(carm.pose.matrix, POSE.matrix)
    assert carm.referred("xray") is None and carm.source_to_isocenter == pytest.approx(825)


def test_a_carm_of_angles(scene):
    carm = add_carm(scene, CAMERA, CArm(1100.0, 700.0, (1.0, 2.0, 3.0), 20.0, 10.0, 5.0))
    arm = carm.arm
    assert carm.source_to_isocenter == 700 and np.allclose(arm.isocenter, (1, 2, 3))
    assert [float(a) for a in (arm.primary, arm.secondary, arm.roll)] == pytest.approx([20, 10, 5])


def test_a_carm_whose_distances_contradict_each_other(scene):
    before = kit.node_ids(scene)
    with pytest.raises(SceneError, match="is 1000 mm but its camera's 1100 mm"):
        add_carm(scene, CAMERA, CArm(1000.0, 700.0))
    with pytest.raises(GeometryError, match="must be positive"):
        add_carm(scene, CAMERA, POSE, -5.0)
    assert kit.node_ids(scene) == before


def guessed(scene, *more):
    assumed = ("pixel spacing", "primary angle", "patient position", "intensity", *more)
    missing = [f"{word} (x assumed)" for word in assumed]
    return add_xray(scene, IMAGE, Camera(6, 8, (1, 1), 1000.0), Pose(np.eye(4)), {"missing": missing, "kvp": 70})


def test_a_camera_file_for_a_loaded_xray(scene, tmp_path):
    carm = guessed(scene, "source-to-isocentre distance")
    write_camera(tmp_path / "c.json", CAMERA, POSE, "attenuation", {"who": "me"})
    inside = kit.apply(POSE.matrix.numpy(), [50.0, -60.0, 777.0])
    load_camera_file(carm, tmp_path / "c.json", inside)
    assert torch.equal(carm.camera.K, CAMERA.K.double()) and np.allclose(carm.pose.matrix, POSE.matrix)
    assert carm.meta["missing"] == [] and carm.meta["intensity"] == "attenuation"
    assert carm.source_to_isocenter == pytest.approx(777.0) and carm.depth == pytest.approx(777.0)
    assert (carm.meta["who"], carm.meta["kvp"]) == ("me", 70)
    u, v, depth = 3.0, 2.0, carm.depth  # the principal point lies on the central ray
    central = kit.apply(POSE.matrix.numpy(), [0, 0, depth])
    assert np.allclose(kit.apply(kit.to_world(xray_volume(carm)), [u, v, 0]), central, atol=1e-6)


@pytest.mark.parametrize("inside", [None, [0.0, 0.0, -5.0]], ids=["no point", "behind the source"])
def test_a_camera_file_that_cannot_tell_the_isocentre_leaves_it_assumed(scene, tmp_path, inside):
    carm = guessed(scene, "source-to-isocentre distance")
    distance = carm.source_to_isocenter
    write_camera(tmp_path / "c.json", CAMERA, POSE, "attenuation")
    load_camera_file(carm, tmp_path / "c.json", inside if inside is None else kit.apply(POSE.matrix.numpy(), inside))
    assert words(carm) == ["source-to-isocentre distance"] and carm.source_to_isocenter == distance


def test_a_camera_file_leaves_an_isocentre_that_is_known(scene, tmp_path):
    carm = guessed(scene)
    carm.source_to_isocenter = 801.0
    write_camera(tmp_path / "c.json", CAMERA, POSE, "attenuation")
    load_camera_file(carm, tmp_path / "c.json", kit.apply(POSE.matrix.numpy(), [0.0, 0.0, 777.0]))
    assert carm.meta["missing"] == [] and carm.source_to_isocenter == 801.0


def test_a_camera_file_without_a_pose_leaves_the_carm_where_it_is(scene, tmp_path):
    carm = guessed(scene)
    write_camera(tmp_path / "c.json", CAMERA)
    load_camera_file(carm, tmp_path / "c.json")
    assert np.array_equal(carm.pose.matrix, np.eye(4))
    assert words(carm) == ["primary angle", "patient position", "intensity"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", ReadError, "is not JSON"),
        ('{"height": 6, "width": 8}', MissingGeometryError, "lacks pixel_spacing"),
        (
            json.dumps({"height": 7, "width": 8, "pixel_spacing": [1, 1], "source_to_detector": 900}),
            SceneError,
            "7 x 8",
        ),
    ],
)
def test_a_bad_camera_file_changes_nothing(scene, tmp_path, content, error, message):
    carm = guessed(scene)
    before = carm.camera.K, carm.meta
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(error, match=message):
        load_camera_file(carm, tmp_path / "c.json")
    assert torch.equal(carm.camera.K, before[0]) and carm.meta == before[1]


@pytest.mark.parametrize("bent", [False, True])
def test_a_pose_that_cannot_be_set_changes_nothing(scene, tmp_path, bent):
    carm = guessed(scene)
    above = kit.add_bend(scene) if bent else kit.add_transform(scene, np.diag([2.0, 1, 1, 1]))
    carm.node.SetAndObserveTransformNodeID(above.GetID())
    write_camera(tmp_path / "c.json", CAMERA, POSE)
    with pytest.raises(SceneError, match="not linear" if bent else "scaled, sheared or mirrored"):
        load_camera_file(carm, tmp_path / "c.json")
    assert float(carm.camera.source_to_detector) == 1000
