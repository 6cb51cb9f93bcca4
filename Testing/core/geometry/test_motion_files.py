"""Files of motion: rows written by hand, exact round trips, Autoscoper's coordinates from how it samples its volume."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore import Pose
from DiffDRRCore.errors import DiffDRRError, GeometryError, ReadError
from DiffDRRCore.geometry.motion_files import (
    Motion,
    TraLayout,
    is_table,
    read_table,
    read_tra,
    write_table,
    write_tra,
)
from Testing.core import samples
from Testing.core.samples import seeds

QUARTER = [[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]]  # a quarter turn about z, to (10, 20, 30)
NAN16 = ",".join(["NaN"] * 16)
BY_ROWS = "0,-1,0,10,1,0,0,20,0,0,1,30,0,0,0,1"
BY_COLUMNS = "0,1,0,0,-1,0,0,0,0,0,1,0,10,20,30,1"


def motion(seed: int, frames=(0, 1, 2, 5), without=(1,)) -> Motion:
    rng = np.random.default_rng(seed)
    matrices = np.stack([samples.rigid(rng) for _ in frames])
    matrices[[frames.index(frame) for frame in without]] = np.nan
    return Motion(frames, matrices)


def same(one: Motion, other: Motion) -> bool:
    return one.frames == other.frames and torch.equal(one.matrices.nan_to_num(7.0), other.matrices.nan_to_num(7.0))


@pytest.mark.parametrize(
    "text",
    [
        f"{NAN16}\n{BY_ROWS}\n",
        f"{NAN16}\n{BY_COLUMNS}\n",
        f"{NAN16}\n{BY_ROWS}".replace(",", " "),
        f"{NAN16}\r\n{BY_ROWS},\r\n\r\n",
        "NaN,NaN,NaN,NaN,NaN,NaN\n10,20,30,90,0,0\n",
        ",".join(f"radius_{n}" for n in range(16)) + f"\n{NAN16}\n{BY_COLUMNS}\n",
    ],
    ids=["rows", "columns", "blanks", "line ends", "xyzypr", "titles"],
)
def test_a_quarter_turn_by_hand(tmp_path, text):
    path = tmp_path / "radius.tra"
    path.write_text(text, newline="")
    found = read_tra(path)
    assert list(found) == ["radius"]
    assert found["radius"].frames == (0, 1)
    assert found["radius"].at(0) is None
    assert found["radius"].at(7) is None
    assert np.allclose(found["radius"].at(1).matrix, QUARTER, atol=1e-12)


def test_yaw_pitch_and_roll_are_turns_about_z_then_y_then_x(tmp_path):
    """CoordFrame::from_xyzypr turns about its own z, its own new y, its own new x: SciPy's intrinsic ZYX."""
    path = tmp_path / "bone.tra"
    path.write_text("1,2,3,40,-25,70\n")
    expected = Rotation.from_euler("ZYX", [40, -25, 70], degrees=True).as_matrix()
    assert np.allclose(read_tra(path)["bone"].at(0).rotation, expected, atol=1e-12)
    path.write_text("0.1,0.2,0.3," + ",".join(str(math.radians(angle)) for angle in (40, -25, 70)))
    found = read_tra(path, centimetres=True, radians=True)["bone"].at(0)
    assert np.allclose(found.rotation, expected, atol=1e-12)
    assert np.allclose(found.translation, [1, 2, 3])


def test_what_is_written_by_hand(tmp_path):
    """The row of a matrix, NaN for the frames between, numbers that C++ and MATLAB read."""
    write_tra(tmp_path / "a.tra", {"bone": Motion((3, 5), [QUARTER, QUARTER])}, first_frame=2)
    row = "0.0,-1.0,0.0,10.0,1.0,0.0,0.0,20.0,0.0,0.0,1.0,30.0,0.0,0.0,0.0,1.0"
    assert (tmp_path / "a.tra").read_text() == f"{NAN16}\n{row}\n{NAN16}\n{row}\n"
    table = np.genfromtxt(tmp_path / "a.tra", delimiter=",")  # as SlicerAutoscoperM does: rows of 4 x 4
    assert np.array_equal(table[1].reshape(4, 4), QUARTER)
    write_tra(tmp_path / "c.tra", {"bone": Motion((0,), [QUARTER])}, layout=TraLayout.COLUMNS)
    assert [float(cell) for cell in (tmp_path / "c.tra").read_text().split(",")] == [
        float(cell) for cell in BY_COLUMNS.split(",")
    ]
    write_table(tmp_path / "a.csv", {"left, big": Motion((3, 5), [QUARTER, np.full((4, 4), np.nan)])})
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        "body,frame,r11,r12,r13,x_mm,r21,r22,r23,y_mm,r31,r32,r33,z_mm",
        '"left, big",3,0.0,-1.0,0.0,10.0,1.0,0.0,0.0,20.0,0.0,0.0,1.0,30.0',
        '"left, big",5' + "," * 12,
    ]


@given(seed=seeds, layout=st.sampled_from([TraLayout.ROWS, TraLayout.COLUMNS]))
@settings(max_examples=25, deadline=None)
def test_both_files_give_back_every_bit(tmp_path_factory, seed, layout):
    folder = tmp_path_factory.mktemp("motion")
    motions = {"radius": motion(seed), "mc 3": motion(seed + 1, (1, 5), ())}
    write_table(folder / "m.csv", motions)
    assert is_table(folder / "m.csv")
    found = read_table(folder / "m.csv")
    assert list(found) == list(motions)
    assert all(same(found[name], motions[name]) for name in motions)
    write_tra(folder / "m.tra", motions, layout=layout)
    assert not is_table(folder / "m.tra")
    found = read_tra(folder / "m.tra", bodies=list(motions))
    for name, one in motions.items():
        assert found[name].frames == tuple(range(6))
        for frame in range(6):
            here, there = one.at(frame), found[name].at(frame)
            assert (here is None) == (there is None)
            assert here is None or torch.equal(here.matrix, there.matrix)


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_angles_give_back_the_pose_to_rounding(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("motion") / "m.tra"
    first, second = motion(seed), motion(seed + 1)
    write_tra(path, {"a": first, "b": second}, layout=TraLayout.XYZYPR)
    found = read_tra(path, ["a", "b"])
    for made, name in ((first, "a"), (second, "b")):
        assert torch.allclose(found[name].at(5).matrix, made.at(5).matrix, atol=1e-9)
        assert found[name].at(1) is None


def test_the_numbers_of_a_row_decide_what_they_are(tmp_path):
    """48 numbers are three matrices or eight bodies of six; NaN rows alone and pure rotations are read by rows."""
    path = tmp_path / "m.tra"
    path.write_text(",".join([BY_COLUMNS] * 3))
    assert len(read_tra(path)) == 3
    path.write_text(",".join(["1,2,3,40,50,60"] * 8))
    assert list(read_tra(path)) == [f"m-{number}" for number in range(1, 9)]
    path.write_text(",".join(["NaN"] * 48))
    assert len(read_tra(path)) == 3
    path.write_text("0,-1,0,0,1,0,0,0,0,0,1,0,0,0,0,1")
    assert read_tra(path)["m"].at(0).matrix[1, 0] == 1
    assert read_tra(path, layout=TraLayout.COLUMNS)["m"].at(0).matrix[1, 0] == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "is empty"),
        (f"{BY_ROWS}\n\n{BY_ROWS}", "line 2: .*the same count"),
        (f"{BY_ROWS}\n1,2,3", "line 2: .*the same count"),
        (f"{BY_ROWS}\n{BY_ROWS.replace('10', 'ten')}", "line 2"),
        (BY_ROWS.replace("10", "inf"), "line 1"),
        (BY_ROWS.replace("30,", "NaN,"), r"line 1: .*finite numbers.*NaN throughout"),
        (f"{NAN16}\n{BY_ROWS.replace('-1', '-2')}", "line 2: The pose is not rigid"),
        (f"{BY_ROWS.replace('-1', '1')}", "line 1: .*reflection"),
        ("1,2,3\n", "3 numbers a row: a body has 16"),
        (BY_ROWS.replace("0,0,0,1", "0,1,0,1"), "16 numbers a row: a body has 16, a matrix whose last"),
        ("1,2,3,4,5,NaN\n", r"line 1: .*finite numbers"),
    ],
)
def test_a_damaged_tra(tmp_path, text, message):
    path = tmp_path / "m.tra"
    path.write_text(text)
    with pytest.raises(ReadError, match=message):
        read_tra(path)


def test_names_and_files_that_do_not_fit(tmp_path):
    path = tmp_path / "m.tra"
    path.write_text(f"{BY_ROWS},{BY_ROWS}\n")
    for names in (["a"], ["a", "a"]):
        with pytest.raises(ReadError, match="has 2 bodies: give 2 different names"):
            read_tra(path, names)
    with pytest.raises(ReadError, match="32 numbers a row, not 6 for each body"):
        read_tra(path, layout=TraLayout.XYZYPR)
    path.write_bytes(b"\xff\xfe\x00")
    for read in (read_tra, read_table, is_table):
        with pytest.raises(ReadError, match="not text"):
            read(path)
        with pytest.raises(ReadError, match="Cannot read"):
            read(tmp_path / "gone.tra")


HEADER = "body,frame,r11,r12,r13,x_mm,r21,r22,r23,y_mm,r31,r32,r33,z_mm"
ROW = "a,3,0,-1,0,10,1,0,0,20,0,0,1,30"


def test_a_table_in_any_order(tmp_path):
    columns = list(reversed(HEADER.split(",")))
    rows = [ROW.split(","), ["b", "1", *[""] * 12], ["a", "-2", *ROW.split(",")[2:]]]
    lines = [",".join(columns), *(",".join(reversed(row)) for row in rows)]
    (tmp_path / "t.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8", newline="")
    found = read_table(tmp_path / "t.csv")
    assert found["a"].frames == (-2, 3)
    assert np.array_equal(found["a"].at(3).matrix, QUARTER)
    assert found["b"].at(1) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks body, frame, r11"),
        (HEADER, "has no poses"),
        (HEADER.replace(",z_mm", "") + "\n" + ROW, "lacks z_mm"),
        (HEADER + ",more\n" + ROW + ",1", "a column too many"),
        (f"{HEADER}\n{ROW}\n{ROW}", "line 3: frame 3 of 'a' is there already"),
        (f"{HEADER}\n{ROW},5", "line 2: expected 14 cells"),
        (f"{HEADER}\n{ROW[:-3]}", "line 2: expected 14 cells"),
        (f"{HEADER}\n{ROW[1:]}", "line 2: the body has no name"),
        (f"{HEADER}\n{ROW.replace('30', '')}", "line 2: .*twelve numbers or nothing"),
        (f"{HEADER}\n{ROW.replace('30', 'nan')}", "line 2: .*twelve numbers or nothing"),
        (f"{HEADER}\n{ROW.replace('a,3', 'a,3.5')}", "line 2: the frame is a whole number"),
        (f"{HEADER}\n{ROW.replace('-1', '-2')}", "line 2: Frame 3: The pose is not rigid"),
    ],
)
def test_a_damaged_table(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ReadError, match=message):
        read_table(tmp_path / "t.csv")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.tra"
    path.write_text("old")
    for motions, first in (({}, 0), ({"a": motion(0)}, 1), ({"a": Motion((2_000_000,), [QUARTER])}, 0)):
        with pytest.raises(DiffDRRError):
            write_tra(path, motions, first)
    for name in ("", " a", "a\n"):
        with pytest.raises(DiffDRRError, match="cannot be written"):
            write_table(path, {name: motion(0)})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_motion_is_checked():
    with pytest.raises(GeometryError, match="ascending"):
        Motion((1, 1), [QUARTER, QUARTER])
    with pytest.raises(GeometryError, match=r"2 frames have matrices \[2, 4, 4\]"):
        Motion((1, 2), [QUARTER])
    with pytest.raises(GeometryError, match="Frame 7: The pose is not rigid"):
        Motion((3, 7), [QUARTER, np.diag([1.0, 1, 2, 1])])
    moved = motion(3).after(QUARTER)
    assert moved.at(1) is None
    assert torch.allclose(moved.at(2).matrix, (motion(3).at(2) @ Pose(QUARTER)).matrix)
