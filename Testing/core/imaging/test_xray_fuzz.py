"""Damaged files: whatever is cut off or flipped, reading gives an XRay or one of our own errors."""

from __future__ import annotations

import json
import warnings
import zlib

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.imaging.xray_reading import camera_path_beside

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, on damaged files
PIXELS = (np.arange(96, dtype=np.uint16) * 37).reshape(2, 6, 8)
CAMERA = {
    "height": 6,
    "width": 8,
    "pixel_spacing": [0.3, 0.3],
    "source_to_detector": 1000.0,
    "intensity": "transmission",
    "pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -700.5], [0, 0, 0, 1]],
}


def write_dicom(path, compress: bool) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.12.1", generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "XA", "MONOCHROME1", 1
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = PIXELS.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.DistanceSourceToDetector, dataset.DistanceSourceToPatient = 1200, 800
    dataset.ImagerPixelSpacing, dataset.PatientOrientation = [0.3, 0.3], ["L", "F"]
    dataset.PositionerPrimaryAngle, dataset.PositionerSecondaryAngle = 10, -5
    dataset.PositionerPrimaryAngleIncrement = [0, 1]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = PIXELS.tobytes()
    if compress:
        dataset.compress(RLELossless)
    dataset.save_as(path, enforce_file_format=True)


def write_image(path, compress: bool) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(PIXELS[0]), str(path), compress)


KINDS = {
    "plain.dcm": (write_dicom, False),
    "rle.dcm": (write_dicom, True),
    "plain.png": (write_image, True),
    "lzw.tif": (write_image, True),
    "plain.nrrd": (write_image, False),
    "gz.mha": (write_image, True),
    "plain.nii": (write_image, False),
    "gz.nii.gz": (write_image, True),
}


@pytest.fixture(scope="module", params=list(KINDS))
def valid(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("valid") / request.param
    writer, compress = KINDS[request.param]
    writer(path, compress)
    camera_path_beside(path).write_text(json.dumps(CAMERA))
    return path


def damaged(content: bytes, data) -> bytes:
    content = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    return bytes(content)


def read_is_xray_or_our_error(path, frame) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            xray = XRay.read(path, frame)
        except DiffDRRError as error:
            assert "\n" not in str(error)
        else:
            assert tuple(xray.image.shape) == (xray.camera.height, xray.camera.width)


def test_the_undamaged_files_read(valid):
    frame = 0 if valid.suffix == ".dcm" else None
    image = XRay.read(valid, frame).image.numpy()
    assert np.array_equal(image, 4095 - PIXELS[0] if valid.suffix == ".dcm" else PIXELS[0])


def test_a_cut_file_is_refused_or_lacks_no_pixel(valid):
    path = valid.with_name(f"cut-{valid.name}")
    camera_path_beside(path).write_text(json.dumps(CAMERA))
    content, frame = valid.read_bytes(), 1 if valid.suffix == ".dcm" else None
    whole = XRay.read(valid, frame).image
    refused = 0
    for kept in range(len(content) // 2, len(content), 9):
        path.write_bytes(content[:kept])
        try:
            assert torch.equal(XRay.read(path, frame).image, whole)
        except DiffDRRError:
            refused += 1
    assert refused > 0


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_images(valid, data):
    path = valid.with_name(f"damaged-{valid.name}")
    camera_path_beside(path).write_text(json.dumps(CAMERA))
    path.write_bytes(damaged(valid.read_bytes(), data))
    read_is_xray_or_our_error(path, data.draw(st.sampled_from([None, 0, 1, "mean"])))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_cameras(valid, data):
    if valid.suffix != ".png":
        return
    path = valid.with_name("bad-camera.png")
    path.write_bytes(valid.read_bytes())
    camera_path_beside(path).write_bytes(damaged(json.dumps(CAMERA).encode(), data))
    read_is_xray_or_our_error(path, None)


def test_a_png_that_claims_a_gigantic_image(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(PIXELS[0]), str(tmp_path / "x.png"))
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DiffDRRError, match="60000 x 60000"):
        XRay.read(tmp_path / "x.png", camera=Camera(6, 8, (0.3, 0.3), 1000.0))
