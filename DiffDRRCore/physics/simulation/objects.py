"""Things in the beam beside the CT: implants, wires, screws and tools, each a solid of one material in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real

from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.physics.materials import Material, material
from DiffDRRCore.physics.solids.crossings import Crossings, by_priority
from DiffDRRCore.physics.solids.mesh import Mesh
from DiffDRRCore.physics.solids.rays import Convex, crossings


@dataclass(frozen=True, eq=False)
class BeamObject:
    """A solid of one material.

    solid     a closed `Mesh`, or a convex solid known in closed form (`datasets.shapes`), in mm of its own coordinates
    material  a `Material` or its name
    pose      object_to_world (RAS mm); None where the solid is in world coordinates already
    priority  a whole number from 1: along each ray the higher replaces the lower, exactly; of equal ones the later in
              the list. Voxel volumes are below all objects.
    name      what outputs and messages call it; the mesh's name by default
    enabled   False: absent, and what it would have displaced is back

    Raises PhysicsError for an unknown material, another kind of solid, a pose that is a batch, and a priority below 1.
    """

    solid: Mesh | Convex
    material: Material | str
    pose: Pose | None = None
    priority: int = 1
    name: str = ""
    enabled: bool = True
    placed: Mesh | Convex = field(init=False, repr=False)

    def __post_init__(self):
        if not isinstance(self.solid, Mesh) and not callable(getattr(self.solid, "interval", None)):
            raise PhysicsError(f"An object in the beam is a Mesh or a shape with `interval`, not {self.solid!r}.")
        if not _is_whole(self.priority) or self.priority < 1:
            raise PhysicsError(f"The priority of an object is a whole number from 1, not {self.priority!r}.")
        object.__setattr__(self, "material", material(self.material))
        object.__setattr__(self, "name", self.name or getattr(self.solid, "name", type(self.solid).__name__.lower()))
        object.__setattr__(self, "placed", self._placed())

    def crossings(self, camera: Camera, pose: Pose) -> Crossings:
        """Where the rays of the pixels are inside it. Raises PhysicsError where the source is inside."""
        try:
            return crossings(self.placed, camera, pose)
        except PhysicsError as error:
            raise PhysicsError(f"The object '{self.name}': {error}") from error

    def _placed(self) -> Mesh | Convex:
        """The solid in world coordinates."""
        if self.pose is None:
            return self.solid
        if self.pose.matrix.numel() != 16:
            raise PhysicsError(f"The object '{self.name}' has one pose, not a batch of {len(self.pose)}.")
        return self.solid.transformed(self.pose) if isinstance(self.solid, Mesh) else _Moved(self.solid, self.pose)


def crossed(objects: Sequence[BeamObject], camera: Camera, pose: Pose) -> list[tuple[BeamObject, Crossings]]:
    """The enabled objects and what of each ray belongs to them, highest priority first; no two share any of it."""
    enabled = [one for one in objects if one.enabled]
    ordered = sorted(enabled, key=lambda one: one.priority)[::-1]  # of equal ones the later comes first
    return list(zip(ordered, by_priority([one.crossings(camera, pose) for one in ordered]), strict=True))


def unique_names(objects: Sequence[BeamObject]) -> None:
    """Raises PhysicsError where two objects have one name, by which their outputs could not be told apart."""
    names = [one.name for one in objects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PhysicsError(f"Two objects in the beam are called {twice[0]!r}: give each its own name.")


def _is_whole(number) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number) and number % 1 == 0


@dataclass(frozen=True, eq=False)
class _Moved:
    """A convex solid in another place: rays are taken to its own coordinates, where lengths are the same."""

    solid: Convex
    pose: Pose

    def corners(self) -> Tensor | None:
        found = getattr(self.solid, "corners", lambda: None)()
        return None if found is None else self.pose.detach().to(found.device).to(found.dtype).transform(found)

    def interval(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        to_object = self.pose.inverse()
        return self.solid.interval(_through(to_object, source), _through(to_object, target))


def _through(pose: Pose, points: Tensor) -> Tensor:
    flat = points.double().reshape(-1, 3)
    return pose.to(points.device).to(flat.dtype).transform(flat).reshape(points.shape)
