"""Meshes from files, as VTK and others write them, and the axes of their coordinates."""

from __future__ import annotations

import numpy as np
import pytest

from DiffDRRCore.cli import main
from DiffDRRCore.errors import DiffDRRWarning, PhysicsError, ReadError
from DiffDRRCore.physics.solids.files import read_mesh, write_stl
from DiffDRRCore.physics.solids.mesh import Mesh
from Testing.core.physics.solids import box_arrays, icosphere_arrays

LPS = np.array([-1.0, -1.0, 1.0])
ARRAYS = box_arrays((1, 2, 3), (4, 6, 9))


def corners_of(mesh: Mesh) -> np.ndarray:
    return np.array(sorted(mesh.vertices.tolist()))


def expected(axes) -> np.ndarray:
    return np.array(sorted((ARRAYS[0] * axes).tolist()))


def ascii_stl(header: str = "") -> str:
    facets = "".join(
        "facet normal 0 0 0\n outer loop\n"
        + "".join("  vertex {} {} {:e}\n".format(*ARRAYS[0][n]) for n in triangle)
        + " endloop\nendfacet\n"
        for triangle in ARRAYS[1]
    )
    return f"solid plate {header}\n{facets}endsolid plate\n"


def polydata(vtk, strips: bool = False):
    points, cells = vtk.vtkPoints(), vtk.vtkCellArray()
    points.SetDataTypeToDouble()
    for point in ARRAYS[0]:
        points.InsertNextPoint(point)
    for triangle in ARRAYS[1]:
        cells.InsertNextCell(3, triangle.tolist())
    data = vtk.vtkPolyData()
    data.SetPoints(points)
    data.SetPolys(cells)
    if strips:
        stripper = vtk.vtkStripper()
        stripper.SetInputData(data)
        stripper.Update()
        data = stripper.GetOutput()
        assert data.GetNumberOfStrips() > 0
    names = vtk.vtkFloatArray()
    names.SetName("some field")
    names.SetNumberOfTuples(5)
    names.Fill(2)
    data.GetFieldData().AddArray(names)
    normals = vtk.vtkFloatArray()
    normals.SetName("weight")
    normals.SetNumberOfTuples(8)
    normals.Fill(1)
    data.GetPointData().AddArray(normals)
    return data


def test_ascii_stl(tmp_path):
    path = tmp_path / "plate.stl"
    path.write_text(ascii_stl())
    mesh = read_mesh(path)
    assert mesh.name == "plate" and len(mesh.vertices) == 8 and len(mesh.triangles) == 12
    np.testing.assert_array_equal(corners_of(mesh), expected(LPS))
    assert float(mesh.volume) == pytest.approx(72)
    np.testing.assert_array_equal(corners_of(read_mesh(path, frame="ras", name="x")), expected(1))


@pytest.mark.parametrize(("header", "axes"), [("SPACE=RAS", 1), ("SPACE=LPS", LPS), ("", LPS)])
def test_the_header_names_the_axes_and_the_caller_knows_better(tmp_path, header, axes):
    path = tmp_path / "plate.STL"
    path.write_text(ascii_stl(header))
    np.testing.assert_array_equal(corners_of(read_mesh(path)), expected(axes))
    np.testing.assert_array_equal(corners_of(read_mesh(path, frame="ras")), expected(1))
    np.testing.assert_array_equal(corners_of(read_mesh(path, frame="lps")), expected(LPS))


@pytest.mark.parametrize("frame", ["lps", "ras"])
def test_stl_round_trip(tmp_path, frame):
    mesh = Mesh(*icosphere_arrays(20.0, 3, (100, -50, 3)))
    write_stl(mesh, tmp_path / "ball.stl", frame)
    assert (tmp_path / "ball.stl").stat().st_size == 84 + 50 * len(mesh.triangles)
    again = read_mesh(tmp_path / "ball.stl")
    assert len(again.vertices) == len(mesh.vertices) and len(again.triangles) == len(mesh.triangles)
    np.testing.assert_allclose(again.corners, mesh.corners, atol=1e-5)
    with pytest.raises(PhysicsError, match="'lps' or 'ras'"):
        write_stl(mesh, tmp_path / "ball.stl", "xyz")


@pytest.mark.parametrize("binary", [False, True])
def test_stl_of_vtk(tmp_path, binary):
    vtk = pytest.importorskip("vtk")
    writer = vtk.vtkSTLWriter()
    writer.SetFileName(str(tmp_path / "a.stl"))
    writer.SetInputData(polydata(vtk))
    writer.SetHeader("3D Slicer output. SPACE=RAS" if binary else "solid of 3D Slicer. SPACE=RAS")
    writer.SetFileType(vtk.VTK_BINARY if binary else vtk.VTK_ASCII)
    writer.Write()
    np.testing.assert_array_equal(corners_of(read_mesh(tmp_path / "a.stl")), expected(1))


def test_a_binary_stl_whose_header_begins_with_solid(tmp_path):
    path = tmp_path / "a.stl"
    write_stl(Mesh(*ARRAYS), path)
    path.write_bytes(b"solid" + path.read_bytes()[5:])
    np.testing.assert_array_equal(corners_of(read_mesh(path)), expected(1))


def test_our_stl_is_read_by_vtk(tmp_path):
    vtk = pytest.importorskip("vtk")
    write_stl(Mesh(*ARRAYS), tmp_path / "a.stl", "ras")
    reader = vtk.vtkSTLReader()
    reader.SetFileName(str(tmp_path / "a.stl"))
    reader.Update()
    properties = vtk.vtkMassProperties()
    properties.SetInputConnection(reader.GetOutputPort())
    assert properties.GetVolume() == pytest.approx(72)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("version", [42, 51])
@pytest.mark.parametrize("strips", [False, True])
def test_legacy_vtk(tmp_path, binary, version, strips):
    vtk = pytest.importorskip("vtk")
    writer = vtk.vtkPolyDataWriter()
    writer.SetFileName(str(tmp_path / "a.vtk"))
    writer.SetInputData(polydata(vtk, strips))
    writer.SetFileVersion(version)
    writer.SetHeader("3D Slicer output. SPACE=LPS")
    writer.SetFileType(vtk.VTK_BINARY if binary else vtk.VTK_ASCII)
    writer.Write()
    mesh = read_mesh(tmp_path / "a.vtk")
    np.testing.assert_array_equal(corners_of(mesh), expected(LPS))
    assert len(mesh.triangles) == 12 and float(mesh.volume) == pytest.approx(72)


def test_polygons_of_a_vtk_file_become_triangles(tmp_path):
    faces = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    points = "\n".join(" ".join(str(x) for x in point) for point in ARRAYS[0])
    polygons = "\n".join("4 " + " ".join(str(n) for n in face) for face in faces)
    text = "# vtk DataFile Version 3.0\nplate\nASCII\nDATASET POLYDATA\n"
    (tmp_path / "a.vtk").write_text(f"{text}POINTS 8 float\n{points}\nPOLYGONS 6 30\n{polygons}\n")
    assert float(read_mesh(tmp_path / "a.vtk").volume) == pytest.approx(72)


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
def test_ply_and_obj(tmp_path, suffix):
    trimesh = pytest.importorskip("trimesh")
    path = tmp_path / f"a{suffix}"
    trimesh.Trimesh(*ARRAYS, process=False).export(path)
    np.testing.assert_allclose(corners_of(read_mesh(path)), expected(LPS))
    text = path.read_bytes()
    comment = (b"ply\n", b"ply\ncomment 3D Slicer. SPACE=RAS\n") if suffix == ".ply" else (b"", b"# SPACE=RAS\n")
    path.write_bytes(text.replace(comment[0], comment[1], 1))
    np.testing.assert_allclose(corners_of(read_mesh(path)), expected(1))


def test_without_trimesh_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    (tmp_path / "a.ply").write_text("ply\n")
    with pytest.raises(ReadError, match="needs trimesh"):
        read_mesh(tmp_path / "a.ply")


def test_a_mesh_in_metres_is_noticed(tmp_path):
    write_stl(Mesh(ARRAYS[0] / 1000, ARRAYS[1]), tmp_path / "a.stl")
    with pytest.warns(DiffDRRWarning, match=r"only 0.006 mm across"):
        read_mesh(tmp_path / "a.stl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.vtp", b"<VTKFile>", "not a kind of mesh that is read; save it as STL"),
        ("a.stl", b"", "not an STL file, or is cut short"),
        ("a.stl", b"\0" * 80 + (12).to_bytes(4, "little") + b"\0" * 99, "cut short"),
        ("a.stl", ascii_stl()[:700].encode(), "three corners"),
        ("a.stl", ascii_stl().replace("vertex 4.0", "vertex four", 1).encode(), "cannot be read"),
        ("a.vtk", b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET STRUCTURED_POINTS\n", "holds no surface"),
        ("a.vtk", b"hello", "not a legacy VTK file"),
        ("a.vtk", b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 8 float\n1 2", "ends early"),
        ("a.vtk", b"# vtk DataFile Version 3.0\nx\nBINARY\nDATASET POLYDATA\nPOINTS 8 float\n1 2", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReadError, match=message):
        read_mesh(tmp_path / name)


def test_other_bad_input(tmp_path):
    with pytest.raises(ReadError, match="No such file"):
        read_mesh(tmp_path / "missing.stl")
    (tmp_path / "a.stl").write_text("solid nothing\nendsolid nothing\n")
    with pytest.raises(PhysicsError, match="no triangles"):
        read_mesh(tmp_path / "a.stl")
    with pytest.raises(PhysicsError, match="'lps' or 'ras'"):
        read_mesh(tmp_path / "a.stl", frame="RAI")


def test_a_command_says_a_warning_once(monkeypatch, capsys, tmp_path):
    """An implant is read when it is checked, and again when it is used."""
    write_stl(Mesh(ARRAYS[0] / 1000, ARRAYS[1]), tmp_path / "a.stl")

    def run(options):
        read_mesh(tmp_path / "a.stl"), read_mesh(tmp_path / "a.stl")

    monkeypatch.setattr("DiffDRRCore.cli.info.run", run)
    for _ in range(2):  # and the next command says it again
        assert main(["info", str(tmp_path / "a.stl")]) == 0
        assert capsys.readouterr().err.count("mm across; if it is not in mm") == 1
