"""What registration does with X-rays that the CT does not explain: `python -m Testing.benchmarks.robustness`.

For each adversity and each way of registering: how many of the starts end within 2 mm (mean target registration error;
in brackets: within 2 mm in the image plane), and the median error in mm. X-rays are polychromatic, with scatter, blur
and noise, 256 x 256 pixels. With --write, puts sections "X-rays that the CT does not explain" into RESULTS.md,
one for each CT.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch

from DiffDRRCore import CArm, Pose, Volume, register
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import points_in_bone
from DiffDRRCore.errors import DiffDRRWarning, RegistrationError
from Testing.benchmarks.protocols import DATA
from Testing.benchmarks.report import machine, table, write_section
from Testing.benchmarks.timing import use_threads
from Testing.protocol import adversities
from Testing.protocol.real import CT_FILES
from Testing.protocol.simulated import Case, errors, random_starts

SIZE, FIELD, NEAR = 256, 360.0, 2.0
WRONG = 5.0  # mm
WAYS = {
    "default": {},
    "grey values alone": {"second": None},
    "automatic weights": {"weights": "auto"},
}
CTS = ("phantom", "chest")
SENTENCES = (
    "By default, outlines have the last word (`second`), and what lies beyond the ends of the CT does not count "
    "(`beyond_ends`). Blades need weights='auto' (--auto-weights): without it the answer is far off, and doubted. A "
    "negative is not registered but said: invert it.",
)
TITLE = "X-rays that the CT does not explain"


def cases(name: str, volume: Volume) -> dict[str, Case]:
    """One X-ray for each adversity."""
    carm = CArm(1020.0, 850.0, volume.center, 10.0, 5.0)
    camera = carm.camera(SIZE, SIZE, (FIELD / SIZE,) * 2)
    plain, center = adversities.simulator(volume, camera), volume.center
    rng = torch.Generator().manual_seed(0)
    objects = {
        "none": [],
        "steel ball": adversities.metal("ball", center, rng, 40.0),
        "plate": adversities.metal("plate", center, rng, 30.0),
        "tool": adversities.tool(center, carm.pose),
        "hand": adversities.hand(center, carm.pose),
        "contrast agent": adversities.vessels(center, rng),
        "cast": adversities.cast(center),
    }
    xrays = {kind: adversities.taken(plain, camera, carm.pose, things)[0] for kind, things in objects.items()}
    clean = xrays["none"]
    turned = adversities.turned_field(SIZE, SIZE, 20.0, 0.75, (8.0, -6.0))
    xrays["collimator, turned"] = adversities.collimated(clean, turned)
    xrays["collimator, round"] = adversities.collimated(clean, adversities.round_field(SIZE, SIZE, 0.8, (15.0, 10.0)))
    xrays["X-ray cut to a third"] = clean.cropped(SIZE // 4, SIZE // 4, SIZE // 3, 0)
    xrays["negative"] = clean.with_image(clean.image.max() - clean.image)
    targets = points_in_bone(volume)
    made = {kind: Case(f"{name}, {kind}", volume, xray, carm.pose, targets) for kind, xray in xrays.items()}
    made["CT cut to half its height"] = Case(f"{name}, CT", _halved(volume), clean, carm.pose, targets)
    made["start 100 mm too deep"] = made["none"]
    return made


def _halved(volume: Volume) -> Volume:
    k = volume.hu.shape[0]
    first = volume.ijk_to_ras.clone()
    first[:3, 3] += first[:3, 2] * (k // 4)
    return Volume(volume.hu[k // 4 : k - k // 4], first)


@dataclass(frozen=True)
class Found:
    """One registration: mean target registration error in mm, in all and in the image plane; whether it is doubted."""

    error: float
    in_plane: float
    doubted: bool


def starts_of(kind: str, case: Case, count: int) -> list[Pose]:
    """Around the truth; for the wrong depth, 100 mm along the beam from there."""
    starts = random_starts(case, count)
    if kind != "start 100 mm too deep":
        return starts
    back = torch.zeros(6, dtype=torch.float64)
    back[3:] = 100 * case.truth.rotation.reshape(3, 3)[:, 2]
    return [start.retract(back, about=case.volume.center) for start in starts]


def measured(case: Case, options: dict, starts: list[Pose]) -> list[Found]:
    """From each of the starts; an error that the registration raises is an answer infinitely wrong, and doubted."""
    found = []
    for start in starts:
        try:
            result = register(case.volume, case.xray, start, **options)
        except RegistrationError:
            found.append(Found(math.inf, math.inf, True))
            continue
        one = errors(case, result.poses[0])
        found.append(Found(one["mtre_mm"], one["mtre_in_plane_mm"], bool(result.doubts)))
    return found


def rows(name: str, count: int, only: list[str] | None) -> Iterator[tuple[str, dict[str, list[Found]]]]:
    """For each adversity, what each way finds."""
    volume = phantom((96, 64, 84), 4.0) if name == "phantom" else Volume.read(DATA / CT_FILES[name])
    for kind, case in cases(name, volume).items():
        if not only or kind in only:
            starts = starts_of(kind, case, count)
            yield kind, {way: measured(case, options, starts) for way, options in WAYS.items()}


def cell(found: list[Found]) -> str:
    """Within 2 mm (in the image plane), median error."""
    near, plane = (sum(getattr(one, name) < NEAR for one in found) for name in ("error", "in_plane"))
    return f"{near} ({plane}), {median(one.error for one in found):.2f}"


def said_of_doubts(found: list[Found]) -> str:
    """How many wrong answers are doubted, and how many of those right in the image plane."""
    wrong = [one.doubted for one in found if one.error > WRONG]
    right = [one.doubted for one in found if one.error <= WRONG and one.in_plane < NEAR]
    return (
        f"By default, {sum(wrong)} of {len(wrong)} answers more than {WRONG:g} mm off are doubted, and {sum(right)} of "
        f"{len(right)} nearer than that and within {NEAR:g} mm in the image plane."
    )


def measured_ct(name: str, arguments: argparse.Namespace) -> list[str]:
    """Lines of the report."""
    cells, default = [], []
    for kind, found in rows(name, arguments.starts, arguments.only):
        cells.append([kind, *(cell(one) for one in found.values())])
        default += found["default"]
        print(name, " | ".join(cells[-1]), flush=True)
    head = ["X-ray", *(f"{way}: of {arguments.starts} within 2 mm, median mm" for way in WAYS)]
    return [*table(head, cells), said_of_doubts(default), ""]


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cts", nargs="+", default=list(CTS), help=f"phantom, {', '.join(CT_FILES)}; default: {CTS}")
    parser.add_argument("--starts", type=int, default=5, help="default: 5")
    parser.add_argument("--only", nargs="*", help="adversities by name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    warnings.simplefilter("ignore", DiffDRRWarning)
    intro = "`python -m Testing.benchmarks.robustness --write`. " + " ".join(__doc__.split("\n\n")[1].split())
    for name in arguments.cts:
        text = [intro, "", *machine(arguments.threads), *measured_ct(name, arguments), *SENTENCES]
        print("\n".join(text), flush=True)
        if arguments.write:
            write_section(f"{TITLE}: {name}", text)


if __name__ == "__main__":
    main()
