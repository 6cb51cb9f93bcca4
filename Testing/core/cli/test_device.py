"""Where and by which backend the command line renders."""

from __future__ import annotations

import json

import pytest
import torch

from DiffDRRCore.cli import main
from DiffDRRCore.datasets.phantom import phantom

CAMERA = ["--height", "16", "--width", "16", "--pixel-spacing", "20", "20", "--sdd", "1020", "--sod", "750"]


@pytest.fixture
def ct(tmp_path) -> str:
    path = tmp_path / "ct.nii.gz"
    phantom(shape=(12, 10, 12), spacing=30.0).write(path)
    return str(path)


@pytest.mark.parametrize("backend, runs", [("auto", "cpu"), ("cpu", "cpu"), ("torch", "torch")])
def test_render_by_a_backend(ct, tmp_path, capsys, backend, runs):
    arguments = ["render", ct, *CAMERA, "--backend", backend, "--output", str(tmp_path / "drr.nii"), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == runs


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_one_sentence(ct, tmp_path, capsys):
    assert main(["render", ct, *CAMERA, "--device", "cuda", "--output", str(tmp_path / "drr.nii")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "drr.nii").exists()


def test_the_self_test_as_a_command(capsys):
    assert main(["info", "--check", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {check["integrator"] for check in values["checks"]} == {"trilinear", "siddon"}
    assert all(check["passed"] for check in values["checks"])
    assert main(["info", "ct.nii.gz", "--check"]) == 2
    assert "leave out one of the two" in capsys.readouterr().err
