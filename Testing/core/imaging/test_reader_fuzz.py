"""Damaged files: whatever bytes are cut or flipped, a reader gives a Volume or a DiffDRRError."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.imaging.volume import Volume
from Testing.core.imaging.ct_files import write_enhanced, write_nifti, write_series

HU = np.random.default_rng(0).integers(-1000, 3000, (3, 4, 5)).astype(np.int16)
# Most of a small file is header, but fields that matter are few: half of the damage goes to the first 400 bytes.
PLACES = st.one_of(st.integers(0, 400), st.integers(0, 10**6))
DAMAGE = st.tuples(
    st.one_of(st.none(), st.integers(0, 10**6)),  # length to keep
    st.lists(st.tuples(PLACES, st.integers(1, 255)), max_size=6),  # place, bits to flip
)


def damaged(data: bytes, damage) -> bytes:
    length, flips = damage
    data = bytearray(data if length is None else data[: length % len(data)])
    for place, bits in flips:
        if data:
            data[place % len(data)] ^= bits
    return bytes(data)


def read_or_refuse(path) -> None:
    try:
        volume = Volume.read(path)
    except DiffDRRError as error:
        message = str(error)
        assert message and "\n" not in message and "Traceback" not in message
    else:
        assert volume.hu.isfinite().all() and volume.hu.numel() < 10**7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", "-packed.nrrd", "-packed.mha", "-itk.nii"])
def test_damaged_image_files(folder, suffix):
    path = folder / f"ct{suffix}"
    if suffix == ".nii":
        write_nifti(path, HU, np.eye(4), qform=(1, (0, 0, 0.1), (1, 2, 3), (1, 1, 1, 1)), slope=2, intercept=1)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(HU), str(path), useCompression="packed" in suffix)
    intact = path.read_bytes()

    @given(DAMAGE)
    @settings(max_examples=50, deadline=None, derandomize=True)
    def check(damage):
        path.write_bytes(damaged(intact, damage))
        read_or_refuse(path)

    check()


@pytest.mark.parametrize("kind", ["series", "enhanced"])
def test_damaged_dicom_files(folder, kind):
    place = folder / kind
    place.mkdir()
    if kind == "series":
        write_series(place, [0, 1, 2])
        path = place / "001.dcm"
    else:
        positions = [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
        path = write_enhanced(place / "e.dcm", HU, positions, (1, 0, 0, 0, 1, 0), (1, 1), [1] * 3, [0] * 3)
    intact = path.read_bytes()

    @given(DAMAGE)
    @settings(max_examples=50, deadline=None, derandomize=True)
    def check(damage):
        path.write_bytes(damaged(intact, damage))
        read_or_refuse(place)
        read_or_refuse(path)

    check()


def test_damaged_labelmaps(folder):
    ct = write_nifti(folder / "whole.nii", HU, np.eye(4))
    path = write_nifti(folder / "labels.nii", np.abs(HU) % 7, np.eye(4))
    intact = path.read_bytes()

    @given(DAMAGE)
    @settings(max_examples=50, deadline=None, derandomize=True)
    def check(damage):
        path.write_bytes(damaged(intact, damage))
        try:
            labels = Volume.read(ct, path).labels
        except DiffDRRError as error:
            assert "\n" not in str(error)
        else:
            assert labels.shape == HU.shape

    check()
