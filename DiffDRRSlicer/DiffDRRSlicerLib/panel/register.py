"""Register: the automatic registration, step by step on a timer, and what it found."""

from __future__ import annotations

import qt
import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.choices import Similarity
from DiffDRRSlicerLib.panel.minima import MinimaPart
from DiffDRRSlicerLib.panel.plot import Plot
from DiffDRRSlicerLib.panel.section import Section, fill_table

_BONES = ("Bone", "Turn, °", "Shift, mm", "± °", "± mm", "Error, mm")
_VIEWS = ("X-ray", "Similarity", "Residual, %")


class RegisterSection(Section):
    """Preset, similarity, structures and region; run, cancel; result, warnings, errors."""

    title = "Register"
    ui_file = "Register.ui"

    def setup(self) -> None:
        self.running = None
        self._steps, self._failed = None, ""
        self.timer = qt.QTimer()
        self.timer.interval = 0
        self.timer.timeout.connect(self.step)
        self.click("registerButton", self.start, "The registration cannot start.")
        self.click("cancelButton", self.cancel, "The registration cannot be stopped.")
        self.ui.structuresSelector.connect("checkedIndexesChanged()", self._structures_chosen)
        self.ui.regionSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._draw_region)
        self._plot = Plot(self.ui.plotPlace, "DiffDRRConvergence")
        self._minima = MinimaPart(self)
        self._structures_shown = self._results_shown = self._tables_shown = None
        self._ended = ("", "")  # ID of the C-arm that was registered last, and how, where not as it should

    def start(self) -> None:
        """Begin; the timer takes one step at a time, so that the panel stays alive."""
        if self.running is None:
            carm, anatomy = self.panel.require_carm(), self.panel.require_anatomy()
            carms = scene.view_settings.used_carms(carm)
            run = scene.registration.SceneRegistration(anatomy, carms, **self.options(*carms))
            self.begin(run, "registration")

    def options(self, *carms) -> dict:
        """What the widgets say to a registration of these C-arms; region and reference are the first one's."""
        parameters, others = self.panel.parameters, [None] * (len(carms) - 1)
        return {
            "preset": parameters.preset.name.lower(),
            "similarity": None if parameters.similarity is Similarity.AUTOMATIC else parameters.similarity.value,
            "structures": self.panel.structures,
            "region": [parameters.region, *others],
            "find_collimator": parameters.findCollimator,
            "target": parameters.moves.name.lower(),
            "landmarks": self._landmarks(carms),
            "use_landmarks": parameters.useLandmarks,
            "reference": [parameters.reference, *others],
            "also": self.panel.markups(),
        }

    def begin(self, run, action: str, failed: str = "The registration failed.") -> None:
        """Take the steps of a `SceneRegistration` on the timer; undo is called by `action`, an error by `failed`."""
        self.panel.remember(action)
        self.running, self._steps, self._failed = run, run.steps(), failed
        self._ended = (run.carms[0].node.GetID(), "")
        self._show_running(True)
        self.timer.start()

    def _landmarks(self, carms):
        """The lists, of bones too, to be measured where they have pairs even if they are not used."""
        parameters = self.panel.parameters
        bones = scene.bodies.BodyNode.of(self.panel.require_anatomy())
        lists = scene.bone_landmarks.lists_with(parameters.ctLandmarks, bones)
        if not lists and not parameters.useLandmarks:
            return None
        return lists, [carm.referred("landmarks") for carm in carms]

    def step(self) -> None:
        """Take one step."""
        if self.running is None:
            return
        try:
            progress = next(self._steps, None)
        except Exception as error:
            self._finish(str(error) or type(error).__name__)
            self.panel.show_error(self._failed, error)
            return
        if progress is None:
            self._finish(self.running.ending)
            return
        self.ui.progressBar.value = round(1000 * progress.fraction)
        self.ui.progressText.text = progress.text
        self.panel.changed()

    def cancel(self) -> None:
        """Stop and keep the best pose so far."""
        if self.running is not None:
            self.running.cancel()  # the steps that are left measure the best pose so far

    def close(self) -> None:
        """The scene goes away, perhaps under a running registration."""
        if self.running is not None:
            self._steps.close()
            self._finish("")
        self._ended = ("", "")
        self._show_results(None)

    def _finish(self, text: str) -> None:
        self.timer.stop()
        finished, self.running, self._steps = self.running, None, None
        self.panel.outcome = finished.outcome
        self._ended = (self._ended[0], text)
        self._show_running(False)
        self._show_results(self.panel.carm)
        self.panel.changed()

    def _show_running(self, running: bool) -> None:
        self.ui.cancelButton.enabled = running
        self.ui.registerButton.enabled = not running
        self.panel.lock(running, self)
        if running:
            self._fill([], "")

    def _show_results(self, carm) -> None:
        """What the last registration of this C-arm found, from the table that is saved with it, and how it ended."""
        node = None if carm is None else carm.referred("results")
        table = None if node is None else node.GetTable()
        ended_of, text = self._ended
        text = text if carm is None or carm.node.GetID() == ended_of else ""
        state = None if table is None else (node.GetID(), table.GetMTime()), text
        if state != self._results_shown:
            self._fill([] if table is None else scene.results.read_results_table(carm), text)
            self._results_shown = state
        self._show_tables(carm)

    def _show_tables(self, carm) -> None:
        """What was found for each bone and each X-ray; all numbers are in the table nodes."""
        of = scene.body_results
        found = [] if carm is None else of.read_table(carm, of.BONES)
        views = [] if carm is None else of.read_table(carm, of.VIEWS)
        if (found, views) == self._tables_shown:
            return
        self._tables_shown = found, views
        fill_table(self.ui.bonesResultTable, _BONES, [_bone_row(row) for row in found])
        for number, row in enumerate(found):
            for column in range(len(_BONES)):
                self.ui.bonesResultTable.item(number, column).setToolTip(_told(row))
        fill_table(self.ui.viewsResultTable, _VIEWS, [_view_row(row) for row in views])
        for number, row in enumerate(views):
            self.ui.viewsResultTable.item(number, 0).setToolTip(_told(row))
        for table, rows in ((self.ui.bonesResultTable, found), (self.ui.viewsResultTable, views)):
            table.visible = bool(rows)

    def _fill(self, rows, text: str) -> None:
        """Write (quantity, value, unit) and a text, by default of the similarity."""
        values = {name: value for name, value, _ in rows}
        if {"similarity", "similarity at the start"} <= set(values) and not text:
            text = f"Done. Similarity {values['similarity at the start']} before, {values['similarity']} after."
        self.ui.progressText.text = text
        self.ui.progressBar.value = self.ui.progressBar.maximum if rows else 0
        doubts = [value for name, value, _ in rows if name == "warning"]
        self.ui.warningText.text = "\n".join(["Doubtful:", *(f"• {text}" for text in doubts)] if doubts else [])
        fill_table(self.ui.resultTable, ("", "Value", "Unit"), [row for row in rows if row[0] != "warning"])
        self._results_shown = None

    def _structures_chosen(self) -> None:
        combo = self.ui.structuresSelector
        names = [combo.itemText(index.row()) for index in combo.checkedIndexes()]
        if self.panel.parameters is not None:
            self.panel.parameters.structures = names

    def follow_labels(self) -> None:
        """Offer the structures that there are now, and choose none of the others; before anything is rendered."""
        labels, anatomy = self.panel.parameters.labels, self.panel.anatomy
        state, names = None, []
        if labels is not None and anatomy is not None:
            try:
                state = labels.GetID(), scene.labels.labels_state(labels, anatomy.ct)
                if state != self._structures_shown:
                    names = list(anatomy.structures.values())
            except ValueError:
                return  # whoever renders says so
        if state != self._structures_shown:
            self._structures_shown = state
            chosen = list(self.panel.parameters.structures)
            if not set(chosen) <= set(names):
                self.panel.parameters.structures = [name for name in chosen if name in names]
            self.show_structures(names)

    def _draw_region(self, region) -> None:
        """The next clicks in the X-ray view draw the new region."""
        region.CreateDefaultDisplayNodes()
        self.apply()
        selection = slicer.app.applicationLogic().GetSelectionNode()
        selection.SetReferenceActivePlaceNodeClassName(region.GetClassName())
        selection.SetActivePlaceNodeID(region.GetID())
        slicer.app.applicationLogic().GetInteractionNode().SwitchToSinglePlaceMode()

    def apply(self) -> None:
        """A region is drawn on the X-ray, so it goes with it."""
        carm, region = self.panel.carm, self.panel.parameters.region
        if carm is not None and region is not None:
            scene.regions.attach(carm, region)

    def refresh(self) -> None:
        carm, anatomy = self.panel.carm, self.panel.anatomy
        ready = carm is not None and anatomy is not None and carm.referred("xray") is not None
        self.ui.registerButton.enabled = ready and self.running is None
        self.ui.registerButton.toolTip = (
            "Find the pose under which the CT looks like the X-ray, from the pose as it is now."
            if ready
            else "Needs a CT and a C-arm with an X-ray: see Load."
        )
        self._plot.show(None if carm is None else carm.referred("convergence chart"))
        if self.running is None:
            self._show_results(carm)
        self._minima.refresh()

    def show_structures(self, names: list[str]) -> None:
        """Offer these structures to choose from, those of the parameter node checked."""
        combo, chosen = self.ui.structuresSelector, self.panel.parameters.structures
        with self.quiet("structuresSelector"):
            combo.clear()
            combo.addItems(names)
            for row, name in enumerate(names):
                state = qt.Qt.Checked if name in chosen else qt.Qt.Unchecked
                combo.setCheckState(combo.model().index(row, 0), state)
        combo.enabled = bool(names)


def _bone_row(row) -> tuple:
    held = row["moved"] == "held"
    deviations = [max(row[f"deviation {kind} {unit}"] for kind in axes) for axes, unit in _DEVIATIONS]
    error = f"{row['expected error median, mm']:.2g} to {row['expected error worst, mm']:.2g}"
    told = ("held", "", "") if held else (*(f"{value:.2g}" for value in deviations), error)
    return row["bone"], f"{row['turn, deg']:.2f}", f"{row['shift, mm']:.2f}", *told


def _view_row(row) -> tuple:
    free = ", free" if row["C-arm"] == "free" else ""
    return f"{row['X-ray']}{free}", f"{row['similarity']:.4f}", f"{row['residual, %']:.1f}"


def _told(row) -> str:
    """All numbers of a bone or an X-ray, a line each."""
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else format(value, '.4g')}" for name, value in row.items()
    )


_DEVIATIONS = ((("about R,", "about A,", "about S,"), "deg"), (("R,", "A,", "S,"), "mm"))
