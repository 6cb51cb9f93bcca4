"""DICOM X-rays that others wrote: compressed by GDCM, and real fluoroscopy."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from DiffDRRCore.errors import MissingGeometryError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.imaging.xray import XRay

XA_STORAGE = "1.2.840.10008.5.1.4.1.1.12.1"


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG"])
@pytest.mark.parametrize("shape", [(40, 30), (3, 40, 30)])
def test_compressed_files_written_by_another_library(tmp_path, compressor, shape):
    """GDCM writes lossless JPEG 2000 and lossless JPEG; for the latter pydicom has no decoder of its own."""
    pixels = np.random.default_rng(0).integers(0, 4096, shape).astype(np.uint16)
    image = SimpleITK.GetImageFromArray(pixels)
    image.SetMetaData("0008|0016", XA_STORAGE)
    image.SetMetaData("0008|0060", "XA")
    writer = SimpleITK.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "x.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.KeepOriginalImageUIDOn()
    writer.Execute(image)
    frame, expected = (None, pixels) if len(shape) == 2 else ("max", pixels.max(axis=0))
    xray = XRay.read(tmp_path / "x.dcm", frame, Camera(40, 30, (0.3, 0.3), 1000.0))
    assert np.array_equal(xray.image.numpy(), expected)


HIP = "hip_fluoroscopy/IM-0001-00{}.dcm"


@pytest.mark.parametrize("number", [20, 24, 29, 33, 38, 42])
def test_real_fluoroscopy_without_pixel_spacing(shared_data, number):
    path = shared_data / HIP.format(number)
    with pytest.raises(MissingGeometryError, match="ImagerPixelSpacing") as caught:
        XRay.read(path)
    assert caught.value.missing == ("ImagerPixelSpacing (mm)",)
    xray = XRay.read(path, camera=Camera(1024, 1024, (0.2, 0.2), 1000.0, view_from="detector"))
    assert np.array_equal(xray.image.numpy(), SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0])
    assert (xray.intensity, xray.meta["pixel_intensity_relationship"], xray.pose) == ("transmission", "DISP", None)
