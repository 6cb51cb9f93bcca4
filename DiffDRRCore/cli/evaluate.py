"""Evaluate registration: run a protocol's cases and report them, or compare one pose with a reference.

With a protocol (.yaml or .json; --example prints one to start from), its cases are run in parallel and each is kept in
--output as soon as it is finished: the same command goes on where an earlier one stopped. Tables, figures and an HTML
report are written at the end. The exit code is 1 if no case could be solved.

With two poses, the errors of the first are printed. Targets are points in the patient: a .mrk.json, .fcsv or CSV file
(R, A, S in mm in each row, after a name or without; a heading is allowed), or, without one, points in the CT's bone.

Poses are camera_to_world in RAS. Errors are in mm and degrees; DiffDRRCore.evaluation.measures defines them.

Examples:
  python -m DiffDRRCore evaluate --example > protocol.yaml
  python -m DiffDRRCore evaluate protocol.yaml --output evaluation
  python -m DiffDRRCore evaluate result/result.json truth.json --targets landmarks.csv
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError

_OF_POSES = ("camera", "targets", "ct")
_OF_RUNS = ("output", "workers", "threads", "scheduler", "retry_failed", "report_only", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `evaluate`."""
    parser.add_argument(
        "subject", nargs="?", type=Path, metavar="PROTOCOL|ESTIMATE", help="protocol; or a pose: .json, .tfm, .h5"
    )
    parser.add_argument("reference", nargs="?", type=Path, metavar="REFERENCE", help="true pose, for an ESTIMATE")
    run = parser.add_argument_group("a protocol")
    run.add_argument("--output", "-o", type=Path, help="folder of the run; one that is there already is gone on with")
    run.add_argument("--workers", type=int, help="processes; default: as many as there are cores; 0: none but this one")
    run.add_argument("--threads", type=int, help="of each process; default: 1")
    run.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers run the cases")
    run.add_argument("--device", choices=("cpu", "cuda"), help="where to render; default: cpu")
    run.add_argument("--retry-failed", action="store_true", default=None, help="run cases again that failed before")
    run.add_argument("--report-only", action="store_true", default=None, help="report the cases of --output anew")
    run.add_argument("--example", action="store_true", help="print a protocol with explanations")
    poses = parser.add_argument_group("two poses")
    poses.add_argument("--view", type=int, default=0, help="view of a result with several, from 0")
    poses.add_argument("--camera", type=Path, help="JSON camera, for errors on the detector; default: the reference's")
    poses.add_argument("--targets", type=Path, help="file of points: .mrk.json, .fcsv, CSV (R, A, S in mm)")
    poses.add_argument("--ct", type=Path, help="CT, for points in its bone where there are no targets")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """A protocol, or two poses; returns the exit code."""
    if options.example:
        from DiffDRRCore.evaluation.protocol import EXAMPLE

        print(EXAMPLE, end="")
    elif options.reference is not None:
        _refuse(options, _OF_RUNS, "is for a protocol, not for two poses")
        _compare(options)
    else:
        _refuse(options, _OF_POSES, "is for two poses: give the reference as well")
        return _run_protocol(options)
    return 0


def _refuse(options, names: tuple[str, ...], reason: str) -> None:
    given = [name for name in names if getattr(options, name) is not None]
    if given:
        raise DiffDRRError(f"--{given[0].replace('_', '-')} {reason}.")


def _run_protocol(options) -> int:
    """The exit code: 1 where no case could be solved."""
    if options.output is None:
        what = (
            "a protocol's run: give --output FOLDER" if options.subject else "a protocol, or two poses (see --example)"
        )
        raise DiffDRRError(f"evaluate needs {what}.")
    if not options.report_only:
        _run_cases(options)
    written = _write_report(options.output)
    from DiffDRRCore.evaluation.running import read_records

    records = read_records(options.output)
    failed = [record for record in records if record["failure"] is not None]
    values = {"folder": str(options.output), "cases": len(records), "failed": len(failed), "files": written}
    lines = [f"{len(records)} cases, {len(failed)} failed, in {options.output}"]
    first = f"first failure: {failed[0]['case']}: {failed[0]['failure']}" if failed else ""
    nothing = len(failed) == len(records)
    if failed and not nothing:
        lines.append(first)
    output.report(values, options.json, [*lines, "written: " + ", ".join(written)])
    if nothing:
        print(f"No case could be solved; {first}", file=sys.stderr)
    return int(nothing)


def _write_report(folder: Path) -> list[str]:
    from DiffDRRCore.evaluation.report import write_report

    try:
        return [str(path) for path in write_report(folder, _loader(folder))]
    except ReadError:
        raise
    except DiffDRRError as error:
        again = "the cases are kept; once that is mended, --report-only writes the report"
        raise DiffDRRError(f"{str(error).rstrip('.')}; {again}.") from error


def _loader(folder: Path):
    """What the report draws its pictures from; a dataset that is gone costs no more than these."""
    from DiffDRRCore.evaluation.report import load_cases
    from DiffDRRCore.evaluation.running import read_run

    read_run(folder)
    try:
        return load_cases(folder)
    except DiffDRRError as error:
        warnings.warn(f"The report has no pictures of cases: {error}", DiffDRRWarning, stacklevel=2)
        return None


def _run_cases(options) -> None:
    if options.subject is None:
        raise DiffDRRError("There is no protocol to run: give its file, or --report-only.")
    if options.subject.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise DiffDRRError(f"'{options.subject}' is no protocol (.yaml, .json); two poses need the reference as well.")
    from DiffDRRCore.evaluation.protocol import Protocol
    from DiffDRRCore.evaluation.running import run as run_protocol

    options.device = options.device or "cpu"
    arguments.check_device(options)
    protocol = Protocol.read(options.subject)
    with output.CountBar("evaluate", "cases", quiet=options.json) as bar:
        run_protocol(
            protocol,
            options.output,
            workers=options.workers,
            threads=1 if options.threads is None else options.threads,
            scheduler=options.scheduler,
            progress=bar,
            retry_failed=bool(options.retry_failed),
            device=options.device,
        )


def _compare(options) -> None:
    from DiffDRRCore.evaluation.measures import pose_errors
    from DiffDRRCore.imaging.camera_file import read_camera
    from DiffDRRCore.registration.result import RegistrationResult

    estimate = arguments.read_pose(options.subject, options.view)
    reference = arguments.read_pose(options.reference, options.view)
    camera_file = options.camera or options.reference
    if camera_file.suffix != ".json" or RegistrationResult.is_saved_at(camera_file):
        raise DiffDRRError(f"'{camera_file}' holds no camera: give --camera FILE.json.")
    errors = pose_errors(estimate, reference, read_camera(camera_file).camera, _targets(options))
    values = {name: float(value) for name, value in errors.items()}
    output.report(values, options.json, output.table(["measure", "value"], [[name, x] for name, x in values.items()]))


def _targets(options):
    import torch

    from DiffDRRCore import Volume
    from DiffDRRCore.datasets.points import read_points
    from DiffDRRCore.datasets.simulated import points_in_bone

    if options.targets is not None:
        return torch.stack(list(read_points(options.targets).values()))
    if options.ct is None:
        raise DiffDRRError("There is nothing to measure at: give --targets FILE.csv or --ct FILE.")
    points = points_in_bone(Volume.read(options.ct))
    if len(points) == 0:
        raise DiffDRRError("The CT has no bone (above 150 HU) to measure at: give --targets FILE.csv.")
    return points
