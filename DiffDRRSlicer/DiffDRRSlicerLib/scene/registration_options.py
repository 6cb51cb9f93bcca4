"""What a preset means to `DiffDRRCore.registration.Options`."""

from __future__ import annotations

from typing import Any

from DiffDRRCore.similarity import similarity as measure_of
from DiffDRRSlicerLib.scene.errors import SceneError

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"sizes": (32, 64, 128)},
    # At 256 pixels, voxels of the pixels' own size give the same error as finer ones in half the time.
    "accurate": {"sizes": (32, 64, 128, 256), "voxels_per_pixel": 1.1},
    "far": {"sizes": (32, 64, 128), "search": 1024, "starts": 8, "start_spread": (15.0, 30.0, 60.0)},
}
"""Options by preset; sizes below 96 are left out for measures of patches and edges, which so few pixels do not show."""

_LOCAL_SIZE = 96


def preset_options(preset: str, similarity=None, structures=None, **options) -> dict[str, Any]:
    """Keywords of `DiffDRRCore.Registration`.

    Args:
        similarity: name or measure; None is "zncc", or "lncc" where only some structures are rendered.
        structures: names or numbers, None or empty for everything.
        options: win over the preset's.

    Raises SceneError for a preset that there is not, DiffDRRError for an unknown measure.
    """
    if preset not in PRESETS:
        raise SceneError(f"There is no preset '{preset}'; the presets are: {', '.join(PRESETS)}.")
    measure = measure_of(similarity or ("lncc" if structures else "zncc"))
    chosen = {**PRESETS[preset], "similarity": measure}
    if getattr(measure, "local", False):
        chosen["sizes"] = (_LOCAL_SIZE, *(size for size in chosen["sizes"] if size > _LOCAL_SIZE))
    if structures:
        chosen["labels"] = list(structures)
    return {**chosen, **options}
