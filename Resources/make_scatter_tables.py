"""Make DiffDRRCore/physics/tables/scatter.json: scatter behind slabs of water, by a Monte Carlo simulation.

    pip install spekpy==2.5.4 xraylib==4.3.0 scipy
    python Resources/make_scatter_tables.py [photons per batch] [file]

The libraries are needed here alone; all of it takes ten minutes of one core, a trial of 20000 photons 20 seconds.

Pencil beams of a tungsten tube enter endless slabs of water. Photons scatter from electrons as O. Klein and Y. Nishina
(Z. Phys. 52, 1929) have it, times the incoherent scattering function S(q), and coherently by Thomson's formula times
the squared form factor F(q)^2, each atom of H2O on its own. Absorption (photoelectric) takes weight; the first
collision is forced to happen in the slab; light photons play Russian roulette. Coefficients, S and F are xraylib's (T.
Schoonjans et al., "The xraylib library for X-ray-matter interactions. Recent developments", Spectrochimica Acta B 66,
2011), spectra SpekPy's. The signal is the energy absorbed in a layer of CsI, where every photon that interacts leaves
all of it. Left out are fluorescence, the motion of bound electrons, interference between molecules, and paths of
electrons.

Lengths are cm here, mm in the file; energies keV; water has 1 g/cm3. See scatter.py for the model that is fitted.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILE = Path(__file__).parents[1] / "DiffDRRCore" / "physics" / "tables" / "scatter.json"

KVP = (60, 80, 100, 120, 140)
ANODE_ANGLE, FILTER = 12, 3.0  # degrees, mm Al
BIN = 0.5  # keV
CSI_LAYER = 0.25  # g/cm2
THICKNESS = (2, 5, 10, 15, 20, 25, 30, 40)  # cm of water
BATCHES = (1, 1, 1, 2, 2, 5, 5, 5)  # less comes through thicker slabs
PHOTONS = 600_000  # in a batch
SEED = 1
GAPS = np.array([5, 10, 20, 30, 40])  # cm of air between slab and detector
RADII = np.concatenate([np.arange(3, 10, 0.5), np.arange(10, 41)])  # cm, of round fields at the detector
LOWEST_ENERGY = 6.0  # keV
LIGHT, SURVIVORS = 0.05, 0.2  # photons below this weight live on with this probability
NARROWER = 6  # how much narrower the forward part of the kernel is
# Relative to 100 kVp: of an earlier fit to the same simulation, rounded. Fitted together with the rest they become
# 0.863, 0.944, 1, 1.043 and 1.075.
WIDTH_BY_KVP = (0.88, 0.953, 1.0, 1.035, 1.065)
THINNEST = (0.0, 5.0, 1.53, 0.124)  # ratio, height in mm, width and forward part at thickness 0: set by extrapolation

ELECTRON_REST, WAVELENGTH = 510.998950, 12.39842  # keV, keV angstrom
HYDROGEN, OXYGEN = 0.1119, 0.8881  # fractions of the mass of water
ENERGY = np.arange(5, 151, 0.5)  # keV, nodes of the coefficients
TRANSFER = np.linspace(0, 12.5, 2501)  # q = sin(angle / 2) / wavelength in 1/angstrom, nodes of S and F


@dataclass
class Photons:
    """n photons on their way: place [3, n] in cm (the slab starts at z = 0), direction [3, n], energy (keV), weight."""

    place: np.ndarray
    direction: np.ndarray
    energy: np.ndarray
    weight: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Photons:
        return Photons(self.place[:, chosen], self.direction[:, chosen], self.energy[chosen], self.weight[chosen])


@cache
def coefficients() -> dict[str, np.ndarray]:
    """Mass attenuation in cm2/g at ENERGY: "photo", "coherent", "incoherent" and "total" of water, "CsI"."""
    import xraylib

    kinds = {"photo": xraylib.CS_Photo, "coherent": xraylib.CS_Rayl, "incoherent": xraylib.CS_Compt}
    found = {
        name: np.array([HYDROGEN * one(1, kev) + OXYGEN * one(8, kev) for kev in ENERGY]) for name, one in kinds.items()
    }
    found["total"] = found["photo"] + found["coherent"] + found["incoherent"]
    found["CsI"] = np.array([xraylib.CS_Total_CP("CsI", kev) for kev in ENERGY])
    return found


def coefficient(name: str, energy: np.ndarray) -> np.ndarray:
    """cm2/g at energies in keV."""
    return np.interp(energy, ENERGY, coefficients()[name])


@cache
def form_factors() -> tuple[np.ndarray, np.ndarray]:
    """Of H2O at TRANSFER: S, from 0 to its 10 electrons, and the integral of F^2 over q^2 from 0."""
    import xraylib

    incoherent = np.array([2 * xraylib.SF_Compt(1, q) + xraylib.SF_Compt(8, q) if q > 0 else 0 for q in TRANSFER])
    squared = np.array([2 * xraylib.FF_Rayl(1, q) ** 2 + xraylib.FF_Rayl(8, q) ** 2 for q in TRANSFER])
    steps = (squared[1:] + squared[:-1]) / 2 * np.diff(TRANSFER**2)
    return incoherent, np.concatenate([[0], np.cumsum(steps)])


@cache
def spectrum(kvp: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres in keV of bins of BIN keV, and the fraction of the photons in each."""
    import spekpy

    tube = spekpy.Spek(kvp=kvp, th=ANODE_ANGLE, targ="W", physics="casim", dk=BIN)
    tube.filter("Al", FILTER)
    energies, photons = tube.get_spectrum()
    return energies, photons / photons.sum()


def absorbed(energy: np.ndarray, obliquity: np.ndarray | float = 1.0) -> np.ndarray:
    """The fraction of photons absorbed in the CsI, on a way through it that is `obliquity` times the shortest."""
    return 1 - np.exp(-coefficient("CsI", energy) * CSI_LAYER * obliquity)


def primary_signal(kvp: float, slab: float) -> float:
    """keV absorbed of the primary behind `slab` cm of water, per photon sent."""
    energies, fraction = spectrum(kvp)
    return float(np.sum(fraction * energies * absorbed(energies) * np.exp(-coefficient("total", energies) * slab)))


def scattered(kvp: float, slab: float, count: int, rng: np.random.Generator) -> Photons:
    """The photons that leave `slab` cm of water behind, after one scatter or more, of `count` that enter at x = y = 0.

    Weights are per photon sent.
    """
    photons, gone = _first_collision(kvp, slab, count, rng), []
    while len(photons.energy):
        photons = _collided(photons, rng)
        way = -np.log(rng.random(len(photons.energy))) / coefficient("total", photons.energy)
        depth = photons.place[2] + way * photons.direction[2]
        out = depth > slab
        way[out] = ((slab - photons.place[2]) / photons.direction[2])[out]
        photons.place = photons.place + way * photons.direction
        gone.append(photons[out])
        photons = photons[(depth > 0) & ~out]
    parts = zip(*((p.place, p.direction, p.energy, p.weight) for p in gone), strict=True)
    return Photons(*(np.concatenate(part, axis=-1) for part in parts))


def _first_collision(kvp: float, slab: float, count: int, rng: np.random.Generator) -> Photons:
    """Photons where they first collide; the weight is the probability that they do so in the slab."""
    energies, fraction = spectrum(kvp)
    energy = rng.choice(energies, count, p=fraction) + (rng.random(count) - 0.5) * BIN
    per_cm = coefficient("total", energy)
    weight = 1 - np.exp(-per_cm * slab)
    place, direction = np.zeros((3, count)), np.zeros((3, count))
    place[2], direction[2] = -np.log(1 - rng.random(count) * weight) / per_cm, 1
    return Photons(place, direction, energy, weight)


def _collided(photons: Photons, rng: np.random.Generator) -> Photons:
    """Photons after a collision where they are; absorption has taken its part of the weight."""
    photo, total = (coefficient(name, photons.energy) for name in ("photo", "total"))
    photons.weight = photons.weight * (1 - photo / total)
    light = photons.weight < LIGHT
    kept = ~light | (rng.random(len(light)) < SURVIVORS)
    photons.weight = np.where(light, photons.weight / SURVIVORS, photons.weight)
    photons = photons[kept]
    part = coefficient("coherent", photons.energy)
    coherent = rng.random(len(part)) * (total - photo)[kept] < part
    cosine = np.empty(len(part))
    cosine[coherent] = _by_rejection(_coherent_trial, photons.energy[coherent], rng)
    cosine[~coherent] = _by_rejection(_incoherent_trial, photons.energy[~coherent], rng)
    recoil = 1 + photons.energy / ELECTRON_REST * (1 - cosine)  # Compton
    photons.energy = np.where(coherent, photons.energy, photons.energy / recoil)
    photons.direction = _turned(photons.direction, cosine, rng)
    return photons[photons.energy > LOWEST_ENERGY]


def _by_rejection(trial, energy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cosines of scattering angles for energies [n]; trial(energy, rng) gives cosines and which of them to take."""
    cosine, todo = np.empty(len(energy)), np.arange(len(energy))
    while len(todo):
        found, taken = trial(energy[todo], rng)
        cosine[todo[taken]] = found[taken]
        todo = todo[~taken]
    return cosine


def _incoherent_trial(energy: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Klein and Nishina's rate in the ratio e of energies after and before, e + 1/e - sin^2(angle), times S(q)."""
    rest = energy / ELECTRON_REST
    least = 1 / (1 + 2 * rest)
    ratio = least + (1 - least) * rng.random(len(energy))
    cosine = 1 - (1 / ratio - 1) / rest
    q = energy / WAVELENGTH * np.sqrt(np.maximum(0, (1 - cosine) / 2))
    rate = (ratio + 1 / ratio - (1 - cosine**2)) * np.interp(q, TRANSFER, form_factors()[0]) / 10
    return cosine, rng.random(len(energy)) * (least + 1 / least) < rate


def _coherent_trial(energy: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """q^2 at the rate F(q)^2, taken with Thomson's (1 + cos^2) / 2."""
    largest, integral = energy / WAVELENGTH, form_factors()[1]
    reached = rng.random(len(energy)) * np.interp(largest, TRANSFER, integral)
    cosine = 1 - 2 * np.interp(reached, integral, TRANSFER**2) / largest**2
    return cosine, rng.random(len(energy)) < (1 + cosine**2) / 2


def _turned(direction: np.ndarray, cosine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Directions [3, n] turned by angles of these cosines, about themselves by any angle."""
    angle, sine = 2 * np.pi * rng.random(len(cosine)), np.sqrt(np.maximum(0, 1 - cosine**2))
    x, y, z = direction
    across, c, s = np.sqrt(np.maximum(1e-12, 1 - z * z)), sine * np.cos(angle), sine * np.sin(angle)
    along = np.abs(z) > 0.99999
    new_x = np.where(along, c, (x * z * c - y * s) / across + x * cosine)
    new_y = np.where(along, s, (y * z * c + x * s) / across + y * cosine)
    turned = np.stack([new_x, new_y, np.where(along, np.sign(z) * cosine, -c * across + z * cosine)])
    return turned / np.linalg.norm(turned, axis=0)


def measured(kvp: float, slab: float, batches: int, count: int, rng: np.random.Generator) -> tuple:
    """The scatter-to-primary ratio of the endless field, its standard error, and the share of it in round fields.

    By reciprocity a pencil's scatter within a radius is what the centre of a round field of that radius sees. The share
    is [gaps, radii].
    """
    sums, squares, shares = 0.0, 0.0, 0.0
    for _ in range(batches):
        photons = scattered(kvp, slab, count, rng)
        signal = photons.weight * photons.energy * absorbed(photons.energy, 1 / photons.direction[2])
        sums, squares = sums + signal.sum(), squares + (signal**2).sum()
        shares = shares + _within(photons, signal) / batches
    primary, sent = primary_signal(kvp, slab), batches * count
    mean = sums / sent
    return mean / primary, np.sqrt((squares / sent - mean**2) / sent) / primary, shares


def _within(photons: Photons, signal: np.ndarray) -> np.ndarray:
    """The share [gaps, radii] of the signal that lands within radii about the pencil, behind gaps of air."""
    edges = np.concatenate([[0], RADII, [np.inf]])
    found = []
    for gap in GAPS:
        x, y = photons.place[:2] + gap * photons.direction[:2] / photons.direction[2]
        inside = np.histogram(np.hypot(x, y), bins=edges, weights=signal)[0]
        found.append(np.cumsum(inside)[:-1] / inside.sum())
    return np.stack(found)


def model_shares(height: float, width: float, forward: float) -> np.ndarray:
    """scatter.py's share of round fields [kVp, gaps, radii]; height in cm."""
    main = width * np.array(WIDTH_BY_KVP)[:, None, None] * (GAPS[:, None] + height)
    narrow, wide = (1 - (1 + (RADII / d) ** 2) ** -1.5 for d in (main / NARROWER, main))
    return forward * narrow + (1 - forward) * wide


def fitted(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height (cm), width and forward part for each thickness, and the relative errors, both [thickness, ...].

    shares: [kVp, thickness, gaps, radii].
    """
    from scipy.optimize import least_squares

    found = []
    for index, slab in enumerate(THICKNESS):
        known = np.maximum(shares[:, index], 1e-4)  # in a trial some are 0

        def errors(values, known=known):
            return (model_shares(*values) / known - 1).ravel()

        found.append(least_squares(errors, [0.45 * slab, 1.0, 0.1], bounds=([0, 0.3, 0], [40, 3, 0.6])))
    return np.stack([one.x for one in found]), np.stack([one.fun.reshape(shares[:, 0].shape) for one in found])


def simulated(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratio and its error [kVp, thickness], share in round fields [kVp, thickness, gaps, radii]; `count` in a batch."""
    rng = np.random.default_rng(SEED)
    shape = (len(KVP), len(THICKNESS))
    ratio, error, shares = np.zeros(shape), np.zeros(shape), np.zeros((*shape, len(GAPS), len(RADII)))
    for i, kvp in enumerate(KVP):
        for j, (slab, batches) in enumerate(zip(THICKNESS, BATCHES, strict=True)):
            ratio[i, j], error[i, j], shares[i, j] = measured(kvp, slab, batches, count, rng)
            print(f"{kvp} kVp, {slab} cm: {ratio[i, j]:.4f} +- {error[i, j]:.4f}", flush=True)
    return ratio, error, shares


def tables(count: int) -> dict:
    """What there is to write."""
    ratio, error, shares = simulated(count)
    values, errors = fitted(shares)
    nothing, height, width, forward = THINNEST
    fields = errors[: THICKNESS.index(30) + 1, ..., (RADII >= 5) & (RADII <= 25)]
    return {
        **settings(count),
        "kvp": KVP,
        "thickness_mm": [0, *(10 * slab for slab in THICKNESS)],
        "ratio": [[nothing, *map(rounded, row)] for row in ratio],
        "ratio_error": [[nothing, *(float(f"{one:.2g}") for one in row)] for row in error],
        "height_mm": [height, *(round(10 * one, 1) for one in values[:, 0])],
        "width_per_mm": [width, *map(rounded, values[:, 1])],
        "forward": [forward, *map(rounded, values[:, 2])],
        "width_by_kvp": WIDTH_BY_KVP,
        "attenuation_per_mm": [round(effective_attenuation(kvp), 5) for kvp in KVP],
        "fit_error": {"rms": rounded(np.sqrt((fields**2).mean())), "largest": rounded(np.abs(fields).max())},
    }


def settings(count: int) -> dict:
    """What made the table, in words and numbers."""
    libraries = [f"{name} {version(name)}" for name in ("numpy", "scipy", "spekpy", "xraylib")]
    return {
        "made_with": f"Resources/make_scatter_tables.py, {', '.join(libraries)}",
        "seed": SEED,
        "photons": [0, *(count * batches for batches in BATCHES)],
        "spectrum": f"tungsten, anode {ANODE_ANGLE} degrees, {FILTER:g} mm Al, bins of {BIN} keV",
        "detector": f"{CSI_LAYER} g/cm2 of CsI, energy absorbed",
        "fields": "fit_error: relative, of the scatter in the centre of round fields of 100 to 500 mm behind 20 to "
        "300 mm of water and 50 to 400 mm of air; ratio_error: one standard deviation",
    }


def effective_attenuation(kvp: float) -> float:
    """-ln(T) / 200 mm of water in 1/mm, T the signal's transmission through it."""
    return -np.log(primary_signal(kvp, 20.0) / primary_signal(kvp, 0.0)) / 200


def rounded(value: float) -> float:
    """To 3 decimals, from 10 on to 2: the statistics are good for less."""
    return round(float(value), 3 if value < 10 else 2)


def save(path: Path, content: dict) -> None:
    """A line for each entry; the columns of a table are the thicknesses."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{path}: {content['made_with']}")


if __name__ == "__main__":
    save(Path(sys.argv[2]) if sys.argv[2:] else FILE, tables(int(sys.argv[1]) if sys.argv[1:] else PHOTONS))
