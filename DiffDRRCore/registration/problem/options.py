"""What a registration can be told, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import as_tensor
from DiffDRRCore.registration.problem.bodies import Body, FreeCamera, Joint
from DiffDRRCore.registration.problem.motion import Limits
from DiffDRRCore.registration.problem.told import check_all_made, check_made, check_point
from DiffDRRCore.similarity.robust import NAMES

OPTIMIZERS = ("auto", "levenberg_marquardt", "lbfgs", "adam")


@dataclass(frozen=True)
class Landmarks:
    """Points seen in the CT and in the X-rays: a term beside the image.

    Attributes:
        points_3d: [N, 3] RAS mm.
        points_2d: [N, 2] pixels of the full-size X-ray, one array per view (NaN rows for points a view does not show).
        deviation: expected error of a click in pixels.
        weight: of the landmarks against the image: the similarity that a mean squared error of one deviation costs.
        bodies: for each point the name of the body that it moves with; None is the first body.
    """

    points_3d: Tensor
    points_2d: Sequence[Tensor]
    deviation: float = 2.0
    weight: float = 1e-2
    bodies: Sequence[str] | None = None

    def __post_init__(self):
        points_3d = as_tensor(self.points_3d, torch.float64)
        points_2d = [as_tensor(points, torch.float64) for points in self.points_2d]
        count = len(points_3d)
        if points_3d.shape != (count, 3) or any(points.shape != (count, 2) for points in points_2d):
            shapes = [list(points.shape) for points in points_2d]
            raise RegistrationError(
                f"Landmarks are [N, 3] points and for each view [N, 2] pixels, got {list(points_3d.shape)}, {shapes}."
            )
        if not (self.deviation > 0 and self.weight >= 0):
            raise RegistrationError(
                f"Landmarks need a deviation above 0 and a weight of 0 or more, got {self.deviation} and {self.weight}."
            )
        if self.bodies is not None and len(self.bodies) != count:
            raise RegistrationError(
                f"There are {count} landmarks and bodies for {len(self.bodies)}; name one for each."
            )
        object.__setattr__(self, "points_3d", points_3d)
        object.__setattr__(self, "points_2d", points_2d)


@dataclass(frozen=True)
class Options:
    """Options of `register`; the defaults need no tuning for a CT of the whole anatomy in the X-ray.

    Attributes:
        similarity: name in `DiffDRRCore.similarity.SIMILARITIES`, or a measure.
        optimizer: "levenberg_marquardt" (second order; for measures that are sums of squares), "lbfgs" or "adam" (first
            order; for any); "auto" is the first where the measure allows it, else the second.
        sizes: longest image side in pixels at each level, coarse to fine; none is larger than the X-ray itself. None is
            32, 64, 128, and 96, 128 for measures of patches and edges (`Similarity.local`), which coarser images lack.
        max_steps: steps at each level.  max_seconds: for the whole registration, None for no limit.
        tolerance: mm; a level ends when a step moves the anatomy by less (at all but the finest level, by less than a
            twentieth of a pixel, where that is more).
        labels: structures (numbers or names) of the labelmap to render; None is everything.
        weights: one mask or weight [H, W] per view, or None. "auto" leaves out what the CT does not show: metal, and
            all beyond the edges of the beam (`automatic_weights`).
        beyond_ends: whether pixels count whose rays pass beyond an end of the CT that the patient goes on beyond. The
            CT does not explain them, and they draw the answer away (`ends.within_ends`, at the start, and again after
            the first level). Where only some structures are rendered, or bodies move each on its own, all count.
        view_weights: how much each view counts against the others, above 0; None is all alike.
        limits: bounds and prior of the motion of everything together.
        bodies: parts of the CT that move each on its own (`Body`), rendered together; None is the CT as one. Unless
            they have starts of their own, the first level moves them together.
        joints: what is known of how bodies stand to each other (`Joint`).
        one_by_one: whether bodies are registered one after the other, each with the others rendered where they are,
            before all of them are together.
        free_views: for each view what its C-arm may do on its own (`Limits`), None where it is fixed to the others. Let
            at least one be fixed, else it is the C-arms or the patient that moves.
        free_cameras: cameras of which some numbers are not known: one `FreeCamera` that all views share, or for each
            view its own or None.
        landmarks: a landmark term.
        starts: number of starts; all but the first are drawn around the initial pose with standard deviations
            `start_spread` = (degrees about each axis, mm in the image plane, mm in depth). The best three in ten go on
            to the next level.
        search: number of motions around the start whose similarity is looked at when the first level is done, unless
            its optimum is clearly better than all of them; the best eight are optimised too. 0 is no search.
        seed: of the starts and of the search.
        samples: rays along each side of a pixel at the last level; more than one where pixels are large against the
            anatomy's edges, whose depth a single ray in the middle misjudges.
        integrator: of the renderer.  step: its step in mm, None for the smallest voxel spacing of each level.
        voxels_per_pixel: at each level the CT is averaged in blocks whose sides are at most this many of the level's
            pixels (at the anatomy).
        about: pivot of rotations in world mm; None is the volume's centre.
        learning_rate: of Adam: (rad, mm) at the finest level.
        robust: "huber" or "tukey" weighs pixels down that differ from the rendered image by far more than most (an
            implant, a tool): `DiffDRRCore.similarity.robust`. None counts all alike.
        second: "auto" registers once more by outlines ("gradient_ncc"), from the answer by grey values ("zncc") and at
            its size, where a step that way is more than noise explains: scatter and beam hardening draw grey values
            away, in depth above all. None does not.
        pixels: at most so many pixels, one at random in each cell of a grid, are compared at each level but the last;
            None is all. For measures that compare pixel by pixel ("zncc", "ssd").
    """

    similarity: str | Callable = "zncc"
    optimizer: str = "auto"
    sizes: Sequence[int] | None = None
    max_steps: int = 100
    max_seconds: float | None = None
    tolerance: float = 0.01
    labels: Sequence[int | str] | None = None
    weights: Sequence[Tensor | None] | str | None = None
    beyond_ends: bool = False
    limits: Limits = field(default_factory=Limits)
    landmarks: Landmarks | None = None
    view_weights: Sequence[float] | None = None
    bodies: Sequence[Body] | None = None
    joints: Sequence[Joint] = ()
    one_by_one: bool = False
    free_views: Sequence[Limits | None] | None = None
    free_cameras: FreeCamera | Sequence[FreeCamera | None] | None = None
    starts: int = 1
    start_spread: tuple[float, float, float] = (5.0, 10.0, 30.0)
    search: int = 128
    seed: int = 0
    samples: int = 1
    integrator: str = "trilinear"
    step: float | None = None
    voxels_per_pixel: float = 0.75
    about: Sequence[float] | None = None
    learning_rate: tuple[float, float] = (5e-3, 1.0)
    robust: str | None = None
    second: str | None = "auto"
    pixels: int | None = None

    def __post_init__(self):
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        self._check_made()
        if isinstance(self.weights, str) and self.weights != "auto":
            raise RegistrationError(f"weights are one mask per view, or 'auto', got {self.weights!r}.")
        if self.second not in (None, "auto"):
            raise RegistrationError(f"second is 'auto' or None, got {self.second!r}.")
        if self.robust is not None:
            _check_choice("robust", self.robust, NAMES)
        if self.sizes is not None and (len(self.sizes) == 0 or any(int(n) != n or n < 8 for n in self.sizes)):
            raise RegistrationError(f"sizes are image sides of at least 8 pixels, coarse to fine, got {self.sizes}.")
        for name, least in (("max_steps", 1), ("starts", 1), ("search", 0), ("pixels", 16), ("samples", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < least):
                raise RegistrationError(f"{name} is a whole number of {least} or more, got {value!r}.")
        for name in ("tolerance", "voxels_per_pixel", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and value > 0):
                raise RegistrationError(f"{name} must be a positive number, got {value!r}.")
        if len(self.start_spread) != 3 or not all(x >= 0 for x in self.start_spread):
            raise RegistrationError(f"start_spread is three numbers of 0 or more, got {self.start_spread}.")
        if len(self.learning_rate) != 2 or not all(x > 0 for x in self.learning_rate):
            raise RegistrationError(f"learning_rate is two positive numbers (rad, mm), got {self.learning_rate}.")

    def _check_made(self):
        check_made("limits", self.limits, Limits)
        if self.landmarks is not None:
            check_made("landmarks", self.landmarks, Landmarks)
        if self.bodies is not None:
            check_all_made("bodies", self.bodies, Body)
        check_all_made("joints", self.joints, Joint)
        if self.free_views is not None:
            check_all_made("free_views", self.free_views, Limits, or_none=True)
        if self.free_cameras is not None and not isinstance(self.free_cameras, FreeCamera):
            check_all_made("free_cameras", self.free_cameras, FreeCamera, or_none=True)
        if self.about is not None:
            check_point("about", self.about)


def _check_choice(name: str, value, choices: Sequence[str]) -> None:
    if value not in choices:
        known = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise RegistrationError(f"{name} is {known}, got {value!r}.")
