"""Turn a CT in DICOM into a NIfTI file: voxels in HU and grid (mm) exactly, as `convert ct` does.

Example:
  python -m DiffDRRCore dcm2nii dicom-folder ct.nii.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.cli import arguments, convert, output
from DiffDRRCore.errors import DiffDRRError

_SUFFIXES = (".nii", ".nii.gz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dcm2nii`."""
    parser.add_argument("input", type=Path, help="folder of one CT's slices, one slice of a series, or an Enhanced CT")
    parser.add_argument("output", type=Path, help=".nii.gz or .nii")
    parser.add_argument("--series", help="SeriesInstanceUID, where the folder holds several; an error lists them")
    parser.add_argument("--resample-uneven", action="store_true", help=convert.RESAMPLE_HELP)
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Convert, report."""
    if not options.output.name.lower().endswith(_SUFFIXES):
        raise DiffDRRError(f"'{options.output}' is no name of a NIfTI file: let it end in .nii.gz or .nii.")
    _check_dicom(options.input)
    convert.convert_ct(options.input, options.output, options.series, resample_uneven=options.resample_uneven)
    output.report({"output": str(options.output)}, options.json, [f"written: {options.output}"])


def _check_dicom(path: Path) -> None:
    """Of a file; what a folder holds is told by reading it. Raises DiffDRRError."""
    from pydicom.misc import is_dicom

    if path.is_file() and not is_dicom(path):
        raise DiffDRRError(f"'{path}' is no DICOM file; `convert ct` reads NIfTI, NRRD and MetaImage.")
