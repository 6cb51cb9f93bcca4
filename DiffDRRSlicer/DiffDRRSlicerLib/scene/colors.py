"""Grey values on the screen: windows, tints and inversion of volumes.

The colour tables belong to the scene, one for each tint, and are not saved with it: the volumes remember the names in
attributes, and `apply_colors` makes the tables again.
"""

from __future__ import annotations

import numpy as np
import slicer
import slicer.util
import vtk

from DiffDRRSlicerLib.scene.errors import SceneError

TINTS = {
    "grey": (1.0, 1.0, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "green": (0.3, 1.0, 0.3),
    "cyan": (0.2, 0.9, 1.0),
    "orange": (1.0, 0.6, 0.1),
    "magenta": (1.0, 0.4, 1.0),
    "red": (1.0, 0.3, 0.3),
}
DIFFERENCE = "difference"  # a table of its own: blue, white, red
EXPECTED_ERROR = "expected error"  # another: dark blue, green, yellow
_STOPS = {
    DIFFERENCE: ((0.1, 0.3, 0.9), (1.0, 1.0, 1.0), (0.9, 0.2, 0.1)),
    EXPECTED_ERROR: ((0.27, 0.0, 0.33), (0.23, 0.32, 0.55), (0.13, 0.57, 0.55), (0.37, 0.79, 0.38), (0.99, 0.91, 0.14)),
}
_TINT, _INVERTED = "DiffDRR.Tint", "DiffDRR.Inverted"
_LOW, _HIGH = 2.0, 99.5  # per cent of the non-zero pixels


def set_tint(volume, name: str, inverted: bool | None = None) -> None:
    """Show a volume from black to the colour `name` of TINTS, inverted or not (None: as it was).

    Raises SceneError for another name.
    """
    if name not in TINTS and name != DIFFERENCE:
        raise SceneError(f"There is no tint '{name}'; choose one of {', '.join(TINTS)}.")
    _remember(volume, _TINT, name)
    if inverted is not None:
        _remember(volume, _INVERTED, "1" if inverted else "0")
    apply_colors(volume)


def set_inverted(volume, inverted: bool) -> None:
    """Show large values dark, or bright again. The values and the window stay."""
    _remember(volume, _INVERTED, "1" if inverted else "0")
    apply_colors(volume)


def tint(volume) -> str:
    """The name of a volume's tint."""
    return volume.GetAttribute(_TINT) or "grey"


def is_inverted(volume) -> bool:
    """Whether large values are dark."""
    return volume.GetAttribute(_INVERTED) == "1"


def apply_colors(volume) -> None:
    """Give a volume the colour table that its attributes name, where it has another one.

    Without such names it keeps its own, or gets a grey one where that is missing: some scenes have no default tables.
    """
    display = volume.GetDisplayNode()
    if display is None:
        volume.CreateDefaultDisplayNodes()
        display = volume.GetDisplayNode()
    named = volume.GetAttribute(_TINT) is not None or volume.GetAttribute(_INVERTED) is not None
    if not named and display.GetColorNode() is not None:
        return
    table = color_table(volume.GetScene(), tint(volume), is_inverted(volume))
    if display.GetColorNode() is not table:
        display.SetAndObserveColorNodeID(table.GetID())


def color_table(scene, name: str, inverted: bool = False):
    """The scene's colour table of a tint, made at its first use."""
    tag = f"DiffDRR{name.capitalize()}{'Inverted' if inverted else ''}"
    node = scene.GetSingletonNode(tag, "vtkMRMLColorTableNode")
    if node is not None:
        return node
    node = slicer.vtkMRMLColorTableNode()
    node.SetSingletonTag(tag)
    node.SetName(f"DRR {name}{' inverted' if inverted else ''}")
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.SetTypeToUser()
    node.SetAndObserveLookupTable(_lookup_table(name, inverted))
    return scene.AddNode(node)


def auto_window(volume) -> None:
    """Set a volume's window to its non-zero values, but for a few per cent; a constant image keeps its window.

    That of a difference has its middle at zero, which is white.
    """
    values = slicer.util.arrayFromVolume(volume)
    values = values[np.isfinite(values) & (values != 0)]
    low, high = np.percentile(values, (_LOW, _HIGH)) if values.size else (0.0, 0.0)
    if tint(volume) == DIFFERENCE:
        low, high = -max(-low, high), max(-low, high)
    display = volume.GetDisplayNode()
    if high > low:
        with slicer.util.NodeModify(display):
            display.AutoWindowLevelOff()
            display.SetWindowLevelMinMax(float(low), float(high))


def _lookup_table(name: str, inverted: bool) -> vtk.vtkLookupTable:
    stops = _STOPS[name] if name in _STOPS else ((0.0, 0.0, 0.0), TINTS[name])
    places = np.linspace(0.0, 255.0, len(stops))
    colors = np.column_stack([np.interp(np.arange(256), places, channel) for channel in zip(*stops, strict=True)])
    table = vtk.vtkLookupTable()
    table.SetNumberOfTableValues(256)
    table.SetTableRange(0, 255)
    for index, color in enumerate(colors[::-1] if inverted else colors):
        table.SetTableValue(index, *color, 1.0)
    return table


def _remember(volume, key: str, value: str) -> None:
    if volume.GetAttribute(key) != value:
        volume.SetAttribute(key, value)
