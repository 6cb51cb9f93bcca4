"""The Dataset section as a user meets it: open, choose, load, register; what cannot be opened says so in a sentence."""

from __future__ import annotations

import importlib.metadata
import sys

import numpy as np
import pytest
import slicer
import slicer.util

from Testing.panel.kit import load_scene, node_count, registered, save_scene, sections, settle
from Testing.scene import kit
from Testing.scene import small_dataset as small


@pytest.fixture
def panel(make_widget, slicer_app):
    panel = make_widget("DiffDRRSlicer").panel
    settle(slicer_app, panel)
    sections(panel)["Dataset"].button.collapsed = False
    return panel


@pytest.fixture
def in_memory(monkeypatch, tmp_path):
    """The path of a file that opens as the small dataset."""
    path = tmp_path / "small.dat"
    path.write_text("a dataset")
    monkeypatch.setattr("DiffDRRCore.datasets.opening.open_dataset", lambda path, **options: small.Small(path))
    return str(path)


def texts(combo):
    return [combo.itemText(index) for index in range(combo.count)]


def opened(slicer_app, panel, path):
    ui = sections(panel)["Dataset"].ui
    ui.datasetPath.currentPath = str(path)
    ui.openDatasetButton.click()
    settle(slicer_app, panel)
    return ui


def loaded(slicer_app, panel, ui, subject=0, view=0, start=0):
    ui.subjectSelector.currentIndex, ui.viewSelector.currentIndex = subject, view
    ui.startSelector.currentIndex = start
    ui.loadViewButton.click()
    settle(slicer_app, panel, 30)


def test_the_section_waits_for_a_dataset(panel, slicer_app, make_widget):
    section = sections(panel)["Dataset"]
    assert type(section).collapsed and texts(section.ui.subjectSelector) == []
    assert not section.ui.loadViewButton.enabled and not section.ui.showSegmentation.enabled
    section.ui.openDatasetButton.click()
    assert "Choose a file or a folder first" in slicer_app.messages[-1].text


def test_opening_lists_names_and_reads_no_image(panel, slicer_app, in_memory):
    before = small.SmallSubject.reads
    ui = opened(slicer_app, panel, in_memory)
    assert texts(ui.subjectSelector) == ["A", "B"] and texts(ui.viewSelector) == list(small.NAMES)
    assert ui.datasetNotes.text == "Small: 2 subjects." and ui.loadViewButton.enabled
    assert small.SmallSubject.reads == before and not slicer_app.messages
    assert sections(panel)["Dataset"].root.enabled


def test_what_was_loaded_is_chosen_and_can_be_registered_at_once(panel, slicer_app, in_memory):
    from DiffDRRSlicerLib.scene.carm import CArmNode

    ui = opened(slicer_app, panel, in_memory)
    loaded(slicer_app, panel, ui)
    parameters, scene = panel.parameters, slicer_app.scene
    assert parameters.ct is scene.GetFirstNodeByName("A")
    assert parameters.labels is scene.GetFirstNodeByName("A labels")
    assert parameters.ctLandmarks is scene.GetFirstNodeByName("A landmarks")
    assert panel.carm == CArmNode(scene.GetFirstNodeByName("A one"))
    assert sections(panel)["Load"].ui.ctSelector.currentNode() is parameters.ct
    assert sections(panel)["Landmarks"].ui.ctLandmarksSelector.currentNode() is parameters.ctLandmarks
    rows = sections(panel)["Landmarks"].ui.pairsTable
    assert rows.rowCount == 4 and rows.item(3, 1).text() == "0.0"
    assert sections(panel)["Register"].ui.registerButton.enabled
    assert ui.datasetNotes.text == "Loaded 'A one': 3 landmarks, segmentation, own poses of femur_left."
    assert panel.carm.referred("drr") is not None and not slicer_app.messages
    assert slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID() == parameters.ct.GetID()


def test_a_registration_from_the_headers_pose_is_compared_with_the_true_one(panel, slicer_app, in_memory, monkeypatch):
    from DiffDRRCore.datasets.simulated import simulated_xray
    from DiffDRRSlicerLib.scene.accuracy import reference_errors

    shot = simulated_xray(small.ct(), small.CAMERA, small.pose(1), photons=1e5).image.numpy()
    shot = 60000 * np.exp((3.0 - shot) / 0.7)  # the simulation's attenuation is 0.7 times the line integral, plus 3
    monkeypatch.setattr(small, "image", lambda name: shot)
    ui = opened(slicer_app, panel, in_memory)
    loaded(slicer_app, panel, ui, start=1)
    before = reference_errors(panel.carm, panel.anatomy)["mtre_in_plane_mm"]
    registered(slicer_app, panel)
    after = panel.outcome.views[0].reference["mtre_in_plane_mm"]
    assert before > 5.0 and after < 1.0, (before, after)
    assert len(panel.outcome.views[0].landmarks.rows) == 3 and not slicer_app.messages


def test_the_x_rays_segmentation_is_offered_as_no_structures_of_the_ct(panel, slicer_app, in_memory):
    ui = opened(slicer_app, panel, in_memory)
    loaded(slicer_app, panel, ui)
    hidden = sections(panel)["Load"].ui.labelsSelector.sortFilterProxyModel().hiddenNodeIDs
    assert list(hidden) == [panel.carm.referred("segmentation").GetID()]
    assert sections(panel)["Load"].ui.labelsSelector.currentNode() is panel.parameters.labels


def test_another_x_ray_and_another_subject(panel, slicer_app, in_memory):
    ui = opened(slicer_app, panel, in_memory)
    loaded(slicer_app, panel, ui)
    first, before = panel.parameters.ct, node_count(slicer_app.scene)["vtkMRMLScalarVolumeNode"]
    loaded(slicer_app, panel, ui, view=1)
    assert panel.parameters.ct is first and panel.carm.name == "A two"
    assert node_count(slicer_app.scene)["vtkMRMLScalarVolumeNode"] == before + 2  # an X-ray and its DRR
    assert panel.carm.to_world == pytest.approx(small.pose(2).matrix.numpy(), abs=1e-9)
    loaded(slicer_app, panel, ui, subject=1, view=0, start=1)
    assert panel.parameters.ct is not first and panel.parameters.ct.GetName() == "B"
    assert panel.carm.to_world == pytest.approx(small.header_pose().matrix.numpy(), abs=1e-9)
    slicer_app.scene.RemoveNode(panel.parameters.ct)
    settle(slicer_app, panel)
    loaded(slicer_app, panel, ui, subject=1, view=1)
    assert panel.parameters.ct.GetName().startswith("B") and not slicer_app.messages
    assert panel.parameters.labels is slicer_app.scene.GetFirstNodeByName("B labels")


def test_what_cannot_be_loaded_is_told_once_and_adds_nothing(panel, slicer_app, in_memory):
    ui = opened(slicer_app, panel, in_memory)
    before = node_count(slicer_app.scene)
    for view, start, words in (
        (3, 0, "is damaged"),
        (2, 0, "start from the CT's centre"),
        (1, 1, "the pose in the header"),
    ):
        slicer_app.messages.clear()
        loaded(slicer_app, panel, ui, view=view, start=start)
        assert len(slicer_app.messages) == 1 and words in slicer_app.messages[0].text
        assert node_count(slicer_app.scene) == before
        assert sections(panel)["Dataset"].root.enabled and ui.datasetNotes.text == ""


def test_outlines_in_the_x_ray_view_follow_the_c_arm_and_the_box(panel, slicer_app, in_memory):
    from DiffDRRSlicerLib.scene import layout

    ui = opened(slicer_app, panel, in_memory)
    sections(panel)["View"].ui.layoutButton.click()
    loaded(slicer_app, panel, ui)
    views = layout.view_nodes(slicer_app.scene)
    composite = layout.composite_node(slicer_app.scene, views.xray)
    assert composite.GetLabelVolumeID() == panel.carm.referred("segmentation").GetID()
    assert views.xray.GetUseLabelOutline() and ui.showSegmentation.enabled
    ui.showSegmentation.click()
    settle(slicer_app, panel)
    assert composite.GetLabelVolumeID() is None
    ui.showSegmentation.click()
    loaded(slicer_app, panel, ui, view=1)
    assert composite.GetLabelVolumeID() is None and not ui.showSegmentation.enabled
    red = layout.composite_node(slicer_app.scene, slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode())
    assert red.GetBackgroundVolumeID() == panel.parameters.ct.GetID()


def test_a_scene_that_is_closed_leaves_the_lists_usable(panel, slicer_app, in_memory):
    ui = opened(slicer_app, panel, in_memory)
    loaded(slicer_app, panel, ui)
    slicer_app.scene.Clear(False)
    slicer_app.process_events()
    settle(slicer_app, panel)
    assert texts(ui.subjectSelector) == ["A", "B"]
    loaded(slicer_app, panel, ui, view=1)
    assert panel.parameters.ct.GetName() == "A" and panel.carm.name == "A two" and not slicer_app.messages


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not exist"), (b"text", "is no dataset"), (b"\x89HDF\r\n\x1a\nrest", "damaged")]
)
def test_files_that_are_no_dataset(panel, slicer_app, tmp_path, content, words):
    path = tmp_path / "file.h5"
    if content is not None:
        path.write_bytes(content)
    ui = opened(slicer_app, panel, path)
    (message,) = slicer_app.messages
    assert words in message.text and "not to be expected" not in message.text
    assert texts(ui.subjectSelector) == texts(ui.viewSelector) == [] and not ui.loadViewButton.enabled


def test_a_dataset_that_was_open_does_not_stay_when_another_fails(panel, slicer_app, in_memory, monkeypatch):
    ui = opened(slicer_app, panel, in_memory)
    monkeypatch.undo()
    opened(slicer_app, panel, in_memory)
    assert "is no dataset" in slicer_app.messages[-1].text
    assert texts(ui.subjectSelector) == [] and not ui.loadViewButton.enabled


def test_a_folder_is_chosen_by_a_button_of_its_own(panel, slicer_app, in_memory):
    ui = sections(panel)["Dataset"].ui
    slicer_app.state.file_answer = ""
    ui.datasetFolderButton.click()
    assert texts(ui.subjectSelector) == [] and ui.datasetPath.currentPath == ""
    slicer_app.state.file_answer = in_memory
    ui.datasetFolderButton.click()
    assert texts(ui.subjectSelector) == ["A", "B"]
    assert all(message.kind == "file" for message in slicer_app.messages)


@pytest.fixture
def deepfluoro(tmp_path):
    from Testing.core.datasets.hdf5_files import write_deepfluoro

    return write_deepfluoro(tmp_path / "deepfluoro.h5", size=(192, 204), principal_point=(103.8, 94.1))


@pytest.fixture
def without_h5py(monkeypatch):
    """A Python without h5py, and what pip is asked for."""
    asked, right = [], importlib.metadata.version

    def version(name):
        if name == "h5py" and not asked:
            raise importlib.metadata.PackageNotFoundError(name)
        return right(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    packaging = sys.modules["slicer.packaging"]
    monkeypatch.setattr(packaging, "pip_ensure", lambda needed, **_options: asked.extend(map(str, needed)))
    return asked


def test_h5py_is_installed_after_asking_when_an_hdf5_file_is_opened(panel, slicer_app, deepfluoro, without_h5py):
    from DiffDRRSlicerLib import install

    assert "h5py" not in install.missing_packages()
    slicer_app.answer = False
    ui = opened(slicer_app, panel, deepfluoro)
    kinds = [message.kind for message in slicer_app.messages]
    assert kinds == ["confirm", "error"] and "Without h5py" in slicer_app.messages[-1].text
    assert without_h5py == [] and texts(ui.subjectSelector) == []
    slicer_app.messages.clear()
    slicer_app.answer = True
    opened(slicer_app, panel, deepfluoro)
    assert [message.kind for message in slicer_app.messages] == ["confirm"] and without_h5py == ["h5py>=3.8"]
    assert sorted(texts(ui.subjectSelector)) == ["17-1882", "18-0725"]


def test_other_datasets_ask_for_nothing(panel, slicer_app, in_memory, without_h5py):
    assert texts(opened(slicer_app, panel, in_memory).subjectSelector) == ["A", "B"]
    assert not slicer_app.messages and without_h5py == []


def beads(carm, ct, ct_list):
    """(label, HU, X-ray's value) at each pair of landmarks, by where the nodes lie in the world."""
    from DiffDRRSlicerLib.scene.landmarks import pairs

    xray_list = carm.referred("landmarks")
    for pair in pairs(ct_list, xray_list):
        values = []
        for volume, markups, number in ((ct, ct_list, pair.ct), (carm.referred("xray"), xray_list, pair.xray)):
            world = markups.GetNthControlPointPositionWorld(number)
            i, j, k = np.rint(kit.apply(np.linalg.inv(kit.to_world(volume)), world)).astype(int)
            values.append(slicer.util.arrayFromVolume(volume)[k, j, i])
        yield pair.label, *values


def test_a_real_file_and_a_scene_saved_with_it(panel, slicer_app, deepfluoro, tmp_path):
    """Beads of DeepFluoro's layout: pixels, landmarks and reference agree in the scene, also after saving it."""
    from DiffDRRSlicerLib.scene.accuracy import reference_errors
    from DiffDRRSlicerLib.scene.landmarks import reprojection_errors

    ui = opened(slicer_app, panel, deepfluoro)
    loaded(slicer_app, panel, ui, subject=1, view=1)
    assert not slicer_app.messages
    carm, ct_list = panel.carm, panel.parameters.ctLandmarks
    errors = reprojection_errors(carm, ct_list, carm.referred("landmarks"))
    assert len(errors.rows) >= 3 and errors.rms_pixels < 0.05
    assert reference_errors(carm, panel.anatomy)["mtre_mm"] < 1e-6
    assert set(panel.anatomy.structures.values()) == {"left-hemipelvis", "left-femur", "right-femur"}
    for label, voxel, pixel in beads(carm, panel.parameters.ct, ct_list):
        assert voxel > -400 and pixel > 1.0, label  # of -1000 and 0 elsewhere
    name, world = carm.name, carm.to_world
    path = save_scene(slicer_app.scene, tmp_path / "saved")
    load_scene(slicer_app.scene, path)
    slicer_app.process_events()
    settle(slicer_app, panel)
    assert panel.carm.name == name and panel.carm.to_world == pytest.approx(world, abs=1e-6)
    assert len(reprojection_errors(panel.carm, panel.parameters.ctLandmarks, panel.carm.referred("landmarks")).rows) > 2
    before = panel.parameters.ct
    loaded(slicer_app, panel, opened(slicer_app, panel, deepfluoro), subject=1, view=0)
    assert panel.parameters.ct is before and reference_errors(panel.carm, panel.anatomy)["mtre_mm"] < 1e-3
    assert not slicer_app.messages


def test_the_logic_opens_and_loads_for_scripts(panel, slicer_app, deepfluoro):
    logic = panel.logic
    dataset = logic.openDataset(deepfluoro, crop=0)
    (specimen, *_), size = dataset.subject_names, (192, 204)
    loaded = logic.loadFromDataset(deepfluoro, specimen, "000", crop=0)
    assert np.array(slicer.util.arrayFromVolume(loaded.segmentation)[0]).shape == size
    assert loaded.ct.GetName() == specimen and loaded.reference is not None
    again = logic.loadFromDataset(str(deepfluoro), 0, 2, "center", crop=0)
    assert again.ct is loaded.ct and again.carm.GetName() == f"{specimen} 002"
    with pytest.raises(Exception, match="There is no subject"):
        logic.loadFromDataset(deepfluoro, "nobody")
