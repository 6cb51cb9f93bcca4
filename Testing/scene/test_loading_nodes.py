"""X-rays from volumes, sequences and their proxies, with and without the DICOM files that they came from."""

from __future__ import annotations

import numpy as np
import pytest

from DiffDRRCore import Camera, Pose
from DiffDRRCore.errors import ReadError, XRayError
from DiffDRRCore.imaging.camera_file import write_camera
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.loading import load_xray_volume
from DiffDRRSlicerLib.scene.loading_nodes import frame_count
from DiffDRRSlicerLib.scene.xrays import core_xray
from Testing.core.samples import rigid
from Testing.scene import kit
from Testing.scene.dicom_files import FULL, add_run, frames, still, write_dicom

RUN = frames(4)
CAMERA = Camera(6, 8, (0.4, 0.6), 1100.0)
MOVING = {
    **FULL,
    "PositionerPrimaryAngleIncrement": [0, 5, 10, 15],
    "PositionerSecondaryAngleIncrement": [0, 0, 0, 0],
}


def add_grey(scene, voxels=RUN[:1], spacing=(1.0, 1.0, 1.0), uid=None):
    node = kit.add_volume(scene, voxels, np.diag([*spacing, 1.0]), None, "grey")
    if uid:
        node.SetAttribute("DICOM.instanceUIDs", uid)
    return node


def pixels(carm):
    return core_xray(carm).image.numpy()


def test_a_volume_of_one_slice(scene):
    node = add_grey(scene, spacing=(0.5, 0.4, 3.0))
    before = still(node)
    carm = load_xray_volume(scene, node, isocenter=(1.0, 2.0, 3.0))
    assert np.array_equal(pixels(carm), RUN[0]) and carm.name.startswith("grey")
    assert carm.camera.pixel_spacing.tolist() == pytest.approx([0.4, 0.5])  # (row, column)
    assert np.allclose(carm.arm.isocenter, (1, 2, 3))
    assert carm.meta["missing"] == [
        "source-to-detector distance (1000 mm assumed)",
        "principal point (image centre assumed)",
        "side of the image (seen from the detector assumed)",
        "intensity (air is bright assumed)",
        "source-to-isocentre distance (750 mm assumed)",
        "primary angle (0 degrees assumed)",
        "secondary angle (0 degrees assumed)",
        "patient position (isocentre at the centre of the anatomy assumed)",
    ]
    assert still(node) == before and carm.referred("xray") is not node


def test_a_spacing_of_one_is_nobodys_measurement(scene):
    carm = load_xray_volume(scene, add_grey(scene, np.tile(RUN[:1], (1, 100, 100))))
    assert carm.camera.pixel_spacing.tolist() == pytest.approx([0.375, 0.375])
    assert "pixel spacing (0.375 mm assumed)" in carm.meta["missing"]


@pytest.mark.parametrize("frame", [0, 3])
def test_a_slice_of_a_volume(scene, frame):
    carm = load_xray_volume(scene, add_grey(scene, RUN), frame)
    assert np.array_equal(pixels(carm), RUN[frame])
    assert (carm.meta["frame"], carm.meta["frames"]) == (frame, 4)


def test_an_item_of_a_sequence(scene):
    sequence = add_run(scene, RUN)
    before = still(sequence)
    assert np.array_equal(pixels(load_xray_volume(scene, sequence, 2)), RUN[2])
    assert still(sequence) == before and frame_count(sequence) == 4


def test_the_shown_item_of_a_browser(scene):
    sequence, browser, proxy = add_run(scene, RUN, browser=True)
    browser.SetSelectedItemNumber(3)
    assert frame_count(proxy) == frame_count(sequence) == 4
    for node in (sequence, proxy):
        assert np.array_equal(pixels(load_xray_volume(scene, node)), RUN[3])
        assert np.array_equal(pixels(load_xray_volume(scene, node, 1)), RUN[1])
    assert browser.GetSelectedItemNumber() == 3


@pytest.mark.parametrize("kind", ["sequence", "proxy", "volume"])
def test_a_run_from_dicom(scene, tmp_path, kind):
    """One file for all frames: pixels, geometry and the meaning of the pixels come from there."""
    uid = write_dicom(tmp_path / "run.dcm", RUN, "XA", PixelIntensityRelationshipSign=-1, **MOVING)
    sequence, _, proxy = add_run(scene, RUN + 7, uid, browser=True)  # + 7: not the file's own pixels
    node = {"sequence": sequence, "proxy": proxy, "volume": add_grey(scene, RUN + 7, uid=uid)}[kind]
    asked = []

    def find_file(which):
        asked.append(which)
        return str(tmp_path / "run.dcm")

    carm = load_xray_volume(scene, node, 2, isocenter=(5.0, 0.0, 0.0), find_file=find_file)
    assert asked == [uid] and np.array_equal(pixels(carm), RUN[2])
    assert float(carm.arm.primary) == pytest.approx(40) and float(carm.camera.source_to_detector) == 1200
    assert carm.meta["intensity"] == "attenuation" and np.allclose(carm.arm.isocenter, (5, 0, 0))
    assert not any(entry.startswith(("source", "pixel", "intensity")) for entry in carm.meta["missing"])


@pytest.mark.parametrize("as_volume", [False, True])
def test_images_from_a_file_each(scene, tmp_path, as_volume):
    uids = [write_dicom(tmp_path / f"{i}.dcm", RUN[i], **{**FULL, "PositionerPrimaryAngle": i}) for i in range(4)]
    files = {uid: tmp_path / f"{i}.dcm" for i, uid in enumerate(uids)}
    node = add_grey(scene, RUN, uid=" ".join(uids)) if as_volume else add_run(scene, RUN, uids)
    carm = load_xray_volume(scene, node, 3, find_file=files.get)
    assert np.array_equal(pixels(carm), RUN[3]) and float(carm.arm.primary) == pytest.approx(3)


@pytest.mark.parametrize("answer", [None, "", "/nowhere/x.dcm", "not asked"])
def test_the_file_is_not_in_the_database(scene, answer):
    node = add_grey(scene, uid="1.2.3")
    find_file = None if answer == "not asked" else lambda uid: answer
    carm = load_xray_volume(scene, node, find_file=find_file)
    assert np.array_equal(pixels(carm), RUN[0])
    assert carm.meta["missing"][0] == "DICOM header (the file is not in the database, none assumed)"


def test_a_given_camera(scene, tmp_path):
    node = add_grey(scene)
    carm = load_xray_volume(scene, node, camera=CAMERA)
    assert np.array_equal(carm.camera.K, CAMERA.K.double())
    assert [entry.split(" (")[0] for entry in carm.meta["missing"]] == [
        "intensity",
        "source-to-isocentre distance",
        "primary angle",
        "secondary angle",
        "patient position",
    ]
    pose = Pose(rigid(np.random.default_rng(1)))
    write_camera(tmp_path / "c.json", CAMERA, pose, "attenuation", {"who": "me"})
    carm = load_xray_volume(scene, node, camera=tmp_path / "c.json", isocenter=(1.0, 2.0, 3.0))
    assert np.allclose(carm.pose.matrix, pose.matrix) and carm.meta["missing"] == []
    assert carm.meta["intensity"] == "attenuation" and carm.meta["who"] == "me"


def test_a_given_camera_replaces_a_header(scene, tmp_path):
    uid = write_dicom(tmp_path / "a.dcm", RUN[0], **FULL)
    carm = load_xray_volume(scene, add_grey(scene, uid=uid), camera=CAMERA, find_file=lambda _: tmp_path / "a.dcm")
    assert np.array_equal(carm.camera.K, CAMERA.K.double()) and float(carm.arm.primary) == pytest.approx(30)


def test_volumes_with_transforms_and_other_types_are_left_alone(scene):
    node = add_grey(scene, RUN[:1].astype(np.float64) + 0.5)
    node.SetAndObserveTransformNodeID(kit.add_transform(scene, rigid(np.random.default_rng(2))).GetID())
    before = still(node)
    carm = load_xray_volume(scene, node)
    assert np.array_equal(pixels(carm), RUN[0] + np.float32(0.5)) and still(node) == before
    assert "intensity (bone is bright assumed)" in carm.meta["missing"]


def add_colours(scene):
    return kit.add_volume(scene, np.zeros((1, 6, 8, 3), np.uint8), np.eye(4), None, "rgb", "vtkMRMLVectorVolumeNode")


def add_labels(scene):
    return kit.add_volume(scene, RUN[:1], np.eye(4), None, "labels", "vtkMRMLLabelMapVolumeNode")


def add_models(scene):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "moves")
    sequence.SetDataNodeAtValue(kit.add_transform(scene, np.eye(4)), "0")
    return sequence


def add_colour_run(scene):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "film")
    sequence.SetDataNodeAtValue(add_colours(scene), "0")
    return sequence


def add_stacks(scene):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "stacks")
    sequence.SetDataNodeAtValue(add_grey(scene, RUN), "0")
    return sequence


NODES = {
    "none": (lambda scene: None, {}, "Choose an X-ray first"),
    "a model": (lambda scene: scene.AddNewNodeByClass("vtkMRMLModelNode", "bone"), {}, "'bone' is not an X-ray"),
    "labels": (add_labels, {}, "'labels' is not an X-ray; choose a grey volume"),
    "colours": (add_colours, {}, "'rgb' has colours"),
    "colour run": (add_colour_run, {}, "has colours"),
    "no pixels": (lambda scene: scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "v"), {}, "'v' has no pixels"),
    "empty": (lambda scene: scene.AddNewNodeByClass("vtkMRMLSequenceNode", "s"), {}, "sequence 's' is empty"),
    "transforms": (add_models, {}, "is not an X-ray"),
    "stacks": (add_stacks, {}, "Frame 0 of 'stacks' has 4 slices"),
    "no slice chosen": (lambda scene: add_grey(scene, RUN), {}, "'grey' has 4 slices; choose one of 0 to 3"),
    "no slice 4": (lambda scene: add_grey(scene, RUN), {"frame": 4}, "there is no slice 4"),
    "no item chosen": (lambda scene: add_run(scene, RUN), {}, "'run' has 4 frames; choose one of 0 to 3"),
    "item -1": (lambda scene: add_run(scene, RUN), {"frame": -1}, "there is no frame -1"),
    "item mean": (lambda scene: add_run(scene, RUN), {"frame": "mean"}, "there is no frame mean"),
    "camera": (
        add_grey,
        {"camera": Camera(5, 5, (1, 1), 900.0)},
        "'grey' has 6 x 8 pixels but its camera is for 5 x 5",
    ),
}


@pytest.mark.parametrize("case", NODES)
def test_what_is_no_xray(scene, case):
    make, arguments, message = NODES[case]
    node = make(scene)
    before = kit.node_ids(scene)
    with pytest.raises(SceneError, match=message):
        load_xray_volume(scene, node, **arguments)
    assert kit.node_ids(scene) == before


def test_pixels_that_are_not_finite(scene):
    with pytest.raises(XRayError, match="NaN or infinite"):
        load_xray_volume(scene, add_grey(scene, np.full((1, 6, 8), np.inf, np.float32)))


def test_a_file_that_does_not_fit_the_node(scene, tmp_path):
    uid = write_dicom(tmp_path / "run.dcm", RUN, **MOVING)
    before = kit.node_ids(scene)
    sequence = add_run(scene, RUN[:2], uid)
    with pytest.raises(SceneError, match="has 2 images but its DICOM file 4 frames"):
        load_xray_volume(scene, sequence, 0, find_file=lambda _: tmp_path / "run.dcm")
    scene.RemoveNode(sequence)
    assert kit.node_ids(scene) == before


def test_a_ct_or_a_damaged_file(scene, tmp_path):
    uid = write_dicom(tmp_path / "ct.dcm", RUN[0], "CT", **FULL)
    (tmp_path / "text.dcm").write_text("not DICOM")
    for name, error, message in (("ct", SceneError, "modality CT"), ("text", ReadError, "text.dcm' cannot be read")):
        with pytest.raises(error, match=message):
            load_xray_volume(scene, add_grey(scene, uid=uid), find_file=lambda _, name=name: tmp_path / f"{name}.dcm")


def test_real_fluoroscopy_from_the_database(scene, shared_data):
    path = shared_data / "hip_fluoroscopy" / "IM-0001-0020.dcm"
    uid = "1.3.6.1.4.1.9590.100.1.2.267394311211872782539738505301795803047"
    node = add_grey(scene, np.zeros((1, 1024, 1024), np.uint16), uid=uid)
    carm = load_xray_volume(scene, node, find_file={uid: str(path)}.get)
    assert float(carm.camera.source_to_detector) == 1000 and pixels(carm).max() > 1000
    assert carm.meta["missing"][0].startswith("pixel spacing")
