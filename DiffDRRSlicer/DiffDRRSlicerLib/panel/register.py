"""Register: the automatic registration, step by step on a timer, and what it found."""

from __future__ import annotations

import qt
import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.choices import AUTOMATIC, Moves
from DiffDRRSlicerLib.panel.section import Section, fill_table

_PLOT = "DiffDRRConvergence"


class RegisterSection(Section):
    """Preset, similarity, structures and region; run, cancel; result, warnings, errors."""

    title = "Register"
    ui_file = "Register.ui"

    def setup(self) -> None:
        self.running = None
        self._steps, self._cancelled = None, False
        self.timer = qt.QTimer()
        self.timer.interval = 0
        self.timer.timeout.connect(self.step)
        self.click("registerButton", self.start, "The registration cannot start.")
        self.click("cancelButton", self.cancel, "The registration cannot be stopped.")
        self.ui.structuresSelector.connect("checkedIndexesChanged()", self._structures_chosen)
        self.ui.regionSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._draw_region)
        self._plot = self._structures_shown = None

    def start(self) -> None:
        """Begin; the timer takes one step at a time, so that the panel stays alive."""
        if self.running is not None:
            return
        parameters = self.panel.parameters
        carm, anatomy = self.panel.require_carm(), self.panel.require_anatomy()
        if parameters.reference is not None:
            carm.refer("reference", parameters.reference)
        self.panel.remember("registration")
        landmarks = (parameters.ctLandmarks, scene.landmarks.xray_landmarks(carm)) if parameters.useLandmarks else None
        self.running = scene.registration.SceneRegistration(
            anatomy,
            carm,
            preset=parameters.preset.name.lower(),
            similarity=None if parameters.similarity == AUTOMATIC else parameters.similarity,
            structures=self.panel.structures,
            region=parameters.region,
            find_collimator=parameters.findCollimator,
            target="patient" if parameters.moves is Moves.PATIENT else "carm",
            landmarks=landmarks,
        )
        self._steps, self._cancelled = self.running.steps(), False
        self._show_running(True)
        self.timer.start()

    def step(self) -> None:
        """Take one step."""
        if self.running is None:
            return
        try:
            progress = next(self._steps, None)
        except Exception as error:
            self._finish(str(error) or type(error).__name__)
            self.panel.show_error("The registration failed.", error)
            return
        if progress is None:
            self._finish(self._ending())
            self._show_outcome()
            return
        self.ui.progressBar.value = round(1000 * progress.fraction)
        self.ui.progressText.text = progress.text
        self.panel.changed()

    def cancel(self) -> None:
        """Stop and keep the best pose so far."""
        if self.running is not None:
            self.running.cancel()  # the steps that are left measure the best pose so far
            self._cancelled = True

    def close(self) -> None:
        """The scene goes away under a running registration."""
        if self.running is not None:
            self._steps.close()
            self._finish("Stopped: the scene was closed.")

    def _ending(self) -> str:
        """How it ended, where it did not end as it should."""
        if self.running.outcome is None:
            return "Cancelled; nothing was moved." if self._cancelled else "Stopped: a node that it needs was deleted."
        return "Cancelled: the best pose so far is kept." if self._cancelled else ""

    def _finish(self, text: str) -> None:
        self.timer.stop()
        finished, self.running, self._steps = self.running, None, None
        self.panel.outcome = finished.outcome if finished is not None else None
        self._show_running(False)
        self.ui.progressText.text = text
        self.panel.changed()

    def _show_running(self, running: bool) -> None:
        self.ui.cancelButton.enabled = running
        self.ui.registerButton.enabled = not running
        self.panel.lock(running)
        if running:
            self.ui.progressBar.value = 0
            self.ui.warningText.text = ""

    def _show_outcome(self) -> None:
        outcome = self.panel.outcome
        if outcome is None:
            return
        self.ui.progressBar.value = self.ui.progressBar.maximum
        if not self.ui.progressText.text:
            before, after = outcome.similarity
            self.ui.progressText.text = f"Done. Similarity {before:.3f} before, {after:.3f} after."
        self.ui.warningText.text = "\n".join(f"Doubtful: {warning}" for warning in outcome.warnings)
        rows = [(name, _number(value), unit) for name, value, unit in outcome.rows() if name != "warning"]
        fill_table(self.ui.resultTable, ("", "Value", "Unit"), rows)

    @staticmethod
    def _plot_view():
        view = slicer.mrmlScene.GetSingletonNode(_PLOT, "vtkMRMLPlotViewNode")
        if view is None:
            view = slicer.mrmlScene.CreateNodeByClass("vtkMRMLPlotViewNode")
            view.UnRegister(None)
            view.SetSingletonTag(_PLOT)
            view.SetName(_PLOT)
            view.SetLayoutName(_PLOT)
            view = slicer.mrmlScene.AddNode(view)
        return view

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
        self._show_plot(carm)

    def show_structures(self, names: list[str]) -> None:
        """Offer these structures to choose from, those of the parameter node checked."""
        combo, chosen = self.ui.structuresSelector, self.panel.parameters.structures
        with self.quiet():
            combo.clear()
            combo.addItems(names)
            for row, name in enumerate(names):
                state = qt.Qt.Checked if name in chosen else qt.Qt.Unchecked
                combo.setCheckState(combo.model().index(row, 0), state)
        combo.enabled = bool(names)

    def _show_plot(self, carm) -> None:
        chart = None if carm is None else carm.referred("convergence chart")
        if self._plot is not None:
            self._plot.visible = chart is not None
        if chart is None:
            return
        if self._plot is None:
            self._plot = slicer.qMRMLPlotView()
            self._plot.minimumHeight = 200
            self.ui.plotPlace.layout().addWidget(self._plot)
        view = self._plot_view()
        self._plot.setMRMLScene(slicer.mrmlScene)
        self._plot.setMRMLPlotViewNode(view)
        if view.GetPlotChartNodeID() != chart.GetID():
            view.SetPlotChartNodeID(chart.GetID())


def _number(value) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
