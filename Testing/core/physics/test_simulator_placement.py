"""Sources and detectors in the patient."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, DiffDRRError, DiffDRRWarning, Volume
from DiffDRRCore.datasets.shapes import Box
from DiffDRRCore.physics import BeamObject, Simulator, decompose
from DiffDRRCore.physics.simulation.placement import inside
from Testing.core import samples
from Testing.core.physics.scenes import simulated
from Testing.core.physics.solids import at
from Testing.core.rendering.reference import grid

AIR, LUNG = -1000.0, -850.0
SMALL, WIDE = Camera(4, 4, (1.0, 1.0), 1000.0), Camera(200, 200, (5.0, 5.0), 1000.0)


def thorax(step: float = 10.0) -> Volume:
    """An elliptic cylinder along z, 300 x 200 mm, cut at both ends of the CT, of two lungs and air about it; an arm."""
    z, y, x = torch.meshgrid(*(torch.arange(-190.0, 191.0, step) for _ in range(3)), indexing="ij")
    hu = torch.full(z.shape, AIR)
    hu[(x / 150) ** 2 + (y / 100) ** 2 < 1] = 30.0
    for side in (-1, 1):
        hu[((x - 70 * side) / 45) ** 2 + (y / 65) ** 2 < 1] = LUNG
    hu[(x - 180) ** 2 + y**2 < 15**2] = 30.0
    return Volume(hu, grid(step, hu.shape))


@cache
def chest() -> Simulator:
    return simulated(thorax())


PLACES = [
    ((0.0, 0.0, 0.0), True),  # spine
    ((70.0, 0.0, 0.0), True),  # the middle of a lung
    ((-70.0, 50.0, 180.0), True),  # a lung at the end of the CT
    ((0.0, 150.0, 0.0), False),  # in front
    ((160.0, 0.0, 0.0), False),  # between arm and chest: tissue at both sides along one axis
    ((-170.0, 120.0, 150.0), False),
    ((0.0, 0.0, 195.5), False),  # out of the CT
    ((0.0, 0.0, 900.0), False),
]


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_inside(turned):
    """The named places, and random ones: these are inside where they are in the body's ellipse."""
    volume, rng = thorax(), np.random.default_rng(4)
    points = torch.tensor([place for place, _ in PLACES], dtype=torch.float64)
    many = torch.as_tensor(rng.uniform(-185.0, 185.0, (500, 3)))
    radius = ((many[:, 0] / 150).square() + (many[:, 1] / 100).square()).sqrt()
    many, radius = many[(radius - 1).abs() > 0.15], radius[(radius - 1).abs() > 0.15]
    off_arm = (many[:, 0] - 180).square() + many[:, 1].square() > 30**2
    if turned:
        turn = torch.eye(4, dtype=torch.float64)
        turn[:3, :3] = torch.as_tensor(samples.rotation(rng))
        turn[:3, 3] = torch.tensor([12.0, -40.0, 300.0])
        volume = Volume(volume.hu, turn @ volume.ijk_to_ras)
        points, many = (one @ turn[:3, :3].T + turn[:3, 3] for one in (points, many))
    composition = decompose(volume)
    assert inside(composition, points).tolist() == [wanted for _, wanted in PLACES]
    found = inside(composition, many)
    assert torch.equal(found[off_arm], (radius < 1)[off_arm])
    assert 50 < int(found.sum()) < 400


@pytest.mark.parametrize("place", [place for place, within in PLACES if within])
def test_a_source_in_the_patient_is_an_error(place):
    with pytest.raises(DiffDRRError, match=r"X-ray source at \(.*\) mm is inside the patient: move it out") as error:
        chest()(SMALL, at(*place), 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [place for place, within in PLACES if not within])
def test_a_source_outside_is_none(place):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chest().primary(SMALL, at(*place))


@pytest.mark.parametrize("z", [-1000.0, -1150.0, -810.1])
def test_a_detector_in_the_patient_is_an_error(z):
    with pytest.raises(DiffDRRError, match="detector is inside the patient, and what lies behind it would be miss"):
        chest().primary(SMALL, at(70.0, 0.0, z))
    chest().primary(SMALL, at(70.0, 0.0, -1250.0))  # and before all of it: nothing is in the beam


def test_a_corner_of_the_detector_in_the_patient_is_a_warning():
    """A panel of 1 m, of which the patient's ellipse covers 0.05; a corner in it; and one of 0.3 m, half in it."""
    with pytest.warns(DiffDRRWarning, match="A part of the detector is inside the patient"):
        chest().primary(WIDE, at(0.0, 0.0, -1000.0))
    with pytest.warns(DiffDRRWarning, match="A part of the detector is inside the patient"):
        chest().primary(Camera(100, 100, (5.0, 5.0), 1000.0), at(250.0, 200.0, -1000.0))
    with pytest.raises(DiffDRRError, match="detector is inside the patient"):
        chest().primary(Camera(60, 60, (5.0, 5.0), 1000.0), at(0.0, 0.0, -1000.0))


def test_a_parallel_beam_may_not_start_in_the_patient():
    beam = Camera.parallel_beam(20, 20, (5.0, 5.0), 1000.0)
    with pytest.raises(DiffDRRError, match="plane where the rays start is inside the patient"):
        chest().primary(beam, at(0.0, 0.0, 0.0))
    wide = Camera.parallel_beam(200, 200, (5.0, 5.0), 1000.0)
    with pytest.warns(DiffDRRWarning, match="A part of the plane where the rays start"):
        chest().primary(wide, at(0.0, 0.0, 0.0))


def test_without_a_ct_there_is_no_inside():
    box = BeamObject(Box((0.0, 0.0, 500.0), (10.0, 10.0, 10.0)), "Ti")
    assert float(simulated(objects=[box]).primary(SMALL, at(0.0, 0.0, 0.0)).min()) < 0.9


def test_it_goes_with_each_image():
    """One simulator, many poses: the patient is looked at for each."""
    chest().primary(SMALL, at(0.0, 0.0, -700.0))
    with pytest.raises(DiffDRRError, match="source"):
        chest().primary(SMALL, at(70.0, 0.0, -100.0))
