"""What a registration of several X-rays does with each: kept on the C-arm, so that scenes save it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from DiffDRRCore.registration import Limits
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError

_KEY = "DiffDRR.View"


@dataclass(frozen=True)
class ViewSettings:
    """Of one X-ray.

    Attributes:
        use: whether it is registered together with the C-arm in use.
        weight: how much it counts against the others, above 0.
        free: whether its C-arm is not calibrated to the others, so that it moves on its own.
        degrees, mm: how far a free C-arm may be from where it stands to the others: standard deviations of a prior; 0
            is none.
    """

    use: bool = False
    weight: float = 1.0
    free: bool = False
    degrees: float = 5.0
    mm: float = 20.0

    def __post_init__(self):
        if not self.weight > 0 or not self.weight < float("inf"):
            raise SceneError(f"The weight of an X-ray is a number above 0, not {self.weight:g}.")
        if not (0 <= self.degrees < float("inf") and 0 <= self.mm < float("inf")):
            raise SceneError(f"A prior is 0 or more degrees and mm, not {self.degrees:g} and {self.mm:g}.")

    @property
    def limits(self) -> Limits | None:
        """What the engine is told; None for a C-arm that is fixed to the others."""
        if not self.free:
            return None
        return Limits(deviations=(self.degrees or None,) * 3 + (self.mm or None,) * 3)


def view_settings(carm: CArmNode) -> ViewSettings:
    """What was set, else the defaults."""
    known = nodes.read_json(carm.node, _KEY, {})
    return ViewSettings(**{name: known[name] for name in asdict(ViewSettings()) if name in known})


def set_view(carm: CArmNode, **changes: Any) -> None:
    """Change fields of `ViewSettings`. Raises SceneError for values that make no sense; nothing is changed then."""
    unknown = set(changes) - set(asdict(ViewSettings()))
    if unknown:
        raise SceneError(f"An X-ray has no setting '{min(unknown)}'; there are {', '.join(asdict(ViewSettings()))}.")
    settings = replace(view_settings(carm), **changes)
    nodes.write_json(carm.node, _KEY, None if settings == ViewSettings() else asdict(settings))


def used_carms(carm: CArmNode) -> list[CArmNode]:
    """The C-arm in use, and the others that are registered together with it and have an X-ray."""
    others = [one for one in CArmNode.all(carm.scene) if one != carm and one.referred("xray") is not None]
    return [carm, *(one for one in others if view_settings(one).use)]


def engine_options(carms: Iterable[CArmNode]) -> dict[str, Any]:
    """`view_weights` and `free_views` of `DiffDRRCore.registration.Options`; a single view has neither."""
    settings = [view_settings(carm) for carm in carms]
    if len(settings) < 2:
        return {}
    options: dict[str, Any] = {}
    if any(one.weight != settings[0].weight for one in settings):
        options["view_weights"] = [one.weight for one in settings]
    if any(one.free for one in settings):
        options["free_views"] = [one.limits for one in settings]
    return options
