"""Other people's numbers for the tests of spectra and transmission: golden.json, by SpekPy, xraylib and xraydb.

    pip install spekpy==2.5.4 xraylib==4.3.0 xraydb==4.5.8
    python Testing/core/physics/make_golden.py

Tests read the file and do not run this.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import spekpy
import xraydb
import xraylib

PARTS = {
    "water": ({1: 0.111898, 8: 0.888102}, 1.0),
    "cortical bone": (
        {1: 0.034, 6: 0.155, 7: 0.042, 8: 0.435, 11: 0.001, 12: 0.002, 15: 0.103, 16: 0.003, 20: 0.225},
        1.92,
    ),
    "aluminium": ({13: 1.0}, 2.699),
    "titanium": ({22: 1.0}, 4.54),
}
BANDS = (10, 15, 20, 30, 40, 57, 60, 69, 80, 110, 150)  # keV
CENTIMETRES = {
    "water": (1, 2, 5, 10, 20, 30),
    "cortical bone": (0.5, 1, 2, 5, 10),
    "aluminium": (0.1, 0.5, 1, 2, 5),
    "titanium": (0.1, 0.5, 1, 2),
}


def beam(kvp: float, angle: float, filters: dict[str, float], x: float = 0.0) -> spekpy.Spek:
    """A SpekPy tube; x in cm at 100 cm."""
    tube = spekpy.Spek(kvp=kvp, th=angle, physics="casim", dk=0.5, z=100, x=x)
    tube.multi_filter(list(filters.items()))
    return tube


def tubes() -> list[dict]:
    """Air kerma, mean energy and half-value layers, at kVps and angles of the table and between them."""
    cases = [(kvp, 12.0, {"Al": 2.5}) for kvp in (40, 42.5, 52.5, 67.5, 72.5, 77.5, 85, 95, 105, 125, 145, 150)]
    cases += [(85, angle, {"Al": 2.5}) for angle in (5, 7, 9, 11, 16, 22)]
    cases += [(90, 12.0, {"Al": 4.0}), (75, 10.0, {"Al": 3.0, "Cu": 0.1}), (120, 12.0, {"Al": 2.5, "Cu": 0.9})]
    rows = []
    for kvp, angle, filters in cases:
        tube = beam(kvp, angle, filters)
        hvl = (tube.get_hvl1(), tube.get_hvl2())
        rows.append({"kvp": kvp, "angle": angle, "filtration": filters, "hvl": hvl})
        rows[-1] |= {"air_kerma": tube.get_kerma(), "mean_energy": tube.get_emean()}
    return rows


def anodes() -> list[dict]:
    """Photons in bands of energy, without any filter: what the table holds, free of anyone's attenuation."""
    rows = []
    for kvp, angle in (
        (40, 12),
        (47.5, 7),
        (62.5, 12),
        (72.5, 9),
        (85, 12),
        (85, 2.5),
        (95, 22),
        (115, 15.5),
        (145, 32),
    ):
        tube = beam(kvp, angle, {})
        kev, photons = tube.get_spectrum()
        count = [float(0.5 * photons[(kev > a) & (kev < b)].sum()) for a, b in pairwise(BANDS)]
        rows.append({"kvp": kvp, "angle": angle, "bands": BANDS, "photons": count})
    return rows


def heel() -> list[dict]:
    """Air kerma off the central ray, the inverse square taken out; degrees above 0 towards the anode."""
    rows = []
    for kvp, angle in ((60, 12.0), (90, 12.0), (120, 8.0), (80, 16.0)):
        degrees = [-12, -8, -4, 0, 3, 6]
        x = [-100 * np.tan(np.radians(one)) for one in degrees]
        kerma = [beam(kvp, angle, {"Al": 2.5}, at).get_kerma() * (1 + (at / 100) ** 2) for at in x]
        rows.append({"kvp": kvp, "angle": angle, "degrees": degrees, "factor": list(np.divide(kerma, kerma[3]))})
    return rows


def elements() -> list[list]:
    """[symbol, keV, cm2/g] of random elements at random energies, total attenuation, by xraydb."""
    random = np.random.default_rng(6)
    numbers, energies = random.integers(1, 93, 150), random.uniform(np.log(5), np.log(160), 150)
    symbols = [xraydb.atomic_symbol(int(z)) for z in numbers]
    kev = [round(float(np.exp(one)), 2) for one in energies]
    return [[symbol, one, float(xraydb.mu_elam(symbol, 1000 * one))] for symbol, one in zip(symbols, kev, strict=True)]


def slabs(kev: np.ndarray, photons: np.ndarray) -> dict:
    """Energy-integrating transmission of slabs, and its slope at 0 in 1/cm."""
    found = {}
    signal = kev * photons / (kev * photons).sum()
    for name, (parts, density) in PARTS.items():
        mu = density * np.array([sum(f * xraylib.CS_Total(z, e) for z, f in parts.items()) for e in kev])
        values = {cm: float((signal * np.exp(-mu * cm)).sum()) for cm in CENTIMETRES[name]}
        found[name] = {"slope": float((signal * mu).sum()), "transmission": values}
    return found


def main() -> None:
    """Write golden.json beside this file."""
    tube = beam(90, 12.0, {"Al": 4.0})
    kev, photons = tube.get_spectrum()
    kept = kev > 5
    kev, photons = kev[kept], photons[kept] * 0.5
    golden = {
        "made_with": [f"{name} {version(name)}" for name in ("spekpy", "xraylib", "xraydb")],
        "spectrum": {"kvp": 90, "filtration": {"Al": 4.0}, "kev": list(kev), "photons": [round(p, 1) for p in photons]},
        "slabs": slabs(kev, photons),
        "elements": elements(),
        "tubes": tubes(),
        "anodes": anodes(),
        "heel": heel(),
    }
    path = Path(__file__).with_name("golden.json")
    path.write_text(re.sub(r"\n {3,}", " ", json.dumps(golden, indent=1)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
