"""Which channel of the result a voxel belongs to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from DiffDRRCore.rendering.field import Field

_LOWEST = -32768  # labels are int16


class Channels(NamedTuple):
    """The labels of a field as the kernels take them.

    labels      [K, J, I] int16; [0, 0, 0] where there is one channel of everything
    channel_of  [65536] int32: the channel of label n at n + 32768, -1 for labels that are not asked for
    rows        for each channel asked for, the row of the result that holds it: a label asked for twice is made once
    soft        see `Field`
    """

    labels: np.ndarray
    channel_of: np.ndarray
    rows: list[int]
    soft: bool

    @property
    def count(self) -> int:
        """Rows of the result."""
        return max(self.rows) + 1


def make_channels(field: Field) -> Channels:
    """The labels and channels of a field."""
    if not field.channels:
        return Channels(np.zeros((0, 0, 0), np.int16), np.zeros(1, np.int32), [0], field.soft)
    wanted = list(dict.fromkeys(field.channels))
    channel_of = np.full(2**16, -1, np.int32)
    for row, label in enumerate(wanted):
        if -_LOWEST > label >= _LOWEST:
            channel_of[label - _LOWEST] = row
    rows = [wanted.index(label) for label in field.channels]
    return Channels(np.ascontiguousarray(field.labels.cpu().numpy()), channel_of, rows, field.soft)


@njit(inline="always")
def channel_of_voxel(labels, channel_of, k, j, i):
    """The channel of a voxel, -1 for none."""
    if labels.shape[0] == 0:
        return 0
    return channel_of[labels[k, j, i] + 32768]
