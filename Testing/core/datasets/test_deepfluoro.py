"""DeepFluoro: every bead lands where the dataset's own matrices say, in pose, image, volume and rendering."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from DiffDRRCore.datasets.deepfluoro import DeepFluoro
from DiffDRRCore.datasets.hdf5 import opened, top_level_names
from DiffDRRCore.errors import DiffDRRWarning, ReadError
from DiffDRRCore.geometry import Pose, backproject, project
from DiffDRRCore.geometry.converters.diffdrr import from_diffdrr
from DiffDRRCore.rendering import Renderer
from Testing.core.datasets.hdf5_files import (
    CENTER,
    FEMURS,
    LABELS,
    OBLIQUE,
    PELVIS,
    centroid,
    centroid_3d,
    deepfluoro_projection,
    pixel,
    read_everything,
    write_deepfluoro,
)

CROP = 4
SPECIMENS = ("17-1882", "18-0725")
PROJECTIONS = ("000", "001", "002")
RAS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """As published: everything in 32 bit; oblique directions and uneven spacing to hold the reader to them."""
    return write_deepfluoro(tmp_path_factory.mktemp("deepfluoro") / "full.h5")


@pytest.fixture(scope="module")
def dataset(path):
    return DeepFluoro(path, crop=CROP)


@pytest.fixture(scope="module")
def subject(dataset):
    return dataset.subjects["17-1882"]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One specimen."""
    return write_deepfluoro(tmp_path_factory.mktemp("deepfluoro") / "single.h5", specimens=("17-1882",))


@pytest.fixture
def changed(single, tmp_path):
    """A function that copies a file, changes the copy and returns its path."""

    def change(function):
        file_path = Path(shutil.copy(single, tmp_path / f"changed{len(list(tmp_path.iterdir()))}.h5"))
        with h5py.File(file_path, "r+") as file:
            function(file)
        return file_path

    return change


def replaced(file, name, value):
    del file[name]
    file[name] = value


def expected(path, specimen, projection, offset, body="pelvis", crop=CROP, upright=True):
    """The pixel by the dataset's matrices, turned and cropped by hand."""
    with h5py.File(path) as file:
        uv = pixel(deepfluoro_projection(file, specimen, projection, body), CENTER + offset)
        height, width = file[f"{specimen}/projections/{projection}/image/pixels"].shape
        if upright and file[f"{specimen}/projections/{projection}/rot-180-for-up"][()]:
            uv = np.array([width - 1, height - 1]) - uv
    return uv - crop


def projected(view, point, pose=None):
    pose = view.xray.pose if pose is None else pose
    return project(view.xray.camera, pose, torch.as_tensor(point)[None])[0, 0].numpy()


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("crop", [0, 11])
def test_every_bead_lands_where_the_datasets_matrices_say(path, crop, upright):
    dataset = DeepFluoro(path, crop=crop, upright=upright)
    for specimen in dataset.subjects:
        assert specimen.view_names == PROJECTIONS
        for view in specimen.views:
            for name, offset in PELVIS.items():
                uv = expected(path, specimen.name, view.name, offset, crop=crop, upright=upright)
                np.testing.assert_allclose(projected(view, (CENTER + offset) * RAS), uv, atol=1e-3)
                np.testing.assert_allclose(projected(view, specimen.landmarks[name]), uv, atol=1e-3)


def test_with_matrices_in_double_precision_the_pixels_agree_to_a_millionth(tmp_path):
    path = write_deepfluoro(tmp_path / "double.h5", specimens=("17-1882",), dtype=np.float64)
    for view in DeepFluoro(path, crop=CROP).subjects[0].views:
        for offset in PELVIS.values():
            uv = expected(path, "17-1882", view.name, offset)
            np.testing.assert_allclose(projected(view, (CENTER + offset) * RAS), uv, atol=1e-6)


def test_the_beads_in_the_images_lie_at_those_pixels(path, dataset):
    for specimen in dataset.subjects:
        for view in specimen.views:
            for offset in PELVIS.values():
                uv = expected(path, specimen.name, view.name, offset)
                np.testing.assert_allclose(centroid(view.xray.image, uv), uv, atol=0.01)


@pytest.mark.parametrize(
    ("direction", "spacing"), [(np.eye(3), (2.0, 2.0, 2.0)), (OBLIQUE, (1.7, 2.3, 2.9)), (OBLIQUE, (3.0, 1.6, 2.4))]
)
def test_the_beads_in_the_volume_lie_at_the_landmarks(tmp_path, direction, spacing):
    path = write_deepfluoro(tmp_path / "grid.h5", specimens=("17-1882",), direction=direction, spacing=spacing)
    specimen = DeepFluoro(path).subjects[0]
    volume = specimen.volume
    assert volume.spacing.tolist() == pytest.approx(spacing, rel=1e-6)
    assert set(specimen.landmarks) == set(PELVIS)
    for name, offset in PELVIS.items():
        landmark = specimen.landmarks[name].numpy()
        np.testing.assert_allclose(landmark, (CENTER + offset) * RAS, atol=1e-4)  # the file's 32 bit
        ijk = (volume.ras_to_ijk.numpy() @ [*landmark, 1])[:3]
        at = centroid_3d(volume.hu + 1000, ijk)
        np.testing.assert_allclose((volume.ijk_to_ras.numpy() @ [*at, 1])[:3], landmark, atol=0.01)


def test_our_rendering_of_what_was_read_shows_the_beads_at_those_pixels(path, subject):
    renderer = Renderer(subject.volume, backend="torch")
    for view in subject.views:
        image = renderer(view.xray.camera, view.xray.pose)[0, 0]
        for offset in PELVIS.values():
            uv = expected(path, subject.name, view.name, offset)
            np.testing.assert_allclose(centroid(image, uv), uv, atol=0.05)


def test_poses_have_no_reflection_and_images_are_seen_from_the_detector(dataset):
    for specimen in dataset.subjects:
        for view in specimen.views:
            for pose in (view.xray.pose, *view.body_poses.values()):
                assert float(torch.linalg.det(pose.rotation)) == pytest.approx(1, abs=1e-12)
                torch.testing.assert_close(
                    pose.rotation.T @ pose.rotation, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0
                )
            assert view.xray.camera.view_from == "detector"
            assert float(view.xray.camera.K[1, 1]) > 0
            assert float(view.xray.camera.source_to_detector) == pytest.approx(1020, abs=1e-3)
            assert view.header_pose is None


def test_turning_an_image_turns_the_pose_about_the_beam(path):
    upright, stored = (
        DeepFluoro(path, crop=0, upright=turn).subjects["17-1882"].views["001"] for turn in (True, False)
    )
    assert (upright.xray.meta["turned"], stored.xray.meta["turned"]) == (True, False)
    assert torch.equal(upright.xray.image, stored.xray.image.flip(0, 1))
    assert torch.equal(upright.segmentation, stored.segmentation.flip(0, 1))
    half_turn = Pose(np.diag([-1.0, -1.0, 1.0, 1.0]))
    torch.testing.assert_close(upright.xray.pose.matrix, (stored.xray.pose @ half_turn).matrix)
    for name, uv in upright.landmarks.items():
        torch.testing.assert_close(uv, torch.tensor([103.0, 91.0]) - stored.landmarks[name], check_dtype=False)


@pytest.mark.parametrize("upright", [True, False])
def test_femurs_have_their_own_poses_and_the_segmentation_their_numbers(path, upright):
    dataset = DeepFluoro(path, crop=CROP, upright=upright, doubtful_femurs=True)
    for specimen in dataset.subjects:
        for view in specimen.views:
            assert set(view.body_poses) == set(FEMURS)
            for body, offset in FEMURS.items():
                uv = expected(path, specimen.name, view.name, offset, body, upright=upright)
                np.testing.assert_allclose(
                    projected(view, (CENTER + offset) * RAS, view.body_poses[body]), uv, atol=1e-3
                )
                assert np.linalg.norm(projected(view, (CENTER + offset) * RAS) - uv) > 1  # the femur has moved
                column, row = uv.round().astype(int)
                assert int(view.segmentation[row, column]) == specimen.volume.label_id(body)
            for offset in PELVIS.values():
                column, row = expected(path, specimen.name, view.name, offset, upright=upright).round().astype(int)
                assert int(view.segmentation[row, column]) == specimen.volume.label_id("left-hemipelvis")
            assert view.segmentation.dtype == torch.int16
            assert view.segmentation.shape == view.xray.image.shape


def test_a_femur_rendered_by_its_own_pose_lies_in_the_image(path, subject):
    femur = Renderer(subject.volume.select("left-femur"), backend="torch")
    for name in ("000", "001"):
        view = subject.views[name]
        uv = expected(path, subject.name, name, FEMURS["left-femur"], "left-femur")
        image = femur(view.xray.camera, view.body_poses["left-femur"])[0, 0]
        np.testing.assert_allclose(centroid(image, uv), uv, atol=0.05)
        np.testing.assert_allclose(centroid(view.xray.image, uv), uv, atol=0.01)


def test_femur_poses_that_the_authors_doubt_are_left_out(subject):
    assert [sorted(view.body_poses) for view in subject.views] == [["left-femur"], ["left-femur"], []]
    assert [view.xray.meta["left-femur-good-fov"] for view in subject.views] == [True, True, False]


def test_landmarks_of_the_image_and_none_outside_it(path):
    whole = DeepFluoro(path, crop=0).subjects["17-1882"].views["000"]
    cropped = DeepFluoro(path, crop=CROP).subjects["17-1882"].views["000"]
    assert set(whole.landmarks) == {*PELVIS, "SPS-r"}  # MOF-l lies at column -30
    assert set(cropped.landmarks) == set(PELVIS)  # SPS-r at (2, 3) went with the crop
    for name, offset in PELVIS.items():
        assert cropped.landmarks[name].dtype == torch.float64
        np.testing.assert_allclose(cropped.landmarks[name], expected(path, "17-1882", "000", offset), atol=1e-4)


def test_subjects_come_in_the_papers_order_and_others_after_them(tmp_path):
    path = write_deepfluoro(tmp_path / "many.h5", specimens=("99-0002", "17-1905", "99-0001", "18-1109", "17-1882"))
    dataset = DeepFluoro(path)
    assert dataset.subject_names == ("17-1882", "18-1109", "17-1905", "99-0001", "99-0002")
    assert dataset.subjects[1].name == "18-1109"
    assert dataset.subjects["99-0002"].view_names == PROJECTIONS
    assert dataset.subjects[0].groups == (("000",), ("001",), ("002",))
    assert top_level_names(path) == ("17-1882", "17-1905", "18-1109", "99-0001", "99-0002", "proj-params")


def test_the_labels_have_their_names(subject):
    assert subject.volume.label_names == dict(enumerate(LABELS, start=1))
    assert subject.volume.labels.dtype == torch.int16
    for name, number in (("left-femur", 5), ("right-femur", 6)):
        ijk = (subject.volume.ras_to_ijk.numpy() @ [*((CENTER + FEMURS[name]) * RAS), 1])[:3].round().astype(int)
        assert int(subject.volume.labels[tuple(ijk[::-1])]) == number


def counts(file):
    """A row of counts over an even image, where the default crop leaves it."""
    pixels = np.full((92, 104), 1000.0, np.float32)
    pixels[46, 50:54] = [65487.0, 65487 / math.e, 5000.0, 0.0]
    pixels[0, 0] = 60000.0
    replaced(file, "17-1882/projections/000/image/pixels", pixels)


def test_line_integrals_by_hand(changed):
    path = changed(counts)
    row = DeepFluoro(path, crop=40).subjects[0].views["000"].xray
    assert row.image.shape == (12, 24)
    # ln(65487 / 5000) = 2.57241...; no count at all counts as I0 / 10^4
    by_hand = [0, 1, math.log(65487 / 5000), math.log(1e4)]
    assert row.image[6, 10:14].tolist() == pytest.approx(by_hand, abs=1e-5)
    assert (row.meta["i0"], row.meta["intensity"], row.meta["logarithmic"]) == (65487.0, "attenuation", True)
    assert math.log(65487 / 5000) == pytest.approx(2.57241, abs=1e-5)

    other = DeepFluoro(path, crop=40, i0=70000).subjects[0].views["000"].xray
    assert other.image[6, 10].item() == pytest.approx(math.log(70000 / 65487), abs=1e-6)


def test_the_images_own_maximum_is_taken_after_the_crop(changed):
    def darker(file):
        counts(file)
        file["17-1882/projections/000/image/pixels"][46, 50] = 30000.0

    path = changed(darker)
    cropped, whole = (DeepFluoro(path, crop=n, i0="image").subjects[0].views["000"].xray for n in (40, 0))
    assert cropped.meta["i0"] == 30000.0
    assert whole.meta["i0"] == 60000.0
    assert cropped.image[6, 12].item() == pytest.approx(math.log(6), abs=1e-6)
    assert whole.image[46, 52].item() == pytest.approx(math.log(12), abs=1e-6)


def test_raw_counts_stay_as_they_are(changed):
    xray = DeepFluoro(changed(counts), crop=40, i0=None).subjects[0].views["000"].xray
    assert xray.image[6, 10:14].tolist() == pytest.approx([65487, 65487 / math.e, 5000, 0])
    assert (xray.meta["intensity"], xray.meta["i0"]) == ("transmission", None)


def test_the_default_crop_is_fifty_pixels(tmp_path):
    path = write_deepfluoro(
        tmp_path / "large.h5", specimens=("17-1882",), size=(192, 204), principal_point=(103.8, 94.1)
    )
    view = DeepFluoro(path).subjects[0].views["001"]
    assert view.xray.image.shape == (92, 104)
    for offset in PELVIS.values():
        uv = expected(path, "17-1882", "001", offset, crop=50)
        np.testing.assert_allclose(projected(view, (CENTER + offset) * RAS), uv, atol=1e-3)
        np.testing.assert_allclose(centroid(view.xray.image, uv), uv, atol=0.01)


def test_meta_is_json_and_says_where_the_image_comes_from(subject):
    meta = subject.views["001"].xray.meta
    assert json.loads(json.dumps(meta)) == meta
    assert (meta["dataset"], meta["specimen"], meta["projection"]) == ("DeepFluoro", "17-1882", "001")


def test_half_a_voxel_moves_the_poses_along_the_voxels_axes(path):
    plain, moved = (DeepFluoro(path, half_voxel=on, doubtful_femurs=True).subjects["17-1882"] for on in (False, True))
    plain.dataset.crop = moved.dataset.crop = 0
    step = (OBLIQUE * [1.7, 2.3, 2.9]).sum(axis=1) / 2 * RAS
    for old, new in zip(plain.views, moved.views, strict=True):
        pairs = [(old.xray.pose, new.xray.pose), *zip(old.body_poses.values(), new.body_poses.values(), strict=True)]
        assert len(pairs) == 3
        for before, after in pairs:
            np.testing.assert_allclose(after.translation - before.translation, -step, atol=1e-5)
            torch.testing.assert_close(after.rotation, before.rotation)


# What DiffDRR's conventions make of the same file, by hand. Its poses are applied first to last; P is camera to world.
FLIP = np.diag([-1.0, -1.0, -1.0, 1.0])
HALF_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])
REORIENT_PA = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def diffdrr_rays(file, specimen, projection, center_lps, uv):
    """Our camera and pose of the numbers that DiffDRR-Datasets hands to DiffDRR, and their rays through uv."""
    group = file[f"{specimen}/projections/{projection}"]
    shift = np.eye(4)
    shift[:3, 3] = -center_lps
    chain = [FLIP, np.linalg.inv(file["proj-params/extrinsic"][()]), group["gt-poses/cam-to-pelvis-vol"][()], shift]
    chain.append(HALF_TURN)
    if group["rot-180-for-up"][()]:
        chain.insert(0, HALF_TURN)
    chain.insert(0, np.linalg.inv(REORIENT_PA))
    matrix = np.eye(4)
    for step in chain:
        matrix = step @ matrix
    K = file["proj-params/intrinsic"][()].astype(np.float64)
    height, width = group["image/pixels"].shape
    delx, dely = file["proj-params/pixel-col-spacing"][()], file["proj-params/pixel-row-spacing"][()]
    focal = abs(K[0, 0] * delx + K[1, 1] * dely) / 2
    x0, y0 = delx * (K[0, 2] - width / 2), dely * (K[1, 2] - height / 2)
    camera, pose = from_diffdrr(
        matrix, focal, height, delx, width, dely, x0, y0, orientation="PA", volume_center=center_lps * RAS
    )
    return backproject(camera, pose, uv)


def test_diffdrrs_rays_are_ours_half_a_pixel_on(tmp_path):
    """DiffDRR-Datasets reads K as if the first pixel's centre were (0.5, 0.5): its pixel sees what ours sees there.

    Where the image is turned it also leaves the principal point as it was, which is right for the published one, the
    image's centre.
    """
    path = write_deepfluoro(tmp_path / "double.h5", dtype=np.float64, principal_point=(51.5, 45.5))
    uv = torch.tensor([[0.0, 0.0], [103.0, 0.0], [13.2, 80.1], [51.5, 45.5]], dtype=torch.float64)
    for subject in DeepFluoro(path, crop=0).subjects:
        for view in subject.views:
            with h5py.File(path) as file:
                theirs = diffdrr_rays(file, subject.name, view.name, subject.volume.center.numpy() * RAS, uv)
            ours = backproject(view.xray.camera, view.xray.pose, uv + 0.5)
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_diffdrrs_rays_with_a_principal_point_off_the_centre(tmp_path):
    path = write_deepfluoro(tmp_path / "double.h5", dtype=np.float64, principal_point=(53.8, 44.1))
    subject = DeepFluoro(path, crop=0).subjects[0]
    uv = torch.tensor([[0.0, 0.0], [103.0, 0.0], [13.2, 80.1]], dtype=torch.float64)
    for name in ("000", "002"):
        with h5py.File(path) as file:
            theirs = diffdrr_rays(file, subject.name, name, subject.volume.center.numpy() * RAS, uv)
        ours = backproject(subject.views[name].xray.camera, subject.views[name].xray.pose, uv + 0.5)
        torch.testing.assert_close(ours[1], theirs[1], atol=1e-9, rtol=0)


def test_numbers_and_texts_in_whatever_shape_they_are_stored(changed):
    def reshape(file):
        for name in ("num-rows", "num-cols", "pixel-row-spacing", "pixel-col-spacing"):
            replaced(file, f"proj-params/{name}", np.array([[file[f"proj-params/{name}"][()]]]))
        replaced(file, "17-1882/projections/001/rot-180-for-up", np.array([True]))
        for name, shape in (("FH-l", (1, 3)), ("FH-r", (3,))):
            point = file[f"17-1882/vol-landmarks/{name}"][()].reshape(shape)
            replaced(file, f"17-1882/vol-landmarks/{name}", point)
        replaced(file, "17-1882/vol/origin", file["17-1882/vol/origin"][()].ravel())
        replaced(file, "17-1882/vol/spacing", file["17-1882/vol/spacing"][()].T)
        replaced(file, "17-1882/vol-seg/labels-def/1", np.bytes_("left-hemipelvis"))
        replaced(file, "17-1882/vol-seg/labels-def/5", ["left-femur"])

    first, other = (DeepFluoro(changed(how), crop=CROP).subjects[0] for how in (lambda file: None, reshape))
    assert other.volume.label_names == first.volume.label_names
    assert torch.equal(other.volume.ijk_to_ras, first.volume.ijk_to_ras)
    assert torch.equal(other.views["001"].xray.pose.matrix, first.views["001"].xray.pose.matrix)
    assert all(torch.equal(other.landmarks[name], first.landmarks[name]) for name in PELVIS)


def test_a_file_without_what_can_be_missing(changed):
    def strip(file):
        del file["17-1882/vol-seg"], file["17-1882/vol-landmarks"]
        for name in PROJECTIONS:
            del file[f"17-1882/projections/{name}/gt-seg"], file[f"17-1882/projections/{name}/gt-landmarks"]

    subject = DeepFluoro(changed(strip), crop=CROP).subjects[0]
    view = subject.views[0]
    assert (subject.volume.labels, subject.landmarks, dict(view.landmarks), view.segmentation) == (None, {}, {}, None)
    assert view.body_poses == {}  # no label has that name
    assert view.xray.pose is not None


def test_labels_on_another_grid_are_brought_to_the_cts(path, changed):
    def coarser(file):
        group = file["17-1882/vol-seg/image"]
        pixels, spacing = group["pixels"][()], group["spacing"][()]
        replaced(group, "pixels", np.ascontiguousarray(pixels[:, ::-1]))  # the same voxels, j running the other way
        axes = group["dir-mat"][()]
        origin = group["origin"][()] + axes[:, 1:2] * spacing[1] * (pixels.shape[1] - 1)
        replaced(group, "dir-mat", axes * np.array([1, -1, 1], np.float32))
        replaced(group, "origin", origin)

    labels = DeepFluoro(changed(coarser)).subjects[0].volume.labels
    assert torch.equal(labels, DeepFluoro(path).subjects["17-1882"].volume.labels)


def test_datasets_and_subjects_travel_without_what_they_have_read(dataset):
    subject = dataset.subjects[0]
    assert subject.volume is subject.volume
    copy = pickle.loads(pickle.dumps(subject))
    assert len(pickle.dumps(subject)) < 2000
    assert torch.equal(copy.volume.hu, subject.volume.hu)
    assert torch.equal(copy.views[1].xray.image, subject.views[1].xray.image)
    assert pickle.loads(pickle.dumps(dataset)).subject_names == dataset.subject_names


def test_two_processes_read_at_once_and_while_a_third_has_it_open(dataset, path):
    with h5py.File(path, "r"), ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        sums = list(pool.map(read_everything, [dataset, dataset], timeout=120))
    assert sums == [read_everything(dataset)] * 2


def test_files_are_closed_after_each_access(subject):
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list open files")
    before = len(list(descriptors.iterdir()))
    assert all(view.xray is not None for view in subject.views)
    assert len(list(descriptors.iterdir())) == before


SENTENCES = {
    "the intrinsics are gone": (lambda f: f.__delitem__("proj-params/intrinsic"), "has no 'proj-params/intrinsic'"),
    "the volume is gone": (lambda f: f.__delitem__("17-1882/vol"), "has no '17-1882/vol/"),
    "the pixels are gone": (lambda f: f.__delitem__("17-1882/vol/pixels"), "has no '17-1882/vol/pixels'"),
    "the pose is gone": (
        lambda f: f.__delitem__("17-1882/projections/000/gt-poses"),
        "has no '17-1882/projections/000/gt-poses/cam-to-pelvis-vol'",
    ),
    "the flag is gone": (lambda f: f.__delitem__("17-1882/projections/000/rot-180-for-up"), "rot-180-for-up"),
    "a flat volume": (lambda f: replaced(f, "17-1882/vol/pixels", np.zeros((4, 4))), "should have 3 dimensions"),
    "an image of another size": (
        lambda f: replaced(f, "17-1882/projections/000/image/pixels", np.ones((90, 104))),
        "promises images of 92 x 104 pixels, but one has 90 x 104",
    ),
    "a segmentation of another size": (
        lambda f: replaced(f, "17-1882/projections/000/gt-seg/pixels", np.ones((90, 104))),
        "gt-seg/pixels'",
    ),
    "a segmentation with NaN": (
        lambda f: replaced(f, "17-1882/projections/000/gt-seg/pixels", np.full((92, 104), np.nan)),
        "is no segmentation",
    ),
    "a segmentation with fractions": (
        lambda f: replaced(f, "17-1882/projections/000/gt-seg/pixels", np.full((92, 104), 0.5)),
        "is no segmentation",
    ),
    "a pose that stretches": (
        lambda f: replaced(f, "17-1882/projections/000/gt-poses/cam-to-pelvis-vol", np.diag([1, 1, 1.1, 1])),
        "is not a rotation: it stretches",
    ),
    "a pose that mirrors": (
        lambda f: replaced(f, "17-1882/projections/000/gt-poses/cam-to-pelvis-vol", np.diag([1, 1, -1.0, 1])),
        "is not a rigid transform",
    ),
    "a pose with a fourth row": (
        lambda f: replaced(f, "proj-params/extrinsic", np.eye(4) + np.eye(4, k=-3)),
        "is not a rigid transform",
    ),
    "a pose that is NaN": (lambda f: replaced(f, "proj-params/extrinsic", np.full((4, 4), np.nan)), "not finite"),
    "a K of another shape": (lambda f: replaced(f, "proj-params/intrinsic", np.eye(4)), "should have 3 x 3"),
    "a K of zeros": (
        lambda f: replaced(f, "proj-params/intrinsic", np.zeros((3, 3))),
        "cannot be used",
    ),
    "a text for a number": (lambda f: replaced(f, "proj-params/num-rows", "many"), "does not hold real numbers"),
    "a number for a text": (lambda f: replaced(f, "17-1882/vol-seg/labels-def/1", 7), "is not a text"),
    "a dataset for a group": (lambda f: replaced(f, "17-1882/vol-landmarks", 7), "where a group is expected"),
    "a group for a dataset": (
        lambda f: (f.__delitem__("17-1882/vol/origin"), f.create_group("17-1882/vol/origin")),
        "where a dataset is expected",
    ),
    "pixels that are NaN": (
        lambda f: replaced(f, "17-1882/projections/000/image/pixels", np.full((92, 104), np.nan)),
        "cannot be used: The X-ray has pixels that are NaN",
    ),
    "spacings that contradict K": (lambda f: replaced(f, "proj-params/pixel-row-spacing", 1.0), "contradict"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_one_sentence_for_a_file_that_is_not_as_it_should_be(changed, case):
    change, sentence = SENTENCES[case]
    path = changed(change)
    with pytest.raises(ReadError) as caught:
        subject = DeepFluoro(path, crop=CROP).subjects[0]
        assert subject.view_names == PROJECTIONS
        _ = subject.views[0], subject.landmarks, subject.volume
    message = str(caught.value)
    assert sentence in message and str(path) in message and "\n" not in message


def test_labels_of_another_place_are_no_labels_of_this_ct(changed):
    path = changed(lambda f: replaced(f, "17-1882/vol-seg/image/origin", np.array([5000.0, 0, 0])))
    with pytest.raises(ReadError, match="None of the labels"):
        _ = DeepFluoro(path).subjects[0].volume
    path = changed(lambda f: f["17-1882/vol-seg/image/origin"].write_direct(np.float32([[0], [-31], [-940]])))
    with pytest.warns(DiffDRRWarning, match="outside the CT"):
        _ = DeepFluoro(path).subjects[0].volume


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"i0": -1}, "i0 is a positive number"),
        ({"i0": "max"}, "i0 is a positive number"),
        ({"i0": float("nan")}, "i0 is a positive number"),
        ({"i0": True}, "i0 is a positive number"),
        ({"crop": -1}, "crop is a whole number"),
        ({"crop": 1.5}, "crop is a whole number"),
        ({"crop": float("nan")}, "crop is a whole number"),
        ({"crop": "50"}, "crop is a whole number"),
    ],
)
def test_options_are_checked_before_the_file_is_read(path, options, sentence):
    with pytest.raises(ReadError, match=sentence):
        DeepFluoro(path, **options)


def test_a_crop_that_leaves_nothing_and_an_i0_of_other_units(path):
    with pytest.raises(ReadError, match="leaves nothing"):
        _ = DeepFluoro(path, crop=46).subjects[0].views[0]
    with pytest.raises(ReadError, match="I0 = 1 is below"):
        _ = DeepFluoro(path, crop=CROP, i0=1.0).subjects[0].views[0]


def test_what_is_not_there_is_said_with_what_is(dataset):
    for key in (2, -3, "18-1109"):
        with pytest.raises(ReadError, match=r"There is no subject .* there are: 17-1882, 18-0725"):
            _ = dataset.subjects[key]
    for key in (3, "003"):
        with pytest.raises(ReadError, match=r"Subject 17-1882 has no X-ray .* there are: 000, 001, 002"):
            _ = dataset.subjects[0].views[key]


def test_a_file_that_is_not_hdf5_or_not_there(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("this is no HDF5 file")
    for path, sentence in (
        (text, "is not an HDF5 file"),
        (tmp_path / "nothing.h5", "No such file"),
        (tmp_path, "Cannot read"),
    ):
        with pytest.raises(ReadError, match=sentence):
            DeepFluoro(path)


def test_an_hdf5_file_of_another_layout(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(ReadError, match="it has no 'proj-params'"):
        DeepFluoro(tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5", "a") as file:
        file.create_group("proj-params")
    with pytest.raises(ReadError, match="has no specimen"):
        DeepFluoro(tmp_path / "other.h5")


@pytest.mark.parametrize("share", [0.002, 0.3, 0.7, 0.95, 0.9999])
def test_a_half_written_file(path, tmp_path, share):
    whole = path.read_bytes()
    broken = tmp_path / "broken.h5"
    broken.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ReadError, match=r"broken\.h5' is (damaged or incomplete|not an HDF5 file)"):
        DeepFluoro(broken)


def test_bytes_lost_in_the_middle_of_a_compressed_image(changed):
    def compress(file):
        name = "17-1882/projections/000/image/pixels"
        pixels = file[name][()]
        del file[name]
        file.create_dataset(name, data=pixels, compression="gzip", fletcher32=True, chunks=(92, 104))

    path = changed(compress)
    with h5py.File(path) as file:
        chunk = file["17-1882/projections/000/image/pixels"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 100 : chunk.byte_offset + 140] = bytes(40)
    path.write_bytes(data)
    subject = DeepFluoro(path, crop=CROP).subjects[0]
    with pytest.raises(ReadError, match="is damaged or incomplete at '17-1882/projections/000/image/pixels'"):
        _ = subject.views[0]
    assert subject.views[1].xray is not None


def test_no_permission_to_read(path, tmp_path):
    closed = tmp_path / "closed.h5"
    closed.write_bytes(path.read_bytes())
    closed.chmod(0)
    if os.access(closed, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ReadError, match="Permission denied"):
        DeepFluoro(closed)


def test_without_h5py(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ReadError, match="pip install h5py"), opened(path):
        pass
