"""From an X-ray to a pose: with networks that know the answer, and with a real one that knows nothing yet."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from DiffDRRCore import Camera, CArm, Pose, Volume, XRay, register
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.errors import DiffDRRWarning, LearningError
from DiffDRRCore.evaluation import target_registration_error
from DiffDRRCore.geometry import project, stack_poses
from DiffDRRCore.geometry.itk_transform import write_itk_transform
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.learning.data.fingerprints import fingerprint
from DiffDRRCore.learning.inference.candidates import antipodal, unmirrored
from DiffDRRCore.learning.inference.pose_model import PoseModel
from DiffDRRCore.learning.network.model_file import write_model
from DiffDRRCore.learning.network.pose_net import Architecture, Outputs, PoseNet
from DiffDRRCore.learning.network.targets import Target

TRAINING = Camera(48, 64, (7.0, 6.0), 1000.0)
DEVIATIONS = (0.02, 0.05, 0.1, 2.0, 4.0, 30.0)
XRAYS = {
    "the same": TRAINING,
    "larger": Camera(200, 220, (2.0, 2.0), 1000.0),
    "mirrored": Camera(200, 220, (2.0, 2.0), 1000.0, view_from="detector"),
    "off centre": Camera(200, 220, (2.0, 2.0), 1000.0, (100.0, 110.0), view_from="detector"),
    "nearer detector, pixels not square": Camera(330, 160, (1.1, 2.7), 900.0),
}


@pytest.fixture(scope="module")
def volume() -> Volume:
    return phantom((48, 40, 48), 5.0, seed=1)


def shift(origin) -> Pose:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.as_tensor(origin)
    return Pose(matrix)


def arm(volume: Volume, primary=20.0, secondary=-10.0) -> Pose:
    """Not centred: the isocentre lies beside the anatomy's centre."""
    beside = volume.center + torch.tensor([15.0, -10.0, 8.0])
    return CArm(1000.0, 650.0, beside, primary, secondary, 5.0).pose


def shot(volume: Volume, camera: Camera = TRAINING, pose: Pose | None = None) -> XRay:
    return simulated_xray(volume, camera, arm(volume) if pose is None else pose, seed=0)


def target() -> Target:
    poses = stack_poses([CArm(1000.0, 650.0, (0, 0, 0), angle).pose for angle in (0.0, 30.0)])
    return replace(Target.from_views(TRAINING, poses), spread=(0.1, 0.1, 0.2))


def description(volume: Volume, kind="patient", ranges=None) -> dict:
    frame = {"kind": kind}
    if kind == "patient":
        frame |= {"frame_to_world": shift(volume.center).matrix.tolist(), "ct": fingerprint(volume)}
    return {
        "target": target().to_dict(),
        "camera": camera_to_dict(TRAINING),
        "ranges": {"sod": 650.0, "field": [0.5, 1.25], "offset_u": [-40, 40], "offset_v": [-40, 40]} | (ranges or {}),
        "frame": frame,
    }


class Oracle(nn.Module):
    """Says the given poses, one list for each X-ray: of the image, of its mirror image, of its negative.

    `camera` is the network's own, in which the poses (camera_to_world) are told, and `frame` the model's.
    """

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.camera, self.frame = list(answers), None, None
        self.images = []

    def forward(self, images):
        self.images.append(images)
        answers = self.answers.pop(0)
        K = self.camera.K[None].repeat(3, 1, 1)
        K[1, 0, 2] = self.camera.width - 1 - K[1, 0, 2]
        cameras = Camera.from_intrinsics(
            K[: len(images)], *images.shape[-2:], source_to_detector=self.camera.source_to_detector
        )
        into = self.frame.inverse()
        poses = stack_poses([into @ pose for pose in answers[: len(images)]])
        rotation, offsets = target().encode(cameras, poses)
        return Outputs(rotation, offsets, torch.tensor(DEVIATIONS).log().expand(len(images), 6))


def knowing(volume: Volume, xray: XRay, *answers, kind="patient", frame=None, **options) -> PoseModel:
    oracle = Oracle(*answers)
    model = PoseModel(oracle, description(volume, kind, options.pop("ranges", None)), **options)
    oracle.camera, oracle.frame = model.field.grid(xray.camera), shift(volume.center) if frame is None else frame
    return model


@pytest.mark.parametrize("camera", XRAYS.values(), ids=XRAYS)
def test_what_the_network_knows_is_the_pose_whatever_the_camera(volume, camera):
    xray, truth = shot(volume, camera), arm(volume)
    found = knowing(volume, xray, [truth]).predict(volume, xray, candidates=False)
    torch.testing.assert_close(found.pose.matrix, truth.matrix, rtol=0, atol=1e-3)
    assert (found.name, len(found.candidates)) == ("network", 1)
    assert found.similarity > 0.97
    torch.testing.assert_close(found.about, volume.center)


def test_the_network_sees_standardized_line_integrals(volume):
    xray = shot(volume, XRAYS["mirrored"])
    xray = xray.with_image(7 * xray.image - 100)
    model = knowing(volume, xray, [arm(volume)] * 3)
    model.predict(volume, xray)
    image, mirrored, negative = model.net.images[0][:, 0]
    assert float(image.mean()) == pytest.approx(0, abs=1e-4)
    assert float(image.std(correction=0)) == pytest.approx(1, abs=1e-4)
    expected = shot(volume, model.field.grid(xray.camera)).image
    assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.99
    assert torch.equal(mirrored, image.flip(-1))
    assert torch.equal(negative, -image)


@pytest.mark.parametrize("camera", XRAYS.values(), ids=XRAYS)
def test_an_untrained_network_says_the_middle_of_the_ranges(volume, camera, tmp_path):
    """Through its file: the reference direction, the frame's origin where and as large as in the mean, by hand."""
    net = PoseNet(Architecture("resnet10", (48, 64), hidden=16), seed=0)
    write_model(tmp_path / "m.safetensors", net, description(volume))
    model = PoseModel.read(tmp_path / "m.safetensors")
    xray = shot(volume, camera)
    pose = model.predict(volume, xray, candidates=False).pose
    grid, (u, v, log_scale) = model.field.grid(camera), target().center
    ray = np.linalg.inv(grid.K.numpy()) @ [(u * 64) + 31.5, (v * 48) + 23.5, 1.0]
    pixel = camera.K.numpy() @ ray
    assert project(camera, pose, volume.center[None])[0, 0].tolist() == pytest.approx(pixel[:2].tolist(), abs=1e-3)
    depth = float(pose.inverse().transform(volume.center[None])[0, 2])
    assert depth == pytest.approx(math.sqrt(float(grid.K[0, 0] * grid.K[1, 1])) / math.exp(log_scale), rel=1e-6)
    middle = CArm(1000.0, 650.0, (0, 0, 0), 15.0).pose.rotation
    off_axis = np.degrees(np.arctan(np.linalg.norm(ray[:2])))
    angle = np.degrees(Rotation.from_matrix((pose.rotation.T @ middle).numpy()).magnitude())
    assert angle == pytest.approx(off_axis, abs=0.1)


def test_the_antipodal_answer_is_put_right(volume):
    xray, truth = shot(volume, XRAYS["off centre"]), arm(volume)
    wrong = antipodal(truth, volume.center)
    found = knowing(volume, xray, [wrong] * 3).predict(volume, xray)
    assert found.name == "network, opposite side"
    torch.testing.assert_close(found.pose.matrix, truth.matrix, rtol=0, atol=1e-3)
    assert len(found.candidates) == 6
    scores = [one.similarity for one in found.candidates if not one.inverted]
    assert scores == sorted(scores, reverse=True)
    plain = knowing(volume, xray, [wrong]).predict(volume, xray, candidates=False)
    torch.testing.assert_close(plain.pose.matrix, wrong.matrix, rtol=0, atol=1e-3)


def test_the_mirrored_image_s_answer_is_mapped_back(volume):
    xray, truth = shot(volume, XRAYS["off centre"]), arm(volume)
    wrong = truth.retract([0.5, 0.4, -0.3, 0, 0, 0], about=volume.center)
    answers = [wrong, unmirrored(truth, volume.center), wrong]
    found = knowing(volume, xray, answers).predict(volume, xray)
    assert found.name == "mirrored"
    torch.testing.assert_close(found.pose.matrix, truth.matrix, rtol=0, atol=1e-3)


def test_an_inverted_x_ray_is_told(volume):
    xray, truth = shot(volume), arm(volume)
    wrong = truth.retract([0.8, 0.6, -0.3, 0, 0, 0], about=volume.center)
    negative = xray.with_image(-xray.image)
    with pytest.warns(DiffDRRWarning, match="inverted"):
        found = knowing(volume, xray, [wrong, wrong, truth]).predict(volume, negative)
    torch.testing.assert_close(found.pose.matrix, truth.matrix, rtol=0, atol=1e-3)
    assert found.similarity > 0.9


def test_the_covariance_is_that_of_the_errors_in_the_world(volume):
    """Errors drawn in the camera, as the network is taught them, and measured as registrations tell them."""
    xray, estimate = shot(volume), arm(volume)
    found = knowing(volume, xray, [estimate]).predict(volume, xray, candidates=False)
    into = np.linalg.inv(estimate.matrix.numpy())
    center = np.append(volume.center.numpy(), 1.0)
    rng, xi = np.random.default_rng(0), []
    for error in rng.normal(size=(3000, 6)) * DEVIATIONS:
        truth = into.copy()
        truth[:3, :3] = Rotation.from_rotvec(error[:3]).as_matrix() @ into[:3, :3]
        truth[:3, 3] = (into @ center)[:3] + error[3:] - truth[:3, :3] @ center[:3]
        motion = np.linalg.inv(truth) @ into  # of the camera in the world, from the estimate to the truth
        turn = Rotation.from_matrix(motion[:3, :3]).as_rotvec()
        xi.append(np.concatenate([turn, (motion @ center - center)[:3]]))
    scale = found.covariance.diagonal().sqrt().numpy()
    sampled, claimed = (
        np.cov(np.array(xi).T) / np.outer(scale, scale),
        found.covariance.numpy() / np.outer(scale, scale),
    )
    np.testing.assert_allclose(sampled, claimed, atol=0.1)
    assert np.abs(claimed - np.eye(6)).max() > 0.3  # the axes do differ
    assert found.standard_deviations[:3].square().sum() == pytest.approx(
        sum(math.degrees(value) ** 2 for value in DEVIATIONS[:3]), rel=1e-5
    )


def test_another_patient_s_ct_is_refused(volume):
    xray, other = shot(volume), phantom((48, 40, 48), 5.0, seed=2)
    with pytest.raises(LearningError, match="another CT"):
        knowing(volume, xray, [arm(volume)] * 3).predict(other, xray)
    copied = Volume(volume.hu.clone(), volume.ijk_to_ras.clone())
    knowing(volume, xray, [arm(volume)] * 3).predict(copied, xray)


def test_a_network_of_several_cts_takes_any_about_its_own_centre(volume):
    moved = Volume(volume.hu, shift([40.0, 5.0, -20.0]).matrix @ volume.ijk_to_ras)
    truth = shift([40.0, 5.0, -20.0]) @ arm(volume)
    xray = shot(moved, TRAINING, truth)
    model = knowing(volume, xray, [truth] * 3, kind="own_center", frame=shift(moved.center))
    found = model.predict(moved, xray)
    torch.testing.assert_close(found.pose.matrix, truth.matrix, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.about, moved.center)


def test_a_template_needs_its_warp(volume, tmp_path):
    """The file's transform takes the patient's points to the template's; its inverse is the frame."""
    to_template = Pose.from_parameters([0.2, -0.1, 0.3], [30.0, 10.0, -20.0], "axis_angle")
    frame = to_template.inverse()
    xray, truth = shot(volume), arm(volume)
    model = knowing(volume, xray, [truth], kind="template", frame=frame, template_to_world=frame)
    found = model.predict(volume, xray, candidates=False)
    torch.testing.assert_close(found.pose.matrix, truth.matrix, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.about, frame.translation)
    path = tmp_path / "m.safetensors"
    write_model(path, PoseNet(Architecture("resnet10", (48, 64), hidden=16), seed=0), description(volume, "template"))
    with pytest.raises(LearningError, match="template; give the rigid transform"):
        PoseModel.read(path)
    write_itk_transform(tmp_path / "warp.tfm", to_template.inverse().matrix)
    given = PoseModel.read(path, warp=tmp_path / "warp.tfm").frame_to_world(volume)
    back = PoseModel.read(path, warp=tmp_path / "warp.tfm", invert_warp=True).frame_to_world(volume)
    torch.testing.assert_close(given.matrix, frame.matrix)
    torch.testing.assert_close(back.matrix, frame.inverse().matrix)
    write_model(path, PoseNet(Architecture("resnet10", (48, 64), hidden=16), seed=0), description(volume))
    with pytest.raises(LearningError, match="without a template"):
        PoseModel.read(path, warp=tmp_path / "warp.tfm")


def test_an_x_ray_that_is_too_narrow_is_refused_with_numbers(volume):
    """20 mm at 1000 mm are 1.1 degrees; the smallest field is half of 384 x 336 mm."""
    xray = shot(volume, Camera(40, 40, (0.5, 0.5), 1000.0))
    with pytest.raises(LearningError, match=r"1\.1 degrees wide, fills 1% .* 11\.0 to 27\.0 degrees"):
        knowing(volume, xray, [arm(volume)]).predict(volume, xray)
    narrow = shot(volume, Camera(200, 170, (0.6, 0.6), 1000.0))
    with pytest.warns(DiffDRRWarning, match=r"may be wrong here.* fills 3\d%"):
        knowing(volume, narrow, [arm(volume)]).predict(volume, narrow, candidates=False)


def test_a_coarse_x_ray_and_a_far_answer_are_told(volume):
    coarse = shot(volume, Camera(16, 18, (22.0, 22.0), 1000.0))
    with pytest.warns(DiffDRRWarning, match=r"coarse for this network, which sees 3\.\d pixels"):
        knowing(volume, coarse, [arm(volume)]).predict(volume, coarse, candidates=False)
    xray = shot(volume)
    far = arm(volume) @ shift([400.0, 0.0, 0.0])
    with pytest.warns(DiffDRRWarning, match="far outside"):
        knowing(volume, xray, [far]).predict(volume, xray, candidates=False)


def test_transmission_and_parallel_beams_are_refused(volume):
    xray = shot(volume)
    model = knowing(volume, xray, [arm(volume)] * 3)
    with pytest.raises(LearningError, match="transmitted"):
        model.predict(volume, xray.with_image(xray.image, intensity="transmission"))
    parallel = XRay(xray.image, Camera.parallel_beam(48, 64, (7.0, 6.0), 1000.0))
    with pytest.raises(LearningError, match="parallel"):
        model.predict(volume, parallel)


def test_several_views_help_each_other(volume):
    """The network is wrong in one of two views; the C-arms' places to each other are known."""
    truths = [arm(volume), arm(volume, 95.0, 5.0)]
    moved = Pose.from_parameters([0.1, 0.4, -0.3], [50.0, -30.0, 20.0], "axis_angle")
    xrays = [shot(volume, TRAINING, truth).with_pose(moved @ truth) for truth in truths]
    lost = truths[0].retract([0.6, 0.5, 0.9, 20.0, 10.0, -30.0], about=volume.center)
    model = knowing(volume, xrays[0], [lost] * 3, [truths[1]] * 3)
    for found, truth in zip(model.starts(volume, xrays), truths, strict=True):
        torch.testing.assert_close(found.matrix, truth.matrix, rtol=0, atol=1e-3)
    model = knowing(volume, xrays[0], [lost] * 3, [truths[1]] * 3)
    predictions = [model.predict(volume, xray) for xray in xrays]
    model.net = None  # who has asked already does not ask again
    again = model.starts(volume, xrays, predictions=predictions)
    torch.testing.assert_close(again[0].matrix, truths[0].matrix, rtol=0, atol=1e-3)
    model = knowing(volume, xrays[0], [lost] * 3, [truths[1]] * 3)
    alone = model.starts(volume, [xray.with_pose(None) for xray in xrays])
    torch.testing.assert_close(alone[1].matrix, truths[1].matrix, rtol=0, atol=1e-3)
    assert not torch.allclose(alone[0].matrix, truths[0].matrix, atol=1.0)


def test_a_registration_starts_where_the_model_says(volume):
    xray, truth = shot(volume, XRAYS["mirrored"]), arm(volume)
    near = truth.retract([0.06, -0.05, 0.04, 5.0, -6.0, 8.0], about=volume.center)
    model = knowing(volume, xray, [near] * 3)
    result = register(volume, xray.with_pose(None), initial=model, sizes=(32, 64))
    start = result.patient_motion @ result.poses[0]
    torch.testing.assert_close(start.matrix, near.matrix, rtol=0, atol=1e-3)
    targets = volume.center + 40 * torch.eye(3, dtype=torch.float64)
    assert float(target_registration_error(result.poses[0], truth, targets)) < 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"target": None}, "lacks 'target'"),
        ({"frame": {"kind": "sphere"}}, "frame is damaged"),
        ({"frame": {"kind": "patient"}}, "frame is damaged"),
        ({"frame": {"kind": "patient", "frame_to_world": [[1, 2], [3]]}}, "frame is damaged"),
        ({"ranges": {"sods": 3}}, "sods"),
        ({"camera": {"height": 3}}, "damaged"),
        ({"target": {"center": [0, 0, 0]}}, "reference_rotation"),
    ],
)
def test_a_damaged_description_is_one_sentence(volume, tmp_path, change, word):
    path = tmp_path / "m.safetensors"
    net = PoseNet(Architecture("resnet10", (48, 64), hidden=16), seed=0)
    write_model(path, net, description(volume) | change)
    with pytest.raises(LearningError, match=word) as caught:
        PoseModel.read(path)
    assert str(path) in str(caught.value)
