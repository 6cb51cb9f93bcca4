"""Other poses that an X-ray may have been taken from, and which of them fits best.

Seen along a ray from the front or from the back, the anatomy casts nearly the same shadow, but mirrored: line integrals
do not know which end the source was at. A network that has to tell both sides apart by the little that differs, the
magnification, sometimes takes one for the other. Rendering settles it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.geometry import Camera, Pose, as_tensor, stack_poses
from DiffDRRCore.geometry.tensors import homogeneous
from DiffDRRCore.imaging.resampling import resample
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.pieces import finished
from DiffDRRCore.registration.problem.models import making_renderers
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.similarity import ZNCC

_CLEARLY = 0.1  # difference of zncc
_WHOLE = 0.99  # of a pixel
SIZE = 64  # longest side, pixels, of the images that are compared


@dataclass(frozen=True)
class Candidate:
    """A pose (camera_to_world [4, 4]), where it comes from, and its similarity to the X-ray (zncc).

    Where it is `inverted`, what it is similar to is the negative of the X-ray.
    """

    name: str
    pose: Pose
    similarity: float
    inverted: bool = False


def antipodal(pose: Pose, about) -> Pose:
    """The camera seen from which `about` looks mirrored: on its other side.

    It is turned by 180 degrees about the axis through `about` (world mm, [3]) that is vertical in the image and square
    to the line of sight. `about` keeps its place in the image. Its own inverse.
    """
    world_to_camera, origin = _seen(pose, about)
    line = origin / origin.norm(dim=-1, keepdim=True)
    vertical = torch.zeros_like(line)
    vertical[..., 1] = 1
    across = torch.linalg.cross(line, vertical)
    mirror = _mirror(across / across.norm(dim=-1, keepdim=True)) @ _mirror(line)
    return _standing(mirror @ world_to_camera, origin, about)


def unmirrored(pose: Pose, about) -> Pose:
    """The pose that shows nearly what `pose` shows after a flip of the image, left and right changing places.

    `pose` is of a camera whose principal point is flipped as well. Its own inverse.
    """
    world_to_camera, origin = _seen(pose, about)
    flip = torch.diag(origin.new_tensor([-1.0, 1.0, 1.0]))
    mirror = flip @ _mirror(origin / origin.norm(dim=-1, keepdim=True))
    return _standing(mirror @ world_to_camera, (flip @ origin[..., None])[..., 0], about)


def _seen(pose: Pose, about) -> tuple[Tensor, Tensor]:
    """World-to-camera rotation [..., 3, 3], and `about` in the camera [..., 3]."""
    inverse = pose.inverse()
    return inverse.rotation, inverse.transform(as_tensor(about).to(inverse.matrix)[None])[..., 0, :]


def _standing(world_to_camera: Tensor, origin: Tensor, about) -> Pose:
    """The camera of this rotation that sees `about` at `origin`."""
    rotation = world_to_camera.mT
    about = as_tensor(about).to(origin)
    return Pose._rigid(homogeneous(rotation, about - (rotation @ origin[..., None])[..., 0]))


def _mirror(normal: Tensor) -> Tensor:
    """The reflection [..., 3, 3] in the plane of a unit normal [..., 3]."""
    identity = torch.eye(3, dtype=normal.dtype, device=normal.device)
    return identity - 2 * normal[..., :, None] * normal[..., None, :]


def similarities(volume: Volume, xray: XRay, poses: Pose, about, mask: Tensor | None = None) -> Tensor:
    """zncc [B], float64 on the CPU, of the X-ray and the CT rendered at poses [B, 4, 4] with the X-ray's own camera.

    Images are at most SIZE pixels long, and the CT is averaged to voxels of such a size. 0 where no ray meets the CT.

    Args:
        xray: of attenuation (`DiffDRRCore.imaging.preprocess`).
        about: [3] world mm, in whose depth pixels are measured.
        mask: [H, W] bool, the pixels that count; None is all of them.
    """
    scale = min(1.0, SIZE / max(xray.image.shape))
    small = xray.with_image(xray.image.to(volume.device, volume.dtype))
    small = small.resampled(*(max(1, round(side * scale)) for side in xray.image.shape))
    weight = None
    if mask is not None and not bool(mask.all()):
        share = resample(mask.to(small.image), xray.camera, small.camera)
        weight = (share > _WHOLE).to(small.image)[None, None]
    pixel = _pixel_mm(small.camera, poses, about)
    renderer = finished(making_renderers(volume, None, Options(), [pixel]))[0]
    with torch.no_grad():
        images = renderer(small.camera.detached(), poses.detach())
        return ZNCC()(images, small.image.detach()[None, None], weight).double().cpu()


def _pixel_mm(camera: Camera, poses: Pose, about) -> float:
    """Size of a pixel at the depth of `about` in the nearest of the poses."""
    depth = float(_seen(poses.detach(), about)[1][..., 2].clamp(min=1.0).min())
    return depth * float(camera.pixel_spacing.min()) / float(camera.source_to_detector)


def ranked(
    volume: Volume, xray: XRay, named: Sequence[tuple[str, Pose, bool]], about, mask: Tensor | None = None
) -> list[Candidate]:
    """Candidates of (name, pose, whether the X-ray is taken for inverted), the best first; of equals, the first one.

    That an X-ray is inverted must be clearly more likely than that it is not. `about`, `mask`: as for `similarities`.
    """
    poses = stack_poses([pose for _, pose, _ in named])
    scores = similarities(volume, xray, poses, about, mask).nan_to_num(nan=0.0).tolist()
    found = [
        Candidate(name, pose, -score if inverted else score, inverted)
        for (name, pose, inverted), score in zip(named, scores, strict=True)
    ]
    return sorted(found, key=lambda candidate: _CLEARLY * candidate.inverted - candidate.similarity)
