"""What a simulated image asks of the simulator that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from DiffDRRCore.geometry import Camera
from DiffDRRCore.physics.detector import Detector
from DiffDRRCore.physics.materials import Material
from DiffDRRCore.physics.simulation.effects import Effects, Exposure
from DiffDRRCore.physics.simulation.objects import BeamObject
from DiffDRRCore.physics.simulation.truth import LabelTruth
from DiffDRRCore.physics.spectra import Spectrum


class Origin(Protocol):
    """See `Simulator`, whose attributes and methods these are; `beam` is its spectrum in few energies."""

    spectrum: Spectrum
    beam: Spectrum
    detector: Detector
    exposure: Exposure | None
    effects: Effects
    decomposition: str
    materials: Mapping[int | str, Material | str]
    objects: tuple[BeamObject, ...]
    landmarks: Mapping[str, tuple[float, ...]]
    parameters: Mapping[str, Any]

    def i0(self, camera: Camera) -> float:
        """The open field in the image's units."""

    def field(self, camera: Camera) -> Tensor | None:
        """The open field [H, W] over that in the principal ray."""

    def truth(self) -> LabelTruth:
        """What makes masks and depths of labels."""
