"""Make the tables of DiffDRRCore/physics/tables: X-ray tube spectra by SpekPy, cross-sections of elements by xraydb.

    pip install spekpy==2.5.4 xraydb==4.5.8
    python Resources/make_physics_tables.py [spectra] [elements]

The libraries are needed here alone. Each file records what made it, under "made_with". materials.json is kept by hand.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

TABLES = Path(__file__).parents[1] / "DiffDRRCore" / "physics" / "tables"

KVP = (40, 45, 50, 55, 60, 65, 70, 75, 80, 90, 100, 110, 120, 130, 140, 150)
TAKE_OFF = (1, 1.5, 2, 3, 4, 5, 6.5, 8, 10, 12, 14, 17, 20, 24, 29, 36)  # degrees
BIN = 0.5  # keV
LOWEST, HIGHEST = 5.0, 160.0  # keV
NODES = 96  # log-spaced energies from LOWEST to HIGHEST
TIP = 4.0  # keV
K_EDGE = 69.525  # keV, of tungsten
K_LINES = 55.0  # keV: lines above it are of the K series
K_EXPONENT = 1.6  # K lines grow about as (kVp - K_EDGE)^1.6
ELECTRON_REST, ELECTRON_RADIUS, AVOGADRO = 510.99895, 2.8179403e-13, 6.02214076e23  # keV, cm, 1/mol


def spectra() -> None:
    """tungsten.npz: photons per keV, mAs and cm2 at 1 m, of bremsstrahlung and of lines, no filter of any kind."""
    shape = (len(KVP), len(TAKE_OFF), round((max(KVP) - LOWEST) / BIN))
    brem, lines = np.full(shape, np.nan), np.zeros(shape)
    centers = LOWEST + BIN * (np.arange(shape[2]) + 0.5)
    for i, kvp in enumerate(KVP):
        count = round((kvp - LOWEST) / BIN)
        for j, angle in enumerate(TAKE_OFF):
            brem[i, j, :count], lines[i, j, :count] = _tube(kvp, angle, count)
        print(f"{kvp} kVp")
    # To first order bremsstrahlung falls to nothing as kVp - E. The rest is smooth, and so easy to interpolate.
    brem /= np.maximum(np.asarray(KVP)[:, None, None] - centers, BIN / 2)
    used = np.flatnonzero(lines.any(axis=(0, 1)))
    save(
        "tungsten.npz",
        f"SpekPy {version('spekpy')}, target W, physics casim, bin width {BIN} keV, no filtration",
        kvp=np.asarray(KVP, float),
        take_off=np.asarray(TAKE_OFF, float),
        edges=LOWEST + BIN * np.arange(shape[2] + 1),
        log_bremsstrahlung=_continued(brem).astype(np.float32),
        line_bins=used,
        k_series=np.asarray([K_EDGE, K_LINES, K_EXPONENT]),
        log_lines=np.log(_line_yield(lines[..., used], centers[used])).astype(np.float32),
    )


def _tube(kvp: float, angle: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Bremsstrahlung and lines in the `count` bins that end at the kVp, per keV."""
    import spekpy

    tube = spekpy.Spek(kvp=kvp, th=angle, targ="W", physics="casim", dk=BIN, z=100)
    brem = tube.get_spectrum(char=False)[1]
    return brem[-count:], tube.get_spectrum(brem=False, char=True)[1][-count:]


def _continued(brem: np.ndarray) -> np.ndarray:
    """Smooth tips, and above each kVp values that continue those of the higher ones, for interpolation between the two.

    Within TIP of the kVp the model's own tables are coarse; few photons are there.
    """
    log = np.log(brem)
    kvp = np.asarray(KVP, float)
    tip, before = round(TIP / BIN), round(2 * TIP / BIN)
    for i, last in enumerate(np.rint((kvp - LOWEST) / BIN).astype(int)):
        slope = (log[i, :, last - tip - 1] - log[i, :, last - before - 1]) / (before - tip)
        log[i, :, last - tip : last] = log[i, :, [last - tip - 1]].T + slope[:, None] * np.arange(1, tip + 1)
    log[-2] = np.where(np.isnan(log[-2]), log[-1], log[-2])
    for i in reversed(range(len(kvp) - 2)):
        slope = (log[i + 2] - log[i + 1]) / (kvp[i + 2] - kvp[i + 1])
        log[i] = np.where(np.isnan(log[i]), log[i + 1] + slope * (kvp[i] - kvp[i + 1]), log[i])
    return log


def _line_yield(lines: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Lines, those of the K series divided by their growth above the K edge and continued below it."""
    above = np.asarray(KVP, float)[:, None, None] - K_EDGE
    growth = np.where(centers > K_LINES, np.maximum(above, 1e-9) ** K_EXPONENT, 1.0)
    rate = np.where((above > 1) | (centers <= K_LINES), lines / growth, np.nan)
    first = np.flatnonzero(~np.isnan(rate[:, 0, -1]))[0]
    return np.where(np.isnan(rate), rate[first], rate)


def elements() -> None:
    """elements.npz: Elam's cross-sections in cm2/g of the elements 1 to 92."""
    import xraydb

    numbers = range(1, 93)
    energy = np.geomspace(LOWEST, HIGHEST, NODES)
    parts = {
        part: np.stack([_cross_section(z, energy, kind) for z in numbers]).astype(np.float32)
        for part, kind in (("photo", "photo"), ("coherent", "coh"), ("incoherent", "incoh"))
    }
    rows = np.asarray([row for z in numbers for row in _edges(z)])
    save(
        "elements.npz",
        f"xraydb {version('xraydb')}, tables of W. T. Elam, B. D. Ravel and J. R. Sieber (2002)",
        symbols=np.asarray([xraydb.atomic_symbol(z) for z in numbers]),
        atomic_weight=np.asarray([xraydb.atomic_mass(z) for z in numbers]),
        energy=energy,
        **parts,
        recoil=np.stack([_recoil_share(z, energy) for z in numbers]).astype(np.float32),
        edge_element=rows[:, 0].astype(np.int16),
        edge_energy=rows[:, 1],
        edge_below=rows[:, 2].astype(np.float32),
        edge_above=rows[:, 3].astype(np.float32),
        edge_fluorescence=rows[:, 4].astype(np.float32),
    )


def _cross_section(z: int, kev: np.ndarray, kind: str) -> np.ndarray:
    import xraydb

    return xraydb.get_xraydb().cross_section_elam(xraydb.atomic_symbol(z), np.asarray(kev) * 1000, kind)


def _recoil_share(z: int, kev: np.ndarray) -> np.ndarray:
    """Mean share of the photon's energy that the electron takes in incoherent scattering.

    Klein and Nishina's angular distribution times 1 - exp(-b x), x the momentum transfer, which stands for the
    electrons' binding: it takes away forward scattering, that gives little energy. b makes the total Elam's.
    """
    import xraydb
    from scipy.optimize import brentq

    cosine, weight = np.polynomial.legendre.leggauss(64)
    shares = []
    for energy, known in zip(kev, _cross_section(z, kev, "incoh"), strict=True):
        left = 1 / (1 + energy / ELECTRON_REST * (1 - cosine))
        free = weight * left**2 * (left + 1 / left - 1 + cosine**2)
        per_gram = np.pi * ELECTRON_RADIUS**2 * AVOGADRO * z / xraydb.atomic_mass(z)
        wanted = known / (per_gram * free.sum())
        transfer = np.sqrt((1 - cosine) / 2) * energy

        def bound(log_b, free=free, transfer=transfer):
            return free * -np.expm1(-np.exp(log_b) * transfer)

        rate = free
        if wanted < 0.999:
            rate = bound(brentq(lambda log_b: bound(log_b).sum() / free.sum() - wanted, -15, 8))  # noqa: B023
        shares.append((rate * (1 - left)).sum() / rate.sum())
    return np.asarray(shares)


def _edges(z: int) -> list[tuple[float, ...]]:
    """(atomic number, energy, photoabsorption below and above, keV of fluorescence per vacancy) of K and L edges.

    Elam's nodes are doubled at edges, in logarithms rounded to 6 digits, so an edge lies where its nodes lie.
    """
    import xraydb

    symbol = xraydb.atomic_symbol(z)
    row = xraydb.get_xraydb().get_cache("photoabsorption", column="element", value=symbol)[0]
    nodes = np.exp(np.asarray(json.loads(row.log_energy))) / 1000
    doubled = nodes[1:][np.diff(nodes) < 1e-9]
    found = []
    for shell, edge in xraydb.xray_edges(symbol).items():
        near = np.abs(doubled - edge.energy / 1000) < 2e-4 * edge.energy / 1000
        if shell[0] in "KL" and edge.energy > 300 and near.any():
            at = float(doubled[near][0])
            below, above = _cross_section(z, np.array([at * (1 - 1e-7), at * (1 + 1e-7)]), "photo")
            found.append((z, at, below, above, edge.fyield * _mean_line(symbol, shell)))
    return sorted(found)


def _mean_line(symbol: str, shell: str) -> float:
    """Mean energy in keV of the lines of a shell."""
    import xraydb

    lines = [line for line in xraydb.xray_lines(symbol).values() if line.initial_level == shell]
    total = sum(line.intensity for line in lines)
    return sum(line.intensity * line.energy for line in lines) / total / 1000 if total else 0.0


def save(name: str, made_with: str, **arrays: np.ndarray) -> None:
    """Write a table."""
    np.savez_compressed(TABLES / name, made_with=np.asarray(made_with), **arrays)
    print(f"{name}: {(TABLES / name).stat().st_size / 1000:.0f} kB, {made_with}")


if __name__ == "__main__":
    for part in sys.argv[1:] or ("spectra", "elements"):
        {"spectra": spectra, "elements": elements}[part]()
