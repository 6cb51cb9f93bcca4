"""The network: an X-ray image in, the numbers of a `Target` and their uncertainty out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from DiffDRRCore.errors import LearningError
from DiffDRRCore.learning.network.targets import (
    DEFAULT_PARAMETERIZATION,
    check_parameterization,
    rotation_size,
    rotation_to_numbers,
)
from DiffDRRCore.values import Key, optional, section, several, text, whole

_LAYERS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
_CHANNELS = {"resnet10": 16}  # of the first layers, a quarter of the others': it is the one for processors
_MANY_CHANNELS = 64
BACKBONES = (*_LAYERS, "efficientnet-b0")
SIZES = (32, 1024)  # pixels, least and most
_MAP = 4  # the last feature map has at most so many rows and columns, which say where things are
# Of images with so many pixels a side from which on the first layer, and the pooling after it, halve them: smaller ones
# would leave a last feature map of 2 x 2, and what moves by less than a pixel (depth, above all) is learned late.
_HALVED, _HALVED_AGAIN = 64, 128
# A first guess of the uncertainty, before training: standard deviations in rad and mm.
_ROTATION_DEVIATION, _TRANSLATION_DEVIATION = 0.1, 20.0
# What does not vary in training has no error there, and must not be told as certain for ever: rad and mm.
_LEAST_ROTATION, _LEAST_TRANSLATION = 1e-3, 0.1


class Outputs(NamedTuple):
    """What a network says of a batch of images.

    `rotation` [B, n] and `offsets` [B, 3] are for `Target.decode`. `log_deviation` [B, 6] is the logarithm of the
    standard deviations of the `losses.pose_error` of the decoded pose: three rotations in rad, then three translations
    in mm, in the camera's axes about the frame's origin.
    """

    rotation: Tensor
    offsets: Tensor
    log_deviation: Tensor


@dataclass(frozen=True)
class Architecture:
    """What a network is made of; plain values.

    Args:
        backbone: one of `BACKBONES`, as MONAI has them, for one channel and without random layers (dropout); resnet10
            has a quarter of the channels, for training on a CPU.
        size: (rows, columns) of its images.
        parameterization, convention: of the relative rotation, as for `Target`.
        groups: of the group normalisation; fewer where a layer's channels cannot be divided by it.
        hidden: numbers between the backbone and the heads.

    Raises LearningError for an unknown backbone or parameterization, or sizes out of range.
    """

    backbone: str = "resnet18"
    size: Sequence[int] = (128, 128)
    parameterization: str = DEFAULT_PARAMETERIZATION
    convention: str | None = None
    groups: int = 8
    hidden: int = 256

    def __post_init__(self):
        if self.backbone not in BACKBONES:
            raise LearningError(f"Unknown backbone {self.backbone!r}; choose from {', '.join(BACKBONES)}.")
        object.__setattr__(self, "size", tuple(self.size))
        whole_numbers = all(isinstance(n, int) for n in self.size)
        if len(self.size) != 2 or not whole_numbers or min(self.size) < SIZES[0] or max(self.size) > SIZES[1]:
            raise LearningError(
                f"A network's images have {SIZES[0]} to {SIZES[1]} rows and columns, not {list(self.size)}."
            )
        if not (1 <= self.groups <= 64 and 1 <= self.hidden <= 4096):
            raise LearningError(f"{self.groups} groups or {self.hidden} hidden numbers are out of the question.")
        check_parameterization(self.parameterization, self.convention)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, content: Any, where: str = "architecture") -> Architecture:
        """The inverse of `to_dict`. Raises DiffDRRError that names the place for what does not fit."""
        return cls(**section(where, content, _KEYS))


_KEYS = {
    "backbone": Key(text, "resnet18"),
    "size": Key(several(whole(1), count=2), (128, 128)),
    "parameterization": Key(text, DEFAULT_PARAMETERIZATION),
    "convention": Key(optional(text), None),
    "groups": Key(whole(1), 8),
    "hidden": Key(whole(1), 256),
}


class PoseNet(nn.Module):
    """Backbone, one hidden layer, and three linear heads.

    Before training it says the middle of the training ranges (the reference rotation, offsets zero) for any image. The
    backbone may run in bfloat16 (autocast); the rest is float32. Training needs no random numbers beyond the first
    weights.

    Args:
        architecture: what it is made of.
        seed: of the first weights; None takes torch's own generator.

    Raises LearningError where MONAI is not installed.
    """

    def __init__(self, architecture: Architecture, seed: int | None = None):
        super().__init__()
        self.architecture = architecture
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
            self._build()

    def _build(self) -> None:
        architecture = self.architecture
        self.backbone = _backbone(architecture)
        with torch.no_grad():
            features = self.backbone(torch.zeros(1, 1, *architecture.size)).shape[1]
        hidden, count = architecture.hidden, rotation_size(architecture.parameterization)
        self.hidden = nn.Sequential(nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.rotation = nn.Linear(hidden, count)
        self.offsets = nn.Linear(hidden, 3)
        self.deviation = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 6))
        none = rotation_to_numbers(
            torch.eye(3, dtype=torch.float64), architecture.parameterization, architecture.convention
        )
        guess = [math.log(_ROTATION_DEVIATION)] * 3 + [math.log(_TRANSLATION_DEVIATION)] * 3
        _start_at(self.rotation, none.flatten().tolist())
        _start_at(self.offsets, [0.0, 0.0, 0.0])
        _start_at(self.deviation[-1], guess)
        least = torch.tensor([_LEAST_ROTATION] * 3 + [_LEAST_TRANSLATION] * 3).log()
        self.register_buffer("least", least, persistent=False)

    def forward(self, image: Tensor) -> Outputs:
        """Of images [B, 1, H, W], standardized. Raises LearningError for images of another shape."""
        rows, columns = self.architecture.size
        if image.ndim != 4 or tuple(image.shape[1:]) != (1, rows, columns):
            raise LearningError(f"The network takes images [B, 1, {rows}, {columns}], got {list(image.shape)}.")
        features = self.backbone(image)
        with torch.autocast(device_type=image.device.type, enabled=False):
            hidden = self.hidden(features.to(self.rotation.weight.dtype))
            # Learning how sure it is must not change what it says: the deviation's head has no part in the rest.
            deviation = self.deviation(hidden.detach())
            return Outputs(self.rotation(hidden), self.offsets(hidden), torch.maximum(deviation, self.least))


def _start_at(layer: nn.Linear, values: Sequence[float]) -> None:
    """Let the layer say `values`, whatever it is given."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(values))


def _backbone(architecture: Architecture) -> nn.Module:
    """[B, 1, H, W] to features [B, n]."""
    try:
        from monai.networks.nets import EfficientNetBN, ResNet
    except ImportError as error:
        raise LearningError("Networks need MONAI and safetensors: pip install monai safetensors.") from error
    if architecture.backbone in _LAYERS:
        channels = _CHANNELS.get(architecture.backbone, _MANY_CHANNELS)
        net = ResNet(
            "basic",
            list(_LAYERS[architecture.backbone]),
            [channels * factor for factor in (1, 2, 4, 8)],
            spatial_dims=2,
            n_input_channels=1,
            conv1_t_stride=1 if max(architecture.size) < _HALVED else 2,
            no_max_pool=max(architecture.size) < _HALVED_AGAIN,
            feed_forward=False,
            bias_downsample=False,
        )
        net.avgpool = _pooling(net, "avgpool", architecture.size)
    else:
        net = EfficientNetBN(architecture.backbone, pretrained=False, spatial_dims=2, in_channels=1)
        net.set_swish(memory_efficient=False)
        net._dropout, net._fc = nn.Identity(), nn.Identity()
        for module in net.modules():
            if hasattr(module, "drop_connect_rate"):
                module.drop_connect_rate = 0.0
        net._avg_pooling = _pooling(net, "_avg_pooling", architecture.size)
    _normalise_by_groups(net, architecture.groups)
    return net


def _pooling(net: nn.Module, name: str, size: Sequence[int]) -> nn.Module:
    """Means over cells of the last feature map, at most _MAP x _MAP of them, as one vector."""
    shape: list[int] = []
    hook = getattr(net, name).register_forward_pre_hook(lambda _, inputs: shape.extend(inputs[0].shape[-2:]))
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, 1, *size))
    net.train(training)
    hook.remove()
    # AvgPool2d, as the gradient of AdaptiveAvgPool2d is not deterministic on CUDA.
    cell = [math.ceil(length / _MAP) for length in shape]
    return nn.Sequential(nn.AvgPool2d(cell, ceil_mode=True), nn.Flatten())


def _normalise_by_groups(net: nn.Module, groups: int) -> None:
    """Replace batch normalisation, in place: MONAI's ResNet keeps it in its blocks whatever `norm` says."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                count = math.gcd(groups, child.num_features)
                setattr(module, name, nn.GroupNorm(count, child.num_features))
