"""Where a registration starts: one pose per view, made of what the caller has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay


@runtime_checkable
class StartFinder(Protocol):
    """What looks for the start itself: a trained `DiffDRRCore.learning.PoseModel`, or a `GlobalSearch`."""

    def starts(self, volume: Volume, xrays: list[XRay]) -> list[Pose]:
        """One camera_to_world per X-ray."""
        ...


def start_poses(volume: Volume, xrays: list[XRay], initial: Pose | Iterable[Pose] | StartFinder | None) -> list[Pose]:
    """The start of every view: camera_to_world [4, 4] each, float64 on the CPU, without a graph.

    Args:
        initial: as for `Registration`.

    Raises:
        RegistrationError: no start for a view, another number of poses than views, or no poses at all.
    """
    poses = list(initial.starts(volume, xrays)) if isinstance(initial, StartFinder) else _listed(xrays, initial)
    if not all(isinstance(pose, Pose) and pose.matrix.ndim == 2 for pose in poses):
        raise RegistrationError("The start is one Pose, or one per view.")
    if len(poses) != len(xrays):
        raise RegistrationError(f"There are {len(xrays)} X-rays but {len(poses)} start poses; give one per view.")
    return [Pose._rigid(pose.matrix.detach().double().cpu()) for pose in poses]


def _listed(xrays: list[XRay], initial) -> list:
    if isinstance(initial, Pose) and initial.matrix.ndim == 3 and len(initial) == 1:
        initial = initial[0]
    is_one = isinstance(initial, Pose) and initial.matrix.ndim == 2
    if initial is None or (is_one and len(xrays) > 1):
        return _following(xrays, initial)
    return [initial] if is_one else list(initial)


def _following(xrays: list[XRay], first: Pose | None) -> list[Pose]:
    """The X-rays' own poses, moved together such that the first one's is `first`."""
    own = [xray.pose for xray in xrays]
    lacking = [str(number) for number, pose in enumerate(own, start=1) if pose is None]
    if lacking:
        raise RegistrationError(f"X-ray {', '.join(lacking)} has no pose to start from; give one per view.")
    return carried(own[0] if first is None else first, own)


def carried(pose: Pose, own: list[Pose], view: int = 0) -> list[Pose]:
    """Poses of all views when number `view` stands at `pose` and the views keep the places of `own` to each other."""
    return [pose @ own[view].inverse() @ other for other in own]
