"""What can only be measured in a fresh process: `python -m Testing.benchmarks.probe first-use|image|linearize CT`.

Prints one JSON line. "first-use": seconds that the first image (and the first linearisation) takes longer than the
second: compilation, or reading compiled code from disk. "image", "linearize": the largest resident memory in MB (10^6
bytes) during one 200 x 200 image, above what is held with the volume loaded and the kernels compiled.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from DiffDRRCore import CArm, Renderer, Volume
from Testing.benchmarks.timing import seconds_of, use_threads


def run(what: str, ct: Path, threads: int, integrator: str = "trilinear", **variables: str) -> dict:
    """The probe's answer, from a fresh process with these environment variables."""
    arguments = [what, str(ct), "--threads", str(threads), "--integrator", integrator]
    done = subprocess.run(
        [sys.executable, "-m", "Testing.benchmarks.probe", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **variables},
        cwd=Path(__file__).resolve().parents[2],
    )
    return json.loads(done.stdout.splitlines()[-1])


def first_use(ct: Path, threads: int, integrator: str) -> tuple[dict, dict]:
    """Two fresh processes after one another that share a cache of compiled code, empty at first."""
    with tempfile.TemporaryDirectory() as cache:
        return tuple(run("first-use", ct, threads, integrator, NUMBA_CACHE_DIR=cache) for _ in range(2))


def _measure_first_use(volume: Volume, integrator: str) -> dict:
    renderer = Renderer(volume, integrator)
    answer = {"backend": renderer.backend}
    for name, function in (("image", renderer), ("linearize", renderer.linearize)):
        first, second = (seconds_of(lambda f=function: f(*_view(volume))) for _ in range(2))
        answer[name] = first - second
    return answer


def _measure_memory(volume: Volume, name: str, integrator: str) -> dict:
    small = Volume(torch.full((16, 16, 16), 40.0), torch.diag(torch.tensor([20.0, 20.0, 20.0, 1.0])))
    _work(name, small, integrator)
    return {"megabytes": _peak(lambda: _work(name, volume, integrator))}


def _work(name: str, volume: Volume, integrator: str) -> None:
    renderer = Renderer(volume, integrator)
    (renderer if name == "image" else renderer.linearize)(*_view(volume))


def _view(volume: Volume):
    arm = CArm(1020.0, 850.0, volume.center)
    return arm.camera(200, 200, (2.0, 2.0)), arm.pose


def _peak(call) -> float | None:
    """MB above the memory held before, by Linux's own record of the highest; None on other systems."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    reset.write_text("5")  # VmHWM starts again at the present size
    before = _megabytes(status, "VmRSS")
    call()
    return _megabytes(status, "VmHWM") - before


def _megabytes(status: Path, name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e6


def main() -> None:
    """One measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["first-use", "image", "linearize"])
    parser.add_argument("ct", type=Path, help="CT file")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--integrator", default="trilinear", choices=["trilinear", "siddon"])
    options = parser.parse_args()
    use_threads(options.threads)
    volume = Volume.read(options.ct)
    volume.attenuation  # noqa: B018  computed once and kept: it belongs to the volume
    with torch.no_grad():
        if options.what == "first-use":
            answer = _measure_first_use(volume, options.integrator)
        else:
            answer = _measure_memory(volume, options.what, options.integrator)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
