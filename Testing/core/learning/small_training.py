"""A training that takes seconds: a small phantom, small images, a small network."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk
import torch

from DiffDRRCore import Camera
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.learning.training.options import TrainingOptions

SIZE = 32
LPS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
VIEWS = {"primary": [-20, 20], "secondary": [-15, 15], "roll": [-5, 5], "shift_s": [-10, 10], "sod": [700, 760]}


def write_phantom(path: Path, spacing: float = 10.0, scale: float = 1.0) -> Path:
    """A CT file of the phantom; `scale` makes its HU those of another patient."""
    volume = phantom(shape=(36, 32, 36), spacing=spacing)
    image = sitk.GetImageFromArray((volume.hu * scale).round().to(torch.int16).numpy())
    affine = LPS @ volume.ijk_to_ras.double()
    steps = affine[:3, :3].norm(dim=0)
    image.SetSpacing(steps.tolist())
    image.SetDirection((affine[:3, :3] / steps).flatten().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return path


def small_options(ct: Path, **changes) -> TrainingOptions:
    camera = Camera(SIZE, SIZE, (400 / SIZE, 400 / SIZE), 1020.0)
    options = {"views": VIEWS, "backbone": "resnet10", "steps": 8, "batch": 4, "warmup": 2, "learning_rate": 1e-3}
    options |= {"validate_every": 4, "validation_views": 8, "checkpoint_every": 4, "threads": 1}
    return TrainingOptions.from_dict({"cts": [str(ct)], "camera": camera_to_dict(camera), **options, **changes})
