"""A Monte Carlo simulation of a pencil beam in an endless slab of water, to check the scatter model against.

Compton scattering by Klein and Nishina with the incoherent scattering function S, coherent scattering by Thomson with
the form factor F, photoelectric absorption by the weight; every first collision is forced. The tables are those of
xraylib 4.3.0 for water (cm2/g) and for H2O as two H and one O; the spectrum is that of SpekPy 2.5.4 for tungsten, 100
kVp, 12 degrees, 3 mm Al in bins of 5 keV (fraction of the photons, mean energy in keV). The detector is 0.25 g/cm2 of
CsI, energy integrating. The scatter model's tables come from Resources/make_scatter_tables.py: the same physics and
method in other code, with finer tables and more photons.
"""

from __future__ import annotations

import numpy as np

_ELECTRON = 510.998950  # keV
_ENERGY = (10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 90, 100, 120)
_PHOTO = (
    *(4.944, 1.369, 0.5439, 0.264, 0.1458, 0.08802, 0.05679, 0.03856),
    *(0.02725, 0.01493, 0.00897, 0.00577, 0.003911, 0.002762, 0.001516),
)
_COHERENT = (
    *(0.2305, 0.1333, 0.08856, 0.06301, 0.04694, 0.03621, 0.02874, 0.02336),
    *(0.01936, 0.01392, 0.01048, 0.008165, 0.006537, 0.005349, 0.003768),
)
_COMPTON = (
    *(0.155, 0.1699, 0.1774, 0.1812, 0.1829, 0.1832, 0.1827, 0.1817),
    *(0.1803, 0.177, 0.1734, 0.1697, 0.1661, 0.1626, 0.1561),
)
_CSI_ENERGY = (10, 15, 20, 25, 30, 33.1, 33.2, 35.9, 36.0, 40, 45, 50, 60, 70, 80, 90, 100, 120)
_CSI = (
    *(171.1, 58.16, 26.86, 14.71, 9.047, 6.96, 21.17, 17.29, 30.23, 22.97, 16.94, 12.87),
    *(7.921, 5.248, 3.677, 2.688, 2.035, 1.269),
)
_Q = np.array((0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2, 3, 5, 9))  # 1/angstrom
_S = (
    *(0.0, 0.07979, 0.4776, 1.662, 3.062, 4.337, 5.369, 6.167, 7.223),
    *(7.818, 8.172, 8.596, 8.901, 9.462, 9.764, 9.957, 9.998, 10.0),
)
_F2 = (
    *(66.0, 65.44, 62.59, 53.79, 42.68, 32.04, 23.33, 16.82, 9.053),
    *(5.463, 3.784, 2.455, 1.894, 0.9922, 0.4516, 0.0874, 0.004287, 8.717e-05),
)
_FRACTIONS = (
    *(0.0049, 0.0342, 0.0756, 0.1018, 0.11, 0.1067, 0.0977, 0.0865, 0.1203),
    *(0.064, 0.0666, 0.0401, 0.0327, 0.0255, 0.0183, 0.0112, 0.0039),
)
_MEANS = (
    *(18.66, 23.01, 27.7, 32.57, 37.5, 42.47, 47.46, 52.44, 57.92),
    *(62.43, 67.43, 72.42, 77.41, 82.38, 87.34, 92.23, 96.72),
)
SPECTRUM_100_KVP = (_FRACTIONS, _MEANS)
_WAVELENGTH = 12.39842  # keV angstrom: q = E / this * sin(angle / 2)


def scatter_of_pencil(thickness: float, spectrum, count: int, seed: int = 1):
    """(x, y, ux, uy, uz, signal) of the photons that leave a slab of `thickness` mm, and the primary's signal.

    x and y are mm at the exit surface from where the pencil leaves it, u the direction, signal the energy absorbed in
    the detector; both signals are for `count` photons sent.
    """
    rng = np.random.default_rng(seed)
    fraction, energies = (np.asarray(part) for part in spectrum)
    fraction = fraction / fraction.sum()
    energy = rng.choice(energies, count, p=fraction)
    slab = thickness / 10
    mu = _total(energy)
    weight = -np.expm1(-mu * slab)
    place = np.zeros((3, count))
    place[2] = -np.log1p(-rng.random(count) * weight) / mu
    direction = np.zeros((3, count))
    direction[2] = 1
    left = []
    while len(energy):
        place, direction, energy, weight = _collide(place, direction, energy, weight, rng)
        step = -np.log(rng.random(len(energy))) / _total(energy)
        ahead = place[2] + step * direction[2]
        out = ahead > slab
        way = (slab - place[2, out]) / direction[2, out]
        signal = weight[out] * energy[out] * _absorbed(energy[out], 1 / direction[2, out])
        left.append(np.vstack([10 * (place[:2, out] + way * direction[:2, out]), direction[:, out], signal]))
        inside = (ahead > 0) & ~out
        place = (place + step * direction)[:, inside]
        direction, energy, weight = direction[:, inside], energy[inside], weight[inside]
    return np.hstack(left), count * primary_signal(thickness, spectrum)


def primary_signal(thickness: float, spectrum) -> float:
    """keV absorbed in the detector of the primary behind `thickness` mm of water, per photon sent."""
    fraction, energies = (np.asarray(part) for part in spectrum)
    left = np.exp(-_total(energies) * thickness / 10)
    return float(np.sum(fraction / fraction.sum() * energies * _absorbed(energies, 1) * left))


def _collide(place, direction, energy, weight, rng):
    photo, coherent, compton = (np.interp(energy, _ENERGY, table) for table in (_PHOTO, _COHERENT, _COMPTON))
    weight = weight * (coherent + compton) / (photo + coherent + compton)
    keep = (weight > 0.02) | (rng.random(len(weight)) < 0.2)  # Russian roulette
    weight = np.where(weight > 0.02, weight, 5 * weight)
    place, direction, energy, weight = place[:, keep], direction[:, keep], energy[keep], weight[keep]
    is_coherent = rng.random(len(energy)) * (coherent + compton)[keep] < coherent[keep]
    cosine = np.empty(len(energy))
    cosine[is_coherent] = _coherent_cosine(energy[is_coherent], rng)
    cosine[~is_coherent] = _compton_cosine(energy[~is_coherent], rng)
    direction = _turned(direction, cosine, rng)
    energy = np.where(is_coherent, energy, energy / (1 + energy / _ELECTRON * (1 - cosine)))
    alive = energy > _ENERGY[0]
    return place[:, alive], direction[:, alive], energy[alive], weight[alive]


def _compton_cosine(energy, rng):
    """By rejection from a uniform ratio of energies."""
    cosine, todo = np.empty(len(energy)), np.arange(len(energy))
    while len(todo):
        k = energy[todo] / _ELECTRON
        least = 1 / (1 + 2 * k)
        ratio = least + (1 - least) * rng.random(len(todo))
        found = 1 - (1 / ratio - 1) / k
        q = energy[todo] / _WAVELENGTH * np.sqrt(np.maximum(0, (1 - found) / 2))
        density = (ratio + 1 / ratio - 1 + found**2) * np.interp(q, _Q, _S) / 10
        taken = rng.random(len(todo)) * (least + 1 / least) < density
        cosine[todo[taken]] = found[taken]
        todo = todo[~taken]
    return cosine


def _coherent_cosine(energy, rng):
    """q^2 from the integral of F^2, then the Thomson factor by rejection."""
    fine = np.linspace(0, _Q[-1], 4000)
    form = np.interp(fine, _Q, _F2)
    integral = np.concatenate([[0], np.cumsum((form[1:] + form[:-1]) / 2 * np.diff(fine**2))])
    cosine, todo = np.empty(len(energy)), np.arange(len(energy))
    largest = energy / _WAVELENGTH
    while len(todo):
        reached = rng.random(len(todo)) * np.interp(largest[todo], fine, integral)
        found = 1 - 2 * np.interp(reached, integral, fine**2) / largest[todo] ** 2
        taken = rng.random(len(todo)) < (1 + found**2) / 2
        cosine[todo[taken]] = found[taken]
        todo = todo[~taken]
    return cosine


def _turned(direction, cosine, rng):
    angle, sine = 2 * np.pi * rng.random(len(cosine)), np.sqrt(np.maximum(0, 1 - cosine**2))
    x, y, z = direction
    across = np.sqrt(np.maximum(1e-12, 1 - z * z))
    c, s = sine * np.cos(angle), sine * np.sin(angle)
    general = ((x * z * c - y * s) / across + x * cosine, (y * z * c + x * s) / across + y * cosine)
    along = np.abs(z) > 0.99999
    turned = np.stack([np.where(along, c, general[0]), np.where(along, s, general[1]), -c * across + z * cosine])
    turned[2] = np.where(along, np.sign(z) * cosine, turned[2])
    return turned / np.linalg.norm(turned, axis=0)


def _total(energy):
    return sum(np.interp(energy, _ENERGY, table) for table in (_PHOTO, _COHERENT, _COMPTON))


def _absorbed(energy, path):
    return -np.expm1(-np.interp(energy, _CSI_ENERGY, _CSI) * 0.25 * path)
