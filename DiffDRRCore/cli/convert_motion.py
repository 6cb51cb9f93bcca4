"""`convert motion`: poses of bodies, frame by frame, between Autoscoper's .tra files and tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.errors import DiffDRRError, ReadError

COORDINATES = ("ras", "lps", "autoscoper")
LAYOUTS = ("rows", "columns", "xyzypr")
OPTIONS = {
    "source": "--from",
    "target": "--to",
    "ct": "--ct",
    "flip": "--volume-flip",
    "bodies": "--bodies",
    "first_frame": "--first-frame",
    "layout": "--layout",
    "centimetres": "--centimetres",
    "radians": "--radians",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that only `motion` takes."""
    parser.add_argument(
        "--ct", type=Path, nargs="+", help="motion, autoscoper coordinates: the CT of all bodies, or one for each"
    )
    parser.add_argument(
        "--volume-flip",
        dest="flip",
        type=int,
        nargs=3,
        choices=(0, 1),
        metavar=("X", "Y", "Z"),
        help="motion, autoscoper coordinates: the trial's VolumeFlip; default: 0 0 0",
    )
    parser.add_argument("--bodies", help="motion: names of the bodies of a .tra input, with commas; default: its name")
    parser.add_argument("--first-frame", type=int, help="motion: number of the first row of a .tra; default: 0")
    parser.add_argument("--layout", choices=LAYOUTS, help="motion: of a .tra output; default: rows, a matrix by rows")
    parser.add_argument(
        "--centimetres", action="store_const", const=True, help="motion: the .tra input was saved in centimetres"
    )
    parser.add_argument("--radians", action="store_const", const=True, help="motion: the angles of a .tra input are")


def unused(options) -> set[str]:
    """Options that would have no meaning for these files."""
    from DiffDRRCore.geometry.motion_files import is_table

    from_table, to_table = is_table(options.input), options.output.suffix.lower() == ".csv"
    names = {"bodies", "centimetres", "radians"} if from_table else set()
    names |= {"layout"} if to_table else set()
    names |= {"first_frame"} if from_table and to_table else set()
    return names if "autoscoper" in (options.source, options.target) else names | {"ct", "flip"}


def convert_motion(options) -> None:
    """Read, change the coordinates that the poses start from, write. Raises DiffDRRError."""
    from DiffDRRCore.geometry.motion_files import TraLayout, read_table, read_tra, write_table, write_tra

    if options.output.suffix.lower() not in (".tra", ".csv"):
        raise DiffDRRError(f"Cannot write '{options.output}': a file of motion ends in .tra or .csv.")
    if (options.source is None) != (options.target is None):
        raise DiffDRRError("--from and --to go together for a motion: a file does not say which coordinates it means.")
    ignored, first = unused(options), options.first_frame or 0
    if "bodies" in ignored:
        motions = read_table(options.input)
    else:
        names = None if options.bodies is None else [name.strip() for name in options.bodies.split(",")]
        units = bool(options.centimetres), bool(options.radians)
        motions = read_tra(options.input, names, first, None, *units)
    motions = _in_coordinates(options, motions)
    if "layout" in ignored:
        write_table(options.output, motions)
    else:
        write_tra(options.output, motions, first, TraLayout(options.layout or "rows"))


def _in_coordinates(options, motions: dict) -> dict:
    """The motions with poses that start from the coordinates --to in place of those of --from."""
    if options.source is None:
        return motions
    import torch

    paths = options.ct or [None]
    if "autoscoper" in (options.source, options.target) and options.ct is None:
        raise DiffDRRError("Autoscoper's coordinates need the grid of the CT that was its volume: give --ct FILE.")
    if len(paths) not in (1, len(motions)):
        raise ReadError(
            f"'{options.input}' has {len(motions)} bodies: give one --ct for all, or {len(motions)} of them."
        )
    paths = paths * len(motions) if len(paths) == 1 else paths
    result = {}
    for (name, motion), path in zip(motions.items(), paths, strict=True):
        source, target = (
            _from_ras(coordinates, path, options.flip) for coordinates in (options.source, options.target)
        )
        result[name] = motion.after(source @ torch.linalg.inv(target))
    return result


def _from_ras(coordinates: str, path: Path | None, flip):
    from DiffDRRCore.geometry.motion_files import CTFrame, ras_to_ct_frame

    frame = CTFrame(coordinates)
    if frame is not CTFrame.AUTOSCOPER:
        return ras_to_ct_frame(frame)
    from DiffDRRCore import Volume

    volume = Volume.read(path)
    return ras_to_ct_frame(frame, volume.ijk_to_ras, volume.shape, flip or (0, 0, 0))
