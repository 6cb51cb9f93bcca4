"""A simulated X-ray with the ground truth beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from DiffDRRCore.geometry import Camera, Pose, project
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.physics.simulation.objects import crossed
from DiffDRRCore.physics.simulation.origin import Origin
from DiffDRRCore.physics.simulation.truth import Maps


class SimulatedImage:
    """An X-ray and what it was made of.

    xray        `XRay` of intensity "transmission" in detector units: counts = gain * signal + offset, or over the open
                field where there was no exposure. Its meta has i0, offset, the seed and every parameter.
    primary     [H, W], 0 to 1: attenuation alone, as by `Simulator.primary`
    scatter     [H, W]: scatter behind the grid, over the open field behind the grid
    i0          the open field in the principal ray in the image's units, less the offset: with `preprocess(xray,
                i0=image.i0)` the image becomes line integrals (of an offset of 0)
    open_field  [H, W], the same in each pixel: with heel, solid angle and collimator
    labels      {name: [H, W] boolean}: which rays go through each labelled structure; made when asked for, as are
    objects     {name: [H, W] boolean}: what is to be seen of each enabled object (without what others displace)
    depth       {name: [H, W] mm}: of both, from the source along the ray to the first entry; inf where there is none
    landmarks   {name: (u, v)} in pixels
    """

    def __init__(self, simulator: Origin, xray: XRay, primary: Tensor, scatter: Tensor):
        self.xray, self.primary, self.scatter = xray, primary, scatter
        self._simulator = simulator

    @property
    def i0(self) -> float:
        """See the class."""
        return self.xray.meta["i0"]

    @property
    def counts(self) -> Tensor:
        """The image itself, [H, W]."""
        return self.xray.image

    @cached_property
    def open_field(self) -> Tensor:
        """See the class."""
        field = self._simulator.field(self.xray.camera)
        return torch.full_like(self.primary, self.i0) if field is None else self.i0 * field

    @cached_property
    def labels(self) -> Mapping[str, Tensor]:
        """See the class."""
        truth = self._simulator.truth()
        return Maps(truth.names, lambda name: truth.mask(name, *self._view))

    @cached_property
    def objects(self) -> Mapping[str, Tensor]:
        """See the class."""
        return {name: crossing.mask() for name, crossing in self._crossed.items()}

    @cached_property
    def depth(self) -> Mapping[str, Tensor]:
        """See the class."""
        truth = self._simulator.truth()

        def made(name: str) -> Tensor:
            crossing = self._crossed.get(name)
            return truth.depth(name, *self._view) if crossing is None else crossing.depth()

        return Maps((*self._crossed, *truth.names), made)

    @cached_property
    def landmarks(self) -> dict[str, tuple[float, float]]:
        """See the class."""
        places = self._simulator.landmarks
        if not places:
            return {}
        points = torch.tensor(list(places.values()), dtype=torch.float64)
        return dict(zip(places, map(tuple, project(*self._view, points)[0].tolist()), strict=True))

    @cached_property
    def _crossed(self) -> dict:
        with torch.no_grad():
            return {one.name: crossing for one, crossing in crossed(self._simulator.objects, *self._view)}

    @property
    def _view(self) -> tuple[Camera, Pose]:
        return self.xray.camera.detached(), self.xray.pose.detach()

    def __repr__(self) -> str:
        return f"SimulatedImage({self.xray!r}, i0 = {self.i0:g}, seed {self.xray.meta['seed']})"
