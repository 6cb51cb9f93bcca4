"""`calibrate`: from files to files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from DiffDRRCore import XRay
from DiffDRRCore.calibration import BeadPhantom, RadialDistortion, read_calibrated
from DiffDRRCore.cli import main
from DiffDRRCore.imaging.camera_file import read_camera, write_camera
from Testing.core.calibration import scene

PHANTOM = BeadPhantom.helix(24, 40.0, 90.0, 2.0)
CAMERA = scene.camera(384, 0.52, (194.0, 189.0))
START = scene.camera(384, 0.52, None, sdd=1000.0)
TRUE = RadialDistortion.of_image(CAMERA, (0.04, 0.0, 0.0, 0.0))


def distorted(image: torch.Tensor) -> torch.Tensor:
    """As a detector with that distortion shows the image: bilinear, apart from the code under test."""
    v, u = torch.meshgrid(torch.arange(384.0), torch.arange(384.0), indexing="ij")
    ideal = TRUE.undistort(torch.stack([u, v], dim=-1))
    grid = (2 * ideal / 383 - 1).to(image)[None]
    return torch.nn.functional.grid_sample(image[None, None], grid, align_corners=True, padding_mode="border")[0, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    PHANTOM.write(folder / "beads.json")
    for number, pose in enumerate(scene.poses(np.random.default_rng(1), 3, shift=3.0)):
        made = scene.xray(PHANTOM, CAMERA, pose, number)
        XRay(distorted(made.image), START, meta={"intensity": "transmission"}).write(folder / f"{number}.nrrd")
    return folder


@pytest.fixture
def run(capsys):
    def call(*arguments) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_calibrate_and_apply(folder, run, tmp_path):
    images = [folder / f"{number}.nrrd" for number in range(3)]
    code, out, err = run(
        *(
            "calibrate",
            *images,
            "--phantom",
            folder / "beads.json",
            "--distortion",
            "radial",
            "-o",
            tmp_path / "c.json",
        ),
        *("--picture", tmp_path / "fit.png", "--undistorted", tmp_path / "plain"),
        *("--camera-output", tmp_path / "camera.json", "--json"),
    )
    assert code == 0, err
    values = json.loads(out)
    assert values["rms"] < 0.15
    assert abs(values["values"]["source_to_detector"] - 1020) < 4 * values["deviations"]["source_to_detector"] + 1
    assert err.count("of 24 beads") == 3
    camera, distortion = read_calibrated(tmp_path / "c.json")
    assert torch.equal(read_camera(tmp_path / "camera.json").camera.K, camera.K)
    uv = torch.tensor([[60.0, 70.0], [300.0, 330.0], [190.0, 50.0]], dtype=torch.float64)
    assert (TRUE.shift(uv).norm(dim=-1) > 1.5).all()
    assert (distortion.shift(uv) - TRUE.shift(uv)).abs().max() < 0.5
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    plain = XRay.read(tmp_path / "plain" / "0.nii.gz")
    assert torch.equal(plain.camera.K, camera.K) and plain.pose is not None

    code, out, err = run("calibrate", images[0], "--apply", tmp_path / "c.json", "--undistorted", tmp_path / "again")
    assert code == 0, err
    assert torch.equal(XRay.read(tmp_path / "again" / "0.nii.gz").image, plain.image)


def test_tables(folder, run):
    images = [folder / f"{number}.nrrd" for number in range(2)]
    code, out, _ = run(
        "calibrate", *images, "--phantom", folder / "beads.json", "--distortion", "tangential", "--quiet"
    )
    assert code == 0
    assert all(word in out for word in ("source_to_detector", "k1", "p2", "deviation", "0.nrrd", "rms (px)", "noise"))


@pytest.mark.parametrize(
    "more, says",
    [
        ([], "--phantom FILE, to calibrate, or --apply"),
        (["--phantom", "beads.json", "--cells", "3", "3"], "--cells is of --distortion grid"),
        (["--phantom", "beads.json", "--prior", "pixel_size"], "NAME=DEVIATION"),
        (["--phantom", "beads.json", "--prior", "pixel_size=1"], "not free"),
        (["--phantom", "nowhere.json"], "Cannot read"),
        (["--apply", "c.json"], "needs --undistorted"),
        (["--apply", "c.json", "-o", "x.json"], "only takes --undistorted"),
        (["--apply", "beads.json", "--undistorted", "x"], "no calibration file"),
        (["--phantom", "beads.json", "--camera", "other.json"], "384 x 384 pixels but its camera is for 50 x 50"),
        (["--phantom", "beads.json", "--camera-output", "x.json", "--distortion", "grid"], "camera of undistorted"),
    ],
)
def test_bad_input_is_one_sentence(folder, run, monkeypatch, more, says):
    monkeypatch.chdir(folder)
    write_camera(folder / "other.json", scene.camera(50, 3.0))
    code, _, err = run("calibrate", "0.nrrd", *more)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
