"""What a network is shown at work is what it was shown in its training, of the same view."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from DiffDRRCore import Camera, Pose, Volume, XRay
from DiffDRRCore.geometry import stack_poses
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.imaging.exposure import eroded
from DiffDRRCore.learning.appearance.appearance import Appearance
from DiffDRRCore.learning.appearance.augmentation import Augmentation
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.views import Views, ViewSampler
from DiffDRRCore.learning.inference.exposure import exposed
from DiffDRRCore.learning.inference.pose_model import PoseModel
from DiffDRRCore.learning.network.targets import Target
from DiffDRRCore.learning.training.batches import batch
from DiffDRRCore.learning.training.learner import _HELD_OUT as HELD_OUT
from DiffDRRCore.learning.training.training import train
from DiffDRRCore.learning.training.validation import target_errors, targets_of
from DiffDRRCore.rendering import Renderer
from Testing.core.learning import scene
from Testing.core.learning.small_training import VIEWS, small_options, write_phantom

SIDE, NUMBERS = 48, (3, 1, 0)
PLAIN = dict.fromkeys(("photons", "blur", "scatter", "blades", "aperture", "focal_spot"))
OFF = dict.fromkeys(Augmentation.from_dict().probabilities, 0.0)
FIELDS = {
    "round": {"aperture": 0.8, "chances": {"aperture": 1.0}},
    "blades": {"blades": [0.05, 0.25], "chances": {"blades": 1.0}},
    "both": {"aperture": 0.9, "blades": [0.1, 0.2], "chances": {"aperture": 1.0, "blades": 1.0}},
}


def off_centre(view_from: str) -> Camera:
    return Camera(SIDE, SIDE, (320.0 / SIDE,) * 2, 1000.0, (SIDE * 0.6, SIDE * 0.42), view_from)


def shown(camera: Camera, appearance: Appearance, count: int = 3):
    """A batch of training images, and the pictures (line integrals) it was made of, `fine` times finer."""
    sampler = ViewSampler.from_dict(scene.VIEWS, camera)
    made = batch(scene.subject(), sampler, appearance, Augmentation({}), *NUMBERS, count=count)
    pictures = {}
    for fine in (1, 4):
        views = Views(made.views.camera.resized(SIDE * fine, SIDE * fine), made.views.pose)
        areal = scene.subject().areal(views.camera, views.pose)
        pictures[fine] = appearance(areal, views, Draws(*NUMBERS).within("appearance")).image[:, 0]
    return made, pictures


def model(camera: Camera) -> PoseModel:
    target = Target.from_views(camera, stack_poses(list(scene.views().pose)))
    parts = {"camera": camera_to_dict(camera), "ranges": scene.VIEWS, "frame": {"kind": "own_center"}}
    return PoseModel(nn.Identity(), {"target": target.to_dict(), **parts})


def seen(camera: Camera, picture: torch.Tensor, mask=None) -> torch.Tensor:
    xray = XRay(picture, camera.resized(*picture.shape), meta={"intensity": "attenuation"})
    return model(camera)._seen(xray, exposed(xray, mask))[0]


@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_whatever_side_the_camera_sees_from(view_from):
    camera = off_centre(view_from)
    made, pictures = shown(camera, Appearance.from_dict(PLAIN))
    for image, picture in zip(made.input[:, 0], pictures[1], strict=True):
        torch.testing.assert_close(seen(camera, picture), image, atol=2e-3, rtol=0)
        assert np.corrcoef(image.flip(-1).ravel(), image.ravel())[0, 1] < 0.95
    world = scene.subject().to_world(made.views.pose)
    torch.testing.assert_close(made.clean, Renderer(scene.ct())(camera, world), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("fine", [1, 4])
@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_behind_a_collimator(field, fine):
    """Found in the image, as precisely as a pixel; a known mask does as well."""
    camera = off_centre("detector")
    made, pictures = shown(camera, Appearance.from_dict({**PLAIN, **field}))
    for image, open_field, picture in zip(made.input[:, 0], made.field[:, 0], pictures[fine], strict=True):
        assert 0.2 < float(open_field.float().mean()) < 0.9
        known = ~eroded(~open_field).repeat_interleave(fine, 0).repeat_interleave(fine, 1)
        for mask in (known,) if fine == 1 else (None, known):
            found = seen(camera, picture, mask)
            both, either = (found != 0) & (image != 0), (found != 0) | (image != 0)
            assert float(both.sum() / either.sum()) > (0.85 if mask is None else 0.96)  # a pixel at each side
            assert np.corrcoef(found[both], image[both])[0, 1] > 0.99
            assert float((found - image)[both].abs().mean()) < 0.15
        everything = seen(camera, picture, torch.ones_like(known))
        assert float((everything - image).abs().mean()) > 0.3  # what it would be without


@pytest.mark.parametrize("scatter", [0.0, 1.0])
def test_an_x_ray_without_a_collimator_is_seen_whole(scatter):
    appearance = Appearance.from_dict({"blades": None, "aperture": None, "scatter": scatter})
    for side in (48, 150):
        sampler = ViewSampler.from_dict(scene.VIEWS | {"sod": [500, 850]}, scene.camera(side))
        views = sampler.draw(scene.subject(), 6, 0)
        images = appearance(scene.subject().areal(views.camera, views.pose), views, Draws(1)).image[:, 0]
        for image in images:
            assert bool(exposed(XRay(image, scene.camera(side), meta={"intensity": "attenuation"})).all())


def test_a_cropped_x_ray_has_no_collimator_left():
    camera = off_centre("source")
    _, pictures = shown(camera, Appearance.from_dict({**PLAIN, **FIELDS["round"]}), count=1)
    meta = {"intensity": "attenuation", "preprocessing": {"crop": [1, 1, 1, 1]}}
    assert not bool(exposed(XRay(pictures[1][0], camera)).all())
    assert bool(exposed(XRay(pictures[1][0], camera, meta=meta)).all())


@pytest.mark.slow
def test_a_trained_network_finds_unseen_views_as_well_as_its_validation_says(tmp_path):
    """View by view, from the X-ray alone, of a camera that sees from the detector and off centre."""
    ct, camera = write_phantom(tmp_path / "ct.nii.gz"), Camera(48, 48, (8.4, 8.4), 1020.0, (27.0, 22.0), "detector")
    plain = {"camera": camera_to_dict(camera), "appearance": PLAIN, "augmentation": OFF, "losses": {"ncc": 0.0}}
    counts = {"steps": 40, "warmup": 5, "batch": 8, "validate_every": 40, "validation_views": 8}
    training = train(small_options(ct, views=VIEWS, learning_rate=2e-3, **counts, **plain), tmp_path / "run")
    network = PoseModel.read(tmp_path / "run" / "model.safetensors")
    volume, subject = Volume.read(ct), training.subjects[0]
    unseen, points = training.learner.held_out(subject, 99), targets_of(subject)
    areal = subject.areal(unseen.views.camera, unseen.views.pose)
    draws = Draws(training.options.seed + HELD_OUT, 99, 0).within("appearance")
    pictures = training.learner.appearance(areal, unseen.views, draws).image[:, 0]

    def errors(mirrored: bool) -> np.ndarray:
        found = []
        for picture, truth in zip(pictures, unseen.views.pose.matrix, strict=True):
            picture = picture.flip(-1) if mirrored else picture
            pose = network.predict(volume, XRay(picture, camera), candidates=False).pose
            found.append(float(target_errors(subject.frame_to_world.inverse() @ pose, Pose(truth), points)))
        return np.array(found)

    outputs = network.net(unseen.input)
    poses = network.target.decode(unseen.views.camera, outputs.rotation, outputs.offsets)
    expected = target_errors(poses, unseen.views.pose, points).detach().numpy()
    assert np.abs(errors(mirrored=True) - expected).max() > 0.5
    np.testing.assert_allclose(errors(mirrored=False), expected, atol=0.05)
    assert np.median(expected) < 2 * training.best["mm"]
