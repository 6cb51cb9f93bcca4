from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffDRRCore import Pose, Renderer, Volume
from DiffDRRCore.errors import DiffDRRWarning, LearningError, ReadError
from DiffDRRCore.geometry.itk_transform import write_itk_transform
from DiffDRRCore.geometry.tensors import transform_points
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.fingerprints import fingerprint, is_fingerprint, same_ct
from DiffDRRCore.learning.data.subject_files import IMAGES, Subjects, find_cts, matched, read_subjects, read_warp
from DiffDRRCore.learning.data.subjects import Subject, clean_image
from DiffDRRCore.learning.training.batches import Batch
from DiffDRRCore.learning.training.options import TrainingOptions
from DiffDRRCore.learning.training.validation import held_out, targets_of
from Testing.core import samples
from Testing.core.learning import scene
from Testing.core.learning.scene import small


def options(**changes) -> TrainingOptions:
    return TrainingOptions(camera=camera_to_dict(scene.camera()), views={"sod": 600}, **changes)


def relative(a, b) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_the_frame_begins_at_the_centre_along_the_patients_axes():
    expected = torch.eye(4, dtype=torch.float64)
    expected[:3, 3] = scene.ct().center
    torch.testing.assert_close(scene.subject().frame_to_world.matrix, expected)


def test_line_integrals_of_water_and_bone_are_those_of_the_plain_rendering():
    subject, views = scene.subject(), scene.views()
    areal = subject.areal(views.camera, views.pose)
    assert areal.shape == (2, 3, 32, 32)
    plain = Renderer(scene.ct())(views.camera, subject.to_world(views.pose))
    assert relative(clean_image(areal), plain) < 1e-3  # the digits of two tables
    assert relative(clean_image(areal), subject.renderer(views.camera, subject.to_world(views.pose))) < 1e-5


def test_coarser_voxels_keep_the_line_integrals_and_the_labels():
    fine, coarse = scene.subject(), Subject(scene.ct(), voxel_mm=12.0)
    assert coarse.model.densities.shape == (2, 20, 16, 20)
    torch.testing.assert_close(coarse.frame_to_world.matrix, fine.frame_to_world.matrix)
    torch.testing.assert_close(coarse.model.densities.sum() * 8, fine.model.densities.sum(), rtol=1e-4, atol=0)
    views = scene.views()
    a, b = (clean_image(one.areal(views.camera, views.pose)) for one in (coarse, fine))
    assert float((a - b).abs().mean() / b.mean()) < 0.05
    images = coarse.renderer(views.camera, coarse.to_world(views.pose), coarse.labels, "soft")
    assert images.shape[1] == len(scene.ct().present_labels) - 1
    assert bool((images.sum(dim=1, keepdim=True) <= a + 1e-3).all())


def test_a_volume_without_bone_has_none_and_air_alone_is_an_error():
    views = scene.views(1)
    areal = Subject(small()).areal(views.camera, views.pose)
    assert float(areal[0].max()) > 0.5
    assert float(areal[1].max()) == 0
    with pytest.raises(LearningError, match="nothing but air"):
        Subject(small(-1000.0)).areal(views.camera, views.pose)


def test_a_crop_is_a_box_of_the_same_voxels_in_the_same_place():
    subject, size = scene.subject(), (90.0, 100.0, 120.0)
    crops = [subject.cropped(size, Draws(n)) for n in range(6)]
    assert len({tuple(one.model.center.tolist()) for one in crops}) > 3
    for crop in crops[:2]:
        assert crop.model.densities.shape[1:] == (20, 17, 15)
        torch.testing.assert_close(crop.frame_to_world.matrix, subject.frame_to_world.matrix)
        index = scene.ct().ras_to_ijk @ crop.model.ijk_to_ras[:, 3]
        i, j, k = (round(x) for x in index[:3].tolist())
        whole = torch.full_like(scene.ct().hu, -1000.0)
        box = (slice(k, k + 20), slice(j, j + 17), slice(i, i + 15))
        whole[box] = scene.ct().hu[box]
        views = scene.views(2)
        masked = Renderer(Volume(whole, scene.ct().ijk_to_ras), "siddon")
        image = Renderer(crop.renderer.volume, "siddon")(views.camera, crop.to_world(views.pose))
        assert relative(image, masked(views.camera, crop.to_world(views.pose))) < 1e-3
    assert scene.subject().model.densities.shape[1:] == (40, 32, 40)


def test_crops_of_turned_grids_take_the_patients_sizes():
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, -4.0], [2.0, 0, 0], [0, 3.0, 0]])  # i along A, j along S, k along -R
    subject = Subject(Volume(torch.zeros(20, 30, 40), affine))
    assert subject.cropped((40.0, 30.0, 45.0), Draws(0)).model.densities.shape[1:] == (10, 15, 15)


def test_a_given_frame_stays_when_the_ct_is_cropped():
    frame = samples.looking_at(np.random.default_rng(0), (0, 0, 0), 30.0)
    crop = Subject(scene.ct(), frame).cropped((60, 60, 60), Draws(0))
    torch.testing.assert_close(crop.frame_to_world.matrix, frame.matrix)


def test_crops_are_taken_about_the_structures_that_were_named_and_views_show_them():
    volume = scene.ct()
    (name,) = [name for name in volume.label_names.values() if name == "femur_left"]
    subject = Subject(volume, labels=[name])
    number = volume.label_id(name)
    subjects = Subjects([subject], crop_mm=(60.0, 60.0, 60.0))
    for step in range(30):
        crop = subjects.chosen(0, step)
        assert bool((crop.model.labels == number).any())
        assert len(scene.sampler().draw(crop, 4, 0, step)) == 4
    assert len({tuple(subjects.chosen(0, step).model.center.tolist()) for step in range(30)}) > 20


def thin(numbers=(1, 2)) -> Volume:
    """A plate one voxel thick, and a block, of 20 x 20 x 20 voxels of 2 mm."""
    labels = torch.zeros(20, 20, 20, dtype=torch.int16)
    labels[4:16, 4:16, 5] = numbers[0]
    labels[4:16, 4:16, 8:16] = numbers[1]
    return Volume(torch.zeros(20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]), labels, {1: "plate", 2: "block", 3: "none"})


def test_thin_structures_stay_on_the_coarse_grid_where_they_are():
    subject = Subject(thin(), labels=["plate", "block"], voxel_mm=8.0)
    labels = subject.model.labels
    assert labels.shape == (5, 5, 5)
    assert int((labels == 1).sum()) == round(12 * 12 / 64)
    where = (labels == 1).nonzero()
    assert bool((where[:, 2] == 1).all())  # column 5 is in the second block of four
    assert bool(((where[:, :2] >= 1) & (where[:, :2] <= 3)).all())
    assert int((labels == 2).sum()) == 3 * 3 * 2


def test_a_named_structure_that_is_not_there_is_told():
    with pytest.warns(DiffDRRWarning, match="no voxel of label 'none'"):
        _ = Subject(thin(), labels=["plate", "none"]).model
    with pytest.warns(DiffDRRWarning), pytest.raises(LearningError, match="no voxel of the structures"):
        _ = Subject(thin(), labels=["none"]).structure


def written(folder, hu, spacing, origin, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)) -> list[Volume]:
    """A CT in four formats, and with its axes in another order and turned around."""
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(spacing), image.SetOrigin(origin), image.SetDirection(direction)
    turned = sitk.PermuteAxes(sitk.Flip(image, (False, True, True)), (2, 0, 1))
    files = [("a.nrrd", image), ("a.nii.gz", image), ("a.nii", turned), ("a.mha", image), ("b.mha", turned)]
    for name, one in files:
        sitk.WriteImage(one, str(folder / name))
    return [Volume.read(folder / name) for name, _ in files]


def test_fingerprints_know_a_copy_in_any_file(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(6):
        hu = rng.integers(-1000, 2000, (6, 7, 8)).astype(np.int16)
        spacing = (round(rng.uniform(0.3, 1), 4),) * 2 + (float(rng.choice([0.625, 1.25, 3.0])),)
        angle = rng.uniform(-0.6, 0.6)
        cosine, sine = float(np.cos(angle)), float(np.sin(angle))
        direction = (cosine, -sine, 0.0, sine, cosine, 0.0, 0.0, 0.0, 1.0)
        first, *copies = [
            json.loads(json.dumps(fingerprint(one)))
            for one in written(tmp_path, hu, spacing, rng.uniform(-250, 250, 3).tolist(), direction)
        ]
        assert all(is_fingerprint(one) and same_ct(first, one) for one in copies)
        assert all(one["hu"] == first["hu"] for one in copies)


def test_fingerprints_tell_another_ct():
    volume = scene.ct()
    own = scene.subject().fingerprint
    assert same_ct(own, fingerprint(volume))
    moved, other = volume.ijk_to_ras.clone(), volume.hu.clone()
    moved[0, 3] += 0.1
    other[3, 4, 5] += 2
    finer = volume.ijk_to_ras @ torch.diag(volume.ijk_to_ras.new_tensor([1.001, 1.0, 1.0, 1.0]))
    for changed in (
        Volume(volume.hu, moved),
        Volume(volume.hu, finer),
        Volume(other, volume.ijk_to_ras),
        Volume(volume.hu.flip(0), volume.ijk_to_ras),
    ):
        assert not same_ct(own, fingerprint(changed))
    for wrong in ("abc", {"hu": "a"}, {"hu": "a", "shape": [1, 2, 3], "grid": [[1, 2], [3, 4]]}):
        assert not is_fingerprint(wrong)


def test_targets_lie_in_bone_whatever_else_is_dense():
    volume = scene.ct()
    metal = volume.hu.clone()
    metal[20:22, 16:18, 20:22] = 20000.0
    for hu in (volume.hu, metal):
        points = targets_of(Subject(Volume(hu, volume.ijk_to_ras)))
        assert len(points) == 200
        assert float((points.amax(dim=0) - points.amin(dim=0)).min()) > 100
        index = transform_points(volume.ras_to_ijk, points + volume.center)
        i, j, k = index.round().long().unbind(-1)
        assert float(hu[k, j, i].min()) > 150
        assert float((index - index.round()).abs().max()) < 1e-6
    with pytest.raises(LearningError, match="air"):
        targets_of(Subject(small(-1000.0)))
    assert len(targets_of(Subject(small(0.0)))) == 2 * 3 * 4


def test_held_out_views_are_of_many_cts_and_of_as_many_as_were_asked_for():
    subjects = [Subject(small, name=str(number)) for number in range(40)]

    def make(subject, number):
        values = torch.full((5, 1, 2, 2), float(subject.name))
        views = scene.views(5)
        return Batch(values, values, values > 0, views, subject)

    for count, least in ((64, 16), (7, 7), (1, 1)):
        batches = held_out(make, subjects, count)
        assert sum(len(batch.input) for batch, _ in batches) == count
        assert all(len(batch.views) == len(batch.input) for batch, _ in batches)
        names = {batch.subject.name for batch, _ in batches}
        assert len(names) == least
    assert {int(name) // 10 for batch, _ in held_out(make, subjects, 16) for name in [batch.subject.name]} == {
        0,
        1,
        2,
        3,
    }
    assert not any("volume" in subject.__dict__ for subject in subjects)


def test_labelmaps_belong_to_cts_by_name_not_by_order(tmp_path):
    (tmp_path / "ct").mkdir(), (tmp_path / "labels").mkdir()
    for number, name in enumerate(["b1", "b10", "a"]):
        volume = small(10.0 * number)
        labels = torch.where(volume.hu > -500, number + 1, 0)
        Volume(volume.hu, volume.ijk_to_ras, labels).write(
            tmp_path / "ct" / f"{name}.nii.gz", tmp_path / "labels" / f"{name}{['_seg', '.seg', ''][number]}.nrrd"
        )
    subjects = read_subjects(options(cts=(str(tmp_path / "ct"),), labelmaps=(str(tmp_path / "labels"),)))
    assert {one.name: (one.labels, float(one.volume.hu.max())) for one in subjects} == {
        **{"b1": ((1,), 0.0), "b10": ((2,), 10.0)},
        "a": ((3,), 20.0),
    }


def test_files_that_do_not_fit_the_cts_by_name(tmp_path):
    paths = [tmp_path / name for name in ("a_seg.nii", "b-labels.nii", "c.nii", "a.seg.nrrd")]
    cts = {name: tmp_path / f"{name}.nii.gz" for name in "ab"}
    assert matched(paths[:2][::-1], cts, "labelmap", IMAGES) == {"a": paths[0], "b": paths[1]}
    assert matched(paths[2:3], {"a": cts["a"]}, "labelmap", IMAGES) == {"a": paths[2]}
    longer = {**cts, "a_b": tmp_path / "a_b.nii"}
    files = [tmp_path / f"{name}_seg.nii" for name in ("a_b", "b", "a")]
    assert matched(files, longer, "labelmap", IMAGES) == dict(zip(("a_b", "b", "a"), files, strict=True))
    for files, words in (([*paths[:3]], "none of the CTs"), ([*paths[:2], paths[3]], "two"), (paths[:1], "'b'")):
        with pytest.raises(LearningError, match=words):
            matched(files, cts, "labelmap", IMAGES)


def test_a_labelmap_in_the_folder_of_the_cts_is_no_ct(tmp_path):
    small().write(tmp_path / "ct.nii.gz")
    small(5.0).write(tmp_path / "mask.nii.gz")
    (one,) = read_subjects(options(cts=(str(tmp_path),), labelmaps=(str(tmp_path / "mask.nii.gz"),)))
    assert one.name == "ct"
    assert one.labels == (-1000, 5)
    with pytest.raises(ReadError, match="no CT"):
        read_subjects(options(cts=(str(tmp_path),), labelmaps=(str(tmp_path),)))


def test_an_isocentre_is_where_the_frame_begins_and_the_pixels_say_how_coarse_it_is(tmp_path):
    scene.ct().write(tmp_path / "ct.nii.gz")
    (one,) = read_subjects(options(cts=(str(tmp_path),), isocenter=(10.0, 20.0, 130.0)))
    expected = torch.eye(4, dtype=torch.float64)
    expected[:3, 3] = torch.tensor([10.0, 20.0, 130.0])
    torch.testing.assert_close(one.frame_to_world.matrix, expected)
    assert one.model.densities.shape[1:] == (40, 32, 40)  # 6 mm: pixels of 10 mm at 600 of 1000 mm
    (one,) = read_subjects(
        TrainingOptions(
            cts=(str(tmp_path),), views={"sod": 600}, camera=camera_to_dict(scene.camera(16)), ct_weights={"ct": 2.0}
        )
    )
    assert one.model.densities.shape[1:] == (20, 16, 20)


def test_folders_without_cts_and_cts_of_one_name(tmp_path):
    with pytest.raises(ReadError, match="no CT"):
        find_cts([str(tmp_path)])
    with pytest.raises(ReadError, match="There is no CT"):
        find_cts([str(tmp_path / "x.nii")])
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ct.nii").touch()
    with pytest.raises(LearningError, match="Two CTs are called 'ct'"):
        find_cts([str(tmp_path / folder / "ct.nii") for folder in "ab"])
    assert find_cts([str(tmp_path)]) == {name: tmp_path / name for name in "ab"}  # folders, of DICOM it may be


def test_warps_go_in_either_direction(tmp_path):
    """What ITK makes of a patient's point, and the same of Slicer's file of the transform that moves the patient."""
    patient_to_template = Pose(samples.rigid(np.random.default_rng(3)))
    write_itk_transform(tmp_path / "slicer.tfm", patient_to_template.matrix)
    write_itk_transform(tmp_path / "points.tfm", patient_to_template.inverse().matrix)
    point, flip = np.array([11.0, -7.0, 23.0]), np.array([-1.0, -1.0, 1.0])
    itk = sitk.ReadTransform(str(tmp_path / "points.tfm"))
    there = flip * np.array(itk.TransformPoint((flip * point).tolist()))
    for pose in (read_warp(tmp_path / "points.tfm"), read_warp(tmp_path / "slicer.tfm", invert=True)):
        in_frame = pose.inverse().transform(torch.from_numpy(point)[None])[0]
        np.testing.assert_allclose(in_frame.numpy(), there, atol=1e-6)
    scene.ct().write(tmp_path / "ct.nii.gz")
    subjects = read_subjects(options(cts=(str(tmp_path / "ct.nii.gz"),), warps=(str(tmp_path / "points.tfm"),)))
    world = subjects[0].frame_to_world.transform(torch.from_numpy(there)[None])[0]
    np.testing.assert_allclose(world.numpy(), point, atol=1e-6)


def test_warps_that_are_not_rigid(tmp_path):
    write_itk_transform(tmp_path / "a.tfm", torch.diag(torch.tensor([1.1, 1.0, 1.0, 1.0])))
    with pytest.raises(LearningError, match="not rigid"):
        read_warp(tmp_path / "a.tfm")
    sitk.WriteTransform(sitk.BSplineTransform(3), str(tmp_path / "b.tfm"))
    with pytest.raises(ReadError, match="only linear"):
        read_warp(tmp_path / "b.tfm")


def test_subjects_are_taken_by_weight_and_the_numbers_alone():
    read = []

    def reader(name):
        return lambda: read.append(name) or small()

    subjects = Subjects([Subject(reader(name), name=name) for name in "abc"], {"a": 2.0, "b": 0.0}, kept=1)
    names = [subjects.chosen(0, step).name for step in range(3000)]
    assert names == [subjects.chosen(0, step).name for step in range(3000)]
    assert names.count("b") == 0
    assert names.count("a") / 3000 == pytest.approx(2 / 3, abs=0.1)
    assert read == []
    first, other = names.index("a"), names.index("c")
    for step in (first, first, other, first):
        _ = subjects.chosen(0, step).frame_to_world, subjects.chosen(0, step).model
    assert read == ["a", "c", "a"]
    for weights in ({"x": 1.0}, {"a": -1.0}, dict.fromkeys("abc", 0.0)):
        with pytest.raises(LearningError):
            Subjects([Subject(small(), name=name) for name in "abc"], weights)


def test_many_cts_are_not_read_at_every_step():
    read = []

    def reader(name):
        return lambda: read.append(name) or small()

    subjects = Subjects([Subject(reader(number), name=str(number)) for number in range(50)])
    seen = set()
    for step in range(400):
        for micro in range(8):
            one = subjects.chosen(0, step, micro)
            seen.add(one.name)
            _ = one.volume
    assert len(read) <= 4 * 400 / 10
    assert len(seen) > 40


def test_crops_of_a_training_are_those_of_its_steps():
    subjects = Subjects([scene.subject()], crop_mm=(60.0, 60.0, 60.0))
    one, two, again = (subjects.chosen(0, step).model.center for step in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
