"""The README is true: its Python and its commands run, and its options, sentences, links and pictures exist."""

from __future__ import annotations

import argparse
import ast
import json
import pkgutil
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid

from DiffDRRCore import CArm, Renderer, Volume
from DiffDRRCore.cli import build_parser, main
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.imaging.camera_file import read_camera
from Testing.core.datasets.hdf5_files import write_deepfluoro

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SIZE, SPACING = 96, 4.0
# A training of minutes on a GPU, for seconds on a CPU
QUICK = {
    "train": [
        *("--steps", "2", "--batch", "2", "--size", "32", "--backbone", "resnet10", "--validation-views", "2"),
        *("--threads", "1", "--device", "cpu"),
    ],
    "animate": ["--every", "8"],
}
SLICERS_OPTIONS = {"--no-splash", "--no-main-window", "--additional-module-paths", "--python-script"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if not line.endswith("--help")]
    return [shlex.split(line)[3:] for line in lines if line.startswith("python -m DiffDRRCore ")]


def write_fluoroscopy(path: Path, volume: Volume, primary: float, secondary: float) -> None:
    """An XA file of the phantom, taken 6 mm and 3 degrees from where its header says."""
    arm = CArm(1020.0, 750.0, volume.center, primary, secondary)
    moved = arm.pose.retract([0.03, -0.03, 0.03, 4.0, -4.0, 2.0], about=volume.center)
    with torch.no_grad():
        image = Renderer(volume)(arm.camera(SIZE, SIZE, (SPACING, SPACING), view_from="detector"), moved)[0, 0]
    file_meta = FileMetaDataset()
    file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file_meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    file_meta.MediaStorageSOPInstanceUID = generate_uid()
    tags = {
        "SOPClassUID": file_meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": file_meta.MediaStorageSOPInstanceUID,
        "Modality": "XA",
        "Rows": SIZE,
        "Columns": SIZE,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelRepresentation": 0,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": 1,
        "ImagerPixelSpacing": [SPACING, SPACING],
        "DistanceSourceToDetector": 1020,
        "DistanceSourceToPatient": 750,
        "PositionerPrimaryAngle": primary,
        "PositionerSecondaryAngle": secondary,
        "PixelData": (50000 * torch.exp(-image)).numpy().astype(np.uint16).tobytes(),
    }
    dataset = FileDataset(path, {}, file_meta=file_meta, preamble=bytes(128))
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files that the README speaks of, small."""
    folder = tmp_path_factory.mktemp("readme")
    volume = phantom(shape=(48, 32, 42), spacing=8.0)
    volume.write(folder / "ct.nii.gz", folder / "labels.nii.gz")
    write_fluoroscopy(folder / "fluoro.dcm", volume, primary=15.0, secondary=8.0)
    write_fluoroscopy(folder / "lateral.dcm", volume, primary=85.0, secondary=0.0)
    write_deepfluoro(folder / "ipcai_2020_full_res_data.h5", size=(192, 204), principal_point=(103.8, 94.1))
    return folder


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(number, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(blocks("python")[number], f"README block {number + 1}", "exec"), {})


def test_commands_run_in_order(folder, monkeypatch, capsys):
    """Pictures are left out to save time: the tests of the command line draw them."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("DiffDRRCore.cli.register.find_spec", lambda name: None)
    assert len(commands()) >= 8
    for command in commands():
        command, _, file = (command[:-2], *command[-2:]) if ">" in command else (command, "", "")
        capsys.readouterr()
        assert main([*command, *QUICK.get(command[0], [])]) == 0, capsys.readouterr().err
        if file:
            Path(file).write_text(capsys.readouterr().out, encoding="utf-8")
    for name in ("view1.tfm", "patient_motion.tfm", "result.json"):
        assert (folder / "result" / name).is_file()
    assert (folder / "result-biplane" / "view2.tfm").is_file()
    assert (folder / "specimen1" / "dataset.json").is_file()
    assert (folder / "run" / "report.html").is_file()


def test_options_exist():
    parsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices.values()
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README))
    assert len(named) > 20
    assert named <= known | SLICERS_OPTIONS


def test_links_and_pictures_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert {"Resources/registration.png", "Resources/conventions.png"} <= set(targets)
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (ROOT / target).is_file(), target


def messages() -> str:
    """All text in the code that is no docstring or comment; what is filled in shows as {}."""
    found = []
    for path in sorted([*(ROOT / "DiffDRRCore").rglob("*.py"), *(ROOT / "DiffDRRSlicer").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None  # a docstring
            elif isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_troubleshooting_quotes_the_code():
    source = messages()
    section = README.split("## Troubleshooting")[1].split("\n## ")[0]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    quoted = [sentence for cell in cells for sentence in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 15
    assert [sentence for sentence in quoted if sentence not in source] == []


def test_json_camera_is_one(tmp_path):
    path = tmp_path / "camera.json"
    path.write_text(blocks("json")[0], encoding="utf-8")
    content = read_camera(path)
    assert content.camera.view_from == "detector"
    assert content.camera.K[:2, 2].tolist() == json.loads(blocks("json")[0])["principal_point"]
    assert content.pose.translation.tolist() == [0, -750, 0]


def test_names_of_the_tables_exist():
    """First cells of the API table; functions of the converters' table."""
    api = README.split("### What is where")[1].split("\n##")[0]
    names = re.findall(r"`([\w.]+)`", "\n".join(row.split("|")[1] for row in api.splitlines() if row.startswith("| `")))
    converters = re.findall(r"`((?:from|to|lps)_\w+|diffdrr_matrix|RTKProjection)`", README)
    homes = [name if name.startswith("DiffDRRCore.") else f"DiffDRRCore.{name}" for name in names]
    homes += [f"DiffDRRCore.geometry.converters.{name}" for name in converters if name != "to_parameters"]
    assert len(homes) > 25
    for name in homes:
        assert pkgutil.resolve_name(name) is not None
