"""Sequences: lag, and the order of the noises."""

import pytest
import torch
from torch.testing import assert_close

from DiffDRRCore import Camera
from DiffDRRCore.datasets.shapes import Box
from DiffDRRCore.physics import BeamObject, Detector, Effects, Exposure, Lag, Spectrum, simulate_sequence
from Testing.core.physics.scenes import FROM_BELOW, simulated, slab

PANEL = Camera.parallel_beam(256, 256, (0.5, 0.5), 1000.0)
KEEPS = 0.8


def test_lag_of_a_sequence():
    camera, poses = Camera(6, 6, (1.0, 1.0), 1000.0), [FROM_BELOW] * 4
    screen = BeamObject(Box((0, 0, 0), (200.0, 200.0, 5.0)), "steel")
    simulator = simulated(objects=[screen], effects=Effects(lag=Lag((0.2,), (0.5,), "dark")))
    frames = simulate_sequence(simulator, camera, poses, 1)
    dark = simulator.primary(camera, FROM_BELOW)
    for number, frame in enumerate(frames):
        assert_close(frame.counts, dark * (1 - 0.2 * 0.5 ** (number + 1)))
        assert frame.xray.meta["simulation"]["frame"] == number
    noisy = simulator.changed(effects=Effects(), exposure=Exposure(photons=1e4))
    one, two = (simulate_sequence(noisy, camera, poses, 5) for _ in range(2))
    assert all(torch.equal(a.counts, b.counts) for a, b in zip(one, two, strict=True))
    assert torch.equal(one[0].counts, noisy(camera, FROM_BELOW, 5).counts)
    assert not torch.equal(one[0].counts, one[1].counts)


def frames_of(exposure: Exposure, state: str, count: int) -> list[torch.Tensor]:
    lag = Effects(lag=Lag((1.0,), (KEEPS,), state))
    detector = Detector("photon_counting")
    beam = Spectrum.monochromatic(60.0)
    simulator = simulated(slab(1.0, -1000.0), beam, detector=detector, exposure=exposure, effects=lag)
    frames = simulate_sequence(simulator, PANEL, [FROM_BELOW] * count, 3)
    return [frame.counts.double() for frame in frames]


@pytest.mark.parametrize("state", ["steady", "dark"])
def test_the_noise_of_the_read_out_has_no_lag(state):
    # So much of it that the quanta, sqrt(100), do not count: 1e4 in every frame, and each frame has its own.
    frames = frames_of(Exposure(photons=100.0, electronic=1e4), state, 5)
    for frame in frames:
        assert float(frame.std()) == pytest.approx(1e4, rel=0.01)
    together = torch.corrcoef(torch.stack([frame.flatten() for frame in frames]))
    assert float((together - torch.eye(5)).abs().max()) < 0.02


@pytest.mark.parametrize("poisson", [False, True])
def test_the_noise_of_the_quanta_has_lag(poisson):
    """From the dark: s_k = sum over j of r^j (1 - r) x_(k - j), so mean N (1 - r^(k + 1)) and

    variance N (1 - r)^2 (1 - r^(2 k + 2)) / (1 - r^2); the electronic noise is added to it.
    """
    number, electronic = 1e4, 30.0
    frames = frames_of(Exposure(photons=number, electronic=electronic, poisson=poisson), "dark", 6)
    for k, frame in enumerate(frames):
        assert float(frame.mean()) == pytest.approx(number * (1 - KEEPS ** (k + 1)), rel=1e-3)
        quanta = number * (1 - KEEPS) ** 2 * (1 - KEEPS ** (2 * k + 2)) / (1 - KEEPS**2)
        assert float(frame.var()) == pytest.approx(quanta + electronic**2, rel=0.02)


def test_the_first_frame_of_a_steady_sequence_is_the_image_of_that_seed():
    exposure = Exposure(photons=1e3, electronic=20.0)
    lag = Effects(lag=Lag((0.3, 0.2), (0.5, 0.9)))
    simulator = simulated(slab(100.0), exposure=exposure, effects=lag, detector=Detector(bits=16, gain=0.1))
    camera = Camera(20, 20, (1.0, 1.0), 1000.0)
    first, *others = simulate_sequence(simulator, camera, [FROM_BELOW] * 3, 11)
    assert torch.equal(first.counts, simulator(camera, FROM_BELOW, 11).counts)
    assert not any(torch.equal(first.counts, other.counts) for other in others)
