"""What a training leaves in its folder, without learning anything: a stand-in for DiffDRRCore's `train` and `restart`.

It takes the same arguments, and refuses others. How long a step lasts and how it ends is said by a file `manner.json`
in the folder: {"pause": seconds, "end": "finished" | "failed" | "dead", "at": step, "reading": seconds of the CT}.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from pathlib import Path

COLUMNS = ("step", "seconds", "learning_rate", "loss", "ncc", "held_out_mm", "held_out_degrees")
MESSAGE = "The loss is not a number any more at step 3: try a lower learning rate."


def main(arguments: list[str]) -> int:
    """Train, or go on."""
    command, *rest = arguments
    if command == "restart":
        folder = Path(rest[0])
        options = json.loads((folder / "training.json").read_text())
        first = int((folder / "checkpoint.safetensors").read_text())
    else:
        assert command == "train" and rest[0] == "--options" and rest[2] == "--output" and len(rest) == 4, arguments
        path, folder = Path(rest[1]), Path(rest[3])
        options, first = json.loads(path.read_text()), 0
        assert path == folder / "training.json" and (folder / options["cts"][0]).is_file()
        (folder / "training.json").write_text(json.dumps(options))
    manner = folder / "manner.json"
    manner = json.loads(manner.read_text()) if manner.exists() else {}
    print(f"pid {os.getpid()}, parent {os.getppid()}", flush=True)
    return Run(folder, options["steps"], first, manner).train()


class Run:
    """The loop."""

    def __init__(self, folder, steps, first, manner):
        self.folder, self.steps, self.step, self.manner = folder, steps, first, manner
        self.began = time.time()
        self.best = None

    def train(self) -> int:
        self.tell("running", "reading the CTs")
        time.sleep(self.manner.get("reading", 0))
        mode = "a" if self.step else "w"
        with (self.folder / "log.csv").open(mode, newline="") as file:
            writer = csv.writer(file)
            if not self.step:
                writer.writerow(COLUMNS)
            while self.step < self.steps:
                time.sleep(self.manner.get("pause", 0.01))
                self.step += 1
                if self.step == self.manner.get("at"):
                    return self.end()
                look = self.step % 2 == 0
                writer.writerow(
                    [self.step, 0.1, 1e-3, 1 / self.step, 0.5, *((30 / self.step, 3 / self.step) if look else ("", ""))]
                )
                file.flush()
                if look:
                    self.best = {"step": self.step, "mm": 30 / self.step, "degrees": 3 / self.step}
                    (self.folder / "model.safetensors").write_text("a network")
                self.tell("running", seconds_left=(self.steps - self.step) * 0.5, loss=1 / self.step)
                if (self.folder / "stop").exists():
                    (self.folder / "stop").unlink()
                    (self.folder / "checkpoint.safetensors").write_text(str(self.step))
                    self.tell("stopped")
                    return 0
        self.tell("finished")
        return 0

    def end(self) -> int:
        (self.folder / "checkpoint.safetensors").write_text(str(self.step - 1))
        if self.manner["end"] == "failed":
            self.tell("failed", message=MESSAGE)
            return 1
        print("reading\n\nout of memory\nkilled", file=sys.stderr, flush=True)
        os._exit(137)

    def tell(self, status, message="", **more) -> None:
        content = {
            "status": status,
            "step": self.step,
            "steps": self.steps,
            "seconds": time.time() - self.began,
            "best": self.best,
            "message": message,
            **more,
            "pid": os.getpid(),
            "updated": time.time(),
        }
        temporary = self.folder / ".state.json"
        temporary.write_text(json.dumps(content))
        temporary.replace(self.folder / "state.json")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
