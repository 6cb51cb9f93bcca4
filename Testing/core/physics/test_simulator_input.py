import pytest

from DiffDRRCore import Camera, DiffDRRError, DiffDRRWarning, Pose
from DiffDRRCore.datasets.shapes import Sphere
from DiffDRRCore.physics import (
    BeamObject,
    Detector,
    Effects,
    Exposure,
    Heel,
    Mesh,
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
        (lambda: simulate_sequence(simulated(body()), BEAM, []), "at least one pose"),
    ],
)
def test_bad_input_is_one_sentence(make, words):
    with pytest.raises(DiffDRRError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_source_inside_the_patient():
    volume, inside = slab(300.0), at(0.0, 0.0, 20.0)
    with pytest.raises(DiffDRRError, match=r"source at \(0, 0, 20\) mm is inside the patient"):
        simulated(volume).primary(Camera(4, 4, (1.0, 1.0), 1000.0), inside)


def test_heel_without_a_tube():
    with pytest.raises(DiffDRRError, match="give a spectrum with a kVp"):
        simulated(body(), Spectrum.monochromatic(60.0), effects=Effects(heel=Heel()))(*view())


def test_centimetres_are_noticed():
    with pytest.warns(DiffDRRWarning, match="were these cm"):
        simulated(body()).primary(Camera(4, 4, (0.1, 0.1), 102.0), at(0.0, 0.0, -90.0))


def test_a_batch_is_refused():
    camera, pose = view()
    with pytest.raises(DiffDRRError, match="one pose"):
        simulated(body())(camera, Pose(pose.matrix.repeat(2, 1, 1)))
