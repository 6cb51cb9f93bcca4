"""Doubles of the Python modules that come with the Slicer application; state is kept in `state`."""
# ruff: noqa: N815 (the names are Qt's, CTK's and Slicer's)

from __future__ import annotations

import types
import unittest
from dataclasses import dataclass, field
from pathlib import Path

import slicer
from PySide6 import QtWidgets

from . import parameter_node


@dataclass
class Message:
    kind: str  # error, warning, info, confirm, status
    text: str
    details: str = ""


@dataclass
class State:
    """What the user would see, and what they would answer."""

    messages: list = field(default_factory=list)
    answer: bool = True  # OK, Yes, Accepted
    file_answer: object = ""  # what a file dialog returns
    text_answer: str = ""  # what an input dialog returns
    installs: list = field(default_factory=list)  # requirements that pip_ensure or installTorch were asked for
    packages_missing: bool = False  # what pip_check and torchInstalled say, until an install
    samples: list = field(default_factory=list)
    dicom_files: dict = field(default_factory=dict)  # {SOP instance UID: path}
    selected_module: str = ""
    module_path: str = ""
    settings: dict = field(default_factory=dict)


state = State()


def _module(name, **content):
    made = types.ModuleType(name)
    made.__dict__.update(content)
    return made


class ScriptedLoadableModule:
    def __init__(self, parent):
        self.parent, self.moduleName = parent, type(self).__name__
        parent.title, parent.categories, parent.dependencies, parent.contributors = "", [], [], []
        parent.helpText = parent.acknowledgementText = ""

    def resourcePath(self, filename):
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        return "<p>documentation</p>"

    def runTest(self, msec=100, **kwargs):
        raise NotImplementedError("tests of the module run in Slicer")


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        if parent is None:
            raise ValueError("the stand-in wants a parent widget")
        self.parent, self.layout = parent, parent.layout()

    def resourcePath(self, filename):
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self):
        pass

    def setupDeveloperSection(self):
        pass

    def cleanup(self):
        pass

    def onReload(self):
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            return self.createParameterNode()
        node.SetAttribute("ModuleName", self.moduleName)
        return node

    def createParameterNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message, requestedDelay=None, msec=None):
        slicer.app.processEvents()

    def runTest(self):
        pass


def tr(text):
    if not isinstance(text, str):
        raise TypeError("only literal text can be translated")
    return text


def translate(context, text):
    return tr(text)


def _names(requirements):
    return [str(r) for r in (requirements if isinstance(requirements, (list, tuple)) else [requirements])]


def pip_check(req, **_options):
    return not state.packages_missing


def pip_ensure(
    requirements,
    constraints=None,
    skip_packages=None,
    prompt_install=True,
    prompt_restart=True,
    requester=None,
    skip_in_testing=True,
    show_progress=True,
):
    if not state.packages_missing:
        return []
    if prompt_install and not state.answer:
        raise RuntimeError(f"installation of {', '.join(_names(requirements))} was declined")
    state.installs += _names(requirements)
    state.packages_missing = False
    return []


def pip_install(requirements, **_options):
    state.installs += _names(requirements)
    state.packages_missing = False


def load_requirements(path):
    from packaging.requirements import Requirement

    lines = (line.split("#")[0].strip() for line in Path(path).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


class PyTorchUtilsLogic:
    def torchInstalled(self):
        return not state.packages_missing

    @property
    def torch(self):
        import torch

        return torch

    def installTorch(
        self,
        askConfirmation=False,
        forceComputationBackend=None,
        torchVersionRequirement=None,
        torchvisionVersionRequirement=None,
    ):
        if askConfirmation and not state.answer:
            return None
        state.installs.append("torch" + (torchVersionRequirement or ""))
        state.packages_missing = False
        return self.torch

    def getDevice(self):
        return self.torch.device("cpu")


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataCategory(category, title=None):
        state.samples.append(category)

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileType="VolumeFile",
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
        sampleDescription=None,
    ):
        state.samples.append(sampleName)
        state.samples.append(customDownloader) if customDownloader else None


class DicomDatabase:
    isOpen = True

    def fileForInstance(self, uid):
        return str(state.dicom_files.get(uid, ""))


def message_box(text, parent=None, **options):
    """In place of slicer.util.messageBox: noted, and answered by `state.answer`."""
    buttons, standard = options.get("standardButtons"), QtWidgets.QMessageBox.StandardButton
    title = str(options.get("windowTitle") or "")
    kind = next((k for k in ("error", "warning", "info") if title.endswith(k)), "info")
    pairs = ((standard.Ok, standard.Cancel), (standard.Yes, standard.No), (standard.Retry, standard.Close))
    asked = next((p for p in pairs if buttons is not None and buttons & p[1]), None)
    state.messages.append(Message("confirm" if asked else kind, str(text), str(options.get("detailedText", ""))))
    return (asked or pairs[0])[0 if state.answer or not asked else 1]


def was_shown(error) -> bool:
    """Whether an error message carries this exception's text: tryWithErrorDisplay shows it and raises it again."""
    return any(m.kind == "error" and str(error) in m.text for m in state.messages)


def modules() -> dict:
    """{name: module} to be put into sys.modules."""
    names = (ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic)
    scripted = {c.__name__: c for c in (*names, ScriptedLoadableModuleTest)} | {"__all__": [c.__name__ for c in names]}
    scripted["__all__"].append("ScriptedLoadableModuleTest")
    packaging = {f.__name__: f for f in (pip_check, pip_ensure, pip_install, load_requirements)}
    wrapper = {c.__name__: c for c in parameter_node.NAMES}
    return {
        "slicer.ScriptedLoadableModule": _module("slicer.ScriptedLoadableModule", **scripted),
        "slicer.parameterNodeWrapper": _module("slicer.parameterNodeWrapper", **wrapper),
        "slicer.i18n": _module("slicer.i18n", tr=tr, translate=translate),
        "slicer.packaging": _module("slicer.packaging", **packaging),
        "slicer.testing": _module("slicer.testing"),
        "PyTorchUtils": _module("PyTorchUtils", PyTorchUtilsLogic=PyTorchUtilsLogic),
        "SampleData": _module("SampleData", SampleDataLogic=SampleDataLogic),
    }
