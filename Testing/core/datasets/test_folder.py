"""Folders of one's own: what files' names say, what dataset.json says, and what is wrong with either."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from DiffDRRCore import Camera, CArm, Pose, Volume, XRay
from DiffDRRCore.datasets import Folder, open_dataset
from DiffDRRCore.errors import DiffDRRError, MissingGeometryError, ReadError
from DiffDRRCore.geometry.itk_transform import write_itk_transform
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.imaging.xray_dicom_writing import write_xray_dicom
from Testing.core import samples

CAMERA = Camera(6, 8, (0.5, 0.75), 1000.0, (3.25, 2.5), "detector")


def some_pose(seed: int) -> Pose:
    return Pose(samples.rigid(np.random.default_rng(seed)))


def write_ct(path: Path, hu: float = 40.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume(torch.full((3, 4, 5), hu), torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))).write(path)
    return path


def write_xray(path: Path, pose: Pose | None = None, value: float = 7.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    XRay(torch.full((6, 8), value), CAMERA, pose, {"intensity": "transmission"}).write(path)
    return path


def write_manifest(folder: Path, *subjects: dict, **top) -> Path:
    path = folder / "dataset.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"subjects": list(subjects), **top}), encoding="utf-8")
    return path


def equal(pose: Pose | None, other: Pose | None, tolerance: float = 1e-9) -> bool:
    if pose is None or other is None:
        return pose is other
    return bool(((pose.matrix - other.matrix).abs() <= tolerance).all())


def test_one_subject_by_its_files_names(tmp_path):
    folder = tmp_path / "knee"
    write_ct(folder / "ct.nii.gz")
    write_ct(folder / "labels.nii.gz", 2.0)
    (folder / "labels.csv").write_text("label,name\n2,tibia\n")
    (folder / "landmarks.fcsv").write_text("# CoordinateSystem = LPS\na,1,2,3,0,0,0,1,1,1,0,tip,,\n")
    poses = [some_pose(seed) for seed in range(3)]
    write_xray(folder / "xrays" / "x10.png", poses[0])
    write_xray(folder / "xrays" / "x2.nii.gz", poses[1])
    write_itk_transform(folder / "xrays" / "x2.pose.tfm", poses[2].matrix)
    (folder / "xrays" / "x2.points.csv").write_text("tip,1.5,2\nbeside,8,2\ncorner,-0.5,5.5\n")
    mask = SimpleITK.GetImageFromArray(np.full((6, 8), 2, np.uint8))
    SimpleITK.WriteImage(mask, str(folder / "xrays" / "x2.segmentation.png"))
    write_xray(folder / "xrays" / "x10.hidden.png").rename(folder / "xrays" / ".x.png")
    (folder / "xrays" / "notes.txt").write_text("a note")

    dataset = pickle.loads(pickle.dumps(open_dataset(folder)))
    assert dataset.subject_names == ("knee",)
    subject = dataset.subjects["knee"]
    assert subject.volume.label_names == {2: "tibia"}
    assert subject.landmarks["tip"].tolist() == [-1, -2, 3]
    assert subject.view_names == ("x2", "x10")
    assert subject.groups == (("x2",), ("x10",))
    first, second = subject.views
    assert equal(first.xray.pose, poses[2])
    assert equal(first.header_pose, poses[1])
    assert {name: point.tolist() for name, point in first.landmarks.items()} == {"tip": [1.5, 2], "corner": [-0.5, 5.5]}
    assert (first.segmentation.dtype, first.segmentation.unique().tolist()) == (torch.int16, [2])
    assert equal(second.xray.pose, poses[0])
    assert (second.header_pose, second.segmentation, second.landmarks) == (None, None, {})
    assert second.xray.intensity == "transmission"


def test_subjects_in_subfolders(tmp_path):
    write_ct(tmp_path / "b10" / "ct.nrrd")
    write_ct(tmp_path / "b2" / "ct.mha")
    (tmp_path / "others").mkdir()
    write_ct(tmp_path / "data" / "scan.nrrd")
    write_manifest(tmp_path / "c", {"name": "said", "ct": "../data/scan.nrrd"})
    dataset = Folder(tmp_path)
    assert dataset.subject_names == ("b2", "b10", "said")
    assert [tuple(subject.volume.shape) for subject in dataset.subjects] == [(3, 4, 5)] * 3
    assert [len(subject.views) for subject in dataset.subjects] == [0, 0, 0]


def test_a_dicom_x_ray_has_its_header_pose_and_the_json_beside_wins(tmp_path):
    write_ct(tmp_path / "ct.nii.gz")
    arm = CArm(1000.0, 700.0, (0, 0, 0), 20.0, 10.0)
    image = XRay(torch.ones(6, 8), CAMERA, None, {"intensity": "transmission"})
    (tmp_path / "xrays").mkdir()
    write_xray_dicom(tmp_path / "xrays" / "IM1.dcm", image, arm.pose)
    view = Folder(tmp_path).subjects[0].views[0]
    assert view.xray.pose is None
    assert equal(view.header_pose, arm.pose)
    other = Camera(6, 8, (0.5, 0.5), 1111.0)
    content = {**camera_to_dict(other), "pose": some_pose(1).matrix.tolist(), "intensity": "attenuation"}
    (tmp_path / "xrays" / "IM1.json").write_text(json.dumps(content))
    view = Folder(tmp_path).subjects[0].views["IM1"]
    assert float(view.xray.camera.source_to_detector) == 1111.0
    assert view.xray.intensity == "attenuation"
    assert equal(view.xray.pose, some_pose(1))
    assert equal(view.header_pose, arm.pose)


def test_a_file_without_a_suffix_counts_if_it_is_dicom(tmp_path):
    write_ct(tmp_path / "ct.nii.gz")
    write_xray(tmp_path / "xrays" / "a.png")
    (tmp_path / "xrays" / "README").write_text("about these")
    write_xray_dicom(tmp_path / "x.dcm", XRay(torch.ones(6, 8), CAMERA))
    (tmp_path / "x.dcm").rename(tmp_path / "xrays" / "IM2")
    assert Folder(tmp_path).subjects[0].view_names == ("IM2", "a")


def test_everything_that_a_manifest_can_say(tmp_path):
    data = tmp_path / "data"
    write_ct(data / "scan.nrrd")
    for name, value in (("femur", 1.0), ("tibia", 1.0)):
        write_ct(data / f"{name}.nrrd", value)
    partial = torch.zeros(3, 4, 5)
    partial[0] = 1.0
    Volume(partial, torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))).write(data / "tibia.nrrd")
    poses = [some_pose(seed) for seed in range(4)]
    write_xray(data / "start.png", poses[0])
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(np.arange(96, dtype=np.uint8).reshape(2, 6, 8)), str(data / "run.tif")
    )
    (data / "pose.json").write_text(json.dumps({"pose": poses[1].matrix.tolist()}))
    (data / "bare.json").write_text(json.dumps(poses[2].matrix.tolist()))
    xrays = [
        {"file": "start.png", "camera_pose": "start", "landmarks": {"tip": [1, 2]}},
        {"file": "start.png", "name": "none", "pose": None},
        {
            "file": "run.tif",
            "name": "second",
            "frame": 1,
            "camera": {**camera_to_dict(CAMERA), "pose": poses[3].matrix.tolist()},
            "intensity": "attenuation",
            "header_pose": "bare.json",
            "pose": "pose.json",
            "body_poses": {"tibia": poses[0].matrix.tolist()},
        },
    ]
    subject = {
        "ct": "scan.nrrd",
        "labels": {"femur": "femur.nrrd", "tibia": "tibia.nrrd"},
        "landmarks": {"tip": [1, 2, 3]},
        "xrays": xrays,
        "groups": [["start", "second"]],
    }
    dataset = Folder(write_manifest(tmp_path / "elsewhere", subject, root="../data", title="Knees"))
    assert (dataset.title, dataset.subject_names) == ("Knees", ("elsewhere",))
    subject = dataset.subjects[0]
    assert subject.volume.label_names == {1: "femur", 2: "tibia"}
    assert [int(labels.unique()) for labels in subject.volume.labels] == [2, 1, 1]
    assert subject.landmarks["tip"].tolist() == [1, 2, 3]
    assert subject.groups == (("start", "second"), ("none",))
    start, none, second = subject.views
    assert start.xray.pose is None
    assert equal(start.header_pose, poses[0])
    assert start.landmarks["tip"].tolist() == [1, 2]
    assert none.xray.pose is None
    assert equal(none.header_pose, poses[0])
    assert second.xray.image.flatten().tolist() == list(range(48, 96))
    assert second.xray.intensity == "attenuation"
    assert equal(second.xray.pose, poses[1])
    assert equal(second.header_pose, poses[2])
    assert equal(second.body_poses["tibia"], poses[0])


def test_looking_at_names_reads_no_images(tmp_path):
    """Damaged images do not keep a dataset from being opened; they are named when they are used."""
    (tmp_path / "xrays").mkdir()
    (tmp_path / "ct.nrrd").write_text("damaged")
    (tmp_path / "xrays" / "a.png").write_text("damaged")
    (tmp_path / "xrays" / "a.json").write_text(json.dumps(camera_to_dict(CAMERA)))
    subject = Folder(tmp_path).subjects[0]
    assert subject.view_names == ("a",)
    with pytest.raises(ReadError, match=r"ct\.nrrd"):
        _ = subject.volume
    with pytest.raises(ReadError, match=r"a\.png"):
        _ = subject.views[0]


def fails(path: Path, says: str, error: type = ReadError) -> None:
    with pytest.raises(error, match=says) as caught:
        subject = Folder(path).subjects[0]
        _ = subject.volume, subject.landmarks, list(subject.views)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"landmark": "l.csv"}, r"subjects\[0\]\.landmark: there is no 'landmark'; did you mean 'landmarks'"),
        ({"zzz": 1}, "there is no 'zzz'; choose from name, ct"),
        ({"ct": None}, r"subjects\[0\]\.ct must be text, got nothing"),
        ({"ct": 5}, "ct must be text"),
        ({"ct": "gone.nrrd"}, "no file or folder .*gone.nrrd"),
        ({"labels": "gone.nrrd"}, "no file or folder .*gone.nrrd"),
        ({"labels": {}}, "labels must be a section of 1 name or more"),
        ({"labels": "ct.nrrd", "label_names": {"one": "femur"}}, "numbers and names"),
        ({"landmarks": "gone.csv"}, "gone.csv"),
        ({"landmarks": {"tip": [1, 2]}}, "3 finite numbers"),
        ({"xrays": [], "groups": [["a"]]}, "names the X-ray 'a'"),
        ({"xrays": 5}, "xrays must be a list"),
        ({"xrays": ["x.png"]}, r"xrays\[0\] must have keys and values"),
        ({"xrays": [{"file": "gone.png"}]}, "no file .*gone.png"),
        ({"xrays": [{"file": "x.png", "frme": 1}]}, "did you mean 'frame'"),
        ({"xrays": [{"file": "x.png", "frame": 1.5}]}, r"xrays\[0\]\.frame is a number"),
        ({"xrays": [{"file": "x.png", "frame": 3}]}, "no frame 3"),
        ({"xrays": [{"file": "x.png", "intensity": "dark"}]}, "intensity: there is no 'dark'; choose from"),
        (
            {"xrays": [{"file": "x.png", "camera_pose": "truth"}]},
            "camera_pose: there is no 'truth'; did you mean 'start'",
        ),
        ({"xrays": [{"file": "x.png", "camera": "gone.json"}]}, "camera file .*gone.json"),
        ({"xrays": [{"file": "x.png", "camera": {"height": 6, "width": 8}}]}, "lacks pixel_spacing"),
        ({"xrays": [{"file": "x.png", "camera": camera_to_dict(Camera(5, 8, (1, 1), 1e3))}]}, "camera is for 5 x 8"),
        ({"xrays": [{"file": "x.png", "pose": [[1, 0], [0, 1]]}]}, "4 x 4 numbers"),
        ({"xrays": [{"file": "x.png", "pose": np.diag([1.0, 1, -1, 1]).tolist()}]}, "X-ray x: .*determinant"),
        ({"xrays": [{"file": "x.png", "pose": "gone.tfm"}]}, "gone.tfm"),
        ({"xrays": [{"file": "x.png", "pose": "gone.json"}]}, "gone.json"),
        ({"xrays": [{"file": "x.png", "pose": "x.png"}]}, "x.png"),
        ({"xrays": [{"file": "x.png", "landmarks": {"tip": [1, 2, 3]}}]}, "2 finite numbers"),
        ({"xrays": [{"file": "x.png", "segmentation": "gone.png"}]}, "gone.png"),
        ({"xrays": [{"file": "x.png", "segmentation": "small.png"}]}, "2 x 2 pixels, but its X-ray 6 x 8"),
        ({"xrays": [{"file": "x.png", "body_poses": []}]}, "body_poses must be a section of names"),
        ({"xrays": [{"file": "x.png"}, {"file": "x.png"}]}, "two X-rays are called 'x'"),
        ({"xrays": [{"file": "x.png"}], "groups": [["x"], ["x"]]}, "called 'x'"),
        ({"xrays": [{"file": "x.png"}], "groups": ["x"]}, r"groups\[0\] must be a list of 1 item or more"),
        ({"xrays": [{"file": "bare.png"}]}, "pixel_spacing"),
    ],
)
def test_a_wrong_manifest_is_told_in_one_sentence(tmp_path, change, says):
    write_ct(tmp_path / "ct.nrrd")
    write_xray(tmp_path / "x.png")
    for name, size in (("small.png", 2), ("bare.png", 4)):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((size, size), np.uint8)), str(tmp_path / name))
    fails(write_manifest(tmp_path, {"ct": "ct.nrrd", **change}), says)


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "not JSON"),
        ("[]", "The top level must have keys and values"),
        ("{}", "lacks 'subjects'"),
        ('{"subjects": []}', "subjects must be a list of 1 item or more"),
        ('{"subjects": {"a": 1}}', "subjects must be a list of 1 item or more"),
        ('{"subjects": [{"ct": "a"}, {"ct": "b"}]}', r"subjects\[0\] lacks 'name'"),
        ('{"subjects": [{"name": "a", "ct": "a"}, {"name": "a", "ct": "b"}]}', "two subjects are called 'a'"),
        ('{"subjects": [{"ct": "a"}], "titel": "x"}', "did you mean 'title'"),
        ('{"subjects": [{"ct": "a", "ct": "b"}]}', "the key 'ct' comes twice"),
    ],
)
def test_what_is_no_manifest(tmp_path, text, says):
    (tmp_path / "dataset.json").write_text(text)
    fails(tmp_path, says)


def test_folders_that_are_no_dataset(tmp_path):
    with pytest.raises(ReadError, match="no folder or file"):
        Folder(tmp_path / "gone")
    with pytest.raises(ReadError, match="is no dataset: neither it nor a folder in it has"):
        Folder(tmp_path)
    write_ct(tmp_path / "ct.nrrd")
    write_ct(tmp_path / "ct.nii.gz")
    with pytest.raises(ReadError, match=r"two CTs, 'ct.nii.gz' and 'ct.nrrd'"):
        Folder(tmp_path)


def test_two_files_for_one_x_ray(tmp_path):
    write_ct(tmp_path / "ct.nrrd")
    write_xray(tmp_path / "xrays" / "a.png")
    write_xray(tmp_path / "xrays" / "a.nii.gz")
    with pytest.raises(ReadError, match="two X-rays are called 'a'"):
        Folder(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    write_ct(tmp_path / "s1" / "ct.nrrd")
    (tmp_path / "s1" / "xrays").mkdir()
    dataset = Folder(tmp_path)
    with pytest.raises(ReadError, match="no subject 3; there are: s1"):
        _ = dataset.subjects[3]
    with pytest.raises(ReadError, match="no subject 's2'; there are: s1"):
        _ = dataset.subjects["s2"]
    with pytest.raises(ReadError, match="Subject s1 has no X-ray 0; there are: none"):
        _ = dataset.subjects[0].views[0]
    with pytest.raises(ReadError, match=r"\(folder\) has no option 'i0'; it takes none"):
        open_dataset(tmp_path, i0=3)


@pytest.mark.parametrize("name", ["iterdir", "read_text"])
def test_no_permission_to_read(tmp_path, monkeypatch, name):
    write_ct(tmp_path / "ct.nrrd")
    if name == "read_text":
        write_manifest(tmp_path, {"ct": "ct.nrrd"})

    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(ReadError, match="Permission denied"):
        Folder(tmp_path)


def test_fluoroscopy_without_pixel_spacing(shared_data, tmp_path):
    """Real RF images name what their headers lack, and take a camera from the manifest."""
    ct = str(shared_data / "limb_ct" / "STS_003" / "ct.nii.gz")
    image = {"file": str(shared_data / "hip_fluoroscopy" / "IM-0001-0020.dcm")}
    path = write_manifest(tmp_path, {"ct": ct, "xrays": [image]})
    with pytest.raises(MissingGeometryError, match="ImagerPixelSpacing") as caught:
        _ = Folder(path).subjects[0].views[0]
    assert caught.value.missing == ("ImagerPixelSpacing (mm)",)
    camera = {"height": 1024, "width": 1024, "pixel_spacing": [0.2, 0.2], "source_to_detector": 1000}
    path = write_manifest(tmp_path, {"ct": ct, "xrays": [{**image, "camera": {**camera, "view_from": "detector"}}]})
    view = Folder(path).subjects[0].views["IM-0001-0020"]
    assert (view.xray.intensity, view.xray.camera.view_from) == ("transmission", "detector")
    assert (view.xray.pose, view.header_pose) == (None, None)


def test_real_cts_by_convention(shared_data):
    dataset = open_dataset(shared_data / "limb_ct")
    assert dataset.subject_names == ("STS_001", "STS_003", "STS_010")
    assert tuple(dataset.subjects["STS_001"].volume.shape) == (59, 202, 198)


def test_all_errors_are_of_the_family():
    assert issubclass(ReadError, DiffDRRError)
