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
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Convert, report."""
    if not options.output.name.lower().endswith(_SUFFIXES):
        raise DiffDRRError(f"'{options.output}' is no name of a NIfTI file: let it end in .nii.gz or .nii.")
    convert.convert_ct(options.input, options.output, options.series)
    output.report({"output": str(options.output)}, options.json, [f"written: {options.output}"])
