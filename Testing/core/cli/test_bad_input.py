"""Bad input: exit code 2, one line on standard error, nothing left half written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

CAMERA = ["--height", "30", "--width", "40", "--pixel-spacing", "8", "9", "--sdd", "1000", "--sod", "700"]
GOOD = {"height": 60, "width": 72, "pixel_spacing": [6.0, 5.0], "source_to_detector": 1000.0}


def refuse(run, *arguments) -> str:
    """The one line that the command says."""
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith(f"DiffDRRCore {arguments[0]}: error: ")
    return lines[0]


def image(path, array, **changes):
    """An image file with SimpleITK."""
    picture = sitk.GetImageFromArray(array)
    for name, value in changes.items():
        getattr(picture, name)(value)
    sitk.WriteImage(picture, str(path))
    return path


def bad_cts(folder, files, data=None):
    (folder / "empty").mkdir()
    yield "missing", folder / "nowhere.nii.gz", "nowhere"
    yield "empty folder", folder / "empty", "empty"
    yield "2D file", image(folder / "flat.nii.gz", np.zeros((20, 30), np.float32)), ""
    holes = np.zeros((8, 8, 8), np.float32)
    holes[2, 3, 4] = np.nan
    yield "NaN voxels", image(folder / "nan.nii.gz", holes), "NaN"
    (folder / "cut.nii.gz").write_bytes(files.ct.read_bytes()[:5000])
    yield "truncated", folder / "cut.nii.gz", ""
    (folder / "text.nii.gz").write_text("this is no image")
    yield "text", folder / "text.nii.gz", ""


def test_bad_cts(run, files, tmp_path):
    for name, path, word in bad_cts(tmp_path, files):
        line = refuse(run, "render", path, *CAMERA, "-o", tmp_path / "out" / "drr.nii.gz")
        assert word in line, name
    assert not (tmp_path / "out").exists()


def test_labels_of_another_patient(run, files, tmp_path):
    labels = sitk.GetImageFromArray(np.ones((10, 10, 10), np.uint8))
    labels.SetOrigin((5000.0, 5000.0, 5000.0))
    sitk.WriteImage(labels, str(tmp_path / "other.nii.gz"))
    arguments = ["--labelmap", tmp_path / "other.nii.gz", "--labels", "1", *CAMERA, "-o", tmp_path / "drr.nii.gz"]
    refuse(run, "render", files.ct, *arguments)


def test_unknown_label_lists_those_there(run, files, tmp_path):
    arguments = ["--labelmap", files.labelmap, "--labels", "coccyx2", *CAMERA, "-o", tmp_path / "drr.nii.gz"]
    line = refuse(run, "render", files.ct, *arguments)
    assert next(iter(files.volume.label_names.values())) in line


def test_pose_that_misses_the_volume(run, files, tmp_path):
    away = ["--isocenter", "9000", "0", "0"]
    line = refuse(run, "render", files.ct, *CAMERA, *away, "-o", tmp_path / "out" / "drr.nii.gz")
    assert "No ray meets the CT" in line
    line = refuse(run, "register", files.ct, files.xrays[0], "--sod", "700", *away, "-o", tmp_path / "out")
    assert "no ray meets the CT" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"source_to_detector": 1.0}, "metres"),
        ({"pixel_spacing": [0.0006, 0.0005]}, "mm"),
        ({"pixel_spacing": None, "K": [[0, 0, 35], [0, 180, 30], [0, 0, 1]]}, "focal"),
        ({"height": 0}, "height"),
        ({"sdd": 1000.0}, "sdd"),
        ({"units": "cm"}, "units"),
        ({"pose": np.diag([1.0, -1, 1, 1]).tolist()}, "reflection"),
    ],
)
def test_bad_cameras(run, files, tmp_path, change, word):
    content = {key: value for key, value in (GOOD | change).items() if value is not None}
    (tmp_path / "camera.json").write_text(json.dumps(content))
    line = refuse(
        run, "render", files.ct, "--camera", tmp_path / "camera.json", "--sod", "700", "-o", tmp_path / "d.mha"
    )
    assert word in line
    assert not (tmp_path / "d.mha").exists()


def test_camera_and_pose_that_are_not_there(run, files, tmp_path):
    assert "--sdd" in refuse(run, "render", files.ct, "--height", "30", "--width", "40", "-o", tmp_path / "d.mha")
    without_sod = CAMERA[:-2]
    assert "--sod" in refuse(run, "render", files.ct, *without_sod, "-o", tmp_path / "d.mha")


def test_output_that_cannot_be_written(run, files, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refuse(run, "render", files.ct, *CAMERA, "-o", tmp_path / "file" / "drr.nii.gz")
    refuse(run, "render", files.ct, *CAMERA, "-o", tmp_path / "drr.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_counts_that_do_not_match(run, files, tmp_path):
    (tmp_path / "camera.json").write_text(json.dumps(GOOD))
    line = refuse(run, "register", files.ct, *files.xrays, "--camera", tmp_path / "camera.json", "-o", tmp_path / "r")
    assert "2 X-rays" in line


def test_unusable_pose_and_points(run, files, tmp_path):
    (tmp_path / "pose.tfm").write_text("no transform")
    arguments = [files.ct, files.xrays[0], "-o", tmp_path / "r"]
    refuse(run, "register", *arguments, "--initial", tmp_path / "pose.tfm")
    (tmp_path / "points.csv").write_text("R,A,S\n1,2,three\n")
    pose = files.xrays[0].with_name("ap.json")
    refuse(run, "evaluate", pose, pose, "--targets", tmp_path / "points.csv")
    assert "--targets" in refuse(run, "evaluate", pose, pose)
    (tmp_path / "m.csv").write_text("1,2\n3,4\n")
    refuse(run, "convert", "pose", tmp_path / "m.csv", tmp_path / "out.tfm")
    assert not (tmp_path / "out.tfm").exists()


def test_fluoroscopy_without_geometry_names_what_lacks(run, files, shared_data, tmp_path):
    xray = shared_data / "hip_fluoroscopy" / "IM-0001-0020.dcm"
    assert "ImagerPixelSpacing" in refuse(run, "register", files.ct, xray, "-o", tmp_path / "r")


def test_truncated_dicom(run, shared_data, tmp_path):
    source = shared_data / "skull_phantom" / "ct_bone" / "I10"
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "I10").write_bytes(source.read_bytes()[:200_000])
    refuse(run, "info", tmp_path / "ct")


def test_defects_of_ours_are_not_called_bad_input(files, monkeypatch, tmp_path):
    from DiffDRRCore.cli import main, render

    def broken(_options):
        raise MemoryError

    monkeypatch.setattr(render, "run", broken)
    with pytest.raises(MemoryError):
        main(["render", str(files.ct), "-o", str(tmp_path / "x.mha")])
