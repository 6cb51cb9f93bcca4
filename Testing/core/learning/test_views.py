from __future__ import annotations

import pytest
import torch

from DiffDRRCore import Camera, CArm, DiffDRRError, Pose, Renderer, project
from DiffDRRCore.errors import LearningError
from DiffDRRCore.geometry.tensors import transform_points
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.subjects import Subject
from DiffDRRCore.learning.data.views import ViewSampler
from DiffDRRCore.learning.network.targets import Target
from Testing.core.learning import scene

ALL = {
    **{"primary": [-40, 40], "secondary": [-30, 30], "roll": [-180, 180], "sod": [500, 700], "sdd": [900, 1200]},
    **{"shift_r": [-30, 30], "shift_a": [-30, 30], "shift_s": {"normal": [0, 20], "within": [-50, 50]}},
    **{"field": [0.8, 1.3], "offset_u": [-15, 15], "offset_v": [-15, 15]},
}
DRAWS = Draws(7)


def candidates(ranges, camera=None, count=6, around=None, subject=None):
    sampler = ViewSampler.from_dict(ranges, camera or scene.camera(), around)
    return sampler.candidates(subject or scene.subject(), count, DRAWS), {
        name: DRAWS.of(one, count) for name, one in sampler.ranges.of.items()
    }


@pytest.mark.parametrize("side", ["source", "detector"])
def test_the_isocentre_lands_on_the_principal_point_at_its_distance(side):
    views, drawn = candidates(ALL, Camera(30, 40, (4.0, 5.0), 1000.0, (22.0, 12.0), side))
    isocentre = torch.stack([drawn[f"shift_{axis}"] for axis in "ras"], dim=-1)[:, None]
    # 5 mm columns and 4 mm rows, 2.5 and -2.5 pixels off the middle of 40 x 30, all of it on a detector that grows
    u = 19.5 + ((22 - 19.5) * 5 + drawn["offset_u"]) / (5 * drawn["field"])
    v = 14.5 + ((12 - 14.5) * 4 + drawn["offset_v"]) / (4 * drawn["field"])
    torch.testing.assert_close(project(views.camera, views.pose, isocentre)[:, 0], torch.stack([u, v], dim=-1))
    depth = (isocentre[:, 0] - views.pose.translation).norm(dim=-1)
    torch.testing.assert_close(depth, drawn["sod"])
    torch.testing.assert_close(views.camera.source_to_detector, drawn["sdd"])


def test_a_view_worked_by_hand():
    """From behind: 10 mm to the right of the patient are 10 mm * 1000 / 500 on the detector, in pixels of 2 * 5 mm."""
    ranges = {"sod": 500, "field": 2.0, "shift_r": 3, "sdd": 1000}
    views, _ = candidates(ranges, Camera(20, 20, (5.0, 5.0), 1000.0), count=1)
    uv = project(views.camera, views.pose, torch.tensor([[13.0, 0.0, 0.0], [3.0, 50.0, 10.0]], dtype=torch.float64))
    expected = [[9.5 + 10 * 2 / 10, 9.5], [9.5, 9.5 - 10 * 1000 / 550 / 10]]  # cranial is up
    torch.testing.assert_close(uv[0], torch.tensor(expected, dtype=torch.float64))


def test_angles_come_back():
    views, drawn = candidates({**ALL, "roll": [-170, 170]})
    angles = CArm.angles_from(views.pose)
    for name in ("primary", "secondary", "roll"):
        torch.testing.assert_close(getattr(angles, name), drawn[name], atol=1e-6, rtol=0)


def test_mirrored_cameras_stay_mirrored():
    views, _ = candidates(ALL, scene.camera(view_from="detector"))
    assert views.camera.view_from == "detector"


def test_around_a_pose_turns_keep_the_anatomy_where_it_is_and_shifts_move_the_camera():
    world = CArm(1000.0, 600.0, scene.ct().center, 12.0, 5.0, 3.0).pose
    start = scene.subject().frame_to_world.inverse() @ world
    same, _ = candidates({"tilt_x": 0.0}, around=world)
    torch.testing.assert_close(same.pose.matrix, start.matrix.expand(6, 4, 4))
    turned, drawn = candidates({"tilt_x": [-10, 10], "tilt_y": [-10, 10], "turn": [-20, 20]}, around=world)
    origin = torch.zeros(6, 1, 3, dtype=torch.float64)
    seen = turned.pose.inverse().transform(origin)[:, 0]
    torch.testing.assert_close(seen, torch.tensor([0.0, 0.0, 600.0], dtype=torch.float64).expand(6, 3))
    turn = (start.rotation.T @ turned.pose.rotation)[:, :2, 0]
    alone, drawn = candidates({"turn": [-20, 20]}, around=world)
    turn = (start.rotation.T @ alone.pose.rotation)[:, :2, 0]
    torch.testing.assert_close(torch.rad2deg(torch.atan2(turn[:, 1], turn[:, 0])), drawn["turn"])
    moved, drawn = candidates({"right": [-9, 9], "down": [-9, 9], "depth": [-40, 40]}, around=world)
    shift = torch.stack([drawn["right"], drawn["down"], drawn["depth"]], dim=-1)
    torch.testing.assert_close(start.inverse().transform(moved.pose.translation), shift, atol=1e-9, rtol=0)


def covered(views, subject) -> torch.Tensor:
    """Share of the pixels of the whole image with more than 1 cm of water."""
    image = Renderer(scene.ct(), "siddon")(views.camera, subject.to_world(views.pose))[:, 0]
    return (image > 0.2).double().mean(dim=(1, 2))


def test_views_that_show_too_little_are_drawn_again():
    ranges = {**scene.VIEWS, "shift_s": [-400, 400], "shift_r": [-300, 300]}
    sampler = ViewSampler.from_dict(ranges, scene.camera(), least_covered=0.3)
    subject = scene.subject()
    views = sampler.draw(subject, 24, seed=3)
    assert len(views) == 24
    assert float(covered(views, subject).min()) > 0.25  # told from 24 x 24 pixels
    raw = sampler.candidates(subject, 24, Draws(3, 0, 0, "views").within(0))
    enough = covered(raw, subject)
    assert bool((enough < 0.25).any())
    kept = enough > 0.35
    assert bool(kept.any())
    assert torch.equal(views.pose.matrix[kept], raw.pose.matrix[kept])


def test_structures_that_were_named_must_be_seen_however_small_they_are():
    """Half of a femur's voxels, which fill a small part of the image."""
    volume = scene.ct()
    subject = Subject(volume, labels=["femur_left"])
    ranges = {**scene.VIEWS, "shift_s": [-200, 200]}
    sampler = ViewSampler.from_dict(ranges, scene.camera(), least_covered=0.5)
    number = volume.label_id("femur_left")
    points = transform_points(volume.ijk_to_ras, (volume.labels == number).nonzero().flip(-1).double())

    def share(views):
        uv = project(views.camera, subject.to_world(views.pose), points)
        return ((uv > -0.5) & (uv < 31.5)).all(dim=-1).double().mean(dim=-1)

    assert float(share(sampler.draw(subject, 12, seed=0)).min()) > 0.47
    assert float(share(sampler.candidates(subject, 64, DRAWS)).min()) < 0.1


@pytest.mark.parametrize("label", ["vertebrae", "hip_left", "femur_left"])
def test_a_small_structure_can_be_trained_on_with_the_default(label):
    found = [name for name in scene.ct().label_names.values() if name == label]
    assert len(scene.sampler().draw(Subject(scene.ct(), labels=found), 8, 0)) == 8


def test_rare_views_are_looked_for_as_long_as_it_takes():
    """About one in twenty: batches are found all the same."""
    ranges = {**scene.VIEWS, "shift_r": [-1500, 1500], "shift_s": [-1500, 1500]}
    sampler, subject = ViewSampler.from_dict(ranges, scene.camera()), scene.subject()
    accepted = sampler._shows(subject, sampler.candidates(subject, 512, DRAWS)).double().mean()
    assert 0.005 < float(accepted) < 0.12
    for step in range(3):
        views = sampler.draw(subject, 16, 0, step)
        assert float(covered(views, subject).min()) > 0.07
        assert len({tuple(one) for one in views.pose.translation.tolist()}) == 16


def test_views_of_several_cts_for_the_target():
    subjects = [Subject(scene.ct(), name=str(number)) for number in range(6)]
    views = scene.sampler().sample(subjects, 20, seed=0)
    assert len(views) == 20
    assert len({tuple(one) for one in views.pose.translation.tolist()}) == 20
    Target.from_views(views.camera, views.pose)


def test_no_source_is_in_the_patient_and_no_detector_before_it():
    sampler = ViewSampler.from_dict({"sod": [10, 600], "sdd": [400, 900]}, scene.camera())
    views = sampler.draw(scene.subject(), 16, seed=1)
    depth = views.pose.inverse().translation[:, 2]
    assert bool((depth > 90).all())
    assert bool((depth < views.camera.source_to_detector).all())


def test_views_depend_on_their_numbers_alone():
    first = scene.views(4, step=5)
    scene.views(4, step=6)
    assert torch.equal(scene.views(4, step=5).pose.matrix, first.pose.matrix)
    assert not torch.equal(scene.views(4, step=6).pose.matrix, first.pose.matrix)
    part = first[torch.tensor([2, 0])]
    assert torch.equal(part.pose.matrix, first.pose.matrix[[2, 0]])
    assert torch.equal(part.camera.K, first.camera.K[[2, 0]])


def test_ranges_that_miss_the_anatomy_say_so():
    sampler = ViewSampler.from_dict({"sod": 600, "shift_s": 2000}, scene.camera())
    with pytest.raises(LearningError, match="Hardly any view"):
        sampler.draw(scene.subject(), 2, seed=0)


@pytest.mark.parametrize(
    ("ranges", "around", "words"),
    [
        ({"primary": [0, 1]}, None, "sod"),
        ({"sod": 600, "tilt_x": 3}, None, "tilt_x"),
        ({"sod": 600}, Pose.identity(), "sod"),
        ({"sod": [-5, 600]}, None, "above 0"),
        ({"sod": 600, "field": {"normal": [1, 0.1]}}, None, "above 0"),
    ],
)
def test_ranges_that_cannot_be(ranges, around, words):
    with pytest.raises(DiffDRRError, match=words):
        ViewSampler.from_dict(ranges, scene.camera(), around)


def test_a_parallel_beam_is_no_camera_for_views():
    with pytest.raises(LearningError, match="point source"):
        ViewSampler.from_dict({"sod": 600}, Camera.parallel_beam(8, 8, (1.0, 1.0), 900.0))
