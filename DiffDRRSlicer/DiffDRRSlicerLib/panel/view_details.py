"""One X-ray of a registration: how far its C-arm may be off, and what of its camera is found."""

from __future__ import annotations

from DiffDRRSlicerLib import scene

_FIELDS = {  # spin boxes: fields of ViewSettings
    "viewDegreesSpinBox": "degrees",
    "viewMmSpinBox": "mm",
    "viewMostDegreesSpinBox": "most_degrees",
    "viewMostMmSpinBox": "most_mm",
    "viewDistanceSpinBox": "source_to_detector",
    "viewPointSpinBox": "principal_point",
    "viewRadialSpinBox": "radial",
}
_OF_CARM = tuple(_FIELDS)[:4]
_SHORT = {"source_to_detector": "distance", "principal_point": "point", "radial": "distortion"}


class ViewDetails:
    """The numbers of the X-ray that is chosen in the list, else of the one in use."""

    def __init__(self, section):
        self.section, self.ui = section, section.ui
        for name, field in _FIELDS.items():
            getattr(self.ui, name).connect("valueChanged(double)", self._slot(field))

    def _slot(self, field: str):
        def changed(value) -> None:
            carm = self.section.view
            if carm is not None:
                with self.section.panel.attempt("The X-ray's setting cannot be changed."):
                    scene.view_settings.set_view(carm, **{field: float(value)})

        return changed

    def refresh(self) -> None:
        """Show the numbers that are kept."""
        carm = self.section.view
        self.ui.viewGroup.title = "C-arm and camera" if carm is None else f"C-arm and camera of {carm.name}"
        settings = scene.view_settings.ViewSettings() if carm is None else scene.view_settings.view_settings(carm)
        for name, field in _FIELDS.items():
            box = getattr(self.ui, name)
            box.enabled = carm is not None and not self.section.panel.running
            if name in _OF_CARM:
                box.enabled = box.enabled and settings.free
            if box.value != getattr(settings, field):
                with self.section.quiet(name):
                    box.value = getattr(settings, field)

    def close(self) -> None:
        """The scene goes away; nothing of it is kept here."""


def camera_told(settings) -> str:
    """What of its camera is found, in a word or two."""
    return ", ".join(word for field, word in _SHORT.items() if getattr(settings, field)) or "known"
