"""A registration as a film: how the rendered CT comes to lie on the X-ray, step by step.

Four panels: the X-ray, the rendered CT with its grey values fitted to the X-ray's, their difference (red: more in the
X-ray, blue: more in the CT), and the edges of the rendered CT over the X-ray. GIF is written by Pillow, MP4 by ffmpeg
(that of imageio-ffmpeg, or one on the PATH).
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.evaluation.figures import fitted
from DiffDRRCore.files import replacing
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.result import RegistrationResult
from DiffDRRCore.rendering import Renderer

SUFFIXES = (".gif", ".mp4")
PANELS = ("X-ray", "rendered CT", "difference", "edges of the CT")
_EDGE = (25, 211, 255)
_TEXT, _RED, _BLUE = (235, 235, 235), (255, 120, 120), (130, 160, 255)
_LEGENDS = (  # of the difference's colours, the longest that fits
    (("difference: ", _TEXT), ("more in the X-ray", _RED), (", ", _TEXT), ("in the CT", _BLUE)),
    (("difference: ", _TEXT), ("X-ray", _RED), (", ", _TEXT), ("CT", _BLUE)),
    (("X-ray", _RED), (" - ", _TEXT), ("CT", _BLUE)),
)
_BAR = 22  # rows of text above and below the panels
_DIFFERENCE = 0.25  # of the X-ray's grey values has the full colour
_EDGES = 0.85  # quantile of the slopes above which there is an edge
_NARROWEST, _WIDEST = 160, 7680
MOST = 50  # pictures of a film, unless every so many steps are asked for: some seconds
_HELD = 1.5  # seconds that the last frame stays


def trajectory(result: RegistrationResult, view: int = 0, every: int | None = 1) -> tuple[list[str], Pose]:
    """Texts and poses (camera_to_world [N, 4, 4]) of a view: the start, every so many steps, and the end.

    Where `every` is None, so many that the film has at most MOST pictures. Raises DiffDRRError for a view that there is
    not, or steps below 1.
    """
    if not 0 <= view < len(result.poses):
        raise DiffDRRError(f"The result holds {len(result.poses)} views, there is no view {view}.")
    if every is None:
        every = max(1, math.ceil(len(result.history) / (MOST - 2)))
    if every < 1:
        raise DiffDRRError(f"Every how many steps there is a picture must be 1 or more, got {every}.")
    start = result.patient_motion @ result.poses[view]
    steps = [(number, entry) for number, entry in enumerate(result.history, start=1) if number % every == 0]
    try:
        texts = [_told(number, len(result.history), entry) for number, entry in steps]
        motions = torch.tensor([entry["motion"] for _, entry in steps], dtype=torch.float64).reshape(-1, 4, 4)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DiffDRRError("The result's history is damaged: an entry lacks its motion, size or similarity.") from error
    matrices = [start.matrix[None], motions @ start.matrix, result.poses.matrix[view][None]]
    first = f"start: similarity {result.initial_similarity:.4f}"
    last = f"end: similarity {result.similarity:.4f}"
    return [first, *texts, last], Pose(torch.cat(matrices))


def _told(number: int, count: int, entry: dict) -> str:
    height, width = entry["size"]
    return f"step {number} of {count}, {height} x {width} pixels: similarity {entry['similarity']:.4f}"


def frames(
    result: RegistrationResult, volume: Volume, xray: XRay, view: int = 0, width: int = 960, every: int | None = 1
) -> Iterator[np.ndarray]:
    """The pictures [H, W, 3] uint8 of `trajectory`.

    Args:
        xray: as it was registered (attenuation, see `DiffDRRCore.imaging.preprocess`).
        width: of all four panels together, of which the picture has the next lower multiple of 8.

    Raises:
        DiffDRRError: as `trajectory`; a width that is too small, or where Pillow is not installed.
    """
    _check_width(width)
    texts, poses = trajectory(result, view, every)
    side = int(width) // 8 * 2
    small = xray.resampled(max(2, round(side * xray.image.shape[0] / xray.image.shape[1] / 2) * 2), side)
    renderer, fixed = Renderer(volume), small.image.detach().float().cpu()
    for text, rendered in zip(texts, _rendered(renderer, small, poses), strict=True):
        yield _picture(fixed, rendered, text, 4 * side)


def _rendered(renderer: Renderer, xray: XRay, poses: Pose) -> Iterator[Tensor]:
    for pose in poses:
        with torch.no_grad():
            yield renderer(xray.camera, pose)[0, 0].float().cpu()


def write_animation(path: str | Path, pictures: Iterable[np.ndarray], fps: float = 10.0) -> Path:
    """Write pictures [H, W, 3] uint8 of equal size as .gif or .mp4; the last one stays for a while.

    Raises DiffDRRError for another suffix, a rate that is not positive, where Pillow or ffmpeg is not there, or where
    the file cannot be written, which then is as it was.
    """
    path, write = Path(path), check_animation(path, fps)
    with replacing(path) as temporary:
        write(temporary, iter(pictures), float(fps))
    return path


def _check_width(width: int) -> None:
    if not _NARROWEST <= width <= _WIDEST:
        raise DiffDRRError(f"The pictures are {_NARROWEST} to {_WIDEST} pixels wide, got {width}.")


def check_animation(
    path: str | Path, fps: float = 10.0, width: int = 960
) -> Callable[[Path, Iterator[np.ndarray], float], None]:
    """What writes such a file; raises DiffDRRError where nothing does, before any work is done."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise DiffDRRError(f"An animation is written as {' or '.join(SUFFIXES)}, not as '{suffix or path}'.")
    if not (math.isfinite(fps) and 0 < fps <= 100):
        raise DiffDRRError(f"The pictures per second must be above 0 and at most 100, got {fps:g}.")
    _check_width(width)
    _pillow()
    if suffix == ".mp4":
        _ffmpeg()
    return _write_gif if suffix == ".gif" else _write_mp4


def _write_gif(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    images, _, _ = _pillow()
    first = images.fromarray(next(pictures)).quantize(256, dither=images.Dither.NONE)  # all frames have its colours
    rest = [images.fromarray(picture).quantize(palette=first, dither=images.Dither.NONE) for picture in pictures]
    durations = [round(1000 / fps)] * len(rest) + [round(1000 * _HELD)]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _write_mp4(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    first = next(pictures)
    height, width = first.shape[:2]
    command = [_ffmpeg(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", f"{fps:g}", "-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        try:
            picture = first
            for picture in chain([first], pictures):
                process.stdin.write(picture.tobytes())
            process.stdin.write(picture.tobytes() * round(fps * _HELD))
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg says why
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
        if code != 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise DiffDRRError(f"ffmpeg could not write the film: {lines[-1] if lines else f'exit code {code}'}.")


def _ffmpeg() -> str:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        if found := shutil.which("ffmpeg"):
            return found
        raise DiffDRRError("MP4 needs ffmpeg: pip install imageio-ffmpeg, or write a .gif instead.") from error


def _pillow():
    """Pillow's Image, ImageDraw and ImageFont."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise DiffDRRError("Animations need Pillow; install it with: pip install pillow") from error
    return Image, ImageDraw, ImageFont


def _picture(fixed: Tensor, rendered: Tensor, text: str, width: int) -> np.ndarray:
    low, high = (float(torch.quantile(fixed.flatten()[::7], q)) for q in (0.005, 0.995))
    reach = (high - low) or 1.0
    moving = fitted(rendered, fixed)
    grey, other = (_grey((image - low) / reach) for image in (fixed, moving))
    edged = torch.where(edges(rendered)[..., None], torch.tensor(_EDGE, dtype=torch.uint8), grey)
    difference = _diverging((fixed - moving) / (_DIFFERENCE * reach))
    panels = torch.cat([grey, other, difference, edged], dim=1)
    return _with_text(panels.numpy(), text, width)


def _with_text(panels: np.ndarray, text: str, width: int) -> np.ndarray:
    images, draws, fonts = _pillow()
    picture = images.new("RGB", (width, panels.shape[0] + 2 * _BAR))
    picture.paste(images.fromarray(panels), (0, _BAR))
    draw = draws.Draw(picture)
    try:
        font = fonts.load_default(max(9, min(13, width // 62)))
    except TypeError:  # Pillow before 10.1 has one size
        font = fonts.load_default()
    for place, name in enumerate(PANELS):
        if name == "difference":
            _legend(draw, place * width // 4 + 6, width // 4 - 8, font)
        else:
            draw.text((place * width // 4 + 6, 3), name, fill=_TEXT, font=font)
    draw.text((6, _BAR + panels.shape[0] + 3), text, fill=_TEXT, font=font)
    return np.asarray(picture)


def _legend(draw, left: float, room: float, font) -> None:
    """What the colours of the difference mean."""
    lengths = [sum(draw.textlength(text, font=font) for text, _ in parts) for parts in _LEGENDS]
    fitting = [parts for parts, length in zip(_LEGENDS, lengths, strict=True) if length <= room]
    for text, color in fitting[0] if fitting else _LEGENDS[-1]:
        draw.text((left, 3), text, fill=color, font=font)
        left += draw.textlength(text, font=font)


def edges(image: Tensor) -> Tensor:
    """[H, W] bool: where the image's slope is among the steepest and steepest across the edge (as J. Canny, 1986)."""
    smooth = conv2d(pad(image[None, None], (2, 2, 2, 2), mode="replicate"), _GAUSSIAN)
    du, dv = (conv2d(pad(smooth, (1, 1, 1, 1), mode="replicate"), kernel)[0, 0] for kernel in (_SOBEL, _SOBEL.mT))
    slope = torch.hypot(du, dv)
    across_columns = slope >= max_pool2d(slope[None, None], (1, 3), 1, (0, 1))[0, 0]
    across_rows = slope >= max_pool2d(slope[None, None], (3, 1), 1, (1, 0))[0, 0]
    steepest = torch.where(du.abs() > dv.abs(), across_columns, across_rows)
    return steepest & (slope > torch.quantile(slope.flatten()[::3], _EDGES)) & (slope > 0)


_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])[None, None]
_BINOMIAL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_GAUSSIAN = (_BINOMIAL[:, None] * _BINOMIAL)[None, None]


def _grey(share: Tensor) -> Tensor:
    """[H, W, 3] uint8 of 0 (black) to 1 (white)."""
    return (share.clamp(0, 1) * 255).round().byte()[..., None].expand(-1, -1, 3)


def _diverging(value: Tensor) -> Tensor:
    """[H, W, 3] uint8 of -1 (blue) over 0 (white) to 1 (red)."""
    value = value.clamp(-1, 1)
    red, blue, green = 1 - (-value).clamp(min=0), 1 - value.clamp(min=0), 1 - value.abs()
    return (torch.stack([red, green, blue], dim=-1) * 255).round().byte()
