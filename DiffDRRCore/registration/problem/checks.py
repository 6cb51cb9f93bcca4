"""What cannot be registered, told before the work begins."""

from __future__ import annotations

import itertools
import warnings

import torch

from DiffDRRCore.errors import DiffDRRWarning, RegistrationError
from DiffDRRCore.geometry import Pose, as_tensor
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.similarity import LeastSquaresSimilarity, similarity

_SAME = 1e-6


def checked_options(options: dict) -> Options:
    """Raises RegistrationError for a name that is no option."""
    unknown = [name for name in options if name not in Options.__dataclass_fields__]
    if unknown:
        names = ", ".join(Options.__dataclass_fields__)
        raise RegistrationError(f"Unknown option {', '.join(unknown)}; the options are: {names}.")
    return Options(**options)


def method(options: Options) -> str:
    """The optimiser, "auto" resolved. Raises RegistrationError where the measure is not one for it."""
    least_squares = isinstance(similarity(options.similarity), LeastSquaresSimilarity)
    if options.optimizer == "auto":
        return "levenberg_marquardt" if least_squares else "lbfgs"
    if options.optimizer == "levenberg_marquardt" and not least_squares:
        raise RegistrationError(
            f"The similarity {options.similarity!r} is not a sum of squares, which levenberg_marquardt needs; choose "
            "optimizer='auto', 'lbfgs', 'adam' or another similarity."
        )
    return options.optimizer


def check_options(options: Options, xrays: list[XRay]) -> None:
    """What only shows once the X-rays are known."""
    method(options)
    if options.pixels is not None and not getattr(similarity(options.similarity), "pointwise", False):
        raise RegistrationError(
            f"The similarity {options.similarity!r} compares neighbouring pixels, so it cannot do with some of them: "
            "leave out 'pixels', or choose 'zncc' or 'ssd'."
        )
    if options.labels is not None and options.similarity == "zncc":
        warnings.warn(
            "Only some structures are rendered, but the X-ray shows the rest too: 'zncc' is easily misled by that, "
            "similarity='lncc' or 'gradient_ncc' is not.",
            DiffDRRWarning,
            stacklevel=4,
        )
    if options.landmarks is not None and len(options.landmarks.points_2d) != len(xrays):
        raise RegistrationError(
            f"There are {len(xrays)} X-rays but landmarks for {len(options.landmarks.points_2d)}; "
            "give points_2d for each."
        )
    if options.weights is not None and not isinstance(options.weights, str):
        _check_weights(options.weights, xrays)


def _check_weights(weights, xrays: list[XRay]) -> None:
    if len(weights) != len(xrays):
        raise RegistrationError(f"There are {len(xrays)} X-rays but {len(weights)} weights; give one per view.")
    for number, (weight, xray) in enumerate(zip(weights, xrays, strict=True), start=1):
        if weight is None:
            continue
        weight = as_tensor(weight)
        if weight.shape != xray.image.shape or not bool((weight >= 0).all()) or not bool((weight > 0).any()):
            raise RegistrationError(
                f"The weight of X-ray {number} must have its {xray.image.shape[0]} x {xray.image.shape[1]} pixels, "
                "none below 0 and some above."
            )


def checked_xrays(xrays) -> list[XRay]:
    """Raises RegistrationError for none, transmitted intensities, or an image without contrast."""
    xrays = [xrays] if isinstance(xrays, XRay) else list(xrays)
    if not xrays:
        raise RegistrationError("There is no X-ray to register to.")
    for number, xray in enumerate(xrays, start=1):
        if xray.meta.get("intensity") == "transmission":
            raise RegistrationError(
                f"X-ray {number} holds transmitted intensities (air bright); convert it to line integrals first: "
                "DiffDRRCore.imaging.preprocessing.preprocess(xray)."
            )
        if float(xray.image.max()) == float(xray.image.min()):
            raise RegistrationError(f"X-ray {number} has no contrast: all its pixels are equal.")
    return xrays


def check_views(xrays: list[XRay], starts: list[Pose], options: Options) -> None:
    """Raises RegistrationError for a view given twice, and for views whose places contradict each other."""
    free = options.free_views or [None] * len(starts)
    for (a, one), (b, other) in itertools.combinations(enumerate(xrays), 2):
        if one is other or (one.image.shape == other.image.shape and torch.equal(one.image, other.image)):
            raise RegistrationError(f"X-rays {a + 1} and {b + 1} are the same image: give each view once.")
        fixed = free[a] is None and free[b] is None
        if fixed and torch.allclose(starts[a].matrix, starts[b].matrix, atol=_SAME):
            raise RegistrationError(
                f"X-rays {a + 1} and {b + 1} are different images from the same pose, so one of the poses is wrong: "
                "mend it, or let that C-arm move on its own (free_views)."
            )
