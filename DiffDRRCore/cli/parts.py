"""Several bones, C-arms that are not calibrated to each other, and unknown cameras, on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError

REST = "rest"


def add_bodies(group) -> None:
    """`--body` and `--locked`."""
    group.add_argument(
        "--body",
        action="append",
        default=[],
        metavar="NAME=LABELS",
        help="a part of the CT that moves on its own, once for each: its labels (numbers or names, with commas), or "
        f"'{REST}' for all that belongs to no other body; needs --labelmap",
    )
    group.add_argument("--locked", nargs="+", default=[], metavar="NAME", help="bodies that stay where they are")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What moves beside the whole CT."""
    group = parser.add_argument_group("what moves on its own")
    add_bodies(group)
    group.add_argument("--one-by-one", action="store_true", help="register bodies one after the other, then together")
    group.add_argument(
        "--free-view",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="X-rays, from 1, whose C-arm is not calibrated to the others; one at least is",
    )
    group.add_argument(
        "--free-sdd", type=float, metavar="MM", help="find the source-to-detector distance, known to about so many mm"
    )
    group.add_argument(
        "--free-principal-point", type=float, metavar="MM", help="find the principal point, known to about so many mm"
    )
    group.add_argument(
        "--auto-weights", action="store_true", help="leave out metal and what lies beyond the edges of the beam"
    )
    group.add_argument("--samples", type=int, default=1, help="rays along each side of a pixel at the end; default: 1")


def keywords(options: argparse.Namespace) -> dict:
    """Options of a registration. Raises DiffDRRError for names that do not fit."""
    from DiffDRRCore.registration import FreeCamera, Limits

    found = {"one_by_one": options.one_by_one, "samples": options.samples}
    if options.auto_weights:
        found["weights"] = "auto"
    if (moving := bodies(options)) is not None:
        found["bodies"] = moving
    if options.free_view:
        count = len(options.xrays)
        if wrong := [number for number in options.free_view if not 1 <= number <= count]:
            raise DiffDRRError(f"--free-view {wrong[0]}: the X-rays are numbered 1 to {count}.")
        found["free_views"] = [Limits() if number in options.free_view else None for number in range(1, count + 1)]
    if options.free_sdd or options.free_principal_point:
        found["free_cameras"] = FreeCamera(options.free_sdd, options.free_principal_point)
    return found


def bodies(options: argparse.Namespace) -> list | None:
    """What `--body` and `--locked` say, None without. Raises DiffDRRError for what does not fit."""
    from DiffDRRCore.registration import Body

    if options.body and (options.labels is not None or options.labelmap is None):
        raise DiffDRRError("--body needs --labelmap FILE, and no --labels: the bodies name them.")
    pairs = [text.partition("=") for text in options.body]
    pairs = [(name.strip(), labels.strip()) for name, _, labels in pairs]
    if wrong := [text for text, pair in zip(options.body, pairs, strict=True) if not all(pair)]:
        raise DiffDRRError(f"--body {wrong[0]}: write NAME=LABELS, for example --body femur=75.")
    if wrong := [name for name, _ in pairs if Path(name).name != name]:
        raise DiffDRRError(f"--body {wrong[0]}: the name becomes that of a file, so it has no slashes.")
    if unknown := set(options.locked) - {name for name, _ in pairs}:
        raise DiffDRRError(f"--locked {min(unknown)}: there is no --body of that name.")
    if not pairs:
        return None
    return [
        Body(name, None if labels == REST else _labels(labels), locked=name in options.locked) for name, labels in pairs
    ]


def _labels(text: str) -> list[int | str]:
    return [arguments.number_or_word(part.strip()) for part in text.split(",")]


def write(folder: Path, result) -> list[Path]:
    """One transform for each of several bodies, and a JSON camera for each view whose camera was found."""
    from DiffDRRCore.geometry.itk_transform import write_itk_transform
    from DiffDRRCore.imaging.camera_file import write_camera

    files = []
    for body in result.bodies if len(result.bodies) > 1 else ():
        files.append(folder / f"body_{body.name}.tfm")
        write_itk_transform(files[-1], body.motion.matrix)
    for number, (found, pose) in enumerate(zip(result.cameras, result.poses, strict=True), start=1):
        if bool(found.changes.any()):
            files.append(folder / f"view{number}_camera.json")
            write_camera(files[-1], found.camera, pose)
    return files


def lines(result) -> list[str]:
    """How far each body has moved and how surely, and what was found of the cameras."""
    found = []
    if len(result.bodies) > 1:
        rows = [_row(body) for body in result.bodies]
        found += output.table(["body", "turned", "shifted", "surest to least sure"], rows)
    from DiffDRRCore.registration.problem.lens import NAMES

    for number, camera in enumerate(result.cameras, start=1):
        for name, change, deviation in zip(NAMES, camera.changes.tolist(), camera.deviations.tolist(), strict=True):
            if deviation > 0:
                found.append(f"view {number}: {name} changed by {change:+.2f} ± {deviation:.2f} mm")
    return found


def _row(body) -> list[str]:
    import torch

    from DiffDRRCore.geometry.se3 import log_so3

    turned = float(torch.rad2deg(log_so3(body.motion.rotation).norm()))
    shift = float((body.motion.transform(body.about[None])[0] - body.about).norm())
    spread = body.covariance[3:, 3:]
    sure = torch.linalg.eigvalsh(spread).clamp(min=0).sqrt() if bool(spread.any()) else None
    words = "locked" if sure is None else f"± {float(sure[0]):.2f} to {float(sure[-1]):.2f} mm"
    return [body.name, f"{turned:.2f} deg", f"{shift:.2f} mm", words]
