"""Simulate: X-rays and sweeps from the CT and the models of the scene, step by step on a timer."""

from __future__ import annotations

import secrets

import qt
import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.choices import Scatter
from DiffDRRSlicerLib.panel import table_cells
from DiffDRRSlicerLib.panel.section import NotReadyError, Section

_AS_IN_CT = "as in the CT"
_HALF_MTF = 1.3  # 1/mm, where the MTF of a flat panel with CsI is a half
_SEEDS = 10_000  # as many as the spin box has


class SimulateSection(Section):
    """Tube, dose, detector, implants and materials; one X-ray, a sweep, a DICOM file."""

    title = "Simulate"
    ui_file = "Simulate.ui"
    collapsed = True

    def setup(self) -> None:
        self.running = None  # the generator that works
        self._shown, self._cells, self._priorities = {}, {}, {}
        self.timer = qt.QTimer()
        self.timer.interval = 0
        self.timer.timeout.connect(self.step)
        self.click("makeXRayButton", self.make_xray, "The X-ray could not be simulated.")
        self.click("makeSweepButton", self.make_sweep, "The sweep could not be simulated.")
        self.click("stopButton", self.cancel, "The simulation cannot be stopped.")
        self.click("saveDicomButton", self.save, "The X-ray could not be saved.")
        self.ui.modelsTable.connect("itemChanged(QTableWidgetItem*)", self._model_checked)
        self.button.connect("contentsCollapsed(bool)", self._opened)

    def make_xray(self) -> None:
        """Begin with an X-ray from where the chosen C-arm stands."""
        shot = self._shot()
        place = shot.scanned, shot.camera, shot.pose
        self._begin(scene.simulation.simulating_xray(slicer.mrmlScene, *place, *self._options(shot)))

    def make_sweep(self) -> None:
        """Begin with a sweep through the chosen C-arm's place."""
        shot, parameters = self._shot(), self.panel.parameters
        name = parameters.sweepAngle.name.lower()
        ends = parameters.sweepFrom, parameters.sweepTo, round(parameters.sweepCount)
        place = shot.scanned, shot.camera, scene.sweeps.orbit(shot.arm, *ends, name, shot.scanned.device)
        self._begin(scene.sweeps.simulating_sweep(slicer.mrmlScene, *place, *self._options(shot)))

    def _options(self, shot) -> tuple:
        """Seed, masks, distance to the isocentre. A seed that is drawn is one that can be typed."""
        seed = round(self.panel.parameters.seed)
        seed = secrets.randbelow(_SEEDS) if seed < 0 else seed
        return seed, self.panel.parameters.segmentXRay, shot.distance

    def save(self) -> None:
        """Write the chosen C-arm's X-ray, or its sweep."""
        path = self.ui.dicomPath.currentPath.strip()
        if not path:
            raise NotReadyError("Choose a file first.")
        carm = self.panel.require_carm()
        file, sweep = scene.xray_saving.save_dicom(path, carm, self.panel.parameters.ct), scene.sweeps.find_sweep(carm)
        count = 1 if sweep is None else sweep.images.GetNumberOfDataNodes()
        self.ui.simulationText.text = f"Saved {file.name}." if count == 1 else f"Saved {file.name}, {count} X-rays."

    def _shot(self):
        """What the widgets say is in the beam, and how it is taken."""
        parameters, carm, anatomy = self.panel.parameters, self.panel.require_carm(), self.panel.require_anatomy()
        materials = scene.implants.structure_materials(anatomy.labels)
        known = anatomy.structures.values() if materials else ()  # others were renamed or deleted since
        return scene.simulation.shot_of(
            anatomy,
            carm,
            self.panel.structures,
            {name: material for name, material in materials.items() if name in known},
            scene.implants.implants(slicer.mrmlScene),
            parameters.device.key,
            int(parameters.deviceSize.value),
            **self.settings(),
        )

    def settings(self) -> dict:
        """How X-rays are taken, by the names of `scene.simulation_settings.Settings`."""
        parameters = self.panel.parameters
        filters = {"Al": parameters.aluminium, "Cu": parameters.copper}
        blades = parameters.bladeTop, parameters.bladeBottom, parameters.bladeLeft, parameters.bladeRight
        return {
            "kvp": parameters.kvp,
            "filtration": {name: mm for name, mm in filters.items() if mm},
            "dose": parameters.dose,
            "noise": parameters.noise,
            "bits": 16 if parameters.noise else None,
            "poisson": parameters.exactNoise,
            "focal_spot": parameters.focalSpot,
            "blur": _HALF_MTF if parameters.detectorBlur else None,
            "scatter": parameters.scatter is not Scatter.NONE,
            "grid": parameters.scatter is Scatter.WITH_GRID,
            "heel": parameters.heel,
            "collimator": blades if any(blades) else None,
            "samples": round(parameters.raysPerPixel),
            "logarithm": parameters.logarithm,
        }

    def _begin(self, work) -> None:
        if self.running is not None:
            return
        self.running = work
        self._show_running(True)
        self.timer.start()

    def step(self) -> None:
        """Take one step."""
        if self.running is not None:
            self.advance(self.running, "The simulation failed.", "simulationProgress", "simulationText", self._ended)

    def _ended(self, found) -> None:
        self._finish("")
        self._added(found)

    def _added(self, made) -> None:
        """Choose the new C-arm."""
        carm = scene.carm.CArmNode(getattr(made, "carm", None) or made.node)
        self.panel.parameters.carm = carm.node
        self.panel.added(carm)
        self.ui.simulationText.text = f"Made '{carm.name}' with seed {carm.meta['seed']}."

    def cancel(self) -> None:
        """Stop; the scene is as it was."""
        if self.running is not None:
            self.running.close()
            self._finish("Cancelled; nothing was added.")

    def close(self) -> None:
        """The scene goes away, perhaps under a running simulation."""
        if self.running is not None:
            self.running.close()
            self._finish("")
        self.ui.simulationText.text = ""
        self._shown = {}

    def _finish(self, text: str) -> None:
        self.timer.stop()
        self.running = None
        self.ui.simulationProgress.value = 0
        self.ui.simulationText.text = text
        self._show_running(False)
        self.panel.changed()

    def _show_running(self, running: bool) -> None:
        self.ui.stopButton.enabled = running
        for name in ("makeXRayButton", "makeSweepButton", "saveDicomButton"):
            getattr(self.ui, name).enabled = not running
        self.panel.lock(running, self)

    def _opened(self, *_) -> None:
        self.panel.changed()

    def refresh(self) -> None:
        carm, anatomy = self.panel.carm, self.panel.anatomy
        ready = carm is not None and anatomy is not None
        if self.running is None:
            self.ui.makeXRayButton.enabled = self.ui.makeSweepButton.enabled = ready
            self.ui.saveDicomButton.enabled = carm is not None and carm.referred("xray") is not None
        noise = self.panel.parameters.noise
        self.ui.doseSpinBox.enabled = self.ui.seedSpinBox.enabled = self.ui.exactNoiseCheckBox.enabled = noise
        self.ui.deviceSizeSelector.enabled = self.panel.parameters.device.key is not None
        if not self.button.collapsed:
            self._show_models(ready)
            self._show_structures(anatomy)

    def _show_models(self, ready: bool) -> None:
        """Those of the scene, with a check mark, a material and a priority each."""
        rows = [self._row(model) for model in scene.implants.models(slicer.mrmlScene)] if ready else []
        if self._shown.get("modelsTable") == rows:
            return
        with self.quiet("modelsTable"):
            combos = self._fill("modelsTable", ("Model", "Material", "Priority"), [row[1:3] for row in rows])
            for row, (identifier, _, _, enabled, priority) in enumerate(rows):
                item = self.ui.modelsTable.item(row, 0)
                item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
                item.setCheckState(qt.Qt.Checked if enabled else qt.Qt.Unchecked)
                changed = self._setter(self._set_model, row, identifier)
                combos[row].connect("currentIndexChanged(int)", changed)
                self._add_priority(row, priority, changed)
        self._shown["modelsTable"] = rows

    @staticmethod
    def _row(model) -> tuple:
        of = scene.implants
        kept = of.implant_material(model), of.is_enabled(model), of.implant_priority(model)
        return model.GetID(), model.GetName(), *kept

    def _add_priority(self, row: int, priority: int, changed) -> None:
        box, choices = qt.QSpinBox(), scene.implants.PRIORITIES
        box.setRange(choices.start, choices.stop - 1)
        box.value = priority
        box.connect("valueChanged(int)", changed)
        self.ui.modelsTable.setCellWidget(row, 2, box)
        self._priorities[row] = box

    def _show_structures(self, anatomy) -> None:
        labels = None if anatomy is None else anatomy.labels
        names = [] if labels is None else list(anatomy.structures.values())
        kept = scene.implants.structure_materials(labels) if names else {}
        rows = [(labels.GetID(), name, kept.get(name, _AS_IN_CT)) for name in names]
        if self._shown.get("structuresTable") == rows:
            return
        combos = self._fill("structuresTable", ("Structure", "Material"), [row[1:] for row in rows])
        for row, (_, name, _) in enumerate(rows):
            combos[row].connect("currentIndexChanged(int)", self._setter(self._set_structure, row, name))
        self._shown["structuresTable"] = rows

    def _fill(self, name: str, titles, rows):
        """A table of names with a combo box of materials each; returns those."""
        table, first = getattr(self.ui, name), [_AS_IN_CT] if name == "structuresTable" else []
        table_cells.begin(table, titles, len(rows))
        self._cells[name] = []
        for row, (text, material) in enumerate(rows):
            combo = qt.QComboBox()
            combo.addItems([*first, *scene.implants.material_choices()])
            combo.currentIndex = combo.findText(material)
            item = qt.QTableWidgetItem(text)
            item.setToolTip(text)
            table.setItem(row, 0, item)
            table.setCellWidget(row, 1, combo)
            self._cells[name].append(combo)
        return self._cells[name]

    def _setter(self, action, row: int, what: str):
        def changed(*_):
            with self.panel.attempt("The material cannot be set."):
                action(row, what)

        return changed

    def _set_model(self, row: int, identifier: str) -> None:
        """Write check mark, material and priority of a row to its model."""
        model = slicer.mrmlScene.GetNodeByID(identifier)
        if model is not None:
            combo = self._cells["modelsTable"][row]
            enabled = self.ui.modelsTable.item(row, 0).checkState() == qt.Qt.Checked
            priority = self._priorities[row].value
            scene.implants.set_implant(model, combo.itemText(combo.currentIndex), enabled, priority)
            self._shown["modelsTable"][row] = self._row(model)  # the widget that was used stays

    def _set_structure(self, row: int, name: str) -> None:
        combo, labels = self._cells["structuresTable"][row], self.panel.parameters.labels
        if labels is not None:
            material = combo.itemText(combo.currentIndex)
            scene.implants.set_structure_material(labels, name, None if material == _AS_IN_CT else material)

    def _model_checked(self, item) -> None:
        rows = self._shown.get("modelsTable", [])
        if item.column() == 0 and item.row() < len(rows):
            with self.panel.attempt("The model cannot be used."):
                self._set_model(item.row(), rows[item.row()][0])
