"""A trained network at work: from an X-ray and the CT to where the C-arm stood, and how sure that is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, LearningError
from DiffDRRCore.geometry import Camera, Pose, stack_poses
from DiffDRRCore.geometry.tensors import homogeneous
from DiffDRRCore.imaging.exposure import eroded
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.learning.data.fingerprints import fingerprint, is_fingerprint, same_ct
from DiffDRRCore.learning.inference import candidates as other_poses
from DiffDRRCore.learning.inference.candidates import Candidate
from DiffDRRCore.learning.inference.exposure import exposed
from DiffDRRCore.learning.inference.resampling import Field, resampled
from DiffDRRCore.learning.network.model_file import read_model
from DiffDRRCore.learning.network.pose_net import PoseNet
from DiffDRRCore.learning.network.targets import Target
from DiffDRRCore.registration.starts.starts import carried

PATIENT, OWN_CENTER, TEMPLATE = "patient", "own_center", "template"  # kinds of frames

_LEAST_COVERED, _WELL_COVERED = 0.25, 0.6  # shares of the network's image that the X-ray must, and should, fill
_COARSE = 3.0  # pixels of the network in one of the X-ray from which on it is told
_FAR = 5.0  # spreads of the training ranges: answers beyond are guesses
_NAMES = ("network", "mirrored", "inverted")
_FINGERPRINTS: WeakKeyDictionary[Volume, tuple[int, dict[str, Any]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class PosePrediction:
    """What a network says of one X-ray.

    Attributes:
        pose: camera_to_world [4, 4], of the best candidate.
        covariance: [6, 6] of xi = (rotation vector in rad, translation in mm), world axes, about `about`, as that of a
            `RegistrationResult`.
        about: [3] world mm, the origin of the model's frame.
        similarity: zncc of the rendered CT and the X-ray at `pose`; of the inverted X-ray where the best candidate is.
        name: of the best candidate.
        candidates: all of them, best first.
    """

    pose: Pose
    covariance: Tensor
    about: Tensor
    similarity: float
    name: str
    candidates: list[Candidate]

    @property
    def standard_deviations(self) -> Tensor:
        """[6] of xi: degrees, then mm."""
        deviations = self.covariance.diagonal().sqrt()
        return torch.cat([torch.rad2deg(deviations[:3]), deviations[3:]])


class PoseModel:
    """A network with what it needs to know of its training. `read` makes it of a file.

    `register(volume, xrays, initial=model)` starts where it says.

    Args:
        net: the network.
        description: of its file (`network.model_file`): target, camera, ranges and frame count.
        template_to_world: of models that were trained in a template's frame: where that lies in this CT's coordinates
            (`data.subject_files.read_warp`).
        device: where it runs.

    Raises LearningError for a description that lacks something, or a template's frame that is missing or not needed.
    """

    def __init__(
        self,
        net: PoseNet,
        description: Mapping[str, Any],
        template_to_world: Pose | None = None,
        device: torch.device | str = "cpu",
    ):
        self.device = torch.device(device)
        self.net, self.description = net.to(self.device).eval(), dict(description)
        self.target, self.field = _target_and_field(self.description)
        self._kind, self._frame, self._ct = _frame(self.description)
        if (template_to_world is not None) != (self._kind == TEMPLATE):
            raise LearningError(
                "it was trained in the frame of a template; give the rigid transform between this CT and it (warp)."
                if template_to_world is None
                else "it was trained without a template, so a warp has no meaning; leave that out."
            )
        if template_to_world is not None:
            self._frame = template_to_world.to("cpu", torch.float64)

    @classmethod
    def read(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        warp: str | Path | Pose | None = None,
        invert_warp: bool = False,
    ) -> PoseModel:
        """Of a file that `train` or `finetune` wrote.

        Args:
            warp, invert_warp: file of the rigid transform between this CT and the template, as in the training; or, as
                a pose, the template's frame in this CT's coordinates.

        Raises LearningError, and ReadError for the warp.
        """
        from DiffDRRCore.learning.data.subject_files import read_warp

        net, description = read_model(path)
        template = warp if warp is None or isinstance(warp, Pose) else read_warp(warp, invert_warp)
        try:
            return cls(net, description, template, device)
        except LearningError as error:
            raise LearningError(f"The network '{path}' cannot be used: {error}") from error

    def frame_to_world(self, volume: Volume) -> Pose:
        """The model's frame in the coordinates of a CT, [4, 4] float64.

        Raises LearningError where the network was trained for another CT alone.
        """
        if self._kind == OWN_CENTER:
            return _shift(volume.center)
        if self._ct is not None and not same_ct(self._ct, _fingerprint(volume)):
            raise LearningError(
                "The network was trained on another CT, and says nothing of this one: fine-tune it on this CT, or "
                "train one for it."
            )
        return self._frame

    def predict(
        self, volume: Volume, xray: XRay, candidates: bool = True, mask: Tensor | None = None
    ) -> PosePrediction:
        """Where the C-arm stood.

        Args:
            volume: the CT; a network for one patient takes that patient's alone.
            xray: of attenuation (`DiffDRRCore.imaging.preprocess`), of any size and camera; its pose is not used.
            candidates: whether the poses that the network may have taken the true one for (from the opposite side,
                mirrored, inverted contrast) are rendered too and the most similar one wins.
            mask: [H, W], where the beam reached the detector, as in the training nothing else is looked at; None finds
                the collimator's edge where there is one (`inference.exposure`).

        Warns with DiffDRRWarning of an X-ray that is unlike those of the training. Raises LearningError where it is
        too unlike, for an X-ray of transmission, and for another patient's CT.
        """
        frame = self.frame_to_world(volume)
        mask = exposed(xray, mask)
        image, camera = self._seen(xray, mask)
        answers = _NAMES if candidates else _NAMES[:1]
        poses, deviations = self._answers(image, camera, len(answers))
        named, sources = [], {}
        for row, name in enumerate(answers):
            pose = frame @ poses[row]
            opposite = (f"{name}, opposite side", other_poses.antipodal(pose, frame.translation))
            for one, other in ((name, pose), opposite)[: 1 + candidates]:
                named.append((one, other, name == "inverted"))
                sources[one] = deviations[row]
        found = other_poses.ranked(volume, xray, named, frame.translation, mask)
        best = found[0]
        if best.inverted:
            _warn(
                "The X-ray looks inverted: bone should be bright once it is in attenuation. Say what is bright in the "
                "file (transmission or attenuation)."
            )
        covariance = _in_world(sources[best.name], best.pose)
        return PosePrediction(best.pose, covariance, frame.translation, best.similarity, best.name, found)

    def starts(
        self,
        volume: Volume,
        xrays: Sequence[XRay],
        masks: Sequence[Tensor | None] | None = None,
        predictions: Sequence[PosePrediction] | None = None,
    ) -> list[Pose]:
        """Where to start a registration: one camera_to_world per X-ray.

        Where all of several X-rays have poses, the C-arms keep their places to each other: each X-ray's candidates are
        carried over to the others, and the ones win that are most similar in the mean. Warnings and errors as for
        `predict`.

        Args:
            masks: one per X-ray, as for `predict`.
            predictions: what `predict` said of each X-ray, where somebody has asked already.
        """
        xrays = list(xrays)
        masks = [None] * len(xrays) if masks is None else list(masks)
        if len(masks) != len(xrays):
            raise LearningError(f"There are {len(xrays)} X-rays but {len(masks)} masks; give one per X-ray, or None.")
        masks = [exposed(xray, mask) for xray, mask in zip(xrays, masks, strict=True)]
        if predictions is None:
            predictions = [self.predict(volume, xray, mask=mask) for xray, mask in zip(xrays, masks, strict=True)]
        own = [xray.pose for xray in xrays]
        if len(xrays) == 1 or any(pose is None for pose in own):
            return [prediction.pose for prediction in predictions]
        own = [pose.to("cpu", torch.float64) for pose in own]
        together = [
            carried(candidate.pose, own, view)
            for view, prediction in enumerate(predictions)
            for candidate in prediction.candidates
        ]
        about = predictions[0].about
        scores = sum(
            other_poses.similarities(volume, xray, stack_poses(poses), about, mask)
            for xray, mask, poses in zip(xrays, masks, zip(*together, strict=True), strict=True)
        )
        return together[int(scores.nan_to_num(nan=-math.inf).argmax())]

    def _seen(self, xray: XRay, exposed: Tensor) -> tuple[Tensor, Camera]:
        """The image [H, W] that the network is shown, standardized in the field [H, W], and its camera."""
        from DiffDRRCore.learning.appearance.augmentation import standardized

        if xray.meta.get("intensity") == "transmission":
            raise LearningError(
                "The X-ray holds transmitted intensities (air bright); convert it to line integrals first: "
                "DiffDRRCore.imaging.preprocessing.preprocess(xray)."
            )
        camera = self.field.grid(xray.camera)
        both = torch.stack([xray.image.detach().to("cpu", torch.float32), exposed.to(torch.float32)])
        (image, beam), inside = resampled(both, xray.camera, camera)
        self._check_field(xray.camera, camera, float(inside.float().mean()))
        finer = float(camera.K[0, 0]) / abs(float(xray.camera.K[0, 0]))
        seen = inside & eroded(~inside | (beam > 0.5), max(1, math.ceil(finer - 0.1)))
        if not bool(seen.any()):
            raise LearningError("The beam reached nothing of what the network sees: look at the mask, or crop.")
        return standardized(image[None, None], seen[None, None])[0, 0], camera

    def _check_field(self, camera: Camera, grid: Camera, covered: float) -> None:
        least, most = self.field.degrees
        own = 2 * math.degrees(math.atan(camera.width / (2 * abs(float(camera.K[0, 0])))))
        told = (
            f"the X-ray, {own:.1f} degrees wide, fills {covered:.0%} of what the network sees; that was trained for "
            f"fields of {least:.1f} to {most:.1f} degrees"
        )
        if covered < _LEAST_COVERED:
            raise LearningError(f"{told[0].upper()}{told[1:]}: train with this X-ray's camera.")
        if covered < _WELL_COVERED:
            _warn(f"The network may be wrong here: {told}.")
        pixels = float(grid.K[0, 0]) / abs(float(camera.K[0, 0]))
        if pixels > _COARSE:
            _warn(f"The X-ray is coarse for this network, which sees {pixels:.1f} pixels in each of the X-ray's.")

    def _answers(self, image: Tensor, camera: Camera, count: int) -> tuple[Pose, Tensor]:
        """camera_to_frame [count, 4, 4], and standard deviations [count, 6] in rad and mm in the camera's axes.

        Of the image, of its mirror image and of its negative.
        """
        K = camera.K[None].repeat(3, 1, 1)
        K[1, 0, 2] = camera.width - 1 - K[1, 0, 2]
        cameras = Camera.from_intrinsics(
            K[:count], camera.height, camera.width, source_to_detector=camera.source_to_detector
        )
        images = torch.stack([image, image.flip(-1), -image])[:count, None]
        with torch.no_grad():
            outputs = self.net(images.to(self.device))
            parts = (outputs.rotation, outputs.offsets, outputs.log_deviation)
            rotation, offsets, log_deviation = (part.double().cpu() for part in parts)
            poses = self.target.decode(cameras, rotation, offsets)
        if float(offsets[0].abs().max()) > _FAR:
            _warn("The network places the anatomy far outside the positions it was trained for: it may be wrong here.")
        matrices = list(poses.matrix)
        if count > 1:
            matrices[1] = other_poses.unmirrored(poses[1], torch.zeros(3, dtype=torch.float64)).matrix
        return Pose._rigid(torch.stack(matrices)), log_deviation.exp()


def _in_world(deviations: Tensor, pose: Pose) -> Tensor:
    """Covariance [6, 6] in world axes of independent errors [6] along the axes of a camera.

    A rotation vector and a shift change their axes alike; that the error is one of the anatomy in the camera here, and
    of the camera in the world there, changes its sign, which a covariance does not have.
    """
    turn = torch.block_diag(pose.rotation, pose.rotation).double().cpu()
    return turn @ torch.diag(deviations.square()) @ turn.mT


def _target_and_field(description: Mapping[str, Any]) -> tuple[Target, Field]:
    from DiffDRRCore.imaging.camera_file import camera_from_dict
    from DiffDRRCore.learning.data.views import ARM, AROUND
    from DiffDRRCore.physics.simulation.ranges import Ranges

    for name in ("target", "camera", "ranges", "frame"):
        if not isinstance(description.get(name), Mapping):
            raise LearningError(f"its description lacks '{name}'; train it again.")
    try:
        camera = camera_from_dict(dict(description["camera"]), "The camera")
        ranges = Ranges.from_dict(description["ranges"], {*ARM, *AROUND})
        return Target.from_dict(description["target"]), Field.of(camera, ranges)
    except DiffDRRError as error:
        raise LearningError(f"its description is damaged: {error}") from error


def _frame(description: Mapping[str, Any]) -> tuple[str, Pose | None, dict[str, Any] | None]:
    """Kind, frame_to_world, and fingerprint of the one CT."""
    frame = description["frame"]
    kind, matrix, ct = frame.get("kind"), frame.get("frame_to_world"), frame.get("ct")
    try:
        pose = None if matrix is None else Pose(torch.tensor(matrix, dtype=torch.float64))
    except (TypeError, ValueError) as error:
        raise LearningError(f"its frame is damaged: {error}") from error
    if kind not in (PATIENT, OWN_CENTER, TEMPLATE) or (kind == PATIENT and pose is None):
        raise LearningError("its frame is damaged; train it again.")
    if ct is not None and not is_fingerprint(ct):
        raise LearningError("its frame is damaged; train it again.")
    return kind, Pose.identity() if pose is None else pose, ct


def _shift(origin: Tensor) -> Pose:
    return Pose._rigid(homogeneous(torch.eye(3, dtype=torch.float64), origin.detach().double().cpu()))


def _fingerprint(volume: Volume) -> dict[str, Any]:
    """Kept as long as the CT does not change: it takes a second for a large one."""
    version = -1 if volume.source.is_inference() else volume.source._version
    known = _FINGERPRINTS.get(volume)
    if known is None or known[0] != version:
        known = _FINGERPRINTS[volume] = (version, fingerprint(volume))
    return known[1]


def _warn(message: str) -> None:
    warnings.warn(message, DiffDRRWarning, stacklevel=3)
