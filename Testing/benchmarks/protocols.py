"""The protocols of the standard evaluation, as plain values: what `python -m DiffDRRCore evaluate` takes in a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from Testing.protocol.real import CT_FILES, FRAMES, SOURCE_TO_DETECTOR

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CAPTURE_EDGES = [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 140.0, 160.0]  # mm
_SPREAD = {"degrees": 5.0, "plane_mm": 10.0, "depth_mm": 30.0}
_DEPTH_MM = 40.0  # how far one view of one bone may move it along the beam


def simulated(name: str, starts: dict, size: int = 128) -> dict:
    """A simulated X-ray of one of the real CTs, `size` pixels over 400 mm."""
    view = {"name": "oblique", "primary": 10.0, "secondary": 5.0}
    return {
        "dataset": {"simulated": {"ct": str(DATA / CT_FILES[name]), "views": [view], "size": size}},
        "starts": starts,
        "thresholds_mm": [1, 2, 5, 10],
    }


def sampled(count: int) -> dict:
    """Starts with standard deviations of 5 degrees about each axis, 10 mm in the plane, 30 mm in depth."""
    return {"kind": "sampled", "count": count, **_SPREAD}


def in_bins(count: int) -> dict:
    """The same directions, as far away as each bin asks for."""
    return {"kind": "sampled", "bins_mm": CAPTURE_EDGES, "per_bin": count, **_SPREAD}


def wrist(manifest: Path, views: str | list[str], starts: int) -> dict:
    """The real biplane wrist from 10 degrees and 10 mm away; `views`: "groups", "single", or names.

    The CT holds one bone and the X-ray a whole hand: local contrast is compared, around the bone's shadow. A bound
    keeps a single view from running away along the beam.
    """
    bounds = {} if views == "groups" else {"limits": {"bounds": [None] * 5 + [_DEPTH_MM]}}
    return {
        "dataset": {"path": str(manifest)},
        "views": views,
        "starts": {"kind": "offsets", "offsets": _all_ways(starts, 10.0, 10.0)},
        "preprocessing": {"i0": 255.0},
        "method": {"options": {"similarity": {"name": "lncc", "size": 9}, **bounds}, "crop_margin_mm": 30.0},
        "targets": {"bone": {"threshold": 0.0}},
        "thresholds_mm": [0.5, 1, 2, 5],
    }


def write_wrist_manifest(folder: Path) -> Path:
    """dataset.json of the wrist: its files lie in `DATA`, its reference poses are those that come with it."""
    source = DATA / "wrist_biplane"
    reference = json.loads((source / "reference.json").read_text(encoding="utf-8"))
    poses = {
        str(pose["frame"]): {"rotation": pose["R"], "translation": pose["T"]} for pose in reference["reference_poses"]
    }
    # The calibration gives focal lengths in pixels only. Any detector behind the wrist has the same rays.
    cameras = {
        f"cam{number}": {
            "calibration": f"calibration/xr_calib_wrist_cam{number:02d}.txt",
            "images": f"xray/xr_rad_uln_cam{number:02d}_UND.*.tif",
            "source_to_detector": SOURCE_TO_DETECTOR,
        }
        for number in (1, 2)
    }
    biplane = {"cameras": cameras, "frames": list(FRAMES), "intensity": "transmission", "undistorted": True}
    subject = {"name": "radius", "ct": "ct/radius.nii.gz", "biplane": [{**biplane, "ct_to_calibration": poses}]}
    path = folder / "wrist.json"
    content = {"title": "Biplane wrist", "root": str(source), "subjects": [subject]}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def _all_ways(count: int, degrees: float, millimetres: float) -> list[list[float]]:
    """Motions about random axes in random directions, all of one size."""
    directions = np.random.default_rng(0).standard_normal((count, 2, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return (directions * [[degrees], [millimetres]]).reshape(count, 6).tolist()
