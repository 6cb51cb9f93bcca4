"""What a registration can be told, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.registration.motion import Limits


@dataclass(frozen=True)
class Landmarks:
    """Points seen in the CT and in the X-rays: a term beside the image.

    Attributes:
        points_3d: [N, 3] RAS mm.
        points_2d: [N, 2] pixels of the full-size X-ray, one array per view (NaN rows for points a view does not show).
        deviation: expected error of a click in pixels.
        weight: of the landmarks against the image: the similarity that a mean squared error of one deviation costs.
    """

    points_3d: Tensor
    points_2d: Sequence[Tensor]
    deviation: float = 2.0
    weight: float = 1e-2


@dataclass(frozen=True)
class Options:
    """Options of `register`; the defaults need no tuning for a CT of the whole anatomy in the X-ray.

    Attributes:
        similarity: name in `DiffDRRCore.similarity.SIMILARITIES`, or a measure.
        optimizer: "levenberg_marquardt" (second order; for the measures with `features`) or "adam" (first order; any).
        sizes: longest image side in pixels at each level, coarse to fine; none is larger than the X-ray itself.
        max_steps: steps at each level.  max_seconds: for the whole registration, None for no limit.
        tolerance: mm; a level ends when a step moves the anatomy by less, in pixels' proportion at the coarse levels.
        labels: structures (numbers or names) of the labelmap to render; None is everything.
        weights: one mask or weight [H, W] per view, or None.
        limits: bounds and prior.
        landmarks: a landmark term.
        starts: number of starts; all but the first are drawn around the initial pose with standard deviations
            `start_spread` = (degrees about each axis, mm in the image plane, mm in depth). The worse half is dropped at
            each level.
        seed: of the starts.
        integrator: of the renderer.  step: its step in mm, None for the smallest voxel spacing of each level.
        voxels_per_pixel: at each level the CT is averaged in blocks of at most this many pixels (at the anatomy).
        about: pivot of rotations in world mm; None is the volume's centre.
        learning_rate: of Adam: (rad, mm) at the finest level.
    """

    similarity: str | Callable = "zncc"
    optimizer: str = "levenberg_marquardt"
    sizes: Sequence[int] = (32, 64, 128)
    max_steps: int = 100
    max_seconds: float | None = None
    tolerance: float = 0.01
    labels: Sequence[int | str] | None = None
    weights: Sequence[Tensor | None] | None = None
    limits: Limits = field(default_factory=Limits)
    landmarks: Landmarks | None = None
    starts: int = 1
    start_spread: tuple[float, float, float] = (5.0, 10.0, 30.0)
    seed: int = 0
    integrator: str = "trilinear"
    step: float | None = None
    voxels_per_pixel: float = 0.75
    about: Sequence[float] | None = None
    learning_rate: tuple[float, float] = (5e-3, 1.0)

    def __post_init__(self):
        if self.optimizer not in ("levenberg_marquardt", "adam"):
            raise RegistrationError(f"optimizer is 'levenberg_marquardt' or 'adam', got {self.optimizer!r}.")
        if not self.sizes or any(int(size) != size or size < 8 for size in self.sizes):
            raise RegistrationError(f"sizes are image sides of at least 8 pixels, coarse to fine, got {self.sizes}.")
        for name in ("max_steps", "starts", "tolerance", "voxels_per_pixel"):
            if not getattr(self, name) > 0:
                raise RegistrationError(f"{name} must be positive, got {getattr(self, name)}.")
