"""The weights that leave out of X-rays what the CT does not show: metal, and all beyond the edges of the beam."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from DiffDRRCore.geometry import Pose, as_tensor, pixel_grid, pixel_rays
from DiffDRRCore.imaging.exposure import exposed_field
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.pieces import RAYS, finished, ranges
from DiffDRRCore.registration.masks.ends import within_ends
from DiffDRRCore.registration.masks.metal import REACH, finding_metal
from DiffDRRCore.registration.problem.models import making_renderers
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.rendering import Renderer

_FEW = 0.02  # of the pixels
_SIDE = 128  # pixels of the rendered images, at most


def automatic_weights(
    xrays: Sequence[XRay],
    volume: Volume | None = None,
    poses: Sequence[Pose] | Pose | None = None,
    weights: Sequence[Tensor | None] | None = None,
    reach: float = REACH,
) -> list[Tensor | None]:
    """Weights [H, W] of each X-ray: 0 outside the beam and on metal, else 1 or the given weight; None where all are 1.

    Args:
        volume, poses: the CT and each X-ray's start, which tell metal from bone better; `reach` mm on the detector is
            how far off the start may be. None does without.
        weights: to combine with.
    """
    return finished(finding_weights(xrays, volume, poses, weights, reach))


def finding_weights(
    xrays: Sequence[XRay],
    volume: Volume | None = None,
    poses: Sequence[Pose] | Pose | None = None,
    weights: Sequence[Tensor | None] | None = None,
    reach: float = REACH,
    options: Options | None = None,
) -> Generator[None, None, list[Tensor | None]]:
    """`automatic_weights` in pieces; with the `options` of a registration, its model of the CT is used."""
    given = [None] * len(xrays) if weights is None else list(weights)
    rendered = [None] * len(xrays)
    if volume is not None and poses is not None:
        rendered = yield from _rendering(volume, xrays, poses, options or Options())
    found = []
    for xray, image, weight in zip(xrays, rendered, given, strict=True):
        found.append((yield from _weighing(xray, image, weight, reach)))
    return found


def told_weights(
    xrays: Sequence[XRay], volume: Volume, poses: Sequence[Pose], options: Options
) -> Generator[None, None, list[Tensor | None]]:
    """What the options of a registration tell, "auto" resolved, in pieces."""
    if isinstance(options.weights, str):
        return (yield from finding_weights(xrays, volume, poses, options=options))
    if options.weights is None:
        return [None] * len(xrays)
    return [None if weight is None else as_tensor(weight).detach() for weight in options.weights]


def without_ends(
    xrays: Sequence[XRay], volume: Volume, poses: Sequence[Pose], weights: Sequence[Tensor | None]
) -> Generator[None, None, list[Tensor | None]]:
    """The weights without what lies beyond the ends of the CT (`within_ends`), in pieces; None where all are 1."""
    found = []
    for xray, pose, given in zip(xrays, poses, weights, strict=True):
        known = within_ends(xray.camera, pose, volume, REACH, given)
        found.append(given if bool(known.all()) else _combined(known, given))
        yield
    return found


def differ(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    """Whether weights are different in more than a few pixels of any view."""
    for first, second in zip(one, other, strict=True):
        if first is None and second is None:
            continue
        pair = [torch.ones(1) if weight is None else weight for weight in (first, second)]
        if float(((pair[0] > 0) != (pair[1] > 0)).double().mean()) > _FEW:
            return True
    return False


def _combined(known: Tensor, given: Tensor | None) -> Tensor:
    """A mask and the weight that was given."""
    weight = known.to(torch.float32)
    return weight if given is None else weight * torch.as_tensor(given).detach().cpu().to(torch.float32)


def _weighing(
    xray: XRay, rendered: Tensor | None, given: Tensor | None, reach: float
) -> Generator[None, None, Tensor | None]:
    field = exposed_field(xray)
    yield
    good = field & ~(yield from finding_metal(xray, field, rendered, reach))
    if bool(good.all()):
        return given
    return _combined(good, given)


def _rendering(
    volume: Volume, xrays: Sequence[XRay], poses: Sequence[Pose] | Pose, options: Options
) -> Generator[None, None, list[Tensor]]:
    """[H, W] of each X-ray: what the CT looks like, from no more than some ten thousand rays."""
    small = [_small(xray) for xray in xrays]
    pixels = [_pixel_at_anatomy(one, volume, pose) for one, pose in zip(small, poses, strict=True)]
    (renderer,) = yield from making_renderers(volume, None, options, [min(pixels)])
    yield from renderer.preparing()
    images = []
    for xray, camera, pose in zip(xrays, small, poses, strict=True):
        image = yield from _traced(renderer, camera, pose)
        size = tuple(xray.image.shape)
        images.append(interpolate(image[None, None], size, mode="bilinear")[0, 0])
    return images


def _small(xray: XRay):
    """The X-ray's camera with no more than `_SIDE` pixels each way."""
    every = max(1, math.ceil(max(xray.image.shape) / _SIDE))
    return xray.camera.detached().resized(*(math.ceil(side / every) for side in xray.image.shape))


def _pixel_at_anatomy(camera, volume: Volume, pose: Pose) -> float:
    """mm."""
    spacing = float(camera.pixel_spacing.min())
    if camera.parallel:
        return spacing
    depth = float(pose.detach().inverse().transform(volume.center.detach().to(pose.matrix)[None])[0, 2])
    return spacing * max(depth, 1.0) / float(camera.source_to_detector)


def _traced(renderer: Renderer, camera, pose: Pose) -> Generator[None, None, Tensor]:
    parts = []
    for first, last in ranges(camera.height * camera.width, RAYS):
        rays = pixel_rays(camera, pose.detach(), pixel_grid(camera, first, last), renderer.volume.device)
        with torch.no_grad():
            parts.append(renderer.trace(*rays).flatten())
        yield
    return torch.cat(parts).reshape(camera.height, camera.width).cpu().float()
