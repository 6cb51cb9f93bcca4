"""No start at all: what a global search costs and how often it succeeds: `python -m Testing.benchmarks.search`.

X-rays are made by `datasets.simulated.simulated_xray` (another integrator than the registration's, 16 rays a pixel,
10,000 photons a pixel, unknown gain and offset) from C-arms drawn evenly over the default ranges of `GlobalSearch`:
primary ±90, secondary ±40, roll ±20 degrees, source to isocentre 0.6 to 0.9 of the distance to the detector, isocentre
within 50 mm of the CT's centre each way. With --write, puts the section "Global search" into RESULTS.md.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from tqdm import tqdm

from DiffDRRCore import CArm, Volume, register
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.datasets.simulated import points_in_bone, simulated_xray
from DiffDRRCore.registration import GlobalSearch
from Testing.benchmarks.report import machine, table, write_section
from Testing.benchmarks.several import FIELD, INSIDE_FIELD, SDD, SIZE, chest
from Testing.benchmarks.timing import use_threads
from Testing.protocol.simulated import Case, errors

NEAR = 2.0  # mm of mean target registration error


def drawn(volume: Volume, random: torch.Generator) -> CArm:
    """A C-arm, evenly over the search's ranges."""
    u = torch.rand(7, generator=random, dtype=torch.float64) * 2 - 1
    sod = SDD * (0.75 + 0.15 * float(u[6]))
    return CArm(SDD, sod, volume.center + 50 * u[:3], 90 * float(u[3]), 40 * float(u[4]), 20 * float(u[5]))


def row(name: str, volume: Volume, field: float, count: int) -> list[str]:
    """Of one CT: successes, errors after the search and after the registration, cost."""
    random = torch.Generator().manual_seed(0)
    targets, after_search, after, said, seconds, found = points_in_bone(volume), [], [], [], [], None
    for number in tqdm(range(count), name, leave=False):
        carm = drawn(volume, random)
        xray = simulated_xray(volume, carm.camera(SIZE, SIZE, (field / SIZE,) * 2), carm.pose, seed=number)
        case = Case(name, volume, xray, carm.pose, targets)
        began = time.perf_counter()
        found = GlobalSearch().find(volume, xray.with_pose(None))
        seconds.append(time.perf_counter() - began)
        result = register(volume, xray, found.poses[0])
        after_search.append(errors(case, found.poses[0])["mtre_mm"])
        after.append(errors(case, result.poses[0])["mtre_mm"])
        said.append(bool(result.doubts))
    wrong = [doubt for doubt, error in zip(said, after, strict=True) if error >= NEAR]
    right = [doubt for doubt, error in zip(said, after, strict=True) if error < NEAR]
    return [
        name,
        f"{len(right)} of {count}",
        f"{median(after_search):.1f}",
        f"{median(after):.2f}",
        f"{sum(wrong)} of {len(wrong)}",
        f"{sum(right)} of {len(right)}",
        f"{found.views} for {found.tried / 1e6:.1f} million",
        f"{median(seconds):.1f}",
    ]


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20, help="X-rays of each CT; default: 20")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    rows = [row("phantom", phantom(), FIELD, arguments.cases), row("chest CT", chest(), FIELD, arguments.cases)]
    rows.append(row("chest CT, X-ray within it", chest(), INSIDE_FIELD, arguments.cases))
    head = ["CT", f"below {NEAR:g} mm after registration", "median mm after the search", "and after registration"]
    head += ["doubts where wrong", "where right", "views rendered for poses", "search, s"]
    text = ["`python -m Testing.benchmarks.search --write`. " + " ".join((__doc__ or "").split("\n\n")[1].split())]
    text += ["", *machine(arguments.threads), *table(head, rows)]
    print("\n".join(text))
    if arguments.write:
        write_section("Global search", text)


if __name__ == "__main__":
    main()
