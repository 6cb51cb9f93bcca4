"""DiffDRR on the CPU: Siddon or trilinear. Runs in the peers' environment."""

import time
from pathlib import Path

import numpy as np
import torch
import torchio
from diffdrr.data import read
from diffdrr.drr import DRR
from diffdrr.pose import RigidTransform


class Engine:
    """Holds the subject; renders and registers."""

    def __init__(self, scene: Path, threads: int):
        torch.set_num_threads(threads)
        volume = torchio.ScalarImage(scene / "attenuation.mha")
        # DiffDRR's own map from HU to density is relative to each volume: it is replaced by the true attenuation.
        hounsfield = torchio.ScalarImage(tensor=volume.data * 50_000 - 1000, affine=volume.affine)
        self.subject = read(hounsfield, orientation="AP", center_volume=True)
        self.subject.density.set_data(volume.data)

    def render(
        self, view: dict, save: str | None = None, derivatives: bool = False, integrator: str = "siddon"
    ) -> dict:
        """Seconds of one image, with the backward pass to the pose where asked for."""
        drr = self._drr(view, integrator)
        matrix = torch.tensor([view["diffdrr"]["matrix"]], requires_grad=derivatives)
        with torch.set_grad_enabled(derivatives):
            began = time.perf_counter()
            image = drr(RigidTransform(matrix))
            if derivatives:
                image.sum().backward()
            seconds = time.perf_counter() - began
        if save:
            np.save(save, image.detach()[0, 0].numpy())
        return {"seconds": seconds}

    def register(self, view: dict, image: str, steps: int) -> dict:
        """The recipe of DiffDRR's registration tutorial: Euler angles, SGD with 0.05 rad and 100 mm, global NCC.

        With the trilinear renderer, the faster one.
        """
        drr, start = self._drr(view, "trilinear"), torch.tensor([view["diffdrr"]["matrix"]])
        angles, shift = (
            x.detach().clone().requires_grad_() for x in RigidTransform(start).convert("euler_angles", "ZXY")
        )
        true = _standardised(torch.from_numpy(np.load(image))[None, None])
        rates = [{"params": [angles], "lr": 5e-2}, {"params": [shift], "lr": 1e2}]
        optimizer = torch.optim.SGD(rates, maximize=True)
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            moving = drr(angles, shift, parameterization="euler_angles", convention="ZXY")
            score = (_standardised(moving) * true).mean()
            score.backward()
            optimizer.step()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "steps": steps, "ncc": score.item(), "matrix": _matrix(angles, shift)}

    def _drr(self, view: dict, integrator: str) -> DRR:
        numbers = {name: value for name, value in view["diffdrr"].items() if name not in ("matrix", "orientation")}
        return DRR(self.subject, renderer=integrator, **numbers)


def _standardised(image: torch.Tensor) -> torch.Tensor:
    return (image - image.mean()) / (image.var(correction=0) + 1e-5).sqrt()


def _matrix(angles: torch.Tensor, shift: torch.Tensor) -> list:
    from diffdrr.pose import convert

    return convert(angles, shift, parameterization="euler_angles", convention="ZXY").matrix[0].detach().tolist()
