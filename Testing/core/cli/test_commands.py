"""Every command does its job, and says the same numbers as the Python API."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import DiffDRRCore
from DiffDRRCore import CArm, Pose, Renderer, Volume, XRay
from DiffDRRCore.cli import COMMANDS, register
from DiffDRRCore.cli.register import MEASURES
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.evaluation import target_registration_error
from DiffDRRCore.geometry.itk_transform import read_itk_transform
from DiffDRRCore.registration.result import RegistrationResult
from DiffDRRCore.similarity import SIMILARITIES

CAMERA = ["--height", 30, "--width", 40, "--pixel-spacing", 8, 9, "--sdd", 1000, "--sod", 700]


def test_help_explains_units_and_frames(run):
    code, out, err = run("--help")
    assert code == 0, err
    assert all(word in out for word in ("RAS", "mm", "degrees", "LAO", "CRA", *COMMANDS))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(run, command):
    code, out, err = run(command, "--help")
    assert code == 0, err
    assert "--json" in out
    assert "mm" in out or command == "info"


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "DiffDRRCore", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("DiffDRRCore 0.")


def test_render_is_the_renderer(run, files, tmp_path):
    target = tmp_path / "drr.nii.gz"
    code, out, err = run(
        "render", files.ct, *CAMERA, "--primary", 30, "--view-from", "detector", "-o", target, "--json"
    )
    assert (code, err) == (0, "")
    carm = CArm(1000.0, 700.0, files.volume.center, 30.0)
    camera = carm.camera(30, 40, (8.0, 9.0), view_from="detector")
    expected = Renderer(Volume.read(files.ct))(camera, carm.pose)[0, 0]
    again = XRay.read(target)
    assert torch.allclose(again.image, expected, atol=1e-5)
    assert torch.allclose(again.pose.matrix, carm.pose.matrix)
    assert again.camera.view_from == "detector"
    assert json.loads(out)["maximum"] == pytest.approx(float(expected.max()))


def test_render_of_labels_as_png(run, files, tmp_path):
    target = tmp_path / "bone.png"
    code, _, err = run("render", files.ct, "--labelmap", files.labelmap, "--labels", "vertebrae", *CAMERA, "-o", target)
    assert code == 0, err
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(target)))
    assert image.max() == 65535  # rays that miss the structure arrive whole
    assert image.min() < 65535


def test_register_two_views_from_moved_starts(run, files, tmp_path):
    starts = []
    for number, (path, truth) in enumerate(zip(files.xrays, files.truth, strict=True)):
        moved = truth.retract([0.08, -0.05, 0.06, 8.0, -6.0, 9.0], about=files.volume.center)
        start = XRay.read(path).with_pose(moved)
        start.write(tmp_path / f"start{number}.nii.gz")
        starts += ["--initial", tmp_path / f"start{number}.json"]
    folder = tmp_path / "result"
    code, out, err = run("register", files.ct, *files.xrays, *starts, "--sizes", 32, 72, "-o", folder, "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["converged"]
    result = RegistrationResult.load(folder / "result.json")
    targets = torch.tensor([[0.0, 0, 0], [40, 20, 30], [-50, 0, -40]]).double() + files.volume.center
    for view, truth in enumerate(files.truth):
        assert float(target_registration_error(result.poses[view], truth, targets)) < 1.0
        stored = read_itk_transform(folder / f"view{view + 1}.tfm")
        assert torch.allclose(stored, result.poses[view].matrix, atol=1e-9)
    names = {path.name for path in folder.iterdir()}
    assert names == {"result.json", "patient_motion.tfm", "view1.tfm", "view2.tfm", "view1.png", "view2.png"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [([], ("auto", False)), (["--grey-values-only"], (None, False)), (["--beyond-ends"], ("auto", True))],
)
def test_register_is_told_what_counts(run, files, tmp_path, monkeypatch, flags, told):
    seen = []

    def told_only(*_, second, beyond_ends, **__):
        seen.append((second, beyond_ends))
        raise RegistrationError("enough")

    monkeypatch.setattr(DiffDRRCore, "register", told_only)
    assert run("register", files.ct, files.xrays[0], "-o", tmp_path / "r", *flags)[0] != 0
    assert seen == [told]


def test_register_shows_progress_on_standard_error_and_a_summary(run, files, tmp_path):
    code, out, err = run("register", files.ct, files.xrays[0], "--sizes", 32, "--max-depth", 20, "-o", tmp_path / "r")
    assert code == 0, err
    assert "similarity" in out
    assert "head-foot (S) axis" in out
    assert "register" not in out.splitlines()[0]


def test_how_far_another_optimum_is():
    """A turn by 10 degrees about the pivot and 3, 4, 0 mm; and one that ends where the result is."""
    about = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[math.cos(math.pi / 18), -math.sin(math.pi / 18)], [math.sin(math.pi / 18), 0]])
    turn[1, 1] = turn[0, 0]
    turn[:3, 3] = about - turn[:3, :3] @ about + torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    still = SimpleNamespace(about=about, patient_motion=Pose(torch.eye(4, dtype=torch.float64)))
    other = {"similarity": 0.5, "motion": turn.tolist()}
    assert register._alternative(still, other) == "  similarity 0.500, 5.0 mm and 10.0 degrees away"
    there = SimpleNamespace(about=about, patient_motion=Pose(turn).inverse())
    assert register._alternative(there, other).endswith(" 0.0 mm and 0.0 degrees away")


def test_margin_cuts_the_xray(run, files, tmp_path):
    code, out, err = run(
        "register",
        files.ct,
        files.xrays[0],
        "--margin",
        1,
        "--labelmap",
        files.labelmap,
        "--labels",
        "vertebrae",
        "--sizes",
        500,
        "-o",
        tmp_path / "r",
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["history"][0]["size"] != [60, 72]


def test_evaluate_by_hand(run, files, tmp_path):
    """5 mm along the beam (+A for an AP view) is 5 mm of depth and nothing else."""
    xray = XRay.read(files.xrays[0])
    xray.write(tmp_path / "truth.nii.gz")
    xray.with_pose(xray.pose.retract([0, 0, 0, 0, 5.0, 0])).write(tmp_path / "found.nii.gz")
    (tmp_path / "targets.csv").write_text("R,A,S\n0,0,0\n10,20,30\n")
    code, out, err = run(
        "evaluate", tmp_path / "found.json", tmp_path / "truth.json", "--targets", tmp_path / "targets.csv", "--json"
    )
    assert code == 0, err
    values = json.loads(out)
    assert values["mtre_mm"] == pytest.approx(5.0)
    assert values["mtre_depth_mm"] == pytest.approx(5.0)
    assert values["rotation_deg"] == pytest.approx(0.0, abs=1e-6)
    assert run("evaluate", tmp_path / "found.json", tmp_path / "truth.json", "--ct", files.ct)[0] == 0


def test_convert_ct_keeps_voxels_and_grid(run, files, tmp_path):
    code, _, err = run("convert", "ct", files.ct, tmp_path / "ct.nrrd")
    assert code == 0, err
    again = Volume.read(tmp_path / "ct.nrrd")
    assert torch.allclose(again.hu, files.volume.hu, atol=1e-3)
    assert torch.allclose(again.ijk_to_ras, files.volume.ijk_to_ras, atol=1e-4)


def test_convert_xray(run, files, tmp_path):
    assert run("convert", "xray", files.xrays[0], tmp_path / "x.mha")[0] == 0
    assert torch.equal(XRay.read(tmp_path / "x.mha").image, XRay.read(files.xrays[0]).image)


def test_convert_pose_from_opencv_extrinsics_in_lps(run, tmp_path):
    """World-to-camera in LPS, by hand: camera axes x = -L = R, y = -S, z = A; the source 700 mm posterior."""
    (tmp_path / "extrinsics.csv").write_text("-1,0,0,0\n0,0,-1,0\n0,-1,0,700\n")
    code, _, err = run(
        "convert", "pose", tmp_path / "extrinsics.csv", tmp_path / "carm.tfm", "--from", "lps-world-to-camera"
    )
    assert code == 0, err
    expected = CArm(1000.0, 700.0).pose.matrix
    assert torch.allclose(read_itk_transform(tmp_path / "carm.tfm"), expected, atol=1e-9)
    assert run("convert", "pose", tmp_path / "carm.tfm", tmp_path / "m.csv", "--to", "lps-world-to-camera")[0] == 0
    back = np.loadtxt(tmp_path / "m.csv", delimiter=",")
    assert np.allclose(back[:3], [[-1, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 700]], atol=1e-9)


def test_info(run, files):
    code, out, _ = run("info", files.ct, "--json")
    assert (code, json.loads(out)["kind"]) == (0, "CT")
    assert json.loads(out)["spacing (mm)"] == pytest.approx([4.0, 4.0, 4.0])
    _, out, _ = run("info", files.xrays[1], "--json")
    assert json.loads(out)["primary, secondary, roll (deg)"] == pytest.approx([90.0, 0.0, 0.0], abs=1e-6)
    assert "torch" in run("info")[1]


def test_the_measures_offered_are_those_there_are():
    """The parser lists them itself, because asking the registry would load torch for --help."""
    assert set(MEASURES) == set(SIMILARITIES)
