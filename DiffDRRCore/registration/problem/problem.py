"""A registration as a set of views, a set of rigid bodies and a set of unknowns, made of what the caller has said."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRWarning, RegistrationError
from DiffDRRCore.geometry import Pose, as_tensor
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.problem.bodies import Body, FreeCamera
from DiffDRRCore.registration.problem.models import Labels, label_numbers
from DiffDRRCore.registration.problem.motion import Limits
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.registration.problem.unknowns import Unknown, Unknowns
from DiffDRRCore.rendering import Renderer

_CT = "CT"  # all that is free, as one
_REACH = 0.25  # of a box's diagonal


@dataclass(frozen=True)
class Part:
    """What moves as one at a level.

    Attributes:
        body: with its name, limits and start.  labels: its structures by number.
        members: numbers of the bodies that it holds: several where they move together.
    """

    body: Body
    labels: Labels
    members: tuple[int, ...]

    @property
    def start(self) -> Pose:
        """The C-arms' motion as the body sees it, at the start."""
        motion = self.body.motion
        return Pose.identity() if motion is None else Pose._rigid(motion.matrix.detach().double().cpu()).inverse()


@dataclass(frozen=True)
class Problem:
    """Views, bodies and unknowns.

    Attributes:
        parts: the bodies.  whole: the same with those that are free as one, for the first level; None without it.
        everything: whether all of the CT is rendered, so that the images should look like the X-rays.
        cameras: the unknown ones, and for each view the number of its own among them, or None.
    """

    volume: Volume
    xrays: list[XRay]
    starts: list[Pose]
    options: Options
    parts: list[Part]
    whole: list[Part] | None
    everything: bool = True
    cameras: list[FreeCamera] = field(default_factory=list)
    camera_of: list[int | None] = field(default_factory=list)

    @classmethod
    def of(cls, volume: Volume, xrays: list[XRay], starts: list[Pose], options: Options) -> Problem:
        """Raises RegistrationError for bodies, views and cameras that do not fit."""
        _check_names(options)
        told = options.bodies is not None or options.labels is not None
        present = volume.present_labels if told else set()  # looks at all voxels
        parts = _parts(volume, options, present)
        _check_views(options, xrays)
        cameras, camera_of = _cameras(options, xrays)
        whole = _whole(parts, options, present)
        if options.bodies is not None and whole is None and options.limits != Limits():
            warnings.warn(
                "limits are of all free bodies moving together, which they do not do here; give each Body its own.",
                DiffDRRWarning,
                stacklevel=5,
            )
        return cls(volume, xrays, starts, options, parts, whole, _everything(parts, present), cameras, camera_of)

    def parts_at(self, level: int) -> list[Part]:
        """The first level, number 0, moves the free bodies together."""
        return self.whole if level == 0 and self.whole is not None else self.parts

    @property
    def is_whole(self) -> bool:
        """Whether the CT is one body."""
        return self.options.bodies is None

    def view_motion(self, parts: list[Part], view: int) -> int | None:
        """The number of a view's own motion among the unknowns."""
        free = [number for number, limits in enumerate(self.options.free_views or ()) if limits is not None]
        return len(parts) + free.index(view) if view in free else None

    def unknowns(self, parts: list[Part], finest: Sequence[Renderer]) -> Unknowns:
        """What is to be found, with the bodies' renderers at the finest level, which know where they are."""
        motions = [self._of_part(part, renderer) for part, renderer in zip(parts, finest, strict=True)]
        center, reach = self._center, _reach(self.volume)
        for number, limits in enumerate(self.options.free_views or ()):
            if limits is not None:
                own = self.starts[number].rotation
                motions.append(Unknown(f"view {number + 1}", center, own, reach, limits, of_view=True))
        return Unknowns(motions, self.cameras)

    def _of_part(self, part: Part, renderer: Renderer) -> Unknown:
        body, axes = part.body, (part.start @ self.starts[0]).rotation  # of the first camera, as the body sees it
        if part.labels is None or len(part.members) > 1:
            pivot, reach = self._center if body.about is None else as_tensor(body.about).double(), _reach(self.volume)
        else:
            box = renderer.volume
            pivot = box.center.detach().double().cpu() if body.about is None else as_tensor(body.about).double()
            reach = _reach(box)
        return Unknown("" if body.name == _CT else body.name, pivot, axes, reach, body.limits, body.locked)

    @property
    def _center(self) -> Tensor:
        about = self.options.about
        return self.volume.center.detach().double().cpu() if about is None else as_tensor(about).double()


def _reach(volume: Volume) -> float:
    return _REACH * float((volume.spacing.cpu() * torch.tensor(volume.shape[::-1])).norm())


def _parts(volume: Volume, options: Options, present: set[int]) -> list[Part]:
    if options.bodies is None:
        body = Body(_CT, limits=options.limits, about=options.about)
        return [Part(body, label_numbers(volume, options.labels), (0,))]
    bodies = list(options.bodies)
    _check_bodies(volume, bodies, options)
    labels = [label_numbers(volume, body.labels) for body in bodies]
    used = [number for numbers in labels for number in numbers or ()]
    if twice := sorted({number for number in used if used.count(number) > 1}):
        raise RegistrationError(f"Label {twice[0]} is in two bodies; a structure moves with one.")
    rest = tuple(sorted(present - set(used)))
    labels = [rest if numbers is None else numbers for numbers in labels]
    for body, own in zip(bodies, labels, strict=True):
        _check_voxels(present, body, own)
    return [Part(body, own, (number,)) for number, (body, own) in enumerate(zip(bodies, labels, strict=True))]


def _everything(parts: list[Part], present: set[int]) -> bool:
    if any(part.labels is None for part in parts):
        return True
    return {number for part in parts for number in part.labels} >= present


def _check_voxels(present: set[int], body: Body, labels: tuple[int, ...]) -> None:
    if body.labels is None and not labels:
        raise RegistrationError(f"The body '{body.name}' is empty: all of the CT's labels belong to other bodies.")
    if missing := sorted(set(labels) - present):
        known = ", ".join(map(str, sorted(present)))
        raise RegistrationError(
            f"The body '{body.name}' is empty: the labelmap has no voxel of label {missing[0]}; it has {known}."
        )


def _check_bodies(volume: Volume, bodies: list[Body], options: Options) -> None:
    names = [body.name for body in bodies]
    if not bodies:
        raise RegistrationError("The list of bodies is empty: leave it out, or name one by Body(name, labels).")
    if len(set(names)) < len(names):
        raise RegistrationError(f"Each body has a name of its own, got {', '.join(names)}.")
    if options.labels is not None:
        raise RegistrationError("Name the labels in the bodies or in 'labels', not in both.")
    if volume.labels is None:
        raise RegistrationError("Bodies are made of labels, but the CT has no labelmap.")
    if sum(body.labels is None for body in bodies) > 1:
        raise RegistrationError("Only one body can be all that belongs to no other: name the labels of the rest.")
    moving = any(limits is not None for limits in options.free_views or ()) or options.free_cameras is not None
    if all(body.locked for body in bodies) and not moving:
        raise RegistrationError("All bodies are locked: there is nothing to register.")


def _check_names(options: Options) -> None:
    """Raises RegistrationError where joints or landmarks name a body that there is not."""
    names = [body.name for body in options.bodies or ()]
    told = [("A joint", name) for joint in options.joints for name in joint.bodies]
    marks = options.landmarks
    told += [("A landmark", name) for name in (marks.bodies or () if marks is not None else ())]
    for what, name in told:
        if name not in names:
            raise RegistrationError(
                f"{what} names the body '{name}'; the bodies are {', '.join(names) or 'not given'}."
            )


def _whole(parts: list[Part], options: Options, present: set[int]) -> list[Part] | None:
    """The free bodies as one, unless there is but one of them, or they have starts of their own."""
    free = [part for part in parts if not part.body.locked]
    if len(free) < 2 or any(part.body.motion is not None for part in free):
        return None
    labels = tuple(sorted(number for part in free for number in part.labels))
    everything = set(labels) | {0} >= present
    body = Body(_CT, limits=options.limits, about=options.about)
    members = tuple(number for part in free for number in part.members)
    whole = Part(body, None if everything and 0 in labels else labels, members)
    return [whole, *(part for part in parts if part.body.locked)]


def _check_views(options: Options, xrays: list[XRay]) -> None:
    for name in ("free_views", "view_weights"):
        values = getattr(options, name)
        if values is not None and len(values) != len(xrays):
            raise RegistrationError(f"There are {len(xrays)} X-rays but {len(values)} {name}; give one per view.")
    if not all(isinstance(weight, Real) and 0 < weight < math.inf for weight in options.view_weights or ()):
        raise RegistrationError(f"view_weights are numbers above 0, got {list(options.view_weights)}.")
    free = options.free_views
    bodies = options.bodies
    if free is not None and all(x is not None for x in free) and not any(b.locked for b in bodies or ()):
        raise RegistrationError(
            "All C-arms are free, and the patient too: hold one view (None in free_views), or lock a body."
        )


def _cameras(options: Options, xrays: list[XRay]) -> tuple[list[FreeCamera], list[int | None]]:
    free, count = options.free_cameras, len(xrays)
    if free is None:
        return [], [None] * count
    shared = isinstance(free, FreeCamera)
    listed = [free] * count if shared else list(free)
    if len(listed) != count:
        raise RegistrationError(f"There are {count} X-rays but {len(listed)} free_cameras; give one per view or one.")
    if any(one is not None and xray.camera.parallel for one, xray in zip(listed, xrays, strict=True)):
        raise RegistrationError("A camera can only be found where it has a point source; this is a parallel beam.")
    if shared:
        return [free], [0] * count
    cameras = [one for one in listed if one is not None]
    numbers = iter(range(len(cameras)))
    return cameras, [None if one is None else next(numbers) for one in listed]
