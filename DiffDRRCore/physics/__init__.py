"""Physics of X-ray images: spectra, materials, transmission."""

from DiffDRRCore.physics.materials import Material, material, material_names
from DiffDRRCore.physics.spectra import Spectrum, heel_factor
from DiffDRRCore.physics.transmission import signal_weights, transmission

__all__ = ["Material", "Spectrum", "heel_factor", "material", "material_names", "signal_weights", "transmission"]
