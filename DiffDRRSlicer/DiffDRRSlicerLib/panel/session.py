"""What the sections of the panel share: the nodes in use, and the undo history."""

from __future__ import annotations

from DiffDRRSlicerLib import scene


class Session:
    """The nodes that the parameter node names, as `scene` understands them. No widget in here."""

    def __init__(self):
        self.parameters = None
        self.outcome = None
        self.history = None
        self.action = "move"

    @property
    def carm(self):
        """The chosen C-arm as a `CArmNode`, or None."""
        node = self.parameters.carm if self.parameters is not None else None
        return None if node is None else scene.carm.CArmNode(node)

    @property
    def anatomy(self):
        """The chosen CT as an `Anatomy`, or None."""
        ct = self.parameters.ct if self.parameters is not None else None
        if ct is None or ct.GetImageData() is None:
            return None
        return scene.anatomy.Anatomy(ct, self.parameters.labels)

    @property
    def structures(self) -> list[str] | None:
        """Names of the structures to render, None for everything."""
        return list(self.parameters.structures) or None

    @property
    def side(self) -> str:
        """From where the X-ray view looks: "radiological" or "source"."""
        return self.parameters.displaySide.name.lower()

    def require_carm(self):
        """The chosen C-arm. Raises SceneError where there is none."""
        return scene.carm.CArmNode(self.parameters.carm)

    def require_anatomy(self):
        """The chosen CT. Raises SceneError where there is none."""
        return scene.anatomy.Anatomy(self.parameters.ct, self.parameters.labels)

    def anatomy_center(self):
        """World mm; the isocentre where there is no CT."""
        anatomy = self.anatomy
        return self.require_carm().arm.isocenter.numpy() if anatomy is None else anatomy.center

    def markups(self) -> list:
        """Points that belong to the patient and move along."""
        chosen = (self.parameters.fiducials, self.parameters.ctLandmarks)
        return [node for node in chosen if node is not None]

    def remember(self, text: str) -> None:
        """What the user is about to do, in a word: undo is called by it."""
        if self.action != text:  # else one drag, many times told
            self.rested()
        self.action = text

    def rested(self) -> None:
        """Nothing moves any more: what moved becomes one step of undo."""
        if self.history is not None:
            self.history.rest(self.action)
            self.action = "move"

    def undo(self) -> None:
        """Back to the poses before the last change."""
        self.rested()
        if self.history is not None:
            self.history.undo()

    def redo(self) -> None:
        """Forward again."""
        if self.history is not None:
            self.history.redo()

    @property
    def can_undo(self) -> bool:
        """Whether there is something to undo."""
        return self.history is not None and self.history.undo_text is not None

    @property
    def can_redo(self) -> bool:
        """Whether there is something to redo."""
        return self.history is not None and self.history.redo_text is not None
