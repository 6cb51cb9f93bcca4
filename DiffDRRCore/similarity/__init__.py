"""Image similarity measures: `measure(moving [B,1,H,W], fixed [B or 1,1,H,W], weight=None) -> [B]`, larger is better.

`SIMILARITIES` names them; `similarity` looks one up. Those that are `LeastSquaresSimilarity` also give the feature
vectors that a Gauss-Newton optimiser works on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.similarity.base import LeastSquaresSimilarity, Similarity
from DiffDRRCore.similarity.correlation import LNCC, ZNCC, MultiscaleNCC
from DiffDRRCore.similarity.differences import SSD
from DiffDRRCore.similarity.gradients import GradientCorrelation, GradientNCC, GradientOrientation
from DiffDRRCore.similarity.information import MutualInformation

__all__ = [
    "LNCC",
    "SIMILARITIES",
    "SSD",
    "ZNCC",
    "GradientCorrelation",
    "GradientNCC",
    "GradientOrientation",
    "LeastSquaresSimilarity",
    "MultiscaleNCC",
    "MutualInformation",
    "Similarity",
    "similarity",
]

SIMILARITIES: dict[str, type[Similarity]] = {
    "zncc": ZNCC,
    "lncc": LNCC,
    "multiscale_ncc": MultiscaleNCC,
    "gradient_ncc": GradientNCC,
    "gradient_correlation": GradientCorrelation,
    "gradient_orientation": GradientOrientation,
    "mutual_information": MutualInformation,
    "ssd": SSD,
}


def similarity(measure: str | Callable, **parameters) -> Callable:
    """The measure of that name, with `parameters` for its class; a callable is handed back as it is.

    Raises DiffDRRError for an unknown name, for parameters that the measure does not have, and for what is neither.
    """
    if callable(measure) and not parameters:
        return measure
    if not isinstance(measure, str) or measure not in SIMILARITIES:
        raise DiffDRRError(f"Unknown similarity measure {measure!r}: choose one of {', '.join(SIMILARITIES)}.")
    known = list(inspect.signature(SIMILARITIES[measure]).parameters)
    for name in parameters:
        if name not in known:
            has = f"there are: {', '.join(known)}" if known else "it takes none"
            raise DiffDRRError(f"The similarity measure '{measure}' has no option '{name}'; {has}.")
    try:
        return SIMILARITIES[measure](**parameters)
    except TypeError as error:
        raise DiffDRRError(f"The similarity measure {measure!r} cannot take {parameters}: {error}.") from error
