"""Rendering against other engines: `python -m Testing.benchmarks.render`.

The chest CT of the shared data folder, 200 x 200 pixels of 2 mm, source to detector 1020 mm, source to isocentre
850 mm, isocentre in the middle of the volume, from three sides. The peers (ITK-RTK, plastimatch, DiffDRR, nanodrr) are
installed into .cache/peers first; each runs as a process of its own that holds the volume, and all take turns. Every
peer's image is compared with ours. Writes the section "Rendering" of RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from DiffDRRCore import Camera, CArm, Pose, Renderer, Volume
from Testing.benchmarks import report
from Testing.benchmarks.agreement import Agreement, agreement
from Testing.benchmarks.peers import environment, views
from Testing.benchmarks.peers.client import Peer, PeerError, open_peers
from Testing.benchmarks.render_tables import Measured, lines
from Testing.benchmarks.timing import interleave, seconds_of, use_threads

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CT = DATA / "chest_ct" / "cxr.nii.gz"
SIDES = {"AP": (0.0, 0.0), "lateral": (90.0, 0.0), "oblique": (45.0, 20.0)}
BONE_HU = 300.0
# Row of the report: peer, arguments of its `render`.
PEER_ROWS = {
    "ITK-RTK Joseph": ("rtk", {}),
    "plastimatch exact": ("plastimatch", {}),
    "DiffDRR Siddon": ("diffdrr", {"integrator": "siddon"}),
    "DiffDRR trilinear": ("diffdrr", {"integrator": "trilinear"}),
    "nanodrr": ("nanodrr", {}),
    "nanodrr compiled": ("nanodrr", {"compiled": True}),
}
DIFFERENTIABLE = ("diffdrr", "nanodrr")


@dataclass(frozen=True)
class Shot:
    """A camera and pose of ours, and the same in the peers' numbers."""

    camera: Camera
    pose: Pose
    view: dict


@dataclass(frozen=True)
class Bench:
    """What is measured: our renderers by row name, the peers that run, those that do not, and the images."""

    ours: dict[str, Renderer]
    bones: dict[str, Renderer]
    peers: dict[str, Peer]
    failed: dict[str, str]
    shots: dict[str, Shot]
    big: Shot

    def peer_calls(self, key: str, shot: Shot, derivatives: bool = False) -> dict[tuple, Callable[[], float]]:
        """{(row, key): a call that returns its seconds} of the peers that can do it."""
        chosen = {row: peer for row, peer in PEER_ROWS.items() if not derivatives or peer[0] in DIFFERENTIABLE}
        extra = {"derivatives": True} if derivatives else {}
        return {
            (row, key): lambda n=name, a=arguments: self._ask(n, shot, **a, **extra)["seconds"]
            for row, (name, arguments) in chosen.items()
        }

    def peer_image(self, row: str, shot: Shot, folder: Path) -> np.ndarray:
        """[H, W] of a peer. Raises PeerError."""
        name, arguments = PEER_ROWS[row]
        self._ask(name, shot, save=str(folder / "image.npy"), **arguments)
        return np.load(folder / "image.npy")

    def _ask(self, name: str, shot: Shot, **arguments) -> dict:
        if name in self.failed:
            raise PeerError(self.failed[name])
        return self.peers[name].ask("render", view=shot.view, **arguments)


def our_calls(renderers: dict[str, Renderer], key: str, shot: Shot, derivatives: bool = False) -> dict:
    """{(row, key): a call that returns its seconds}, the image or the image with six derivatives a pixel."""
    return {
        (row, key): lambda f=renderer.linearize if derivatives else renderer: seconds_of(
            lambda: f(shot.camera, shot.pose)
        )
        for row, renderer in renderers.items()
    }


def measure(bench: Bench, rounds: int, patience: float) -> dict:
    """{(row, column): Times}; columns: the sides, 'bones', 'derivatives', '512'."""
    times = {}
    for side, shot in bench.shots.items():
        calls = {**our_calls(bench.ours, side, shot), **bench.peer_calls(side, shot)}
        if side == "AP":
            calls |= our_calls(bench.bones, "bones", shot) | our_calls(bench.ours, "512", bench.big)
        times |= interleave(calls, rounds, patience, side)
    shot = bench.shots["AP"]
    calls = our_calls(bench.ours, "derivatives", shot, derivatives=True)
    calls |= bench.peer_calls("derivatives", shot, derivatives=True)
    return times | interleave(calls, rounds, patience, "derivatives")


def compare(bench: Bench, volume: Volume) -> dict[tuple, Agreement]:
    """{(row, side): agreement} of each image with that of our reference, exact Siddon on the torch backend."""
    reference, found = Renderer(volume, "siddon", "torch"), {}
    with tempfile.TemporaryDirectory() as folder:
        for side, shot in bench.shots.items():
            ours = reference(shot.camera, shot.pose)[0, 0].numpy()
            for row, renderer in bench.ours.items():
                found[row, side] = agreement(renderer(shot.camera, shot.pose)[0, 0].numpy(), ours)
            for row in PEER_ROWS:
                try:
                    found[row, side] = agreement(bench.peer_image(row, shot, Path(folder)), ours)
                except PeerError:
                    continue  # the table of times says why
    return found


def our_renderers(volume: Volume) -> dict[str, Renderer]:
    """Both integrators on the backend that "auto" chooses, and on the torch backend where that is another."""
    found = {}
    for integrator, word in (("siddon", "Siddon"), ("trilinear", "trilinear")):
        auto = Renderer(volume, integrator)
        found[f"ours, {word}, auto ({auto.backend})"] = auto
        if auto.backend != "torch":
            found[f"ours, {word}, torch"] = Renderer(volume, integrator, "torch")
    return found


def make_shot(volume: Volume, side: str, size: int = 200) -> Shot:
    """400 mm of detector."""
    primary, secondary = SIDES[side]
    arm = CArm(1020.0, 850.0, volume.center, primary, secondary)
    camera = arm.camera(size, size, (400.0 / size, 400.0 / size))
    return Shot(camera, arm.pose, views.view(camera, arm.pose, volume.center))


def bones_of(volume: Volume) -> Volume:
    """The volume with all but voxels above BONE_HU made air."""
    return Volume(volume.hu, volume.ijk_to_ras, labels=(volume.hu > BONE_HU).short()).select(1)


def run(options: argparse.Namespace) -> list[str]:
    """Measure everything; the report's lines."""
    volume = Volume.read(CT)
    names = [name for name in environment.RECIPES if name not in options.without]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        views.write_volume(volume, Path(folder))
        peers, failed = open_peers(names, Path(folder), options.threads)
        failed |= dict.fromkeys(options.without, "left out")
        shots = {side: make_shot(volume, side) for side in SIDES}
        bench = Bench(
            our_renderers(volume),
            our_renderers(bones_of(volume)),
            peers,
            failed,
            shots,
            make_shot(volume, "AP", 512),
        )
        with torch.no_grad():
            agreements = compare(bench, volume)
            times = measure(bench, options.rounds, options.patience)
        for peer in peers.values():
            peer.close()
    return lines(Measured(times, agreements, CT, options.threads))


def main() -> None:
    """Run everything, write the results' section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns that each engine gets; default: 15")
    parser.add_argument("--patience", type=float, default=20.0, help="s; slow engines get fewer turns; default: 20 s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every engine; default: all cores")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=list(environment.RECIPES), help="peers to leave out; default: none"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one turn each, without the slowest rows: prints, but does not touch RESULTS.md",
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.patience = 1, 0.0
        for slow in ("nanodrr compiled", "DiffDRR Siddon"):
            PEER_ROWS.pop(slow)
    use_threads(options.threads)
    text = [*report.machine(options.threads, environment.versions()), *run(options)]
    if not options.quick:
        report.write_section("Rendering", text)
    print("\n".join(text))


if __name__ == "__main__":
    main()
