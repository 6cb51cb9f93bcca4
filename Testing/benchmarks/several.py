"""Several views, bones that move apart, cameras not known, and how sure: `python -m Testing.benchmarks.several`.

X-rays are made by `datasets.simulated.simulated_xray` (another integrator than the registration's, 16 rays a pixel,
10,000 photons a pixel, unknown gain and offset). With --write, puts the section "Several views and bones" into
RESULTS.md.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from statistics import median

import torch
from scipy.stats import chi2
from torch import Tensor
from tqdm import tqdm

from DiffDRRCore import CArm, Pose, Volume, XRay, register
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.datasets.simulated import moved_apart, points_in_bone, simulated_xray
from DiffDRRCore.geometry.se3 import log_so3
from DiffDRRCore.registration import Body, FreeCamera, Limits
from Testing.benchmarks.protocols import DATA
from Testing.benchmarks.report import machine, table, write_section
from Testing.benchmarks.timing import use_threads
from Testing.protocol.simulated import errors, make_case, moved_by, random_starts

SDD, SOD, SIZE, FIELD = 1020.0, 850.0, 128, 400.0  # mm, mm, pixels, mm at the detector
INSIDE_FIELD = 260.0  # mm: no X-ray shows where the chest CT is cut off


def arm(volume: Volume, primary: float, secondary: float = 0.0, sdd: float = SDD) -> CArm:
    return CArm(sdd, SOD, volume.center, primary, secondary)


def xrays(volume: Volume, primaries, parts=None) -> list[XRay]:
    """128 x 128 pixels each."""
    found = []
    for number, primary in enumerate(primaries):
        one = arm(volume, primary)
        camera = one.camera(SIZE, SIZE, (FIELD / SIZE,) * 2)
        found.append(simulated_xray(parts or volume, camera, one.pose, seed=number))
    return found


def chest() -> Volume:
    return Volume.read(DATA / "chest_ct" / "cxr.nii.gz")


def pelvis() -> Volume:
    folder = DATA / "pelvis_labels"
    return Volume.read(folder / "ct.nii.gz", folder / "labels.nii.gz")


def two_views(arguments: argparse.Namespace) -> list[str]:
    """One view and two orthogonal ones, from the same starts."""
    volume, rows = chest(), []
    case = make_case("chest", volume)
    images = xrays(volume, (0.0, 90.0))
    for count in (1, 2):
        found, spent = [], []
        for start in tqdm(random_starts(case, arguments.starts), f"{count} views", leave=False):
            began = time.perf_counter()
            result = register(volume, images[:count], start, samples=2)
            spent.append(time.perf_counter() - began)
            found.append(errors(case, result.poses[0]))
        total, depth = ([abs(one[name]) for one in found] for name in ("mtre_mm", "translation_depth_mm"))
        good = sum(error < 0.5 for error in total)
        cells = [f"{good} of {len(total)}", f"{median(total):.3f}", f"{max(total):.3f}", f"{median(depth):.3f}"]
        rows.append([str(count), *cells, f"{max(depth):.3f}", f"{median(spent):.1f}"])
    head = ["views", "mTRE below 0.5 mm", "median", "worst", "depth error, median", "worst", "s"]
    text = "Chest CT, starts 5 degrees, 10 mm across and 30 mm along the beam off (standard deviations):"
    return [text, "", *table(head, rows)]


def bones(arguments: argparse.Namespace) -> list[str]:
    """Two bones, each moved by 5 mm and 5 degrees in directions of its own, the rest staying."""
    cases = {
        "phantom, hip bones": (phantom(), (7, 8)),
        "phantom, femurs": (phantom(), (9, 10)),
        "pelvis CT, hip bones": (pelvis(), (77, 78)),
    }
    rows = []
    for name, (volume, labels) in cases.items():
        for views in ((0.0,), (0.0, 90.0)):
            found = [_bones(volume, labels, views, trial) for trial in range(arguments.trials)]
            both = [max(shift for shift, _ in one) < 1 and max(turn for _, turn in one) < 1 for one in found]
            shifts, turns = ([pair[which] for one in found for pair in one] for which in (0, 1))
            cells = [f"{sum(both)} of {len(both)}", f"{median(shifts):.2f}", f"{max(shifts):.2f}"]
            rows.append([name, str(len(views)), *cells, f"{median(turns):.2f}", f"{max(turns):.2f}"])
    head = ["CT", "views", "both below 1 mm and 1 degree", "mm, median", "worst", "degrees, median", "worst"]
    text = (
        "Two bones (both femurs of the phantom, both hip bones of the pelvis CT), mean error over points of the bone:"
    )
    return [text, "", *table(head, rows)]


def _bones(volume: Volume, labels, views, trial: int) -> list[tuple[float, float]]:
    """(mm, degrees) of each bone."""
    points = {label: points_in_bone(volume.select(label), 200, 50.0, seed=label) for label in labels}
    truth = {label: moved_by(points[label].mean(0), 5.0, 5.0, 10 * trial + n) for n, label in enumerate(labels)}
    images = xrays(volume, views, moved_apart(volume, truth))
    bodies = [*(Body(str(label), [label]) for label in labels), Body("rest", locked=True)]
    result = register(volume, images, bodies=bodies, samples=2)
    return [apart(result.body(str(label)).motion, truth[label], points[label]) for label in labels]


def apart(found: Pose, truth: Pose, points: Tensor) -> tuple[float, float]:
    """Mean distance of the points in mm, and the angle in degrees."""
    shift = (found.transform(points) - truth.transform(points)).norm(dim=-1).mean()
    return float(shift), math.degrees(float(log_so3((found @ truth.inverse()).rotation).norm()))


def cameras(arguments: argparse.Namespace) -> list[str]:
    """A second C-arm told 3 degrees and 10 mm off; a source-to-detector distance told 30 mm too long."""
    volume, rows = chest(), []
    images = xrays(volume, (0.0, 80.0))
    true = images[0].pose.inverse() @ images[1].pose
    for trial in range(arguments.trials):
        wrong = moved_by(volume.center, 3.0, 10.0, trial) @ images[1].pose
        result = register(volume, images, [images[0].pose, wrong], free_views=[None, Limits()], samples=2)
        relative = result.carms[0].inverse() @ result.carms[1]
        center = true.inverse().transform(torch.tensor([[0.0, 0.0, SOD]], dtype=torch.float64))
        shift, turn = apart(relative, true, center)
        told = [_told_longer(volume, xray, primary) for xray, primary in zip(images, (0.0, 80.0), strict=True)]
        camera = register(volume, told, wrong_start(told, trial), free_cameras=FreeCamera(math.inf), samples=2).cameras[
            0
        ]
        sdd = float(camera.camera.source_to_detector)
        rows.append([str(trial + 1), f"{shift:.2f}", f"{turn:.2f}", f"{sdd:.1f} ± {float(camera.deviations[0]):.1f}"])
    head = ["trial", "second C-arm off by mm", "degrees", f"distance found (true {SDD:g}, told {SDD + 30:g}) in mm"]
    return ["Chest CT, two views at 80 degrees:", "", *table(head, rows)]


def _told_longer(volume: Volume, xray: XRay, primary: float) -> XRay:
    camera = arm(volume, primary, sdd=SDD + 30).camera(SIZE, SIZE, (FIELD / SIZE,) * 2)
    return XRay(xray.image, camera, xray.pose, xray.meta)


def wrong_start(images: list[XRay], trial: int) -> list[Pose]:
    """All poses moved alike, by 2 degrees and 5 mm."""
    motion = moved_by(torch.zeros(3).double(), 2.0, 5.0, trial)
    return [motion @ xray.pose for xray in images]


def coverage(arguments: argparse.Namespace) -> list[str]:
    """How often the truth lies in the stated regions."""
    cases = {"phantom, 4 mm": (phantom((96, 80, 96), 4.0), FIELD), "chest CT": (chest(), INSIDE_FIELD)}
    rows = []
    for name, (volume, field) in cases.items():
        found = list(tqdm(_squared(volume, field, arguments.cases), name, arguments.cases, leave=False))
        shares = [sum(x < chi2.ppf(level, 6) for x in found) / len(found) for level in (0.5, 0.9, 0.95)]
        rows.append([name, str(len(found)), *(f"{share:.0%}" for share in shares)])
    text = (
        "Of random C-arm angles (primary ±40, secondary ±20 degrees) and isocentres, how often the truth lies in the "
        "region of six dimensions that the covariance states (samples=2):"
    )
    return [text, "", *table(["CT", "cases", "50 % region", "90 %", "95 %"], rows)]


def _squared(volume: Volume, field: float, count: int) -> Iterator[float]:
    """Squared distances of the truth in units of the covariance."""
    random = torch.Generator().manual_seed(0)
    for number in range(count):
        u = torch.rand(6, generator=random, dtype=torch.float64) * 2 - 1
        one = CArm(SDD, SOD, volume.center + 15 * u[:3], 40 * float(u[3]), 20 * float(u[4]), roll=10 * float(u[5]))
        xray = simulated_xray(volume, one.camera(SIZE, SIZE, (field / SIZE,) * 2), one.pose, seed=number)
        start = one.pose.retract(
            torch.randn(6, generator=random).double() * torch.tensor([0.01] * 3 + [1.5] * 3), about=volume.center
        )
        result = register(volume, xray, start, sizes=(64, SIZE), search=0, samples=2)
        motion = result.poses[0] @ one.pose.inverse()
        xi = torch.cat([log_so3(motion.rotation), motion.transform(result.about[None])[0] - result.about])
        yield float(xi @ torch.linalg.solve(result.covariance, xi))


PARTS = {"views": two_views, "bones": bones, "cameras": cameras, "coverage": coverage}


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--starts", type=int, default=20, help="of one and two views; default: 20")
    parser.add_argument("--trials", type=int, default=5, help="of bones and cameras; default: 5")
    parser.add_argument("--cases", type=int, default=200, help="of each CT, for the coverage; default: 200")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    text = ["`python -m Testing.benchmarks.several --write`. " + " ".join((__doc__ or "").split("\n\n")[1].split())]
    text += ["", *machine(arguments.threads)]
    for part in arguments.parts:
        text += PARTS[part](arguments)
        print("\n".join(text), flush=True)
    if arguments.write:
        write_section("Several views and bones", text)


if __name__ == "__main__":
    main()
