"""`animate`: the film of a registration that has gone before."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from DiffDRRCore import RegistrationResult, Renderer, XRay
from DiffDRRCore.evaluation.animation import _picture, edges, frames, trajectory
from DiffDRRCore.registration import Registration

WIDTH = 320


@pytest.fixture(scope="module")
def registered(files, tmp_path_factory):
    """A registration from some 12 mm away: what it said step by step, and its result.json."""
    xrays = [XRay.read(path) for path in files.xrays]
    moved = [pose.retract([0.08, -0.05, 0.06, 8.0, -6.0, 9.0], about=files.volume.center) for pose in files.truth]
    registration = Registration(files.volume, xrays, moved, sizes=(32, 64))
    steps = list(registration.steps())
    path = tmp_path_factory.mktemp("animate") / "result.json"
    registration.result().save(path)
    return path, moved, steps


def film(path) -> list[np.ndarray]:
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image.convert("RGB")))
        return found


def test_the_trajectory_is_that_of_the_optimiser(registered):
    """Of the second view: its poses follow from the first one's motion."""
    path, moved, steps = registered
    result = RegistrationResult.load(path)
    texts, poses = trajectory(result, view=1)
    assert torch.allclose(poses.matrix[0], moved[1].matrix, atol=1e-8)
    expected = torch.stack([step.poses.matrix[1] for step in steps])
    assert torch.allclose(poses.matrix[1:-1], expected, atol=1e-8)
    assert torch.equal(poses.matrix[-1], result.poses.matrix[1])
    assert len(texts) == len(poses) == len(steps) + 2
    assert f"{steps[2].similarity:.4f}" in texts[3]
    assert len(trajectory(result, 0, every=4)[0]) == len(steps) // 4 + 2


def test_gif_has_a_picture_a_step_and_comes_closer(run, files, registered, tmp_path):
    path, _, steps = registered
    target = tmp_path / "out" / "film.gif"
    code, out, err = run(
        "animate",
        path.parent,
        files.ct,
        files.xrays[1],
        "--view",
        1,
        "-o",
        target,
        "--width",
        WIDTH,
        "--fps",
        5,
        "--json",
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["pictures"] == len(steps) + 2
    pictures = film(target)
    with Image.open(target) as image:
        assert image.info["duration"] == 200
    side = WIDTH // 4
    height = 66  # of 60 x 72 pixels, and even
    assert pictures[0].shape == (height + 44, WIDTH, 3)
    # The third panel is white where the images agree.
    colour = [255 - picture[22:-22, 2 * side : 3 * side].min(-1).mean() for picture in pictures]
    assert colour[-1] < 0.5 * colour[0]
    assert [path.name for path in target.parent.iterdir()] == ["film.gif"]


def test_the_panels(files, registered):
    """X-ray and rendered CT as they are, scaled to the panel; the edges lie where the rendered image is steep."""
    result = RegistrationResult.load(registered[0])
    xray = XRay.read(files.xrays[0])
    *_, last = frames(result, files.volume, xray, width=WIDTH)
    side = WIDTH // 4
    panels = np.split(last[22:-22].astype(float), 4, axis=1)
    small = xray.resampled(panels[0].shape[0], side)
    drawn = Renderer(files.volume)(small.camera, result.poses[0])[0, 0]
    assert np.corrcoef(panels[0][..., 0].ravel(), small.image.ravel())[0, 1] > 0.995
    assert np.corrcoef(panels[1][..., 0].ravel(), drawn.ravel())[0, 1] > 0.99
    is_edge = torch.from_numpy((panels[3] == (25, 211, 255)).all(-1))
    assert torch.equal(is_edge, edges(drawn))
    assert np.abs(panels[3] - panels[0])[~is_edge.numpy()].max() == 0


def test_the_difference_is_red_where_the_x_ray_has_more_and_blue_where_the_ct_has(files):
    """A square in the X-ray alone and one in the CT alone, of the same strength."""
    fixed, moving = torch.zeros(40, 40), torch.zeros(40, 40)
    fixed[5:15, 5:15], moving[25:35, 25:35] = 1.0, 1.0
    both = torch.stack([fixed, moving]).sum(0)
    picture = _picture(both + fixed, both + moving, "", 4 * 40)[22:-22, 80:120].astype(int)
    assert picture[10, 10, 0] > picture[10, 10, 2] + 50
    assert picture[30, 30, 2] > picture[30, 30, 0] + 50
    assert (picture[2, 20] > 200).all()


def test_the_legend_names_both_colours(files, registered):
    result = RegistrationResult.load(registered[0])
    for width in (WIDTH, 960):
        head = next(frames(result, files.volume, XRay.read(files.xrays[0]), width=width))[
            :22, width // 2 : width * 3 // 4
        ]
        head = head.astype(int)
        assert (head[..., 0] > head[..., 2] + 60).any()
        assert (head[..., 2] > head[..., 0] + 60).any()


def test_a_long_registration_makes_a_short_film(registered):
    result = RegistrationResult.load(registered[0])
    long = replace(result, history=result.history[:1] * 500)
    assert 40 < len(trajectory(long, 0, None)[0]) <= 50
    assert len(trajectory(result, 0, None)[0]) == len(result.history) + 2


def test_edges_of_a_disc_are_its_circle():
    v, u = torch.meshgrid(torch.arange(80.0), torch.arange(90.0), indexing="ij")
    distance = torch.hypot(u - 44, v - 41)
    found = edges((distance < 25).float())
    assert int(found.sum()) > 100
    assert float((distance[found] - 25).abs().max()) < 1.6
    angles = torch.atan2(v - 41, u - 44)[found]
    assert len(torch.unique((angles / 0.3).floor())) >= 20  # all the way round
    assert not edges(torch.ones(20, 20)).any()


def test_mp4(run, files, registered, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    target = tmp_path / "film.mp4"
    code, out, err = run(
        "animate", registered[0], files.ct, files.xrays[0], "-o", target, "--width", WIDTH, "--every", 3, "--json"
    )
    assert (code, err) == (0, "")
    command = [ffmpeg, "-loglevel", "error", "-i", str(target), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True).stdout
    pictures = np.frombuffer(decoded, np.uint8).reshape(-1, 66 + 44, WIDTH, 3)
    assert len(pictures) == json.loads(out)["pictures"] + 15  # the last one stays for a second and a half
    expected = list(
        frames(RegistrationResult.load(registered[0]), files.volume, XRay.read(files.xrays[0]), 0, WIDTH, 3)
    )
    assert np.abs(pictures[-1].astype(float) - expected[-1]).mean() < 8


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--view", 2], "no view 2"),
        (["--every", 0], "1 or more"),
        (["--fps", 0], "per second"),
        (["--width", 20], "160"),
        (["-o", "film.avi"], ".gif or .mp4"),
    ],
)
def test_what_cannot_be(run, files, registered, tmp_path, monkeypatch, change, word):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("animate", registered[0], files.ct, files.xrays[0], "-o", "film.gif", *change)
    assert (code, out) == (2, "")
    assert word in err
    assert list(tmp_path.iterdir()) == []


def test_no_ffmpeg(run, files, registered, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run("animate", registered[0], files.ct, files.xrays[0], "-o", tmp_path / "film.mp4")
    assert code == 2
    assert "pip install imageio-ffmpeg" in err


def test_a_film_that_fails_leaves_the_old_one(run, files, registered, tmp_path, monkeypatch):
    target = tmp_path / "film.mp4"
    target.write_bytes(b"old")
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho 'no such codec' >&2\nexit 3\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    code, _, err = run("animate", registered[0], files.ct, files.xrays[0], "-o", target, "--every", 50, "--json")
    assert code == 2
    assert "no such codec" in err
    assert target.read_bytes() == b"old"
