"""What registration does with X-rays that the CT does not explain: `python -m Testing.benchmarks.robustness`.

Prints, for each adversity and each way of registering, how many of the starts end within 2 mm (mean target registration
error; in brackets: within 2 mm in the image plane), and the median error in mm. X-rays are polychromatic, with
scatter, blur and noise.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from statistics import median

import torch

from DiffDRRCore import CArm, Pose, Volume, register
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import points_in_bone
from DiffDRRCore.errors import DiffDRRWarning, RegistrationError
from DiffDRRCore.registration.masks.metal import automatic_weights
from Testing.benchmarks.protocols import DATA
from Testing.protocol import adversities
from Testing.protocol.real import CT_FILES
from Testing.protocol.simulated import Case, errors, random_starts

SIZE, FIELD, NEAR = 256, 360.0, 2.0
WAYS = ("default", "tukey", "automatic weights", "gradient_ncc", "gradient_ncc + automatic")


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


def ways() -> dict[str, Callable[[Case, Pose], dict]]:
    """Options by name, of a case and a start."""

    def automatic(case: Case, start: Pose) -> dict:
        return {"weights": automatic_weights([case.xray], case.volume, [start])}

    edges = {"similarity": "gradient_ncc"}
    made = (
        lambda case, start: {},
        lambda case, start: {"robust": "tukey"},
        automatic,
        lambda case, start: edges,
        lambda case, start: edges | automatic(case, start),
    )
    return dict(zip(WAYS, made, strict=True))


def measured(case: Case, way: Callable, starts: list[Pose]) -> tuple[int, int, float]:
    """(within 2 mm, within 2 mm in the image plane) of the starts, and the median error in mm."""
    found = []
    for start in starts:
        try:
            found.append(errors(case, register(case.volume, case.xray, start, **way(case, start)).poses[0]))
        except RegistrationError:
            continue
    near, in_plane = (sum(one[name] < NEAR for one in found) for name in ("mtre_mm", "mtre_in_plane_mm"))
    return near, in_plane, median([one["mtre_mm"] for one in found] or [math.nan])


def starts_of(kind: str, case: Case, count: int) -> list[Pose]:
    """Around the truth; for the wrong depth, 100 mm along the beam from there."""
    starts = random_starts(case, count)
    if kind != "start 100 mm too deep":
        return starts
    back = torch.zeros(6, dtype=torch.float64)
    back[3:] = 100 * case.truth.rotation.reshape(3, 3)[:, 2]
    return [start.retract(back, about=case.volume.center) for start in starts]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ct", default="phantom", help=f"phantom, or one of {', '.join(CT_FILES)}")
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--only", nargs="*", help="adversities by name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DiffDRRWarning)
    volume = phantom((96, 64, 84), 4.0) if arguments.ct == "phantom" else Volume.read(DATA / CT_FILES[arguments.ct])
    print(f"{arguments.ct}, of {arguments.starts} starts: " + ", ".join(WAYS), flush=True)
    for kind, case in cases(arguments.ct, volume).items():
        if arguments.only and kind not in arguments.only:
            continue
        starts = starts_of(kind, case, arguments.starts)
        found = [measured(case, way, starts) for way in ways().values()]
        print(
            f"{kind:28s}" + "".join(f"{near:4d} ({plane:2d}) {error:6.2f}" for near, plane, error in found), flush=True
        )


if __name__ == "__main__":
    main()
