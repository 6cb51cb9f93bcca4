"""Ljubljana: every vessel point lands where the dataset's own matrices say, in pose, image, volume and rendering."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from DiffDRRCore.datasets.ljubljana import Ljubljana, commonest_value, contrast_integrals
from DiffDRRCore.errors import ReadError
from DiffDRRCore.geometry import backproject, project
from DiffDRRCore.geometry.converters.diffdrr import from_diffdrr
from DiffDRRCore.rendering import Renderer
from Testing.core.datasets.hdf5_files import (
    CENTER,
    VESSELS,
    centroid,
    centroid_3d,
    ljubljana_projection,
    pixel,
    read_everything,
    write_ljubljana,
)

POINTS = CENTER + VESSELS


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_ljubljana(tmp_path_factory.mktemp("ljubljana") / "ljubljana.h5")


@pytest.fixture(scope="module")
def subject(path):
    return Ljubljana(path).subjects["subject02"]


@pytest.fixture
def changed(path, tmp_path):
    """A function that copies a file, changes the copy and returns its path."""

    def change(function):
        file_path = Path(shutil.copy(path, tmp_path / "changed.h5"))
        with h5py.File(file_path, "r+") as file:
            function(file)
        return file_path

    return change


def replaced(file, name, value):
    del file[name]
    file[name] = value


def expected(path, subject, view):
    with h5py.File(path) as file:
        return [pixel(ljubljana_projection(file, subject, view), point) for point in POINTS]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float32, 1e-3)])
def test_every_point_lands_where_the_datasets_matrices_say(tmp_path, dtype, tolerance):
    path = write_ljubljana(tmp_path / "ljubljana.h5", dtype=dtype)
    dataset = Ljubljana(path)
    assert dataset.subject_names == ("subject01", "subject02")
    for subject in dataset.subjects:
        assert list(subject.landmarks) == ["1", "2", "3", "4"]
        points = torch.stack(list(subject.landmarks.values()))
        np.testing.assert_allclose(points, POINTS, atol=1e-4)
        for view in subject.views:
            uv = project(view.xray.camera, view.xray.pose, POINTS)[0]
            np.testing.assert_allclose(uv, expected(path, subject.name, view.name), atol=tolerance)


def test_the_points_in_the_images_lie_at_those_pixels(path, subject):
    for view in subject.views:
        for uv in expected(path, subject.name, view.name):
            np.testing.assert_allclose(centroid(view.xray.image, uv), uv, atol=0.01)


def test_the_points_in_the_volume_lie_at_the_landmarks(subject):
    """The first index of the file's voxels runs against x: without that the beads would lie mirrored."""
    volume = subject.volume
    assert float(torch.linalg.det(volume.ijk_to_ras)) < 0
    assert volume.spacing.tolist() == pytest.approx([2.6, 1.9, 2.2])
    for point in POINTS:
        ijk = (volume.ras_to_ijk.numpy() @ [*point, 1])[:3]
        at = centroid_3d(volume.hu + 1000, ijk)
        np.testing.assert_allclose((volume.ijk_to_ras.numpy() @ [*at, 1])[:3], point, atol=0.01)


def test_the_grid_by_hand(path, subject):
    """Voxel [0, b, c] of the file lies at the far end of x."""
    with h5py.File(path) as file:
        pixels, origin = file["subject02/volume/pixels"][()], file["subject02/volume/origin"][()]
    raw = Ljubljana(path, subtracted=False).subjects["subject02"].volume
    assert raw.shape == (38, 44, 34)
    assert float(raw.hu[5, 6, 7]) == pixels[7, 6, 5]
    last = raw.ijk_to_ras.numpy() @ [33, 0, 0, 1]
    np.testing.assert_allclose(last[:3], origin)
    np.testing.assert_allclose((raw.ijk_to_ras.numpy() @ [0, 1, 2, 1])[:3], np.add(origin, [33 * 2.6, 1.9, 4.4]))
    assert torch.equal(raw.ijk_to_ras, subject.volume.ijk_to_ras)


def test_our_rendering_of_what_was_read_shows_the_points_at_those_pixels(path, subject):
    renderer = Renderer(subject.volume, backend="torch")
    for view in subject.views:
        image = renderer(view.xray.camera, view.xray.pose)[0, 0]
        for uv in expected(path, subject.name, view.name):
            np.testing.assert_allclose(centroid(image, uv), uv, atol=0.05)


def test_each_view_has_its_own_camera_and_no_pose_a_reflection(path, subject):
    focal = {"ap": 1195, "lat": 1210}
    for view in subject.views:
        assert float(torch.linalg.det(view.xray.pose.rotation)) == pytest.approx(1, abs=1e-12)
        assert float(view.xray.camera.source_to_detector) == pytest.approx(focal[view.name])
        assert view.xray.camera.view_from == "detector"
        assert view.xray.camera.principal_point.tolist() == pytest.approx([50.7, 47.9])
        assert (dict(view.landmarks), dict(view.body_poses), view.segmentation) == ({}, {}, None)


# What DiffDRR's conventions make of the same file, by hand; see test_deepfluoro.
FLIP = np.diag([-1.0, -1.0, -1.0, 1.0])
REORIENT = {
    "AP": np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
    "PA": np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
}


def test_diffdrrs_rays_are_ours_half_a_pixel_on(path, subject):
    """DiffDRR-Datasets reads K as if the first pixel's centre were (0.5, 0.5): its pixel sees what ours sees there.

    Its pose before the reorientation "AP" is a reflection; with the same camera it is a rotation before "PA".
    """
    center = subject.volume.center.numpy()
    uv = torch.tensor([[0.0, 0.0], [103.0, 0.0], [13.2, 80.1], [51.5, 45.5]], dtype=torch.float64)
    for view in subject.views:
        with h5py.File(path) as file:
            group = file[f"subject02/proj-{view.name}"]
            extrinsic, K = group["extrinsic"][()], group["intrinsic"][()]
            delx, dely = group["row-spacing"][()], group["col-spacing"][()]
            height, width = group["pixels"].shape
        shift = np.eye(4)
        shift[:3, 3] = -center
        pose = shift @ np.linalg.inv(extrinsic) @ FLIP @ np.linalg.inv(REORIENT["AP"])
        assert np.linalg.det(pose) == pytest.approx(-1)
        pose = pose @ REORIENT["AP"] @ np.linalg.inv(REORIENT["PA"])
        focal = abs(K[0, 0] * delx + K[1, 1] * dely) / 2
        x0, y0 = delx * (K[0, 2] - width / 2), dely * (K[1, 2] - height / 2)
        theirs = from_diffdrr(pose, focal, height, delx, width, dely, x0, y0, orientation="PA", volume_center=center)
        rays = backproject(view.xray.camera, view.xray.pose, uv + 0.5)
        for one, other in zip(backproject(*theirs, uv), rays, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_contrast_agent_by_hand():
    """Background 0.3: a brighter pixel counts as it, the darkest as -1; ln(2 / (2 + x))."""
    image = torch.tensor([[0.3, 0.3, 0.9], [-0.2, 0.3, -1.7], [0.1, 0.1, 0.3]], dtype=torch.float64)
    assert commonest_value(image) == 0.3
    half, fifth = math.log(2 / 1.5), math.log(2 / 1.8)
    by_hand = [[0, 0, 0], [half, 0, math.log(2)], [fifth, fifth, 0]]
    torch.testing.assert_close(contrast_integrals(image, 0.3), torch.tensor(by_hand, dtype=torch.float64))
    assert (half, fifth) == (pytest.approx(0.287682, abs=1e-6), pytest.approx(0.105361, abs=1e-6))


def test_the_numbers_of_diffdrr_datasets():
    """Its steps, one after the other, on an image whose background fills most of every row."""
    rng = np.random.default_rng(3)
    image = torch.as_tensor(np.where(rng.random((30, 40)) < 0.7, 0.125, rng.uniform(-1.5, 1.0, (30, 40))))
    theirs = image - image.mode().values.mode().values.item()
    theirs = theirs.clamp(-1, 0) + 1
    theirs = theirs + 1
    theirs = theirs.max().log() - theirs.log()
    torch.testing.assert_close(contrast_integrals(image, commonest_value(image)), theirs)


def test_the_commonest_value_counts_pixels_and_not_rows():
    """Three narrow rows of another value do not outvote the image; of equally common values the smallest counts."""
    image = torch.tensor([[5.0, 5, 5, 5, 5], [1, 1, 2, 3, 4], [1, 1, 6, 7, 8], [5, 5, 9, 1, 0]])
    assert commonest_value(image) == 5.0
    assert commonest_value(torch.tensor([[2.0, 1.0], [2.0, 1.0]])) == 1.0


def test_subtracted_images_and_volumes(path, subject):
    xray = subject.views["ap"].xray
    assert (xray.meta["intensity"], xray.meta["logarithmic"], xray.meta["background"]) == ("attenuation", True, 0.25)
    assert float(xray.image[0, 0]) == 0  # 0.9, brighter than the background
    with h5py.File(path) as file:
        darkest = float(file["subject02/proj-ap/pixels"][()].min())
    assert float(xray.image.max()) == pytest.approx(math.log(2 / (2 + darkest - 0.25)), abs=1e-6)
    raw = Ljubljana(path, subtracted=False).subjects["subject02"].volume.hu
    assert torch.equal(subject.volume.hu[raw >= 1000], raw[raw >= 1000])
    assert set(subject.volume.hu[raw < 1000].tolist()) == {-1000.0}
    assert subject.volume.labels is None


def test_unsubtracted_images_are_as_in_the_file(path):
    xray = Ljubljana(path, subtracted=False).subjects[1].views["lat"].xray
    with h5py.File(path) as file:
        np.testing.assert_array_equal(xray.image, file["subject02/proj-lat/pixels"][()])
    assert xray.meta["intensity"] == "transmission"
    assert "background" not in xray.meta


def test_both_views_show_one_position_of_the_patient(path, subject):
    assert subject.view_names == ("ap", "lat")
    assert subject.groups == (("ap", "lat"),)
    maxima = Ljubljana(path, maxima=True).subjects[0]
    assert maxima.view_names == ("ap", "lat", "ap-max", "lat-max")
    assert maxima.groups == (("ap", "lat"), ("ap-max", "lat-max"))
    assert maxima.views["lat-max"].name == "lat-max"


def test_a_patient_with_one_view(changed):
    path = changed(lambda file: file.__delitem__("subject01/proj-lat"))
    subject = Ljubljana(path).subjects[0]
    assert (subject.view_names, subject.groups) == (("ap",), (("ap",),))


def test_meta_is_json_and_says_where_the_image_comes_from(subject):
    meta = subject.views["ap"].xray.meta
    assert json.loads(json.dumps(meta)) == meta
    assert (meta["dataset"], meta["subject"], meta["view"]) == ("Ljubljana", "subject02", "ap")


def test_datasets_and_subjects_travel_without_what_they_have_read(path, subject):
    assert subject.volume is subject.volume
    assert len(pickle.dumps(subject)) < 2000
    assert torch.equal(pickle.loads(pickle.dumps(subject)).volume.hu, subject.volume.hu)
    dataset = Ljubljana(path)
    assert read_everything(pickle.loads(pickle.dumps(dataset))) == read_everything(dataset)


SENTENCES = {
    "the points are gone": (lambda f: f.__delitem__("subject01/points"), "has no 'subject01/points'"),
    "the volume is gone": (lambda f: f.__delitem__("subject01/volume"), "has no 'subject01/volume/"),
    "the extrinsics are gone": (
        lambda f: f.__delitem__("subject01/proj-ap/extrinsic"),
        "has no 'subject01/proj-ap/extrinsic'",
    ),
    "points of two numbers": (lambda f: replaced(f, "subject01/points", np.ones((5, 2))), "list of points, N x 3"),
    "a flat volume": (lambda f: replaced(f, "subject01/volume/pixels", np.ones((5, 2))), "should have 3 dimensions"),
    "spacing zero": (lambda f: replaced(f, "subject01/volume/spacing", np.zeros(3)), "'subject01/volume' cannot be"),
    "an image with a channel": (
        lambda f: replaced(f, "subject01/proj-ap/pixels", np.ones((5, 5, 3))),
        "should have 2 dimensions",
    ),
    "a mirroring pose": (
        lambda f: replaced(f, "subject01/proj-ap/extrinsic", np.diag([1, -1.0, 1, 1])),
        "is not a rigid transform",
    ),
    "spacings that contradict K": (lambda f: replaced(f, "subject01/proj-ap/row-spacing", 1.0), "contradict"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_one_sentence_for_a_file_that_is_not_as_it_should_be(changed, case):
    change, sentence = SENTENCES[case]
    path = changed(change)
    with pytest.raises(ReadError) as caught:
        subject = Ljubljana(path).subjects[0]
        _ = subject.views[0], subject.landmarks, subject.volume
    message = str(caught.value)
    assert sentence in message and str(path) in message and "\n" not in message


def test_what_is_not_there_is_said_with_what_is(path, subject):
    for key in (2, "subject03"):
        with pytest.raises(ReadError, match=r"There is no subject .* there are: subject01, subject02"):
            _ = Ljubljana(path).subjects[key]
    with pytest.raises(ReadError, match="Subject subject02 has no X-ray 'ap-max'; there are: ap, lat"):
        _ = subject.views["ap-max"]


def test_a_file_of_another_layout_or_none(tmp_path, path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(ReadError, match="it has no 'subject01'"):
        Ljubljana(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("subject01")
    with pytest.raises(ReadError, match="is not an HDF5 file"):
        Ljubljana(tmp_path / "text.h5")
    whole = path.read_bytes()
    (tmp_path / "half.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match="is damaged or incomplete"):
        Ljubljana(tmp_path / "half.h5")
