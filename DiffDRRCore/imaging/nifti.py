"""NIfTI-1 files (.nii, .nii.gz).

Read here rather than by ITK for three reasons: ITK fills what a truncated file lacks with zeros and says nothing, it
refuses sheared grids, and it does not give the label names that a header extension may hold.
"""

from __future__ import annotations

import gzip
import re
import warnings
from pathlib import Path

import numpy as np

from DiffDRRCore.errors import DiffDRRWarning, ReadError
from DiffDRRCore.imaging.image_files import Grid, check_declared_size, check_three_dimensions, reading

_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown (taken as mm), metre, millimetre, micrometre
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
_AGREE_MM = 0.05

_HEADER = np.dtype(
    [
        *(
            ("sizeof_hdr", "i4"),
            ("_a", "V36"),
            ("dim", "i2", 8),
            ("_b", "V14"),
            ("datatype", "i2"),
            ("bitpix", "i2"),
        ),
        *(("_c", "i2"), ("pixdim", "f4", 8), ("vox_offset", "f4"), ("scl_slope", "f4"), ("scl_inter", "f4")),
        *(("_d", "V3"), ("xyzt_units", "u1"), ("_e", "V128"), ("qform_code", "i2"), ("sform_code", "i2")),
        *(
            ("quaternion", "f4", 3),
            ("offset", "f4", 3),
            ("srow", "f4", (3, 4)),
            ("_f", "V16"),
            ("magic", "S4"),
        ),
    ]
)


def read_nifti(path: Path) -> Grid:
    """Read a 3D NIfTI-1 file: stored values times scl_slope plus scl_inter, the grid, and label names if there.

    The grid is the sform where it is the scanner's or the only one, else the qform, as in ITK and 3D Slicer.
    Raises ReadError; warns with DiffDRRWarning where the file has no position, or two that differ.
    """
    with reading(path), (gzip.open if _is_gzip(path) else open)(path, "rb") as stream:
        header = _parse_header(path, stream.read(_HEADER.itemsize))
        shape = _shape(path, header)
        stored = np.dtype(_TYPES[int(header["datatype"])]).newbyteorder(header.dtype["dim"].base.byteorder)
        size = int(np.prod(shape, dtype=object)) * stored.itemsize
        check_declared_size(path, size)
        extension = stream.read(_extension_size(path, header))
        data = stream.read(size)
        if len(data) < size:
            raise ReadError(f"'{path}' is truncated: it has {len(data)} of {size} bytes of voxels.")
        while stream.read(1 << 20):  # to the end, where gzip compares its checksum
            pass
        voxels = np.frombuffer(data, stored).reshape(shape)
        return Grid(_scaled(voxels, header), _grid(path, header, shape), _names(extension))


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _parse_header(path: Path, data: bytes) -> np.void:
    if len(data) == _HEADER.itemsize:
        for order in "<>":
            header = np.frombuffer(data, _HEADER.newbyteorder(order))[0]
            if header["sizeof_hdr"] == 348 and header["magic"] == b"n+1":
                return header
    raise ReadError(f"'{path}' is not a NIfTI-1 file, or its header is damaged.")


def _shape(path: Path, header: np.void) -> tuple[int, ...]:
    count = int(header["dim"][0])
    if not 1 <= count <= 7 or int(header["datatype"]) not in _TYPES:
        raise ReadError(f"'{path}' has a damaged header, or voxels that are not plain numbers.")
    sizes = [int(size) for size in header["dim"][1 : count + 1]]
    if min(sizes) < 0:
        raise ReadError(f"'{path}' has a damaged header: its size is {' x '.join(map(str, sizes))}.")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    shape = tuple(reversed(sizes))
    check_three_dimensions(path, shape)
    return shape


def _extension_size(path: Path, header: np.void) -> int:
    offset = float(header["vox_offset"])
    if not _HEADER.itemsize <= offset <= _HEADER.itemsize + (1 << 24):
        raise ReadError(f"'{path}' has a damaged header: its voxels start at byte {offset:g}.")
    return int(offset) - _HEADER.itemsize


def _scaled(stored: np.ndarray, header: np.void) -> np.ndarray:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    native = stored.astype(stored.dtype.newbyteorder("="))
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0 or (slope, intercept) == (1, 0):
        return native
    native = native if native.dtype.kind == "f" else native.astype(np.float32)
    return native * native.dtype.type(slope) + native.dtype.type(intercept)


def _grid(path: Path, header: np.void, shape: tuple[int, ...]) -> np.ndarray:
    scale = np.diag([*[_UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)] * 3, 1.0])
    sform, qform = _sform(header), _qform(header)
    if sform is None and qform is None:
        warnings.warn(f"'{path}' has no position (sform and qform are unset); it is put at 0.", DiffDRRWarning, 2)
        return scale @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*_pixel_sizes(header), 1.0])
    use_sform = qform is None or (sform is not None and int(header["sform_code"]) == _SCANNER)
    if sform is not None and qform is not None:
        _warn_of_disagreement(path, scale @ sform, scale @ qform, shape, "sform" if use_sform else "qform")
    return scale @ (sform if use_sform else qform)


def _sform(header: np.void) -> np.ndarray | None:
    if header["sform_code"] <= 0:
        return None
    return np.vstack([header["srow"].astype(float), [0, 0, 0, 1]])


def _qform(header: np.void) -> np.ndarray | None:
    """NIfTI method 2: rotation by the unit quaternion (a, b, c, d), a >= 0, its third axis turned by qfac."""
    if header["qform_code"] <= 0:
        return None
    b, c, d = header["quaternion"].astype(float)
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    affine = np.eye(4)
    affine[:3, :3] = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    handedness = -1.0 if header["pixdim"][0] < 0 else 1.0
    affine[:3, :3] *= _pixel_sizes(header) * [1.0, 1.0, handedness]
    affine[:3, 3] = header["offset"]
    return affine


def _pixel_sizes(header: np.void) -> np.ndarray:
    return np.abs(header["pixdim"][1:4].astype(float))


def _warn_of_disagreement(path: Path, sform: np.ndarray, qform: np.ndarray, shape: tuple, used: str) -> None:
    corners = np.array(np.meshgrid(*[[0, length - 1] for length in reversed(shape)], [1])).reshape(4, -1)
    distance = float(np.linalg.norm((sform - qform) @ corners, axis=0).max())
    if not distance <= _AGREE_MM:
        warnings.warn(
            f"The two positions in the header of '{path}' differ by up to {distance:.3g} mm; the {used} is used.",
            DiffDRRWarning,
            stacklevel=2,
        )


def _names(extension: bytes) -> dict[int, str]:
    """Label names from a Caret XML extension, as TotalSegmentator and Connectome Workbench write it."""
    labels = re.findall(rb'<Label\s[^>]*?Key="(\d{1,5})"[^>]*>\s*(?:<!\[CDATA\[)?([^\]<]+)', extension)
    return {int(key): name.decode("utf-8", "replace").strip() for key, name in labels}
