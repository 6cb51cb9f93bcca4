"""How one body moves on another in the course of a run, as a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import torch

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.files import replacing
from DiffDRRCore.geometry import Pose
from DiffDRRCore.geometry.joints import JointMotion, Side, joint_angles
from DiffDRRCore.geometry.motion_files import Motion

COLUMNS = (
    "frame",
    "flexion_deg",
    "abduction_deg",
    "rotation_deg",
    "lateral_mm",
    "anterior_mm",
    "distraction_mm",
)


def joint_motion(
    motions: Mapping[str, Motion], proximal: tuple[str, Pose], distal: tuple[str, Pose], side: Side
) -> tuple[tuple[int, ...], JointMotion]:
    """(numbers of the frames that both bones have, Grood and Suntay's six numbers [F] of each).

    Args:
        motions: {body: CT to room}, as of `TrackingResult.motion`.
        proximal, distal: name of the body, and its frame in the CT: body_to_world (`geometry.joints.body_frame`).

    Raises DiffDRRError where a body has no motion or no frame is common, GeometryError as `joint_angles`.
    """
    for name, _ in (proximal, distal):
        if name not in motions:
            raise DiffDRRError(f"There is no motion of the body '{name}'; there are {', '.join(motions) or 'none'}.")
    frames = tuple(sorted(set(motions[proximal[0]].frames) & set(motions[distal[0]].frames)))
    if not frames:
        raise DiffDRRError(f"The motions of '{proximal[0]}' and '{distal[0]}' have no frame in common.")
    moved = []
    for name, frame in (proximal, distal):
        rows = [motions[name].frames.index(number) for number in frames]
        moved.append(torch.matmul(motions[name].matrices[rows], frame.matrix.detach().double().cpu()))
    return frames, joint_angles(*moved, side)


def write_joint_motion(path: str | Path, frames: tuple[int, ...], motion: JointMotion) -> None:
    """Write a CSV table with a row for each frame: degrees and mm, empty cells where there is no pose.

    Raises DiffDRRError where the file cannot be written.
    """
    values = torch.cat([motion.angles, motion.translations], dim=-1)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for frame, row in zip(frames, values.tolist(), strict=True):
            writer.writerow([frame, *("" if value != value else f"{value:.6f}" for value in row)])
