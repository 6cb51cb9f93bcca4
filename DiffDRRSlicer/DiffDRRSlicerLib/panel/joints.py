"""Joints: what is known of how two bones stand to each other."""

from __future__ import annotations

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.section import NotReadyError, fill
from DiffDRRSlicerLib.panel.table_cells import begin, number, put

_JOINTS = ("Joint", "± °", "± mm", "≤ °", "≤ mm", "Weight")
_SIXES = ("deviations", "bounds")  # two columns each


class JointsPart:
    """Two bones and Add; the list of joints; the chosen one's centre."""

    def __init__(self, section):
        self.section, self.ui = section, section.ui
        self._shown, self._chosen = None, None
        self._emptied = None  # (joint, list) whose selector went empty: chosen so, or the list is being deleted
        section.click("addJointButton", self.add, "The joint cannot be made.")
        section.click("removeJointButton", self.remove, "The joint cannot be removed.")
        self.ui.jointsTable.connect("itemChanged(QTableWidgetItem*)", self._changed)
        self.ui.jointsTable.connect("itemSelectionChanged()", self._selected)
        self.ui.jointCenterSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._center_chosen)

    def add(self) -> None:
        """A joint of the two bones that are chosen."""
        bones = self.section.bones
        pair = [getattr(self.ui, name).currentIndex for name in ("jointFirstSelector", "jointSecondSelector")]
        if not all(0 <= index < len(bones) for index in pair):
            raise NotReadyError("Make two bones first.")
        joint = scene.joints.add_joint(self.section.panel.require_anatomy(), *(bones[index] for index in pair))
        self._chosen = joint.node.GetID()

    def remove(self) -> None:
        """Remove the joint that is chosen in the list."""
        joint = self._joint()
        if joint is None:
            raise NotReadyError("Choose a joint in the list first.")
        scene.nodes.remove_node(joint.node)
        self._chosen = None

    def _joints(self) -> list:
        anatomy = self.section.panel.anatomy
        return [] if anatomy is None else scene.joints.JointNode.of(anatomy)

    def _joint(self):
        return next((joint for joint in self._joints() if joint.node.GetID() == self._chosen), None)

    def _selected(self) -> None:
        row, joints = self.ui.jointsTable.currentRow(), self._joints()
        self._chosen = joints[row].node.GetID() if 0 <= row < len(joints) else None
        self.section.panel.changed()

    def _center_chosen(self, markups) -> None:
        joint = self._joint()
        if joint is None:
            return
        if markups is None:
            self._emptied = None if joint.center is None else (joint, joint.center)
        else:
            self._emptied, joint.center = None, markups
        self.section.panel.changed()

    def apply_center(self) -> None:
        """Nobody wants a joint to forget its centre because the list was deleted: only where that is still there."""
        if self._emptied is None:
            return
        (joint, markups), self._emptied = self._emptied, None
        if markups.GetScene() is not None and joint.node.GetScene() is not None:
            joint.center = None

    def _changed(self, item) -> None:
        """A number was typed."""
        joints = self._joints()
        if item.row() >= len(joints):
            return
        joint, column = joints[item.row()], item.column()
        with self.section.panel.attempt("The joint cannot be changed."):
            self._shown = None  # what is refused is written back
            if column == 5:
                joint.change(weight=number(item.text()))
            elif column > 0:
                name = _SIXES[(column - 1) // 2]
                before = getattr(joint.settings, name) or (None,) * 6
                parts, typed = [before[:3], before[3:]], _numbers(item.text())
                parts[(column - 1) % 2] = typed
                joint.change(**{name: scene.joints.six(*parts)})

    def refresh(self) -> None:
        """Show the bones to choose from, and the joints there are."""
        self.apply_center()
        names, running = [body.name for body in self.section.bones], self.section.panel.running
        for number_, name in enumerate(("jointFirstSelector", "jointSecondSelector")):
            combo = getattr(self.ui, name)
            if [combo.itemText(index) for index in range(combo.count)] != names:
                fill(combo, names)
                combo.currentIndex = min(number_, len(names) - 1)
        self.ui.addJointButton.enabled = len(names) > 1 and not running
        self._show()
        joint = self._joint()
        for name in ("removeJointButton", "jointCenterSelector"):
            getattr(self.ui, name).enabled = joint is not None and not running
        with self.section.quiet("jointCenterSelector"):
            self.ui.jointCenterSelector.setCurrentNode(None if joint is None else joint.center)

    def _show(self) -> None:
        joints, table = self._joints(), self.ui.jointsTable
        rows = [(joint.node.GetID(), joint.name, joint.settings) for joint in joints]
        if rows != self._shown:
            with self.section.quiet("jointsTable"):
                begin(table, _JOINTS, len(rows))
                for row, (_, name, settings) in enumerate(rows):
                    put(table, row, 0, name)
                    for index, field in enumerate(_SIXES):
                        values = getattr(settings, field) or (None,) * 6
                        put(table, row, 2 * index + 1, _told(values[:3]), editable=True)
                        put(table, row, 2 * index + 2, _told(values[3:]), editable=True)
                    put(table, row, 5, f"{settings.weight:g}", editable=True)
            self._shown = rows
        identifiers = [row[0] for row in rows]
        chosen = identifiers.index(self._chosen) if self._chosen in identifiers else -1
        if table.currentRow() != chosen:
            with self.section.quiet("jointsTable"):
                table.setCurrentCell(chosen, 0)

    def close(self) -> None:
        """The scene goes away."""
        self._shown, self._chosen, self._emptied = None, None, None


def _numbers(text: str) -> list[float]:
    """One or three numbers of what was typed; nothing and a dash are none."""
    values = [number(word) for word in text.replace("–", "").split()] or [0.0]
    if len(values) not in (1, 3):
        raise NotReadyError("Type one number for all axes, or three for R, A and S; 0 is none.")
    return values


def _told(values) -> str:
    if not any(values):
        return "–"
    if len(set(values)) == 1:
        return f"{values[0]:g}"
    return " ".join(f"{value or 0:g}" for value in values)
