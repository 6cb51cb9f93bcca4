"""What a calibration found, and how sure it is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffDRRCore.files import finite, replacing
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.camera_file import CALIBRATION, camera_to_dict
from DiffDRRCore.imaging.distortion import Distortion


@dataclass(frozen=True)
class CalibrationResult:
    """Result of `calibrate`.

    Attributes:
        camera: with the intrinsics found.
        distortion: found, given, or None.
        poses: camera_to_world of each image; the world is the frame of the points.
        residuals: [V, N, 2] pixels, predicted less observed; NaN where a point was not seen.
        inliers: [V, N] bool, what the solution was fitted to.
        names: the S unknowns that all images share and that mean something by themselves, as of `values`.
        covariance: [S, S] of them, in their units (mm, pixels), poses and all else marginalised.
        prior_deviations: of them, by name.
        noise: standard deviation of one coordinate, pixels, estimated from the residuals.
        undetermined: names that rest on their prior: the images leave more than half of its deviation.
        converged: whether the solver ended by its own test.
        views: by image, the name it goes by.
    """

    camera: Camera
    distortion: Distortion | None
    poses: list[Pose]
    residuals: Tensor
    inliers: Tensor
    names: list[str]
    covariance: NDArray[np.float64]
    prior_deviations: dict[str, float]
    noise: float
    undetermined: list[str]
    converged: bool
    views: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, float]:
        """The shared unknowns by name: SDD and pixel size in mm, principal point in pixels, k1 ... without unit."""
        row, column = self.camera.pixel_spacing.tolist()
        u, v = self.camera.principal_point.tolist()
        known = {
            "source_to_detector": float(self.camera.source_to_detector),
            "principal_point_u": u,
            "principal_point_v": v,
            "pixel_size": row,
            "pixel_ratio": column / row,
        }
        if self.distortion is not None:
            known |= {key: value for key, value in self.distortion.to_dict().items() if key in ("k1", "k2", "p1", "p2")}
        return {name: known[name] for name in self.names}

    @property
    def deviations(self) -> dict[str, float]:
        """Standard deviations of `values`."""
        return dict(zip(self.names, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))

    @property
    def errors(self) -> Tensor:
        """[V, N] pixels, length of the residuals."""
        return torch.linalg.vector_norm(self.residuals, dim=-1)

    @property
    def rms(self) -> float:
        """Root mean square of the inliers' errors, pixels."""
        return float(self.errors[self.inliers].square().mean().sqrt())

    def per_view(self) -> list[dict[str, float]]:
        """Of each image: name, points used, points left out, rms and largest error of those used (pixels)."""
        rows = []
        for view, (errors, used) in enumerate(zip(self.errors, self.inliers, strict=True)):
            seen, kept = int(errors.isfinite().sum()), errors[used]
            rms = float(kept.square().mean().sqrt()) if len(kept) else float("nan")
            largest = float(kept.max()) if len(kept) else float("nan")
            name = self.views[view] if self.views else str(view + 1)
            rows.append({"view": name, "used": len(kept), "left_out": seen - len(kept), "rms": rms, "largest": largest})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All but the single residuals, as plain values: what a calibration file holds."""
        views = [row | {"pose": pose.matrix.tolist()} for row, pose in zip(self.per_view(), self.poses, strict=True)]
        content = {
            "units": "mm",
            "kind": CALIBRATION,
            "camera": camera_to_dict(self.camera),
            "distortion": None if self.distortion is None else self.distortion.to_dict(),
            "values": self.values,
            "deviations": self.deviations,
            "undetermined": self.undetermined,
            "rms": self.rms,
            "noise": self.noise,
            "views": views,
        }
        return finite(content)

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, which `calibration.files` describes and `read_calibrated` reads."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
