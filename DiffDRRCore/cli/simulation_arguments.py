"""The arguments of `simulate`: beam, dose, detector, effects, what is in the beam, devices."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

_DETECTORS = ("csi", "ideal", "counting")
_TABLES = Path(__file__).parents[1] / "physics" / "tables"


def _names(table: str) -> str:
    """The names in a table of data, without loading what computes with it."""
    return ", ".join(json.loads((_TABLES / f"{table}.json").read_text(encoding="utf-8")))


def add_beam(parser: argparse.ArgumentParser) -> None:
    """The tube, or a spectrum of one's own."""
    group = parser.add_argument_group("beam")
    group.add_argument("--kvp", type=float, help="tube voltage, kV (40 to 150), not mean keV; default: 80")
    group.add_argument("--filter", nargs="+", metavar="MATERIAL=MM", help="all, mm; default: the device's, or Al=2.5")
    group.add_argument("--anode-angle", type=float, help="degrees; default: the device's, or 12")
    group.add_argument("--energy", type=float, metavar="KEV", help="one photon energy, keV, in place of a tube")
    group.add_argument("--spectrum", type=Path, metavar="FILE", help="CSV of keV, photons, in place of a tube")


def add_dose(parser: argparse.ArgumentParser) -> None:
    """Dose and noise."""
    group = parser.add_argument_group("dose and noise")
    group.add_argument("--dose", type=float, help="air kerma at the detector in the open field, uGy; default: 1")
    group.add_argument("--photons", type=float, help="photons per pixel in the open field, in place of --dose")
    group.add_argument("--noise", action=argparse.BooleanOptionalAction, default=True, help="default: on")
    group.add_argument(
        "--exact-poisson", action="store_true", help="draw whole photons: for below some 20 a pixel; slower"
    )
    group.add_argument("--electronic-noise", type=float, default=0.0, help="standard deviation, keV or photons a pixel")
    group.add_argument("--swank", type=float, default=1.0, help="Swank factor of the scintillator, 0 to 1; default: 1")


def add_detector(parser: argparse.ArgumentParser) -> None:
    """From photons to counts."""
    group = parser.add_argument_group("detector")
    group.add_argument("--detector", choices=_DETECTORS, default="csi", help="default: csi (flat panel)")
    group.add_argument("--csi-mm", type=float, default=0.6, help="thickness of the CsI, mm; default: 0.6")
    group.add_argument("--blur", type=float, metavar="F", help="spatial frequency, 1/mm, at which the MTF is one half")
    group.add_argument("--mtf", type=Path, metavar="FILE", help="measured MTF: CSV of 1/mm from 0, MTF from 1")
    group.add_argument(
        "--lag",
        type=float,
        nargs=2,
        action="append",
        metavar=("WEIGHT", "RETENTION"),
        help="of a sweep: fraction of the signal that lags, and what of it stays from frame to frame; repeatable",
    )
    group.add_argument("--bits", type=int, help="bit depth; default: 16 for .png and .dcm, else none")
    group.add_argument(
        "--gain",
        type=float,
        help="counts per keV or photon; default: the open field at 0.8 of the bits, lower where noise needs room",
    )


def add_effects(parser: argparse.ArgumentParser) -> None:
    """Blur by the focal spot, scatter, heel, collimation; all off."""
    group = parser.add_argument_group("effects (each off by default)")
    group.add_argument("--focal-spot", type=float, default=0.0, help="full width at half maximum, mm")
    group.add_argument("--samples", type=int, default=1, help="rays a pixel along each side, averaged; default: 1")
    group.add_argument("--scatter", action="store_true", help="scattered radiation (convolution model)")
    group.add_argument("--grid", action="store_true", help="anti-scatter grid; with --scatter")
    group.add_argument("--air-gap", type=float, help="patient to detector, mm; default: what each view has")
    group.add_argument("--heel", action="store_true", help="heel effect, the anode at the lower edge of the image")
    group.add_argument(
        "--solid-angle", action="store_true", help="less for pixels far from the principal ray (inverse square law)"
    )
    group.add_argument(
        "--collimator", type=float, nargs=4, metavar=("TOP", "BOTTOM", "LEFT", "RIGHT"), help="covered, mm at detector"
    )
    group.add_argument("--aperture", type=float, help="radius of a round field, mm; default: the device's")


def add_contents(parser: argparse.ArgumentParser) -> None:
    """What is in the beam."""
    group = parser.add_argument_group("in the beam")
    group.add_argument(
        "--materials", nargs="+", metavar="LABEL=MATERIAL", default=[], help=f"of labels: {_names('materials')}"
    )
    group.add_argument(
        "--decomposition", choices=("continuous", "thresholds"), default="continuous", help="HU to materials"
    )
    group.add_argument("--bone-contrast", type=float, default=1.0, help="factor on what is above 100 HU; default: 1")
    group.add_argument(
        "--landmarks", type=Path, metavar="FILE", help="points whose pixels are told: .mrk.json, .fcsv, .csv (RAS, mm)"
    )
    group.add_argument(
        "--implant", action="append", metavar="FILE=MATERIAL", default=[], help="mesh (.stl, .vtk, ...; mm); repeatable"
    )
    group.add_argument(
        "--implant-pose", action="append", type=Path, metavar="FILE", help="object to world (.tfm, .h5), one an implant"
    )
    group.add_argument(
        "--implant-frame",
        action="append",
        choices=("ras", "lps"),
        help="axes of the mesh file, one for all or one an implant; default: what the file says, else lps",
    )
    group.add_argument(
        "--implant-priority",
        action="append",
        type=int,
        help="from 1, one for all or one an implant; the higher displaces the lower; default: 1",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Devices as data."""
    group = parser.add_argument_group("a device in place of camera numbers")
    group.add_argument("--device-preset", metavar="NAME", help=f"one of {_names('devices')}")
    group.add_argument("--binning", type=int, help="so many detector pixels a side joined in one; default: 1")
    group.add_argument("--ignore-limits", action="store_true", help="of the device's motion and kVp")
