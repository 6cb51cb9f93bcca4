"""What an X-ray does not say and was assumed, in plain words: the list carm.meta["missing"]."""

from __future__ import annotations

from collections.abc import Iterable

from DiffDRRSlicerLib.scene.carm import CArmNode

HEADER = "DICOM header"
DISTANCE = "source-to-detector distance"
SPACING = "pixel spacing"
POINT = "principal point"
SIDE = "side of the image"
ISOCENTER = "source-to-isocentre distance"
PRIMARY = "primary angle"
SECONDARY = "secondary angle"
PATIENT = "patient position"
INTENSITY = "intensity"

CAMERA = (HEADER, DISTANCE, SPACING, POINT, SIDE)
POSE = (ISOCENTER, PRIMARY, SECONDARY, PATIENT)

SOURCE_TO_DETECTOR = 1000.0  # mm
ISOCENTER_SHARE = 0.75  # of the source-to-detector distance
DETECTOR_SIDE = 300.0  # mm, the longer one


def assumed(what: str, value: str) -> str:
    """An entry of the list: `what` is one of the words above, `value` what was taken for it."""
    return f"{what} ({value} assumed)"


def settle(carm: CArmNode, words: Iterable[str]) -> None:
    """Take what the user has given since from the list, by the words above."""
    words, meta = tuple(words), carm.meta
    left = [entry for entry in meta.get("missing", []) if not entry.startswith(words)]
    if left != meta.get("missing", []):
        carm.meta = {**meta, "missing": left}
