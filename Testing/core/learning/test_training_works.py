"""A training of a minute: it halves the error of views that were held out, and registration does the rest.

One clinical view: primary and secondary angle +-15 degrees, roll +-5, isocentre +-20 mm along each axis, source to
isocentre 690 to 730 mm; 64 x 64 pixels; spectrum, noise, scatter, blur and collimator of the simulator, without the
augmentations of grey values, which take more steps (`Testing.benchmarks.learn` has those).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from DiffDRRCore import Camera, register
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.learning.appearance import augmentation
from DiffDRRCore.learning.inference.pose_model import PoseModel
from DiffDRRCore.learning.training.options import TrainingOptions
from DiffDRRCore.learning.training.run_files import MODEL
from DiffDRRCore.learning.training.training import Training
from DiffDRRCore.learning.training.validation import held_out, target_errors, targets_of, validate

pytest.importorskip("monai")

SIZE, FINE, FIELD, SDD = 64, 128, 400.0, 1020.0  # pixels that the network and the registration see, mm, mm
SUCCESS = 2.0  # mm
UNSEEN = 777  # seed
VIEWS = {
    **{"primary": [-15, 15], "secondary": [-15, 15], "roll": [-5, 5], "sod": [690, 730]},
    **{f"shift_{axis}": [-20, 20] for axis in "ras"},
}
STEPS = 400


def camera(size: int) -> Camera:
    return Camera(size, size, (FIELD / size,) * 2, SDD, view_from="detector")


def options(ct: Path) -> TrainingOptions:
    own = {"cts": [str(ct)], "camera": camera_to_dict(camera(SIZE)), "views": VIEWS, "backbone": "resnet10"}
    own |= {"augmentation": dict.fromkeys(augmentation.DEFAULTS, 0), "losses": {"ncc": 0}, "threads": 1}
    own |= {"steps": STEPS, "learning_rate": 3e-3, "validate_every": STEPS, "checkpoint_every": STEPS}
    return TrainingOptions.from_dict(own)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Training, float]:
    """A training that has ended, and the held-out error in mm before it."""
    folder = tmp_path_factory.mktemp("training")
    phantom(shape=(77, 58, 67), spacing=5.0).write(folder / "ct.nii.gz")
    training = Training(options(folder / "ct.nii.gz"), folder / "run")
    learner = training.learner
    views = held_out(learner.held_out, training.subjects, training.options.validation_views)
    before = validate(learner.net, learner.target, views).mm
    for _ in training.steps():
        pass
    return training, before


def test_it_halves_the_error(trained):
    training, before = trained
    assert 20 < before < 40  # the middle of the ranges, said of every view
    assert training.best["mm"] < before / 2  # seeds 0 and 1: 0.39 of it


def test_registration_from_there_finds_unseen_views(trained):
    training, _ = trained
    model, subject = PoseModel.read(training.folder / MODEL), training.subjects[0]
    points = subject.frame_to_world.transform(targets_of(subject))
    views = training.learner.sampler.draw(subject, 10, UNSEEN)
    errors = []
    for number, pose in enumerate(subject.to_world(views.pose)):
        xray = simulated_xray(subject.volume, camera(FINE), pose, seed=number)
        start = model.starts(subject.volume, [xray])[0]
        found = register(subject.volume, xray, start).poses[0]
        errors.append([float(target_errors(one, pose, points)) for one in (start, found)])
    network, refined = torch.tensor(errors).unbind(-1)
    assert float(network.median()) < 15
    assert int((refined < SUCCESS).sum()) >= 9, errors
