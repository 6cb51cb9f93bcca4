"""Landmarks and implants in the images of `simulate`, where similar triangles say."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
import torch

from DiffDRRCore import Pose, XRay
from DiffDRRCore.geometry.itk_transform import write_itk_transform
from DiffDRRCore.imaging.camera_file import read_camera
from DiffDRRCore.physics.simulation.training_set import read_manifest
from DiffDRRCore.physics.solids.files import write_stl
from Testing.core.cli.test_simulate import CIOS, cube

PIXEL = 48 * 0.194  # mm, of CIOS
MAGNIFICATION = 1020 / 530  # at its isocentre


@pytest.fixture
def points(files, tmp_path):
    """The isocentre, 30 mm above it, far above it, and behind the source."""
    r, a, s = files.volume.center.tolist()
    rows = {"middle": (r, a, s), "up": (r, a, s + 30), "far": (r, a, s + 400), "behind": (r, a - 600, s)}
    text = "\n".join(f"{name},{x},{y},{z}" for name, (x, y, z) in rows.items())
    (tmp_path / "points.csv").write_text(f"name,r,a,s\n{text}\n")
    return tmp_path / "points.csv"


def check_points(found: dict) -> None:
    """By similar triangles, the beam from the back, the head up."""
    step = 30 * MAGNIFICATION / PIXEL
    assert found["middle"]["pixel"] == pytest.approx([15.5, 15.5], abs=1e-3)
    assert found["up"]["pixel"] == pytest.approx([15.5, 15.5 - step], abs=1e-3)
    assert found["far"]["pixel"] == pytest.approx([15.5, 15.5 - step * 40 / 3], abs=1e-2)
    assert found["behind"] == {"pixel": None, "visible": False}
    assert [one["visible"] for one in found.values()] == [True, True, False, False]


def test_landmarks_have_pixels(simulate, run, files, points, tmp_path):
    told = simulate(*CIOS, "--landmarks", points)
    check_points(told["landmarks"])
    assert read_camera(tmp_path / "x.json").meta["landmarks"] == told["landmarks"]
    blades = 15.5 * PIXEL - 20  # down to 20 mm above the middle, at the detector
    told = simulate(*CIOS, "--landmarks", points, "--collimator", blades, 0, 0, 0)
    assert [one["visible"] for one in told["landmarks"].values()] == [True, False, False, False]
    code, out, err = run("simulate", files.ct, *CIOS, "--landmarks", points, "--output", tmp_path / "x.png")
    assert code == 0, err
    assert "landmark middle: (15.50, 15.50)\n" in out and "landmark behind: no pixel, not in the image" in out


def test_landmarks_are_in_the_manifest(run, files, points, tmp_path):
    folder = tmp_path / "set"
    set_of_one = (*CIOS, "--landmarks", points, "--count", 1, "--workers", 0, "--output", folder)
    assert run("simulate", files.ct, *set_of_one)[0] == 0
    check_points(read_manifest(folder)[0]["landmarks"])


@pytest.fixture
def cubes(files, tmp_path):
    """Two equal cubes to the patient's right of the isocentre; a.stl is in RAS, and says so."""
    place = torch.eye(4, dtype=torch.float64)
    place[:3, 3] = files.volume.center.double()
    write_itk_transform(tmp_path / "at.tfm", Pose(place).matrix)
    shifted = cube(8.0).transformed(torch.tensor([[1.0, 0, 0, 25], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    for name in "ab":
        write_stl(shifted, tmp_path / f"{name}.stl", frame="ras")

    def arguments(*implants):
        parts = [
            ("--implant", f"{tmp_path / name}.stl={of}", "--implant-pose", tmp_path / "at.tfm") for name, of in implants
        ]
        return (*CIOS, "--no-noise", "--seed", 0, *(word for part in parts for word in part))

    return arguments


def middle_of(path) -> float:
    return float(np.nonzero(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))[1].mean())


def test_the_frame_of_an_implant(simulate, cubes, tmp_path):
    """What is said wins over the file: the other frame mirrors it to the other side of the isocentre."""
    simulate(*cubes(("a", "steel")), "--masks", tmp_path / "ras")
    simulate(*cubes(("a", "steel")), "--implant-frame", "lps", "--masks", tmp_path / "lps")
    ras, lps = (middle_of(tmp_path / frame / "a.png") for frame in ("ras", "lps"))
    assert ras + lps == pytest.approx(31, abs=0.6)
    assert abs(ras - lps) == pytest.approx(2 * 25 * MAGNIFICATION / PIXEL, abs=1.0)


def test_the_priority_of_an_implant(simulate, cubes, tmp_path):
    both = cubes(("a", "steel"), ("b", "PMMA"))
    simulate(*cubes(("a", "steel")), output="steel.tif")
    simulate(*cubes(("b", "PMMA")), output="pmma.tif")
    simulate(*both, output="later.tif")
    simulate(*both, "--implant-priority", 2, "--implant-priority", 1, output="first.tif")
    simulate(*both, "--implant-priority", 7, output="same.tif")
    image = {path.stem: XRay.read(path).image for path in tmp_path.glob("*.tif")}
    assert torch.allclose(image["later"], image["pmma"], rtol=1e-4)
    assert torch.allclose(image["same"], image["pmma"], rtol=1e-4)
    assert torch.allclose(image["first"], image["steel"], rtol=1e-4)
    assert not torch.allclose(image["first"], image["later"], rtol=1e-2)
