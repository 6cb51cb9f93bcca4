"""The DRR over the X-ray: what is drawn in front of the X-ray in its view.

An overlay is a volume of its own (role "overlay") on the detector, with its own window, so that those of X-ray and DRR
stay as the user set them. Where it lets the X-ray through, its display node's threshold makes it transparent: a slice
view knows no other transparency within a volume than on and off.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

import numpy as np
import slicer.util

from DiffDRRCore import Camera
from DiffDRRSlicerLib.scene import colors, nodes, xrays
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.colors import TINTS, set_tint
from DiffDRRSlicerLib.scene.errors import SceneError

_MODE = "DiffDRR.OverlayMode"
_HIDDEN = -1e6  # so low that a value interpolated with it stays below the threshold
_DEVIATIONS = 3.0  # of the difference image: half of its first window
_MOST_KEPT = 6
_kept: OrderedDict[tuple, np.ndarray] = OrderedDict()  # state of an X-ray and a size: [H, W]


class OverlayMode(str, Enum):
    """How the DRR is drawn over the X-ray; the values are plain words for a parameter or a selector."""

    BLEND = "blend"
    CHECKERBOARD = "checkerboard"
    EDGES = "edges"
    DIFFERENCE = "difference"


def update_overlay(
    carm: CArmNode,
    mode: OverlayMode | str = OverlayMode.BLEND,
    squares: int = 8,
    strength: float = 0.25,
    tint: str = "yellow",
):
    """Draw the C-arm's DRR, as it is now, for the X-ray view.

    Args:
        mode: BLEND leaves it to the view's opacity; CHECKERBOARD shows DRR and X-ray in turn, with the DRR's window;
            EDGES shows the DRR's outlines; DIFFERENCE shows X-ray minus DRR, both as attenuation with mean 0 and
            deviation 1 (red: more in the X-ray; blue: more in the DRR).
        squares: of the checkerboard along the longest side.
        strength: of the weakest edge that is drawn, from 0 to 1 of a strong one.
        tint: of the edges, a name of TINTS.

    Returns:
        The volume node to show in front of the X-ray: the DRR itself for BLEND, else the one of role "overlay".

    Raises SceneError without a DRR, or for a mode or tint that there is not; DIFFERENCE also without an X-ray, and
    XRayError where nothing says what is bright in it.
    """
    mode = _mode(mode)
    drr = carm.referred("drr")
    image = nodes.get_image(drr) if drr is not None else None
    if image is None:
        raise SceneError(f"'{carm.name}' has no DRR yet; render it first.")
    if mode is OverlayMode.BLEND:
        return drr
    if tint not in TINTS:
        raise SceneError(f"There is no tint '{tint}'; choose one of {', '.join(TINTS)}.")
    camera = carm.camera.resized(*image.shape)
    if mode is OverlayMode.CHECKERBOARD:
        pixels = checkerboard(image, squares)
    elif mode is OverlayMode.EDGES:
        pixels = edges(image, strength)
    else:
        pixels = difference(attenuation(carm, camera), image)
    volume = carm.below("overlay", "vtkMRMLScalarVolumeNode", "overlay")
    carm.place_image(volume, pixels, camera)
    _show(volume, drr, mode, tint)
    return volume


def checkerboard(image: np.ndarray, squares: int) -> np.ndarray:
    """[H, W] float32: the image in every other square, `_HIDDEN` elsewhere; the first square shows it."""
    cells = max(1, int(squares)) / max(image.shape)
    rows, columns = (np.floor((np.arange(size) + 0.5) * cells).astype(int) for size in image.shape)
    shown = (rows[:, None] + columns[None, :]) % 2 == 0
    return np.where(shown, image, np.float32(_HIDDEN))


def edges(image: np.ndarray, strength: float) -> np.ndarray:
    """[H, W] float32, 1 on lines one pixel wide where the gradient is largest across them, 0 elsewhere.

    `strength` is the least gradient that counts, relative to the 99th percentile of those that are not zero.
    """
    if min(image.shape) < 3:
        return np.zeros_like(image, dtype=np.float32)
    down, right = np.gradient(image.astype(np.float32))
    steepness = np.hypot(down, right)
    before, after = _neighbors(steepness, down, right)
    found = steepness[steepness > 0]
    least = strength * np.percentile(found, 99) if found.size else 0.0
    return ((steepness > least) & (steepness >= before) & (steepness > after)).astype(np.float32)


def difference(xray: np.ndarray, drr: np.ndarray) -> np.ndarray:
    """[H, W] float32: both with mean 0 and standard deviation 1, one minus the other; constant images count as 0."""
    return (_standardized(xray) - _standardized(drr)).astype(np.float32)


def attenuation(carm: CArmNode, camera: Camera) -> np.ndarray:
    """The X-ray [H, W] as line integrals, averaged to another camera's pixels; kept for the next call.

    Raises SceneError where there is no X-ray, XRayError where nothing says what is bright.
    """
    state = (
        xrays.xray_volume(carm).GetImageData().GetMTime(),
        carm.camera.K.numpy().tobytes(),
        repr(sorted(carm.meta.items(), key=str)),
        camera.height,
        camera.width,
    )
    if state not in _kept:
        _kept[state] = xrays.prepared_xray(carm).resampled(camera.height, camera.width).image.numpy()
        if len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(state)
    return _kept[state]


def forget() -> None:
    """Free the X-rays that are kept for the next difference."""
    _kept.clear()


def _mode(mode) -> OverlayMode:
    try:
        return OverlayMode(mode)
    except ValueError as error:
        known = ", ".join(one.value for one in OverlayMode)
        raise SceneError(f"There is no overlay '{mode}'; choose one of {known}.") from error


def _neighbors(steepness: np.ndarray, down: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values one pixel before and after each, in the nearest of the eight directions to its gradient."""
    along, across = np.abs(right), np.abs(down)
    height, width = steepness.shape
    step_right = (along > 0.4142 * across) * np.where(right < 0, -1, 1)
    step_down = (across > 0.4142 * along) * np.where(down < 0, -1, 1)
    padded = np.pad(steepness, 1).ravel()
    here = (np.arange(1, height + 1)[:, None] * (width + 2)) + np.arange(1, width + 1)[None, :]
    step = step_down * (width + 2) + step_right
    return padded[here - step], padded[here + step]


def _standardized(image: np.ndarray) -> np.ndarray:
    image = image.astype(np.float32)
    centered = image - image.mean()
    deviation = centered.std()
    return centered / deviation if deviation > 1e-6 * max(1.0, float(np.abs(image).max())) else 0 * centered


def _show(volume, drr, mode: OverlayMode, tint: str) -> None:
    """The display of a mode: set when it begins; afterwards the window of the difference is the user's."""
    begins = volume.GetDisplayNode() is None or volume.GetAttribute(_MODE) != mode.value
    if volume.GetDisplayNode() is None:
        volume.CreateDefaultDisplayNodes()
    display = volume.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.AutoWindowLevelOff()
        if begins:
            volume.SetAttribute(_MODE, mode.value)
            _begin(display, mode)
        if mode is OverlayMode.CHECKERBOARD:
            _copy_look(drr, volume)
        elif mode is OverlayMode.EDGES:
            set_tint(volume, tint, False)
        else:
            set_tint(volume, colors.DIFFERENCE, False)


def _begin(display, mode: OverlayMode) -> None:
    display.InterpolateOn()
    display.AutoThresholdOff()
    display.SetApplyThreshold(mode is not OverlayMode.DIFFERENCE)
    if mode is OverlayMode.EDGES:
        display.SetThreshold(0.5, 1e6)
        display.SetWindowLevelMinMax(0.0, 0.5)
    elif mode is OverlayMode.CHECKERBOARD:
        display.SetThreshold(-0.5, 1e6)
    else:
        display.SetWindowLevelMinMax(-_DEVIATIONS, _DEVIATIONS)


def _copy_look(drr, volume) -> None:
    source, display = drr.GetDisplayNode(), volume.GetDisplayNode()
    display.SetWindowLevel(source.GetWindow(), source.GetLevel())
    set_tint(volume, colors.tint(drr), colors.is_inverted(drr))
