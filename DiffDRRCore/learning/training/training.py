"""Training: the loop that a command, a script and a panel all drive, and the folder that it leaves.

The folder of a run holds

    training.json           the options
    log.csv                 a row a step: loss, its terms, learning rate, errors of the held-out views
    state.json              how it stands: status (running, stopped, finished, failed), step, steps, seconds_left, ...
    checkpoint.safetensors  everything to go on from, in the middle of a training
    model.safetensors       the best network so far, by the held-out views: what `PoseModel.read` opens
    tensorboard/            events, where asked for

A file `stop` in it ends the training after its step; it goes on with `Training.resume`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from DiffDRRCore.errors import DiffDRRError, LearningError
from DiffDRRCore.files import check_folder, locked, replacing
from DiffDRRCore.learning.data.fingerprints import same_ct
from DiffDRRCore.learning.data.subject_files import read_subjects
from DiffDRRCore.learning.network.model_file import write_model
from DiffDRRCore.learning.training import checkpoints
from DiffDRRCore.learning.training.distributed import World, joined
from DiffDRRCore.learning.training.learner import Learner
from DiffDRRCore.learning.training.logs import Events, Log, write_state
from DiffDRRCore.learning.training.options import TrainingOptions
from DiffDRRCore.learning.training.run_files import CHECKPOINT, FORMAT, MODEL, OPTIONS
from DiffDRRCore.learning.training.stopping import Stopper, stopping_on_signals
from DiffDRRCore.learning.training.validation import Validation, calibrated, held_out, validate

_STATE_EVERY = 1.0  # seconds
_GPU_FULL = "The GPU's memory is full: take a smaller batch and accumulate more of them, or smaller images."
_FIRST = 5  # steps whose speed says nothing of the others'
Progress = Callable[["TrainingStep"], None]


@dataclass(frozen=True)
class TrainingStep:
    """A step: its number, of how many, what it cost, and the errors of held-out views where these were looked at."""

    step: int
    steps: int
    seconds: float
    seconds_left: float | None
    loss: float
    terms: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    validation: Validation | None = None


class Training:
    """A training in a folder.

    Args:
        options: what to train.
        folder: of the run, which holds nothing of another one.
        world: the processes that learn together.

    Attributes:
        step: the last one that was taken.  best: {step, mm, ...} of the model that is kept, or None.

    Raises LearningError for options that do not go together and a folder that holds another training, DiffDRRError
    where it cannot be written to, whatever reading the CTs raises.
    """

    def __init__(
        self,
        options: TrainingOptions,
        folder: str | Path,
        world: World = World(),  # noqa: B008 - frozen
        stopper: Stopper | None = None,
    ):
        self._begin(options, Path(folder), world, stopper, None)

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        world: World = World(),  # noqa: B008 - frozen
        stopper: Stopper | None = None,
        **changes,
    ) -> Training:
        """A training as its last checkpoint has it; from there, all steps are the same as without the interruption.

        Args:
            changes: of the options: steps (how many there are in all, and with them the learning rate of those to
                come), device, threads.

        Raises LearningError where there is nothing to go on from, or nothing left to do, and where the CT has changed.
        """
        return cls._resumed(read_options(folder).changed(**changes), folder, world, stopper)

    @classmethod
    def _resumed(cls, options: TrainingOptions, folder: str | Path, world: World, stopper: Stopper | None) -> Training:
        """With these options, as `resume`."""
        record = checkpoints.read_record(Path(folder) / CHECKPOINT)
        if record["step"] >= options.steps:
            raise LearningError(
                f"The training in '{folder}' has finished its {options.steps} steps; to go on, ask for more in all: "
                f"restart --steps N with N above {record['step']}."
            )
        training = cls.__new__(cls)
        training._begin(options, Path(folder), world, stopper, record)
        return training

    def _begin(self, options: TrainingOptions, folder: Path, world: World, stopper, record: dict | None) -> None:
        self.options, self.folder, self.world = options, folder, world
        self.step, self.best, self._bad, self._spent = 0, None, 0, 0.0
        self._views = None
        self.stopper = Stopper(folder) if stopper is None else stopper
        check_folder(folder)
        if world.is_first:
            self._claim(resuming=record is not None)
            self.stopper.forget()
        self.tell("running", "reading the CTs")
        try:
            if options.threads is not None:
                torch.set_num_threads(options.threads)
            self.subjects = read_subjects(options, world.device(options.device))
            self.learner = Learner(options, self.subjects, world)
            if record is not None:
                self._go_on(record)
        except Exception as error:
            self.tell_failure(error)
            raise

    def _go_on(self, record: dict) -> None:
        learner, patience = self.learner, self.options.patience
        before, now = record["ct"], self._only_ct()
        if (before is None) != (now is None) or (now is not None and not same_ct(before, now)):
            raise LearningError(f"The CT is not the one that the training in '{self.folder}' began with.")
        checkpoints.load_checkpoint(self.folder / CHECKPOINT, learner.net, learner.average, learner.optimizer)
        self.step, self.best, self._spent = record["step"], record["best"], record["seconds"]
        ended = patience is not None and record["bad"] >= patience  # a person asks for more patience
        self._bad = 0 if ended else record["bad"]

    def steps(self) -> Generator[TrainingStep, None, None]:
        """Take the steps that are left, one a time; the folder is right whenever it stops.

        Raises LearningError where the loss is not a number any more, DiffDRRError where a file cannot be written.
        """
        with self._logged() as log:
            if self.world.any(self.stopper.asked, self.learner.device):
                return
            began, first = time.perf_counter() - self._spent, self.step
            while self.step < self.options.steps:
                found = self.learner.learn(self.step + 1)
                self.step += 1
                rate = found.pop("learning_rate")
                validation = self._validated()
                self._spent = time.perf_counter() - began
                left = self._left(first)
                done = TrainingStep(
                    *(self.step, self.options.steps, self._spent, left), found.pop("loss"), found, rate, validation
                )
                self._record(log, done)
                ended = self._ended()
                if ended or self.step % self.options.checkpoint_every == 0:
                    self.save()
                yield done
                if ended:
                    return

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        patience = self.options.patience
        return self.step >= self.options.steps or (patience is not None and self._bad >= patience)

    def save(self) -> None:
        """Write the checkpoint. Raises DiffDRRError where that fails; the one before stays."""
        if self.world.is_first:
            learner = self.learner
            record = {"step": self.step, "best": self.best, "bad": self._bad, "seconds": self._spent}
            record["ct"] = self._only_ct()
            path = self.folder / CHECKPOINT
            checkpoints.save_checkpoint(path, learner.net, learner.average, learner.optimizer, record)

    def tell(self, status: str, message: str = "", **more) -> None:
        """Write state.json."""
        if self.world.is_first:
            own = {"status": status, "step": self.step, "steps": self.options.steps, "seconds": self._spent}
            write_state(self.folder, **own, best=self.best, message=message, **more)

    def tell_failure(self, error: BaseException) -> None:
        """Write state.json as well as it can be, as the disk may be full."""
        message = str(error).strip() or type(error).__name__
        with suppress(DiffDRRError):
            self.tell("failed", message.splitlines()[0])

    def _claim(self, resuming: bool) -> None:
        """Write the options, where no other training would be lost."""
        there = [name for name in (CHECKPOINT, MODEL) if (self.folder / name).exists()]
        if there and not resuming:
            raise LearningError(
                f"The folder '{self.folder}' holds a training already ({there[0]}): go on with it (restart), or choose "
                "a new folder."
            )
        content = {"format": FORMAT, "version": 1, **self.options.to_dict()}
        with replacing(self.folder / OPTIONS) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _only_ct(self):
        """The fingerprint of the CT, where there is one only."""
        return self.subjects[0].fingerprint if len(self.subjects) == 1 else None

    @contextmanager
    def _logged(self):
        """The log and the events of the first process; None in the others."""
        if not self.world.is_first:
            yield None
            return
        options = self.options
        terms = [name for name, weight in vars(options.weights).items() if weight]
        columns = ["step", "seconds", "learning_rate", "loss", *terms, *(f"held_out_{name}" for name in _ERRORS)]
        log = Log(self.folder, columns, self.step)
        events = Events(self.folder, options.tensorboard, options.wandb, options.to_dict(), self.step)
        self._told = 0.0
        try:
            yield log, events
        finally:
            log.close()
            events.close()

    def _record(self, log, done: TrainingStep) -> None:
        if log is None:
            return
        errors = {} if done.validation is None else done.validation.to_dict()
        row = {"learning_rate": done.learning_rate, "loss": done.loss, **done.terms}
        row |= {f"held_out_{name}": value for name, value in errors.items()}
        table, events = log
        table.append({"step": done.step, "seconds": done.seconds, **row})
        events.append(done.step, row)
        if time.monotonic() - self._told > _STATE_EVERY or errors:
            self._told = time.monotonic()
            self.tell("running", seconds_left=done.seconds_left, loss=done.loss)

    def _validated(self) -> Validation | None:
        """Look at the held-out views when it is time, and keep the model where it is the best so far."""
        options = self.options
        if not self.world.is_first or not (self.step % options.validate_every == 0 or self.step == options.steps):
            return None
        if self._views is None:
            self._views = held_out(self.learner.held_out, self.subjects, options.validation_views)
        found = validate(self.learner.average, self.learner.target, self._views)
        if self.best is None or found.mm < self.best["mm"]:
            self.best, self._bad = {"step": self.step, **found.to_dict()}, 0
            net = calibrated(self.learner.average, self.learner.target, self._views)
            write_model(self.folder / MODEL, net, self.description())
        else:
            self._bad += 1
        return found

    def description(self) -> dict:
        """What the model's file says of it beside the network."""
        subject, options = self.subjects[0], self.options
        patient = len(self.subjects) == 1 and not options.warps
        frame = {"kind": "patient" if patient else "template" if options.warps else "own_center", "ct": self._only_ct()}
        if patient:
            frame["frame_to_world"] = subject.frame_to_world.matrix.tolist()
        return {
            "target": self.learner.target.to_dict(),
            "camera": dict(options.camera),
            "ranges": dict(options.views),
            "frame": frame,
            "trained": {"options": options.without_patients(), **(self.best or {})},
        }

    def _ended(self) -> bool:
        """Whether this was the last step: all of them, no progress, or somebody asked for it. The same everywhere."""
        return self.world.any(self.finished or self.stopper.asked, self.learner.device)

    def _left(self, first: int) -> float | None:
        """Seconds, from the speed since `steps` began."""
        taken = self.step - first
        if taken == _FIRST:
            self._paced = (self.step, time.perf_counter())
        if taken <= _FIRST:
            return None
        step, then = self._paced
        return (time.perf_counter() - then) / (self.step - step) * (self.options.steps - self.step)


_ERRORS = ("mm", "mm_90", "degrees", "center_mm")


def read_options(folder: str | Path) -> TrainingOptions:
    """The options of a run. Raises LearningError where the folder holds none, ReadError where they are damaged."""
    path = Path(folder) / OPTIONS
    if not path.exists():
        raise LearningError(f"There is no training in '{folder}'.")
    return TrainingOptions.read(path)


def train(options: TrainingOptions | None, folder: str | Path, progress: Progress | None = None, **changes) -> Training:
    """Train to the end, or until it is stopped: by Ctrl-C, SIGTERM, or a file `stop` in the folder.

    Args:
        options: what to train; None goes on with what the folder holds.
        progress: called with each `TrainingStep`.
        changes: of a training that goes on, as of `Training.resume`.

    Returns the `Training`; `finished` says whether it came to its end. Under torchrun, all its processes call it.
    Raises as `Training`, and DiffDRRError where another process trains in the folder. state.json says why it ended.
    """
    folder = Path(folder)
    going_on, stopper = options is None, Stopper(folder)
    if going_on:
        options = read_options(folder).changed(**changes)
    with joined(options.device) as world, _alone(folder, world), stopping_on_signals(stopper):
        begin = Training._resumed if going_on else Training
        training = begin(options, folder, world, stopper)
        try:
            for step in training.steps():
                if progress is not None and world.is_first:
                    progress(step)
        except torch.cuda.OutOfMemoryError as error:
            full = LearningError(_GPU_FULL)
            training.tell_failure(full)
            raise full from error
        except BaseException as error:
            training.tell_failure(error)
            raise
        training.tell("finished" if training.finished else "stopped")
        return training


@contextmanager
def _alone(folder: Path, world: World):
    if not world.is_first:
        yield
        return
    with locked(folder):
        yield
