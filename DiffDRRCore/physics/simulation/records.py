"""What a simulated image says of itself: every parameter, as plain values that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.physics.detector import Detector
from DiffDRRCore.physics.materials import Material, material
from DiffDRRCore.physics.simulation.origin import Origin


def record(simulator: Origin, camera: Camera, seed: int, frame: int, frames: int) -> dict[str, Any]:
    """The meta of an X-ray."""
    return {
        "intensity": "transmission",
        "i0": simulator.i0(camera),
        "offset": float(simulator.detector.offset) if simulator.exposure is not None else 0.0,
        "unit": "relative" if simulator.exposure is None else "counts",
        "seed": int(seed),
        "simulation": {**simulator.parameters, "frame": frame, "frames": frames},
    }


def parameters(simulator: Origin) -> dict[str, Any]:
    """Those of a simulator. What scatter and heel effect leave as None, they have from the spectrum."""
    spectrum = simulator.spectrum
    return {
        "spectrum": {
            "kvp": spectrum.kvp,
            "filtration": _plain(spectrum.filtration),
            "anode_angle": spectrum.anode_angle,
            "mean_energy_kev": spectrum.mean_energy,
            "energies_kev": simulator.beam.energies.tolist(),
            "photons": simulator.beam.photons.tolist(),
        },
        "detector": _plain(simulator.detector),
        "exposure": _plain(simulator.exposure),
        "effects": _plain(simulator.effects),
        "decomposition": simulator.decomposition,
        "materials": {str(label): _plain(one) for label, one in simulator.materials.items()},
        "objects": [_object(one) for one in simulator.objects],
        "landmarks": {name: list(point) for name, point in simulator.landmarks.items()},
    }


def scintillator(detector: Detector) -> tuple[Material, ...]:
    """The material of the detector's scintillator, where its name says it."""
    try:
        return (material(detector.scintillator),)
    except PhysicsError:
        return ()


def _object(one) -> dict[str, Any]:
    pose = None if one.pose is None else one.pose.matrix.detach().reshape(4, 4).tolist()
    return {
        "name": one.name,
        "solid": repr(one.solid),
        "material": _plain(one.material),
        "pose": pose,
        "priority": int(one.priority),
        "enabled": bool(one.enabled),
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    if isinstance(value, Pose):
        return value.matrix.detach().tolist()
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {one.name if isinstance(one, Material) else str(one): _plain(item) for one, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return "function" if callable(value) else str(value)
