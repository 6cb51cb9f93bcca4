import warnings

import pytest
import torch

from DiffDRRCore import Camera, DiffDRRError, DiffDRRWarning, Pose, physics
from DiffDRRCore.datasets.shapes import Sphere
from DiffDRRCore.physics import (
    BeamObject,
    Detector,
    Effects,
    Exposure,
    Heel,
    Mesh,
    Scatter,
    Spectrum,
    simulate_sequence,
)
from Testing.core.physics.scenes import BEAM, body, simulated, slab, view
from Testing.core.physics.solids import at, icosphere_arrays


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: simulated(), "nothing in the beam"),
        (lambda: simulated(body(), materials={1: "unobtainium"}), "no material 'unobtainium'"),
        (lambda: simulated(body(), decomposition="vnet"), "'continuous' or 'thresholds'"),
        (lambda: simulated(body(), detector=Detector(bits=12)), "needs an exposure"),
        (lambda: simulated(body(), objects=[BeamObject(Sphere((0, 0, 0), 1), "Ti")] * 2), "called 'sphere'"),
        (lambda: Spectrum.from_table([20.0, 30.0], [1.0, -1.0]), "cannot have -1 photons"),
        (lambda: Spectrum.tungsten(0.08), "kVp|kV"),
        (lambda: Spectrum.tungsten(80_000), "kVp|kV"),
        (lambda: Spectrum.tungsten(80, {"Al": -1.0}), "must be 0 mm or more"),
        (lambda: Exposure(), "give one of the two"),
        (lambda: Exposure(photons=1.0, kerma=1.0), "give one of the two"),
        (lambda: Exposure(photons=-5.0), "above 0"),
        (lambda: Exposure(kerma=0.0), "above 0"),
        (lambda: Exposure(kerma=5e5), "nGy"),
        (lambda: Exposure(kerma=1.0, swank=0.0), "Swank"),
        (lambda: Exposure(kerma=1.0, electronic=-1.0), "Electronic"),
        (lambda: Effects(focal_spot_mm=60.0), "focal spot is 0 to 5 mm"),
        (lambda: Effects(focal_spot_mm=-0.1), "focal spot is 0 to 5 mm"),
        (lambda: Effects(focal_spot_shape="round"), "gaussian"),
        (lambda: Effects(magnification=0.5), "1 or more"),
        (lambda: Effects(detector_mtf=-1.0), "positive"),
        (lambda: Mesh(*(lambda v, t: (v, t[1:]))(*icosphere_arrays(5.0, 1))), "not closed"),
        (lambda: Mesh(*(lambda v, t: (v, t[:, ::-1].copy()))(*icosphere_arrays(5.0, 1))), "inside out"),
        (lambda: BeamObject(Sphere((0, 0, 0), 1), "Ti", priority="high"), "whole number from 1, not 'high'"),
        (lambda: BeamObject(Sphere((0, 0, 0), 1), "Ti", priority=None), "whole number from 1, not None"),
        (lambda: BeamObject(Sphere((0, 0, 0), 1), "Ti", priority=1.5), "whole number from 1, not 1.5"),
        (lambda: BeamObject(Sphere((0, 0, 0), 1), "Ti", priority=float("inf")), "whole number from 1, not inf"),
        (lambda: simulate_sequence(simulated(body()), BEAM, []), "at least one pose"),
    ],
)
def test_bad_input_is_one_sentence(make, words):
    with pytest.raises(DiffDRRError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_every_public_name_is_there():
    assert {"Device", "device", "orbit", "sweep", "Setup", "Settings", "Ranges", "generate"} <= set(physics.__all__)
    for name in physics.__all__:
        assert getattr(physics, name).__name__ == name


def test_a_source_inside_the_patient():
    volume, inside = slab(300.0), at(0.0, 0.0, 20.0)
    with pytest.raises(DiffDRRError, match=r"source at \(0, 0, 20\) mm is inside the patient"):
        simulated(volume).primary(Camera(4, 4, (1.0, 1.0), 1000.0), inside)


OWN = Spectrum.from_table([30.0, 50.0], [1.0, 1.0], kvp=60.0)


@pytest.mark.parametrize(
    ("spectrum", "effects", "words"),
    [
        (Spectrum.monochromatic(60.0), Effects(heel=Heel()), "give a spectrum with a kVp"),
        (Spectrum.monochromatic(60.0), Effects(heel=Heel(12.0, filtration={"Al": 2.5})), "give a spectrum with a kVp"),
        (OWN, Effects(heel=Heel()), r"does not state: give Heel\(anode_angle=..., filtration=...\)"),
        (OWN, Effects(heel=Heel(12.0)), r"does not state: give Heel\(anode_angle=..., filtration=...\)"),
        (Spectrum.monochromatic(60.0), Effects(scatter=Scatter()), r"does not state: give Scatter\(kvp=...\)"),
    ],
)
def test_effects_that_need_to_know_the_tube(spectrum, effects, words):
    with pytest.raises(DiffDRRError, match=words):
        simulated(body(), spectrum, effects=effects)
    with pytest.raises(DiffDRRError, match=words):
        simulated(body()).changed(spectrum=spectrum, effects=effects)


@pytest.mark.parametrize(
    "effects",
    [
        Effects(scatter=Scatter(85.1)),
        Effects(heel=Heel(anode_angle=7.0)),
        Effects(heel=Heel(filtration={"Al": 4.0})),
        Effects(heel=Heel(filtration={"Al": 2.5, "Cu": 0.1})),
    ],
)
def test_a_tube_that_is_not_the_spectrums_is_told(effects):
    with pytest.warns(DiffDRRWarning, match="that of the spectrum .*: leave it out to take the spectrum's"):
        simulated(body(), Spectrum.tungsten(80), effects=effects)


def test_nothing_is_told_where_the_tubes_agree():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alike = Effects(scatter=Scatter(82.0), heel=Heel(12.0, filtration={"aluminium": 2.55}))
        simulated(body(), Spectrum.tungsten(80), effects=alike)
        simulated(body(), Spectrum.monochromatic(60.0), effects=Effects(scatter=Scatter(80)))(*view())
        simulated(body(), OWN, effects=Effects(heel=Heel(12.0, filtration={"Al": 2.5})))(*view())


def test_scatter_and_heel_are_those_of_the_spectrum():
    camera, pose = view()
    tube = Spectrum.tungsten(110, {"Al": 3.0, "Cu": 0.2}, 8.0)
    left_out = Effects(scatter=Scatter(air_gap=100.0), heel=Heel())
    given = Effects(scatter=Scatter(110, 100.0), heel=Heel(8.0, filtration={"Al": 3.0, "Cu": 0.2}))
    one, other = (simulated(body(), tube, effects=effects) for effects in (left_out, given))
    assert torch.equal(one(camera, pose, 0).counts, other(camera, pose, 0).counts)
    expected = given.field(camera, tube, torch.float32, torch.device("cpu"))
    assert torch.equal(one.field(camera), expected)
    softer = one.changed(spectrum=Spectrum.tungsten(60))  # follows
    assert not torch.allclose(softer.field(camera), expected, rtol=1e-3)
    assert one(camera, pose, 0).xray.meta["simulation"]["spectrum"]["filtration"] == {"aluminium": 3.0, "copper": 0.2}


def test_centimetres_are_noticed():
    with pytest.warns(DiffDRRWarning, match="were these cm"):
        simulated(body()).primary(Camera(4, 4, (0.1, 0.1), 102.0), at(0.0, 0.0, -50.0))


def test_a_batch_is_refused():
    camera, pose = view()
    with pytest.raises(DiffDRRError, match="one pose"):
        simulated(body())(camera, Pose(pose.matrix.repeat(2, 1, 1)))
