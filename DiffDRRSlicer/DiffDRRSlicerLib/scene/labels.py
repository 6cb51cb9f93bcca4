"""Structures named by a labelmap volume or a segmentation, on the grid of a CT."""

from __future__ import annotations

import numpy as np
import slicer.util

from DiffDRRSlicerLib.scene import nodes


def read_labels(labels, ct) -> tuple[np.ndarray, dict[int, str]]:
    """[K, J, I] numbers on the grid of `ct`, and {number: name}."""
    return np.array(slicer.util.arrayFromVolume(labels)), {}


def labels_state(labels, ct) -> tuple:
    """Equal for two calls only where `read_labels` would give the same."""
    return labels.GetImageData().GetMTime(), nodes.volume_grid(labels).tobytes()
