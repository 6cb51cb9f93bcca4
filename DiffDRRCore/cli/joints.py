"""Joint angles between two bones through a run, by Grood and Suntay: degrees and mm for each frame, as a CSV table.

The motions are those of `track` (its folder, or tracking.json), a table of poses (.csv) or an Autoscoper file (.tra,
its bodies by --bodies), of bones in the same room. Landmarks are points in the CT (RAS mm): .mrk.json, .fcsv or .csv.
The joint is a JSON file that says how each bone's axes are made of landmarks (a name, or a list whose mean is meant):

  {"side": "right",
   "proximal": {"body": "femur", "origin": ["med", "lat"], "up": ["notch", "head"], "right": ["med", "lat"]},
   "distal": {"body": "tibia", "origin": "eminence", "up": ["ankle", "eminence"], "right": ["plateau_m", "plateau_l"]}}

"up" runs from the distal to the proximal end, "right" from the patient's left to the right; "keep": "right" keeps that
direction exactly, else the long axis is kept. Flexion, abduction, external rotation, lateral, anterior and distraction
are positive on both sides of the body (`geometry.joints`).

Example:
  python -m DiffDRRCore joints tracking knee.json --landmarks landmarks.mrk.json --output angles.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore import values
from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError

_PLACE = values.either(values.text, values.several(values.text))
_BONE = {
    "body": values.Key(values.text),
    "origin": values.Key(_PLACE),
    "up": values.Key(values.several(_PLACE, count=2)),
    "right": values.Key(values.several(_PLACE, count=2)),
    "keep": values.Key(values.choice("up", "right"), "up"),
}
_JOINT = {
    "side": values.Key(values.choice("left", "right")),
    "proximal": values.Key(values.of(_BONE)),
    "distal": values.Key(values.of(_BONE)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `joints`."""
    parser.add_argument("motions", type=Path, help="folder of `track`, tracking.json, .csv or .tra")
    parser.add_argument("joint", type=Path, help="JSON file of the joint's axes (see above)")
    parser.add_argument(
        "--landmarks", type=Path, action="append", required=True, help="points in the CT; more than once if need be"
    )
    parser.add_argument("--bodies", help="names of the bodies of a .tra file, with commas")
    parser.add_argument("--keep-interpolated", action="store_true", help="also frames that were lost in the tracking")
    parser.add_argument("--output", "-o", type=Path, required=True, help="CSV file")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Read, compute, write, report."""
    if options.output.suffix.lower() != ".csv":
        raise DiffDRRError(f"Cannot write '{options.output}': joint angles are written as .csv.")
    joint = values.section(f"'{options.joint}'", values.read_values(options.joint), _JOINT)
    from DiffDRRCore.datasets.points import read_points
    from DiffDRRCore.geometry.joints import Side
    from DiffDRRCore.registration.tracking import joint_motion, write_joint_motion

    names = None if options.bodies is None else [name.strip() for name in options.bodies.split(",")]
    motions = arguments.read_motions(options.motions, names, options.keep_interpolated)
    points = {name: point for path in options.landmarks for name, point in read_points(path).items()}
    bones = [(bone["body"], _frame(bone, points)) for bone in (joint["proximal"], joint["distal"])]
    frames, motion = joint_motion(motions, *bones, Side(joint["side"]))
    write_joint_motion(options.output, frames, motion)
    _report(options, frames, motion)


def _frame(bone: dict, points: dict):
    from DiffDRRCore.geometry.joints import Keep, body_frame

    return body_frame(points, bone["origin"], tuple(bone["up"]), tuple(bone["right"]), Keep(bone["keep"]))


def _report(options, frames, motion) -> None:
    known = {name: value[~value.isnan()] for name, value in vars(motion).items()}
    ranges = {name: [float(value.min()), float(value.max())] if len(value) else None for name, value in known.items()}
    rows = [[name, *(limits or ["", ""])] for name, limits in ranges.items()]
    without = int(motion.flexion.isnan().sum())
    lines = [f"{len(frames)} frames, {without} without a pose", *output.table(["", "from", "to"], rows)]
    said = {"output": str(options.output), "frames": len(frames), "without_pose": without, "ranges": ranges}
    output.report(said, options.json, [*lines, "degrees and mm", f"written: {options.output}"])
