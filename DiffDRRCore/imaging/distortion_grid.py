"""A smooth grid of shifts, for image intensifiers: pincushion, S-shape, and whatever else the image has."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.errors import CalibrationError
from DiffDRRCore.geometry import Camera, as_tensor
from DiffDRRCore.imaging.distortion import Distortion

_MOST_CELLS = 40


class GridDistortion(Distortion):
    """Shifts in u and v as uniform cubic B-splines of `cells` (rows, columns) over the image.

    Beyond the image the shift stays that of its border. A cubic B-spline holds every polynomial up to the third degree
    in each direction exactly, so the r^3 of a pincushion is one of its members.

    Args:
        height, width: of the image, pixels.
        cells: (rows, columns) of the grid; it has (rows + 3) x (columns + 3) control points.
        coefficients: [rows + 3, columns + 3, 2], the shift (u, v) of each control point in pixels; None is zero.

    Raises:
        CalibrationError: no cells or more than 40, another number of coefficients.
    """

    def __init__(self, height: int, width: int, cells: tuple[int, int] = (5, 5), coefficients=None):
        self.height, self.width, self.cells = int(height), int(width), (int(cells[0]), int(cells[1]))
        if not all(1 <= count <= _MOST_CELLS for count in self.cells) or min(self.height, self.width) < 1:
            raise CalibrationError(f"A grid has 1 to {_MOST_CELLS} cells a side, got {cells[0]} x {cells[1]}.")
        self.shape = (self.cells[0] + 3, self.cells[1] + 3, 2)
        size = self.shape[0] * self.shape[1] * 2
        super().__init__(torch.zeros(size, dtype=torch.float64) if coefficients is None else coefficients)
        if self.coefficients.numel() != size:
            raise CalibrationError(
                f"A grid of {self.cells[0]} x {self.cells[1]} cells has {self.shape[0]} x {self.shape[1]} x 2 "
                f"coefficients, got {self.coefficients.numel()} numbers."
            )
        self.groups = {"distortion": list(range(size))}

    @classmethod
    def of_image(cls, camera: Camera, cells: tuple[int, int] = (5, 5)) -> GridDistortion:
        """None yet, over the camera's image."""
        return cls(camera.height, camera.width, cells)

    def with_coefficients(self, coefficients) -> GridDistortion:
        """See `Distortion`."""
        return GridDistortion(self.height, self.width, self.cells, as_tensor(coefficients, torch.float64))

    def shift(self, uv: Tensor) -> Tensor:
        """See `Distortion`; row by row of control points, without the fields of each."""
        columns, rows = self._weights(uv)
        control = self.coefficients.to(uv).reshape(self.shape)
        along = (rows @ control.flatten(1)).reshape(-1, self.shape[1], 2)
        return (along * columns[..., None]).sum(dim=1)

    def fields(self, uv: Tensor) -> Tensor:
        """See `Distortion`."""
        columns, rows = self._weights(uv)
        return self._spread(columns, rows)

    def slopes(self, uv: Tensor) -> Tensor:
        """See `Distortion`."""
        columns, rows = self._weights(uv)
        d_columns, d_rows = self._weights(uv, slope=True)
        return torch.stack([self._spread(d_columns, rows), self._spread(columns, d_rows)], dim=2)

    def differences(self) -> Tensor:
        """[D, P]: second differences of neighbouring control points; their squares are the grid's bending."""
        index = torch.arange(self.coefficients.numel()).reshape(self.shape)
        triples = [
            torch.stack([line[:-2], line[1:-1], line[2:]], dim=-1).reshape(-1, 3)
            for line in (index, index.transpose(0, 1))
        ]
        triples = torch.cat(triples)
        matrix = torch.zeros(len(triples), index.numel(), dtype=torch.float64)
        return matrix.scatter_(1, triples, torch.tensor([1.0, -2.0, 1.0]).double().expand(len(triples), 3))

    def _spread(self, columns: Tensor, rows: Tensor) -> Tensor:
        """[N, 2, P] of the weights along both axes."""
        weight = (rows[:, :, None] * columns[:, None, :]).flatten(1)
        fields = weight.new_zeros(len(weight), 2, weight.shape[1], 2)
        fields[:, 0, :, 0] = fields[:, 1, :, 1] = weight
        return fields.flatten(2)

    def _weights(self, uv: Tensor, slope: bool = False) -> tuple[Tensor, Tensor]:
        """Weights of the columns [N, columns + 3] and of the rows, or their derivatives by pixel."""
        axes = ((uv[:, 0], self.width, self.cells[1]), (uv[:, 1], self.height, self.cells[0]))
        columns, rows = (_spline(at, size, count, slope) for at, size, count in axes)
        return columns, rows

    def to_dict(self) -> dict:
        """See `Distortion`."""
        control = self.coefficients.detach().reshape(self.shape).tolist()
        return {
            "model": "grid",
            "height": self.height,
            "width": self.width,
            "cells": list(self.cells),
            "coefficients": control,
        }

    def __repr__(self) -> str:
        return f"GridDistortion({self.height} x {self.width}, {self.cells[0]} x {self.cells[1]} cells)"


def _spline(at: Tensor, size: int, cells: int, slope: bool) -> Tensor:
    """[N, cells + 3] weights of the control points of a uniform cubic B-spline over pixels -0.5 to size - 0.5."""
    place = (at + 0.5) * (cells / size)
    inside = (place >= 0) & (place <= cells)
    place = place.nan_to_num(0.0).clamp(0, cells)  # NaN stays one, as the pixel itself is
    cell = place.detach().floor().clamp(max=cells - 1)
    t = place - cell
    if slope:
        parts = [-((1 - t) ** 2) / 2, (3 * t * t - 4 * t) / 2, (-3 * t * t + 2 * t + 1) / 2, t * t / 2]
        values = torch.stack(parts, dim=-1) * (cells / size) * inside[:, None]
    else:
        parts = [(1 - t) ** 3, 3 * t**3 - 6 * t * t + 4, -3 * t**3 + 3 * t * t + 3 * t + 1, t**3]
        values = torch.stack(parts, dim=-1) / 6
    index = cell.long()[:, None] + torch.arange(4)
    return torch.zeros(len(at), cells + 3, dtype=values.dtype).scatter(1, index, values)
