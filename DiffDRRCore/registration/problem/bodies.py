"""What moves in a registration beside the whole patient: bones on their own, C-arms on their own, unknown cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real

from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose, as_tensor
from DiffDRRCore.registration.problem.motion import Limits
from DiffDRRCore.registration.problem.told import check_made, check_point, check_six, check_weight


@dataclass(frozen=True)
class Body:
    """A part of the CT that moves as one.

    Attributes:
        name: of it in the result.
        labels: its structures (numbers or names of the labelmap); None is all that belongs to no other body.
        limits: bounds and prior of its own motion: axes of the first view's camera, about `about`.
        motion: where it starts: the rigid motion [4, 4] (world mm) that takes it from where the CT shows it to where
            the X-rays see it, the C-arms left at their start; None is where the CT shows it.
        locked: whether it stays there.
        about: pivot of its rotations, RAS mm; None is the centre of its voxels.
    """

    name: str
    labels: Sequence[int | str] | None = None
    limits: Limits = field(default_factory=Limits)
    motion: Pose | None = None
    locked: bool = False
    about: Sequence[float] | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise RegistrationError(f"A body needs a name, got {self.name!r}.")
        check_made(f"The limits of the body '{self.name}'", self.limits, Limits)
        if self.about is not None:
            check_point(f"What the body '{self.name}' turns about", self.about)
        if self.labels is not None:
            several = [self.labels] if isinstance(self.labels, (int, str)) else list(self.labels)
            if not several:
                raise RegistrationError(f"The body '{self.name}' is empty: name at least one of the CT's labels.")
            object.__setattr__(self, "labels", tuple(several))
        if self.motion is not None and (not isinstance(self.motion, Pose) or self.motion.matrix.ndim != 2):
            raise RegistrationError(f"The start of the body '{self.name}' is one rigid motion, a Pose [4, 4].")


@dataclass(frozen=True)
class Joint:
    """What is known of how two bodies stand to each other: a prior on their relative motion.

    The motion is that of the second body as the first one sees it: where both have moved alike it is none. Six numbers
    describe it: rotation about the columns of `axes` in degrees, and the shift of `center` along them in mm. A joint's
    centre that both bones share is `deviations=(None, None, None, 1, 1, 1)`; minimal motion is six deviations.

    Attributes:
        bodies: names of the two.
        center: RAS mm in the CT; None is the middle of the two bodies.
        axes: [3][3], columns are directions in the CT; None is R, A, S.
        deviations: six standard deviations of a Gaussian prior around the CT's own relation; None for no prior.
        bounds: six largest changes. They are soft: beyond, each degree or mm counts as a deviation.
        weight: the similarity that one squared deviation costs, 0 or more.
    """

    bodies: tuple[str, str]
    center: Sequence[float] | None = None
    axes: Tensor | None = None
    deviations: tuple[float | None, ...] | None = None
    bounds: tuple[float | None, ...] | None = None
    weight: float = 1e-3

    def __post_init__(self):
        names = self.bodies
        is_pair = isinstance(names, (tuple, list)) and len(names) == 2 and all(isinstance(name, str) for name in names)
        if not is_pair or names[0] == names[1]:
            raise RegistrationError(f"A joint is between two bodies, whose names it gives, got {names!r}.")
        if self.center is not None:
            check_point("The centre of a joint", self.center)
        check_six("deviations", self.deviations)
        check_six("bounds", self.bounds)
        if self.deviations is None and self.bounds is None:
            raise RegistrationError("A joint says something: give deviations or bounds.")
        check_weight("a joint", self.weight)
        if self.axes is not None:
            axes = as_tensor(self.axes).double()
            if axes.shape != (3, 3) or float((axes.mT @ axes - axes.new_tensor(_IDENTITY)).abs().max()) > 1e-6:
                raise RegistrationError("The axes of a joint are the columns of a rotation matrix [3][3].")


_IDENTITY = ((1.0, 0, 0), (0, 1, 0), (0, 0, 1))


@dataclass(frozen=True)
class FreeCamera:
    """Which numbers of a camera are not known: their standard deviations in mm, None for those that are.

    `math.inf` is no prior at all. The focal length in pixels is what an image shows: it is told here as the
    source-to-detector distance at the known pixel size; where that distance is known, it is the pixel size.

    Attributes:
        source_to_detector: mm.
        principal_point: mm on the detector, both ways.
        radial: mm by which the image's corner is displaced outwards from the principal point, growing with the cube of
            the distance from there.
        weight: the similarity that one squared deviation costs, 0 or more. The default is little more than what noise
            makes of it: a larger one pulls the answer towards what was told.
    """

    source_to_detector: float | None = None
    principal_point: float | None = None
    radial: float | None = None
    weight: float = 1e-6

    def __post_init__(self):
        for name in ("source_to_detector", "principal_point", "radial"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and value > 0):
                raise RegistrationError(f"{name} of a free camera is a positive number of mm or None, got {value!r}.")
        check_weight("a free camera's prior", self.weight)

    @property
    def deviations(self) -> tuple[float, ...]:
        """(distance, right, down, radial) in mm; 0 for what is known."""
        right = self.principal_point
        return tuple(value or 0.0 for value in (self.source_to_detector, right, right, self.radial))

    @property
    def stiffness(self) -> tuple[float, ...]:
        """d residual / d number, half of whose squared sum is the prior's cost."""
        return tuple(math.sqrt(2 * self.weight) / value if value else 0.0 for value in self.deviations)
