"""The README's script for `Slicer --python-script` runs from its first to its last line, in the stand-in for Slicer."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import slicer
import slicer.util

from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.geometry.itk_transform import read_itk_transform

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def script() -> str:
    (found,) = re.findall(r"^```py\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def files(tmp_path, monkeypatch):
    """(CT file, folder for the results), as they are given on the command line."""
    phantom(shape=(48, 36, 42), spacing=8.0).write(tmp_path / "ct.nii.gz")
    monkeypatch.setattr(sys, "argv", ["register.py", str(tmp_path / "ct.nii.gz"), str(tmp_path / "results")])
    return tmp_path / "ct.nii.gz", tmp_path / "results"


def test_it_registers_saves_and_exits(slicer_app, script, files, monkeypatch):
    ended = []
    monkeypatch.setattr(slicer.util, "exit", lambda status=0: ended.append(status))
    monkeypatch.delitem(sys.modules, "DiffDRRSlicer", raising=False)
    names = {}
    exec(compile(script, "README script", "exec"), names)
    assert ended == [0]
    outcome, carm = names["outcome"], names["carm"]
    before, after = outcome.similarity
    assert outcome.converged and after > max(before, 0.98)
    errors = outcome.views[0].reference
    assert errors["mtre_in_plane_mm"] < 0.5 and errors["rotation_deg"] < 0.5
    written = read_itk_transform(next(files[1].glob("*_camera_to_world.tfm"))).numpy()
    assert written == pytest.approx(slicer.util.arrayFromTransformMatrix(carm, toWorld=True), abs=1e-6)
    assert (files[1] / "registration.json").is_file()


def test_it_has_ten_lines_or_so(script):
    assert len([line for line in script.splitlines() if line.strip()]) <= 11
