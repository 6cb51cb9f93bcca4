"""`register --init ...`: where each kind of start begins, and what contradicts it."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pydicom
import pytest
import torch

from DiffDRRCore import CArm, Pose, RegistrationResult, Volume, XRay
from DiffDRRCore.datasets import phantom_landmarks
from DiffDRRCore.datasets.points import write_points
from DiffDRRCore.geometry import project
from DiffDRRCore.geometry.itk_transform import write_itk_transform
from DiffDRRCore.imaging.camera_file import camera_to_dict

QUICK = ["--sizes", 16, "--max-steps", 1, "--search", 0, "--json"]
AWAY = [0.05, -0.04, 0.03, 6.0, -5.0, 8.0]


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr("DiffDRRCore.cli.register.find_spec", lambda name: None)


def started(run, files, tmp_path, *arguments, xrays=None) -> Pose:
    """Where a registration began [V, 4, 4], by its result."""
    folder = tmp_path / "started"
    code, _, err = run("register", files.ct, *(xrays or files.xrays[:1]), *arguments, *QUICK, "-o", folder)
    assert code == 0, err
    result = RegistrationResult.load(folder / "result.json")
    return result.patient_motion @ result.poses


def away(files, view=0) -> Pose:
    return files.truth[view].retract(AWAY, about=files.volume.center)


def near(found: Pose, expected: Pose, atol=1e-6) -> bool:
    return torch.allclose(found.matrix, expected.matrix, atol=atol)


@pytest.fixture
def landmarks(files, tmp_path):
    """Points in the phantom, in a file, and a function that clicks them in a view."""
    points = dict(list(phantom_landmarks().items())[:7])
    write_points(tmp_path / "ct.mrk.json", points)

    def clicks(view: int, pose: Pose, names=None, moved=()) -> Path:
        camera, path = XRay.read(files.xrays[view]).camera, tmp_path / f"clicks{view}.csv"
        with path.open("w", newline="") as file:
            for name, point in points.items():
                u, v = project(camera, pose, point[None])[0, 0].tolist()
                if names is None or name in names:
                    csv.writer(file).writerow([name, u + 30 * (name in moved), v])
        return path

    return tmp_path / "ct.mrk.json", clicks, list(points)


def test_landmarks(run, files, tmp_path, landmarks):
    points, clicks, _ = landmarks
    pose = away(files)
    found = started(
        run, files, tmp_path, "--init", "landmarks", "--landmarks-3d", points, "--landmarks-2d", clicks(0, pose)
    )
    assert near(found[0], pose, 1e-4)


def test_clicks_are_in_the_pixels_of_the_file_also_after_a_crop(run, files, tmp_path, landmarks):
    points, clicks, _ = landmarks
    pose = away(files)
    crop = ["--crop", 5, 2, 9, 1]
    found = started(run, files, tmp_path, "--landmarks-3d", points, "--landmarks-2d", clicks(0, pose), *crop)
    assert near(found[0], pose, 1e-4)


def test_three_landmarks_take_the_x_rays_own_pose_to_choose(run, files, tmp_path, landmarks):
    points, clicks, names = landmarks
    pose = away(files)
    found = started(run, files, tmp_path, "--landmarks-3d", points, "--landmarks-2d", clicks(0, pose, names[:3]))
    assert near(found[0], pose, 1e-3)


def test_a_wrong_click_is_told(run, files, tmp_path, landmarks):
    points, clicks, names = landmarks
    pose = away(files)
    arguments = ["--landmarks-3d", points, "--landmarks-2d", clicks(0, pose, None, [names[2]])]
    code, _, err = run("register", files.ct, files.xrays[0], *arguments, *QUICK, "-o", tmp_path / "r")
    assert code == 0
    assert f"warning: '{tmp_path / 'clicks0.csv'}': {names[2]} does not fit" in err
    result = RegistrationResult.load(tmp_path / "r" / "result.json")
    assert near((result.patient_motion @ result.poses)[0], pose, 1e-4)


def test_landmarks_of_two_views_and_of_the_first_alone(run, files, tmp_path, landmarks):
    points, clicks, _ = landmarks
    poses = [away(files, view) for view in (0, 1)]
    both = ["--landmarks-2d", clicks(0, poses[0]), "--landmarks-2d", clicks(1, poses[1])]
    for arguments in (both, both[:2]):  # the same motion of both, so the second follows the first to the same place
        found = started(run, files, tmp_path, "--landmarks-3d", points, *arguments, xrays=files.xrays)
        assert all(near(found[view], poses[view], 1e-4) for view in (0, 1))


def test_previous_result(run, files, tmp_path):
    starts = []
    for view in (0, 1):
        write_itk_transform(tmp_path / f"start{view}.tfm", away(files, view).matrix)
        starts += ["--initial", tmp_path / f"start{view}.tfm"]
    folder = tmp_path / "before"
    assert run("register", files.ct, *files.xrays, *starts, "--sizes", 32, "--json", "-o", folder)[0] == 0
    before = RegistrationResult.load(folder / "result.json")
    assert before.similarity > before.initial_similarity
    found = started(run, files, tmp_path, "--init", "previous", "--previous", folder / "result.json", xrays=files.xrays)
    assert near(found, before.poses)
    code, _, err = run("register", files.ct, files.xrays[0], "--previous", folder / "result.json", "-o", tmp_path / "r")
    assert code == 2
    assert "holds 2 views, but there are 1 X-rays" in err
    assert not (tmp_path / "r").exists()


def test_fixed_and_header(run, files, tmp_path):
    write_itk_transform(tmp_path / "start.tfm", away(files).matrix)
    assert near(started(run, files, tmp_path, "--init", "fixed", "--initial", tmp_path / "start.tfm")[0], away(files))
    angles = ["--sod", 690, "--primary", 4, "--secondary", -3]
    expected = CArm(1000.0, 690.0, files.volume.center, 4.0, -3.0).pose
    assert near(started(run, files, tmp_path, "--init", "fixed", *angles)[0], expected)
    assert near(started(run, files, tmp_path, *angles)[0], expected)
    assert near(started(run, files, tmp_path, "--init", "header")[0], files.truth[0])


def model_file(path: Path, files, pose: Pose, ct: Volume | None = None) -> Path:
    """A network that has learnt nothing, with ranges whose middle is the pose: it always says that."""
    from DiffDRRCore.learning.data.fingerprints import fingerprint
    from DiffDRRCore.learning.network.model_file import write_model
    from DiffDRRCore.learning.network.pose_net import Architecture, PoseNet
    from DiffDRRCore.learning.network.targets import Target

    camera = XRay.read(files.xrays[0]).camera.resized(40, 48)
    frame = torch.eye(4, dtype=torch.float64)
    frame[:3, 3] = files.volume.center
    to_frame = Pose(frame).inverse() @ pose
    target = Target.from_views(camera, Pose(to_frame.matrix.expand(2, 4, 4)))
    ct = fingerprint(Volume.read(files.ct) if ct is None else ct)
    description = {
        "target": target.to_dict(),
        "camera": camera_to_dict(camera),
        "ranges": {"sod": 700.0},
        "frame": {"kind": "patient", "frame_to_world": frame.tolist(), "ct": ct},
    }
    write_model(path, PoseNet(Architecture("resnet10", (40, 48), hidden=16), seed=0), description)
    return path


def test_model(run, files, tmp_path):
    model = model_file(tmp_path / "m.safetensors", files, away(files))
    for arguments in (["--init", "model", "--model", model], ["--model", model]):
        assert near(started(run, files, tmp_path, *arguments)[0], away(files), 1e-3)


def test_model_of_another_ct(run, files, tmp_path):
    other = Volume(files.volume.hu + 1, files.volume.ijk_to_ras)
    model = model_file(tmp_path / "m.safetensors", files, away(files), other)
    code, out, err = run("register", files.ct, files.xrays[0], "--model", model, "-o", tmp_path / "r")
    assert (code, out) == (2, "")
    assert "another CT" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--init", "model"], "needs --model FILE"),
        (["--init", "landmarks", "--landmarks-3d", "p.csv"], "needs --landmarks-3d and --landmarks-2d"),
        (["--landmarks-2d", "p.csv"], "needs --landmarks-3d and --landmarks-2d"),
        (["--init", "previous"], "needs --previous FILE"),
        (["--init", "fixed"], "needs --initial FILE, or --sod and the angles"),
        (["--init", "header", "--model", "m.safetensors"], "--init header and --model contradict"),
        (["--init", "header", "--sod", "700"], "has a pose of its own"),
        (["--sod", "0.7"], "--sod 0.7 looks like metres"),
        (["--init", "fixed", "--sod", "1200"], "behind the detector"),
        (["--search-sod", "0.6", "0.8"], "--search-sod 0.6 looks like metres"),
        (["--init", "model", "--model", "m", "--initial", "a.tfm"], "--init model and --initial contradict"),
        (["--model", "m", "--previous", "r.json"], "--model and --previous contradict"),
        (["--previous", "r.json", "--primary", "10"], "--previous and --primary contradict"),
        (["--init", "fixed", "--initial", "a.tfm", "--sod", "700"], "--initial and --sod contradict"),
        (["--warp", "w.tfm"], "--warp belongs to a network"),
        (["--model", "m", "--invert-warp"], "--invert-warp needs --warp"),
        (["--init", "fixed", "--primary", "3"], "--primary needs --sod"),
        (["--initial", "a.tfm", "--initial", "b.tfm"], "1 X-rays but 2 times --initial"),
        (["--init", "model", "--model", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--previous", "nowhere.json"], "nowhere.json"),
        (["--init", "search", "--sod", "700"], "--init search and --sod contradict"),
        (["--search-roll", "-5", "5", "--primary", "10", "--sod", "700"], "--search-roll and --sod contradict"),
        (["--init", "search", "--search-roll", "20", "-20"], "range of roll is reversed: 20 is more than -20"),
        (["--search-sod", "nan", "700"], "sod is two finite numbers"),
        (["--search-count", "0"], "count is a whole number of 1 or more"),
    ],
)
def test_contradictions_are_one_sentence(run, files, tmp_path, arguments, words):
    code, out, err = run("register", files.ct, files.xrays[0], *arguments, "-o", tmp_path / "r")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_search(run, files, tmp_path):
    ranges = ["--search-primary", 60, 100, "--search-secondary", -10, 10, "--search-sod", 650, 750]
    folder, count = tmp_path / "searched", ["--search-count", 20, "--search-isocenter", 10]
    code, _, err = run("register", files.ct, files.xrays[1], *ranges, *count, *QUICK, "-o", folder)
    assert code == 0, err
    result = RegistrationResult.load(folder / "result.json")
    found, truth = (result.patient_motion @ result.poses)[0], files.truth[1]
    center = files.volume.center.double()[None]
    assert float((found.inverse().transform(center) - truth.inverse().transform(center)).norm()) < 20
    assert 2 * math.degrees(math.asin(float((found.rotation - truth.rotation).norm()) / 8**0.5)) < 3
    told = re.search(r"search: (\d+) views for .* million poses, .* s; similarity 0\.9", err)
    assert 10 < int(told[1]) < 30


def test_landmarks_without_a_common_name(run, files, tmp_path):
    (tmp_path / "ct.csv").write_text("a,1,2,3\nb,4,5,6\nc,7,8,1\nd,1,1,1\n")
    (tmp_path / "clicks.csv").write_text("a,1,2\nb,3,4\nx,5,6\n")
    files_given = ["--landmarks-3d", tmp_path / "ct.csv", "--landmarks-2d", tmp_path / "clicks.csv"]
    code, _, err = run("register", files.ct, files.xrays[0], *files_given, "-o", tmp_path / "r")
    assert code == 2
    assert "only 2 of the CT's landmarks by name" in err
    assert "It lacks 'c', 'd'; the CT's landmarks lack 'x'" in err


def test_the_folder_of_an_earlier_result(run, files, tmp_path):
    write_itk_transform(tmp_path / "start.tfm", away(files).matrix)
    began = started(run, files, tmp_path, "--initial", tmp_path / "start.tfm")
    before = RegistrationResult.load(tmp_path / "started" / "result.json").poses
    (tmp_path / "started").rename(tmp_path / "before")
    assert near(began, Pose(away(files).matrix[None]))
    assert near(started(run, files, tmp_path, "--previous", tmp_path / "before"), before)
    (tmp_path / "empty").mkdir()
    code, _, err = run("register", files.ct, files.xrays[0], "--previous", tmp_path / "empty", "-o", tmp_path / "r")
    assert code == 2
    assert "no result.json in the folder" in err


def test_sod_completes_a_header_that_has_angles_only(run, files, tmp_path):
    """By a DICOM file from which the one value is taken out."""
    path = tmp_path / "x.dcm"
    camera = ["--height", 32, "--width", 32, "--pixel-spacing", 10, 10, "--sdd", 1000, "--view-from", "detector"]
    assert run("simulate", files.ct, *camera, "--sod", 700, "--primary", 20, "--secondary", -5, "-o", path)[0] == 0
    (tmp_path / "x.json").unlink()
    header = pydicom.dcmread(path)
    del header.DistanceSourceToPatient
    header.save_as(path)
    arguments = ["register", files.ct, path, "--init", "header", *QUICK, "-o", tmp_path / "r"]
    code, _, err = run(*arguments)
    assert code == 2
    assert "its header lacks DistanceSourceToPatient" in err
    code, _, err = run(*arguments, "--sod", 690)
    assert code == 0, err
    assert "angles 20 and -5 degrees from the header, source to isocentre 690 mm from --sod" in err
    result = RegistrationResult.load(tmp_path / "r" / "result.json")
    assert near((result.patient_motion @ result.poses)[0], CArm(1000.0, 690.0, files.volume.center, 20, -5).pose, 1e-4)
