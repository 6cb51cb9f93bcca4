"""Motion between two bones: the joint coordinate system of Grood and Suntay, and Cardan or Euler angles in any order.

E. S. Grood, W. J. Suntay: A joint coordinate system for the clinical description of three-dimensional motions:
application to the knee. Journal of Biomechanical Engineering 105 (1983), 136-144; recommended by the ISB for other
joints as well (G. Wu et al., Journal of Biomechanics 35 (2002), 543-548, and 38 (2005), 981-992).

Body frames as in the paper: x to the patient's right, y anterior, z proximal, on both sides of the body. Flexion turns
about x of the proximal bone (e1), rotation about z of the distal bone (e3), ab- and adduction about the floating axis
e2 = e3 cross e1. That is the intrinsic order XYZ, with signs by the side of the body so that positive always means the
same to a clinician:

  flexion      the distal bone's far end goes to the back (a knee; an elbow or a hip, whose far end goes to the front
               when it flexes, has a negative angle)
  abduction    the distal bone's far end goes away from the midline (valgus of a knee)
  rotation     external: the distal bone's front turns away from the midline
  lateral, anterior, distraction   displacement of the distal bone's origin from the proximal bone's, along e1 away from
               the midline, e2, and -e3 (mm): the paper's clinical translations. e1 and e3 are not perpendicular when
               there is abduction, so these are components, not coordinates of an orthogonal frame.
"""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRWarning, GeometryError
from DiffDRRCore.geometry.euler import check_order, euler_to_matrix, matrix_to_euler
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_tensor, homogeneous, promote

GIMBAL = 5.0  # degrees from gimbal lock within which a warning is given
_LEAST_LENGTH, _LEAST_SINE = 1e-3, 0.02  # mm between landmarks; of the angle between the two directions (1.1 degrees)


class Side(enum.Enum):
    """Of the body."""

    LEFT = "left"
    RIGHT = "right"


class Keep(enum.Enum):
    """Which of two directions of a body frame is kept exactly; the other is made perpendicular to it."""

    UP = "up"
    RIGHT = "right"


@dataclass(frozen=True)
class JointMotion:
    """Grood and Suntay's six numbers, each [...]: degrees and mm, positive as the module says; NaN without a pose."""

    flexion: Tensor
    abduction: Tensor
    rotation: Tensor
    lateral: Tensor
    anterior: Tensor
    distraction: Tensor

    @property
    def angles(self) -> Tensor:
        """[..., 3] flexion, abduction, external rotation in degrees."""
        return torch.stack([self.flexion, self.abduction, self.rotation], dim=-1)

    @property
    def translations(self) -> Tensor:
        """[..., 3] lateral, anterior, distraction in mm."""
        return torch.stack([self.lateral, self.anterior, self.distraction], dim=-1)


def body_frame(
    landmarks: Mapping[str, object],
    origin: str | Sequence[str],
    up: tuple[str | Sequence[str], str | Sequence[str]],
    right: tuple[str | Sequence[str], str | Sequence[str]],
    keep: Keep = Keep.UP,
) -> Pose:
    """Frame of a bone from landmarks by their names: body_to_world, x to the right, y anterior, z proximal.

    Args:
        landmarks: {name: [3]} in world mm.
        origin, and each end of a direction: a landmark, or several whose mean is meant.
        up: from the distal to the proximal end, the bone's long axis.
        right: from the left to the right of the patient, such as from the medial to the lateral epicondyle of a right
            femur, from the lateral to the medial one of a left femur.
        keep: UP keeps the long axis (Grood and Suntay's femur and tibia), RIGHT the transverse one.

    Raises:
        GeometryError: a landmark is missing or not three finite numbers, the ends of a direction are one point, or the
            two directions are nearly parallel.
    """
    z, x = _direction(landmarks, up, "up"), _direction(landmarks, right, "right")
    y = torch.linalg.cross(z, x)
    if float(y.norm()) < _LEAST_SINE:
        raise GeometryError(f"The directions {_words(up)} and {_words(right)} are nearly parallel: they make no frame.")
    y = y / y.norm()
    if keep is Keep.UP:
        x = torch.linalg.cross(y, z)
    else:
        z = torch.linalg.cross(x, y)
    return Pose(homogeneous(torch.stack([x, y, z], dim=-1), _place(landmarks, origin)))


def joint_angles(proximal_frame, distal_frame, side: Side, continuous: bool = True) -> JointMotion:
    """Motion of the distal bone relative to the proximal one.

    Args:
        proximal_frame, distal_frame: body_to_world (`body_frame`), single or one per frame of a sequence: `Pose`, or
            matrices [4, 4] or [F, 4, 4], NaN in frames without a pose. For a bone whose motion M from the CT to a frame
            is known: M @ body_frame(landmarks in the CT).
        side: of the body; it makes abduction, external rotation and lateral positive on both sides.
        continuous: angles of a sequence go on from the frame before instead of jumping by 360 degrees or to the other
            triple of angles of the same rotation; the first frame has abduction within +-90 degrees.

    Warns with DiffDRRWarning where abduction is within 5 degrees of +-90, where flexion and rotation mix.
    Raises GeometryError for matrices that are not rigid, and for sequences of different lengths.
    """
    relative = _relative(proximal_frame, distal_frame)
    cardan = _angles(relative[..., :3, :3], "XYZ", continuous)
    flexion, abduction, rotation = (torch.rad2deg(cardan) * _signs(side, cardan)).unbind(-1)
    # H in the proximal frame, where e1 is x and e3 the third column of the rotation
    offset, e3 = relative[..., :3, 3], relative[..., :3, 2]
    e1 = torch.tensor([1.0, 0.0, 0.0]).to(e3)
    e2 = torch.linalg.cross(e3, e1.expand_as(e3))
    e2 = e2 / e2.norm(dim=-1, keepdim=True)
    lateral = offset[..., 0] * _to_the_right(side)
    return JointMotion(flexion, abduction, rotation, lateral, (offset * e2).sum(-1), -(offset * e3).sum(-1))


def distal_frame(proximal_frame, motion: JointMotion, side: Side) -> Tensor:
    """body_to_world [..., 4, 4] of the distal bone: the inverse of `joint_angles`.

    Raises GeometryError for abduction of 90 degrees, where the three translations do not make a point.
    """
    proximal = _matrices(proximal_frame)
    angles = torch.deg2rad(motion.angles)
    rotation = euler_to_matrix(angles * _signs(side, angles), "XYZ")
    e3 = rotation[..., :, 2]
    e1 = torch.tensor([1.0, 0.0, 0.0]).to(e3).expand_as(e3)
    e2 = torch.linalg.cross(e3, e1)
    length = e2.norm(dim=-1, keepdim=True)
    if bool((length < 1e-9).any()):
        raise GeometryError("At an abduction of 90 degrees the joint's axes are parallel: translations make no point.")
    components = motion.translations * torch.tensor([_to_the_right(side), 1.0, -1.0]).to(e3)
    axes = torch.stack([e1, e2 / length, e3], dim=-2)
    offset = torch.linalg.solve(axes, components[..., None])[..., 0]
    return torch.matmul(*promote(proximal, homogeneous(rotation, offset)))


def cardan_angles(proximal_frame, distal_frame, order: str, continuous: bool = True) -> Tensor:
    """Angles [..., 3] in degrees of the distal bone's rotation in the proximal bone's frame.

    Args:
        proximal_frame, distal_frame, continuous: as for `joint_angles`.
        order: "XYZ", "ZYZ", ... of the frames' own axes. Upper case: each about the axes that the one before has moved;
            lower case: about the proximal bone's. The ISB calls the anterior axis x, the proximal one y and the right
            one z: its ZXY of the hip is XYZ in frames of `body_frame`, its YXY of the shoulder is ZYZ.

    Warns and raises as `joint_angles`; the middle angle of an order of two axes locks at 0 and 180 degrees.
    """
    return torch.rad2deg(_angles(_relative(proximal_frame, distal_frame)[..., :3, :3], check_order(order), continuous))


def _direction(landmarks, ends, name: str) -> Tensor:
    if not isinstance(ends, (tuple, list)) or len(ends) != 2:
        raise GeometryError(f"The direction '{name}' is a pair of landmarks (from, to), got {ends!r}.")
    along = _place(landmarks, ends[1]) - _place(landmarks, ends[0])
    if float(along.norm()) < _LEAST_LENGTH:
        raise GeometryError(f"The direction {_words(ends)} has no length: its ends are one point.")
    return along / along.norm()


def _place(landmarks, names: str | Sequence[str]) -> Tensor:
    """[3]: a landmark or the mean of several."""
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise GeometryError("Name at least one landmark for each point of a body frame.")
    for name in names:
        if name not in landmarks:
            raise GeometryError(f"There is no landmark '{name}'; there are: {', '.join(sorted(landmarks)) or 'none'}.")
    points = [as_tensor(landmarks[name], torch.float64) for name in names]
    for name, point in zip(names, points, strict=True):
        if point.shape != (3,) or not bool(torch.isfinite(point).all()):
            raise GeometryError(f"The landmark '{name}' must be three finite numbers (mm).")
    return torch.stack(points).mean(0)


def _words(ends) -> str:
    parts = ("-".join([end] if isinstance(end, str) else end) for end in ends)
    return " to ".join(f"'{part}'" for part in parts)


def _signs(side: Side, like: Tensor) -> Tensor:
    """What the angles of XYZ are multiplied by; on the right, abduction and external rotation are negative turns."""
    return torch.tensor([-1.0, -_to_the_right(side), -_to_the_right(side)]).to(like)


def _to_the_right(side: Side) -> float:
    """The direction away from the midline along x."""
    if not isinstance(side, Side):
        raise GeometryError(f"The side of the body is Side.LEFT or Side.RIGHT, got {side!r}.")
    return 1.0 if side is Side.RIGHT else -1.0


def _relative(proximal_frame, distal_frame) -> Tensor:
    """Distal to proximal [..., 4, 4]; NaN where either is."""
    proximal, distal = promote(_matrices(proximal_frame), _matrices(distal_frame))
    if proximal.ndim == distal.ndim == 3 and len(proximal) != len(distal):
        raise GeometryError(f"The bones have {len(proximal)} and {len(distal)} frames: give both for the same ones.")
    rotation = proximal[..., :3, :3].transpose(-1, -2)
    shift = distal[..., :3, 3] - proximal[..., :3, 3]
    return homogeneous(rotation @ distal[..., :3, :3], (rotation @ shift[..., None])[..., 0])


def _matrices(frame) -> Tensor:
    if isinstance(frame, Pose):
        return frame.matrix
    matrix = as_tensor(frame)
    if matrix.ndim not in (2, 3) or matrix.shape[-2:] != (4, 4):
        raise GeometryError(f"A bone's frames are matrices [4, 4] or [frames, 4, 4], got shape {list(matrix.shape)}.")
    there = ~torch.isnan(matrix).any(-1).any(-1)
    if bool(there.any()):
        Pose(matrix[there] if matrix.ndim == 3 else matrix)  # raises where one is not rigid
    return torch.where(there[..., None, None], matrix, torch.nan)


def _angles(rotation: Tensor, order: str, continuous: bool) -> Tensor:
    """[..., 3] in radians, with a warning near gimbal lock."""
    angles = matrix_to_euler(rotation, order)
    _warn_of_gimbal(angles.detach(), order)
    return _continued(angles, order) if continuous and angles.ndim == 2 else angles


def _two_axes(order: str) -> bool:
    return order[0] == order[2]


def _warn_of_gimbal(angles: Tensor, order: str) -> None:
    away = torch.sin(angles[..., 1]).abs() if _two_axes(order) else torch.cos(angles[..., 1]).abs()
    locked = away < math.sin(math.radians(GIMBAL))
    if bool(locked.any()):
        where = f" (first in frame {int(locked.nonzero()[0, 0])} of the sequence, from 0)" if locked.ndim else ""
        warnings.warn(
            f"The middle angle is within {GIMBAL:g} degrees of gimbal lock{where}: only the sum or difference of the "
            "first and the last angle means something there; another order of axes may suit this motion.",
            DiffDRRWarning,
            stacklevel=4,
        )


def _continued(angles: Tensor, order: str) -> Tensor:
    """The triples [F, 3] of the same rotations nearest to the frame before; frames without a pose stay NaN."""
    middle = -angles[:, 1] if _two_axes(order) else math.pi - angles[:, 1]
    other = torch.stack([angles[:, 0] + math.pi, middle, angles[:, 2] + math.pi], dim=-1)
    result, last = [], None
    for one, two in zip(angles, other, strict=True):
        chosen = one
        if last is not None:
            triples = [triple + 2 * math.pi * torch.round((last - triple) / (2 * math.pi)) for triple in (one, two)]
            chosen = min(triples, key=lambda triple: float((triple - last).detach().norm()))
        result.append(chosen)
        last = last if bool(torch.isnan(chosen).any()) else chosen.detach()
    return torch.stack(result) if result else angles
