"""The file of a network: exact, whole or not there, and what is no such file is told in one sentence."""

from __future__ import annotations

import errno
import json
import math
import pickle
import struct
from pathlib import Path

import pytest
import torch

from DiffDRRCore.errors import DiffDRRError, LearningError
from DiffDRRCore.learning.network.model_file import ENTRY, FORMAT, VERSION, plain_network, read_model, write_model
from DiffDRRCore.learning.network.pose_net import Architecture, PoseNet

pytest.importorskip("monai")
pytest.importorskip("safetensors")

ARCHITECTURE = Architecture("resnet10", (32, 40), "euler_angles", "ZXY", hidden=8)
DESCRIPTION = {
    "target": {"center": [0.1, 0.2, -0.3]},
    "frame": {"kind": "patient", "frame_to_world": [[1.0, 0.0, 0.0, 1 / 3]], "ct": "é"},
    "trained": {"steps": 5, "errors": [1.0, math.nan]},
}


@pytest.fixture(scope="module")
def net() -> PoseNet:
    net = PoseNet(ARCHITECTURE, seed=3)
    with torch.no_grad():
        net.rotation.weight.normal_()
    return net


@pytest.fixture
def path(tmp_path, net) -> Path:
    write_model(tmp_path / "model.safetensors", net, DESCRIPTION)
    return tmp_path / "model.safetensors"


def header(path: Path) -> tuple[dict, bytes]:
    """The file format by hand: the length of the header in eight bytes, the header as JSON, the numbers."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path: Path, content: dict, numbers: bytes) -> None:
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


def described(path: Path, **changes) -> None:
    content, numbers = header(path)
    entry = {**json.loads(content["__metadata__"][ENTRY]), **changes}
    content["__metadata__"][ENTRY] = json.dumps({key: value for key, value in entry.items() if value is not None})
    rewrite(path, content, numbers)


def test_the_network_comes_back_bit_by_bit(path, net):
    again, content = read_model(path)
    expected = net.state_dict()
    assert list(again.state_dict()) == list(expected)
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name])
        assert value.dtype == expected[name].dtype
    image = torch.randn(1, 1, 32, 40)
    for a, b in zip(again(image), net.eval()(image), strict=True):
        assert torch.equal(a, b)
    assert again.architecture == ARCHITECTURE
    assert not again.training
    assert content["frame"] == DESCRIPTION["frame"]
    assert content["trained"] == {"steps": 5, "errors": [1.0, None]}
    assert (content["format"], content["version"]) == (FORMAT, VERSION)
    assert content["software"]["torch"] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_header_is_as_documented(path, net):
    content, numbers = header(path)
    assert json.loads(content["__metadata__"][ENTRY])["architecture"] == ARCHITECTURE.to_dict()
    place = content["offsets.weight"]
    start, end = place["data_offsets"]
    assert numbers[start:end] == net.offsets.weight.detach().numpy().tobytes()
    assert set(content) == {"__metadata__", *net.state_dict()}


def test_wrapped_networks(tmp_path, net):
    compiled = torch.compile(net)
    assert plain_network(compiled) is net
    assert plain_network(torch.nn.DataParallel(compiled)) is net
    write_model(tmp_path / "a.safetensors", compiled, {})
    assert list(read_model(tmp_path / "a.safetensors")[0].state_dict()) == list(net.state_dict())
    with pytest.raises(LearningError, match="PoseNet was expected, not a Linear"):
        write_model(tmp_path / "b.safetensors", torch.nn.Linear(2, 2), {})
    assert not (tmp_path / "b.safetensors").exists()


class Program:
    """What a pickle can do when it is opened."""

    def __reduce__(self):
        return Path.touch, (Path("opened"),)


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Program()}, "a.pth")
    Path("a.safetensors").write_bytes(Path("a.pth").read_bytes())
    Path("old.pkl").write_bytes(pickle.dumps(Program(), protocol=2))
    Path("old.safetensors").write_bytes(pickle.dumps(Program(), protocol=4))
    Path("text.pt").write_text("0")
    for name in ("a.pth", "a.safetensors", "text.pt", "old.pkl", "old.safetensors"):
        with pytest.raises(LearningError, match="is a pickled checkpoint, which may run any program"):
            read_model(name)
    assert not Path("opened").exists()


def test_files_of_others(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "text.safetensors").write_text("a network, I swear")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("text", "empty"):
        with pytest.raises(LearningError, match=f"{name}.safetensors' is not a network that was trained here"):
            read_model(tmp_path / f"{name}.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors", {"format": "pt"})
    with pytest.raises(LearningError, match="safetensors file of others"):
        read_model(tmp_path / "foreign.safetensors")
    for name in ("nowhere.safetensors", "."):
        with pytest.raises(LearningError, match="Cannot read the network"):
            read_model(tmp_path / name)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x04"])
def test_a_length_that_begins_like_a_pickle(path, start):
    """The header's length comes first: padded with blanks to 67 MB or a kilobyte it still is no pickle."""
    content, numbers = header(path)
    length = int.from_bytes(start, "little")
    if length < 2**20:
        content = {"__metadata__": content["__metadata__"], "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}
        numbers = numbers[:4]
    text = json.dumps(content).encode().ljust(length)
    path.write_bytes(struct.pack("<Q", length) + text + numbers)
    if length < 2**20:
        with pytest.raises(LearningError, match="weights do not fit"):
            read_model(path)
    else:
        read_model(path)


@pytest.mark.parametrize("kept", [4, 100, 0.5, 0.999])
def test_a_file_that_was_cut_off(path, kept):
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 else int(kept * len(data))])
    with pytest.raises(LearningError, match="or it is damaged; copy it again"):
        read_model(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": VERSION + 1}, rf"written by a newer DiffDRRSlicer \(file version {VERSION + 1}, this one reads"),
        ({"version": "1"}, "version is '1'"),
        ({"version": None}, "version is None"),
        ({"format": "something else"}, "holds no network that finds poses"),
        ({"architecture": {**ARCHITECTURE.to_dict(), "backbone": "vit"}}, "Unknown backbone 'vit'; choose from"),
        ({"architecture": {**ARCHITECTURE.to_dict(), "size": [10**6, 10**6]}}, "32 to 1024 rows"),
        ({"architecture": {**ARCHITECTURE.to_dict(), "hidden": 9}}, "weights do not fit its architecture"),
        ({"architecture": None}, "Cannot use the network"),
        ({"architecture": [1]}, "Cannot use the network"),
    ],
)
def test_what_cannot_be_used(path, changes, message):
    described(path, **changes)
    with pytest.raises(LearningError, match=message) as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_description(path):
    content, numbers = header(path)
    for text, message in (("{", "is no JSON"), ("[1]", "holds no network that finds poses")):
        content["__metadata__"][ENTRY] = text
        rewrite(path, content, numbers)
        with pytest.raises(LearningError, match=message):
            read_model(path)


def test_a_missing_weight(path):
    content, numbers = header(path)
    content["offsets.other"] = content.pop("offsets.weight")
    rewrite(path, content, numbers)
    with pytest.raises(LearningError, match="weights do not fit its architecture"):
        read_model(path)


def test_a_full_disk_leaves_the_old_file(path, net, monkeypatch):
    old, write = path.read_bytes(), Path.write_bytes

    def full(self, data):
        write(self, data[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiffDRRError, match=r"Cannot write '.*model\.safetensors': No space left on device\."):
        write_model(path, net, {})
    assert path.read_bytes() == old
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_not_written(path):
    old = path.read_bytes()
    broken = PoseNet(ARCHITECTURE, seed=3)
    with torch.no_grad():
        broken.offsets.bias[1] = math.nan
    with pytest.raises(LearningError, match=r"'offsets\.bias' has numbers that are not finite"):
        write_model(path, broken, {})
    with pytest.raises(LearningError, match="description is not plain values"):
        write_model(path, PoseNet(ARCHITECTURE, seed=3), {"camera": torch.zeros(3)})
    assert path.read_bytes() == old


def test_weights_that_are_not_finite(path):
    content, numbers = header(path)
    start = content["offsets.bias"]["data_offsets"][0]
    rewrite(path, content, numbers[:start] + struct.pack("<f", math.inf) + numbers[start + 4 :])
    with pytest.raises(LearningError, match=r"'offsets\.bias' has numbers that are not finite"):
        read_model(path)
