"""Pictures of a registration, drawn with matplotlib (optional; the extra `plot`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.files import replacing
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration import RegistrationResult
from DiffDRRCore.registration.problem.models import without_air
from DiffDRRCore.rendering import Renderer

_LARGEST = 512
DIFFERENCE = "red: more in the X-ray, blue: more in the CT"  # of X-ray minus rendered CT, in all pictures
_START, _END = "#ff8c1a", "#19d3ff"


def registration_figure(path: Path, volume: Volume, xray: XRay, start: Pose, end: Pose) -> Path:
    """X-ray, start, end, difference and contours, side by side, written to `path` (.png, .pdf, .svg).

    The difference is X-ray minus rendered CT: red where the X-ray has more attenuation, blue where the CT has.
    Grey values of the rendered images are fitted to the X-ray's by one gain and one offset. Raises DiffDRRError where
    matplotlib is not installed.
    """
    renderer, small = Renderer(volume), _small(xray)
    before, after = (_rendered([(renderer, pose)], small.camera) for pose in (start, end))
    return _comparison(path, small.image, before, after)


def result_figures(
    folder: Path, volume: Volume, xrays: Sequence[XRay], starts: Sequence[Pose], result: RegistrationResult
) -> list[Path]:
    """view<N>.png of every view, as `registration_figure`, of what `result_images` renders."""
    views = enumerate(result_images(volume, xrays, starts, result), start=1)
    return [_comparison(folder / f"view{number}.png", *images) for number, images in views]


def result_images(
    volume: Volume, xrays: Sequence[XRay], starts: Sequence[Pose], result: RegistrationResult
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each view the X-ray, the CT rendered at the start and at the end, [h, w] of at most 512 pixels each way.

    At the end each body is where it was found, seen by the camera found; at the start they are where the CT shows them,
    under the X-ray's own camera.
    """
    renderers = [_renderer(volume, body.labels) for body in result.bodies]
    moved = [body.motion.inverse() for body in result.bodies]
    for xray, start, carm, found in zip(xrays, starts, result.carms, result.cameras, strict=True):
        small, ended = _small(xray), _small(XRay(xray.image, found.camera, xray.pose, xray.meta))
        before = _rendered([(renderer, start) for renderer in renderers], small.camera)
        after = _rendered([(r, back @ carm) for r, back in zip(renderers, moved, strict=True)], ended.camera)
        yield small.image, before, after


def _small(xray: XRay) -> XRay:
    scale = min(1.0, _LARGEST / max(xray.image.shape))
    return xray.resampled(*(max(1, round(side * scale)) for side in xray.image.shape)) if scale < 1 else xray


def _renderer(volume: Volume, labels: Sequence[int] | None) -> Renderer:
    return Renderer(volume if labels is None else without_air(volume.select(labels)))


def _rendered(parts: Sequence[tuple[Renderer, Pose]], camera: Camera) -> Tensor:
    """[H, W]: all parts, each seen from its pose."""
    with torch.no_grad():
        return sum(renderer(camera, pose)[0, 0] for renderer, pose in parts).detach().cpu()


def _comparison(path: Path, fixed: Tensor, before: Tensor, after: Tensor) -> Path:
    figure_class, fixed = _matplotlib_figure(), fixed.detach().cpu()
    figure = figure_class(figsize=(17, 4.1), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 5)
    low, high = (float(torch.quantile(fixed.flatten()[::7], q)) for q in (0.005, 0.995))
    grey = {"cmap": "gray", "vmin": low, "vmax": high}
    tenth = 0.1 * (high - low) or 1.0
    axes[0].imshow(fixed.numpy(), **grey)
    axes[1].imshow(fitted(before, fixed).numpy(), **grey)
    axes[2].imshow(fitted(after, fixed).numpy(), **grey)
    axes[3].imshow((fixed - fitted(after, fixed)).numpy(), cmap="RdBu_r", vmin=-tenth, vmax=tenth)
    axes[4].imshow(fixed.numpy(), **grey)
    for image, color in ((before, _START), (after, _END)):
        _contours(axes[4], image, color)
    titles = (
        "X-ray",
        "CT rendered at the start",
        "CT rendered at the end",
        f"difference at the end (±10 %)\n{DIFFERENCE}",
        "contours",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    axes[4].plot([], [], color=_START, label="start")
    axes[4].plot([], [], color=_END, label="end")
    axes[4].legend(loc="lower right", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def _matplotlib_figure():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DiffDRRError("Pictures need matplotlib; install it with: pip install matplotlib") from error
    return Figure


def fitted(image: Tensor, fixed: Tensor) -> Tensor:
    """gain * image + offset, closest to `fixed` in least squares; flat where the image has no contrast."""
    centred = image - image.mean()
    gain = (centred * (fixed - fixed.mean())).sum() / centred.square().sum().clamp(min=torch.finfo(image.dtype).tiny)
    return gain * centred + fixed.mean()


def _contours(axis, image: Tensor, color: str) -> None:
    """Lines of equal attenuation where the image changes most: bone and body outlines."""
    smooth = torch.nn.functional.avg_pool2d(image[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    inside = smooth[smooth > 0.02 * float(smooth.max())]
    if len(inside) > 0:
        levels = sorted({float(torch.quantile(inside[:: max(1, len(inside) // 100000)], q)) for q in (0.05, 0.5, 0.9)})
        axis.contour(smooth.numpy(), levels=levels, colors=color, linewidths=0.8)
