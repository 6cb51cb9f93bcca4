"""The start of a registration when nothing is known but the ranges in which the C-arm can stand.

    result = register(volume, xrays, GlobalSearch(primary=(-90, 90), secondary=(-40, 40)))

Three stages, coarse to fine (`search_stages`): (1) One small view is rendered from each of many directions, and the
X-ray is found in it at every shift, several rolls and several distances, so that each view stands for thousands of
poses. (2) The best of these are rendered exactly, for all X-rays. (3) The best of those, apart from each other, are
optimised as in a registration, the worse ones giving up on the way. What is left is ordered by similarity.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.pieces import finished
from DiffDRRCore.registration.global_search.ranges import SearchRanges
from DiffDRRCore.registration.global_search.stages import SearchStep, Stages
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.similarity import LeastSquaresSimilarity, similarity

_SIZES = (32, 64)  # of the exact images
_LOCAL_SIZES = (64, 96)  # for measures of patches and edges


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        poses: camera_to_world of every view [V, 4, 4], of the best candidate.
        similarity: of it, at the search's finest level, mean over the views.
        alternatives: the other optima that were kept, best first, as in `RegistrationResult`: similarity, and motion
            (4 x 4) of the C-arms from `poses`. One that scores nearly as high is a reason to look twice.
        views: rendered in the first stage.  tried: poses that they stand for.
        seconds: of each stage: "match", "screen", "optimise".
    """

    poses: Pose
    similarity: float
    alternatives: list[dict]
    views: int
    tried: int
    seconds: dict[str, float]

    @property
    def cost(self) -> str:
        """What it took, in words."""
        return f"{self.views} views for {self.tried / 1e6:.1f} million poses, {sum(self.seconds.values()):.1f} s"


class GlobalSearch:
    """Looks for the start of a registration over ranges of the C-arm: `register(volume, xrays, GlobalSearch(...))`.

    Several views keep the places of their poses to each other; the ranges are the first view's, in which the first
    stage looks, and all views count in the later ones. The optimisation may lead out of the ranges.

    Args:
        primary, secondary, roll, sod, isocenter, about: `SearchRanges`.
        count: of directions from which a view is rendered, about.
        keep: optima that are reported.
        seed: of where in the ranges the directions lie.
        size: longest side in pixels of the X-ray in the first stage.
        similarity: of the exact images, a sum of squares ("zncc", "lncc", "gradient_ncc", ...).
        labels, weights: as for a registration (`Options`).

    Raises RegistrationError for ranges and numbers that cannot be.
    """

    def __init__(
        self,
        primary: Sequence[float] = (-90.0, 90.0),
        secondary: Sequence[float] = (-40.0, 40.0),
        roll: Sequence[float] = (-20.0, 20.0),
        sod: Sequence[float] | None = None,
        isocenter: float | Sequence[float] = 50.0,
        about: Sequence[float] | None = None,
        count: int = 512,
        keep: int = 8,
        seed: int = 0,
        size: int = 24,
        similarity: str = "zncc",
        labels: Sequence[int | str] | None = None,
        weights: Sequence[Tensor | None] | None = None,
    ):
        self.ranges = SearchRanges(primary, secondary, roll, sod, isocenter, about)
        for name, value, least in (("count", count, 1), ("keep", keep, 1), ("size", size, 12), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise RegistrationError(f"{name} is a whole number of {least} or more, got {value!r}.")
        self.count, self.keep, self.seed, self.size = int(count), int(keep), int(seed), int(size)
        self.options = Options(similarity, sizes=_sizes(similarity, self.size), labels=labels, weights=weights)

    def starts(self, volume: Volume, xrays: list[XRay]) -> list[Pose]:
        """One camera_to_world per X-ray, of the best candidate. Errors as `searching`."""
        return list(self.find(volume, xrays).poses)

    def find(self, volume: Volume, xrays: XRay | Sequence[XRay]) -> SearchResult:
        """`searching`, at once."""
        return finished(self.searching(volume, xrays))

    def searching(self, volume: Volume, xrays: XRay | Sequence[XRay]) -> Generator[SearchStep, None, SearchResult]:
        """For event loops: yields how far it is every some tens of milliseconds, returns what it found.

        Raises RegistrationError for several views without poses to each other, a parallel beam, an X-ray without
        contrast, a patient behind the detector, or where none of the views looks like the X-ray.
        """
        xrays = _checked([xrays] if isinstance(xrays, XRay) else list(xrays))
        stages = Stages(self.ranges, self.options, self.count, self.keep, self.seed, volume, xrays)
        yield from stages.preparing()
        yield from stages.matching()
        yield from stages.screening()
        yield from stages.optimising()
        poses, optima = stages.outcome()
        views, tried = len(stages.directions), stages.tried
        return SearchResult(poses, optima[0]["similarity"], optima[1:], views, tried, dict(stages.seconds))


def _sizes(measure, size: int) -> tuple[int, ...]:
    """Of the levels: the first is the first stage's, the others are the exact images'."""
    found = similarity(measure)
    if not isinstance(found, LeastSquaresSimilarity):
        raise RegistrationError(
            f"The similarity {measure!r} is not a sum of squares, which a global search needs; choose 'zncc' or 'lncc'."
        )
    return size, *(max(size, other) for other in (_LOCAL_SIZES if getattr(found, "local", False) else _SIZES))


def _checked(xrays: list[XRay]) -> list[XRay]:
    if not xrays:
        raise RegistrationError("There is no X-ray to search a start for.")
    if xrays[0].camera.parallel:
        raise RegistrationError("A global search needs a point source: a parallel beam has no distance to look in.")
    lacking = [str(number) for number, xray in enumerate(xrays, start=1) if xray.pose is None]
    if len(xrays) > 1 and lacking:
        raise RegistrationError(
            f"X-ray {', '.join(lacking)} has no pose: a search with several views must know how they stand to each "
            "other."
        )
    return xrays
