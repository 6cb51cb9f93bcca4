"""Learn: a network is trained for the patient, in a process of its own, and finds the pose of an X-ray."""

from __future__ import annotations

from pathlib import Path

import qt
import slicer

from DiffDRRSlicerLib import install, scene
from DiffDRRSlicerLib.panel.plot import Plot
from DiffDRRSlicerLib.panel.register import RegisterSection
from DiffDRRSlicerLib.panel.section import Section

_LOOK = 1000  # ms between looks at a training


class LearnSection(Section):
    """Train, stop, resume, watch; find the pose."""

    title = "Learn"
    ui_file = "Learn.ui"
    collapsed = True

    def setup(self) -> None:
        self._watched, self._state = "", None  # folder of the training, and how it stands
        self._curve = self._known = None
        self._plot = Plot(self.ui.trainingPlotPlace, "DiffDRRTraining")
        self.timer = qt.QTimer()
        self.timer.interval = _LOOK
        self.timer.timeout.connect(self.look)
        self.click("trainButton", self.train, "The training cannot start.")
        self.click("stopTrainingButton", self.stop, "The training cannot be stopped.")
        self.click("resumeTrainingButton", self.resume, "The training cannot go on.")
        self.click("clearTrainingButton", self.clear, "The copy of the CT cannot be removed.")
        self.click("findButton", self.find, "The pose cannot be looked for.")
        self.click("cancelFindButton", self.cancel, "The search cannot be stopped.")
        self.ui.trainingPath.connect("currentPathChanged(QString)", self._folder_chosen)
        self.ui.networkPath.connect("currentPathChanged(QString)", self._network_chosen)
        # a path that is cleared is no valid one, and currentPathChanged says nothing of it
        self.ui.trainingPath.connect("validInputChanged(bool)", lambda valid: valid or self._folder_chosen(""))
        self.ui.networkPath.connect("validInputChanged(bool)", lambda valid: valid or self._network_chosen(""))
        self.button.connect("contentsCollapsed(bool)", self._opened)

    # training

    def train(self) -> None:
        """Write the CT and the options to a new folder, and begin."""
        carm, anatomy, parameters = self.panel.require_carm(), self.panel.require_anatomy(), self.panel.parameters
        install.install_learning()
        with slicer.util.WaitCursor():
            settings = scene.training.TrainingSettings.of(**self._settings())
            run = scene.training.prepare_training(self._folder(), carm, anatomy, settings)
            run.start()
        parameters.trainingFolder, parameters.networkFile = str(run.folder), str(run.model)
        self._show_paths()
        self.ui.trainingPath.addCurrentPathToHistory()
        self._watch()

    def _settings(self) -> dict:
        parameters = self.panel.parameters
        return {
            "primary": parameters.trainPrimary,
            "secondary": parameters.trainSecondary,
            "roll": parameters.trainRoll,
            "shift": parameters.trainShift,
            "depth": parameters.trainDepth,
            "steps": round(parameters.trainSteps),
            "batch": round(parameters.trainBatch),
            "size": int(parameters.trainSize.value),
            "backbone": parameters.trainNetwork.key,
            "device": parameters.trainDevice.name.lower(),
            "structures": parameters.trainStructures,
            "names": self.panel.structures,
        }

    def _folder(self) -> str:
        return self.panel.parameters.trainingFolder.strip() or default_folder()

    def stop(self) -> None:
        """Ask it to end after its step."""
        self._run().stop()
        self.ui.stopTrainingButton.enabled = False
        self.ui.trainingText.text = "Stopping after this step ..."

    def resume(self) -> None:
        """Go on from the last checkpoint."""
        install.install_learning()
        run = self._run()
        run.resume()
        self.panel.parameters.networkFile = str(run.model)
        self._watch()

    def clear(self) -> None:
        """Remove the training's copy of the CT, and what else only resuming needs, after asking."""
        run = self._run()
        question = (
            f"The copy of the CT in '{run.folder}' is removed. The network stays, but its training cannot be resumed."
        )
        if slicer.util.confirmOkCancelDisplay(question, "Remove the copy of the CT"):
            run.clear()
            self._watch()

    def _run(self):
        return scene.training_run.TrainingRun(self._folder())

    def _watch(self) -> None:
        """Look at the training of the parameter node, and go on looking while it is at work."""
        self._watched, self._curve, self._known = self.panel.parameters.trainingFolder, None, None
        self.look()

    def look(self) -> None:
        """Show how the training stands."""
        self._state = self._stands() if self._watched.strip() else None
        going = self._state is not None and self._state.going
        if going != self.timer.active:
            self.timer.start() if going else self.timer.stop()
        self._show_state()
        known = self._state is not None and (self._state.status, is_file(self._run().model))
        if known != self._known:  # the buttons change
            self._known = known
            self.panel.changed()

    def _stands(self):
        run = self._run()
        try:
            if run.exists:
                self._curve = self._curve or scene.training_curve.TrainingCurve(slicer.mrmlScene)
                self._curve.follow(run.folder)
            return run.state
        except (ValueError, OSError) as error:  # said in its place: a message each second would be too many
            return scene.training_run.RunState("failed", message=str(error))

    def _show_state(self) -> None:
        state = self._state
        self.ui.trainingProgress.value = 0 if state is None else round(1000 * state.fraction)
        self.ui.trainingText.text = "" if state is None else told(state)
        self.ui.stopTrainingButton.enabled = state is not None and state.going
        self._plot.show(None if self._curve is None else self._curve.chart)

    # finding the pose

    def find(self) -> None:
        """Begin; the section Register takes the steps, one at a time."""
        register = self.panel.sections[RegisterSection]
        if register.running is not None:
            return
        carm, anatomy, parameters = self.panel.require_carm(), self.panel.require_anatomy(), self.panel.parameters
        install.install_learning()
        run = scene.network_pose.NetworkRegistration(
            anatomy,
            carm,
            parameters.networkFile,
            parameters.findRefine,
            parameters.findCandidates,
            parameters.networkWarp,
            **register.options(carm),
        )
        register.begin(run, "pose by the network", "The pose was not found.")
        self.ui.networkPath.addCurrentPathToHistory()

    def cancel(self) -> None:
        """Stop and keep the best pose so far."""
        self.panel.sections[RegisterSection].cancel()

    # the widgets

    def refresh(self) -> None:
        parameters, carm, anatomy = self.panel.parameters, self.panel.carm, self.panel.anatomy
        self._show_paths()
        if parameters.trainingFolder != self._watched:
            self._watch()
        ready, running = carm is not None and anatomy is not None, self.panel.running
        going = self._state is not None and self._state.going
        self.ui.trainButton.enabled = ready and not running and not going
        self.ui.resumeTrainingButton.enabled = self._resumable()
        self.ui.clearTrainingButton.enabled = self._state is not None and not going and self._run().clearable
        network = is_file(parameters.networkFile.strip())
        self.ui.findButton.enabled = ready and network and not running and carm.referred("xray") is not None
        self._show_search(carm)

    def _show_paths(self) -> None:
        parameters = self.panel.parameters
        for name, text in (("trainingPath", parameters.trainingFolder), ("networkPath", parameters.networkFile)):
            if getattr(self.ui, name).currentPath != text:
                with self.quiet(name):
                    getattr(self.ui, name).currentPath = text

    def _resumable(self) -> bool:
        return self._state is not None and self._state.interrupted and is_file(self._run().checkpoint)

    def _show_search(self, carm) -> None:
        """What the section Register says, where a network is at work or was."""
        register = self.panel.sections[RegisterSection]
        run = register.running
        searching = run is not None and isinstance(run, scene.network_pose.NetworkRegistration)
        self.ui.cancelFindButton.enabled = searching
        self.ui.findProgress.value = register.ui.progressBar.value if searching else 0
        said = (
            ""
            if searching or carm is None
            else scene.network_pose.network_summary(scene.results.read_results_table(carm))
        )
        texts = [said, register.ui.progressText.text if searching or said else ""]
        self.ui.findText.text = "\n".join(text for text in texts if text)

    def _folder_chosen(self, path: str) -> None:
        """Another folder: of a training, which is shown, or for one."""
        if self.panel.parameters is not None:
            with self.panel.attempt("The folder cannot be used."):
                self.panel.parameters.trainingFolder = path
                run = self._run()
                if path.strip() and run.exists and is_file(run.model):
                    self.panel.parameters.networkFile = str(run.model)

    def _network_chosen(self, path: str) -> None:
        if self.panel.parameters is not None:
            self.panel.parameters.networkFile = path

    def _opened(self, *_) -> None:
        if self._watched:
            with self.panel.attempt("The training cannot be looked at."):
                self.look()

    def close(self) -> None:
        """The scene goes away; the training goes on."""
        self.timer.stop()
        self._watched, self._state, self._curve, self._known = "", None, None, None
        self._show_state()


def default_folder() -> str:
    """Where trainings are kept unless the user says otherwise."""
    return str(Path(slicer.app.defaultScenePath) / "DiffDRR networks")


def is_file(path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def told(state) -> str:
    """How a training stands, in words."""
    best = state.best.get("mm")
    so_far = (
        ""
        if best is None
        else f" Held-out X-rays: {best:.1f} mm, {state.best.get('degrees', float('nan')):.1f} degrees (medians)."
    )
    if state.status == "starting" or (state.status == "running" and not state.step):
        return f"Starting: {state.message or 'the trainer is loaded'} ..."
    if state.status == "running":
        loss = "" if state.loss is None else f", loss {state.loss:.3g}"
        left = "" if state.seconds_left is None else f", {lasting(state.seconds_left)} left"
        return f"Step {state.step} of {state.steps}{loss}{left}.{so_far}"
    if state.status == "stopped":
        usable = "there is no network yet" if best is None else "the best network so far can be used"
        return f"Stopped at step {state.step} of {state.steps}; {usable}.{so_far}"
    if state.status == "finished":
        return f"Done in {lasting(state.seconds or 0)}.{so_far}"
    if state.status == "failed":
        return f"The training failed: {state.message}"
    if state.status == "lost":
        return lost(state)
    return ""


def lost(state) -> str:
    """Of a training whose process is gone without a word."""
    when = f"after step {state.step} of {state.steps}" if state.step else "before its first step"
    said = f" It printed last (output.txt in its folder):\n{state.message}"
    silent = " It printed nothing: somebody ended its process, or the computer was out of memory or switched off."
    return f"The training ended unexpectedly {when}.{said if state.message else silent}"


def lasting(seconds: float) -> str:
    """A time as one says it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
