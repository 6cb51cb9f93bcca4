"""Render a simulated X-ray (DRR) of a CT.

The image holds line integrals of the linear attenuation (no unit). .nii, .nii.gz, .nrrd, .mha and .tif keep them
exactly; a .png holds the transmitted intensity 65535 exp(-integral). The camera and the pose (camera_to_world, RAS, mm)
are written beside it as JSON, so that `register` can read the image back.

Example:
  python -m DiffDRRCore render ct.nii.gz --height 256 --width 256 --pixel-spacing 1 1 --sdd 1020 --sod 700 \\
      --primary 30 --output drr.nii.gz
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `render`."""
    arguments.add_volume(parser)
    arguments.add_camera(parser)
    parser.add_argument("--integrator", choices=("trilinear", "siddon"), default="trilinear", help="default: trilinear")
    parser.add_argument(
        "--backend", choices=("auto", "torch", "cpu", "cuda"), default="auto", help="default: the device's fused one"
    )
    parser.add_argument(
        "--step", type=float, help="mm between samples (trilinear); default: the smallest voxel spacing"
    )
    parser.add_argument("--output", "-o", type=Path, required=True, help="image file; <stem>.json is written beside it")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Read, render, write, report."""
    import torch

    from DiffDRRCore import Renderer, XRay

    arguments.check_device(options)
    volume = arguments.read_volume(options)
    labels = arguments.chosen_labels(options)
    camera, pose = arguments.camera_and_pose(options, volume)
    volume = volume if labels is None else volume.select(labels)
    renderer = Renderer(volume.to(options.device), options.integrator, options.backend, options.step)
    began = time.perf_counter()
    with torch.no_grad():
        image = renderer(camera, pose)[0, 0].cpu()
    seconds = time.perf_counter() - began
    values = {"output": str(options.output), "seconds": seconds, "backend": renderer.backend}
    values |= {"minimum": float(image.min()), "maximum": float(image.max()), "mean": float(image.mean())}
    if values["maximum"] == 0:
        raise DiffDRRError("No ray meets the CT: check the pose and the isocentre (RAS, mm). Nothing was written.")
    meta = {"intensity": "attenuation"}
    if options.output.suffix.lower() == ".png":
        image, meta = (65535 * torch.exp(-image)).round(), {"intensity": "transmission", "i0": 65535}
    XRay(image, camera, pose, meta).write(options.output)
    output.report(values, options.json, [f"{name:9} {value}" for name, value in values.items()])
