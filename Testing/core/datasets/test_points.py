"""Named points in files of 3D Slicer and in tables, against coordinates written by hand."""

from __future__ import annotations

import json

import pytest
import torch

from DiffDRRCore.datasets.points import read_image_points, read_points, write_image_points, write_points
from DiffDRRCore.errors import DiffDRRError, ReadError


def markups(system="LPS", **more) -> dict:
    points = [
        {"id": "1", "label": "tip", "position": [1.5, -2.0, 3.0], "positionStatus": "defined"},
        {"id": "2", "label": "unplaced", "position": [], "positionStatus": "undefined"},
        {"id": "3", "label": "base", "position": [10.0, 20.0, -30.0]},
    ]
    markup = {"type": "Fiducial", "controlPoints": points, **more}
    return {"markups": [markup if system is None else {**markup, "coordinateSystem": system}]}


def as_lists(points) -> dict[str, list[float]]:
    assert all(point.dtype == torch.float64 and point.shape[0] in (2, 3) for point in points.values())
    return {name: point.tolist() for name, point in points.items()}


@pytest.mark.parametrize("system, sign", [("LPS", -1), ("RAS", 1), (None, -1)])
def test_slicer_markups(tmp_path, system, sign):
    """Without a coordinate system Slicer means LPS; a point that was never placed is none."""
    path = tmp_path / "landmarks.mrk.json"
    path.write_text(json.dumps(markups(system)), encoding="utf-8")
    assert as_lists(read_points(path)) == {"tip": [sign * 1.5, sign * -2.0, 3.0], "base": [sign * 10, sign * 20, -30]}


@pytest.mark.parametrize("system, sign", [("LPS", -1), ("1", -1), ("RAS", 1), ("0", 1), (None, 1)])
def test_legacy_fiducials(tmp_path, system, sign):
    heading = "# Markups fiducial file version = 4.11\n"
    heading += "" if system is None else f"# CoordinateSystem = {system}\n"
    columns = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    row = 'vtkMRMLMarkupsFiducialNode_1,1.5,-2,3,0,0,0,1,1,1,0,"left, tip",,vtkMRMLScalarVolumeNode1\n'
    path = tmp_path / "points.fcsv"
    path.write_text(heading + columns + row, encoding="utf-8")
    assert as_lists(read_points(path)) == {"left, tip": [sign * 1.5, sign * -2.0, 3.0]}


def test_fiducials_of_slicer_3_have_other_columns(tmp_path):
    path = tmp_path / "points.fcsv"
    path.write_text("# columns = label,x,y,z,sel,vis\nF1,1,2,3,1,1\n", encoding="utf-8")
    assert as_lists(read_points(path)) == {"F1": [1, 2, 3]}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("name,R,A,S\ntip,1,2,3\nbase,4,5,6\n", {"tip": [1, 2, 3], "base": [4, 5, 6]}),
        ("# a remark\n1,2,3\n\n4,5,6\n", {"1": [1, 2, 3], "2": [4, 5, 6]}),
        ("r,a,s\n1e1,2,-3\n", {"1": [10, 2, -3]}),
        ("name,l,p,s\ntip,1,2,3\n", {"tip": [-1, -2, 3]}),
        ("7,1,2,3\n", {"7": [1, 2, 3]}),
        ("tip,1,2,3\ntip,4,5,6\n", {"tip": [1, 2, 3], "tip (2)": [4, 5, 6]}),
        ("\ufefftip, 1, 2, 3\n", {"tip": [1, 2, 3]}),
    ],
)
def test_tables(tmp_path, text, expected):
    (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    assert as_lists(read_points(tmp_path / "points.csv")) == expected


@pytest.mark.parametrize("name", ["p.mrk.json", "p.csv"])
def test_written_points_are_read_back_exactly(tmp_path, name):
    points = {f"point, {n}": x for n, x in enumerate(torch.randn(5, 3, dtype=torch.float64) * 100)}
    write_points(tmp_path / name, points)
    again = read_points(tmp_path / name)
    assert list(again) == list(points)
    assert all(torch.equal(again[key], points[key]) for key in points)


def test_written_markups_are_in_lps(tmp_path):
    write_points(tmp_path / "p.mrk.json", {"tip": torch.tensor([1.0, 2.0, 3.0])})
    markup = json.loads((tmp_path / "p.mrk.json").read_text())["markups"][0]
    assert (markup["coordinateSystem"], markup["controlPoints"][0]["position"]) == ("LPS", [-1, -2, 3])


def test_points_of_an_image(tmp_path):
    points = {"tip": torch.tensor([1.25, 7.0]).double(), "2": torch.tensor([1 / 3, 0.0]).double()}
    write_image_points(tmp_path / "p.csv", points)
    (tmp_path / "p.json").write_text(json.dumps({name: point.tolist() for name, point in points.items()}))
    for name in ("p.csv", "p.json"):
        again = read_image_points(tmp_path / name)
        assert list(again) == list(points)
        assert all(torch.equal(again[key], points[key]) for key in points)


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("p.mrk.json", "{", "not JSON"),
        ("p.mrk.json", "[1, 2]", "no Slicer markups"),
        ("p.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}', "no Slicer markups"),
        ("p.mrk.json", json.dumps(markups("IJK")), "coordinate system 'IJK'"),
        ("p.mrk.json", json.dumps(markups(coordinateUnits="m")), "save them in mm"),
        ("p.mrk.json", '{"markups": []}', "no points"),
        ("p.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2, NaN]}]}]}', "not finite"),
        ("p.fcsv", "# CoordinateSystem = IJK\n", "coordinate system 'IJK'"),
        ("p.fcsv", "# columns = id,x,y\n1,2,3\n", "no column z"),
        ("p.fcsv", "1,2,3\n", "damaged .fcsv"),
        ("p.csv", "", "no points"),
        ("p.csv", "tip,1,2\n", "R, A, S"),
        ("p.csv", "tip,1,2,3\nbase,1,x,3\n", "R, A, S"),
        ("p.csv", "1,2,inf\n", "not finite"),
        ("p.csv", "a,b,1,2,3\n", "R, A, S"),
        ("p.stl", "solid", "no file of points"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ReadError, match=says) as caught:
        read_points(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_or_not_there(tmp_path):
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ReadError, match="not text"):
        read_points(tmp_path / "p.csv")
    with pytest.raises(ReadError, match="No such file"):
        read_points(tmp_path / "none.csv")
    with pytest.raises(ReadError, match="2 finite numbers"):
        (tmp_path / "p.json").write_text('{"tip": [1, 2, 3]}')
        read_image_points(tmp_path / "p.json")
    with pytest.raises(DiffDRRError, match=r"use \.mrk\.json or"):
        write_points(tmp_path / "p.vtk", {"tip": [1, 2, 3]})
