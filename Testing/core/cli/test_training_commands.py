"""`train`, `restart` and `info` of a run: what is missing, in which unit, and what is said on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from DiffDRRCore.cli import training
from DiffDRRCore.cli.training_progress import TrainingBar
from DiffDRRCore.geometry.rotations import PARAMETERIZATIONS
from DiffDRRCore.learning.network.losses import LossWeights
from DiffDRRCore.learning.network.pose_net import BACKBONES
from Testing.core.learning.small_training import write_phantom

CAMERA = ["--sdd", "1000", "--field", "400"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training of four steps, and what it said where there is no terminal."""
    folder = tmp_path_factory.mktemp("train")
    ct = write_phantom(folder / "ct.nii.gz")
    command = [sys.executable, "-m", "DiffDRRCore", "train", ct, "--sdd", 1000, 1050, "--field", 400, "--sod", 700, 760]
    command += ["--primary", -20, 20, "--backbone", "resnet10", "--size", 32, "--steps", 4, "--batch", 2]
    command += ["--validate-every", 2, "--validation-views", 4, "--threads", 1, "--output", folder / "run"]
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stderr.splitlines()


def test_lines_where_there_is_no_terminal(trained):
    _, lines = trained
    assert lines[0] == "reading the CT"
    assert [line.split(",")[0] for line in lines if "held out" in line] == ["step 2 of 4", "step 4 of 4"]


def test_the_camera_is_in_the_middle_of_the_range(trained):
    options = json.loads((trained[0] / "training.json").read_text())
    assert options["camera"]["source_to_detector"] == 1025
    assert options["views"]["sdd"] == [1000, 1050]
    assert options["camera"]["pixel_spacing"] == [12.5, 12.5]


def test_time_left_is_told(capsys):
    with TrainingBar(quiet=False) as bar:
        step = SimpleNamespace(step=1, steps=1000, loss=1.23456, seconds_left=250.0, validation=None)
        bar(step)
        bar(SimpleNamespace(**{**vars(step), "step": 2}))  # too soon to be told
        bar(SimpleNamespace(**{**vars(step), "step": 3, "validation": SimpleNamespace(mm=12.34, degrees=5.6)}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        "step 1 of 1000, loss 1.235, 4 min left",
        "step 3 of 1000, loss 1.235, held out 12.3 mm 5.6 deg, 4 min left",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "lacks a CT, a camera (--xray FILE"),
        (["ct", "--primary", "1", "2"], "python -m DiffDRRCore train ct.nii.gz --sdd"),
        (["ct", *CAMERA], "lacks ranges of views"),
        (["ct", *CAMERA, "--primary", "1", "2"], "needs --sod"),
        (["ct", *CAMERA, "--sod", "0.7"], "--sod 0.7 looks like metres"),
        (["ct", "--sdd", "100.5", "--field", "0.4", "--sod", "700"], "--field 0.4 looks like metres"),
        (["ct", "--sdd", "1.0", "--field", "400", "--sod", "700"], "--sdd 1 looks like metres"),
        (["ct", *CAMERA, "--sod", "1200"], "behind the detector"),
        (["ct", "--field", "400", "--sod", "700"], "--field needs --sdd"),
        (["ct", *CAMERA, "--sod", "1", "2", "3"], "one number or two"),
        (["nowhere", *CAMERA, "--sod", "700"], "no file or folder 'nowhere'"),
        (["ct", *CAMERA, "--sod", "700", "--losses", "dise=1"], "no loss 'dise'"),
        (["ct", *CAMERA, "--sod", "700", "--backbone", "resnet19"], "resnet19"),
        (["ct", *CAMERA, "--sod", "700", "--parameterization", "euler"], "euler"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(run, files, tmp_path, arguments, words):
    arguments = [files.ct if one == "ct" else one for one in arguments]
    code, out, err = run("train", *arguments, "-o", tmp_path / "run")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_that_is_told_before_torch_is_loaded(files, tmp_path):
    code = (
        "import sys\nfrom DiffDRRCore.cli import main\n"
        f"assert main(['train', {str(files.ct)!r}, '--primary', '1', '2', '-o', 'run']) == 2\n"
        f"assert main(['register', {str(files.ct)!r}, {str(files.xrays[0])!r}, '--model', 'no', '-o', 'r']) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_are_those_of_the_library():
    assert tuple(BACKBONES) == training.BACKBONES
    assert {*training.PARAMETERIZATIONS, "euler_angles"} == {*PARAMETERIZATIONS, "se3_log"}  # it needs a convention
    assert set(training.LOSSES) == set(LossWeights.__dataclass_fields__)


def test_restart_takes_a_file_of_the_run(run, trained, tmp_path):
    for path in (trained[0], trained[0] / "model.safetensors", trained[0] / "state.json"):
        code, _, err = run("restart", path, "--json")
        assert code == 2
        assert "restart --steps N with N above 4" in err
    for path, words in ((tmp_path, "is no training"), (trained[0].parent / "ct.nii.gz", "is no training")):
        assert words in run("restart", path)[2]
    assert "There is no folder" in run("restart", tmp_path / "nowhere")[2]


def test_info_of_a_run(run, trained):
    values = json.loads(run("info", trained[0], "--json")[1])
    assert (values["kind"], values["status"], values["step"]) == ("training", "finished", "4 of 4")
    assert values["frame"].startswith("patient")
    network = json.loads(run("info", trained[0] / "model.safetensors", "--json")[1])
    state = json.loads((trained[0] / "state.json").read_text())
    assert network["held out, median (mm)"] == pytest.approx(state["best"]["mm"])
    assert network["camera"]["source_to_detector"] == 1025
    assert network["ranges"]["sod"] == [700, 760]
    for name, kind in (("state", "how a training stands"), ("training", "options of a training")):
        values = json.loads(run("info", trained[0] / f"{name}.json", "--json")[1])
        assert values["kind"].startswith(kind)
    code, out, _ = run("info", trained[0] / "checkpoint.safetensors")
    assert code == 0
    assert "restart" in out
