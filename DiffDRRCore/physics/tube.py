"""What leaves the tungsten anode of an X-ray tube, before any filter.

The table is made by Resources/make_physics_tables.py with SpekPy (G. Poludniowski, A. Omar, R. Bujila and P. Andreo,
"SpekPy v2.0: a software toolkit for modeling x-ray tube spectra", Medical Physics 48, 2021; model "casim") for tube
voltages of 40 to 150 kV and for take-off angles, the angles between the anode's surface and the photon. In that model
the direction counts by this angle alone, so the one table has the heel effect too. Between its nodes the logarithms are
interpolated by cubic polynomials.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.elements import TABLES

LOWEST_KVP, HIGHEST_KVP = 40.0, 150.0
LOWEST_ANGLE, HIGHEST_ANGLE = 1.0, 36.0  # degrees of take-off


@cache
def _table() -> dict[str, np.ndarray]:
    with np.load(TABLES / "tungsten.npz", allow_pickle=False) as file:
        return dict(file)


def emission(kvp: float, take_off: float) -> tuple[np.ndarray, np.ndarray]:
    """Photon energies [E] in keV and photons [E] per bin, mAs and cm2 at 1 m from the focal spot, in vacuum.

    Bins are 0.5 keV wide from 5 keV; the last ends at the kVp, and its energy is its photons' mean.

    Args:
        kvp: peak tube voltage in kV.
        take_off: degrees; in the central ray that is the anode angle.

    Raises PhysicsError outside 40 to 150 kVp and 1 to 36 degrees.
    """
    _check(kvp, take_off)
    table = _table()
    edges = np.append(table["edges"][table["edges"] < kvp - 1e-9], kvp)
    width, count = np.diff(edges), len(edges) - 1
    # Bremsstrahlung falls to nothing as kVp - E; over the last bin the mean of that lies at a third of it.
    energies = edges[:-1] + width / 2
    photons = np.exp(_at(kvp, take_off, table["log_bremsstrahlung"][..., :count])) * (kvp - energies) * width
    energies[-1] = edges[-2] + width[-1] / 3
    bins = table["line_bins"]
    present = bins < count
    lines = np.exp(_at(kvp, take_off, table["log_lines"])) * _growth(kvp, table["edges"][bins]) * np.diff(edges[:2])
    np.add.at(photons, bins[present], lines[present])
    return energies, photons


def _growth(kvp: float, line: np.ndarray) -> np.ndarray:
    """The factor by which the table's K lines are divided: they appear at the K edge."""
    edge, lowest_line, exponent = _table()["k_series"]
    return np.where(line > lowest_line, max(kvp - edge, 0.0) ** exponent, 1.0)


def _at(kvp: float, take_off: float, values: np.ndarray) -> np.ndarray:
    """Values [kVp, angle, ...] of a table at one kVp and angle."""
    table = _table()
    over_kvp, first = _cubic(table["kvp"], kvp)
    over_angle, start = _cubic(np.log(table["take_off"]), np.log(take_off))
    part = values[first : first + 4, start : start + 4].astype(float)
    return np.einsum("i,j,ij...->...", over_kvp, over_angle, part)


def _cubic(nodes: np.ndarray, at: float) -> tuple[np.ndarray, int]:
    """Lagrange's weights of the four nodes about `at`, and the index of the first of them."""
    first = int(np.clip(np.searchsorted(nodes, at) - 2, 0, len(nodes) - 4))
    near = nodes[first : first + 4]
    weights = [np.prod([(at - b) / (a - b) for b in near if b != a]) for a in near]
    return np.asarray(weights), first


def _check(kvp: float, take_off: float) -> None:
    if not LOWEST_KVP <= kvp <= HIGHEST_KVP:
        hint = ""
        if LOWEST_KVP <= kvp * 1000 <= HIGHEST_KVP:
            hint = " (megavolts? multiply by 1000)"
        elif LOWEST_KVP <= kvp / 1000 <= HIGHEST_KVP:
            hint = " (volts? divide by 1000)"
        raise PhysicsError(f"The tube voltage must be {LOWEST_KVP:g} to {HIGHEST_KVP:g} kVp, not {kvp:g}{hint}.")
    if not LOWEST_ANGLE <= take_off <= HIGHEST_ANGLE:
        raise PhysicsError(
            f"The anode angle must be {LOWEST_ANGLE:g} to {HIGHEST_ANGLE:g} degrees, not {take_off:g} degrees."
        )
