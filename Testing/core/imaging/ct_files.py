"""Small CT files for the reader tests, written byte by byte or with pydicom, not with the code under test."""

from __future__ import annotations

import struct

import numpy as np
import SimpleITK
import torch
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

TYPE_CODES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "int8": 256, "uint16": 512}


def write_nifti(path, array, sform=None, sform_code=1, qform=None, slope=0.0, intercept=0.0, units=2, order="<",
                extension=b"", dim=None):  # fmt: skip
    """A NIfTI-1 file of [..., K, J, I]. `qform` is (code, (b, c, d), offset, (qfac, di, dj, dk))."""
    header = bytearray(348)
    code, quaternion, offset, pixdim = qform or (0, (0, 0, 0), (0, 0, 0), (1, 1, 1, 1))
    dim = dim or (array.ndim, *reversed(array.shape))
    start = 352 + len(extension)
    struct.pack_into(order + "i", header, 0, 348)
    struct.pack_into(order + "8h", header, 40, *dim, *[1] * (8 - len(dim)))
    struct.pack_into(order + "2h", header, 70, TYPE_CODES[array.dtype.name], 8 * array.dtype.itemsize)
    struct.pack_into(order + "4f", header, 76, *pixdim)
    struct.pack_into(order + "3f", header, 108, start, slope, intercept)
    header[123] = units
    struct.pack_into(order + "2h", header, 252, code, 0 if sform is None else sform_code)
    struct.pack_into(order + "6f", header, 256, *quaternion, *offset)
    if sform is not None:
        struct.pack_into(order + "12f", header, 280, *np.asarray(sform, float)[:3].ravel())
    header[344:348] = b"n+1\0"
    body = array.astype(array.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(bytes(header) + (b"\1\0\0\0" if extension else bytes(4)) + extension + body)
    return path


def ct_dataset(sop_class=CTImageStorage, **tags) -> FileDataset:
    """A DICOM CT without pixels; `tags` set or, where None, leave out attributes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    values = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "SeriesInstanceUID": "1.2.3",
        "SeriesDescription": "bone",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    }
    set_tags(dataset, {**values, **tags})
    return dataset


def set_tags(dataset: Dataset, tags: dict) -> Dataset:
    for name, value in tags.items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def add_pixels(dataset: Dataset, stored: np.ndarray) -> Dataset:
    """Stored int16 values [..., rows, columns]."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = stored.astype("<i2").tobytes()
    return dataset


def write_slice(path, stored, position, orientation=(1, 0, 0, 0, 1, 0), spacing=(0.7, 0.5), **tags):
    """A single-slice CT file. `position` and `orientation` are DICOM's (LPS), `spacing` is (row, column)."""
    geometry = {
        "ImagePositionPatient": None if position is None else [f"{value:.10g}" for value in position],
        "ImageOrientationPatient": None if orientation is None else [f"{value:.10g}" for value in orientation],
        "PixelSpacing": None if spacing is None else list(spacing),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    dataset = add_pixels(ct_dataset(**{**geometry, **tags}), stored)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, depths, names=None, step=(0, 0, 1), seed=0, **tags):
    """One 3 x 4 slice at each depth d, at (10, 20, 30) + d * step, stored values random; returns them [K, 3, 4]."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.random.default_rng(seed).integers(0, 3000, (len(depths), 3, 4)).astype(np.int16)
    for n, depth in enumerate(depths):
        position = np.array([10.0, 20, 30]) + depth * np.asarray(step, float)
        write_slice(folder / (names[n] if names else f"{n:03d}.dcm"), stored[n], position, **tags)
    return stored


def write_enhanced(path, stored, positions, orientation, spacing, slopes, intercepts, shared_geometry=True):
    """An Enhanced CT of [frames, rows, columns] with position and rescaling of each frame in its functional groups."""
    dataset = ct_dataset(EnhancedCTImageStorage)
    fixed = {
        "PixelMeasuresSequence": [set_tags(Dataset(), {"PixelSpacing": list(spacing)})],
        "PlaneOrientationSequence": [set_tags(Dataset(), {"ImageOrientationPatient": list(orientation)})],
    }
    frames = []
    for position, slope, intercept in zip(positions, slopes, intercepts, strict=True):
        transform = {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "HU"}
        own = {
            "PlanePositionSequence": [set_tags(Dataset(), {"ImagePositionPatient": list(position)})],
            "PixelValueTransformationSequence": [set_tags(Dataset(), transform)],
        }
        frames.append(set_tags(Dataset(), own if shared_geometry else {**own, **fixed}))
    dataset.SharedFunctionalGroupsSequence = [set_tags(Dataset(), fixed if shared_geometry else {})]
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames = len(frames)
    add_pixels(dataset, stored).save_as(path, enforce_file_format=True)
    return path


def ras(volume, i, j, k):
    """RAS mm of a voxel of a Volume."""
    return (volume.ijk_to_ras @ torch.tensor([i, j, k, 1.0], dtype=torch.float64))[:3].tolist()


def random_axes(seed, handedness):
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    axes[:, 2] *= np.sign(np.linalg.det(axes)) * handedness
    return axes


def save_itk(path, array, spacing=(1, 1, 1), origin=(0, 0, 0), direction=None, **metadata):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection((np.eye(3) if direction is None else direction).ravel().tolist())
    for key, value in metadata.items():
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(path))
    return image
