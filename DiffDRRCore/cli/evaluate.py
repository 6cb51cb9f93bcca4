"""Errors of an estimated C-arm pose against a reference pose.

Targets are points in the patient: a CSV file with R, A, S in mm in each row (a heading is allowed), or, without one,
points in the bone of the CT. Poses are camera_to_world in RAS. Errors are in mm and degrees;
DiffDRRCore.evaluation.measures defines them.

Example:
  python -m DiffDRRCore evaluate result/result.json truth.json --targets landmarks.csv
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError, ReadError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `evaluate`."""
    parser.add_argument("estimate", type=Path, help="pose: result.json, JSON camera with a pose, .tfm, .h5")
    parser.add_argument("reference", type=Path, help="true pose, likewise")
    parser.add_argument("--view", type=int, default=0, help="view of a result with several, from 0")
    parser.add_argument("--camera", type=Path, help="JSON camera, for errors on the detector; default: the reference's")
    parser.add_argument("--targets", type=Path, help="CSV file of points: R, A, S in mm")
    parser.add_argument("--ct", type=Path, help="CT, for points in its bone where there are no targets")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Read both poses, compare, report."""
    from DiffDRRCore.evaluation.measures import pose_errors
    from DiffDRRCore.imaging.camera_file import read_camera
    from DiffDRRCore.registration.result import RegistrationResult

    estimate = arguments.read_pose(options.estimate, options.view)
    reference = arguments.read_pose(options.reference, options.view)
    camera_file = options.camera or options.reference
    if camera_file.suffix != ".json" or RegistrationResult.is_saved_at(camera_file):
        raise DiffDRRError(f"'{camera_file}' holds no camera: give --camera FILE.json.")
    errors = pose_errors(estimate, reference, read_camera(camera_file).camera, _targets(options))
    values = {name: float(value) for name, value in errors.items()}
    output.report(values, options.json, output.table(["measure", "value"], [[name, x] for name, x in values.items()]))


def _targets(options):
    from DiffDRRCore import Volume
    from DiffDRRCore.datasets.simulated import points_in_bone

    if options.targets is not None:
        return read_points(options.targets)
    if options.ct is None:
        raise DiffDRRError("There is nothing to measure at: give --targets FILE.csv or --ct FILE.")
    points = points_in_bone(Volume.read(options.ct))
    if len(points) == 0:
        raise DiffDRRError("The CT has no bone (above 150 HU) to measure at: give --targets FILE.csv.")
    return points


def read_points(path: Path):
    """Points [N, 3] of a CSV file; a first row that is not of numbers is a heading."""
    import csv

    import torch

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise ReadError(f"The points in '{path}' cannot be read: {error}.") from error
    numbers = [_numbers(row) for row in rows]
    if numbers and numbers[0] is None:
        numbers = numbers[1:]
    if not numbers or any(row is None or len(row) != 3 or not all(map(math.isfinite, row)) for row in numbers):
        raise ReadError(f"'{path}' must have three finite numbers in each row: R, A, S in mm.")
    return torch.tensor(numbers, dtype=torch.float64)


def _numbers(row: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in row]
    except ValueError:
        return None
