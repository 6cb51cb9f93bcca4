"""Arguments that contradict each other or would be ignored are errors; damaged files of every kind are refused."""

from __future__ import annotations

import json
import struct
import sys
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffDRRCore import CArm, XRay
from DiffDRRCore.cli import demo, main, render
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.evaluation import target_registration_error
from DiffDRRCore.registration.result import RegistrationResult

CAMERA = ["--height", "30", "--width", "40", "--pixel-spacing", "8", "9", "--sdd", "1000", "--sod", "700"]


@pytest.fixture
def refuse(run, tmp_path):
    """Run bad input: exit code 2, one line on standard error, no file made. Returns that line."""

    def call(*arguments) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"DiffDRRCore {arguments[0]}: error: "), err
        assert err.count("\n") == 1, err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return call


def test_misspelt_arguments_are_one_line_too(refuse, files, tmp_path):
    output = ["-o", tmp_path / "d.mha"]
    assert "--output" in refuse("render", files.ct)
    assert "invalid int value: 'tall'" in refuse("render", files.ct, "--height", "tall", *output)
    assert "invalid choice" in refuse("convert", "mesh", "a", "b")


def test_arguments_that_contradict_each_other(refuse, files, tmp_path):
    camera, output = files.folder / "ap.json", ["-o", tmp_path / "d.mha"]
    assert "--camera and --height" in refuse("render", files.ct, "--camera", camera, "--height", "30", *output)
    assert "--camera and --view-from" in refuse(
        "render", files.ct, "--camera", camera, "--view-from", "source", *output
    )
    assert "--pose and --sod" in refuse("render", files.ct, *CAMERA, "--pose", camera, *output)
    assert "--primary needs --sod" in refuse("render", files.ct, "--camera", camera, "--primary", "30", *output)
    arguments = ["register", files.ct, files.xrays[0], "-o", tmp_path / "r"]
    assert "--roll needs --sod" in refuse(*arguments, "--roll", "0")
    assert "--initial and --sod" in refuse(*arguments, "--initial", camera, "--sod", "700")


@pytest.mark.parametrize(
    "arguments",
    [
        ("ct", "ct.nii.gz", "x.mha", "--camera", "ap.json"),
        ("xray", "ap.nii.gz", "x.mha", "--series", "1.2"),
        ("pose", "ap.json", "x.tfm", "--from", "lps-world-to-camera"),
        ("pose", "ap.json", "x.tfm", "--to", "lps-world-to-camera"),
        ("pose", "ap.json", "x.tfm", "--camera", "ap.json"),
    ],
)
def test_convert_ignores_no_option(refuse, files, tmp_path, arguments):
    kind, source, target, flag, value = arguments
    assert flag in refuse("convert", kind, files.folder / source, tmp_path / target, flag, value)


def test_convert_ct_writes_both_files_or_none(refuse, files, tmp_path):
    labels = ["--labelmap", files.labelmap, "--labelmap-output", tmp_path / "labels.xyz"]
    assert "labels.xyz" in refuse("convert", "ct", files.ct, tmp_path / "ct.nii.gz", *labels)


@pytest.mark.parametrize(
    "text",
    ["", "1,0,0\n0,1\n", "1;0;0;0\n0;1;0;0\n0;0;1;0\n", "1,0,0,5\n0,1,0,0\n0,0,1,0\n0,0,0,7\n", "nan,0,0,0\n" * 3],
)
def test_convert_refuses_what_is_no_rigid_matrix(refuse, tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    refuse("convert", "pose", tmp_path / "m.csv", tmp_path / "out.tfm")


@pytest.mark.parametrize("text", ["1,2,nan\n", "1,2,inf\n", "", "R,A,S\n", "1,2\n", "1,2,3\nx,y,z\n"])
def test_points_must_be_finite_numbers(refuse, files, tmp_path, text):
    (tmp_path / "points.csv").write_text(text)
    pose = files.folder / "ap.json"
    message = refuse("evaluate", pose, pose, "--targets", tmp_path / "points.csv")
    assert any(words in message for words in ("the point 1 is not finite", "has no points", "R, A, S in mm"))


def nifti(path, shape, affine_rows):
    """A NIfTI-1 file by hand (nifti1.h): sform only, int16 voxels."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)  # int16
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352.0)
    struct.pack_into("<b", header, 123, 2)  # mm
    struct.pack_into("<2h", header, 252, 0, 1)  # qform_code, sform_code
    struct.pack_into("<12f", header, 280, *np.ravel(affine_rows))
    header[344:348] = b"n+1\0"
    path.write_bytes(bytes(header) + bytes(4) + bytes(2 * int(np.prod(shape))))
    return path


def test_hand_made_nifti_is_read(run, tmp_path):
    """The control of the next test: the same file with a good affine."""
    affine = [[2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7]]
    code, out, _ = run("info", nifti(tmp_path / "good.nii", (4, 5, 6), affine), "--json")
    assert code == 0
    assert json.loads(out)["spacing (mm)"] == [2.0, 3.0, 4.0]
    assert json.loads(out)["centre (RAS, mm)"] == [8.0, 12.0, 17.0]


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((4, 5, 6), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]),  # singular
        ((4, 5, 6), [[0, 0, 0, 0]] * 3),
        ((4, 5, 6), [[np.nan, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),
        ((4, 0, 6), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),  # no voxels
    ],
)
def test_singular_affine_and_no_voxels(refuse, tmp_path, shape, rows):
    path = nifti(tmp_path / "ct.nii", shape, rows)
    refuse("render", path, *CAMERA, "-o", tmp_path / "d.mha")
    refuse("info", path)


def test_damaged_results_and_transforms(refuse, files, tmp_path):
    matrix = "Transform: AffineTransform_double_3_3\nParameters: 1 1 0 1 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    (tmp_path / "singular.tfm").write_text(f"#Insight Transform File V1.0\n#Transform 0\n{matrix}")
    assert "singular" in refuse("render", files.ct, *CAMERA[:-2], "--pose", tmp_path / "singular.tfm", "-o", "d.mha")
    (tmp_path / "result.json").write_text('{"format": "DiffDRRSlicer registration result", "poses": "none"}')
    assert "damaged" in refuse("info", tmp_path / "result.json")
    (tmp_path / "text.json").write_text("{")
    assert "not JSON" in refuse("info", tmp_path / "text.json")


def test_xray_without_pose_or_with_bad_pixels(refuse, files, tmp_path):
    xray = XRay.read(files.xrays[0])
    xray.with_pose(None).write(tmp_path / "x.nii.gz")
    line = refuse("register", files.ct, tmp_path / "x.nii.gz", "-o", tmp_path / "r")
    assert "--initial" in line
    assert "--sod" in line
    holes = xray.image.clone().numpy()
    holes[3, 4] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(holes), str(tmp_path / "x.mha"))
    assert "NaN" in refuse("register", files.ct, tmp_path / "x.mha", "--sod", "700", "-o", tmp_path / "r")


def test_every_fluoroscopy_without_geometry(refuse, files, shared_data, tmp_path):
    """They lack ImagerPixelSpacing; the line says so, and which option brings it."""
    paths = sorted((shared_data / "hip_fluoroscopy").glob("*.dcm"))
    assert len(paths) == 6
    for path in paths:
        line = refuse("register", files.ct, path, "-o", tmp_path / "r")
        assert "ImagerPixelSpacing" in line
        assert "--camera FILE.json" in line
    refuse("info", paths[0])
    refuse("convert", "xray", paths[0], tmp_path / "x.mha")


def test_demo_with_half_of_a_pair(refuse, files, tmp_path):
    assert "--ct" in refuse("demo", "--xray", files.xrays[0], "-o", tmp_path / "d")
    assert "nowhere" in refuse("demo", "--ct", tmp_path / "nowhere", "-o", tmp_path / "d")


def test_demo_registers_the_users_pair(run, files, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(demo.register, "run", seen.append)
    assert run("demo", "--ct", files.ct, "--xray", files.xrays[0], "-o", tmp_path / "d", "--json")[0] == 0
    assert (seen[0].ct, seen[0].xrays, seen[0].output, seen[0].json) == (
        files.ct,
        [files.xrays[0]],
        tmp_path / "d",
        True,
    )


def test_output_folder_is_checked_before_the_work(refuse, files, tmp_path, monkeypatch):
    monkeypatch.setattr("DiffDRRCore.register", lambda *_, **__: pytest.fail("registered before looking"))
    (tmp_path / "file").write_text("in the way")
    assert "is a file" in refuse("register", files.ct, files.xrays[0], "-o", tmp_path / "file")
    assert "is a file" in refuse("demo", "--ct", files.ct, "-o", tmp_path / "file" / "folder")


def test_interrupt_and_warnings(files, monkeypatch, capsys, tmp_path):
    def interrupted(_options):
        raise KeyboardInterrupt

    shown = warnings.showwarning
    monkeypatch.setattr(render, "run", interrupted)
    assert main(["render", str(files.ct), "-o", str(tmp_path / "d.mha")]) == 130
    assert capsys.readouterr().err == "DiffDRRCore render: interrupted\n"
    assert warnings.showwarning is shown


def test_register_one_view_with_progress_on_standard_error(run, files, tmp_path, monkeypatch):
    """64 x 64 pixels, 15 mm and 5 degrees away: below 1 mm, at points by hand."""
    carm = CArm(1000.0, 700.0, files.volume.center, primary=20.0, secondary=-10.0)
    xray = simulated_xray(files.volume, carm.camera(64, 64, (6.0, 6.0)), carm.pose)
    moved = carm.pose.retract([0.05, -0.05, 0.05, 9.0, -8.0, 9.0], about=files.volume.center)
    xray.with_pose(moved).write(tmp_path / "x.nii.gz")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    folder = tmp_path / "r"
    code, out, err = run("register", files.ct, tmp_path / "x.nii.gz", "--sizes", 32, 64, "-o", folder)
    assert code == 0, err
    assert "level 2/2 (64 x 64)" in err
    assert "level" not in out
    assert out.startswith("converged: ")
    result = RegistrationResult.load(folder / "result.json")
    targets = torch.tensor([[0.0, 0, 0], [50, 0, 0], [0, 50, 0], [0, 0, 50]]).double() + files.volume.center
    assert float(target_registration_error(moved, carm.pose, targets)) > 10.0
    assert float(target_registration_error(result.poses, carm.pose, targets)) < 1.0
    # The saved result, read back by other commands.
    code, out, _ = run("info", folder / "result.json", "--json")
    assert (code, json.loads(out)["kind"]) == (0, "registration result")
    angles = json.loads(out)["view 1: primary, secondary, roll (deg)"]
    assert angles == pytest.approx([20.0, -10.0, 0.0], abs=0.5)
    assert run("convert", "pose", folder / "result.json", tmp_path / "v.tfm", "--view", 0)[0] == 0
    assert run("convert", "pose", folder / "result.json", tmp_path / "w.tfm", "--view", 1)[0] == 2
    assert not (tmp_path / "w.tfm").exists()


def test_info_of_a_camera_without_pose(run, tmp_path):
    camera = {"height": 20, "width": 30, "pixel_spacing": [2.0, 3.0], "source_to_detector": 900.0}
    (tmp_path / "camera.json").write_text(json.dumps(camera))
    code, out, err = run("info", tmp_path / "camera.json", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["kind"] == "camera"
    assert values["pixel_spacing (mm)"] == [2.0, 3.0]
    assert values["principal_point (u, v)"] == [14.5, 9.5]
    assert "camera_to_world (RAS, mm)" not in values


@pytest.mark.parametrize("command", ["render", "register", "evaluate", "convert", "info", "demo"])
def test_help_of_each_command_says_units_and_frame(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "mm" in out
    assert "RAS" in out
