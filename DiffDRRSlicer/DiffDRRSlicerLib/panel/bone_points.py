"""Points of a bone: lists that go where it goes."""

from __future__ import annotations

import slicer

from DiffDRRSlicerLib import scene


class BonePoints:
    """A list of points, and a button that has it go with the chosen bone or with the CT again."""

    def __init__(self, section):
        self.section, self.ui = section, section.ui
        section.click("attachPointsButton", self.attach, "The points cannot go with the bone.")
        self.ui.bonePointsSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda *_: section.panel.changed())

    def attach(self) -> None:
        """Have the list go with the chosen bone; with the CT, where it goes with that bone already."""
        body, markups, anatomy = self.section.require_bone(), self._list(), self.section.panel.require_anatomy()
        if scene.bone_landmarks.owner(markups) == body:
            scene.bone_landmarks.detach(markups, anatomy)
        else:
            scene.bone_landmarks.attach(markups, body, anatomy)

    def _list(self):
        return self.ui.bonePointsSelector.currentNode()

    def refresh(self) -> None:
        """Offer the lists on the CT, and what can be done with the chosen one."""
        panel, body, markups = self.section.panel, self.section.bone, self._list()
        if panel.carm is not None:
            hidden = scene.landmarks.xray_list_ids(slicer.mrmlScene)
            self.ui.bonePointsSelector.sortFilterProxyModel().hiddenNodeIDs = hidden
        attached = body is not None and markups is not None and scene.bone_landmarks.owner(markups) == body
        self.ui.attachPointsButton.text = "Detach" if attached else "Attach"
        self.ui.attachPointsButton.enabled = body is not None and markups is not None and not panel.running

    def close(self) -> None:
        """The scene goes away; nothing of it is kept here."""
