"""`plastimatch drr`, exact (Siddon) on the CPU. Runs in the peers' environment."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


class Engine:
    """A command-line program: it reads the volume for each image and reports the time without reading itself."""

    def __init__(self, scene: Path, threads: int):
        """OMP_NUM_THREADS, which the client sets, rules the program's threads."""
        self.volume = str(scene / "attenuation.mha")
        self.program = shutil.which("plastimatch", path=str(Path(sys.executable).parent))
        if self.program is None:
            raise FileNotFoundError("the package has no plastimatch program for this system")

    def render(self, view: dict, save: str | None = None) -> dict:
        """Seconds of the ray tracing, as the program prints them: 'Total time' less 'I/O time'."""
        options = [f"--{name}={' '.join(map(_plain, values))}" for name, values in view["plastimatch"].items()]
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder) / "image"
            command = [self.program, "drr", *options, "--hu-conversion=none", "--output-format=raw"]
            done = subprocess.run(
                [*command, "--algorithm=exact", f"--output={prefix}", self.volume], capture_output=True, text=True
            )
            written = Path(f"{prefix}0000.raw")
            if done.returncode != 0 or not written.exists():
                raise RuntimeError(f"plastimatch drr: {(done.stderr or done.stdout).strip()[-200:]}")
            if save:
                np.save(save, np.fromfile(written, "<f4").reshape(view["height"], view["width"]))
        total, reading = (float(re.search(rf"{name} time: ([\d.e+-]+)", done.stdout)[1]) for name in ("Total", "I/O"))
        return {"seconds": total - reading}


def _plain(value: float) -> str:
    """A number without an exponent, and no negative zero, which the program cannot read."""
    return str(value) if isinstance(value, int) else f"{value + 0.0:.9f}"
