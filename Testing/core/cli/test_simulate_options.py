"""The options of `simulate` one by one: beams of one's own, ranges, and what contradicts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from DiffDRRCore import XRay
from DiffDRRCore.imaging.camera_file import read_camera
from DiffDRRCore.physics.simulation.training_set import read_manifest
from Testing.core.cli.test_simulate import CIOS


def simulation_of(path) -> dict:
    return read_camera(path).meta["simulation"]


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom DiffDRRCore.cli import main\n"
        "try: main(['simulate', '--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'SimpleITK', 'pydicom') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for word in ("--lag WEIGHT RETENTION", "keV", "--mtf FILE", "--exact-poisson", "Swank", "--landmarks FILE"):
        assert word in done.stdout


def test_a_beam_of_one_energy_or_of_a_file(simulate, tmp_path):
    (tmp_path / "beam.csv").write_text("# mine\nkeV, photons\n60, 5\n")
    ideal = (*CIOS, "--detector", "ideal", "--photons", 1000, "--seed", 3)
    one = simulate(*ideal, "--energy", 60, output="a.tif")
    file = simulate(*ideal, "--spectrum", tmp_path / "beam.csv", output="b.tif")
    assert one["i0"] == file["i0"] == pytest.approx(60000)
    assert torch.equal(XRay.read(tmp_path / "a.tif").image, XRay.read(tmp_path / "b.tif").image)
    simulate(*CIOS, "--energy", 60)
    assert XRay.read(tmp_path / "x.dcm").meta.get("kvp") is None


def test_what_is_said_reaches_the_image(simulate, tmp_path):
    (tmp_path / "mtf.csv").write_text("f,mtf\n0,1\n0.02,0.8\n0.05,0.4\n")
    simulate(
        *(*CIOS, "--swank", 0.9, "--exact-poisson", "--solid-angle", "--samples", 2, "--electronic-noise", 2),
        *("--mtf", tmp_path / "mtf.csv", "--photons", 50),
        output="x.png",
    )
    told = simulation_of(tmp_path / "x.json")
    exposure, effects = told["exposure"], told["effects"]
    assert (exposure["swank"], exposure["poisson"], exposure["electronic"]) == (0.9, True, 2.0)
    assert (effects["solid_angle"], effects["samples"]) == (True, 2)
    assert effects["detector_mtf"] == [[0.0, 0.02, 0.05], [1.0, 0.8, 0.4]]


def ranges_file(tmp_path, content):
    (tmp_path / "ranges.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return ("--count", 2, "--workers", 0, "--ranges", tmp_path / "ranges.json")


@pytest.mark.parametrize(
    "content, more, reason",
    [
        ({"primary": {"normal": [0, 10]}}, (), 'give `within`, for example "within": [-110, 40]'),
        ({"primary": [-20, 50]}, (), "must be -110 to 40 degrees"),
        ({"sod": [500, 550]}, (), "leave sod out"),
        ({"kvp": [60, 80]}, ("--energy", 60), "leave kvp out"),
        ({"photons": [60, 80]}, ("--dose", 1), "photons per pixel or air kerma"),
        ({"photons": [60, 80], "dose": [1, 2]}, (), "photons per pixel or air kerma"),
        ('{"dose": [1, 2], "dose": [1, 3]}', (), "'dose' comes twice"),
        ("{}", ("--lag", 0.1, 0.1), "--count and --lag"),
    ],
)
def test_ranges_that_cannot_be_drawn(run, files, tmp_path, content, more, reason):
    arguments = ("simulate", files.ct, *CIOS, *ranges_file(tmp_path, content), *more, "--output", tmp_path / "set")
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert reason in err and err.count("\n") == 1
    assert not (tmp_path / "set" / "images").exists()


def test_a_normal_distribution_within_the_limits_is_drawn(run, files, tmp_path):
    ranges = ranges_file(tmp_path, {"primary": {"normal": [0, 30], "within": [-100, 40]}, "roll": {"normal": [0, 5]}})
    code, _, err = run("simulate", files.ct, *CIOS, "--ignore-limits", *ranges, "--output", tmp_path / "set")
    assert code == 0, err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("--energy", 60, "--kvp", 80), "--energy and --kvp contradict"),
        (("--spectrum", "a.csv", "--filter", "Al=2"), "--spectrum and --filter contradict"),
        (("--spectrum", "none.csv"), "none.csv"),
        (("--mtf", "none.csv"), "Cannot read the table of an MTF 'none.csv'"),
        (("--mtf", "none.csv", "--blur", 1), "--blur and --mtf contradict"),
        (("--energy", 60, "--heel"), "heel effect is that of tubes"),
        (("--lag", 0.1, 0.5), "give --sweep"),
        (("--lag", 0.7, 0.5, "--lag", 0.7, 0.5, "--sweep", 0, 9, 2), "together at most 1"),
        (("--samples", 0), "rays"),
        (("--landmarks", "none.fcsv"), "none.fcsv"),
        (("--implant-frame", "ras"), "once for each --implant"),
        (("--implant", "a.stl=steel", "--implant-priority", 1, "--implant-priority", 2), "--implant-priority once"),
    ],
)
def test_what_contradicts_is_one_sentence(run, files, tmp_path, arguments, reason):
    code, out, err = run("simulate", files.ct, *CIOS, *arguments, "--output", tmp_path / "x.png")
    assert code == 2 and out == ""
    assert reason in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["0,1\n0.5\n", "f,mtf\n", "0,1\n1,a\n", ""])
def test_a_table_that_is_no_mtf(run, files, tmp_path, text):
    (tmp_path / "mtf.csv").write_text(text)
    code, _, err = run("simulate", files.ct, *CIOS, "--mtf", tmp_path / "mtf.csv", "--output", tmp_path / "x.png")
    assert code == 2 and "two numbers a line" in err


def test_what_a_killed_run_left_is_removed(run, files, tmp_path):
    folder = tmp_path / "set"
    arguments = ("simulate", files.ct, *CIOS, "--masks", "--workers", 0, "--output", folder)
    assert run(*arguments, "--count", 1)[0] == 0
    left = [folder / "images" / ".0123456789ab-000001.png", folder / "masks" / "000001" / ".0123456789ab-a.png"]
    left.append(folder / ".0123456789ab-training_set.json")
    kept = [folder / "images" / ".keep-this.png", folder / "images" / "0123456789ab-000001.png"]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert run(*arguments, "--count", 2)[0] == 0
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    assert len(read_manifest(folder)) == 2
