"""One step of learning: batches, losses, gradients, weights; all of it follows from options and the step's number."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from DiffDRRCore.errors import LearningError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.camera_file import camera_from_dict
from DiffDRRCore.learning.appearance.appearance import Appearance
from DiffDRRCore.learning.appearance.augmentation import Augmentation
from DiffDRRCore.learning.data.subject_files import Subjects
from DiffDRRCore.learning.data.subjects import Subject
from DiffDRRCore.learning.data.views import ViewSampler
from DiffDRRCore.learning.network.losses import PoseLosses
from DiffDRRCore.learning.network.model_file import read_model
from DiffDRRCore.learning.network.pose_net import Architecture, PoseNet
from DiffDRRCore.learning.network.targets import Target
from DiffDRRCore.learning.training.batches import Batch, batch
from DiffDRRCore.learning.training.distributed import World
from DiffDRRCore.learning.training.options import TrainingOptions

_SAMPLE = 512  # views that show how much the ranges vary
_HELD_OUT = 1_000_003  # added to the seed: views that are not trained on


class Learner:
    """A network and all that it learns by.

    Args:
        options: of the training.
        subjects: CTs, on the device that `world` says.
        world: the processes that learn together.

    Attributes:
        net: being trained.  average: the moving average of its weights, which is what is kept in the end.
        target: from its numbers to poses.  optimizer: Adam.

    Raises LearningError for options that do not go together, whatever reading an initial network raises.
    """

    def __init__(self, options: TrainingOptions, subjects: Subjects, world: World):
        self.options, self.subjects, self.world = options, subjects, world
        self.device = world.device(options.device)
        camera = camera_from_dict(dict(options.camera), "The camera")
        around = None if options.around is None else Pose(torch.tensor(options.around, dtype=torch.float64))
        self.sampler = ViewSampler.from_dict(options.views, camera, around, options.least_covered)
        self.appearance = Appearance.from_dict(options.appearance)
        self.augmentation = Augmentation.from_dict(options.augmentation)
        self.net, self.target, spread = self._started(camera)
        self.net.to(self.device)
        self.average = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.losses = PoseLosses(options.weights, spread, labels=self._labels(subjects[0]))
        if not options.weights.likelihood:
            self.net.deviation.requires_grad_(False)  # which nothing would teach
        # One pass over all weights; on GPUs Adam would keep its count of steps there.
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), options.learning_rate, fused=self.device.type == "cpu" or None
        )
        self._shared = world.shared(compiled(self.net) if options.compile else self.net, self.device)

    def learn(self, step: int) -> dict[str, float]:
        """Take step number `step`, from 1; the loss and its terms, means over the batches and the processes."""
        options, world = self.options, self.world
        rate = learning_rate(options, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for turn in range(options.accumulate):
            numbers = (options.seed, step, turn * world.size + world.rank)
            made = self._batch(self.subjects.chosen(*numbers), *numbers)
            if turn + 1 < options.accumulate:
                with world.without_averaging(self._shared):
                    parts.append(self._backward(made))
            else:
                parts.append(self._backward(made))
        if options.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), options.clip)
        self.optimizer.step()
        self._follow(step)
        names, numbers = list(parts[0]), torch.stack([torch.stack(list(part.values())) for part in parts]).mean(dim=0)
        found = dict(zip(names, world.average(numbers).tolist(), strict=True))
        if not math.isfinite(found["loss"]):
            raise LearningError(f"The loss is not a number any more at step {step}: try a lower learning rate.")
        return {**found, "learning_rate": rate}

    def held_out(self, subject: Subject, number: int) -> Batch:
        """Batch `number` of the views that are not trained on."""
        return self._batch(subject, self.options.seed + _HELD_OUT, number, 0)

    def _backward(self, made: Batch) -> dict[str, Tensor]:
        options, views, subject = self.options, made.views, made.subject
        with torch.autocast(self.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            outputs = self._shared(made.input)
        pose = self.target.decode(views.camera, outputs.rotation, outputs.offsets)
        world = subject.frame_to_world.to(self.device)
        losses = replace(self.losses, labels=self._labels(subject))(
            pose, views.pose, views.camera, outputs.log_deviation, subject.renderer, world, made.clean
        )
        (losses.total / options.accumulate).backward()
        return {"loss": losses.total.detach(), **losses.terms}

    def _batch(self, subject: Subject, *numbers: int) -> Batch:
        return batch(subject, self.sampler, self.appearance, self.augmentation, *numbers, count=self.options.batch)

    def _follow(self, step: int) -> None:
        """The average follows the network; at first faster, else it would hang on to where it began."""
        keep = min(self.options.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            own, other = list(self.average.parameters()), [value.detach() for value in self.net.parameters()]
            torch._foreach_lerp_(own, other, 1 - keep)

    def _started(self, camera: Camera) -> tuple[PoseNet, Target, list[float]]:
        """A new network, or that of the initial model; its target, and the spread of what the views show."""
        options = self.options
        architecture = Architecture(
            options.backbone, (camera.height, camera.width), options.parameterization, options.convention
        )
        views = self.sampler.sample(self.subjects, _SAMPLE, options.seed)
        target = Target.from_views(views.camera, views.pose, options.parameterization, options.convention)
        spread = target.spread_of(views.camera, views.pose)
        if options.initial is not None:
            net, description = read_model(options.initial)
            if net.architecture != architecture:
                raise LearningError(
                    f"The network '{options.initial}' is of another kind ({_words(net.architecture)}) than this "
                    f"training's ({_words(architecture)})."
                )
            return net, Target.from_dict(description.get("target")), spread
        return PoseNet(architecture, options.seed), target, spread

    def _labels(self, subject: Subject) -> tuple[int, ...]:
        """The numbers of the structures in this CT, as another may number them otherwise."""
        return subject.labels if self.options.weights.dice > 0 else ()


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Of step number `step`, from 1: a linear warm-up, then half a cosine that ends at zero after the last step."""
    if step <= options.warmup:
        return options.learning_rate * step / options.warmup
    passed = (step - 1 - options.warmup) / (options.steps - options.warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))


def compiled(net: nn.Module) -> nn.Module:
    """The network as torch.compile makes it. Raises LearningError where that does not work on this machine."""
    rows, columns = net.architecture.size
    example = torch.zeros(2, 1, rows, columns, device=next(net.parameters()).device)
    try:
        faster = torch.compile(net)
        with torch.no_grad():
            faster(example)
    except Exception as error:  # whatever a compiler can say
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LearningError(f"torch.compile does not work here ({reason}): leave it out.") from error
    return faster


def _words(architecture: Architecture) -> str:
    rows, columns = architecture.size
    return f"{architecture.backbone}, {rows} x {columns} pixels, {architecture.parameterization}"
