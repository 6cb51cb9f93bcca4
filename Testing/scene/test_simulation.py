"""Simulated X-rays: of what lies in the world as it lies there, with the true pose kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import slicer
import slicer.util
import torch
import vtk

from DiffDRRCore import Camera, CArm, Pose, Renderer, Volume, project
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.errors import PhysicsError, VolumeError
from DiffDRRCore.physics import material
from DiffDRRCore.physics.devices import device
from DiffDRRCore.physics.simulation.placement import air_gap
from DiffDRRSlicerLib.scene import implants, patient, simulation
from DiffDRRSlicerLib.scene.accuracy import REFERENCE, reference_errors
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.nodes import transform_to_world
from DiffDRRSlicerLib.scene.simulation import Scanned, simulate_xray, simulating_xray
from DiffDRRSlicerLib.scene.simulation_settings import Settings, counts_of, seen_by
from DiffDRRSlicerLib.scene.xrays import core_xray, prepared_xray
from Testing.core.samples import looking_at, rigid
from Testing.scene import kit

CAMERA = Camera(24, 28, (12.0, 12.0), 1000.0, None, "detector")
FINE = Camera(96, 120, (2.0, 2.5), 1000.0, None, "detector")
UNROUNDED = {"noise": False, "bits": None, "logarithm": False}
CLEAN = Settings(energy=70.0, **UNROUNDED)


@pytest.fixture(scope="module")
def ct():
    return phantom(shape=(32, 24, 28), spacing=12.0)


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    simulation.forget()


def add_anatomy(scene, ct, parent, labels=False):
    above = kit.add_transform(scene, parent)
    node = kit.add_volume(scene, ct.hu.numpy(), ct.ijk_to_ras.numpy(), above)
    if not labels:
        return Anatomy(node)
    numbers = ct.labels.numpy().astype(np.int16)
    return Anatomy(node, kit.add_volume(scene, numbers, ct.ijk_to_ras.numpy(), above, "L", "vtkMRMLLabelMapVolumeNode"))


def add_water(scene, size=10, spacing=12.0, parent=None):
    """A cube about the origin of the coordinates above it."""
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = -spacing * (size - 1) / 2
    return Anatomy(kit.add_volume(scene, np.zeros((size, size, size), np.float32), grid, parent))


def add_sphere(scene, center=(0, 0, 0), radius=6.0, parent=None, name="bead", open_at=0.0):
    source = vtk.vtkSphereSource()
    source.SetRadius(radius)
    source.SetCenter(*center)
    source.SetThetaResolution(32)
    source.SetPhiResolution(32)
    source.SetStartTheta(open_at)
    source.Update()
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", name)
    model.SetAndObservePolyData(source.GetOutput())
    if parent is not None:
        model.SetAndObserveTransformNodeID(parent.GetID())
    return model


def shot(scene, scanned, camera, pose, **options):
    """The image over the open field's count."""
    carm = simulate_xray(scene, scanned, camera, pose, **options)
    return core_xray(carm).image.double() / carm.meta["i0"]


@pytest.mark.parametrize("make", [rigid, kit.scaled])
def test_it_shows_the_ct_where_it_lies(scene, ct, make):
    rng = np.random.default_rng(1)
    anatomy = add_anatomy(scene, ct, make(rng))
    pose = looking_at(rng, anatomy.center, 750.0)
    carm = simulate_xray(scene, Scanned(anatomy, CLEAN), CAMERA, pose, source_to_isocenter=720.0)
    in_world = Volume(ct.hu, kit.to_world(anatomy.ct))
    truth = Renderer(in_world, integrator="trilinear")(CAMERA, pose)[0, 0]
    found = -torch.log(
        core_xray(carm).image / carm.meta["i0"]
    )  # one energy, 70 keV: Beer-Lambert with the CT's own attenuation
    assert truth.max() > 2 and torch.allclose(found, truth, rtol=2e-3, atol=2e-3)
    assert prepared_xray(carm).intensity == "attenuation" and carm.meta["simulated"]
    assert np.allclose(carm.pose.matrix, pose.matrix, atol=1e-9) and carm.source_to_isocenter == 720.0


def test_the_true_pose_stays_where_the_carm_was(scene, ct):
    rng = np.random.default_rng(2)
    anatomy = add_anatomy(scene, ct, np.eye(4))
    pose = looking_at(rng, anatomy.center, 750.0)
    carm = simulate_xray(scene, anatomy, CAMERA, pose)
    carm.pose = looking_at(rng, anatomy.center, 600.0)
    reference = carm.referred("reference")
    assert reference.GetAttribute(REFERENCE) and reference.GetParentTransformNode() is None
    assert np.allclose(transform_to_world(reference), pose.matrix)


@pytest.mark.parametrize("moved_before", [False, True])
def test_errors_against_the_true_pose_go_with_the_patient(scene, ct, moved_before):
    rng = np.random.default_rng(5)
    anatomy = add_anatomy(scene, ct, rigid(rng))
    turns, place = np.zeros(3), np.zeros(3)
    if moved_before:  # the patient transform is there, and not the identity, when the X-ray is taken
        turns, place = np.array([10.0, -5.0, 20.0]), np.array([15.0, 8.0, -30.0])
        patient.place_patient(anatomy, turns, place)
    pose = looking_at(rng, anatomy.center, 750.0)
    carm = simulate_xray(scene, anatomy, CAMERA, pose)
    assert reference_errors(carm, anatomy)["mtre_mm"] < 1e-6
    patient.place_patient(anatomy, turns, place + np.array([2.0, -3.0, 6.0]))
    assert reference_errors(carm, anatomy)["mtre_mm"] == pytest.approx(7.0, abs=1e-6)
    shift = np.eye(4)
    shift[:3, 3] = 2.0, -3.0, 6.0
    carm.pose = Pose(shift) @ pose
    assert reference_errors(carm, anatomy)["mtre_mm"] < 1e-6
    assert transform_to_world(carm.referred("reference")) == pytest.approx(pose.matrix.numpy())


def test_the_seed_and_the_dose_make_the_noise(scene, ct):
    anatomy = add_anatomy(scene, ct, np.eye(4))
    pose = looking_at(np.random.default_rng(3), anatomy.center, 750.0)
    first, same, other = (shot(scene, anatomy, CAMERA, pose, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    clean = shot(scene, Scanned(anatomy, Settings(**UNROUNDED)), CAMERA, pose)
    errors = [
        (shot(scene, Scanned(anatomy, Settings(dose=dose, logarithm=False)), CAMERA, pose) - clean)
        for dose in (0.01, 1.0)
    ]
    bright = clean > 0.1  # where rounding to whole counts is nothing
    ratio = float(errors[0][bright].std() / errors[1][bright].std())
    assert ratio == pytest.approx(10.0, rel=0.15)  # the square root of the dose


@pytest.mark.parametrize("photons", [20.0, 1000.0])
def test_the_noise_of_a_low_dose_is_not_cut_off(scene, photons):
    """The mean of 20 photons of 70 keV per pixel is 20 times what 70 keV give, whatever the noise."""
    anatomy = add_water(scene, size=2)
    settings = Settings(energy=70.0, photons=photons, detector="ideal", poisson=True, logarithm=False)
    carm = simulate_xray(scene, Scanned(anatomy, settings), FINE, CArm(1000.0, 700.0, anatomy.center).pose)
    open_field = core_xray(carm).image[:30].double()
    assert float(open_field.max()) < 65535
    found, count = float(open_field.mean()) / carm.meta["i0"], open_field.numel()
    assert found == pytest.approx(1, abs=4 / (photons * count) ** 0.5)
    assert float(open_field.std()) / carm.meta["i0"] == pytest.approx(photons**-0.5, rel=0.05)


def test_a_seed_that_is_drawn_is_kept_and_makes_the_same_image_again(scene, ct):
    anatomy = add_anatomy(scene, ct, np.eye(4))
    pose = looking_at(np.random.default_rng(3), anatomy.center, 750.0)
    carm = simulate_xray(scene, anatomy, CAMERA, pose, seed=None)
    again = shot(scene, anatomy, CAMERA, pose, seed=carm.meta["seed"])
    assert torch.equal(again, core_xray(carm).image.double() / carm.meta["i0"])


@pytest.mark.parametrize("changes", [{"dose": 0.5}, {"dose": 0.5, "noise": False, "bits": None}])
def test_the_logarithm_is_the_line_integral_and_gives_the_counts_back(scene, ct, changes):
    anatomy = add_anatomy(scene, ct, np.eye(4))
    pose = looking_at(np.random.default_rng(3), anatomy.center, 750.0)
    raw, shown = (
        simulate_xray(scene, Scanned(anatomy, Settings(logarithm=on, **changes)), CAMERA, pose) for on in (False, True)
    )
    counts, i0 = core_xray(raw).image, raw.meta["i0"]
    least = 1e-5 * i0 if "bits" in changes else 0.5
    expected = torch.log(i0 / counts.double().clamp(min=least))
    assert torch.allclose(core_xray(shown).image.double(), expected, atol=1e-5)
    assert shown.meta["intensity"] == "attenuation" and raw.meta["intensity"] == "transmission"
    back, meta = counts_of(core_xray(shown).image, shown.meta)
    assert torch.allclose(back, counts, rtol=1e-5) if "bits" in changes else torch.equal(back, counts)
    assert meta["intensity"] == "transmission"
    assert torch.equal(counts_of(counts, raw.meta)[0], counts)
    correlation = np.corrcoef(prepared_xray(raw).image.ravel(), prepared_xray(shown).image.ravel())[0, 1]
    assert correlation > 0.99


def test_the_open_field_has_its_count_and_the_meta_says_so(scene):
    anatomy = add_water(scene)
    scanned = Scanned(anatomy, Settings(dose=5.0, logarithm=False))
    carm = simulate_xray(scene, scanned, FINE, CArm(1000.0, 700.0, anatomy.center).pose)
    image, i0 = core_xray(carm).image, carm.meta["i0"]
    assert 0.5 * 65535 < i0 < 0.81 * 65535
    assert float(image[:10, :10].mean()) == pytest.approx(i0, rel=0.002)
    assert carm.meta["intensity"] == "transmission"
    assert float(image.max()) <= 65535 and torch.equal(image, image.round())
    assert carm.meta["simulation"]["spectrum"]["kvp"] == 80.0 and carm.meta["settings"]["dose"] == 5.0
    json.dumps(carm.meta)


def test_settings_of_older_scenes_are_understood():
    old = {
        "kvp": 75.0,
        "aluminium": 3.5,
        "copper": 0.3,
        "kerma": 2.0,
        "detector_blur": True,
        "heel": True,
        "grid": False,
    }
    assert Settings.kept(old) == Settings(kvp=75.0, filtration={"Al": 3.5, "Cu": 0.3}, dose=2.0, heel=True)
    assert Settings.kept({"kerma": None, "of another time": [1]}) == Settings()
    new = Settings(collimator=(1.0, 2.0, 3.0, 4.0), blur=2.0, logarithm=False)
    assert Settings.kept(json.loads(json.dumps(new.to_dict()))) == new


@pytest.mark.parametrize("moved_ct", [False, True])
def test_a_model_below_transforms_casts_its_shadow_where_project_says(scene, moved_ct):
    rng = np.random.default_rng(7)
    anatomy = add_water(scene, parent=kit.add_transform(scene, rigid(rng)) if moved_ct else None)
    outer = kit.add_transform(scene, rigid(rng, 2.0), anatomy.ct.GetParentTransformNode())
    above = kit.add_transform(scene, kit.scaled(rng, 2.0), outer)
    center = np.array([8.0, -5.0, 11.0])
    model = add_sphere(scene, center, 5.0, above)
    pose = looking_at(rng, anatomy.center, 700.0)
    world = [0.0, 0.0, 0.0]
    model.TransformPointToWorld(center, world)
    plain = shot(scene, Scanned(anatomy, CLEAN), FINE, pose)
    image = shot(scene, Scanned(anatomy, CLEAN, implants={model: "tungsten"}), FINE, pose)
    shadow = image < 0.5 * plain
    v, u = (index.double().mean() for index in torch.nonzero(shadow, as_tuple=True))
    expected = project(FINE, pose, torch.tensor([world], dtype=torch.float64))[0, 0]
    assert 10 < int(shadow.sum()) < 400
    assert (float(u), float(v)) == pytest.approx(expected.tolist(), abs=0.4)


def test_a_mirrored_model_is_not_inside_out(scene):
    anatomy = add_water(scene)
    mirror = kit.add_transform(scene, np.diag([-1.0, 1.0, 1.0, 1.0]))
    images = []
    for center, parent in (((20.0, 0, 0), None), ((-20.0, 0, 0), mirror)):
        model = add_sphere(scene, center, parent=parent)
        pose = CArm(1000.0, 700.0, anatomy.center).pose
        images.append(shot(scene, Scanned(anatomy, CLEAN, implants={model: "titanium"}), FINE, pose))
    assert torch.allclose(*images, atol=2e-3)


def test_a_bent_transform_moves_a_model_too(scene):
    model = add_sphere(scene, (50.0, 50.0, 50.0), parent=kit.add_bend(scene))
    (thing,) = implants.beam_objects({model: "titanium"})
    world = np.zeros((model.GetPolyData().GetNumberOfPoints(), 3))
    for index in range(len(world)):
        model.TransformPointToWorld(model.GetPolyData().GetPoint(index), world[index])
    assert np.abs(world.mean(axis=0) - [60, 50, 50]).max() < 1.5
    assert torch.stack(thing.placed.bounds).numpy() == pytest.approx(np.stack([world.min(axis=0), world.max(axis=0)]))


def test_a_screw_replaces_what_is_there(scene):
    """Behind a bead of air the cube is thinner by just the bead; water in water is nothing."""
    anatomy = add_water(scene, spacing=10.0)
    arm = CArm(1000.0, 700.0, anatomy.center)
    bead = add_sphere(scene, radius=20.0)
    plain, water, air = (
        -torch.log(shot(scene, Scanned(anatomy, CLEAN, implants=things), FINE, arm.pose))
        for things in ({}, {bead: "water"}, {bead: "air"})
    )
    middle = (slice(46, 50), slice(58, 62))
    assert torch.allclose(water, plain, atol=3e-3)
    lost = 40.0 * float(material("water").linear_attenuation(70.0) - material("air").linear_attenuation(70.0))
    assert float((plain - air)[middle].mean()) == pytest.approx(lost, rel=0.02)


def test_the_higher_priority_is_there_where_models_overlap(scene):
    """A bead of air in one of titanium is a hole only where it comes first."""
    anatomy = add_water(scene, size=2)
    hole, bead = add_sphere(scene, radius=10.0, name="hole"), add_sphere(scene, radius=20.0)
    implants.set_implant(hole, "air")
    implants.set_implant(bead, "titanium")
    pose, middle = CArm(1000.0, 700.0, anatomy.center).pose, (slice(46, 50), slice(58, 62))
    found = []
    for priority in (1, 2):  # of equal ones the later model counts, which is the bead
        implants.set_implant(hole, "air", priority=priority)
        things = implants.implants(scene)
        found.append(
            float(-torch.log(shot(scene, Scanned(anatomy, CLEAN, implants=things), FINE, pose)[middle]).mean())
        )
    titanium, air = (float(material(name).linear_attenuation(70.0)) for name in ("titanium", "air"))
    assert found[0] == pytest.approx(40 * titanium, rel=0.02)
    assert found[0] - found[1] == pytest.approx(20 * (titanium - air), rel=0.05)
    assert implants.implant_priority(hole) == 2 and implants.models(scene) == [hole, bead]
    implants.set_implant(hole, "air", False)
    assert implants.implant_priority(hole) == 2
    hole.SetAttribute("DiffDRR.Priority", "first")
    assert implants.implant_priority(hole) == 1
    with pytest.raises(SceneError, match="whole number from 1 to 99, not 0"):
        implants.set_implant(hole, "air", priority=0)


def test_structures_and_their_materials(scene, ct):
    rng = np.random.default_rng(8)
    anatomy = add_anatomy(scene, ct, rigid(rng), labels=True)
    name = list(anatomy.structures.values())[-1]
    pose = looking_at(rng, anatomy.center, 800.0)
    alone = -torch.log(shot(scene, Scanned(anatomy, CLEAN, structures=[name]), CAMERA, pose))
    steel = Scanned(anatomy, CLEAN, [name], {name: "stainless steel 316L"})
    heavy = -torch.log(shot(scene, steel, CAMERA, pose))
    seen = alone > 0.02
    assert 0 < int(seen.sum()) < seen.numel() / 2
    assert float(alone[~seen].max()) < 0.03 and bool((heavy[seen] > 3 * alone[seen]).all())


def test_materials_of_structures_that_are_left_out_do_not_matter(scene, ct):
    anatomy = add_anatomy(scene, ct, np.eye(4), labels=True)
    one, other, *_ = anatomy.structures.values()
    pose = looking_at(np.random.default_rng(3), anatomy.center, 800.0)
    images = [shot(scene, Scanned(anatomy, CLEAN, [one], kind), CAMERA, pose) for kind in ({}, {other: "gold"})]
    assert torch.equal(*images)


def test_effects_are_what_they_say(scene):
    anatomy = add_water(scene, size=20, spacing=10.0)
    pose = CArm(1000.0, 700.0, anatomy.center).pose

    def image(**changes):
        return shot(scene, Scanned(anatomy, Settings(**UNROUNDED, **changes)), FINE, pose)

    plain = image()
    middle, edge = (slice(40, 56), slice(50, 70)), (0, slice(50, 70))
    assert float(image(kvp=120.0)[middle].mean()) > 1.2 * float(plain[middle].mean())  # harder
    assert float(image(filtration={"Al": 2.5, "Cu": 0.3})[middle].mean()) > 1.1 * float(plain[middle].mean())
    scattered = float((image(scatter=True) / plain)[middle].mean())
    behind_grid = float((image(scatter=True, grid=True) / plain)[middle].mean())
    assert scattered > 1.5 and 1.1 < behind_grid < scattered
    heel = image(heel=True) / plain
    assert float(heel[-1].mean()) < 0.98 < 1.005 < float(heel[0].mean())
    assert float((image(focal_spot=1.2)[edge] - plain[edge]).abs().max()) > 0
    assert image(decomposition="thresholds").shape == plain.shape


def test_blades_cover_the_edges_of_the_image(scene):
    anatomy = add_water(scene, size=4)
    pose = CArm(1000.0, 700.0, anatomy.center).pose
    covered = (20.0, 40.0, 25.0, 50.0)  # mm of pixels of 2 x 2.5 mm
    image = shot(scene, Scanned(anatomy, Settings(collimator=covered, **UNROUNDED)), FINE, pose)
    inside = torch.zeros(96, 120, dtype=torch.bool)
    inside[10 : 96 - 20, 10 : 120 - 20] = True
    assert float(image[~inside].max()) < 0.02 < 0.2 < float(image[inside].min())


def test_the_air_gap_is_where_the_beam_leaves_the_ct(scene):
    anatomy = add_water(scene, size=20, spacing=10.0)
    arm = CArm(1000.0, 700.0, anatomy.center)
    assert air_gap(FINE, arm.pose, anatomy.volume) == pytest.approx(1000 - 700 - 100, abs=1e-6)
    turned = CArm(1000.0, 700.0, anatomy.center, primary=45.0).pose
    assert air_gap(FINE, turned, anatomy.volume) == pytest.approx(300 - 100 * np.sqrt(2), abs=1e-6)
    aside = CArm(1000.0, 700.0, anatomy.center + np.array([0, 0, 100.0])).pose  # the ray to the middle is oblique
    assert air_gap(FINE, aside, anatomy.volume) == pytest.approx(200, abs=1e-6)


def test_a_device_has_its_round_field_and_its_limits(scene):
    anatomy = add_water(scene, size=4)
    nine = device("mobile-9in")
    camera = nine.camera(16, "detector")
    pose = nine.carm(anatomy.center).pose
    carm = simulate_xray(scene, Scanned(anatomy, Settings(**UNROUNDED), device=nine), camera, pose)
    image = core_xray(carm).image / carm.meta["i0"]
    assert float(image[0, 0]) < 1e-6 and float(image[32, 2]) > 0.9 and carm.meta["device"] == "mobile-9in"
    assert carm.meta["settings"]["aperture"] == nine.field_diameter / 2
    assert Settings(aperture=30.0).on(nine).aperture == 30.0
    too_much = Scanned(anatomy, Settings(kvp=140.0), device=nine)
    with pytest.raises(PhysicsError, match="140 kV is out of reach"):
        simulate_xray(scene, too_much, camera, pose)


def test_a_device_is_asked_for_angles_beyond_90_degrees_in_both_ways(scene):
    """A pose with the secondary angle at 100 reads as 180, 80, 180, which no device reaches."""
    free = replace(device("cios"), primary=(-90.0, 90.0), secondary=(-120.0, 120.0), roll=(0.0, 0.0))
    beyond = CArm(1000.0, 700.0, (1.0, 2.0, 3.0), 10.0, 100.0)
    read = CArm(1000.0, 700.0, (1.0, 2.0, 3.0), *CArm.angles_from(beyond.pose))
    assert float(read.secondary) == pytest.approx(80.0)
    _, found = seen_by(free, read, "detector", 256)
    assert [float(one) for one in (found.primary, found.secondary, found.roll)] == pytest.approx([10.0, 100.0, 0.0])
    assert torch.allclose(found.pose.rotation.double(), beyond.pose.rotation.double(), atol=1e-6)
    upright = CArm(1000.0, 700.0, primary=100.0)  # the same as -80, 180 with the image upside down, which nobody means
    with pytest.raises(PhysicsError, match="primary of 100 degrees"):
        seen_by(replace(free, secondary=(-200.0, 200.0), roll=None), upright, "detector", 256)
    with pytest.raises(PhysicsError, match="out of reach"):
        seen_by(replace(free, secondary=(-50.0, 50.0)), read, "detector", 256)


def test_masks_lie_on_the_xray(scene, ct):
    rng = np.random.default_rng(9)
    anatomy = add_anatomy(scene, ct, rigid(rng), labels=True)
    bead = add_sphere(scene, anatomy.center, 20.0)
    pose = looking_at(rng, anatomy.center, 750.0)
    scanned = Scanned(anatomy, CLEAN, implants={bead: "titanium"})
    carm = simulate_xray(scene, scanned, CAMERA, pose, masks=True)
    node = carm.referred("segmentation")
    numbers = slicer.util.arrayFromVolume(node)[0]
    names = {number: node.GetDisplayNode().GetColorNode().GetColorName(number) for number in np.unique(numbers)[1:]}
    assert node.GetParentTransformNode() is carm.plane and numbers.shape == (24, 28)
    highest = max(anatomy.structures)
    assert names[highest + 1] == "bead"
    assert {number: names[number] for number in names if number <= highest}.items() <= anatomy.structures.items()
    v, u = np.nonzero(numbers == highest + 1)
    expected = project(CAMERA, pose, torch.tensor(np.array([anatomy.center])))[0, 0].tolist()
    assert (u.mean(), v.mean()) == pytest.approx(expected, abs=0.6)
    assert np.array_equal(kit.to_world(node), kit.to_world(carm.referred("xray")))


def test_the_pieces_are_small_and_leave_the_scene_alone(scene, ct):
    anatomy = add_anatomy(scene, ct, np.eye(4), labels=True)
    before = kit.node_ids(scene)
    work = simulating_xray(scene, anatomy, CAMERA, looking_at(np.random.default_rng(4), anatomy.center, 750.0))
    texts = set()
    for step in work:
        texts.add(step.text)
        assert kit.node_ids(scene) == before
        if step.text == "Simulating":
            break
    work.close()
    assert kit.node_ids(scene) == before and len(texts) > 2


def test_a_ct_that_is_deleted_meanwhile_is_said(scene, ct):
    anatomy = add_anatomy(scene, ct, np.eye(4))
    pose = looking_at(np.random.default_rng(4), anatomy.center, 750.0)
    work = simulating_xray(scene, anatomy, CAMERA, pose)
    next(step for step in work if step.text == "Simulating")
    scene.RemoveNode(anatomy.ct)
    before = kit.node_ids(scene)
    with pytest.raises(SceneError, match="was removed"):
        next(work)
    assert kit.node_ids(scene) == before


def test_a_second_xray_needs_no_second_preparation(scene, ct, monkeypatch):
    anatomy = add_anatomy(scene, ct, np.eye(4))
    pose = looking_at(np.random.default_rng(4), anatomy.center, 750.0)
    first = shot(scene, anatomy, CAMERA, pose)
    monkeypatch.setattr(Scanned, "_made", None)
    assert torch.equal(first, shot(scene, anatomy, CAMERA, pose))
    monkeypatch.undo()
    slicer.util.arrayFromVolume(anatomy.ct)[:] += 200
    slicer.util.arrayFromVolumeModified(anatomy.ct)
    assert not torch.equal(first, shot(scene, anatomy, CAMERA, pose))


OPEN, INSIDE_OUT = "is not closed", "inside out"


def turned_inside_out(model):
    reverse = vtk.vtkReverseSense()
    reverse.SetInputData(model.GetPolyData())
    reverse.Update()
    model.SetAndObservePolyData(reverse.GetOutput())
    return model


BAD = {
    "photons": (lambda scene, a: Scanned(a, Settings(photons=0)), PhysicsError, "photons per pixel must be above 0"),
    "dose": (lambda scene, a: Scanned(a, Settings(dose=-1.0)), PhysicsError, "air kerma at the detector must be"),
    "kVp": (lambda scene, a: Scanned(a, Settings(kvp=0.09)), PhysicsError, "40 to 150"),
    "filter": (
        lambda scene, a: Scanned(a, Settings(filtration={"Cu": -1.0})),
        PhysicsError,
        "copper filter must be 0 mm or more",
    ),
    "open": (lambda scene, a: Scanned(a, implants={add_sphere(scene, open_at=90.0): "titanium"}), PhysicsError, OPEN),
    "turned": (
        lambda scene, a: Scanned(a, implants={turned_inside_out(add_sphere(scene)): "titanium"}),
        PhysicsError,
        INSIDE_OUT,
    ),
    "empty": (
        lambda scene, a: Scanned(a, implants={scene.AddNewNodeByClass("vtkMRMLModelNode", "nut"): "titanium"}),
        SceneError,
        "'nut' has no surface",
    ),
    "material": (lambda scene, a: Scanned(a, implants={add_sphere(scene): "mithril"}), PhysicsError, "mithril"),
    "lag": (lambda scene, a: Scanned(a, Settings(lag=((0.1, 0.9),))), SceneError, "without lag"),
    "grid": (lambda scene, a: Scanned(a, Settings(grid=True)), PhysicsError, "switch that on as well"),
    "structure": (lambda scene, a: Scanned(a, materials={"tail": "titanium"}), VolumeError, "'tail'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence_and_changes_nothing(scene, ct, what):
    make, kind, text = BAD[what]
    anatomy = add_anatomy(scene, ct, np.eye(4), labels=True)
    scanned = make(scene, anatomy)
    before = kit.node_ids(scene)
    with pytest.raises(kind, match=text) as error:
        simulate_xray(scene, scanned, CAMERA, looking_at(np.random.default_rng(4), anatomy.center, 750.0))
    assert "\n" not in str(error.value) and kit.node_ids(scene) == before


def test_a_source_inside_the_patient_is_said(scene):
    anatomy = add_water(scene)
    with pytest.raises(PhysicsError, match="inside the patient"):
        simulate_xray(scene, anatomy, CAMERA, CArm(1000.0, 10.0, anatomy.center).pose)


def test_materials_are_kept_on_the_nodes(scene, ct):
    anatomy = add_anatomy(scene, ct, np.eye(4), labels=True)
    one, other = add_sphere(scene, name="one"), add_sphere(scene, name="two")
    implants.set_implant(one, "nitinol")
    implants.set_implant(other, "tungsten", False)
    implants.set_structure_material(anatomy.labels, "aorta", "blood")
    assert implants.implants(scene) == {one: "nitinol"}
    assert implants.implant_material(other) == "tungsten" and not implants.is_enabled(other)
    assert implants.structure_materials(anatomy.labels) == {"aorta": "blood"}
    with pytest.raises(PhysicsError, match="unobtainium"):
        implants.set_implant(one, "unobtainium")
    implants.set_structure_material(anatomy.labels, "aorta", None)
    implants.set_implant(one, None)
    assert implants.structure_materials(anatomy.labels) == {} and implants.implants(scene) == {}


def test_what_the_module_draws_is_no_implant(scene, ct):
    from DiffDRRSlicerLib.scene import frustum, surfaces

    anatomy = add_anatomy(scene, ct, np.eye(4))
    carm = simulate_xray(scene, anatomy, CAMERA, looking_at(np.random.default_rng(4), anatomy.center, 750.0))
    frustum.create_frustum(carm)
    surfaces.bone_surface(anatomy)
    hidden = add_sphere(scene, name="Red Volume Slice")
    hidden.SetHideFromEditors(True)
    bead = add_sphere(scene)
    assert implants.models(scene) == [bead]


def test_two_models_of_one_name(scene):
    things = implants.beam_objects({add_sphere(scene, (20.0 * i, 0, 0)): "titanium" for i in range(3)})
    assert [one.name for one in things] == ["bead", "bead 2", "bead 3"]
