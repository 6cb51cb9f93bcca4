"""How the runs in the scene end, be it a registration or a tracking, and what they need to be there."""

from __future__ import annotations

from collections.abc import Iterable

from DiffDRRSlicerLib.scene.carm import CArmNode


def ending_of(outcome, cancelled: bool, kept: str) -> str:
    """How it ended, in a sentence, where it did not end as it should; `kept` is what a cancelled one keeps."""
    if outcome is None:
        return "Cancelled; nothing was moved." if cancelled else "Stopped: a node that it needs was deleted."
    return f"Cancelled: {kept}" if cancelled else ""


def all_there(carms: Iterable[CArmNode], others: Iterable) -> bool:
    """Whether C-arms, their planes and X-rays, and other nodes are still in one scene."""
    carms = list(carms)
    scene = carms[0].node.GetScene()
    parts = [*others, *(carm.node for carm in carms)]
    parts += [carm.referred(role) for carm in carms for role in ("plane", "xray")]
    return scene is not None and all(part is not None and part.GetScene() is scene for part in parts)
