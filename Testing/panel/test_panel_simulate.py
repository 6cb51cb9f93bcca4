"""The section Simulate: X-rays, sweeps, implants, materials, files; alive while it works."""

from __future__ import annotations

import time

import numpy as np
import pytest
import slicer
import slicer.util
import torch
import vtk

from DiffDRRCore.physics.devices import device_names
from DiffDRRSlicerLib.choices import Detail, Device, Scatter, SweepAngle
from Testing.panel.kit import add_phantom, load_scene, node_count, save_scene, sections, settle

SIZE = 64
VERTEBRAE = "3"  # the labelmap has no names


@pytest.fixture
def widget(make_widget):
    return make_widget("DiffDRRSlicer")


@pytest.fixture
def panel(widget, slicer_app):
    """With a phantom, its labels and a C-arm chosen, all sections open."""
    panel = widget.panel
    ct, labels = add_phantom(slicer_app.scene, shape=(24, 18, 21), spacing=16.0, labels=True)
    panel.parameters.ct, panel.parameters.labels = ct, labels
    panel.parameters.carm = panel.logic.createCArm(ct, SIZE, SIZE, (6.0, 6.0))
    panel.parameters.seed, panel.parameters.logarithm = 3, False
    section = sections(panel)["Simulate"]
    section.button.collapsed = section.ui.contentsGroup.collapsed = section.ui.sweepGroup.collapsed = False
    settle(slicer_app, panel)
    return panel


def ui(panel):
    return sections(panel)["Simulate"].ui


def finish(app, panel, seconds=30.0):
    app.wait_until(lambda: sections(panel)["Simulate"].running is None, seconds)
    settle(app, panel)


def made(app, panel, button="makeXRayButton"):
    """Press a button and wait; the C-arm that was added."""
    before = panel.parameters.carm
    getattr(ui(panel), button).click()
    finish(app, panel)
    assert panel.parameters.carm is not before, [message.text for message in app.messages]
    return panel.carm


def pixels(carm, role="xray"):
    return np.array(slicer.util.arrayFromVolume(carm.referred(role))[0])


def add_bead(scene, center, radius=15.0, closed=True):
    source = vtk.vtkSphereSource()
    source.SetCenter(*center)
    source.SetRadius(radius)
    source.SetThetaResolution(24)
    source.SetPhiResolution(24)
    source.SetStartTheta(0.0 if closed else 60.0)
    source.Update()
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "bead")
    model.SetAndObservePolyData(source.GetOutput())
    return model


def check_row(panel, row, on=True):
    import qt

    item = ui(panel).modelsTable.item(row, 0)
    item.setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)


def choose_material(panel, table, row, name):
    combo = getattr(ui(panel), table).cellWidget(row, 1)
    combo.currentIndex = combo.findText(name)


def test_an_xray_is_what_the_logic_makes(panel, slicer_app):
    before = panel.carm
    carm = made(slicer_app, panel)
    settings = {"filtration": {"Al": 3.0}, "dose": 5.0, "focal_spot": 0.6, "blur": 1.3, "logarithm": False}
    nodes = panel.parameters.ct, panel.parameters.labels, before.node
    expected = panel.logic.simulateXRay(*nodes, seed=3, **settings)
    assert np.array_equal(pixels(carm), pixels(type(carm)(expected)))
    assert np.allclose(carm.to_world, before.to_world) and carm.referred("reference") is not None
    assert carm.meta["seed"] == 3 and "seed 3" in ui(panel).simulationText.text
    assert not slicer_app.messages and ui(panel).makeXRayButton.enabled and not ui(panel).stopButton.enabled


def test_the_quick_button_is_the_same_code(panel, slicer_app):
    start = panel.parameters.carm
    sections(panel)["Load"].ui.simulateButton.click()
    settle(slicer_app, panel)
    quick, panel.parameters.carm, panel.parameters.seed = panel.carm, start, 0
    settle(slicer_app, panel)
    assert np.array_equal(pixels(quick), pixels(made(slicer_app, panel)))


def test_all_widgets_reach_the_image(panel, slicer_app):
    start, parameters = panel.parameters.carm, panel.parameters
    widgets = ui(panel)

    def settings():
        parameters.carm = start
        carm = made(slicer_app, panel)
        return carm.meta["settings"], carm.meta["simulation"]

    widgets.kvpSlider.value = 70
    widgets.aluminiumSpinBox.value = 4.5
    widgets.copperSpinBox.value = 0.2
    widgets.doseSpinBox.value = 2.5
    widgets.focalSpotSpinBox.value = 1.0
    widgets.detectorBlurCheckBox.checked = False
    widgets.heelCheckBox.checked = True
    for edge, mm in zip(("Top", "Bottom", "Left", "Right"), (10, 20, 30, 40), strict=True):
        getattr(widgets, f"blade{edge}SpinBox").value = mm
    widgets.raysSpinBox.value = 2
    widgets.exactNoiseCheckBox.checked = True
    widgets.scatterSelector.currentIndex = list(Scatter).index(Scatter.WITH_GRID)
    found, simulation = settings()
    wanted = {"kvp": 70, "filtration": {"Al": 4.5, "Cu": 0.2}, "dose": 2.5, "focal_spot": 1.0, "blur": None}
    wanted |= {"heel": True, "scatter": True, "grid": True, "samples": 2, "poisson": True}
    wanted |= {"collimator": [10, 20, 30, 40], "noise": True, "bits": 16}
    assert {name: found[name] for name in wanted} == wanted
    assert simulation["spectrum"]["kvp"] == 70 and simulation["effects"]["scatter"]["grid"] is not None
    widgets.noiseCheckBox.checked = False
    settle(slicer_app, panel)
    assert not widgets.doseSpinBox.enabled and not widgets.seedSpinBox.enabled
    assert not widgets.exactNoiseCheckBox.enabled
    found, simulation = settings()
    assert (found["noise"], found["bits"]) == (False, None) and not simulation["exposure"]["noise"]


def test_an_automatic_seed_is_another_one_each_time(panel, slicer_app, monkeypatch):
    drawn = iter((9999, 17))
    monkeypatch.setattr("DiffDRRSlicerLib.panel.simulate.secrets.randbelow", lambda count: next(drawn) % count)
    start, panel.parameters.seed = panel.parameters.carm, -1
    images = []
    for _ in range(2):
        panel.parameters.carm = start
        images.append(made(slicer_app, panel))
    assert images[0].meta["seed"] != images[1].meta["seed"]
    assert not np.array_equal(pixels(images[0]), pixels(images[1]))
    panel.parameters.carm, ui(panel).seedSpinBox.value = start, images[0].meta["seed"]
    settle(slicer_app, panel)
    assert np.array_equal(pixels(images[0]), pixels(made(slicer_app, panel)))


def test_a_model_that_is_checked_casts_a_shadow(panel, slicer_app):
    start, center = panel.parameters.carm, panel.anatomy.center
    panel.parameters.noise = False
    plain = pixels(made(slicer_app, panel))
    panel.parameters.carm = start
    add_bead(slicer_app.scene, center)
    settle(slicer_app, panel)
    table = ui(panel).modelsTable
    assert table.rowCount == 1 and table.item(0, 0).text() == "bead"
    assert np.array_equal(plain, pixels(made(slicer_app, panel)))  # not checked yet
    panel.parameters.carm = start
    check_row(panel, 0)
    choose_material(panel, "modelsTable", 0, "tungsten")
    carm = made(slicer_app, panel)
    v, u = np.nonzero(pixels(carm) < 0.1 * plain)
    from DiffDRRCore import project

    expected = project(carm.camera, carm.pose, torch.tensor(np.array([center])))[0, 0].tolist()
    assert (u.mean(), v.mean()) == pytest.approx(expected, abs=0.5)
    assert carm.meta["simulation"]["objects"][0]["material"]["name"] == "tungsten"


def test_priorities_are_kept_and_their_widgets_stay(panel, slicer_app):
    bead = add_bead(slicer_app.scene, panel.anatomy.center)
    settle(slicer_app, panel)
    table = ui(panel).modelsTable
    box = table.cellWidget(0, 2)
    assert box.value == 1 and bead.GetAttribute("DiffDRR.Priority") is None
    box.value = 3
    settle(slicer_app, panel)
    assert bead.GetAttribute("DiffDRR.Priority") == "3" and table.cellWidget(0, 2) is box
    from DiffDRRSlicerLib.scene import implants

    implants.set_implant(bead, "tungsten", priority=5)
    settle(slicer_app, panel)
    panel.changed()
    settle(slicer_app, panel)
    assert table.cellWidget(0, 2).value == 5


def test_a_structure_of_another_material(panel, slicer_app):
    start = panel.parameters.carm
    panel.parameters.noise = False
    plain = pixels(made(slicer_app, panel))
    panel.parameters.carm = start
    settle(slicer_app, panel)
    table = ui(panel).structuresTable
    names = [table.item(row, 0).text() for row in range(table.rowCount)]
    assert names == list(panel.anatomy.structures.values())
    choose_material(panel, "structuresTable", names.index(VERTEBRAE), "stainless steel 316L")
    assert pixels(made(slicer_app, panel)).mean() < 0.98 * plain.mean()
    panel.parameters.carm = start
    settle(slicer_app, panel)
    choose_material(panel, "structuresTable", names.index(VERTEBRAE), "as in the CT")
    assert np.array_equal(plain, pixels(made(slicer_app, panel)))


def test_structures_chosen_in_register_are_alone_in_the_beam(panel, slicer_app):
    start = panel.parameters.carm
    panel.parameters.noise = False
    plain = pixels(made(slicer_app, panel))
    panel.parameters.carm, panel.parameters.structures = start, [VERTEBRAE]
    settle(slicer_app, panel)
    alone = pixels(made(slicer_app, panel))
    assert alone.mean() > 1.5 * plain.mean() and alone.min() < 0.7 * panel.carm.meta["i0"]


def test_a_device_takes_the_carms_place(panel, slicer_app):
    start = panel.carm
    panel.parameters.device, panel.parameters.deviceSize = Device.MOBILE_9IN, Detail.LOW
    panel.parameters.noise = False
    carm = made(slicer_app, panel)
    assert pixels(carm).shape == (256, 256) and float(carm.camera.source_to_detector) == 1000
    assert np.allclose(carm.arm.isocenter, start.arm.isocenter) and carm.meta["device"] == "mobile-9in"
    assert carm.source_to_isocenter == 600
    start.move_arm(primary=100.0)
    panel.parameters.carm = start.node
    settle(slicer_app, panel)
    before = node_count(slicer_app.scene)
    ui(panel).makeXRayButton.click()
    assert "100 degrees is out of reach" in slicer_app.messages[-1].text
    assert node_count(slicer_app.scene) == before


def test_every_device_can_be_chosen():
    assert {one.key for one in Device} - {None} == set(device_names())


def test_masks_are_drawn_on_the_xray(panel, slicer_app):
    panel.parameters.segmentXRay = True
    carm = made(slicer_app, panel)
    assert pixels(carm, "segmentation").max() > 0


def test_a_sweep_is_a_sequence_that_moves_the_carm(panel, slicer_app):
    start = panel.parameters.carm
    panel.parameters.sweepFrom, panel.parameters.sweepTo, panel.parameters.sweepCount = -20.0, 40.0, 4
    panel.parameters.sweepAngle = SweepAngle.SECONDARY
    carm = made(slicer_app, panel, "makeSweepButton")
    browser = slicer_app.scene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    assert browser.GetNumberOfItems() == 4
    for number, angle in enumerate((-20.0, 0.0, 20.0, 40.0)):
        browser.SetSelectedItemNumber(number)
        settle(slicer_app, panel)
        assert float(carm.arm.secondary) == pytest.approx(angle, abs=1e-4)
        shown = pixels(carm)
        arm = type(carm)(start)
        arm.move_arm(secondary=angle)
        nodes = panel.parameters.ct, panel.parameters.labels, start
        single = panel.logic.simulateXRay(*nodes, seed=3 + number, **sections(panel)["Simulate"].settings())
        assert np.array_equal(shown, pixels(type(carm)(single)))


def test_the_panel_stays_alive_and_cancel_leaves_the_scene_as_it_was(panel, slicer_app):
    before = node_count(slicer_app.scene)
    panel.parameters.sweepCount = 200
    section, longest = sections(panel)["Simulate"], 0.0
    section.ui.makeSweepButton.click()
    assert not section.ui.makeSweepButton.enabled and section.ui.stopButton.enabled
    panel.changed()
    panel.tick()
    locked = {title for title, one in sections(panel).items() if not one.root.enabled}
    others = {"Load", "Dataset", "Camera", "Move", "Landmarks", "Bones and X-rays", "Register", "Track", "Calibrate"}
    assert locked == others
    seen = set()
    while section.ui.simulationProgress.value < 30:
        began = time.process_time()  # not the clock on the wall, which runs on while others compute
        section.step()
        longest = max(longest, time.process_time() - began) if section.ui.simulationProgress.value > 5 else longest
        seen.add(section.ui.simulationText.text)
    assert longest < 0.2 and len(seen) > 4
    section.ui.stopButton.click()
    settle(slicer_app, panel)
    assert section.running is None and "nothing was added" in section.ui.simulationText.text
    assert node_count(slicer_app.scene) == before and sections(panel)["Register"].root.enabled
    assert not slicer_app.messages


def test_a_registration_locks_the_simulation(panel, slicer_app):
    made(slicer_app, panel)
    register = sections(panel)["Register"]
    register.ui.registerButton.click()
    assert not sections(panel)["Simulate"].root.enabled and panel.running
    register.ui.cancelButton.click()
    slicer_app.wait_until(lambda: register.running is None, 60)
    settle(slicer_app, panel)
    assert sections(panel)["Simulate"].root.enabled and not panel.running


def test_an_open_model_is_one_sentence(panel, slicer_app):
    add_bead(slicer_app.scene, panel.anatomy.center, closed=False)
    settle(slicer_app, panel)
    check_row(panel, 0)
    before = node_count(slicer_app.scene)
    ui(panel).makeXRayButton.click()
    finish(slicer_app, panel)
    assert len(slicer_app.messages) == 1 and "'bead' is not closed" in slicer_app.messages[0].text
    assert node_count(slicer_app.scene) == before and ui(panel).makeXRayButton.enabled


def test_without_a_ct_nothing_can_be_pressed(widget, slicer_app):
    panel = widget.panel
    settle(slicer_app, panel)
    assert not ui(panel).makeXRayButton.enabled and not ui(panel).makeSweepButton.enabled
    assert not ui(panel).saveDicomButton.enabled
    panel.parameters.carm = panel.logic.createCArm(None, SIZE, SIZE)
    settle(slicer_app, panel)
    ui(panel).makeXRayButton.click()
    assert panel.carm.referred("xray") is None


def test_an_xray_is_saved_as_dicom_and_loaded_again(panel, slicer_app, tmp_path):
    ui(panel).saveDicomButton.click()
    carm = made(slicer_app, panel)
    ui(panel).saveDicomButton.click()
    assert "Choose a file first" in slicer_app.messages[-1].text
    ui(panel).dicomPath.currentPath = str(tmp_path / "shot")
    ui(panel).saveDicomButton.click()
    assert "Saved shot.dcm" in ui(panel).simulationText.text
    again = type(carm)(panel.logic.loadXRay(tmp_path / "shot.dcm", ct=panel.parameters.ct))
    assert np.array_equal(pixels(again), pixels(carm))
    assert np.allclose(again.camera.K, carm.camera.K, rtol=1e-6)
    assert [float(getattr(again.arm, name)) for name in ("primary", "secondary")] == pytest.approx(
        [float(getattr(carm.arm, name)) for name in ("primary", "secondary")], abs=1e-3
    )
    import pydicom

    header = pydicom.dcmread(tmp_path / "shot.dcm")
    assert (header.Modality, float(header.KVP)) == ("XA", 80.0)
    panel.parameters.sweepCount = 3
    made(slicer_app, panel, "makeSweepButton")
    ui(panel).saveDicomButton.click()
    assert "Saved shot.dcm, 3 X-rays" in ui(panel).simulationText.text
    assert pydicom.dcmread(tmp_path / "shot.dcm").NumberOfFrames == 3


def test_choices_are_saved_with_the_scene(panel, slicer_app, tmp_path):
    bead = add_bead(slicer_app.scene, panel.anatomy.center)
    settle(slicer_app, panel)
    check_row(panel, 0)
    choose_material(panel, "modelsTable", 0, "nitinol")
    choose_material(panel, "structuresTable", 0, "water")
    parameters = panel.parameters
    parameters.kvp, parameters.scatter, parameters.device = 77.0, Scatter.WITHOUT_GRID, Device.CIOS
    parameters.sweepCount, parameters.noise = 12, False
    first = next(iter(panel.anatomy.structures.values()))
    assert bead.GetAttribute("DiffDRR.Material") == "nitinol"
    path = save_scene(slicer_app.scene, tmp_path / "scene")
    load_scene(slicer_app.scene, path)
    settle(slicer_app, panel)
    after = panel.parameters
    assert (after.kvp, after.scatter, after.device) == (77.0, Scatter.WITHOUT_GRID, Device.CIOS)
    assert (after.sweepCount, after.noise) == (12, False)
    table = ui(panel).modelsTable
    assert table.rowCount == 1 and table.cellWidget(0, 1).currentText == "nitinol"
    import qt

    assert table.item(0, 0).checkState() == qt.Qt.Checked
    assert ui(panel).structuresTable.item(0, 0).text() == first
    assert ui(panel).structuresTable.cellWidget(0, 1).currentText == "water"


def test_closing_the_scene_stops_a_simulation(panel, slicer_app):
    panel.parameters.sweepCount = 100
    ui(panel).makeSweepButton.click()
    for _ in range(8):
        sections(panel)["Simulate"].step()
    slicer_app.scene.Clear(False)
    slicer_app.process_events()
    assert sections(panel)["Simulate"].running is None and not slicer_app.messages
    settle(slicer_app, panel)
    assert sections(panel)["Load"].root.enabled and ui(panel).modelsTable.rowCount == 0


def test_a_ct_moved_meanwhile_is_said(panel, slicer_app):
    panel.parameters.sweepCount = 3
    section = sections(panel)["Simulate"]
    section.ui.makeSweepButton.click()
    while "X-ray 2" not in section.ui.simulationText.text:
        section.step()
    above = slicer_app.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "pushed")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 10.0)
    above.SetMatrixTransformToParent(matrix)
    panel.parameters.ct.SetAndObserveTransformNodeID(above.GetID())
    finish(slicer_app, panel)
    assert "was moved while it was X-rayed" in slicer_app.messages[-1].text
    assert slicer_app.scene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode") is None


def test_the_section_fits_400_pixels_with_all_its_groups_open(panel, slicer_app):
    add_bead(slicer_app.scene, panel.anatomy.center)
    section = sections(panel)["Simulate"]
    section.ui.advancedGroup.collapsed = False
    settle(slicer_app, panel)
    slicer_app.process_events()
    assert 200 < section.root.layout().minimumSize().width() <= 380  # beside the panel's own margins
