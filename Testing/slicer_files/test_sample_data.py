"""The samples are listed as Slicer's Sample Data module wants it, and the fluoroscopy is made of the CT."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import slicer
import slicer.util
import torch

from DiffDRRCore import Pose
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRSlicerLib import install, sample_data
from DiffDRRSlicerLib import scene as parts

RESOURCES = Path(__file__).parents[2] / "DiffDRRSlicer" / "Resources"
URI = "https://example.org/SHA256/4507"


class Source:
    """What a SampleDataSource keeps, and its check that all lists are as long."""

    def __init__(self, sampleName=None, uris=None, fileNames=None, nodeNames=None, checksums=None, **others):
        self.sampleName, self.uris, self.fileNames = sampleName, uris, fileNames
        self.nodeNames, self.checksums = nodeNames, checksums
        self.__dict__.update(others)
        assert len(uris) == len(fileNames) == len(nodeNames) == len(checksums)


class Logic:
    """SampleData.SampleDataLogic of Slicer 5.12, as far as we call it."""

    def __init__(self, logMessage=None):
        slicer.modules.sampleDataSources.setdefault(
            "General", [Source("CTChest", [URI], ["CT-chest.nrrd"], ["CTChest"], ["SHA256:4507"])]
        )

    def sourceForSampleName(self, sampleName):
        sources = [source for group in slicer.modules.sampleDataSources.values() for source in group]
        return next((source for source in sources if source.sampleName == sampleName), None)

    def downloadSample(self, sampleName):
        assert sampleName == "CTChest"
        Logic.downloads += 1
        return add_ct(slicer.mrmlScene)

    @staticmethod
    def registerCustomSampleDataCategory(category, title):
        slicer.modules.categories[category] = title

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties={},  # noqa: B006
        checksums=None,
        loadFileType=None,
    ):
        source = Source(
            sampleName,
            uris,
            fileNames,
            nodeNames,
            checksums,
            customDownloader=customDownloader,
            thumbnailFileName=thumbnailFileName,
        )
        slicer.modules.sampleDataSources.setdefault(category, []).append(source)


def add_ct(scene, name="CTChest"):
    volume = phantom(shape=(32, 24, 28), spacing=12.0)
    node = parts.nodes.add_node(scene, "vtkMRMLScalarVolumeNode", name)
    parts.nodes.set_image(node, volume.hu.numpy(), volume.ijk_to_ras.numpy())
    return node


@pytest.fixture
def errors(monkeypatch):
    """A Slicer whose error messages are kept here."""
    shown = []
    app = types.SimpleNamespace(
        testingEnabled=lambda: False,
        setOverrideCursor=lambda cursor: None,
        restoreOverrideCursor=lambda: None,
        cursor=0,
    )
    qt = types.SimpleNamespace(Qt=types.SimpleNamespace(WaitCursor=3))
    monkeypatch.setitem(sys.modules, "qt", qt)
    monkeypatch.setattr(slicer, "app", app, raising=False)
    modules = types.SimpleNamespace(sampleDataSources={}, categories={})
    monkeypatch.setattr(slicer, "modules", modules, raising=False)
    monkeypatch.setattr(slicer, "mrmlScene", slicer.vtkMRMLScene(), raising=False)
    monkeypatch.setattr(slicer.util, "errorDisplay", lambda text, *args, **kwargs: shown.append(text))
    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=Logic))
    Logic.downloads = 0
    yield shown
    parts.anatomy.forget()
    slicer.mrmlScene.Clear(True)


def registered() -> list[Source]:
    return slicer.modules.sampleDataSources["DiffDRRSlicer"]


def test_the_catalogues_ct_is_listed_again_and_the_fluoroscopy_beside_it(errors):
    sample_data.register(RESOURCES)
    assert slicer.modules.categories == {"DiffDRRSlicer": "2D/3D registration"}
    ct, fluoroscopy = registered()
    for source in (ct, fluoroscopy):
        assert source.uris == [URI] and source.checksums == ["SHA256:4507"] and source.nodeNames == ["CTChest"]
        assert Path(source.thumbnailFileName).is_file()
    assert ct.customDownloader is None
    assert callable(fluoroscopy.customDownloader)
    assert ct.sampleName != fluoroscopy.sampleName


def test_older_slicers_have_no_titles(errors, monkeypatch):
    monkeypatch.delattr(Logic, "registerCustomSampleDataCategory")
    sample_data.register(RESOURCES)
    assert len(registered()) == 2


def test_without_the_module_or_its_ct_nothing_is_listed(errors, monkeypatch):
    monkeypatch.setitem(sys.modules, "SampleData", None)
    sample_data.register(RESOURCES)
    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=Logic))
    slicer.modules.sampleDataSources["General"] = []
    sample_data.register(RESOURCES)
    assert list(slicer.modules.sampleDataSources) == ["General"]


def test_the_button_loads_the_ct_and_makes_an_xray(errors, monkeypatch):
    monkeypatch.setattr(sample_data, "_PIXELS", 64)
    monkeypatch.setattr(sample_data, "_SPACING", 6.0)
    sample_data.register(RESOURCES)
    source = registered()[1]
    ct, carm_node = source.customDownloader(source)
    assert errors == []
    assert ct.GetName() == "CTChest" and Logic.downloads == 1
    carm = parts.carm.CArmNode(carm_node)
    truth = Pose(torch.from_numpy(parts.nodes.transform_to_world(carm.referred("reference"))))
    # the C-arm looks straight at the CT's centre ...
    assert [float(angle) for angle in (carm.arm.primary, carm.arm.secondary)] == pytest.approx([0, 0], abs=1e-6)
    np.testing.assert_allclose(carm.arm.isocenter, parts.anatomy.Anatomy(ct).center, atol=1e-6)
    # ... and the X-ray was taken some degrees and millimetres away
    angle = torch.rad2deg(torch.linalg.norm((carm.pose.inverse() @ truth).log()[:3]))
    assert 5 < float(angle) < 15
    xray = slicer.util.arrayFromVolume(carm.referred("xray"))[0]
    assert xray.shape == (64, 64) and xray.std() > 0.1
    assert carm.camera.K[0, 0] < 0  # seen from the detector


def test_a_ct_that_is_there_is_not_loaded_again(errors, monkeypatch):
    monkeypatch.setattr(sample_data, "_PIXELS", 32)
    add_ct(slicer.mrmlScene)
    first, _ = sample_data.download(None)
    again, _ = sample_data.download(None)
    assert first is again and Logic.downloads == 0
    assert len(list(parts.carm.CArmNode.all(slicer.mrmlScene))) == 2


def test_the_sample_can_be_registered(errors, monkeypatch):
    monkeypatch.setattr(sample_data, "_PIXELS", 96)
    monkeypatch.setattr(sample_data, "_SPACING", 4.0)
    ct = add_ct(slicer.mrmlScene)
    carm = sample_data.simulate(slicer.mrmlScene, ct)
    truth = parts.nodes.transform_to_world(carm.referred("reference"))
    for _ in parts.registration.SceneRegistration(parts.anatomy.Anatomy(ct), carm).steps():
        pass
    # where the two poses put the CT's centre, across the beam
    centre = parts.anatomy.Anatomy(ct).center
    found, true = (
        parts.nodes.transformed(np.linalg.inv(matrix), centre) for matrix in (carm.pose.matrix.numpy(), truth)
    )
    assert np.linalg.norm((found - true)[:2]) < 1.0


def test_an_error_is_shown_and_leaves_nothing(errors, monkeypatch):
    def declined(ask=True):
        raise install.InstallError("Nothing was installed.")

    monkeypatch.setattr(install, "install", declined)
    with pytest.raises(install.InstallError):
        sample_data.download(None)
    assert len(errors) == 1 and "Nothing was installed." in errors[0]
    assert Logic.downloads == 0
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
