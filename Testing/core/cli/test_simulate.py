"""`simulate`: one image, a sweep, a training set, and a sentence for each bad input."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time

import numpy as np
import pydicom
import pytest
import SimpleITK
import torch

from DiffDRRCore import Pose, XRay
from DiffDRRCore.files import locked
from DiffDRRCore.geometry.itk_transform import write_itk_transform
from DiffDRRCore.imaging.camera_file import read_camera
from DiffDRRCore.physics.simulation.training_set import read_manifest
from DiffDRRCore.physics.solids.files import write_stl
from DiffDRRCore.physics.solids.mesh import Mesh

CIOS = ("--device-preset", "cios", "--binning", 48)  # 32 x 32 pixels


def cube(half: float) -> Mesh:
    corners = [(x, y, z) for x in (-half, half) for y in (-half, half) for z in (-half, half)]
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = [t for a, b, c, d in faces for t in ((a, b, c), (a, c, d))]
    return Mesh(torch.tensor(corners, dtype=torch.float64), torch.tensor(triangles))


def test_one_image_is_a_dicom_file_with_everything_in_it(simulate, tmp_path, files):
    told = simulate(
        *(*CIOS, "--primary", -30, "--secondary", 10, "--kvp", 70, "--filter", "Al=2.5", "Cu=0.1"),
        *("--dose", 0.5, "--focal-spot", 0.6, "--blur", 1.8, "--scatter", "--grid", "--heel"),
        *("--collimator", 20, 20, 20, 20, "--seed", 5),
    )
    header = pydicom.dcmread(tmp_path / "x.dcm")
    assert (header.KVP, header.FocalSpots, header.Grid) == (70, 0.6, "IN")
    assert (list(header.FilterMaterial), list(header.FilterThicknessMaximum)) == (["ALUMINUM", "COPPER"], [2.5, 0.1])
    assert (header.PositionerPrimaryAngle, header.PositionerSecondaryAngle) == (-30, 10)
    assert (header.DistanceSourceToDetector, header.DistanceSourceToPatient) == (1020, 530)
    assert header.ImageType[1] == "SECONDARY"
    again = XRay.read(tmp_path / "x.dcm")
    beside = read_camera(tmp_path / "x.json")
    assert float((again.pose.rotation - beside.pose.rotation).abs().max()) < 1e-9
    isocenter = beside.pose.translation + 530 * beside.pose.rotation[:, 2]
    assert isocenter.tolist() == pytest.approx(files.volume.center.tolist(), abs=1e-6)
    assert float((again.camera.K - beside.camera.K).abs().max()) < 1e-5
    assert beside.meta["seed"] == told["seed"] == 5
    assert beside.meta["simulation"]["spectrum"]["kvp"] == 70
    assert told["i0"] == pytest.approx(0.8 * 65535, rel=1e-6)
    assert float(again.image[0, 0]) < 0.01 * told["i0"]  # behind the blades there is scatter only
    assert float(again.image.max()) == told["maximum"] > 0.01 * told["i0"]


def test_counts_are_the_open_beam_times_the_transmission(simulate, tmp_path):
    """Beside the patient the image is i0 = dose x photons per uGy x area x energy absorbed: linear in the dose."""
    view = ("--height", 48, "--width", 48, "--pixel-spacing", 20, 20, "--sdd", 1000, "--sod", 700, "--no-noise")
    ideal = ("--detector", "ideal", "--kvp", 90, "--filter", "Al=4")
    one = simulate(*view, *ideal, "--dose", 1, output="one.tif")
    image = XRay.read(tmp_path / "one.tif").image
    assert float(image.max()) == pytest.approx(one["i0"], rel=1e-5)
    assert 0 < float(image.min()) < 0.3 * one["i0"]
    twice = simulate(*view, *ideal, "--dose", 2, output="two.tif")
    assert twice["i0"] == pytest.approx(2 * one["i0"], rel=1e-9)
    assert torch.allclose(XRay.read(tmp_path / "two.tif").image, 2 * image, rtol=1e-5)
    # 1000 photons of 48.74 keV (SpekPy's mean for this beam; air between hardens nothing here).
    photons = simulate(*view, *ideal, "--photons", 1000, output="p.nii.gz")
    assert photons["i0"] == pytest.approx(1000 * 48.74, rel=5e-3)


def test_noise_comes_from_the_seed(simulate, tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        simulate(*CIOS, "--seed", seed, "--dose", 0.05, output=name)
    first, same, other = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert first == same != other


def test_a_sweep_is_one_run_or_numbered_files(simulate, tmp_path):
    angles = ("--sweep", -20, 20, 3, "--secondary", 5, "--seed", 1)
    simulate(*CIOS, *angles, output="run.dcm")
    for number, primary in enumerate((-20, 0, 20)):
        frame = XRay.read(tmp_path / "run.dcm", frame=number)
        assert frame.meta["positioner_primary_angle"] == pytest.approx(primary, abs=1e-9)
        assert frame.meta["positioner_secondary_angle"] == pytest.approx(5, abs=1e-9)
    told = simulate(*CIOS, *angles, output="f.png")
    assert [path.rpartition("/")[2] for path in told["output"]] == ["f_0000.png", "f_0001.png", "f_0002.png"]
    for number in range(3):
        alone, frame = XRay.read(tmp_path / f"f_{number:04d}.png"), XRay.read(tmp_path / "run.dcm", frame=number)
        assert torch.equal(alone.image, frame.image)
        assert float((alone.pose.rotation - frame.pose.rotation).abs().max()) < 1e-9


def test_an_implant_in_its_place_and_its_mask(simulate, tmp_path, files):
    """A cube of 20 mm at the isocentre: a square shadow of 20 x 1020 / 520 mm by its near face, in the middle."""
    write_stl(cube(10.0), tmp_path / "cube.stl", frame="ras")
    center = torch.eye(4, dtype=torch.float64)
    center[:3, 3] = files.volume.center.double()
    write_itk_transform(tmp_path / "cube.tfm", Pose(center).matrix)
    implant = ("--implant", f"{tmp_path / 'cube.stl'}=titanium", "--implant-pose", tmp_path / "cube.tfm")
    camera = ("--device-preset", "cios", "--binning", 12, "--no-noise")
    simulate(*camera, *implant, "--masks", tmp_path / "masks", "--seed", 0)
    simulate(*camera, "--seed", 0, output="without.dcm")
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "masks" / "cube.png")))
    side = 20 * 1020 / 520 / (12 * 0.194)
    assert math.sqrt((mask == 255).sum()) == pytest.approx(side, abs=1)
    rows, columns = np.nonzero(mask)
    assert (rows.mean(), columns.mean()) == (pytest.approx(63.5, abs=0.1), pytest.approx(63.5, abs=0.1))
    depth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "masks" / "cube.depth.nrrd")))
    assert depth[63:65, 63:65].mean() == pytest.approx(520, abs=0.01) and depth[0, 0] == 0
    with_it, without = (XRay.read(tmp_path / name).image for name in ("x.dcm", "without.dcm"))
    assert bool((with_it[63:65, 63:65] < 0.2 * without[63:65, 63:65]).all())
    assert torch.equal(with_it[:20], without[:20])


def test_an_implant_beside_the_beam_is_told(run, tmp_path, files):
    write_stl(cube(10.0), tmp_path / "cube.stl", frame="ras")
    away = torch.eye(4, dtype=torch.float64)
    away[:3, 3] = files.volume.center.double() + torch.tensor([400.0, 0.0, 0.0])
    write_itk_transform(tmp_path / "away.tfm", Pose(away).matrix)
    implant = ("--implant", f"{tmp_path / 'cube.stl'}=titanium", "--implant-pose", tmp_path / "away.tfm")
    code, _, err = run("simulate", files.ct, *CIOS, *implant, "--output", tmp_path / "x.tif")
    assert code == 0
    assert "warning: No ray meets the implant 'cube'" in err


def test_labels_get_materials_and_masks(simulate, tmp_path, files):
    labels = ("--labelmap", files.labelmap, "--no-noise", "--seed", 0)
    simulate(*CIOS, *labels, output="a.tif")
    simulate(*CIOS, *labels, "--materials", "vertebrae=steel", "--masks", output="b.tif")
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "b_masks" / "vertebrae.png"))) > 0
    before, after = (XRay.read(tmp_path / name).image.numpy() for name in ("a.tif", "b.tif"))
    assert np.median(after[mask]) < 0.1 * np.median(before[mask])


RANGES = {
    "primary": [-30, 30],
    "shift_s": {"normal": [0, 20], "within": [-50, 50]},
    "kvp": {"choice": [60, 70]},
    "dose": {"log_uniform": [0.02, 2]},
    "bone_contrast": {"choice": [1.0, 1.2]},
}


@pytest.fixture
def training(files, tmp_path):
    (tmp_path / "ranges.json").write_text(json.dumps(RANGES))
    return ("simulate", files.ct, *CIOS, "--ranges", tmp_path / "ranges.json", "--seed", 7)


def test_a_training_set_goes_on_where_it_stopped(run, training, tmp_path):
    """Three images at once, or two, then half a line of rubbish, then all: the same files."""
    code, out, err = run(*training, "--count", 3, "--workers", 0, "--json", "--output", tmp_path / "whole")
    assert code == 0, err
    assert json.loads(out)["images"] == 3
    assert run(*training, "--count", 2, "--workers", 0, "--output", tmp_path / "parts")[0] == 0
    manifest = tmp_path / "parts" / "images.jsonl"
    kept = manifest.read_bytes()
    manifest.write_bytes(kept + b'{"number": 2, "fail')
    (tmp_path / "parts" / "images" / "000002.png").write_bytes(b"half")
    assert run(*training, "--count", 3, "--workers", 0, "--output", tmp_path / "parts")[0] == 0
    assert manifest.read_bytes().startswith(kept)
    whole, parts = (read_manifest(tmp_path / name) for name in ("whole", "parts"))
    assert whole == parts
    for line in whole:
        assert (tmp_path / "whole" / line["image"]).read_bytes() == (tmp_path / "parts" / line["image"]).read_bytes()
        assert {name: line["setup"][name] for name in RANGES} == line["values"]
        again = XRay.read(tmp_path / "whole" / line["image"])
        assert np.allclose(again.pose.matrix, line["pose"])
        assert (again.meta["seed"], again.meta["i0"]) == (line["seed"], line["i0"])
        assert again.meta["simulation"]["exposure"]["kerma"] == line["values"]["dose"]
    assert len({line["seed"] for line in whole}) == 3


def test_another_set_needs_another_folder(run, training, tmp_path):
    folder = tmp_path / "set"
    assert run(*training, "--count", 1, "--workers", 0, "--output", folder)[0] == 0
    code, _, err = run(*training, "--count", 1, "--workers", 0, "--kvp", 90, "--output", folder)
    assert code == 2 and "other parameters" in err
    with locked(folder):
        code, _, err = run(*training, "--count", 2, "--workers", 0, "--output", folder)
    assert code == 2 and "Another run" in err
    assert len(read_manifest(folder)) == 1
    code, _, err = run(*training, "--count", 1, "--workers", 0, "--output", tmp_path)
    assert code == 2 and "holds no training set" in err


def test_images_that_cannot_be_made_say_why(run, training, tmp_path):
    (tmp_path / "ranges.json").write_text(json.dumps({"shift_s": {"choice": [0, 5000]}}))
    code, out, err = run(*training, "--count", 6, "--workers", 0, "--json", "--output", tmp_path / "set")
    assert code == 0, err
    lines = read_manifest(tmp_path / "set")
    for line in lines:
        assert (line["failure"] is None) == (line["values"]["shift_s"] == 0)
        assert line["failure"] is None or "No ray meets the CT" in line["failure"]
    assert 0 < json.loads(out)["failed"] < 6
    (tmp_path / "ranges.json").write_text(json.dumps({"shift_s": 5000}))
    code, _, err = run(*training, "--count", 1, "--workers", 0, "--output", tmp_path / "none")
    assert code == 2 and "Not one of the 1 images could be made" in err


@pytest.mark.slow
def test_a_killed_run_loses_nothing_and_workers_change_nothing(run, training, tmp_path):
    arguments = [str(one) for one in (*training, "--count", 6, "--workers", 2, "--output", tmp_path / "killed")]
    process = subprocess.Popen([sys.executable, "-m", "DiffDRRCore", *arguments], stderr=subprocess.PIPE)
    manifest, until = tmp_path / "killed" / "images.jsonl", time.monotonic() + 240
    while not (manifest.exists() and manifest.stat().st_size) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert read_manifest(tmp_path / "killed")
    assert run(*training, "--count", 6, "--workers", 0, "--output", tmp_path / "killed")[0] == 0
    assert run(*training, "--count", 6, "--workers", 0, "--output", tmp_path / "alone")[0] == 0
    assert read_manifest(tmp_path / "killed") == read_manifest(tmp_path / "alone")
    for path in sorted((tmp_path / "alone" / "images").iterdir()):
        assert path.read_bytes() == (tmp_path / "killed" / "images" / path.name).read_bytes()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("--kvp", 35), "mean photon energy in keV, the kVp is about twice"),
        (("--kvp", 70000), "volts"),
        (("--filter", "Al"), "NAME=VALUE"),
        (("--filter", "Unobtainium=1"), "no material 'Unobtainium'"),
        (("--filter", "Al=2,5"), "thickness in mm"),
        (("--csi-mm", 600), "up to 10 mm"),
        (("--focal-spot", 60), "0 to 5 mm"),
        (("--materials", "3=unobtainium"), "no material 'unobtainium'"),
        (("--implant", "none.stl=steel"), "none.stl' cannot be read"),
        (("--implant", "a.stl=steel", "--implant-pose", "a.tfm", "--implant-pose", "b.tfm"), "once for each"),
        (("--primary", 80), "must be -110 to 40 degrees"),
        (("--sweep", 0, 80, 9), "must be -110 to 40 degrees"),
        (("--sweep", 0, 10, 0), "whole number of positions"),
        (("--sdd", 102), "must be 1020 mm"),
        (("--sod", 500), "contradict each other"),
        (("--device-preset", "cioss"), "no device 'cioss'; there are: cios"),
        (("--dose", 1, "--photons", 100), "contradict each other"),
        (("--dose", 1e6), "nGy"),
        (("--grid",), "stop scatter"),
        (("--bits", 20), "up to 16 bits"),
        (("--ranges", "r.json"), "give --count"),
        (("--count", 0, "--workers", 0), "1 image or more"),
        (("--count", 2, "--format", "jpg"), "not '.jpg'"),
        (("--count", 2, "--ranges", "none.yaml"), "Cannot read"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(run, files, tmp_path, arguments, reason):
    code, out, err = run("simulate", files.ct, *CIOS, *arguments, "--output", tmp_path / "x.png")
    assert code == 2 and out == ""
    assert reason in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((*CIOS, "--isocenter", 0, 0, 3000), "No ray meets the CT"),
        (
            ("--height", 9, "--width", 9, "--pixel-spacing", 9, 9, "--sdd", 1000, "--sod", 100, "--primary", 90),
            "inside the patient",
        ),
        (("--height", 9, "--width", 9, "--pixel-spacing", 9, 9, "--sdd", 1000, "--sod", 0.7), "looks like metres"),
        (("--height", 9, "--width", 9, "--pixel-spacing", 9, 9, "--sdd", 700, "--sod", 1000), "behind the detector"),
        (("--height", 9, "--width", 9, "--pixel-spacing", 9, 9, "--sdd", 1000), "There is no pose"),
        (("--height", 9, "--width", 9, "--pixel-spacing", 9, 9, "--sdd", 70, "--sod", 500), "70"),
        (("--binning", 2), "--device-preset"),
        ((*CIOS, "--materials", "99=steel"), "no labelmap"),
    ],
)
def test_geometry_that_cannot_be(run, files, tmp_path, arguments, reason):
    code, _, err = run("simulate", files.ct, *arguments, "--output", tmp_path / "x.png")
    assert code == 2 and reason in err
    assert not list(tmp_path.iterdir())


def test_help_has_units_and_an_example(run):
    code, out, _ = run("simulate", "--help")
    assert code == 0
    for word in ("uGy", "kV", "mm", "degrees", "python -m DiffDRRCore simulate ct.nii.gz", "--count N --ranges"):
        assert word in out


def test_a_missing_ct(run, tmp_path):
    code, _, err = run("simulate", tmp_path / "no.nii.gz", *CIOS, "--output", tmp_path / "x.png")
    assert code == 2 and "no CT at" in err
    shutil.rmtree(tmp_path)
