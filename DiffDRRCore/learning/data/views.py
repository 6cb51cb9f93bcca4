"""Where the C-arm stands from image to image.

Ranges, as of `physics.simulation.ranges`, of any of

    primary, secondary, roll         degrees, DICOM's positioner angles (`CArm`), in the axes of the model's frame
    shift_r, shift_a, shift_s        mm from the frame's origin to the isocentre, along those axes
    sod                              mm from the source to the isocentre

or, about a known pose (that of a header, say), turns about the frame's origin and shifts along the camera's axes, as
starts of registrations have them:

    tilt_x, tilt_y, turn             degrees about the image's x and y axes and in the image
    right, down, depth               mm by which source and detector move

and in both cases of the camera:

    sdd                              mm from source to detector
    field                            factor on the detector's size, which keeps its number of pixels
    offset_u, offset_v               mm on the detector by which the principal point moves, along columns' and rows'
                                     numbers
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore.errors import LearningError
from DiffDRRCore.geometry import Camera, CArm, Pose, project
from DiffDRRCore.geometry.tensors import transform_points
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.subjects import Subject, spread
from DiffDRRCore.physics.simulation.ranges import Ranges
from DiffDRRCore.registration.problem.motion import MotionFrame

CAMERA = ("sdd", "field", "offset_u", "offset_v")
ARM = ("primary", "secondary", "roll", "shift_r", "shift_a", "shift_s", "sod", *CAMERA)
AROUND = ("tilt_x", "tilt_y", "turn", "right", "down", "depth", *CAMERA)

_SIDE = 24  # pixels of the images that tell whether a view shows the anatomy
_COVERED = 0.2  # line integral: 1 cm of water
_MOST, _ENOUGH = 4096, 20  # candidates, and how many good ones among them: 0.5 %
_AT_A_TIME = 64
_SPREAD = 4  # CTs that `sample` draws from


@dataclass(frozen=True, eq=False)
class Views:
    """Cameras [B] and their poses camera_to_frame [B, 4, 4]."""

    camera: Camera
    pose: Pose

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, index) -> Views:
        camera = self.camera
        return Views(_camera(camera.K[index], camera, camera.source_to_detector[index]), self.pose[index])

    def to(self, *args, **kwargs) -> Views:
        """As `torch.Tensor.to`."""
        return Views(self.camera.to(*args, **kwargs), self.pose.to(*args, **kwargs))


class ViewSampler:
    """Draws views.

    Args:
        ranges: of the names above; what is left out does not vary. Without `around`, `sod` must be there.
        camera: the camera that the sampled ones vary from, one, of a point source.
        around: camera_to_world [4, 4] about which views lie, or None.
        least_covered: what a view must show; 0 takes every view. Of a subject without named structures, the share of
            the image that its anatomy covers (by more than 1 cm of water); of one with named structures, however small
            they are, the share of them (of their volume, in a crop that in the crop) whose shadow falls into the image.

    Raises LearningError for names that do not go together, and values that cannot be.
    """

    def __init__(self, ranges: Ranges, camera: Camera, around: Pose | None = None, least_covered: float = 0.1):
        known = ARM if around is None else AROUND
        for name in ranges.of:
            if name not in known:
                raise LearningError(
                    f"There is no range of '{name}' {'' if around is None else 'about a given pose '}to draw views "
                    f"from; there are: {', '.join(known)}."
                )
        if around is None and "sod" not in ranges.of:
            raise LearningError("Ranges of views need 'sod', the distance from source to isocentre in mm.")
        if camera.parallel or camera.K.shape != (3, 3):
            raise LearningError("Views vary from one camera with a point source, not from a batch or a parallel beam.")
        for name in ("sod", "sdd", "field"):
            if name in ranges.of and not ranges.of[name].ends[0] > 0:
                raise LearningError(f"The range of {name} must be above 0 (of a normal one, 'within' limits).")
        if not 0 <= least_covered < 1:
            raise LearningError(f"The share of the image that is covered is from 0 to below 1, got {least_covered}.")
        self.ranges, self.camera, self.around = ranges, camera.detached().to("cpu", torch.float64), around
        self.least_covered = least_covered
        self._judged: set[str] = set()

    @classmethod
    def from_dict(
        cls, views: Mapping[str, Any], camera: Camera, around: Pose | None = None, least_covered: float = 0.1
    ) -> ViewSampler:
        """Of ranges as plain values. Raises PhysicsError, LearningError for what is none."""
        return cls(Ranges.from_dict(views, ARM if around is None else AROUND), camera, around, least_covered)

    def draw(self, subject: Subject, count: int, seed: int, step: int = 0, micro: int = 0) -> Views:
        """`count` views of a subject that show enough of it, on its device.

        They depend on the numbers alone. Raises LearningError where hardly any view of the ranges does: less than one
        of 200, told when a subject is first drawn of.
        """
        self._judge(subject)
        draws = Draws(seed, step, micro, "views")
        found = self.candidates(subject, count, draws.within(0))
        K, distance, matrix = found.camera.K, found.camera.source_to_detector, found.pose.matrix
        pending, vain, attempt = (~self._shows(subject, found)).nonzero()[:, 0], 0, 0
        while len(pending):
            attempt += 1
            found = self.candidates(subject, _AT_A_TIME, draws.within(attempt))
            good = self._shows(subject, found).nonzero()[:, 0][: len(pending)]
            vain = 0 if len(good) else vain + _AT_A_TIME
            if vain >= _MOST:
                raise self._hardly_any(subject)
            place, pending = pending[: len(good)], pending[len(good) :]
            K[place], distance[place] = found.camera.K[good], found.camera.source_to_detector[good]
            matrix[place] = found.pose.matrix[good]
        return Views(_camera(K, self.camera, distance), Pose._rigid(matrix)).to(subject.device)

    def sample(self, subjects: Sequence[Subject], count: int, seed: int) -> Views:
        """About `count` views of several subjects (some of them, where there are many), on the CPU.

        To learn of what the ranges are like (`Target.from_views`). Raises LearningError as `draw`.
        """
        some = spread(subjects, _SPREAD)
        parts = []
        for number, subject in enumerate(some):
            parts.append(self.draw(subject, math.ceil(count / len(some)), seed, micro=number).to("cpu"))
            if len(some) < len(subjects):
                subject.release()
        K, distance = (torch.cat([getattr(one.camera, name) for one in parts]) for name in ("K", "source_to_detector"))
        return Views(_camera(K, self.camera, distance), Pose._rigid(torch.cat([one.pose.matrix for one in parts])))

    def _judge(self, subject: Subject) -> None:
        """Raise LearningError where so few views are good that a training would hang."""
        if subject.name in self._judged:
            return
        good = tried = 0
        while good < _ENOUGH:
            if tried >= _MOST:
                raise self._hardly_any(subject)
            found = self.candidates(subject, _AT_A_TIME, Draws("judged", tried))
            good, tried = good + int(self._shows(subject, found).sum()), tried + _AT_A_TIME
        self._judged.add(subject.name)

    def _hardly_any(self, subject: Subject) -> LearningError:
        wanted = "the image" if subject.structure is None else "the structures that were named"
        return LearningError(
            f"Hardly any view of these ranges shows the CT '{subject.name}': of {_MOST} tries, next to none had "
            f"{self.least_covered:.0%} of {wanted}{' covered' if subject.structure is None else ' in the image'}. "
            "Check the distances (mm), the shifts and the detector's size."
        )

    def candidates(self, subject: Subject, count: int, draws: Draws) -> Views:
        """`count` views on the CPU, float64, whether they show anything or not."""
        numbers = {name: draws.of(one, count) for name, one in self.ranges.of.items()}
        pose = self._arm(numbers, count) if self.around is None else self._about(numbers, subject, count)
        return Views(self._cameras(numbers, count), pose)

    def _arm(self, numbers: Mapping[str, Tensor], count: int) -> Pose:
        def of(name: str) -> Tensor:
            return numbers.get(name, torch.zeros(count, dtype=torch.float64))

        isocenter = torch.stack([of("shift_r"), of("shift_a"), of("shift_s")], dim=-1)
        distance = self.camera.source_to_detector  # which does not matter for the pose
        return CArm(distance, of("sod"), isocenter, of("primary"), of("secondary"), of("roll")).pose

    def _about(self, numbers: Mapping[str, Tensor], subject: Subject, count: int) -> Pose:
        start = subject.frame_to_world.inverse() @ self.around.to("cpu", torch.float64)
        scale = dict.fromkeys(("tilt_x", "tilt_y", "turn"), math.pi / 180)
        zero = torch.zeros(count, dtype=torch.float64)
        q = torch.stack([numbers.get(name, zero) * scale.get(name, 1.0) for name in AROUND[:6]], dim=-1)
        return MotionFrame(zero.new_zeros(3), start.rotation).motion(q) @ start

    def _cameras(self, numbers: Mapping[str, Tensor], count: int) -> Camera:
        base, one = self.camera, torch.ones(count, dtype=torch.float64)
        distance, field = numbers.get("sdd", base.source_to_detector * one), numbers.get("field", one)
        K = base.K.repeat(count, 1, 1)
        K[:, :2, :2] *= (distance / base.source_to_detector / field)[:, None, None]
        rows, columns = base.pixel_spacing.tolist()
        sides = ((0, base.width, columns, "offset_u"), (1, base.height, rows, "offset_v"))
        for axis, size, step, name in sides:
            middle = (size - 1) / 2
            K[:, axis, 2] = middle + (base.K[axis, 2] - middle + numbers.get(name, 0.0) / step) / field
        return _camera(K, base, distance)

    def _shows(self, subject: Subject, views: Views) -> Tensor:
        """[B] bool on the CPU: source and detector on both sides of the origin and outside, and enough to see."""
        world = subject.to_world(views.pose)
        affine = subject.model.ijk_to_ras.cpu()
        index = transform_points(torch.linalg.inv(affine), world.translation)
        size = torch.tensor(subject.model.densities.shape[:0:-1], dtype=torch.float64)
        outside = ((index < 0) | (index > size - 1)).any(dim=-1)
        depth = views.pose.inverse().translation[:, 2]
        good = outside & (depth > 0) & (depth < views.camera.source_to_detector)
        if self.least_covered > 0 and bool(good.any()):
            good &= self._share(subject, views, world) >= self.least_covered
        return good

    def _share(self, subject: Subject, views: Views, world: Pose) -> Tensor:
        """[B] on the CPU: of the image that the anatomy covers, or of the named structures that lie in the image."""
        if subject.structure is not None:
            uv = project(views.camera, world, subject.structure)
            size = uv.new_tensor([self.camera.width, self.camera.height])
            return ((uv > -0.5) & (uv < size - 0.5)).all(dim=-1).double().mean(dim=-1)
        camera = views.camera.resized(min(_SIDE, self.camera.height), min(_SIDE, self.camera.width))
        with torch.no_grad():
            image = subject.renderer(camera, world)[:, 0]
        return (image > _COVERED).double().mean(dim=(-2, -1)).cpu()


def _camera(K: Tensor, base: Camera, distance: Tensor) -> Camera:
    return Camera.from_intrinsics(K, base.height, base.width, source_to_detector=distance)
