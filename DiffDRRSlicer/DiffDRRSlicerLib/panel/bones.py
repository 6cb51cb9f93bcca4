"""Bones and X-rays: what moves on its own in a registration, which X-rays it uses, and how sure it was."""

from __future__ import annotations

import qt
import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.choices import Rest
from DiffDRRSlicerLib.panel.bone_points import BonePoints
from DiffDRRSlicerLib.panel.joints import JointsPart
from DiffDRRSlicerLib.panel.section import NotReadyError, Section
from DiffDRRSlicerLib.panel.table_cells import begin, number, put
from DiffDRRSlicerLib.panel.view_details import ViewDetails, camera_told

_BONES = ("Bone", "Structures", "Colour", "Locked")
_VIEWS = ("X-ray", "Weight", "Free", "Camera")
_RESTS = tuple(Rest)


class BonesSection(Section):
    """List of bones, made of structures; their points and joints; list of X-rays; the map of errors."""

    title = "Bones and X-rays"
    ui_file = "Bones.ui"
    collapsed = True

    def setup(self) -> None:
        self._shown, self._offered, self._chosen = {}, None, None
        self._view = None  # ID of the C-arm that is chosen in the list
        self._parts = BonePoints(self), JointsPart(self), ViewDetails(self)
        self.ui.restSelector.addItems([one.label() for one in _RESTS])
        self.click("addBoneButton", self.add, "The bone cannot be made.")
        self.click("removeBoneButton", self.remove, "The bone cannot be removed.")
        self.click("resetBoneButton", self.reset, "The bone cannot be put back.")
        self.ui.restSelector.connect("currentIndexChanged(int)", self._rest_chosen)
        self.ui.boneColorButton.connect("colorChanged(QColor)", self._color_chosen)
        self.ui.bonesTable.connect("itemChanged(QTableWidgetItem*)", self._bone_changed)
        self.ui.bonesTable.connect("itemSelectionChanged()", self._selected)
        self.ui.viewsTable.connect("itemChanged(QTableWidgetItem*)", self._view_changed)
        self.ui.viewsTable.connect("itemSelectionChanged()", self._view_selected)
        self.button.connect("contentsCollapsed(bool)", lambda *_: self.panel.changed())

    # bones

    def add(self) -> None:
        """Make a bone of the structures that are checked."""
        combo = self.ui.boneStructuresSelector
        names = [combo.itemText(index.row()) for index in combo.checkedIndexes()]
        if not names:
            raise NotReadyError("Check the structures of the bone first.")
        with slicer.util.WaitCursor():
            body = scene.body_parts.add_body(self.panel.require_anatomy(), names)
        self._chosen = body.node.GetID()

    def remove(self) -> None:
        """Remove the bone that is chosen in the list; its structures stay in the labels."""
        scene.body_parts.remove_body(self.require_bone())
        self._chosen = None

    def reset(self) -> None:
        """Put the chosen bone back to where the CT shows it."""
        body = self.require_bone()
        self.panel.remember(f"reset of {body.name}")
        body.put_back(self.panel.require_anatomy())

    @property
    def bones(self) -> list:
        """Of the CT and the labels that are chosen."""
        anatomy = self.panel.anatomy
        return [] if anatomy is None else scene.bodies.BodyNode.of(anatomy)

    @property
    def bone(self):
        """The one that is chosen in the list, or None."""
        return next((body for body in self.bones if body.node.GetID() == self._chosen), None)

    def require_bone(self):
        """The same; raises NotReadyError for none."""
        body = self.bone
        if body is None:
            raise NotReadyError("Choose a bone in the list first.")
        return body

    def _selected(self) -> None:
        row, bones = self.ui.bonesTable.currentRow(), self.bones
        self._chosen = bones[row].node.GetID() if 0 <= row < len(bones) else None
        self.panel.changed()

    def _rest_chosen(self, index: int) -> None:
        if self.panel.anatomy is not None and 0 <= index < len(_RESTS):
            with self.panel.attempt("That cannot be chosen."):
                scene.bodies.set_rest(self.panel.anatomy.ct, _RESTS[index].key)

    def _color_chosen(self, color) -> None:
        body = self.bone
        if body is not None:
            with self.panel.attempt("The colour cannot be set."):
                body.color = color.redF(), color.greenF(), color.blueF()

    def _bone_changed(self, item) -> None:
        """Name, visibility or lock of a row was changed by the user."""
        bones = self.bones
        if item.row() >= len(bones):
            return
        body, checked = bones[item.row()], item.checkState() == qt.Qt.Checked
        with self.panel.attempt("The bone cannot be changed."):
            self._shown.pop("bonesTable", None)  # a name that is refused is written back
            if item.column() == 3:
                body.locked = checked
            elif item.column() == 0:
                body.visible = checked
                if item.text() != body.name:
                    body.name = item.text()

    # X-rays

    def _view_changed(self, item) -> None:
        """Use, weight or freedom of a row was changed by the user."""
        carms = self._carms()
        if item.row() >= len(carms):
            return
        carm, column, checked = carms[item.row()], item.column(), item.checkState() == qt.Qt.Checked
        with self.panel.attempt("The X-ray's setting cannot be changed."):
            self._shown.pop("viewsTable", None)
            if column == 1:
                scene.view_settings.set_view(carm, weight=number(item.text()))
            elif column == 2:
                scene.view_settings.set_view(carm, free=checked)
            elif carm != self.panel.carm:
                scene.view_settings.set_view(carm, use=checked)

    def _view_selected(self) -> None:
        row, carms = self.ui.viewsTable.currentRow(), self._carms()
        self._view = carms[row].node.GetID() if 0 <= row < len(carms) else None
        self.panel.changed()

    @property
    def view(self):
        """The C-arm that is chosen in the list of X-rays, else the one in use; None where it has no X-ray."""
        carms = self._carms()
        chosen = next((carm for carm in carms if carm.node.GetID() == self._view), None)
        return chosen or next((carm for carm in carms if carm == self.panel.carm), None)

    def _carms(self) -> list:
        """Those that have an X-ray, in the scene's order."""
        if self.panel.carm is None:
            return []
        return [one for one in scene.carm.CArmNode.all(slicer.mrmlScene) if one.referred("xray") is not None]

    # the widgets

    def apply(self) -> None:
        """The map of errors and the handles, as chosen; bones that were renamed or deleted, in the results too."""
        anatomy, parameters = self.panel.anatomy, self.panel.parameters
        if self.panel.carm is not None:
            for carm in scene.carm.CArmNode.all(slicer.mrmlScene):
                scene.body_results.follow_bones(carm)
        if self.panel.outcome is not None:
            self.panel.outcome = self.panel.outcome.following(slicer.mrmlScene)
        if anatomy is None:
            return
        if parameters.showErrors and scene.error_map.has_errors(anatomy):
            scene.error_map.show_error_map(anatomy, self.panel.structures)
        else:
            scene.error_map.hide_error_map(anatomy)
        chosen = self.bone if parameters.showBoneHandles else None
        views = scene.layout.view_nodes(slicer.mrmlScene) or ()
        for body in self.bones:
            scene.body_parts.show_beside_xray(body, views and views.xray)
            if body == chosen:
                scene.handles.show_handles(body.node, views, scene.body_parts.center(body, anatomy))
            else:
                scene.handles.hide_handles(body.node)

    def refresh(self) -> None:
        if self.button.collapsed:
            return
        anatomy, running = self.panel.anatomy, self.panel.running
        labelled = anatomy is not None and anatomy.labels is not None
        self._offer(scene.bodies.free_structures(anatomy) if labelled else [])
        self._show_bones()
        self._show_views()
        body = self.bone
        self.ui.addBoneButton.enabled = labelled and bool(self._offered) and not running
        for name in ("removeBoneButton", "resetBoneButton", "boneColorButton", "showBoneHandles"):
            getattr(self.ui, name).enabled = body is not None and not running
        with self.quiet("boneColorButton", "restSelector"):
            self.ui.boneColorButton.color = qt.QColor.fromRgbF(*(body.color if body is not None else (0.5, 0.5, 0.5)))
            if anatomy is not None:
                keys = [one.key for one in _RESTS]
                self.ui.restSelector.currentIndex = keys.index(scene.bodies.rest_of(anatomy.ct))
        self.ui.restSelector.enabled = body is not None or bool(self.bones)
        known = anatomy is not None and scene.error_map.has_errors(anatomy)
        self.ui.showErrors.enabled = known
        self.ui.bonesText.text = self._told(labelled)
        for part in self._parts:
            part.refresh()

    def _told(self, labelled: bool) -> str:
        if not labelled:
            return "Choose a labelmap or a segmentation in Load: bones are made of its structures."
        if not self.bones:
            return "No bones: the CT moves as one."
        if lacking := scene.bodies.without_structures(self.panel.anatomy):
            return lacking
        body = self.bone
        lists = [] if body is None else scene.bone_landmarks.lists_of([body])
        return f"Points of {body.name}: {', '.join(one.GetName() for one in lists)}." if lists else ""

    def _offer(self, names: list[str]) -> None:
        """The structures that are in no bone, none checked."""
        if names != self._offered:
            combo, self._offered = self.ui.boneStructuresSelector, names
            combo.clear()
            combo.addItems(names)
            for row in range(len(names)):
                combo.setCheckState(combo.model().index(row, 0), qt.Qt.Unchecked)

    def _show_bones(self) -> None:
        rows = [(b.node.GetID(), b.name, b.visible, b.structures, tuple(b.color), b.locked) for b in self.bones]
        table = self.ui.bonesTable
        if self._shown.get("bonesTable") != rows:
            with self.quiet("bonesTable"):
                begin(table, _BONES, len(rows))
                for row, (_, name, visible, structures, color, locked) in enumerate(rows):
                    put(table, row, 0, name, editable=True, checked=visible)
                    put(table, row, 1, ", ".join(structures))
                    cell = put(table, row, 2)
                    cell.setFlags(qt.Qt.ItemIsEnabled)  # a selection would hide the colour
                    cell.setBackground(qt.QBrush(qt.QColor.fromRgbF(*color)))
                    put(table, row, 3, checked=locked)
            self._shown["bonesTable"] = rows
        identifiers = [row[0] for row in rows]
        chosen = identifiers.index(self._chosen) if self._chosen in identifiers else -1
        if table.currentRow() != chosen:
            with self.quiet("bonesTable"):
                table.setCurrentCell(chosen, 1)

    def _show_views(self) -> None:
        known = [(carm, scene.view_settings.view_settings(carm)) for carm in self._carms()]
        rows = [(carm.node.GetID(), carm.name, carm == self.panel.carm, one) for carm, one in known]
        if self._shown.get("viewsTable") == rows:
            return
        table = self.ui.viewsTable
        with self.quiet("viewsTable"):
            begin(table, _VIEWS, len(rows))
            for row, (_, name, in_use, one) in enumerate(rows):
                put(table, row, 0, name, checked=in_use or one.use, enabled=not in_use)
                put(table, row, 1, f"{one.weight:g}", editable=True)
                put(table, row, 2, checked=one.free)
                put(table, row, 3, camera_told(one))
        self._shown["viewsTable"] = rows

    def close(self) -> None:
        """The scene goes away."""
        self._shown, self._chosen, self._view = {}, None, None
        for part in self._parts:
            part.close()
