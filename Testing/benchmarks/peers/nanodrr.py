"""nanodrr on the CPU: plain or compiled. Runs in the peers' environment."""

import time
from pathlib import Path

import numpy as np
import torch
from nanodrr.data import Subject
from nanodrr.drr import render
from nanodrr.metrics import NormalizedCrossCorrelation2d
from nanodrr.registration import Registration


class Engine:
    """Holds the subject; renders and registers."""

    def __init__(self, scene: Path, threads: int):
        torch.set_num_threads(threads)
        self.subject = Subject.from_filepath(scene / "attenuation.mha", convert_to_mu=False)
        self._compiled = None

    def render(self, view: dict, save: str | None = None, derivatives: bool = False, compiled: bool = False) -> dict:
        """Seconds of one image, with the backward pass to the six pose parameters where asked for."""
        pose = self._registration(view)
        k_inv, sdd = pose.k_inv, pose.sdd
        function = self._compile() if compiled else render
        with torch.set_grad_enabled(derivatives):
            began = time.perf_counter()
            image = function(self.subject, k_inv, pose.pose, sdd, view["height"], view["width"])
            if derivatives:
                image.sum().backward()
            seconds = time.perf_counter() - began
        if save:
            np.save(save, image.detach()[0, 0].numpy())
        return {"seconds": seconds}

    def register(self, view: dict, image: str, steps: int) -> dict:
        """The recipe of nanodrr's own optimisation tutorial: Adam, 0.05 rad and 10 mm, NCC, until it is 0.999."""
        module = self._registration(view)
        true, ncc = torch.from_numpy(np.load(image))[None, None], NormalizedCrossCorrelation2d()
        rates = [{"params": [module._rot], "lr": 5e-2}, {"params": [module._xyz], "lr": 1e1}]
        optimizer = torch.optim.Adam(rates, maximize=True)
        began = time.perf_counter()
        for taken in range(1, steps + 1):  # noqa: B007
            optimizer.zero_grad()
            score = ncc(true, module())
            score.backward()
            optimizer.step()
            if score.item() > 0.999:
                break
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "steps": taken, "ncc": score.item(), "rt_inv": module.pose.detach().tolist()}

    def _registration(self, view: dict) -> Registration:
        numbers = view["nanodrr"]
        k_inv, rt_inv = (torch.tensor([numbers[name]]) for name in ("k_inv", "rt_inv"))
        return Registration(self.subject, rt_inv, k_inv, torch.tensor([numbers["sdd"]]), view["height"], view["width"])

    def _compile(self):
        if self._compiled is None:
            self._compiled = torch.compile(render)
        return self._compiled
