"""Makes simulation.jpg of the README: a plain DRR of the chest CT, and the same view simulated at two doses.

Run it after `make demo`, which fetches the CT: `.venv/bin/python Resources/make_simulation_picture.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from DiffDRRCore import CArm, Renderer, Volume
from DiffDRRCore.datasets.chest import fetch_chest_ct
from DiffDRRCore.datasets.shapes import Cylinder
from DiffDRRCore.physics import BeamObject, Collimator, Display, Effects, Exposure, Grid, Scatter, Simulator, Spectrum

SIZE, FIELD = 420, 400.0  # pixels, mm
KVP = 80


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder of the CT; default: .cache")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("simulation.jpg"))
    options = parser.parse_args()
    files = fetch_chest_ct(options.cache)
    volume = Volume.read(files.ct)
    arm = CArm(1020.0, 720.0, volume.center, 180.0, 0.0)
    camera = arm.camera(SIZE, SIZE, (FIELD / SIZE, FIELD / SIZE))
    with torch.no_grad():
        drr = Renderer(volume)(camera, arm.pose)[0, 0]
        simulated = [radiograph(volume, camera, arm, kerma) for kerma in (2.0, 0.1)]
    panels = [drr / drr.max(), *simulated]
    titles = ("DRR", f"simulated, {KVP} kVp, 2 uGy", f"{KVP} kVp, 0.1 uGy")
    tiles = [titled(panel.numpy(), title) for panel, title in zip(panels, titles, strict=True)]
    Image.fromarray(np.concatenate(tiles, axis=1)).save(options.output, quality=88)


def radiograph(volume: Volume, camera, arm: CArm, kerma: float) -> torch.Tensor:
    """[H, W] from 0 to 1, as it is displayed: bone bright."""
    simulator = Simulator(
        volume,
        Spectrum.tungsten(KVP, {"Al": 3.0}),
        objects=screws(volume),
        exposure=Exposure(kerma=kerma),
        effects=Effects(
            focal_spot_mm=0.6, detector_mtf=1.8, scatter=Scatter(KVP, grid=Grid()), collimator=Collimator(radius=190.0)
        ),
    )
    image = simulator(camera, arm.pose, seed=1)
    return Display.radiograph(image.i0)(image.xray.image)


def screws(volume: Volume) -> list[BeamObject]:
    """Four of titanium in two vertebrae."""
    center = volume.center
    places = [(x, -45.0, z) for x in (-14.0, 14.0) for z in (-60.0, -30.0)]
    shafts = [Cylinder((center + center.new_tensor(p)).tolist(), (p[0] / 56, 1.0, 0.0), 3.0, 45.0) for p in places]
    return [BeamObject(shaft, "Ti", name=f"screw {number}") for number, shaft in enumerate(shafts)]


def titled(panel: np.ndarray, title: str) -> np.ndarray:
    """[H, W] uint8 with a title in its corner."""
    image = Image.fromarray((255 * np.clip(panel, 0, 1)).astype(np.uint8))
    ImageDraw.Draw(image).text((10, 8), title, fill=255, font_size=18, stroke_width=2, stroke_fill=0)
    return np.asarray(image)


if __name__ == "__main__":
    main()
