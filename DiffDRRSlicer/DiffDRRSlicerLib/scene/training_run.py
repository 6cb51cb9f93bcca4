"""A training in a process of its own: started, stopped, resumed and watched through the files in its folder.

The process needs no scene and no Slicer: it goes on when the module, the scene or Slicer are closed, and whoever knows
its folder finds it again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import DiffDRRCore
from DiffDRRCore.errors import LearningError
from DiffDRRCore.files import is_alive, replacing
from DiffDRRCore.learning.training.logs import read_state
from DiffDRRCore.learning.training.run_files import CHECKPOINT, MODEL, OPTIONS, STATE
from DiffDRRCore.learning.training.stopping import Stopper, request_stop
from DiffDRRSlicerLib.scene.errors import SceneError

CT, LABELS = "ct copy.nrrd", "ct copy.seg.nrrd"  # of the scene's; the latter holds the names, too
OUTPUT = "output.txt"  # what the process printed
_PROCESS = "process.json"  # who was started
_ENDED = ("stopped", "finished", "failed")
_ERROR = ": error: "  # before the sentence in which the command line says why it ends
_LINES, _TAIL = 5, 4096  # of the output that are shown; bytes that are read for them
_SILENT = 1800.0  # seconds after which a process that another Slicer started is taken for another one of its number

_processes: dict[Path, subprocess.Popen] = {}  # that this Slicer has started


@dataclass(frozen=True)
class RunState:
    """How a training stands.

    Attributes:
        status: "none" (nothing was started), "starting", "running", "stopped", "finished", "failed", or "lost" (the
            process ended without a word).
        step, steps: of the optimiser.  seconds, seconds_left: since the beginning, and to the end; None is unknown.
        loss: of the last step, or None.
        best: measures of the held-out images, of the best network so far.
        message: why it failed, what it printed last before it was lost, or what it does before the first step.
    """

    status: str
    step: int = 0
    steps: int = 0
    seconds: float | None = None
    seconds_left: float | None = None
    loss: float | None = None
    best: dict[str, Any] = field(default_factory=dict)
    message: str = ""

    @property
    def going(self) -> bool:
        """Whether its process is at work."""
        return self.status in ("starting", "running")

    @property
    def interrupted(self) -> bool:
        """Whether it ended before it was done."""
        return self.status in ("stopped", "failed", "lost")

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


class TrainingRun:
    """The training in a folder. Nothing is kept here but the path: make one whenever you have that."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()

    @property
    def exists(self) -> bool:
        """Whether the folder is one of a training."""
        try:
            return any((self.folder / name).is_file() for name in (STATE, _PROCESS, OPTIONS))
        except (OSError, ValueError):  # a name that no folder can have
            return False

    @property
    def model(self) -> Path:
        """The best network so far, a file that may not be there yet."""
        return self.folder / MODEL

    @property
    def checkpoint(self) -> Path:
        """What an interrupted training goes on from, a file that may not be there yet."""
        return self.folder / CHECKPOINT

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to go on from, and steps are left."""
        return self.checkpoint.is_file() and self.state.interrupted

    @property
    def state(self) -> RunState:
        """How it stands now. Raises SceneError where its files are damaged."""
        started = self._started()
        alive = self._is_alive(started, self._said() or {})
        said = self._said()  # after that: it may end between the two
        if said is None or ("before" in started and said.get("updated") == started["before"]):  # an earlier process's
            return RunState("starting") if alive else self._without_state(started) if started else RunState("none")
        status = said["status"] if said["status"] in _ENDED else "running" if alive else "lost"
        message = self._last_words(started) if status == "lost" else str(said.get("message") or "")
        return RunState(
            status,
            int(said.get("step") or 0),
            int(said.get("steps") or 0),
            said.get("seconds"),
            said.get("seconds_left"),
            said.get("loss"),
            dict(said.get("best") or {}),
            message,
        )

    def start(self) -> None:
        """Begin, in a process of its own. Raises SceneError where it cannot be started, or is at work already."""
        self._launch(["train", "--options", str(self.folder / OPTIONS), "--output", str(self.folder)])

    def resume(self) -> None:
        """Go on from the last checkpoint. Raises SceneError as `start`, and where there is none."""
        if not self.checkpoint.is_file():
            raise SceneError("This training has no checkpoint to go on from: start a new one.")
        self._launch(["restart", str(self.folder)])

    def stop(self) -> None:
        """Ask the process to end after its step; what it has learned is kept. Raises SceneError where nothing runs."""
        if not self.state.going:
            raise SceneError("There is no training at work in this folder.")
        try:
            request_stop(self.folder)
        except OSError as error:
            raise SceneError(f"The training cannot be stopped: {error.strerror or error}.") from error

    @property
    def clearable(self) -> bool:
        """Whether there is something that `clear` would remove."""
        try:
            return any(path.is_file() for path in self._spare)
        except (OSError, ValueError):  # a name that no folder can have
            return False

    def clear(self) -> None:
        """Remove the copies of the CT and its structures, and the checkpoint: it cannot be resumed then.

        The network, the log and the state stay. Raises SceneError while it is at work, and where a file cannot be
        removed.
        """
        if self.state.going:
            raise SceneError("The training in this folder is at work and needs its files: stop it first.")
        try:
            for path in self._spare:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise SceneError(f"'{path}' cannot be removed: {error.strerror or error}.") from error

    @property
    def _spare(self) -> list[Path]:
        """What only a training that goes on needs; the checkpoint last."""
        return [self.folder / CT, self.folder / LABELS, self.checkpoint]

    def _launch(self, arguments: list[str]) -> None:
        if self.state.going:
            raise SceneError("The training in this folder is at work already.")
        before = (self._said() or {}).get("updated", -1)
        try:
            Stopper(self.folder).forget()
            with (self.folder / OUTPUT).open("ab") as output:
                printed = output.seek(0, os.SEEK_END)
                process = _start([*command(), *arguments], self.folder, output)
        except OSError as error:
            raise SceneError(f"The training cannot be started: {error.strerror or error}.") from error
        _processes[self.folder] = process
        known = {"pid": process.pid, "started": time.time(), "before": before, "printed": printed}
        with replacing(self.folder / _PROCESS) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")

    def _is_alive(self, started: dict[str, Any], said: dict[str, Any]) -> bool:
        """By what is known of who was started, and of who wrote the state."""
        process = _processes.get(self.folder)
        if process is not None and process.poll() is None:
            return True
        heard = max(started.get("started", 0), said.get("updated", 0))
        numbers = {one.get("pid") for one in (started, said)}
        return time.time() - heard < _SILENT and any(_is_at_work(number) for number in numbers)

    def _started(self) -> dict[str, Any]:
        """Who was started, empty where nobody was."""
        path = self.folder / _PROCESS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # the last on Windows, while it is replaced
            return {}
        except (OSError, ValueError) as error:
            raise SceneError(f"'{path}' is damaged: {error}.") from error
        if not isinstance(content, dict):
            raise SceneError(f"'{path}' is damaged: it does not say who was started.")
        return content

    def _said(self) -> dict[str, Any] | None:
        """What the process wrote last of how it stands. Raises LearningError where that is damaged."""
        try:
            return read_state(self.folder)
        except LearningError as error:
            if isinstance(error.__cause__, (NotADirectoryError, PermissionError)):
                return None
            raise

    def _without_state(self, started: dict[str, Any]) -> RunState:
        """Of a process that ended before it told how it stands: options that cannot be, or a crash."""
        words = self._last_words(started)
        _, error, sentence = words.rpartition(_ERROR)
        return RunState("failed", message=sentence) if error else RunState("lost", message=words)

    def _last_words(self, started: dict[str, Any]) -> str:
        """What the process printed last; not what those before it did."""
        try:
            with (self.folder / OUTPUT).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - _TAIL, started.get("printed", 0)))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join([line for line in lines if line.strip()][-_LINES:])


def _is_at_work(number: Any) -> bool:
    """Whether there is a process of that number, which may be one that the module started before it was reloaded."""
    if not isinstance(number, int) or number <= 0:
        return False
    if os.name == "posix":
        try:
            if os.waitpid(number, os.WNOHANG)[0] == number:  # a child that has ended, and whom nobody has asked
                return False
        except ChildProcessError:
            pass
    return is_alive(number)


def command() -> list[str]:
    """Slicer's Python with DiffDRRCore's command line. Raises SceneError where there is no such Python."""
    return [python_executable(), "-m", "DiffDRRCore"]


def python_executable() -> str:
    """Slicer's console Python, which is on the path in Slicer, or the one that runs."""
    found = shutil.which("PythonSlicer")
    own = Path(sys.executable)
    beside = own.with_name("PythonSlicer" + own.suffix)
    if found or beside.is_file():
        return found or str(beside)
    if own.stem.lower().startswith("python"):
        return str(own)
    raise SceneError("PythonSlicer, which comes with Slicer, was not found; install Slicer again.")


def _start(arguments: list[str], folder: Path, output) -> subprocess.Popen:
    """A process that does not end with this one, and prints to a file."""
    package = Path(DiffDRRCore.__file__).resolve().parents[1]
    paths = [os.environ.get("PYTHONPATH"), str(package)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        apart = {"creationflags": flags}
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        **apart,
    )
