"""Physics of X-ray images: spectra, materials, objects in the beam, detectors, and the simulator of all of it.

    simulator = Simulator(volume, Spectrum.tungsten(90, {"Al": 4}), exposure=Exposure(kerma=2.0))
    image = simulator(camera, pose, seed=1)

The names below load on first use.
"""

from __future__ import annotations

from DiffDRRCore.lazy import lazy

# Now, lest the module of the same name be found in its place
from DiffDRRCore.physics.transmission import transmission as transmission

_HOMES = {
    "materials": ("Material", "material", "material_names"),
    "spectra": ("Spectrum", "heel_factor"),
    "transmission": ("signal_weights",),
    "solids.mesh": ("Mesh",),
    "solids.files": ("read_mesh",),
    "solids.rays": ("chord_lengths",),
    "solids.crossings": ("Crossings",),
    "simulation.objects": ("BeamObject",),
    "decomposition": ("Composition", "decompose", "decompose_together"),
    "simulation.projection": ("Projection", "Projector"),
    "detector": ("Detector", "heel_map", "photons_from_kerma", "pixel_solid_angle"),
    "noise": ("compound_poisson", "noisy", "seeded"),
    "blur": ("Blur", "focal_spot_mtf", "gaussian_mtf", "lagged", "lorentzian_mtf", "measured_mtf"),
    "scatter": ("Grid", "Scatter"),
    "collimator": ("Collimator",),
    "devices": ("Device", "device", "orbit", "sweep"),
    "simulation.effects": ("Effects", "Exposure", "Heel", "Lag"),
    "simulation.image": ("SimulatedImage",),
    "simulation.simulator": ("Simulator", "simulate_sequence"),
    "simulation.setup": ("Setup",),
    "simulation.settings": ("Settings",),
    "simulation.ranges": ("Ranges",),
    "simulation.training_set": ("generate",),
    "display": ("Display",),
}

__all__, __getattr__, __dir__ = lazy(__name__, _HOMES)
__all__ += ["transmission"]
