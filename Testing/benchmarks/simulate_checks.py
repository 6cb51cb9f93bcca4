"""The simulator's numbers beside those of standards, other programs and publications."""

from __future__ import annotations

import torch

from DiffDRRCore import Camera
from DiffDRRCore.physics import Grid, Scatter, Spectrum, material, pixel_solid_angle, transmission
from DiffDRRCore.physics.decomposition import thresholds, water_and_bone
from Testing.benchmarks.report import table

# First half-value layers (mm Al) of IEC 61267's RQR qualities, with the total filtration (mm Al) that reaches them by
# SpekPy 2.5.4 (tungsten, 12 degrees): kVp, filtration, HVL.
_RQR = ((50, 2.58, 1.78), (60, 2.74, 2.19), (70, 2.85, 2.58), (80, 2.97, 3.01), (90, 3.10, 3.48), (100, 3.23, 3.97))
_RQR += ((120, 3.53, 5.00), (150, 4.06, 6.57))
# kVp, mm Al, and of SpekPy 2.5.4 (12 degrees) and of DeepDRR's table (60KV_AL35, 90KV_AL40, 120KV_AL43; computed from
# it with NIST's attenuation): mean energy in keV, two half-value layers in mm Al.
_BEAMS = (
    (60, 3.5, (37.46, 2.47, 3.27), (37.53, 2.53, 3.31)),
    (90, 4.0, (48.74, 3.93, 5.56), (49.25, 4.15, 5.74)),
    (120, 4.3, (57.50, 5.42, 7.66), (58.16, 5.75, 7.88)),
)
# Hubbell and Seltzer, NISTIR 5632: material, keV, mu/rho in cm2/g.
_NIST = (("water", 30, 0.3756), ("water", 60, 0.2059), ("water", 100, 0.1707), ("cortical bone", 60, 0.3148))
_NIST += (("Al", 60, 0.2778), ("Ti", 60, 0.7661), ("Fe", 60, 1.205), ("I", 40, 22.10), ("CsI", 60, 7.921))
# The share of the energy of 90 kVp, 4 mm Al that comes through, with SpekPy's spectrum and xraylib's cross sections.
_SLABS = (("water", 10, 0.10297), ("water", 30, 0.0015818), ("cortical bone", 5, 0.037788))
_SLABS += (("aluminium", 2, 0.16159), ("titanium", 1, 0.034781))
# The same spectrum behind water of so many cm: variance times N over mean squared.
_VARIANCE = ((0, 1.094), (10, 1.058), (20, 1.044), (30, 1.036))

_DEEPDRR = "DeepDRR 1.2.2 (arXiv 1803.08606), its tables and formulas"
_ALTUNBAS = "Altunbas 2016, 10.1118/1.4957763: measured, linear accelerator's cone-beam CT"

# program or publication, what was compared, their number, ours
_IMAGES = (
    (
        "gVirtualXray, 10.1016/j.cmpb.2023.107500",
        "image of an anthropomorphic phantom against Monte Carlo: mean absolute percentage error, ZNCC, SSIM",
        "3.12 %, 99.96 %, 0.99",
        "not done: attenuation is checked by the numbers above and by closed forms in the tests",
    ),
    (
        "gVirtualXray, the same",
        "chest phantom against a real radiograph, registered",
        "similar (no number in the abstract)",
        "not done; a plain DRR beside the one real image with a known geometry: the skull phantom's scout, above",
    ),
    (
        "DeepDRR, PMC7297499; SyntheX, 10.1038/s42256-023-00629-1",
        "networks trained on simulated, tested on real images of cadavers",
        "better than with plain DRRs; like with real ones",
        "not done",
    ),
    (
        "DeepDRR 1.2.2, its tests",
        "against values known beforehand",
        "none: images against its own earlier ones",
        "13 closed forms, NIST, IEC 61267, SpekPy, xraylib",
    ),
)


def lines() -> list[str]:
    """A section of RESULTS.md."""
    rows = [*_beam_rows(), *_attenuation_rows(), *_tissue_rows(), *_noise_rows(), *_geometry_rows(), *_scatter_rows()]
    return [
        "## Beside standards, other programs and publications",
        "",
        "Ours are computed by this benchmark; theirs are what the source states. DeepDRR itself needs an NVIDIA GPU",
        "and was not run: its numbers follow from the tables and formulas that it ships. SpekPy's and xraylib's are",
        "their own results (versions 2.5.4 and 4.3.0); our tube is made from SpekPy's tables, so beside it only the",
        "filters' attenuation is new. IEC 61267 fixes the half-value layers; the filtration is that by which SpekPy",
        "meets them.",
        "",
        *table(["what", "ours", "theirs", "source"], rows),
        "What others published about whole images, and what there is of ours:",
        "",
        *table(["program, publication", "compared", "published", "ours"], [list(row) for row in _IMAGES]),
    ]


def _beam_rows() -> list[list[str]]:
    rows = []
    for kvp, filtration, layer in _RQR:
        ours = Spectrum.tungsten(kvp, {"Al": filtration}).half_value_layer()
        rows.append([f"first half-value layer at {kvp} kVp, mm Al", f"{ours:.3f}", f"{layer:.2f}", "IEC 61267 (RQR)"])
    for kvp, filtration, *others in _BEAMS:
        beam = Spectrum.tungsten(kvp, {"Al": filtration})
        ours = (float(beam.mean_energy), float(beam.half_value_layer(1)), float(beam.half_value_layer(2)))
        for source, theirs in zip(("SpekPy 2.5.4", _DEEPDRR), others, strict=True):
            what = f"{kvp} kVp, {filtration:g} mm Al: mean energy, keV; half-value layers, mm Al"
            rows.append([what, *("; ".join(f"{x:.2f}" for x in numbers) for numbers in (ours, theirs)), source])
    return rows


def _attenuation_rows() -> list[list[str]]:
    rows = []
    for name, kev, theirs in _NIST:
        ours = material(name).mass_attenuation(kev)
        rows.append([f"mu/rho of {name} at {kev} keV, cm2/g", _digits(ours), _digits(theirs), "NIST (NISTIR 5632)"])
    beam = Spectrum.tungsten(90, {"Al": 4.0})
    for name, cm, theirs in _SLABS:
        areal = torch.tensor([[cm * material(name).density]], dtype=torch.float64)
        ours = transmission(areal, [name], beam)
        what = f"energy behind {cm} cm of {name}, over the open beam (90 kVp, 4 mm Al)"
        rows.append([what, _digits(ours), _digits(theirs), "SpekPy, xraylib"])
    return rows


def _tissue_rows() -> list[list[str]]:
    """HU are defined by the attenuation; 70 keV is about the mean energy of a CT."""
    hu = torch.tensor([0.0, 1000.0, 349.9, 350.1], dtype=torch.float64)
    water = float(material("water").linear_attenuation(70.0))
    ours, deepdrr = (
        sum(density * float(one.mass_attenuation(70.0)) / 10 for one, density in found.items()) / water
        for found in (water_and_bone(hu), thresholds(hu))
    )
    rows = []
    for number, value in enumerate((0, 1000)):
        what = f"attenuation of {value} HU at 70 keV over water's (by definition {1 + value / 1000:g})"
        rows.append([what, f"{ours[number]:.3f}", f"{deepdrr[number]:.3f}", _DEEPDRR])
    jumps = (f"{100 * float(one[3] / one[2] - 1):.1f} %" for one in (ours, deepdrr))
    return [*rows, ["jump of the attenuation at 350 HU", *jumps, _DEEPDRR]]


def _noise_rows() -> list[list[str]]:
    beam, water = Spectrum.tungsten(90, {"Al": 4.0}), material("water")
    rows = []
    for depth, theirs in _VARIANCE:
        areal = torch.tensor([[float(depth)]], dtype=torch.float64)
        energies = beam.energies
        moments = [float(_moment(areal, water, beam, energies**power)) for power in (0, 1, 2)]
        ours = moments[2] * moments[0] / moments[1] ** 2
        what = f"variance x N / mean^2 behind {depth} cm of water"
        rows.append([what, f"{ours:.3f}", f"{theirs:.3f}", "SpekPy, xraylib; Swank, J. Appl. Phys. 44 (1973) 4199"])
        if depth == 0:
            rows.append([what, f"{ours:.3f}", "0.994", f"{_DEEPDRR}: Poisson, then a 3 x 3 kernel"])
    return rows


def _moment(areal, water, beam: Spectrum, weights) -> torch.Tensor:
    """sum of N(E) w(E) behind the water, in photons of the open beam."""
    passed = transmission(areal, [water], beam, response=weights)
    return passed[0] * (beam.photons * weights).sum()


def _geometry_rows() -> list[list[str]]:
    angle = pixel_solid_angle(Camera(1536, 1536, (0.194, 0.194), 1020.0))
    corner = float(angle[0, 0] / angle.max())
    return [["solid angle of a corner pixel, 298 mm at 1020 mm", f"{corner:.3f}", "0.939", "cos^3"]]


def _scatter_rows() -> list[list[str]]:
    """The published case: 300 mm of acrylic (333 mm of water), without and with two grids."""
    case = "scatter to primary behind 30 cm of acrylic"
    unsure = f"{_ALTUNBAS}; field and gap not stated: ours 400 x 300 mm,"
    rows = [[f"{case}, no grid", f"{_ratio(200.0, None):.2f}", "4.51", f"{unsure} 200 mm"]]
    for what, theirs, grid in (
        ("grid 10 (primary 0.706, scatter 0.21)", "1.28", Grid(0.706, 0.21)),
        ("two-dimensional grid (0.851, 0.058)", "0.28", Grid(0.851, 0.058)),
    ):
        rows.append([f"{case}, {what}", f"{_ratio(200.0, grid):.2f}", theirs, f"{unsure} 200 mm"])
    gap = "350 mm, which such a machine has with the acrylic at its isocentre"
    return [*rows, [f"{case}, no grid", f"{_ratio(350.0, None):.2f}", "4.51", f"{unsure} {gap}"]]


def _ratio(gap: float, grid: Grid | None) -> float:
    """In the centre of 400 x 300 mm at 125 kVp."""
    primary = torch.ones(1, 1, 300, 400)
    total = Scatter(125, air_gap=gap, grid=grid)(primary, torch.full_like(primary, 333.0), (1.0, 1.0))
    return float((total / (1.0 if grid is None else grid.primary) - 1)[0, 0, 150, 200])


def _digits(value) -> str:
    return f"{float(value):.4g}"
