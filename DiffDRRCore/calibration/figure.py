"""A picture of a calibration, drawn with matplotlib (optional; the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from DiffDRRCore.calibration.images import BeadView
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.files import replacing

_ARROW = 0.05  # of the image's width: length of the arrow of the 95th percentile


def calibration_figure(path: str | Path, result: CalibrationResult, views: Sequence[BeadView]) -> Path:
    """The image of most beads with what was found and left out, the residuals of all images, and the distortion.

    Written to `path` (.png, .pdf, .svg). Raises DiffDRRError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DiffDRRError("Pictures need matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(15 if result.distortion is not None else 10.5, 5), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 3 if result.distortion is not None else 2)
    best = int(result.inliers.sum(dim=1).argmax())
    _draw_beads(axes[0], result, views[best], best)
    _draw_residuals(axes[1], result, views)
    if result.distortion is not None:
        _draw_distortion(axes[2], result)
    for axis in axes:
        axis.set_xlim(-0.5, result.camera.width - 0.5)
        axis.set_ylim(result.camera.height - 0.5, -0.5)
        axis.set_aspect("equal")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def _draw_beads(axis, result: CalibrationResult, view: BeadView, number: int) -> None:
    image, used = view.xray.image.detach().cpu().numpy(), result.inliers[number].numpy()
    axis.imshow(image, cmap="gray", vmin=np.quantile(image, 0.005), vmax=np.quantile(image, 0.995))
    axis.plot(*view.beads.centers.T.numpy(), "o", mfc="none", mec="#ff8c1a", ms=11, ls="none", label="found")
    expected = view.observed + result.residuals[number].numpy()
    axis.plot(*expected[used].T, "+", color="#19d3ff", ms=7, ls="none", label="expected")
    axis.set_title(f"{view.name}: {int(used.sum())} beads", fontsize=11)
    axis.legend(loc="lower right", fontsize=8)


def _draw_residuals(axis, result: CalibrationResult, views: Sequence[BeadView]) -> None:
    used = result.inliers.numpy()
    places = np.stack([view.observed for view in views])[used]
    arrows = result.residuals.numpy()[used]
    scale = _ARROW * result.camera.width / max(float(np.quantile(np.linalg.norm(arrows, axis=-1), 0.95)), 1e-9)
    axis.quiver(*places.T, *(scale * arrows).T, angles="xy", scale_units="xy", scale=1, width=0.002, color="#19669e")
    axis.set_title(f"residuals of {len(views)} images x {scale:.0f}: {result.rms:.3g} px rms", fontsize=11)


def _draw_distortion(axis, result: CalibrationResult) -> None:
    import torch

    steps = [
        torch.linspace(0, size - 1, 17, dtype=torch.float64) for size in (result.camera.width, result.camera.height)
    ]
    uv = torch.cartesian_prod(*steps)
    shift = result.distortion.shift(uv).numpy()
    axis.quiver(*uv.numpy().T, *shift.T, angles="xy", scale_units="xy", scale=1, width=0.002, color="#9e3d19")
    axis.set_title(f"distortion, up to {result.distortion.largest(result.camera):.3g} px", fontsize=11)
