"""The peers' own registration recipes as methods of an evaluation: solve(volume, xrays, starts, options)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from DiffDRRCore import Pose, Volume, XRay
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry.converters import from_diffdrr, from_nanodrr
from Testing.benchmarks.peers import views
from Testing.benchmarks.peers.client import Peer, PeerError

NAMES = {
    "nanodrr": "nanodrr's tutorial: Adam (0.05 rad, 10 mm), global NCC",
    "diffdrr": "DiffDRR's tutorial: SGD (0.05 rad, 100 mm), global NCC",
}
STEPS = 250


class Recipe:
    """One peer's recipe on the first of the X-rays, `STEPS` steps at most.

    Args:
        name: key of `NAMES`.
        folder: for what the peer reads.
        threads: of the engine.
        size: the X-ray's longest side in pixels as the peer gets it, area-averaged.
    """

    def __init__(self, name: str, folder: Path, threads: int, size: int):
        self._name, self._folder, self._threads, self._size = name, folder, threads, size
        self._volume: Volume | None = None
        self._peer: Peer | None = None

    def __call__(self, volume: Volume, xrays: list[XRay], starts: list[Pose], options: dict) -> SimpleNamespace:
        """The pose found. Raises RegistrationError where the peer cannot do it."""
        if volume is not self._volume:
            self._open(volume)
        xray = _seen_from_source(_reduced(xrays[0], self._size))
        image = self._folder / "target.npy"
        np.save(image, xray.image.numpy())
        view = views.view(xray.camera, starts[0], volume.center)
        try:
            answer = self._peer.ask("register", view=view, image=str(image), steps=STEPS)
        except PeerError as error:
            self._volume = None
            raise RegistrationError(str(error)) from error
        pose = _found_pose(self._name, view, answer, volume)
        steps = answer["steps"]
        return SimpleNamespace(poses=[pose], history=range(steps), converged=steps < STEPS, seconds=answer["seconds"])

    def _open(self, volume: Volume) -> None:
        self.close()
        views.write_volume(volume, self._folder)
        try:
            self._peer = Peer(self._name, self._folder, self._threads)
        except PeerError as error:
            raise RegistrationError(str(error)) from error
        self._volume = volume

    def close(self) -> None:
        """End the peer's process."""
        if self._peer is not None:
            self._peer.close()
        self._peer, self._volume = None, None


@contextmanager
def opened(name: str, folder: Path, threads: int, size: int) -> Iterator[Recipe]:
    """A recipe whose process ends with the block."""
    recipe = Recipe(name, folder, threads, size)
    try:
        yield recipe
    finally:
        recipe.close()


def _reduced(xray: XRay, size: int) -> XRay:
    scale = min(1.0, size / max(xray.image.shape))
    return xray.resampled(*(max(1, round(side * scale)) for side in xray.image.shape)) if scale < 1 else xray


def _seen_from_source(xray: XRay) -> XRay:
    """The peers' cameras look from the source."""
    if xray.camera.view_from == "source":
        return xray
    return XRay(xray.image.flip(-1), xray.camera.flipped(), xray.pose, xray.meta)


def _found_pose(name: str, view: dict, answer: dict, volume: Volume) -> Pose:
    """The peer's answer as our pose; its float32 rotation made exact."""
    if name == "nanodrr":
        numbers = view["nanodrr"]
        k_inv, rt_inv = torch.tensor(numbers["k_inv"]).double(), _rigid(answer["rt_inv"])
        return from_nanodrr(k_inv, rt_inv, numbers["sdd"], view["height"], view["width"])[1]
    numbers = {key: value for key, value in view["diffdrr"].items() if key != "matrix"}
    return from_diffdrr(_rigid(answer["matrix"]), **numbers, volume_center=volume.center)[1]


def _rigid(matrix) -> torch.Tensor:
    """[4, 4] float64 with the nearest orthogonal matrix in place of the rotation."""
    matrix = torch.tensor(matrix).double().reshape(4, 4)
    u, _, v = torch.linalg.svd(matrix[:3, :3])
    matrix[:3, :3] = u @ v
    return matrix
