"""Ground truth beside a simulated image: where structures and objects are seen, and how far away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from DiffDRRCore.geometry import Camera, Pose, pixel_rays
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.rendering.renderer import Renderer

_LEAST = 1e-3  # mm of a structure on a ray, below which rounding may have put it there
_HALVINGS = 22  # of a ray of a metre: 0.0003 mm


class Maps(Mapping):
    """Images [H, W] by name, each made when it is first asked for."""

    def __init__(self, names: Sequence[str], make: Callable[[str], Tensor]):
        self._made: dict[str, Tensor | None] = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if self._made[name] is None:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __repr__(self) -> str:
        return f"Maps({', '.join(self._made)})"


class LabelTruth:
    """What X-rays see of the labelled structures of volumes: voxels count as boxes, whatever they are made of."""

    def __init__(self, volumes: Sequence[Volume], backend: str = "auto"):
        self._renderers: list[Renderer] = []
        self._structures: dict[str, list[tuple[Renderer, int]]] = {}
        for volume in volumes:
            if volume.labels is None or volume.present_labels <= {0}:
                continue
            filled = (volume.labels != 0).to(volume.dtype)
            labelled = Volume.from_attenuation(filled, volume.ijk_to_ras, volume.labels, volume.label_names)
            renderer = Renderer(labelled, "siddon", backend)
            for number in sorted(volume.present_labels - {0}):
                name = volume.label_names.get(number, f"label {number}")
                self._structures.setdefault(name, []).append((renderer, number))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the structures; "label 3" where the volume has no name for it."""
        return tuple(self._structures)

    @torch.no_grad()
    def mask(self, name: str, camera: Camera, pose: Pose) -> Tensor:
        """Which pixels' rays go through the structure, boolean [H, W]."""
        pieces = [renderer(camera, pose, [number])[0, 0] > _LEAST for renderer, number in self._structures[name]]
        return torch.stack(pieces).any(dim=0)

    @torch.no_grad()
    def depth(self, name: str, camera: Camera, pose: Pose) -> Tensor:
        """The distance in mm along each pixel's ray from the source to the structure, float64 [H, W]; else inf."""
        found = [_first_entry(renderer, number, camera, pose) for renderer, number in self._structures[name]]
        return torch.stack(found).amin(dim=0)


def _first_entry(renderer: Renderer, number: int, camera: Camera, pose: Pose) -> Tensor:
    """By halving: the integral from the source to a point on the ray grows with the point's distance."""
    source, target = (end[0] for end in pixel_rays(camera, pose, None, renderer.volume.device))
    source, target = torch.broadcast_tensors(source, target)
    met = torch.nonzero(renderer(camera, pose, [number])[0, 0].flatten() > _LEAST)[:, 0]
    start, way = source[met], (target - source)[met]
    low, high = way.new_zeros(len(met), 1), way.new_ones(len(met), 1)
    for _ in range(_HALVINGS if len(met) else 0):
        middle = (low + high) / 2
        inside = renderer.trace(start[None], (start + middle * way)[None], [number])[0, 0, :, None] > _LEAST
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    depth = way.new_full((camera.height * camera.width,), torch.inf)
    depth[met] = torch.linalg.vector_norm(way, dim=-1) * high[:, 0] - _LEAST
    return depth.reshape(camera.height, camera.width)
