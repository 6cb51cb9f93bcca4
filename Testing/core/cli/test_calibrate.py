"""`calibrate` with a distortion that is known before, and what contradicts it; images drawn by closed forms."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from DiffDRRCore import XRay
from DiffDRRCore.cli import main
from DiffDRRCore.imaging.camera_file import read_camera, write_camera
from DiffDRRCore.imaging.distortion import RadialDistortion
from Testing.scene import bead_images as made

RADIAL = RadialDistortion.of_image(made.CAMERA, (made.K1, 0.0, 0.0, 0.0))
POSES = made.poses(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beads")
    made.PHANTOM.write(folder / "beads.json")
    for number, pose in enumerate(POSES):
        made.xray(pose, seed=number, k1=made.K1).write(folder / f"{number}.nrrd")
    write_camera(folder / "known.json", made.START, intensity="attenuation", distortion=RADIAL)
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)

    def call(*arguments) -> tuple[int, str, str]:
        try:
            code = main(["calibrate", *(str(one) for one in arguments)])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_known_distortion_is_kept(run, tmp_path):
    code, out, err = run(
        *("0.nrrd", "1.nrrd", "--phantom", "beads.json", "--camera", "known.json", "-o", tmp_path / "c.json"),
        *("--undistorted", tmp_path, "--camera-output", tmp_path / "camera.json", "--quiet", "--json"),
    )
    assert code == 0, err
    values = json.loads(out)
    assert values["distortion"] == RADIAL.to_dict() and values["rms"] < 0.3
    deviation = values["deviations"]["source_to_detector"]
    assert abs(values["values"]["source_to_detector"] - made.SDD) < 4 * deviation + 1
    plain, inner = XRay.read(tmp_path / "0.nii.gz"), slice(20, -20)
    ideal, recorded = made.image(POSES[0]), made.image(POSES[0], k1=made.K1, seed=0)
    before, after = ((one - ideal)[inner, inner].std() for one in (recorded, plain.image.numpy()))
    assert after < 0.2 * before


def test_a_calibration_reads_other_images_without_their_distortion(run, tmp_path, folder):
    code, _, err = run(
        *("0.nrrd", "1.nrrd", "--phantom", "beads.json", "--distortion", "radial", "-o", tmp_path / "c.json", "--quiet")
    )
    assert code == 0, err
    xray = XRay.read(folder / "0.nrrd", camera=tmp_path / "c.json")
    assert run("0.nrrd", "--apply", tmp_path / "c.json", "--undistorted", tmp_path)[0] == 0
    applied = XRay.read(tmp_path / "0.nii.gz")
    np.testing.assert_allclose(applied.image, xray.image, atol=1e-5)
    assert np.array_equal(applied.camera.K, read_camera(tmp_path / "c.json").camera.K)


def test_it_starts_from_an_earlier_calibration(run, tmp_path):
    """A start from the distortion that is there, which is freed again."""
    code, out, err = run(
        *("0.nrrd", "1.nrrd", "--phantom", "beads.json", "--camera", "known.json", "--distortion", "radial"),
        *("--quiet", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["values"]["k1"] == pytest.approx(made.K1, abs=0.01)


def test_one_image_twice(run, folder):
    shutil.copy(folder / "0.nrrd", folder / "copy.nrrd")
    shutil.copy(folder / "0.json", folder / "copy.json")
    code, _, err = run("0.nrrd", "1.nrrd", "copy.nrrd", "--phantom", "beads.json")
    assert code == 2 and "The images 0.nrrd and copy.nrrd are the same: leave one out" in err


def test_a_camera_beside_the_image_with_a_distortion_is_no_start(run, folder, tmp_path):
    shutil.copy(folder / "0.nrrd", tmp_path / "a.nrrd")
    shutil.copy(folder / "known.json", tmp_path / "a.json")
    code, _, err = run(tmp_path / "a.nrrd", "--phantom", "beads.json", "--intensity", "attenuation")
    assert code == 2 and "has a distortion already: give --camera" in err


@pytest.mark.parametrize(
    "more, says",
    [
        (("--distortion", "grid"), "of another kind than --distortion"),
        (("--prior", "distortion=0.1"), "not free"),
    ],
)
def test_what_contradicts_the_distortion_is_one_sentence(run, more, says):
    code, _, err = run("0.nrrd", "--phantom", "beads.json", "--camera", "known.json", *more)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1


def test_info_and_convert_know_the_distortion(folder, tmp_path, capsys):
    assert main(["info", str(folder / "known.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["distortion (pixels, at most)"] == pytest.approx(made.K1 * (made.SIZE - 1) / np.sqrt(2), rel=0.02)
    np.savetxt(tmp_path / "pose.csv", np.eye(4), delimiter=",")
    arguments = ["convert", "pose", tmp_path / "pose.csv", tmp_path / "out.json", "--camera", folder / "known.json"]
    assert main([str(one) for one in arguments]) == 0
    assert read_camera(tmp_path / "out.json").distortion.to_dict() == RADIAL.to_dict()
