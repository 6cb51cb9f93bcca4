"""X-ray cross-sections of the elements 1 to 92, from 5 to 160 keV.

The table is made by Resources/make_physics_tables.py with xraydb from W. T. Elam, B. D. Ravel and J. R. Sieber, "A new
atomic database for X-ray spectroscopic calculations", Radiation Physics and Chemistry 63, 2002. Between its energies
the logarithms are interpolated linearly; at absorption edges there are two values, so edges stay sharp.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np

from DiffDRRCore.errors import PhysicsError

TABLES = Path(__file__).parent / "tables"
LOWEST, HIGHEST = 5.0, 160.0  # keV
PARTS = ("photo", "coherent", "incoherent")


@cache
def _table() -> dict[str, np.ndarray]:
    with np.load(TABLES / "elements.npz", allow_pickle=False) as file:
        return dict(file)


@cache
def atomic_number(symbol: str) -> int:
    """1 to 92, by an element's symbol. Raises PhysicsError where there is none."""
    found = np.flatnonzero(_table()["symbols"] == symbol)
    if not len(found):
        raise PhysicsError(f"There is no element {symbol!r} among hydrogen (H) to uranium (U).")
    return int(found[0]) + 1


def mass_fractions(formula: str) -> dict[str, float]:
    """Fractions of the mass by element of a formula without brackets, such as "CsI" or "Al2O3"."""
    pieces = re.findall(r"([A-Z][a-z]?)(\d+(?:\.\d+)?)?", formula)
    if not pieces or "".join(symbol + count for symbol, count in pieces) != formula:
        raise PhysicsError(f"{formula!r} is not a formula of element symbols and numbers, such as 'Al2O3'.")
    masses: dict[str, float] = {}
    for symbol, count in pieces:
        weight = float(_table()["atomic_weight"][atomic_number(symbol) - 1])
        masses[symbol] = masses.get(symbol, 0.0) + weight * float(count or 1)
    total = sum(masses.values())
    if not total > 0:
        raise PhysicsError(f"The formula {formula!r} has no atoms in it.")
    return {symbol: mass / total for symbol, mass in masses.items()}


def cross_section(symbol: str, kev: np.ndarray, part: str) -> np.ndarray:
    """cm2/g at photon energies in keV: photoelectric absorption, "coherent" or "incoherent" scattering.

    At an edge itself the value is the one above it. The part "recoil" is a number: the mean share of its energy that
    a photon gives to the electron in incoherent scattering.
    """
    energy, values = _nodes(symbol, part)
    return np.exp(np.interp(np.log(kev), energy, values))


def energy_transfer(symbol: str, kev: np.ndarray) -> np.ndarray:
    """Mass energy-transfer coefficient in cm2/g: photon energy given to electrons, per photon energy and g/cm2.

    Photoelectric absorption less the fluorescence that follows a vacancy in the K or an L shell, and incoherent
    scattering times the mean energy share of the recoil electron (Klein and Nishina, with the electrons' binding).
    Vacancies that fluorescence or Auger electrons leave in outer shells are not followed.
    """
    kept = 1 - _fluorescence(symbol, kev) / kev
    recoil = cross_section(symbol, kev, "incoherent") * cross_section(symbol, kev, "recoil")
    return cross_section(symbol, kev, "photo") * kept + recoil


def edges(symbol: str) -> list[float]:
    """The absorption edges of an element from 5 to 160 keV, ascending, in keV."""
    return [edge for edge in _edge_rows(symbol)["edge_energy"].tolist() if LOWEST < edge < HIGHEST]


@cache
def _nodes(symbol: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Log keV, ascending and double at edges, and log cm2/g."""
    energy, values = _table()["energy"], _table()[part][atomic_number(symbol) - 1].astype(float)
    if part == "photo":
        rows = _edge_rows(symbol)
        inside = (rows["edge_energy"] > LOWEST) & (rows["edge_energy"] < HIGHEST)
        edge = rows["edge_energy"][inside]
        at = np.repeat(np.searchsorted(energy, edge), 2)
        pairs = np.stack([rows["edge_below"], rows["edge_above"]], axis=1)[inside]
        energy, values = np.insert(energy, at, np.repeat(edge, 2)), np.insert(values, at, pairs.ravel())
    return np.log(energy), np.log(values)


def _edge_rows(symbol: str) -> dict[str, np.ndarray]:
    chosen = _table()["edge_element"] == atomic_number(symbol)
    return {name: values[chosen] for name, values in _table().items() if name.startswith("edge_")}


def _fluorescence(symbol: str, kev: np.ndarray) -> np.ndarray:
    """Mean keV that leave as fluorescence per photoelectric absorption.

    Of the absorptions that may take any of several shells, the innermost takes the share (1 - 1 / jump).
    """
    mean, outer = np.zeros_like(kev), np.ones_like(kev)
    rows = _edge_rows(symbol)
    shells = np.stack([rows[f"edge_{name}"] for name in ("energy", "below", "above", "fluorescence")], axis=1)
    for edge, below, above, released in shells[np.argsort(-shells[:, 0])]:
        share = np.where(kev >= edge, outer * (1 - below / above), 0.0)
        mean, outer = mean + share * released, outer - share
    return mean
