"""Beads in simulated X-rays (steel balls, polychromatic, blurred, noisy): where they are, and which is which."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from DiffDRRCore import CArm, project
from DiffDRRCore.calibration import BeadPhantom, Beads, calibrate_images, find_beads, match_beads
from DiffDRRCore.errors import CalibrationError, DiffDRRWarning, ReadError
from Testing.core.calibration import scene

PHANTOM = BeadPhantom.helix(24, 40.0, 90.0, 2.0)
CAMERA = scene.camera(384, 0.52, (194.0, 189.0))
START = scene.camera(384, 0.52, None, sdd=1000.0)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    poses = scene.poses(rng, 3, shift=3.0)
    return [(pose, scene.xray(PHANTOM, CAMERA, pose, seed)) for seed, pose in enumerate(poses)]


@pytest.fixture(scope="module")
def calibrated(images):
    return calibrate_images(PHANTOM, [xray for _, xray in images], START)


def alone(pose):
    """(pixels, radii) of the beads that overlap with no other and are all in the image."""
    uv = project(CAMERA, pose, PHANTOM.positions)[0]
    depth = pose.inverse().transform(PHANTOM.positions)[:, 2]
    radii = CAMERA.K[1, 1] * PHANTOM.radii / depth
    away = torch.cdist(uv, uv).fill_diagonal_(1e9)
    free = (away > 1.5 * (radii[:, None] + radii)).all(dim=1) & ((uv > 12) & (uv < 371)).all(dim=1)
    return uv[free], radii[free]


def test_centres_to_a_tenth_of_a_pixel(images, calibrated):
    total = []
    for (pose, _), view in zip(images, calibrated[1], strict=True):
        uv, radii = alone(pose)
        assert len(uv) >= 12
        beads = view.beads
        error, nearest = torch.cdist(uv, beads.centers).min(dim=1)
        total.append(error)
        assert error.max() < 0.1
        assert (beads.radii[nearest] / radii - 1).abs().max() < 0.12
    assert torch.cat(total).square().mean().sqrt() < 0.03


def test_transmission_and_attenuation_are_the_same(images):
    xray = images[0][1].cropped(100, 60, 100, 60)
    beads = find_beads(xray, (1.2, 9.0))
    bright = find_beads(-torch.log(xray.image), (1.2, 9.0), "attenuation")
    assert len(beads) == len(bright) > 5
    assert (beads.centers - bright.centers).abs().max() < 0.02


def test_edges_and_cut_beads_are_left_out():
    v, u = torch.meshgrid(torch.arange(200.0), torch.arange(220.0), indexing="ij")
    image = 0.5 * torch.sigmoid((u - 150) * 2) + 0.3 * torch.sigmoid(v + 0.4 * u - 180) + 0.002 * u
    places = [(60.3, 50.7), (100.2, 90.1), (185.0, 40.0), (2.0, 100.0), (217.5, 150.0)]
    for a, b in places:
        image = image + 0.4 * (1 - ((u - a) ** 2 + (v - b) ** 2) / 16).clamp(min=0).sqrt()
    image = image + 0.003 * torch.randn(200, 220, generator=torch.Generator().manual_seed(0))
    beads = find_beads(image, (2.5, 6.0), "attenuation")
    found = beads.centers[beads.centers[:, 0].argsort()]
    assert len(beads) == 3
    assert (found - torch.tensor(places[:3])).abs().max() < 0.1


def test_nothing_is_found_where_nothing_is():
    noise = torch.randn(150, 150, generator=torch.Generator().manual_seed(0))
    assert len(find_beads(noise, (2.0, 6.0), "attenuation")) <= 2
    assert len(find_beads(torch.ones(100, 100), (2.0, 6.0), "attenuation")) == 0


def made(phantom, rng, pose, missing=0.15, false=5, sizes=True, camera=None) -> tuple[Beads, np.ndarray]:
    """Beads of a pose, some missing, some false, shuffled; and for each the phantom's bead (-1: false)."""
    camera = camera or scene.camera()
    uv = project(camera, pose, phantom.positions)[0].numpy() + rng.normal(0, 0.2, (len(phantom), 2))
    radii = float(camera.K[1, 1]) * phantom.radii.numpy() / pose.inverse().transform(phantom.positions)[:, 2].numpy()
    radii = radii * rng.normal(1, 0.05, len(radii))
    kept = np.flatnonzero(((uv > 0) & (uv < 1023)).all(-1) & (rng.random(len(uv)) >= missing))
    uv = np.concatenate([uv[kept], rng.uniform(0, 1023, (false, 2))])
    radii = np.concatenate([radii[kept], rng.uniform(3, 9, false)]) if sizes else np.full(len(uv), np.nan)
    order = rng.permutation(len(uv))
    names = np.concatenate([kept, np.full(false, -1)])[order]
    one = torch.ones(len(uv), dtype=torch.float64)
    return Beads(torch.tensor(uv[order]), torch.tensor(radii[order]), one, one), names


@pytest.mark.parametrize("count, seed", [(20, 0), (36, 1), (60, 2)])
def test_every_bead_is_matched_without_a_start(count, seed):
    phantom, rng = BeadPhantom.helix(count), np.random.default_rng(seed)
    pose = scene.poses(rng, 1)[0]
    beads, names = made(phantom, rng, pose)
    match = match_beads(phantom, beads, scene.camera(principal_point=None, sdd=1000.0))
    found = np.full(len(names), -1)
    found[match.index[match.index >= 0]] = np.flatnonzero(match.index.numpy() >= 0)
    assert (found[names >= 0] == names[names >= 0]).all()
    assert (found[names < 0] >= 0).sum() <= 1  # a false one may lie where a bead is missing


def test_a_plate_is_matched_by_the_sizes_of_its_beads():
    plate, rng = BeadPhantom.plate(), np.random.default_rng(3)
    pose = CArm(1020.0, 620.0, (3.0, 5.0, 0.0), 0.0, 65.0, 40.0).pose
    beads, names = made(plate, rng, pose)
    match = match_beads(plate, beads, scene.camera(principal_point=None, sdd=1000.0))
    right = names[match.index[match.index >= 0]] == np.flatnonzero(match.index.numpy() >= 0)
    assert right.mean() > 0.95
    assert match.count >= (names >= 0).sum() - 1


def test_a_plate_without_sizes_looks_alike_from_several_sides():
    plate, rng = BeadPhantom.plate(4, 4, bead_radii=(1.0, 1.0)), np.random.default_rng(3)
    pose = CArm(1020.0, 620.0, (3.0, 5.0, 0.0), 0.0, 65.0, 40.0).pose
    beads, _ = made(plate, rng, pose, missing=0.0, false=0)
    with pytest.raises(CalibrationError, match="in more than one way"):
        match_beads(plate, beads, scene.camera())
    match = match_beads(plate, beads, scene.camera(), pose=pose)
    assert match.count == 16


def test_a_mirrored_image_is_told():
    phantom, rng = BeadPhantom.helix(14), np.random.default_rng(0)
    beads, _ = made(phantom, rng, scene.poses(rng, 1)[0], missing=0.0, false=0)
    mirrored = replace(beads, centers=torch.stack([1023 - beads.centers[:, 0], beads.centers[:, 1]], dim=-1))
    with pytest.raises(CalibrationError, match=r"mirrored: .*view_from='detector'"):
        match_beads(phantom, mirrored, scene.camera())


def test_too_few_beads_and_the_wrong_phantom():
    phantom, rng = BeadPhantom.helix(20), np.random.default_rng(0)
    beads, _ = made(phantom, rng, scene.poses(rng, 1)[0], missing=0.0, false=0)
    few = Beads(*(getattr(beads, one.name)[:4] for one in fields(beads)))
    with pytest.raises(CalibrationError, match="Only 4 beads"):
        match_beads(phantom, few, scene.camera())
    with pytest.raises(CalibrationError, match="do not fit"):
        match_beads(BeadPhantom(rng.normal(0, 40, (18, 3)), 1.0), beads, scene.camera())


def test_from_images_to_the_camera(images, calibrated):
    result, views = calibrated
    assert abs(result.values["source_to_detector"] - 1020) < 4 * result.deviations["source_to_detector"] + 0.5
    assert result.rms < 0.1
    assert int(result.inliers.sum()) >= 0.75 * 3 * 24
    for (pose, _), found in zip(images, result.poses, strict=True):
        assert float((pose.inverse() @ found).matrix[:3, :3].trace()) > 2.9999
    assert [view.name for view in views] == ["1", "2", "3"]


def test_an_image_without_the_phantom_is_left_out_and_cameras_must_agree(images):
    empty = images[0][1].with_image(torch.ones(384, 384))
    with pytest.warns(DiffDRRWarning, match="Image b is left out. Only 0 beads"):
        result, _ = calibrate_images(PHANTOM, [images[0][1], empty], START, names="ab")
    assert result.views == ["a"]
    other = type(empty)(empty.image, scene.camera(384, 0.6), meta=empty.meta)
    with pytest.raises(CalibrationError, match="contradict each other"):
        calibrate_images(PHANTOM, [images[0][1], other])
    with pytest.raises(CalibrationError, match="found in none"), pytest.warns(DiffDRRWarning):
        calibrate_images(PHANTOM, [empty], START)


def test_wrong_arguments():
    image = torch.zeros(50, 50)
    with pytest.raises(CalibrationError, match="Say what is bright"):
        find_beads(image, (2, 5))
    with pytest.raises(CalibrationError, match=r"from 0\.5 pixels"):
        find_beads(image, (5, 2), "attenuation")
    with pytest.raises(CalibrationError, match="do not fit an image"):
        find_beads(image, (20, 30), "attenuation")


@pytest.mark.parametrize(
    "positions, radii, says",
    [
        (PHANTOM.positions / 1000, 0.001, "in millimetres"),
        (PHANTOM.positions[:5], 1.0, "six beads or more"),
        (PHANTOM.positions[[0, 1, 2, 3, 4, 5, 2]], 1.0, "beads 3 and 7 .* one place"),
        (torch.linspace(0, 100, 8)[:, None].expand(8, 3), 1.0, "on one line"),
        (PHANTOM.positions, -1.0, "radii above 0"),
        (PHANTOM.positions, [1.0, 2.0], "24 beads but 2 radii"),
        (PHANTOM.positions, 30.0, "radii in millimetres"),
    ],
)
def test_phantoms_that_are_none(positions, radii, says):
    with pytest.raises(CalibrationError, match=says):
        BeadPhantom(positions, radii)


def test_phantom_files(tmp_path):
    PHANTOM.write(tmp_path / "p.json")
    again = BeadPhantom.read(tmp_path / "p.json")
    assert torch.equal(again.positions, PHANTOM.positions) and torch.equal(again.radii, PHANTOM.radii)
    assert not again.planar and BeadPhantom.plate().planar
    rows = [f"{x},{y},{z},{r}" for (x, y, z), r in zip(PHANTOM.positions.tolist(), PHANTOM.radii.tolist(), strict=True)]
    (tmp_path / "p.csv").write_text("x,y,z,radius\n" + "\n".join(rows))
    assert torch.equal(BeadPhantom.read(tmp_path / "p.csv").positions, PHANTOM.positions)
    (tmp_path / "bad.csv").write_text("1,2,three,4\n")
    with pytest.raises(ReadError, match="three"):
        BeadPhantom.read(tmp_path / "bad.csv")
    (tmp_path / "bad.json").write_text('{"units": "cm", "beads": []}')
    with pytest.raises(ReadError, match="units"):
        BeadPhantom.read(tmp_path / "bad.json")
    with pytest.raises(ReadError, match="Cannot read"):
        BeadPhantom.read(tmp_path / "none.csv")
