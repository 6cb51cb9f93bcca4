"""`convert motion`: .tra files and tables, coordinates, and options that would be ignored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from DiffDRRCore import Volume
from DiffDRRCore.geometry.motion_files import Motion, ras_to_volume, read_table, read_tra, write_table, write_tra
from Testing.core import samples

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def tracked(tmp_path):
    """A .tra of two bodies in two frames, and their small CTs."""
    rng = np.random.default_rng(8)
    matrices = np.stack([samples.rigid(rng) for _ in range(4)]).reshape(2, 2, 4, 4)
    write_tra(tmp_path / "both.tra", {name: Motion((0, 1), m) for name, m in zip("ab", matrices, strict=True)})
    for name, shape in (("a", (4, 5, 6)), ("b", (7, 3, 2))):
        affine = samples.rigid(rng) @ np.diag([0.5, 0.6, 0.7, 1])
        Volume(np.zeros(shape, np.float32), affine).write(tmp_path / f"{name}.nrrd")
    return tmp_path, matrices


def test_there_and_back_is_the_same_file(run, tracked):
    folder = tracked[0]
    names = ("--bodies", "radius,ulna", "--first-frame", 7)
    code, out, err = run("convert", "motion", folder / "both.tra", folder / "t.csv", *names, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"output": str(folder / "t.csv")}
    table = read_table(folder / "t.csv")
    assert list(table) == ["radius", "ulna"]
    assert table["ulna"].frames == (7, 8)
    assert run("convert", "motion", folder / "t.csv", folder / "back.tra", "--first-frame", 7)[0] == 0
    assert (folder / "back.tra").read_bytes() == (folder / "both.tra").read_bytes()
    layout = ("--layout", "xyzypr", "--first-frame", 7)
    assert run("convert", "motion", folder / "t.csv", folder / "angles.tra", *layout)[0] == 0
    assert np.loadtxt(folder / "angles.tra", delimiter=",").shape == (2, 12)


def test_coordinates_of_each_ct(run, tracked):
    """A pose of Autoscoper's volume, taken to start from the CT's RAS, and from LPS."""
    folder, matrices = tracked
    cts = ("--ct", folder / "a.nrrd", folder / "b.nrrd")
    for target, to_ras in (("ras", np.eye(4)), ("lps", LPS)):
        where = ("--from", "autoscoper", "--to", target, "--bodies", "a,b")
        code, _, err = run("convert", "motion", folder / "both.tra", folder / "t.csv", *where, *cts)
        assert code == 0, err
        found = read_table(folder / "t.csv")
        for index, name in enumerate("ab"):
            volume = Volume.read(folder / f"{name}.nrrd")
            expected = matrices[index] @ ras_to_volume(volume.ijk_to_ras, volume.shape).numpy() @ to_ras
            assert np.allclose(found[name].matrices, expected, atol=1e-9)
    back = ("--from", "lps", "--to", "autoscoper")
    assert run("convert", "motion", folder / "t.csv", folder / "back.tra", *back, *cts)[0] == 0
    again = read_tra(folder / "back.tra", ["a", "b"])
    assert torch.allclose(again["b"].matrices, torch.from_numpy(matrices[1]), atol=1e-9)


def test_a_flipped_left_handed_ct(run, tmp_path):
    write_tra(tmp_path / "a.tra", {"a": Motion((0,), np.eye(4)[None])})
    Volume(np.zeros((4, 5, 6), np.float32), np.diag([0.5, 0.6, -0.7, 1.0])).write(tmp_path / "a.nrrd")
    where = ("--from", "autoscoper", "--to", "ras", "--ct", tmp_path / "a.nrrd")
    code, _, err = run("convert", "motion", tmp_path / "a.tra", tmp_path / "t.csv", *where)
    assert code == 2
    assert "mirrored" in err
    flip = ("--volume-flip", 0, 0, 1)
    assert run("convert", "motion", tmp_path / "a.tra", tmp_path / "t.csv", *where, *flip)[0] == 0
    # the first voxel, RAS (0, 0, 0), is the last slice of the flipped stack: 0.25, 4.5 of 5 rows of 0.6, -3.5 of 0.7
    assert np.allclose(read_table(tmp_path / "t.csv")["a"].at(0).translation, [0.25, 2.7, -2.45])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["both.tra", "t.csv", "--from", "ras"], "--from and --to go together"),
        (
            ["both.tra", "t.csv", "--from", "lps-camera-to-world", "--to", "ras"],
            "--from of a motion is one of ras, lps",
        ),
        (["both.tra", "t.csv", "--from", "autoscoper", "--to", "ras"], "give --ct FILE"),
        (["both.tra", "t.csv", "--from", "lps", "--to", "ras", "--ct", "a.nrrd"], "--ct has no meaning"),
        (["both.tra", "t.csv", "--volume-flip", "0", "0", "1"], "--volume-flip has no meaning"),
        (["both.tra", "t.csv", "--layout", "rows"], "--layout has no meaning"),
        (["both.tra", "t.csv", "--bodies", "a"], "has 2 bodies: give 2 different names"),
        (["both.tra", "t.csv", "--series", "1.2"], "--series has no meaning"),
        (["table.csv", "t.tra", "--bodies", "a"], "--bodies has no meaning"),
        (["table.csv", "t.csv", "--first-frame", "1"], "--first-frame has no meaning"),
        (["table.csv", "t.tra", "--first-frame", "5"], "Frame 3 lies before the first row"),
        (["table.csv", "t.txt"], "ends in .tra or .csv"),
        (["gone.tra", "t.csv"], "Cannot read"),
        (
            ["both.tra", "t.csv", "--from", "autoscoper", "--to", "ras", "--ct", *["a.nrrd"] * 3],
            "one --ct for all, or 2",
        ),
    ],
)
def test_bad_arguments_write_nothing(run, tracked, arguments, message):
    folder = tracked[0]
    write_table(folder / "table.csv", {"c": Motion((3,), np.eye(4)[None])})
    before = sorted(folder.iterdir())
    paths = [str(folder / part) if "." in part and part != "1.2" else part for part in arguments]
    code, out, err = run("convert", "motion", *paths)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_pose_keeps_its_own_conventions(run, tracked):
    folder = tracked[0]
    np.savetxt(folder / "m.csv", np.eye(4), delimiter=",")
    code, _, err = run("convert", "pose", folder / "m.csv", folder / "m.tfm", "--from", "autoscoper")
    assert code == 2
    assert "--from of a pose is one of ras-camera-to-world" in err
