"""How long the module takes to open: `python -m Testing.benchmarks.opening`.

Each round is a process of its own, with the test's stand-in for the Slicer application: the module file is imported,
its widget made from the .ui files, set up and entered, on an empty scene. Then the packages that it must not load are
looked for. Slicer's own widgets are stood in for by PySide6's, so that the figure is a proxy of Slicer's own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "DiffDRRCore", "numba", "scipy", "SimpleITK")
GOAL = 300.0  # ms


def once() -> None:
    """Open the module in this process; prints the ms and what was loaded that should not."""
    from Testing.panel import standin
    from Testing.panel.conftest import SlicerDouble

    kit = standin.install()
    app = SlicerDouble(kit, standin)
    app.process_events()
    began = time.perf_counter()
    app.make_widget()
    app.process_events()
    passed = (time.perf_counter() - began) * 1e3
    print(passed, *(name for name in HEAVY if name in sys.modules))
    app.clean()
    standin.uninstall(kit)


def main() -> None:
    """Open it in several processes and print the median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="processes; default: 9")
    parser.add_argument("--once", action="store_true", help="only one, in this process")
    options = parser.parse_args()
    if options.once:
        once()
        return
    path = os.pathsep.join([str(ROOT), str(ROOT / "DiffDRRSlicer")])
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": path}
    command = [sys.executable, "-m", "Testing.benchmarks.opening", "--once"]
    times = []
    for _ in range(options.rounds):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        ms, *loaded = done.stdout.split()
        assert not loaded, f"opening the module loaded {loaded}"
        times.append(float(ms))
    print(f"opening the module: median {median(times):.0f} ms, longest {max(times):.0f} ms (goal {GOAL:.0f} ms)")


if __name__ == "__main__":
    main()
