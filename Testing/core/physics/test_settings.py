"""Settings as plain values: one set of names, room for the noise of low doses, and a sentence for what cannot be."""

from __future__ import annotations

import json
import math

import pytest
import torch

from DiffDRRCore import Camera
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.physics import BeamObject, Effects, Mesh, Simulator, Spectrum
from DiffDRRCore.physics.simulation.settings import Settings
from DiffDRRCore.physics.simulation.setup import Implant, Setup
from Testing.core.physics.scenes import BEAM, FROM_BELOW, slab
from Testing.core.physics.solids import icosphere_arrays

CAMERA = Camera(120, 120, (2.0, 2.0), 1000.0)
LARGEST = 65535


def open_image(settings: Settings, camera: Camera = CAMERA, seed: int = 1):
    """Nothing but a bead of air far from the beam."""
    vertices, triangles = icosphere_arrays(1.0, 1)
    bead = BeamObject(Mesh(vertices + 5000.0, triangles), "air")
    simulator = settings.applied(Simulator((), Spectrum.monochromatic(60.0), objects=[bead]), camera)
    return simulator(camera, FROM_BELOW, seed)


def test_values_go_through_json_and_back():
    camera = camera_to_dict(CAMERA)
    setup = Setup(
        ct="ct.nii.gz",
        camera=camera,
        labels=(1, "femur"),
        collimator=(1.0, 2.0, 3.0, 4.0),
        blur=((0.0, 2.0), (1.0, 0.3)),
        lag=((0.03, 0.6),),
        implants=(Implant("a.stl", "steel", frame="ras", priority=3),),
        landmarks={"tip": (1.0, 2.0, 3.0)},
    )
    again = Setup.from_dict(json.loads(json.dumps(setup.to_dict())))
    assert again.implants == setup.implants
    assert json.dumps(again.to_dict()) == json.dumps(setup.to_dict())
    assert (again.blur, again.lag, again.collimator) == (setup.blur, setup.lag, setup.collimator)
    old = {"ct": "ct.nii.gz", "camera": camera, "kvp": 70.0}  # fewer names than today
    assert Setup.from_dict(old) == Setup(ct="ct.nii.gz", camera=camera, kvp=70.0)


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"kpv": 80}, "there is no 'kpv'; did you mean 'kvp'"),
        ({"dose_mgy": 80}, "there is no 'dose_mgy'"),
        ({"kvp": "80"}, "setting kvp must be a number, got '80'"),
        ({"dose": float("nan")}, "setting dose must be a number"),
        ({"noise": 1}, "setting noise must be true or false"),
        ({"samples": 1.5}, "setting samples must be a whole number"),
    ],
)
def test_an_unknown_name_and_another_kind_of_value_are_told(content, reason):
    with pytest.raises(PhysicsError, match=reason):
        Settings.from_dict(content)


def test_what_a_setup_lacks_is_told():
    with pytest.raises(PhysicsError, match="lack camera"):
        Setup.from_dict({"ct": "ct.nii.gz"})
    with pytest.raises(PhysicsError, match="An implant is a mesh"):
        Setup.from_dict({"ct": "ct.nii.gz", "camera": {}, "implants": [{"file": "a.stl"}]})


def test_the_defaults_are_a_tube_and_one_microgray_without_effects():
    settings = Settings()
    settings.check()
    assert settings.spectrum().kvp == 80
    exposure, effects = settings.exposure(), settings.effects()
    assert (exposure.kerma, exposure.photons, exposure.noise, exposure.poisson) == (1.0, None, True, False)
    assert effects == type(effects)()


@pytest.mark.parametrize("detector, of_a_photon", [("ideal", 60.0), ("counting", 1.0)])
def test_the_open_field_of_five_photons_is_not_cut(detector, of_a_photon):
    """Poisson: N photons of weight q: mean N q, variance N q^2. Cut at 1.25 N they would have neither."""
    settings = Settings(energy=60.0, detector=detector, photons=5.0, poisson=True)
    image = open_image(settings)
    counts = image.counts.double()
    gain = image.i0 / (5 * of_a_photon)
    signal = counts / gain / of_a_photon  # photons
    number = counts.numel()
    assert float(signal.mean()) == pytest.approx(5, abs=5 * math.sqrt(5 / number))
    # of the variance: (mu4 - sigma^4) / n, with mu4 = N + 3 N^2
    assert float(signal.var()) == pytest.approx(5, abs=5 * math.sqrt((5 + 2 * 25) / number))
    assert float(counts.max()) < LARGEST
    assert float(signal.max()) > 10  # where 0.8 of the bits would have cut at 6.25


def test_gaussian_noise_of_a_low_dose_has_room_upwards():
    """The Gaussian limit is cut at 0 counts only: mean and variance of a normal distribution cut there."""
    image = open_image(Settings(energy=60.0, detector="counting", photons=5.0))
    signal = image.counts.double() * 5 / image.i0
    sigma = math.sqrt(5)
    z = 5 / sigma
    density, below = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(-z / math.sqrt(2))
    mean = 5 * below + sigma * density
    square = (25 + 5) * below + 5 * sigma * density
    number = signal.numel()
    assert float(signal.mean()) == pytest.approx(mean, abs=5 * sigma / math.sqrt(number))
    assert float(signal.var()) == pytest.approx(square - mean**2, rel=5 * math.sqrt(2 / number))
    assert float(image.counts.max()) < LARGEST


def test_swank_and_electronic_noise_have_room_too():
    """A Swank factor of 0.5 doubles the variance of 4 photons; 10 photons of read-out noise add 100."""
    wide = Settings(energy=60.0, detector="counting", photons=4.0, swank=0.5, electronic=10.0)
    assert open_image(wide).i0 == pytest.approx(LARGEST * 4 / (4 + 5 * math.sqrt(4 / 0.5 + 100)), rel=1e-6)
    still = Settings(energy=60.0, detector="counting", photons=4.0, noise=False)
    assert open_image(still).i0 == pytest.approx(0.8 * LARGEST, rel=1e-6)


def test_a_high_dose_fills_four_fifths_of_the_bits():
    for bits in (12, 16):
        assert open_image(Settings(dose=5.0, bits=bits)).i0 == pytest.approx(0.8 * (2**bits - 1), rel=1e-6)


def test_the_heel_effect_stays_below_the_largest_count():
    """Towards the cathode of a steep anode the beam is stronger than in the middle."""
    camera = Camera(60, 60, (14.0, 14.0), 1000.0)
    image = open_image(Settings(heel=True, anode_angle=7.0, photons=20.0, detector="counting"), camera)
    peak = float(image.open_field.max())
    assert peak > 1.05 * image.i0
    gain = image.i0 / (20 * 1.0)
    assert peak + 5 * math.sqrt(peak * gain) <= LARGEST * 1.001
    assert float(image.counts.max()) < LARGEST


def test_the_open_field_is_found_once(monkeypatch):
    """For gain and image together: a heel effect takes a moment."""
    made, field = [], Effects.field
    monkeypatch.setattr(Effects, "field", lambda *arguments: made.append(1) or field(*arguments))
    open_image(Settings(heel=True))
    assert made == [1]


def test_a_gain_of_ones_own_is_kept():
    assert open_image(Settings(energy=60.0, detector="ideal", photons=100.0, gain=2.0)).i0 == pytest.approx(12000)


def test_a_beam_of_one_energy_and_one_of_a_file(tmp_path):
    """exp(-mu t) of water at 60 keV: NIST's mu/rho is 0.2059 cm2/g."""
    (tmp_path / "one.csv").write_text("keV,photons\n60,3\n")
    for settings in (Settings(energy=60.0), Settings(spectrum_file=str(tmp_path / "one.csv"))):
        settings.check()
        simulator = Simulator(slab(100.0), settings.spectrum())
        middle = simulator.primary(BEAM, FROM_BELOW)[32, 32]
        assert float(middle) == pytest.approx(math.exp(-0.2059 * 10), rel=5e-3)


def test_solid_angle_lag_and_samples_reach_the_effects():
    effects = Settings(solid_angle=True, lag=((0.03, 0.6), (0.01, 0.9)), samples=3).effects()
    assert effects.solid_angle and effects.samples == 3
    assert (tuple(effects.lag.weights), tuple(effects.lag.retentions)) == ((0.03, 0.01), (0.6, 0.9))
    camera = Camera(21, 21, (20.0, 20.0), 500.0)
    field = open_image(Settings(solid_angle=True, energy=60.0), camera).open_field
    cosine = 500 / math.sqrt(500**2 + 2 * 200**2)
    assert float(field[0, 0] / field[10, 10]) == pytest.approx(cosine**3, rel=2e-3)


def test_a_measured_mtf_is_the_one_of_its_formula():
    frequencies = [0.0] + [2**k / 100 for k in range(10)]
    values = [1 / (1 + (f / 0.1) ** 2) for f in frequencies]
    blur = Settings(blur=(tuple(frequencies), tuple(values))).effects().detector_blur(CAMERA)
    found = blur.mtfs[0](torch.tensor([0.0, 0.0]), torch.tensor([0.02, 0.08]))
    assert found.tolist() == pytest.approx([1 / 1.04, 1 / 1.64], rel=1e-6)
    half = Settings(blur=0.1).effects().detector_blur(CAMERA).mtfs[0]
    assert float(half(torch.tensor([0.0]), torch.tensor([0.1]))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"kvp": 35}, "the kVp is about twice"),
        ({"detector": "film"}, "detector is one of csi"),
        ({"decomposition": "magic"}, "decomposition is one of continuous"),
        ({"integrator": "magic"}, "integrator is one of trilinear"),
        ({"dose": 1.0, "photons": 5.0}, "give one of the two"),
        ({"energy": 60.0, "spectrum_file": "a.csv"}, "give one of the two"),
        ({"energy": 60.0, "heel": True}, "heel effect is that of tubes"),
        ({"energy": 60.0, "scatter": True}, "Scatter is known for tubes"),
        ({"energy": 60000.0}, "electronvolts"),
        ({"grid": True}, "stop scatter"),
        ({"scatter": "none"}, "scatter is True or False"),
        ({"swank": 1.2}, "Swank"),
        ({"lag": ((0.5, 1.5),)}, "fraction from 0 to below 1"),
        ({"lag": ((0.5,),)}, "pairs"),
        ({"samples": 0}, "rays"),
        ({"blur": ((0.1, 1.0), (1.0, 0.5))}, "rise from 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(values, reason):
    with pytest.raises(PhysicsError, match=reason):
        Settings(**values).check()
