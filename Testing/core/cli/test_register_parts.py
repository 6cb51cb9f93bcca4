"""`register` with bones that move apart, a C-arm that is not calibrated, and a source-to-detector distance to find."""

from __future__ import annotations

import json
import math

import pytest
import torch

from DiffDRRCore import CArm, Pose, RegistrationResult, Renderer, Volume, XRay
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import moved_apart, simulated_xray
from DiffDRRCore.evaluation.figures import result_images
from DiffDRRCore.geometry.itk_transform import read_itk_transform
from DiffDRRCore.imaging.camera_file import write_camera

SHIFT = Pose.exp(torch.tensor([0.0, 0.06, 0.0, 4.0, 0.0, -3.0]).double())


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr("DiffDRRCore.cli.register.find_spec", lambda name: None)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Files of a small phantom whose left hip has moved, and of two X-rays of it."""
    folder = tmp_path_factory.mktemp("bones")
    volume = phantom((48, 40, 48), 7.0)
    volume.write(folder / "ct.nii.gz", folder / "labels.nii.gz")
    parts = moved_apart(volume, {8: SHIFT})
    for number, primary in enumerate((0.0, 80.0)):
        arm = CArm(1000.0, 700.0, volume.center, primary=primary)
        xray = simulated_xray(parts, arm.camera(64, 64, (6.0, 6.0)), arm.pose, oversampling=2, seed=number)
        xray.write(folder / f"{number}.nii.gz")
        write_camera(folder / f"{number}.json", xray.camera, arm.pose, "attenuation")
    return folder


def registered(run, scene, tmp_path, *arguments, code=0):
    given = [scene / "ct.nii.gz", scene / "0.nii.gz", scene / "1.nii.gz", "--labelmap", scene / "labels.nii.gz"]
    given += ["--camera", scene / "0.json", "--camera", scene / "1.json"]
    found, out, err = run("register", *given, "--sizes", 32, 64, "--search", 0, "-o", tmp_path / "out", *arguments)
    assert found == code, err
    return out + err


def test_a_bone_that_moved_and_the_rest_that_did_not(run, scene, tmp_path):
    out = registered(run, scene, tmp_path, "--body", "hip=8", "--body", "other=rest", "--locked", "other")
    result = RegistrationResult.load(tmp_path / "out" / "result.json")
    hip = result.body("hip")
    assert float((hip.motion.transform(hip.about[None]) - SHIFT.transform(hip.about[None])).norm()) < 1.0
    assert torch.equal(result.body("other").motion.matrix, torch.eye(4).double())
    written = torch.as_tensor(read_itk_transform(tmp_path / "out" / "body_hip.tfm"))
    assert torch.allclose(written.double(), hip.motion.matrix, atol=1e-6)
    assert "locked" in out and "hip" in out
    for clean, (_, before, after) in zip(seen({8: SHIFT}), pictured(scene, result), strict=True):
        assert apart(clean, after) < 0.2 * apart(clean, before)


def pictured(scene, result, second=None):
    """What the pictures of this result compare; with the start of the second view, where that is not its own pose."""
    volume = Volume.read(scene / "ct.nii.gz", scene / "labels.nii.gz")
    xrays = [XRay.read(scene / f"{number}.nii.gz", camera=scene / f"{number}.json") for number in (0, 1)]
    return list(result_images(volume, xrays, [xrays[0].pose, xrays[1].pose if second is None else second], result))


def seen(motions):
    """The two images without noise."""
    parts = moved_apart(phantom((48, 40, 48), 7.0), motions)
    for primary in (0.0, 80.0):
        arm = CArm(1000.0, 700.0, phantom((48, 40, 48), 7.0).center, primary=primary)
        yield sum(Renderer(part)(arm.camera(64, 64, (6.0, 6.0)), arm.pose)[0, 0] for part in parts)


def apart(a, b):
    """What their correlation lacks to 1."""
    return 1 - float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_an_uncalibrated_arm_and_an_unknown_distance(run, scene, tmp_path):
    """The second C-arm's pose says 82 degrees and is 80; the distance says 1020 and is 1000."""
    camera = json.loads((scene / "1.json").read_text())
    arm = CArm(1000.0, 700.0, phantom((48, 40, 48), 7.0).center, primary=82.0)
    camera["pose"] = arm.pose.matrix.tolist()
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(camera))
    given = [scene / "ct.nii.gz", scene / "0.nii.gz", scene / "1.nii.gz", "--camera", scene / "0.json"]
    code, out, err = run(
        *("register", *given, "--camera", wrong, "--free-view", 2, "--free-sdd", 50, "--sizes", 32, 64),
        *("--search", 0, "-o", tmp_path / "out"),
    )
    assert code == 0, err
    result = RegistrationResult.load(tmp_path / "out" / "result.json")
    relative = result.carms[0].inverse() @ result.carms[1]
    angle = math.degrees(math.acos((float(relative.rotation.trace()) - 1) / 2))
    assert angle == pytest.approx(80, abs=0.7)
    assert (tmp_path / "out" / "view2_camera.json").exists()
    assert "source-to-detector distance changed by" in out
    _, (_, before, after) = pictured(scene, result, second=arm.pose)
    _, clean = seen({})
    assert apart(clean, after) < 0.2 * apart(clean, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--body", "hip"], "write NAME=LABELS"),
        (["--body", "a/b=8"], "no slashes"),
        (["--body", "hip=8", "--locked", "leg"], "--locked leg"),
        (["--free-view", 3], "numbered 1 to 2"),
        (["--body", "hip=8", "--body", "leg=8"], "Label 8 is in two bodies"),
        (["--body", "hip=nonsense"], "nonsense"),
    ],
)
def test_bad_parts(run, scene, tmp_path, arguments, message):
    assert message in registered(run, scene, tmp_path, *arguments, code=2)
