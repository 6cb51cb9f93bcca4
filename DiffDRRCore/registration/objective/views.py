"""What is rendered for a view, and its derivatives by all that is unknown."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from DiffDRRCore.geometry import Camera, Pose, pixel_grid, pixel_rays
from DiffDRRCore.pieces import RAYS, ranges
from DiffDRRCore.registration.problem import lens as lenses
from DiffDRRCore.registration.problem.lens import Lens, by_pixel
from DiffDRRCore.registration.problem.motion import carried_slope
from DiffDRRCore.registration.problem.unknowns import State, Unknowns
from DiffDRRCore.rendering import Renderer


@dataclass(frozen=True)
class View:
    """One X-ray at the size of a level.

    Attributes:
        fixed: [1, 1, H, W].  weight: [1, 1, H, W] or None.  camera: of this size.  start: the pose that motions act on.
        full_camera: of the full-size X-ray, in whose pixels landmarks are given.
        uv: [N, 2] the pixels that are compared, and `fixed` and `weight` are theirs, [1, 1, 1, N]; None is all.
        motion: number of the C-arm's own motion among the unknowns, None where it has none.
        lens: of the camera where that is unknown, and `number` its place among the unknown cameras.
        importance: of this view against the others.
        samples: rays along each side of a pixel. `recorded`: whether its pixels are those that the detector counted in,
            so that rays average as intensities; in larger pixels attenuation was averaged.
    """

    fixed: Tensor
    weight: Tensor | None
    camera: Camera
    start: Pose
    full_camera: Camera
    uv: Tensor | None = None
    motion: int | None = None
    lens: Lens | None = None
    number: int = 0
    importance: float = 1.0
    samples: int = 1
    recorded: bool = False

    def rays(self, first: int, last: int) -> Tensor:
        """[N samples^2, 2] where the rays of some pixels that are compared pass, pixel by pixel."""
        uv = pixel_grid(self.camera, first, last) if self.uv is None else self.uv[first:last]
        if self.samples == 1:
            return uv
        steps = torch.arange(self.samples, dtype=uv.dtype, device=uv.device)
        side = (steps + 0.5) / self.samples - 0.5
        return (uv[:, None] + torch.cartesian_prod(side, side)).flatten(0, 1)

    def averaged(self, image: Tensor, slopes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """[B, 1, N] and [B, P, N] of pixels from those of their rays."""
        if self.samples == 1:
            return image, slopes
        rays = image.unflatten(-1, (-1, self.samples**2))
        share = torch.softmax(-rays, dim=-1) if self.recorded else torch.full_like(rays, 1 / self.samples**2)
        mean = 2 * math.log(self.samples) - torch.logsumexp(-rays, dim=-1) if self.recorded else rays.mean(-1)
        return mean, None if slopes is None else (share * slopes.unflatten(-1, rays.shape[-2:])).sum(-1)

    @property
    def count(self) -> int:
        """Of the pixels that are compared."""
        return self.fixed[0].numel()

    def some(self, every: int) -> View:
        """Each so many-th of the pixels that are compared, a single ray for each."""
        uv = replace(self, samples=1).rays(0, self.count)[::every]
        fixed, weight = (None if x is None else x.flatten(2)[:, :, None, ::every] for x in (self.fixed, self.weight))
        return replace(self, uv=uv, fixed=fixed, weight=weight, samples=1)


@dataclass(frozen=True)
class Model:
    """A body as it is rendered.

    Attributes:
        renderer: of what belongs to it.
        start: [4, 4] the C-arms' motion as this body sees it, at the start.
        motion: its number among the unknowns.
    """

    renderer: Renderer
    start: Pose = field(default_factory=Pose.identity)
    motion: int = 0


class Images:
    """Renders views at states: all bodies together, their line integrals added."""

    def __init__(self, models: list[Model], views: list[View], unknowns: Unknowns):
        self.models, self.views, self.unknowns = models, views, unknowns
        self._still: dict[tuple[int, int], Tensor] = {}

    def poses(self, state: State, model: Model, view: View) -> Pose:
        """The view's poses [B, 4, 4] as the body sees it: (its motion) (its start) (the C-arm's own motion) (start)."""
        own = view.start if view.motion is None else state.motion(view.motion) @ view.start
        return state.motion(model.motion) @ (model.start @ own)

    def linearizing(self, view: View, state: State) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """Image [B, 1, H, W] and slopes [B, P, H, W], in pieces."""
        parts = []
        for first, last in _pieces(view, len(state)):
            if parts:
                yield
            parts.append(view.averaged(*self._linearized(view, state, first, last)))
        image, slopes = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        shape = view.fixed.shape[-2:]
        return image.unflatten(2, shape), slopes.unflatten(2, shape)

    def rendering(self, view: View, state: State) -> Generator[None, None, Tensor]:
        """Image [B, 1, H, W], in pieces."""
        parts = []
        for first, last in _pieces(view, len(state)):
            if parts:
                yield
            uv = self._seen(view, state, first, last)[0]
            with torch.no_grad():
                image = sum(self._traced(view, state, model, uv) for model in self.models)
                parts.append(view.averaged(image)[0])
        return torch.cat(parts, dim=-1).unflatten(-1, view.fixed.shape[-3:])

    def _traced(self, view: View, state: State, model: Model, uv: Tensor | None) -> Tensor:
        """[B, N]."""
        rays = pixel_rays(view.camera, self.poses(state, model, view), uv, model.renderer.volume.device)
        return model.renderer.trace(*rays)[0]

    def _linearized(self, view: View, state: State, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Image [B, 1, N] and slopes [B, P, N] of the rays of some pixels."""
        image, parts = 0.0, [None] * self.unknowns.size
        uv, warp = self._seen(view, state, first, last)
        slopes: Tensor | None = None
        for model in self.models:
            if self._is_fixed(model, view):
                image = image + self._fixed_image(model, view, state, uv, first, last)[:, None]
                continue
            pose = self.poses(state, model, view)
            pivot = self.unknowns.frame.pivot[model.motion]
            part, jacobian = model.renderer.linearize(view.camera, pose, about=pivot, uv=uv)
            image, jacobian = image + part.flatten(2), jacobian.flatten(1, -2).mT
            if len(self.models) == 1 and self.unknowns.size == 6:
                return image, jacobian
            if slopes is None:
                slopes = jacobian.new_zeros(len(state), len(parts), jacobian.shape[-1])
            self._add(slopes, jacobian, view, state, model, pose, warp)
        if slopes is None:
            slopes = image.new_zeros(1, len(parts), image.shape[-1])
        return image.expand(len(state), -1, -1), slopes.expand(len(state), -1, -1)

    def _add(self, slopes: Tensor, jacobian: Tensor, view: View, state: State, model: Model, pose: Pose, warp) -> None:
        """What a body's image contributes to the slopes [B, P, N]."""
        unknowns, pivot = self.unknowns, self.unknowns.frame.pivot
        if not self._is_locked(model):
            slopes[:, _rows(model.motion)] += jacobian
        if view.motion is not None and not bool(unknowns.locked[_rows(view.motion)].all()):
            whole = state.motion(model.motion) @ model.start
            carried = carried_slope(whole, pivot[model.motion], pivot[view.motion])
            slopes[:, _rows(view.motion)] += carried.mT.to(jacobian) @ jacobian
        if view.lens is not None:
            by_number, turns = warp
            by_uv = by_pixel(jacobian, pivot[model.motion], pose.translation, pose.rotation, turns)
            cut = 6 * len(unknowns.motions) + lenses.COUNT * view.number
            by_camera = torch.einsum("bkn,bnkc->bcn", by_uv, by_number.to(by_uv))
            known = unknowns.locked[cut : cut + lenses.COUNT].to(by_camera.device)
            slopes[:, cut : cut + lenses.COUNT] += torch.where(known[:, None], 0.0, by_camera)

    def _seen(self, view: View, state: State, first: int, last: int):
        """Pixels of the nominal camera to render (None for all), and what makes slopes by the camera's numbers."""
        if view.lens is None:
            whole = view.uv is None and view.samples == 1 and last - first == view.count
            return (None if whole else view.rays(first, last)), None
        uv, by_number = view.lens.seen(state.cameras[:, view.number], view.rays(first, last))
        return uv, (by_number, view.lens.turns(uv))

    def _is_locked(self, model: Model) -> bool:
        return bool(self.unknowns.locked[_rows(model.motion)].all())

    def _is_fixed(self, model: Model, view: View) -> bool:
        """Whether no unknown changes the body's image in this view."""
        return self._is_locked(model) and view.motion is None and view.lens is None

    def _fixed_image(self, model: Model, view: View, state: State, uv, first: int, last: int) -> Tensor:
        """[B, N] of rays; that of a body that stays at its start is rendered once."""
        with torch.no_grad():
            if not self.unknowns.motions[model.motion].locked:
                return self._traced(view, state, model, uv)
            key = (id(model), id(view))
            if key not in self._still:
                self._still[key] = self._traced(view, self.unknowns.start(), model, view.rays(0, view.count))
            return self._still[key][:, first * view.samples**2 : last * view.samples**2]


def _rows(motion: int) -> slice:
    return slice(6 * motion, 6 * motion + 6)


def _pieces(view: View, batch: int) -> Iterator[tuple[int, int]]:
    """(first, last) of pieces of a view that together have no more than `RAYS` rays."""
    yield from ranges(view.count, max(1, RAYS // (batch * view.samples**2)))
