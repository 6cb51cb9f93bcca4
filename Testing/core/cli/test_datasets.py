"""`info` and `convert` of datasets: HDF5 files, folders, and what only looks like one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from DiffDRRCore.datasets import Folder, open_dataset
from DiffDRRCore.datasets.folder import write_subject
from DiffDRRCore.geometry.itk_transform import write_itk_transform
from Testing.core.datasets.folder_files import beads
from Testing.core.datasets.hdf5_files import write_deepfluoro, write_ljubljana


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two subjects, one by its dataset.json and one by its files' names."""
    place = tmp_path_factory.mktemp("datasets")
    write_subject(beads(), place / "one", ct_format="nrrd")
    write_subject(beads(seed=1), place / "two")
    (place / "two" / "dataset.json").unlink()
    return place


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("hdf5")
    return {
        "DeepFluoro": write_deepfluoro(place / "deepfluoro.h5"),
        "Ljubljana": write_ljubljana(place / "ljubljana.h5"),
    }


def test_info_of_a_folder(run, folder):
    code, out, err = run("info", folder, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "kind": "dataset",
        "title": "folder",
        "subjects": [{"name": "patient 1", "xrays": 3, "groups": 2}, {"name": "two", "xrays": 3, "groups": 3}],
    }
    code, out, _ = run("info", folder)
    assert code == 0
    assert "2 subjects" in out
    assert ["patient", "1", "3", "in", "2", "groups"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("subject", ["patient 1", "0"])
@pytest.mark.parametrize("path", [".", "one", "one/dataset.json"])
def test_info_of_a_subject(run, folder, subject, path):
    code, out, err = run("info", folder / path, "--subject", subject, "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert (values["kind"], values["name"], values["size (i, j, k)"]) == ("subject", "patient 1", [24, 20, 14])
    assert values["spacing (mm)"] == [1.3, 2.1, 3.7]
    assert values["labels"] == {"1": "left femur", "3": "hip, right"}
    assert list(values["landmarks (RAS, mm)"]) == [f"bead {n}" for n in range(6)]
    assert values["X-rays"] == ["run/0.a", "run/1.a", "run/2.a"]
    assert values["groups"] == [["run/0.a", "run/2.a"]]
    assert (values["image (rows, columns)"], values["source_to_detector (mm)"]) == ([60, 90], 1130.25)
    assert (values["reference pose"], values["header pose"], values["segmentation"]) == (True, True, True)
    code, out, _ = run("info", folder / path, "--subject", subject)
    assert code == 0
    assert "1 left femur, 3 hip, right" in out
    assert "run/0.a + run/2.a" in out


def test_an_x_ray_that_cannot_be_read_does_not_hide_the_rest(run, tmp_path):
    write_subject(beads(), tmp_path / "one")
    (tmp_path / "one" / "xrays" / "run_0_a.png").write_text("damaged")
    code, out, _ = run("info", tmp_path / "one", "--subject", 0, "--json")
    values = json.loads(out)
    assert (code, values["size (i, j, k)"]) == (0, [24, 20, 14])
    assert "run_0_a.png' cannot be read" in values["first X-ray"]


@pytest.mark.parametrize("title", ["DeepFluoro", "Ljubljana"])
def test_info_of_hdf5(run, hdf5, title):
    """The numbers are those of the Python API."""
    dataset = open_dataset(hdf5[title])
    code, out, err = run("info", hdf5[title], "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["title"] == title
    assert [row["name"] for row in values["subjects"]] == list(dataset.subject_names)
    code, out, err = run("info", hdf5[title], "--subject", 0, "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["size (i, j, k)"] == list(dataset.subjects[0].volume.shape[::-1])
    assert values["X-rays"] == list(dataset.subjects[0].view_names)


def test_a_transform_in_hdf5_is_still_a_pose(run, tmp_path):
    write_itk_transform(tmp_path / "pose.h5", torch.eye(4))
    code, out, err = run("info", tmp_path / "pose.h5", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["kind"] == "pose"


def test_a_dicom_folder_and_a_camera_are_still_what_they_were(run, files, tmp_path):
    code, out, err = run("info", files.xrays[0].with_name("ap.json"), "--json")
    assert (code, err, json.loads(out)["kind"]) == (0, "", "camera")
    code, _, err = run("info", tmp_path)
    assert (code, "dataset" in err) == (2, False)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("xray_format, suffix", [("png", ".png"), ("dicom", ".dcm"), ("nii.gz", ".gz"), (None, ".png")])
def test_one_subject_out(run, folder, tmp_path, xray_format, suffix):
    chosen = [] if xray_format is None else ["--format", xray_format]
    code, out, err = run(
        "convert", "dataset", folder, tmp_path / "out", "--subject", "two", *chosen, "--xrays", "1:2", "--json"
    )
    assert (code, err) == (0, "")
    names = ["run_1_a", "run_2_a"]
    assert json.loads(out) == {"output": str(tmp_path / "out" / "dataset.json"), "subject": "two", "xrays": names}
    again, subject = Folder(tmp_path / "out").subjects[0], Folder(folder).subjects["two"]
    assert list(again.view_names) == names
    for name in names:
        assert torch.equal(again.xrays[name].image, subject.xrays[name].image)
        assert torch.equal(again.xrays[name].pose.matrix, subject.xrays[name].pose.matrix)
    assert (tmp_path / "out" / "xrays" / f"run_1_a{'.nii' if suffix == '.gz' else ''}{suffix}").is_file()


@pytest.mark.parametrize(
    "title, options", [("DeepFluoro", {"i0": None, "crop": 0}), ("Ljubljana", {"subtracted": False})]
)
@pytest.mark.parametrize("xray_format", ["png", "dicom"])
def test_hdf5_out_with_the_pixels_of_the_file(run, hdf5, tmp_path, title, options, xray_format):
    """A published dataset as a folder gives the same poses, cameras, structures and, where it can, pixels."""
    code, _, err = run(
        "convert", "dataset", hdf5[title], tmp_path / "out", "--subject", 0, "--format", xray_format, "--json"
    )
    assert code == 0, err
    subject, again = open_dataset(hdf5[title], **options).subjects[0], Folder(tmp_path / "out").subjects[0]
    assert torch.equal(again.volume.hu, subject.volume.hu)
    assert again.volume.label_names == subject.volume.label_names
    assert again.view_names == subject.view_names
    assert sorted(again.groups) == sorted(subject.groups)
    for one, two in zip(again.views, subject.views, strict=True):
        step = 0 if xray_format == "png" else float(np.ptp(two.xray.image.numpy())) / 65535
        assert float((one.xray.image - two.xray.image).abs().max()) <= step
        assert torch.equal(one.xray.pose.matrix, two.xray.pose.matrix)
        assert float((one.xray.camera.K - two.xray.camera.K).abs().max()) < 1e-9
        assert one.landmarks.keys() == two.landmarks.keys()
        assert one.body_poses.keys() == two.body_poses.keys()


def test_prepared_pixels_are_those_of_a_registration(run, hdf5, tmp_path):
    code, _, err = run(
        "convert", "dataset", hdf5["Ljubljana"], tmp_path / "out", "--subject", 1, "--prepared", "--json"
    )
    assert (code, err) == (0, "")
    again, subject = Folder(tmp_path / "out").subjects[0], open_dataset(hdf5["Ljubljana"]).subjects[1]
    assert torch.equal(again.xrays[0].image, subject.xrays[0].image)
    assert again.xrays[0].intensity == "attenuation"


def test_dicom_files_say_who_and_belong_to_one_study(run, folder, tmp_path):
    code, *_ = run("convert", "dataset", folder / "one", tmp_path / "out", "--format", "dicom")
    assert code == 0
    headers = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "xrays").glob("*.dcm"))]
    assert len({header.StudyInstanceUID for header in headers}) == 1
    assert len({header.SOPInstanceUID for header in headers}) == 3
    assert {str(header.PatientName) for header in headers} == {"patient 1"}


def test_progress_goes_to_standard_error(run, folder, tmp_path):
    code, out, _ = run("convert", "dataset", folder / "one", tmp_path / "out")
    assert code == 0
    assert out == f"written: {tmp_path / 'out' / 'dataset.json'}\n"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["info", "FOLDER", "--subject", "nobody"], "no subject 'nobody'; there are: patient 1, two"),
        (["info", "FOLDER", "--subject", "2"], "no subject 2; there are"),
        (["info", "FOLDER/one/xrays/run_0_a.png", "--subject", "0"], "--subject is for datasets"),
        (["convert", "dataset", "FOLDER", "OUT"], "Choose a subject by --subject; there are: patient 1, two"),
        (["convert", "dataset", "FOLDER/gone", "OUT"], "does not exist"),
        (["convert", "dataset", "FOLDER/one/ct.nrrd", "OUT"], "is no dataset"),
        (["convert", "dataset", "FOLDER/one", "OUT", "--xrays", "1:3"], "there are X-rays 0 to 2"),
        (["convert", "dataset", "FOLDER/one", "OUT", "--xrays", "a:b"], "FIRST:LAST in whole numbers"),
        (["convert", "dataset", "FOLDER/one", "OUT", "--xrays", "run/0.a,run/9.a"], "no X-ray 'run/9.a'"),
        (["convert", "dataset", "FOLDER/one", "OUT", "--frame", "1"], "--frame has no meaning"),
        (["convert", "ct", "FOLDER/one/ct.nrrd", "OUT/x.nrrd", "--prepared"], "--prepared has no meaning"),
        (["convert", "dataset", "FOLDER/one", "FOLDER"], "is not empty"),
        (["convert", "dataset", "FOLDER/one", "OUT", "--format", "jpg"], "invalid choice: 'jpg'"),
    ],
)
def test_bad_input_is_one_line(run, folder, tmp_path, arguments, says):
    places = [text.replace("FOLDER", str(folder)).replace("OUT", str(tmp_path / "out")) for text in arguments]
    code, out, err = run(*places)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
