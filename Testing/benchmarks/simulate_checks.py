"""The simulator's numbers beside those of standards, other programs and publications."""

from __future__ import annotations

import torch

from DiffDRRCore import Camera
from DiffDRRCore.physics import Grid, Scatter, Spectrum, material, pixel_solid_angle, transmission
from Testing.benchmarks.report import table

# First half-value layers (mm Al) of IEC 61267's RQR qualities, with the total filtration (mm Al) that reaches them by
# SpekPy 2.5.4 (tungsten, 12 degrees): kVp, filtration, HVL.
_RQR = ((50, 2.58, 1.78), (60, 2.74, 2.19), (70, 2.85, 2.58), (80, 2.97, 3.01), (90, 3.10, 3.48), (100, 3.23, 3.97))
_RQR += ((120, 3.53, 5.00), (150, 4.06, 6.57))
# SpekPy 2.5.4, 90 kVp, 12 degrees, 4 mm Al: mean energy in keV, two half-value layers in mm Al.
_SPEKPY = (48.74, 3.93, 5.56)
# The same spectrum behind water of so many cm, with the cross sections of xraylib: variance times N over mean squared.
_VARIANCE = ((0, 1.094), (10, 1.058), (20, 1.044), (30, 1.036))


def lines() -> list[str]:
    """A section of RESULTS.md."""
    rows = [*_beam_rows(), *_noise_rows(), *_geometry_rows(), *_scatter_rows()]
    return [
        "## Beside standards, other programs and publications",
        "",
        *table(["what", "ours", "theirs", "source"], rows),
    ]


def _beam_rows() -> list[list[str]]:
    rows = []
    for kvp, filtration, layer in _RQR:
        ours = Spectrum.tungsten(kvp, {"Al": filtration}).half_value_layer()
        rows.append([f"first half-value layer at {kvp} kVp, mm Al", f"{ours:.3f}", f"{layer:.2f}", "IEC 61267 (RQR)"])
    beam = Spectrum.tungsten(90, {"Al": 4.0})
    ours = (float(beam.mean_energy), float(beam.half_value_layer(1)), float(beam.half_value_layer(2)))
    names = ("mean energy, keV", "first half-value layer, mm Al", "second half-value layer, mm Al")
    rows += [
        [f"90 kVp, 4 mm Al: {name}", f"{a:.2f}", f"{b:.2f}", "SpekPy 2.5.4"]
        for name, a, b in zip(names, ours, _SPEKPY, strict=True)
    ]
    return rows


def _noise_rows() -> list[list[str]]:
    beam, water = Spectrum.tungsten(90, {"Al": 4.0}), material("water")
    rows = []
    for depth, theirs in _VARIANCE:
        areal = torch.tensor([[float(depth)]], dtype=torch.float64)
        energies = beam.energies
        moments = [float(_moment(areal, water, beam, energies**power)) for power in (0, 1, 2)]
        ours = moments[2] * moments[0] / moments[1] ** 2
        rows.append(
            [f"variance x N / mean^2 behind {depth} cm of water", f"{ours:.3f}", f"{theirs:.3f}", "SpekPy, xraylib"]
        )
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
    """The published case: 30 cm of acrylic (333 mm of water), grid and none."""
    ratios = []
    for grid in (None, Grid()):
        primary = torch.full((1, 1, 64, 64), float(torch.exp(torch.tensor(-6.0))), dtype=torch.float64)
        thickness = torch.full_like(primary, 333.0)
        total = Scatter(125, air_gap=200.0, grid=grid)(primary, thickness, (6.0, 6.0))
        carried = primary * (1.0 if grid is None else grid.primary)
        ratios.append(float((total / carried - 1)[0, 0, 32, 32]))
    source = "Altunbas 2016, 10.1118/1.4957763 (field and gap not stated; ours: 384 mm, 200 mm)"
    return [
        ["scatter to primary behind 30 cm of acrylic, no grid", f"{ratios[0]:.2f}", "4.51", source],
        ["the same with a grid (Tp 0.706, Ts 0.21)", f"{ratios[1]:.2f}", "1.28", source],
    ]
