import math

import pytest
import SimpleITK
import torch
from torch.testing import assert_close

from DiffDRRCore import Camera, DiffDRRError, Renderer, Volume
from DiffDRRCore.datasets.shapes import Box, Cylinder, Sphere
from DiffDRRCore.geometry import pixel_rays
from DiffDRRCore.physics import (
    BeamObject,
    Detector,
    Effects,
    Exposure,
    Mesh,
    Scatter,
    Spectrum,
    decompose,
    material,
)
from DiffDRRCore.physics.simulation.training_set import write_truth
from Testing.core import samples
from Testing.core.physics.scenes import BEAM, BONE_HU, FROM_BELOW, GOLDEN, body, simulated, slab, spekpy_spectrum, view
from Testing.core.physics.solids import box_arrays, icosphere_arrays
from Testing.core.rendering.reference import grid


@pytest.fixture(scope="module")
def spekpy() -> Spectrum:
    return spekpy_spectrum()


@pytest.mark.parametrize("side", ["source", "detector"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
def test_at_one_energy_it_is_the_plain_drr(seed, side, integrator):
    volume, (camera, pose) = body(seed), view(seed, side=side)
    primary = simulated(volume, Spectrum.monochromatic(70.0), integrator=integrator).primary(camera, pose)
    same = Volume.from_attenuation(decompose(volume).attenuation(70.0), volume.ijk_to_ras)
    assert_close(primary, torch.exp(-Renderer(same, integrator)(camera, pose)[0, 0]), rtol=0, atol=1e-5)
    # Of the volume's own attenuation, whose coefficients are another table's
    drr = Renderer(volume, integrator)(camera, pose)[0, 0]
    assert float(drr.max()) > 1.5
    assert_close(-primary.log(), drr, rtol=3e-4, atol=1e-5)


@pytest.mark.parametrize("cm", [1, 2, 5, 10, 20, 30])
@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
def test_water_from_hu(spekpy, cm, integrator):
    # The trilinear field falls off half a voxel beyond each face: its integral along the normal is the same.
    found = simulated(slab(10.0 * cm), spekpy, integrator=integrator).primary(BEAM, FROM_BELOW)
    expected = torch.full_like(found, GOLDEN["slabs"]["water"]["transmission"][str(cm)])
    assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("cm", [0.5, 1, 2, 5, 10])
def test_bone_from_hu(spekpy, cm):
    found = simulated(slab(10.0 * cm, BONE_HU), spekpy, integrator="siddon").primary(BEAM, FROM_BELOW)
    expected = torch.full_like(found, GOLDEN["slabs"]["cortical bone"]["transmission"][str(cm)])
    assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["aluminium", "titanium"])
@pytest.mark.parametrize("kind", ["mesh", "shape"])
def test_plates_of_metal(spekpy, name, kind):
    for cm, expected in GOLDEN["slabs"][name]["transmission"].items():
        half = 5.0 * float(cm)
        shape = Box((0, 0, 0), (400.0, 400.0, 2 * half))
        solid = shape if kind == "shape" else Mesh(*box_arrays((-200, -200, -half), (200, 200, half)))
        found = simulated(spectrum=spekpy, objects=[BeamObject(solid, name)]).primary(BEAM, FROM_BELOW)
        assert_close(found, torch.full_like(found, expected), rtol=1e-3, atol=0)


@pytest.mark.parametrize("hu", [0.0, BONE_HU])
def test_oblique_rays_pass_more(spekpy, hu):
    mm, name = (100.0, "water") if hu == 0 else (20.0, "cortical bone")
    camera = Camera(9, 11, (60.0, 50.0), 800.0, view_from="detector")
    found = simulated(slab(mm, hu), spekpy, integrator="siddon").primary(camera, FROM_BELOW)
    source, target = pixel_rays(camera, FROM_BELOW)
    way = (target - source)[0]
    length = mm * way.norm(dim=-1) / way[:, 2]  # t / cos
    assert float(length.max()) > 1.08 * mm
    weight = spekpy.energies * spekpy.photons
    rays = torch.exp(-length[:, None] * material(name).linear_attenuation(spekpy.energies)) @ weight / weight.sum()
    assert_close(found.flatten().double(), rays, rtol=1e-3, atol=0)


def test_a_photon_counter_sees_a_softer_beam(spekpy):
    found = simulated(slab(100.0), spekpy, detector=Detector("photon_counting")).primary(BEAM, FROM_BELOW)
    left = torch.exp(-100 * material("water").linear_attenuation(spekpy.energies))
    counted = float((spekpy.photons * left).sum() / spekpy.photons.sum())
    assert_close(found, torch.full_like(found, counted), rtol=1e-3, atol=0)
    assert counted < 0.98 * GOLDEN["slabs"]["water"]["transmission"]["10"]


def test_csi_has_its_edges(spekpy):
    # 33 and 36 keV: the compressed spectrum must know of them.
    csi = material("CsI")
    detector = Detector.scintillating(csi.mass_attenuation, 0.2)
    found = simulated(slab(200.0), spekpy, detector=detector).primary(BEAM, FROM_BELOW)
    weight = spekpy.photons * detector.weights(spekpy.energies)[0]
    left = torch.exp(-200 * material("water").linear_attenuation(spekpy.energies))
    assert_close(found, torch.full_like(found, float((weight * left).sum() / weight.sum())), rtol=1e-3, atol=0)


def test_a_vessel_filled_with_contrast_agent(spekpy):
    blood = material("blood").with_iodine(15.0)
    volume = slab(100.0, 40.0)
    labels = torch.zeros(volume.shape, dtype=torch.int16)
    labels[5:7] = 4  # 10 mm thick
    volume = Volume(volume.hu, volume.ijk_to_ras, labels, {4: "aorta"})
    simulator = simulated(volume, spekpy, integrator="siddon", materials={"aorta": blood})
    found = simulator.primary(BEAM, FROM_BELOW)
    weight, kev = spekpy.energies * spekpy.photons, spekpy.energies
    line = 90 * 1.04 * material("water").linear_attenuation(kev) + 10 * blood.linear_attenuation(kev)
    expected = float((weight * torch.exp(-line)).sum() / weight.sum())
    assert_close(found, torch.full_like(found, expected), rtol=1e-3, atol=0)
    without = simulated(volume, spekpy, integrator="siddon").primary(BEAM, FROM_BELOW)
    assert float(without.mean()) > 1.15 * expected


def test_the_shadow_of_a_ball_in_a_cone_is_not_the_naive_one():
    # SID R / sqrt(d^2 - R^2) = 96.66 mm for R = 50, d = 530, SID = 1020; SID R / d would be 96.23.
    camera = Camera(1, 2001, (0.1, 0.1), 1020.0)
    ball = BeamObject(Sphere((0.0, 0.0, 30.0), 50.0), "PMMA")
    simulator = simulated(spectrum=Spectrum.monochromatic(60.0), objects=[ball])
    primary = simulator.primary(camera, FROM_BELOW)[0].double()
    squared = (primary.log() / material("PMMA").linear_attenuation(60.0)).square()
    last = int(torch.nonzero(squared > 1.0)[-1])  # the square of a chord falls evenly to zero
    edge = last + float(squared[last] / (squared[last - 1] - squared[last]))
    assert (edge - 1000) * 0.1 == pytest.approx(96.66, abs=0.02)
    assert (edge - 1000) * 0.1 == pytest.approx(1020 * 50 / math.sqrt(530**2 - 50**2), abs=0.005)
    assert int(simulator(camera, FROM_BELOW, 0).objects["sphere"].sum()) == 2 * math.floor(966.6) + 1


@pytest.mark.parametrize("kind", ["object", "voxels"])
def test_a_bead_lands_where_the_magnification_says(kind):
    place, camera = (13.0, -7.0, 30.0), Camera(201, 221, (0.6, 0.5), 1020.0)
    if kind == "object":
        simulator = simulated(objects=[BeamObject(Mesh(*icosphere_arrays(2.0, 3, place)), "steel")])
    else:
        hu = torch.full((15, 15, 15), -1000.0)
        hu[7, 7, 7] = 3000.0
        simulator = simulated(Volume(hu, grid(0.5, hu.shape, place)))
    dark = 1 - simulator(camera, FROM_BELOW, 0).counts.double()
    rows, columns = torch.meshgrid(*(torch.arange(n).double() for n in dark.shape), indexing="ij")
    found = [float((dark * one).sum() / dark.sum()) for one in (columns, rows)]
    magnification = 1020 / 530  # 1.9245
    expected = [110 + magnification * 13.0 / 0.5, 100 - magnification * 7.0 / 0.6]
    assert found == pytest.approx(expected, abs=0.05)


def test_masks_depth_and_landmarks():
    hu, labels = torch.full((20, 20, 20), 0.0), torch.zeros(20, 20, 20, dtype=torch.int16)
    labels[4:8, 5:9, 10:16] = 3
    volume = Volume(hu, grid(2.0, hu.shape), labels, {3: "cube"})
    cube = Box((6.0 - 0.0, -6.0, -8.0), (12.0, 8.0, 8.0))  # voxels 10..15, 5..8, 4..7 about 9.5, in mm
    ball = Sphere((-5.0, 5.0, 0.0), 6.0)
    camera, pose = view(2, 40, 44)
    camera = Camera(40, 44, (2.0, 2.0), 1000.0)
    simulator = simulated(volume, objects=[BeamObject(ball, "Ti", name="ball")], landmarks={"tip": (1.0, 2.0, 3.0)})
    image = simulator(camera, pose)
    source, target = pixel_rays(camera, pose)
    for name, shape, mask in (("cube", cube, image.labels["cube"]), ("ball", ball, image.objects["ball"])):
        chord = shape.chord(source, target).reshape(40, 44)
        assert 20 < int(mask.sum()) < 1000
        assert bool((mask == (chord > 0.005))[(chord == 0) | (chord > 0.01)].all())
        near = shape.interval(source, target)[0].reshape(40, 44)
        clear = chord > 0.5
        assert_close(image.depth[name].double()[clear], near[clear], rtol=0, atol=0.01)
        assert bool(image.depth[name][~mask].isinf().all())
    point = pose.inverse().transform(torch.tensor([[1.0, 2.0, 3.0]]).double())[0]
    expected = [21.5 + 500 * float(point[0] / point[2]), 19.5 + 500 * float(point[1] / point[2])]
    assert list(image.landmarks["tip"]) == pytest.approx(expected)
    assert set(image.depth) == {"cube", "ball"}


def weights(camera: Camera) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(camera.height, camera.width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("what", ["primary", "expected", "noisy"])
def test_gradients_to_the_pose(what):
    camera, pose = view(5, 7, 8)
    effects = Effects(focal_spot_mm=1.0, detector_mtf=0.3, scatter=Scatter(80), solid_angle=True)
    pin = BeamObject(Mesh(*icosphere_arrays(6.0, 1, (5.0, 2.0, 3.0))), "Ti")
    exposure = Exposure(photons=1e4) if what == "noisy" else None
    simulator = simulated(body(5, torch.float64), objects=[pin], effects=effects, exposure=exposure)

    def loss(xi):
        moved = pose.retract(xi, about=(0.0, 0.0, 0.0))
        image = simulator(camera, moved, 3) if what == "noisy" else getattr(simulator, what)(camera, moved)
        return ((image.counts / image.i0 if what == "noisy" else image) * weights(camera)).sum()

    zero = torch.zeros(6, dtype=torch.float64)
    assert_close(samples.jacobian(loss, zero), samples.differences(loss, zero, 1e-6), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
def test_the_fused_backend_agrees(integrator):
    camera, pose = view(1, 40, 48)
    pin = BeamObject(Cylinder((0, 0, 0), (1.0, 0.2, 0.1), 2.0, 50.0), "Ti")
    fused, torch_ = (
        simulated(body(1), objects=[pin], integrator=integrator, backend=backend).primary(camera, pose)
        for backend in ("auto", "torch")
    )
    assert_close(fused, torch_, rtol=0, atol=1e-4)


def test_changes_share_the_volumes():
    camera, pose = view()
    simulator = simulated(body())
    changed = simulator.changed(spectrum=Spectrum.tungsten(120))
    assert torch.equal(changed.primary(camera, pose), simulated(body(), Spectrum.tungsten(120)).primary(camera, pose))
    assert torch.equal(simulator.primary(camera, pose), simulated(body()).primary(camera, pose))
    with pytest.raises(DiffDRRError, match="'volumes' is set when"):
        simulator.changed(volumes=())


def test_names_that_make_one_file_name_get_two_files(tmp_path):
    labelled = body()
    labelled.label_names = {1: "left rib", 2: "Left_rib"}
    files = write_truth(tmp_path, simulated(labelled)(*view(), seed=0))
    assert sorted(files) == ["Left_rib", "left rib"]
    masks = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / file))) > 0 for file in files.values()]
    assert (masks[0] != masks[1]).any()
    assert len({path.name.lower() for path in tmp_path.iterdir()}) == 4  # two masks, two depth maps
