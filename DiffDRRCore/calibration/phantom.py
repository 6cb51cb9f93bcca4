"""Phantoms of beads in known places.

A JSON object {"units": "mm", "name": ..., "beads": [{"position": [x, y, z], "radius": 0.8}, ...]}, or a CSV table with
the columns x, y, z, radius (mm), a heading or none. The frame is the phantom's own, right-handed.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import CalibrationError, DiffDRRError, ReadError
from DiffDRRCore.files import read_text, replacing
from DiffDRRCore.geometry import as_tensor
from DiffDRRCore.values import Key, choice, number, read_values, section, several, text

_BEAD = {"position": Key(several(number(), count=3)), "radius": Key(number(above=0))}
_KEYS = {"units": Key(choice("mm")), "name": Key(text, ""), "beads": Key(several(lambda where, value: value))}
_SIZES = (10.0, 2000.0)  # mm across


class BeadPhantom:
    """Beads of known places and sizes.

    Args:
        positions: [N, 3] mm, in the phantom's own right-handed frame.
        radii: [N] mm, or one for all.
        name: what messages call it.

    Raises:
        CalibrationError: fewer than six beads, two in one place, all on one line, numbers that are not finite, radii
            that are not positive, a size that no phantom in mm has.
    """

    def __init__(self, positions, radii, name: str = ""):
        self.positions: Tensor = as_tensor(positions, torch.float64)
        if self.positions.ndim != 2 or self.positions.shape[1] != 3:
            raise CalibrationError(f"Beads are [N, 3] positions in mm, got shape {list(self.positions.shape)}.")
        radii = as_tensor(radii, torch.float64)
        if radii.ndim and radii.shape != (len(self.positions),):
            raise CalibrationError(f"There are {len(self.positions)} beads but {radii.numel()} radii.")
        self.radii: Tensor = radii.expand(len(self.positions)).clone()
        self.name = name
        self._check()

    def __len__(self) -> int:
        return len(self.positions)

    def _check(self) -> None:
        if not bool(torch.isfinite(self.positions).all()) or not bool(
            (self.radii > 0).all() & self.radii.isfinite().all()
        ):
            raise CalibrationError("Beads have finite positions and radii above 0 (mm).")
        if len(self) < 6:
            raise CalibrationError(f"A bead phantom has six beads or more, this one has {len(self)}.")
        away = torch.cdist(self.positions, self.positions, compute_mode="donot_use_mm_for_euclid_dist")
        size = float(away.max())
        if not _SIZES[0] <= size <= _SIZES[1]:
            raise CalibrationError(
                f"The phantom is {size:.3g} mm across, which no bead phantom is: give positions in millimetres."
            )
        away.fill_diagonal_(float("inf"))
        if float(away.min()) < 1e-3:
            first, second = divmod(int(away.argmin()), len(self))
            raise CalibrationError(f"The beads {first + 1} and {second + 1} of the phantom are in one place.")
        if bool((self.radii > size / 5).any()):
            raise CalibrationError("A bead is larger than a fifth of the phantom: give radii in millimetres.")
        spread = torch.linalg.svdvals(self.positions - self.positions.mean(0))
        if float(spread[1]) < 1e-3 * float(spread[0]):
            raise CalibrationError("The beads lie on one line, which gives no pose: a phantom needs some beside it.")

    @property
    def planar(self) -> bool:
        """Whether all beads lie in one plane, to a hundredth of its size."""
        spread = torch.linalg.svdvals(self.positions - self.positions.mean(0))
        return float(spread[2]) < 0.01 * float(spread[0])

    @classmethod
    def helix(
        cls,
        count: int = 36,
        radius: float = 60.0,
        height: float = 140.0,
        turns: float = 2.5,
        bead_radii: tuple[float, float] = (0.8, 1.6),
        seed: int = 3,
    ) -> BeadPhantom:
        """Beads on a helix about the z axis, of two sizes in a pseudo-random order, which tells them apart."""
        angle = np.linspace(0, 2 * np.pi * turns, count)
        positions = [radius * np.cos(angle), radius * np.sin(angle), np.linspace(-height / 2, height / 2, count)]
        large = np.random.default_rng(seed).permutation(np.arange(count) % 2).astype(bool)
        return cls(np.stack(positions, axis=-1), np.where(large, max(bead_radii), min(bead_radii)), "helix")

    @classmethod
    def plate(
        cls,
        rows: int = 6,
        columns: int = 6,
        spacing: float = 25.0,
        bead_radii: tuple[float, float] = (0.8, 1.6),
        seed: int = 3,
    ) -> BeadPhantom:
        """A grid of beads of two sizes in the plane z = 0."""
        v, u = np.divmod(np.arange(rows * columns), columns)
        positions = [(u - (columns - 1) / 2) * spacing, (v - (rows - 1) / 2) * spacing, np.zeros(rows * columns)]
        large = np.random.default_rng(seed).permutation(np.arange(rows * columns) % 2).astype(bool)
        return cls(np.stack(positions, axis=-1), np.where(large, max(bead_radii), min(bead_radii)), "plate")

    @classmethod
    def read(cls, path: str | Path) -> BeadPhantom:
        """A phantom from .json or .csv. Raises ReadError."""
        path = Path(path)
        try:
            if path.suffix.lower() == ".csv":
                rows = _table(path)
                return cls(rows[:, :3], rows[:, 3], path.stem)
            content = section("", read_values(path), _KEYS)
            beads = [section(f"beads[{k}]", one, _BEAD) for k, one in enumerate(content["beads"])]
            positions, radii = ([one[key] for one in beads] for key in ("position", "radius"))
            return cls(positions, radii, content["name"] or path.stem)
        except ReadError:
            raise
        except DiffDRRError as error:
            raise ReadError(f"Bead phantom '{path}': {error}") from error

    def write(self, path: str | Path) -> None:
        """Write it as JSON."""
        beads = [
            {"position": position, "radius": radius}
            for position, radius in zip(self.positions.tolist(), self.radii.tolist(), strict=True)
        ]
        content = {"units": "mm", "name": self.name or "phantom", "beads": beads}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _table(path: Path) -> np.ndarray:
    lines = read_text(path, "bead phantom").splitlines()
    try:
        rows = [row for row in csv.reader(lines) if any(row)]
    except csv.Error as error:
        raise ReadError(f"Cannot read the bead phantom '{path}': {error}.") from error
    if rows and [cell.strip().lower() for cell in rows[0][:4]] == ["x", "y", "z", "radius"]:
        rows = rows[1:]
    try:
        values = np.array([[float(cell) for cell in row[:4]] for row in rows])
    except ValueError as error:
        raise ReadError(f"Bead phantom '{path}': {error}; the columns are x, y, z, radius in mm.") from error
    if values.ndim != 2 or values.shape[1] != 4:
        raise ReadError(f"Bead phantom '{path}' needs the columns x, y, z, radius (mm).")
    return values
