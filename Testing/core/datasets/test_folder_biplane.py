"""Calibrated cameras and numbered images: by hand, and on the real wrist."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from scipy.optimize import least_squares, linear_sum_assignment

from DiffDRRCore import Volume
from DiffDRRCore.datasets import Folder
from DiffDRRCore.errors import MissingGeometryError, ReadError
from DiffDRRCore.imaging.calibration_file import read_calibration
from Testing.core import samples
from Testing.core.datasets.folder_files import grid, pinhole
from Testing.protocol.real import FRAMES, wrist

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def mayacam(K, world_to_camera, size=(70, 40)) -> str:
    """As XMALab writes them."""

    def rows(matrix) -> str:
        return "\n".join(",".join(f"{x:.12g}" for x in row) for row in np.atleast_2d(matrix))

    R, t = world_to_camera[:3, :3], world_to_camera[:3, 3:]
    blocks = {"image size": [size], "camera matrix": K, "rotation": R, "translation": t}
    return "\n\n".join(f"{title}\n{rows(values)}" for title, values in blocks.items()) + "\n"


def looking_at(rng, target, distance) -> np.ndarray:
    """world_to_camera [4, 4] of a camera whose central ray passes `target`."""
    matrix = np.eye(4)
    matrix[:3, :3] = samples.rotation(rng)
    matrix[:3, 3] = [0, 0, distance]
    matrix[:3, 3] -= matrix[:3, :3] @ target
    return matrix


@pytest.fixture
def lab(tmp_path):
    """Two cameras of 40 x 70 pixels, frames 2 and 13, a CT on an oblique left-handed grid; all made by hand."""
    rng = np.random.default_rng(5)
    K = np.array([[900.0, 0, 31.5], [0, 1010.0, 18.25], [0, 0, 1]])
    target = np.array([20.0, -30.0, 40.0])
    cameras = [looking_at(rng, target, distance) for distance in (700.0, 800.0)]
    for number, camera in enumerate(cameras, start=1):
        (tmp_path / f"cam{number}.txt").write_text(mayacam(K, camera))
        (tmp_path / f"images{number}").mkdir()
        for frame in (2, 13):
            image = SimpleITK.GetImageFromArray(np.full((40, 70), 10 * frame + number, np.uint8))
            SimpleITK.WriteImage(image, str(tmp_path / f"images{number}" / f"trial07_cam{number}_{frame:03d}.tif"))
    affine = grid(rng, (6, 8, 10))
    Volume(np.zeros((6, 8, 10), np.float32), affine).write(tmp_path / "ct.nrrd")
    ct_to_lab = samples.rigid(rng, 20.0)
    content = {
        "cameras": {
            f"c{n}": {"calibration": f"cam{n}.txt", "images": f"images{n}", "source_to_detector": 1500} for n in (1, 2)
        },
        "intensity": "transmission",
    }
    return tmp_path, K, cameras, affine, ct_to_lab, target, content


def subject(folder: Path, content: dict):
    (folder / "dataset.json").write_text(json.dumps({"subjects": [{"ct": "ct.nrrd", "biplane": [content]}]}))
    return Folder(folder).subjects[0]


@pytest.mark.parametrize("ct_frame", ["LPS", "RAS", None])
@pytest.mark.parametrize("form", ["matrix", "parts"])
def test_points_of_the_ct_land_where_the_calibration_says(lab, ct_frame, form):
    """In float64 by hand: K (R (R_ct p + T_ct) + t) of p in the CT's own coordinates."""
    folder, K, cameras, affine, ct_to_lab, _, content = lab
    parts = {"rotation": ct_to_lab[:3, :3].tolist(), "translation": ct_to_lab[:3, 3].tolist()}
    content["ct_to_calibration"] = {"13": ct_to_lab.tolist() if form == "matrix" else parts}
    content |= {"frames": [13]} | ({} if ct_frame is None else {"ct_frame": ct_frame})
    one = subject(folder, content)
    ijk = np.random.default_rng(0).uniform(0, 5, (20, 3))
    ras = ijk @ affine[:3, :3].T + affine[:3, 3]
    own = ras if ct_frame == "RAS" else ras @ LPS[:3, :3]
    in_lab = own @ ct_to_lab[:3, :3].T + ct_to_lab[:3, 3]
    assert one.groups == (("c1-0013", "c2-0013"),)
    for number, view in enumerate(one.views, start=1):
        expected = pinhole(K, np.linalg.inv(cameras[number - 1]), in_lab)
        assert np.abs(pinhole(view.xray.camera.K, view.xray.pose.matrix, ras) - expected).max() < 1e-6
        assert view.header_pose is None
        assert float(view.xray.camera.source_to_detector) == 1500.0
        assert view.xray.image.unique().tolist() == [130.0 + number]
        assert (view.xray.intensity, view.xray.meta["frame_number"]) == ("transmission", 13)


def test_without_a_reference_the_ct_lies_where_the_central_rays_meet(lab):
    folder, _, cameras, affine, _, target, content = lab
    one = subject(folder, content | {"undistorted": True})
    assert one.view_names == ("c1-0002", "c2-0002", "c1-0013", "c2-0013")
    assert one.groups == (("c1-0002", "c2-0002"), ("c1-0013", "c2-0013"))
    first, second = one.views["c1-0002"], one.views["c2-0002"]
    assert first.xray.pose is None
    assert first.xray.meta["undistorted"] is True
    between = np.linalg.inv(first.header_pose.matrix.numpy()) @ second.header_pose.matrix.numpy()
    assert np.abs(between - cameras[0] @ np.linalg.inv(cameras[1])).max() < 1e-8
    center = affine[:3, :3] @ [4.5, 3.5, 2.5] + affine[:3, 3]
    for view, distance in ((first, 700.0), (second, 800.0)):
        local = np.linalg.inv(view.header_pose.matrix.numpy()) @ [*center, 1]
        assert np.abs(local[:3] - [0, 0, distance]).max() < 1e-6
    assert np.abs(np.linalg.inv(cameras[0]) @ [0, 0, 700, 1] - [*target, 1]).max() < 1e-9


def test_a_pattern_for_the_images_and_pixel_spacing_for_the_distance(lab):
    folder, _, _, _, _, _, content = lab
    for number in (1, 2):
        camera = content["cameras"][f"c{number}"]
        camera["images"] = f"images{number}/*_0?3.tif" if number == 1 else "images2/trial*.tif"
        camera["pixel_spacing"], camera["intensity"] = [1500 / 1010, 1500 / 900], "attenuation"
        del camera["source_to_detector"]
    one = subject(folder, content)
    assert one.view_names == ("c1-0013", "c2-0013")
    assert float(one.xrays[0].camera.source_to_detector) == pytest.approx(1500.0)
    assert one.xrays[0].intensity == "attenuation"


@pytest.mark.parametrize(
    "change, says",
    [
        ({"camera": {}}, "did you mean 'cameras'"),
        ({"cameras": {}}, "cameras must be a section of 1 name or more"),
        (
            {"cameras": {"c1": {"calibration": "cam1.txt", "source_to_detector": 1}}},
            r"biplane\[0\]\.cameras\.c1 lacks 'images'",
        ),
        ({"cameras": {"c1": {"calibration": "cam1.txt", "images": "gone"}}}, "no numbered images at .*gone"),
        ({"cameras": {"c1": {"calibration": "gone.txt", "images": "images1", "source_to_detector": 1e3}}}, "gone.txt"),
        ({"frames": [2, 3]}, "camera c1 has no image of frame 3"),
        ({"frames": 2}, "frames must be a list of items"),
        ({"ct_frame": "IJK"}, "ct_frame: there is no 'IJK'; choose from LPS, RAS"),
        ({"intensity": "bright"}, "intensity: there is no 'bright'"),
        ({"ct_to_calibration": {"2": [[1, 0], [0, 1]]}}, "frame 2 must be 4 x 4 numbers"),
        ({"ct_to_calibration": {"two": np.eye(4).tolist()}}, "frame two must be"),
        ({"ct_to_calibration": {"2": np.diag([1.0, 1, -1, 1]).tolist()}}, "frame 2: the rotation is not one"),
        ({"ct_to_calibration": []}, "ct_to_calibration must be a section of names"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(lab, change, says):
    folder, content = lab[0], lab[-1]
    with pytest.raises(ReadError, match=says) as caught:
        _ = list(subject(folder, content | change).views)
    assert "\n" not in str(caught.value)


def test_two_images_of_one_frame(lab):
    folder, content = lab[0], lab[-1]
    (folder / "images2" / "copy_2.tif").write_bytes(b"")
    with pytest.raises(ReadError, match=r"camera c2: 'copy_2\.tif' and 'trial07_cam2_002\.tif' are both frame 2"):
        subject(folder, content)


def test_the_distance_to_the_detector_must_be_said(lab):
    folder, content = lab[0], lab[-1]
    del content["cameras"]["c2"]["source_to_detector"]
    with pytest.raises(MissingGeometryError, match=r"camera c2: .*how far the detector is") as caught:
        subject(folder, content)
    assert caught.value.missing == ("source_to_detector (mm)",)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda text: "1,2,3\n4,5,6\n", "MayaCam 1.0 is not read"),
        (lambda text: "", "needs 'image size' with 1 x 2 numbers"),
        (lambda text: text.replace("rotation", "turn"), "needs 'rotation' with 3 x 3"),
        (lambda text: text.rsplit("\n", 2)[0], "needs 'translation' with 3 x 1"),
        (lambda text: text.replace("translation\n", "translation\nnan\n"), "needs 'translation'"),
        (lambda text: text + "\ndistortion\n0.1,0,0\n", "lens distortion"),
        (lambda text: text.replace("70,40", "70,41"), "for images of 70 and 41 pixels, but the image has 40 x 70"),
        (lambda text: text.replace("900,0,31.5", "0,0,31.5"), "focal"),
    ],
)
def test_a_damaged_calibration(lab, change, says):
    folder, content = lab[0], lab[-1]
    path = folder / "cam1.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(ReadError, match=says):
        _ = subject(folder, content).views[0]


def test_a_calibration_is_read_whatever_its_line_ends_and_order_of_size(lab):
    folder, K, cameras, *_ = lab
    path = folder / "cam1.txt"
    path.write_bytes(mayacam(K, cameras[0], (40, 70)).replace("\n", "\r\n").encode() + b"\r\ndistortion\r\n0,0\r\n")
    found = read_calibration(path)
    assert found.size == (40, 70)
    assert np.array_equal(found.K, K)
    assert np.abs(found.rotation.numpy() - cameras[0][:3, :3]).max() < 1e-11
    assert np.abs(found.translation.numpy() - cameras[0][:3, 3]).max() < 1e-8


def test_a_rounded_rotation_becomes_the_nearest_exact_one(lab):
    folder, K, cameras, *_ = lab
    rounded = cameras[0].copy()
    rounded[:3, :3] = rounded[:3, :3].round(4)
    (folder / "cam1.txt").write_text(mayacam(K, rounded))
    found = read_calibration(folder / "cam1.txt").rotation.numpy()
    assert np.abs(found.T @ found - np.eye(3)).max() < 1e-14
    assert np.abs(found - cameras[0][:3, :3]).max() < 1e-4


@pytest.fixture
def real(shared_data, tmp_path):
    """The wrist through a manifest that lies elsewhere, and its reference.json."""
    folder = shared_data / "wrist_biplane"
    reference = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    cameras = {
        f"cam{n}": {
            "calibration": f"calibration/xr_calib_wrist_cam0{n}.txt",
            "images": f"xray/*cam0{n}*.tif",
            "source_to_detector": 1800,
        }
        for n in (1, 2)
    }
    poses = {
        str(pose["frame"]): {"rotation": pose["R"], "translation": pose["T"]} for pose in reference["reference_poses"]
    }
    content = {"cameras": cameras, "intensity": "transmission", "undistorted": True, "ct_to_calibration": poses}
    subjects = [{"name": "wrist", "ct": "ct/radius.nii.gz", "biplane": [content]}]
    (tmp_path / "dataset.json").write_text(
        json.dumps({"root": os.path.relpath(folder, tmp_path), "subjects": subjects})
    )
    return Folder(tmp_path).subjects["wrist"], reference


@pytest.mark.parametrize("frame", FRAMES)
def test_the_real_wrist_agrees_with_the_protocol(shared_data, real, frame):
    """Testing/protocol/real.py takes camera and pose from reference.json by its own code, rounded to float32."""
    subject, case = real[0], wrist(shared_data, frame)
    assert subject.groups == tuple((f"cam1-{n:04d}", f"cam2-{n:04d}") for n in FRAMES)
    for number in (1, 2):
        view = subject.views[f"cam{number}-{frame:04d}"]
        assert float((view.xray.pose.matrix - case.truth[number - 1].matrix).abs().max()) < 1e-4
        assert torch.equal(view.xray.camera.K, case.xrays[number - 1].camera.K.to(torch.float64))
        assert (view.xray.image.shape, float(view.xray.image.max()) <= 255) == ((1760, 1760), True)
    assert torch.equal(subject.volume.ijk_to_ras, case.volume.ijk_to_ras)


def test_skin_beads_of_the_real_wrist_triangulate(real):
    """12 beads that reference.json gives in pixels of both cameras meet to 0.12 px, as its text says."""
    subject, reference = real
    views = [subject.views[f"cam{number}-0099"].xray for number in (1, 2)]
    matrices = [view.camera.K.numpy() @ np.linalg.inv(view.pose.matrix.numpy())[:3] for view in views]
    beads = reference["skin_beads_px"]
    for one, two in (("A", "B_is_A1"), ("B", "A_is_B1")):
        misses = [[miss(matrices, (a, b)) for b in beads["cam2"][two]] for a in beads["cam1"][one]]
        chosen = np.array(misses)[linear_sum_assignment(misses)]
        assert len(chosen) == 6
        assert chosen.max() < 0.13


def miss(matrices, pixels) -> float:
    """Root mean square, over the four coordinates in px, of the point of space that fits two pixels best."""

    def difference(point):
        seen = [P @ [*point, 1] for P in matrices]
        return np.concatenate([s[:2] / s[2] - uv for s, uv in zip(seen, pixels, strict=True)])

    rows = [uv[axis] * P[2] - P[axis] for P, uv in zip(matrices, pixels, strict=True) for axis in (0, 1)]
    start = np.linalg.svd(np.stack(rows))[2][-1]
    fit = least_squares(difference, start[:3] / start[3], x_scale="jac", xtol=1e-14, ftol=1e-14)
    return float(np.sqrt(np.mean(fit.fun**2)))
