"""The file of a trained network: safetensors, with everything that is needed to use it in the header as JSON.

The header's entry "DiffDRRSlicer" is an object: format, version, architecture, and what the training adds: target,
camera, ranges, frame, trained, software. Nothing in it is ever run.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from DiffDRRCore.errors import DiffDRRError, LearningError
from DiffDRRCore.files import finite, replacing
from DiffDRRCore.learning.network.pose_net import Architecture, PoseNet

ENTRY = "DiffDRRSlicer"
FORMAT = "pose network"
VERSION = 1


def write_model(path: str | Path, net: nn.Module, description: dict[str, Any]) -> None:
    """Write a `PoseNet`, whole or not at all; an old file stays until the new one is complete.

    Args:
        net: the network, on any device; compiled or wrapped for several GPUs as well.
        description: plain values for JSON; format, version, architecture and software come by themselves. Numbers that
            are not finite become null.

    Raises LearningError for weights that are not finite or values that are not plain, DiffDRRError where the file
    cannot be written.
    """
    net = plain_network(net)
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    _check_finite(path, tensors)
    own = {"format": FORMAT, "version": VERSION, "architecture": net.architecture.to_dict()}
    content = {**own, "software": software(), **description, **own}
    try:
        header = json.dumps(finite(content), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LearningError(f"Cannot write '{path}': its description is not plain values ({error}).") from error
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors_library().torch.save(tensors, {ENTRY: header}))


def read_model(path: str | Path) -> tuple[PoseNet, dict[str, Any]]:
    """(the network on the CPU, in evaluation mode, and its description) of a file of `write_model`.

    Raises LearningError for what is no such file, is damaged, comes from a newer version or has an unknown backbone.
    """
    content, tensors = _read(Path(path))
    try:
        net = PoseNet(Architecture.from_dict(content.get("architecture")), seed=0)
    except DiffDRRError as error:
        raise LearningError(f"Cannot use the network in '{path}': {error}") from error
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise LearningError(
            f"The network in '{path}' is damaged: its weights do not fit its architecture; train it again, or copy the "
            "file again."
        ) from error
    _check_finite(path, tensors)
    return net.eval(), content


def read_description(path: str | Path) -> dict[str, Any]:
    """The description alone, without the network. Raises LearningError as `read_model`."""
    return _read(Path(path), weights=False)[0]


def plain_network(net: nn.Module) -> PoseNet:
    """The `PoseNet` within what torch.compile or DistributedDataParallel made of it."""
    while not isinstance(net, PoseNet):
        inner = getattr(net, "_orig_mod", None) or getattr(net, "module", None)
        if inner is None:
            raise LearningError(f"A PoseNet was expected, not a {type(net).__name__}.")
        net = inner
    return net


def software() -> dict[str, str]:
    """Versions of what makes the network's numbers."""
    from importlib.metadata import PackageNotFoundError, version

    from DiffDRRCore import __version__

    versions = {"DiffDRRCore": __version__, "torch": str(torch.__version__)}
    with suppress(PackageNotFoundError):
        versions["monai"] = version("monai")
    return versions


def _read(path: Path, weights: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header's entry, checked for format and version, and the tensors."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise LearningError(f"Cannot read the network '{path}': {error.strerror or error}.") from error
    if _is_pickle(start, path.suffix.lower()):
        raise LearningError(
            f"'{path}' is a pickled checkpoint, which may run any program when it is opened, so it is not; give a "
            "network that was trained here (.safetensors)."
        )
    library = safetensors_library()
    try:
        with library.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(ENTRY)
            tensors = {} if header is None or not weights else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (library.SafetensorError, OSError, ValueError) as error:
        raise LearningError(
            f"'{path}' is not a network that was trained here, or it is damaged; copy it again ({error})."
        ) from error
    if header is None:
        raise LearningError(f"'{path}' holds no network that was trained here: it is a safetensors file of others.")
    return _checked(path, header), tensors


def _is_pickle(start: bytes, suffix: str) -> bool:
    """Of a file's first nine bytes: a zip archive of torch's, or a pickle. The ninth of safetensors is a brace."""
    begins_so = start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"))
    return start[8:] != b"{" and (begins_so or suffix in (".pth", ".pt", ".pkl", ".ckpt"))


def _checked(path: Path, header: str) -> dict[str, Any]:
    try:
        content = json.loads(header)
    except ValueError as error:
        raise LearningError(f"The network in '{path}' is damaged: its description is no JSON ({error}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise LearningError(f"'{path}' holds no network that finds poses.")
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise LearningError(f"The network in '{path}' is damaged: its version is {version!r}.")
    if version > VERSION:
        raise LearningError(
            f"The network in '{path}' was written by a newer DiffDRRSlicer (file version {version}, this one reads up "
            f"to {VERSION}): update DiffDRRSlicer, or train the network again."
        )
    return content


def _check_finite(path: str | Path, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise LearningError(f"The network of '{path}' is of no use: '{name}' has numbers that are not finite.")


def safetensors_library():
    """The package. Raises LearningError where it is not installed."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise LearningError("Networks need MONAI and safetensors: pip install monai safetensors.") from error
    return safetensors
