"""Checkpoints: everything that a training needs to go on as if it had never stopped, in one file.

The file is safetensors, with JSON in its header; nothing is pickled. There is no state of random numbers in it, because
those of step n depend on the seed and n alone (`batches`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from DiffDRRCore.errors import LearningError
from DiffDRRCore.files import finite, replacing
from DiffDRRCore.learning.network.model_file import safetensors_library

_FORMAT, _KEY = "DiffDRRSlicer training checkpoint", "DiffDRRSlicer"


def save_checkpoint(
    path: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, record: Mapping[str, Any]
) -> None:
    """Write at once or not at all; `record` is plain values. Raises DiffDRRError where that fails."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    tensors |= _optimizer_tensors(net, optimizer)
    header = {_KEY: json.dumps({"format": _FORMAT, "version": 1, **finite(dict(record))}, allow_nan=False)}
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors_library().torch.save(plain, header))


def read_record(path: Path) -> dict[str, Any]:
    """The record. Raises LearningError for a file that is missing, damaged, or of another kind."""
    return _read(path, tensors=False)[1]


def load_checkpoint(path: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill network, average and optimiser.

    Raises LearningError for a file that is missing or damaged, or of another network.
    """
    tensors, _ = _read(path)
    for prefix, module in (("net.", net), ("average.", average)):
        part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        try:
            module.load_state_dict(part)
        except RuntimeError as error:
            raise LearningError(f"The checkpoint '{path}' is of another network than this training's.") from error
    _fill_optimizer(net, optimizer, tensors)


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    library = safetensors_library()
    if not path.exists():
        raise LearningError(f"There is no checkpoint '{path}': the training has not come to its first one; start anew.")
    try:
        with library.safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            names = file.keys() if tensors else ()
            found = {name: file.get_tensor(name) for name in names}
    except (OSError, library.SafetensorError, ValueError) as error:
        raise LearningError(f"The checkpoint '{path}' is damaged: {error}.") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise LearningError(f"'{path}' is no checkpoint of a training.")
    return found, record


def _named_states(net: nn.Module, optimizer: torch.optim.Optimizer):
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def _optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer/{key}/{name}": torch.as_tensor(value)
        for name, parameter in _named_states(net, optimizer)
        for key, value in optimizer.state[parameter].items()
    }


def _fill_optimizer(net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    kept: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        kind, _, rest = path.partition("/")
        if kind == "optimizer":
            key, _, name = rest.partition("/")
            kept.setdefault(name, {})[key] = value
    for name, parameter in _named_states(net, optimizer):
        state = kept.get(name, {})
        # Adam keeps its count of steps on the CPU
        optimizer.state[parameter] = {
            key: value.clone() if value.ndim == 0 else value.to(parameter) for key, value in state.items()
        }
