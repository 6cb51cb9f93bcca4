"""A small phantom and a noisy X-ray of it on disk, made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from DiffDRRCore import CArm, Pose, Volume
from DiffDRRCore.cli import main
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import simulated_xray


class Files(NamedTuple):
    folder: Path
    ct: Path
    labelmap: Path
    xrays: list[Path]
    volume: Volume
    truth: list[Pose]


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("cli")
    volume = phantom(shape=(72, 64, 84), spacing=4.0)
    ct, labelmap = folder / "ct.nii.gz", folder / "labels.nrrd"
    volume.write(ct, labelmap)
    xrays, truth = [], []
    for name, primary in (("ap", 0.0), ("lateral", 90.0)):
        carm = CArm(1000.0, 700.0, volume.center, primary)
        image = simulated_xray(
            volume, carm.camera(60, 72, (6.0, 5.0), view_from="detector"), carm.pose, seed=len(truth)
        )
        image.write(folder / f"{name}.nii.gz")
        xrays.append(folder / f"{name}.nii.gz")
        truth.append(carm.pose)
    return Files(folder, ct, labelmap, xrays, volume, truth)


@pytest.fixture
def run(capsys):
    """Run the command line: (exit code, standard output, standard error)."""

    def call(*arguments) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse: --help and misspelt options
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def simulate(files, run, tmp_path):
    """Run `simulate` on the phantom: its JSON."""

    def call(*arguments, output="x.dcm"):
        code, out, err = run("simulate", files.ct, *arguments, "--json", "--output", tmp_path / output)
        assert code == 0, err
        return json.loads(out)

    return call
