"""What a registration of several X-rays does with each: kept on the C-arm, so that scenes save it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from DiffDRRCore.registration import FreeCamera, Limits
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError

CAMERA_NUMBERS = ("source_to_detector", "principal_point", "radial")
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
        most_degrees, most_mm: the farthest that it may go about and along each axis of its camera; 0 is no bound.
        source_to_detector, principal_point, radial: mm, standard deviations of what of its camera is to be found
            (`DiffDRRCore.registration.FreeCamera`); 0 is known.
    """

    use: bool = False
    weight: float = 1.0
    free: bool = False
    degrees: float = 5.0
    mm: float = 20.0
    most_degrees: float = 0.0
    most_mm: float = 0.0
    source_to_detector: float = 0.0
    principal_point: float = 0.0
    radial: float = 0.0

    def __post_init__(self):
        if not self.weight > 0 or not self.weight < float("inf"):
            raise SceneError(f"The weight of an X-ray is a number above 0, not {self.weight:g}.")
        if not (0 <= self.degrees < float("inf") and 0 <= self.mm < float("inf")):
            raise SceneError(f"A prior is 0 or more degrees and mm, not {self.degrees:g} and {self.mm:g}.")
        if not (0 <= self.most_degrees < float("inf") and 0 <= self.most_mm < float("inf")):
            raise SceneError(f"A bound is 0 or more degrees and mm, not {self.most_degrees:g} and {self.most_mm:g}.")
        for name in CAMERA_NUMBERS:
            if not 0 <= getattr(self, name) < float("inf"):
                raise SceneError(f"How unsure a camera's number is, is 0 or more mm, not {getattr(self, name):g}.")

    @property
    def limits(self) -> Limits | None:
        """What the engine is told; None for a C-arm that is fixed to the others."""
        if not self.free:
            return None
        bounds = (self.most_degrees or None,) * 3 + (self.most_mm or None,) * 3
        deviations = (self.degrees or None,) * 3 + (self.mm or None,) * 3
        return Limits(bounds if any(bounds) else None, deviations)

    @property
    def free_camera(self) -> FreeCamera | None:
        """What of its camera the engine is to find; None where all is known."""
        numbers = {name: getattr(self, name) or None for name in CAMERA_NUMBERS}
        return FreeCamera(**numbers) if any(numbers.values()) else None


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


def camera_options(carms: Iterable[CArmNode]) -> dict[str, Any]:
    """`free_cameras` of `DiffDRRCore.registration.Options`; nothing where all cameras are known."""
    cameras = [view_settings(carm).free_camera for carm in carms]
    return {"free_cameras": cameras} if any(camera is not None for camera in cameras) else {}
