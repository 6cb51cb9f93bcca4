"""The network: where it starts, what it depends on, and that it can learn at all."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from DiffDRRCore import Camera, Pose
from DiffDRRCore.errors import DiffDRRError, LearningError
from DiffDRRCore.learning.network.pose_net import BACKBONES, Architecture, PoseNet
from DiffDRRCore.learning.network.targets import Target
from Testing.core.learning.scene import NAMES

pytest.importorskip("monai")

SMALL = Architecture("resnet10", (32, 40))
REFERENCE = [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]


def images(count: int = 3, size=(32, 40), seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(seed))


def stirred(net: PoseNet) -> PoseNet:
    """With heads that depend on the image, as after training."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for head in (net.rotation, net.offsets, net.deviation[-1]):
            head.weight.normal_(0, 0.1, generator=generator)
    return net


@pytest.mark.parametrize(("name", "convention"), NAMES)
def test_it_starts_at_the_middle_of_the_ranges(name, convention):
    """The reference pose by hand: the frame turned by REFERENCE, straight ahead, 0.5 pixels per mm."""
    net = PoseNet(Architecture("resnet10", (32, 32), name, convention, hidden=16), seed=1)
    target = Target(REFERENCE, (0.0, 0.0, math.log(0.5)), (0.1, 0.1, 0.2), name, convention)
    rotation, offsets, log_deviation = net(images(2, (32, 32)))
    pose = target.decode(Camera(32, 32, (10.0, 10.0), 1000.0), rotation, offsets)
    expected = torch.eye(4, dtype=torch.float64)
    expected[:3, :3] = torch.tensor(REFERENCE)
    expected[2, 3] = 200.0  # 100 pixels of focal length / 0.5
    torch.testing.assert_close(pose.matrix, Pose(expected).inverse().matrix.expand(2, 4, 4), rtol=0, atol=1e-4)
    assert log_deviation.shape == (2, 6)
    assert bool(log_deviation.isfinite().all())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones(backbone):
    net = stirred(PoseNet(Architecture(backbone, (48, 32)), seed=1))
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.Dropout)) for module in net.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in net.modules())
    batch = images(3, (48, 32))
    outputs = net(batch)
    assert [x.shape[1] for x in outputs] == [10, 3, 6]
    # one image's answer depends neither on the others nor on chance, nor on train() and eval()
    for n, alone in enumerate(net.eval()(batch[n : n + 1]) for n in range(3)):
        for both, single in zip(outputs, alone, strict=True):
            torch.testing.assert_close(both[n : n + 1], single, rtol=1e-3, atol=1e-4)
    assert float((outputs.offsets[0] - outputs.offsets[1]).detach().abs().max()) > 1e-2
    sum(x.square().sum() for x in net.train()(batch)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet-b0"])
def test_the_seed_makes_the_weights(backbone):
    architecture = Architecture(backbone, (32, 32))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (PoseNet(architecture, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)  # of torch's own generator nothing was used
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_bfloat16_is_for_the_backbone_alone():
    net = stirred(PoseNet(SMALL, seed=1))
    plain = net(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(images())
    for a, b in zip(plain, half, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)
    assert not torch.equal(plain.rotation, half.rotation)


def test_the_deviation_teaches_the_rest_nothing():
    net = stirred(PoseNet(SMALL, seed=1))
    net(images()).log_deviation.sum().backward()
    taught = {name.partition(".")[0] for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert taught == {"deviation"}


def test_channels_last_gives_the_same():
    net = stirred(PoseNet(SMALL, seed=1))
    plain = net(images())
    other = net.to(memory_format=torch.channels_last)(images().to(memory_format=torch.channels_last))
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_it_learns_where_things_are():
    """Squares at random places: their column and row, from 8 images, in 16 steps."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(2, 26, (8, 2), generator=generator)
    batch = torch.zeros(8, 1, 32, 32)
    for image, (row, column) in zip(batch, places.tolist(), strict=True):
        image[0, row : row + 5, column : column + 5] = 5.0
    wanted = (places - 14.0) / 7.0
    net = PoseNet(Architecture("resnet10", (32, 32)), seed=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(16):
        optimizer.zero_grad()
        loss = (net(batch).offsets[:, :2] - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.5
    assert losses[-1] < 0.05 * losses[0], losses


def test_an_architecture_as_json():
    architecture = Architecture("resnet34", [64, 96], "euler_angles", "ZXY", groups=4, hidden=32)
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture
    assert Architecture.from_dict({}) == Architecture()


def test_what_is_refused():
    with pytest.raises(LearningError, match="Unknown backbone 'resnet50'; choose from resnet10, resnet18"):
        Architecture("resnet50")
    with pytest.raises(LearningError, match="32 to 1024 rows"):
        Architecture(size=(8, 128))
    with pytest.raises(LearningError, match="32 to 1024 rows"):
        Architecture(size=(128,))
    with pytest.raises(LearningError, match="Unknown parameterization"):
        Architecture(parameterization="spin")
    with pytest.raises(DiffDRRError, match=r"architecture\.backbon: there is no 'backbon'; did you mean 'backbone'"):
        Architecture.from_dict({"backbon": "resnet18"})
    with pytest.raises(LearningError, match=r"takes images \[B, 1, 32, 40\], got \[1, 1, 32, 32\]"):
        PoseNet(SMALL, seed=0)(images(1, (32, 32)))
