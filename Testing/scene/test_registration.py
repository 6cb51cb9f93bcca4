"""Registration in the scene, driven piece by piece, on a phantom whose CT is oblique and below moved transforms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, CArm, Pose
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.datasets.simulated import points_in_bone, simulated_xray
from DiffDRRCore.errors import DiffDRRError
from Testing.scene import kit

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import landmarks, nodes, results  # noqa: E402
from DiffDRRSlicerLib.scene.anatomy import Anatomy  # noqa: E402
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.handles import patient_transform  # noqa: E402
from DiffDRRSlicerLib.scene.registration import SceneRegistration  # noqa: E402
from DiffDRRSlicerLib.scene.registration_options import preset_options  # noqa: E402
from DiffDRRSlicerLib.scene.xrays import add_xray  # noqa: E402

QUICK = {"sizes": (32, 64), "search": 0}
AWAY = [0.07, -0.05, 0.06, 6.0, -5.0, 8.0]


class Case:
    """A phantom on an oblique left-handed grid below two rotated transforms, and X-rays of it with known poses."""

    def __init__(self, scene, primaries=(10.0,), scale=None):
        rng = np.random.default_rng(7)
        volume = phantom((48, 40, 48), 5.0, seed=1)
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = volume.shape[2] - 1
        self.grid = kit.rigid(rng) @ volume.ijk_to_ras.numpy() @ flip
        self.outer = kit.add_transform(scene, kit.rigid(rng), name="outer")
        self.inner = kit.add_transform(scene, kit.rigid(rng) if scale is None else scale, self.outer, name="inner")
        voxels = volume.hu.flip(-1).numpy().astype(np.int16)
        self.ct = kit.add_volume(scene, voxels, self.grid, self.inner)
        self.anatomy, self.first = Anatomy(self.ct), kit.to_world(self.ct)
        self.points = kit.apply(kit.to_world(self.ct) @ np.linalg.inv(self.grid), self.bone(volume))
        self.carms, self.truths, self.starts = [], [], []
        for number, primary in enumerate(primaries):
            self._add_view(scene, primary, number)

    def bone(self, volume):
        """Bone points in the coordinates of the CT's node."""
        kji = kit.apply(volume.ras_to_ijk.numpy(), points_in_bone(volume, 100).numpy())
        kji[:, 0] = volume.shape[2] - 1 - kji[:, 0]
        return kit.apply(self.grid, kji)

    def _add_view(self, scene, primary, seed):
        anatomy = self.anatomy
        arm = CArm(1000.0, 600.0, anatomy.center, primary, 5.0)
        camera = arm.camera(60, 64, (5.5, 5.0), view_from="detector")
        image = simulated_xray(anatomy.volume, camera, anatomy.pose_in_volume(arm.pose), photons=1e6, seed=seed)
        start = arm.pose.retract(torch.tensor(AWAY).double(), about=torch.from_numpy(anatomy.center))
        self.truths.append(arm.pose)
        self.starts.append(start)
        self.carms.append(add_xray(scene, image.image, camera, start, image.meta, f"View {primary:g}", 600.0))

    def errors(self, number=0):
        """(in plane, depth) mm in the camera, of bone now against bone at the truth; by plain matrices."""
        moved = kit.apply(self.moved, self.points)
        found = kit.apply(np.linalg.inv(self.carms[number].pose.matrix.numpy()), moved)
        truth = kit.apply(np.linalg.inv(self.truths[number].matrix.numpy()), self.points)
        off = found - truth
        return np.linalg.norm(off[:, :2], axis=1).mean(), np.abs(off[:, 2]).mean()

    @property
    def moved(self):
        """[4, 4] of the CT now against where it was at the beginning."""
        return kit.to_world(self.ct) @ np.linalg.inv(self.first)

    def run(self, **options):
        """All progress of a registration, and it."""
        registration = SceneRegistration(self.anatomy, self.carms, **{**QUICK, **options})
        return list(registration.steps()), registration


@pytest.fixture
def case(scene):
    return Case(scene)


def test_finds_the_pose_of_an_oblique_ct_below_moved_transforms(case):
    ct_before = kit.to_world(case.ct)
    assert max(case.errors()) > 5
    progress, registration = case.run()
    in_plane, depth = case.errors()
    assert in_plane < 0.5 and depth < 3.0
    assert np.array_equal(kit.to_world(case.ct), ct_before)
    outcome = registration.outcome
    assert outcome.converged and outcome.similarity[1] > 0.99 > outcome.similarity[0]
    assert torch.allclose(outcome.views[0].pose.matrix, case.carms[0].pose.matrix)
    fractions = [entry.fraction for entry in progress]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and 0 <= fractions[0] < 0.1
    assert progress[-1].text == "Done" and progress[0].similarity is None
    assert {entry.level for entry in progress} == {0, 1, 2} and progress[-1].seconds > 0


def test_the_c_arm_follows_the_best_pose_step_by_step(case):
    registration, places = SceneRegistration(case.anatomy, case.carms[0], **QUICK), []
    for entry in registration.steps():
        if entry.level > 0:
            places.append(case.carms[0].pose.matrix.numpy())
    assert len({place.tobytes() for place in places}) > 4
    assert not np.allclose(places[0], places[-1])


def test_moving_the_patient_instead_gives_the_same_relative_pose(scene):
    one = Case(scene)
    start = one.carms[0].pose.matrix
    progress, registration = one.run(target="patient")
    assert torch.equal(one.carms[0].pose.matrix, start)
    in_plane, depth = one.errors()
    assert in_plane < 0.5 and depth < 3.0 and len(progress) > 5
    patient = patient_transform(one.anatomy)
    assert not np.allclose(nodes.transform_to_world(patient), np.eye(4)) and patient is not one.inner
    in_ct = registration.outcome.views[0].pose_in_ct.matrix.numpy()
    expected = np.linalg.inv(nodes.parent_to_world(one.ct)) @ start.numpy()
    assert np.allclose(in_ct, expected, atol=1e-9)


def test_two_views_move_together(scene):
    case = Case(scene, (0.0, 85.0))
    before = (case.starts[0].inverse() @ case.starts[1]).matrix
    case.run()
    assert torch.allclose((case.carms[0].pose.inverse() @ case.carms[1].pose).matrix, before, atol=1e-8)
    for number in (0, 1):
        assert max(case.errors(number)) < 0.5


def test_a_scaled_ct_is_registered_as_it_lies_in_the_world(scene):
    case = Case(scene, scale=np.diag([1.1, 0.9, 1.0, 1.0]))
    _, registration = case.run()
    assert case.errors()[0] < 0.5
    assert registration.outcome.views[0].pose_in_ct is None


def test_cancel_keeps_the_best_pose_so_far_and_its_outcome(case):
    registration = SceneRegistration(case.anatomy, case.carms, **QUICK)
    best = None
    for entry in registration.steps():
        if entry.level == 1 and entry.similarity is not None and best is None:
            registration.cancel()
            best = case.carms[0].pose.matrix
    assert registration.outcome is not None and not registration.outcome.converged
    assert torch.equal(case.carms[0].pose.matrix, best)
    assert any("had not converged" in text for text in registration.outcome.warnings)


def test_cancel_before_the_first_step_changes_nothing(case):
    registration = SceneRegistration(case.anatomy, case.carms, **QUICK)
    steps = registration.steps()
    next(steps)
    registration.cancel()
    assert list(steps) == [] and registration.outcome is None
    assert torch.allclose(case.carms[0].pose.matrix, case.starts[0].matrix)


@pytest.mark.parametrize("target", ["carm", "patient"])
def test_an_error_puts_everything_back_and_is_raised(case, target):
    registration = SceneRegistration(case.anatomy, case.carms, target=target, **QUICK)
    before = kit.to_world(case.ct)
    with pytest.raises(RuntimeError, match="the middle"):
        for entry in registration.steps():
            if entry.level == 2:
                registration._take = fail
    assert torch.allclose(case.carms[0].pose.matrix, case.starts[0].matrix, atol=1e-12)
    assert np.allclose(kit.to_world(case.ct), before, atol=1e-9) and registration.outcome is None


def fail(*_):
    raise RuntimeError("in the middle")


@pytest.mark.parametrize("what", ["ct", "carm", "scene"])
def test_deleted_nodes_and_closed_scenes_end_the_run(scene, case, what):
    registration = SceneRegistration(case.anatomy, case.carms, **QUICK)
    steps = registration.steps()
    for entry in steps:
        if entry.level == 1:
            break
    if what == "scene":
        scene.Clear(True)
    else:
        scene.RemoveNode(case.ct if what == "ct" else case.carms[0].node)
    assert list(steps) == [] and registration.outcome is None


def test_the_curve_and_the_results_are_written_once_and_reused(scene, case):
    _, registration = case.run()
    carm = case.carms[0]
    table = carm.referred("convergence table").GetTable()
    names = [table.GetColumnName(column) for column in range(4)]
    assert names == ["step", "seconds", "similarity", "level"]
    rows = [[table.GetValue(row, column).ToDouble() for column in range(4)] for row in range(table.GetNumberOfRows())]
    history = registration.outcome.result.history
    assert [row[0] for row in rows] == list(range(1, len(history) + 1))
    assert np.allclose([row[2] for row in rows], [entry["similarity"] for entry in history])
    assert [row[3] for row in rows] == [entry["level"] + 1 for entry in history]
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(rows))
    chart, series = carm.referred("convergence chart"), carm.referred("convergence series")
    assert chart.GetNumberOfPlotSeriesNodes() == 1 and chart.GetNthPlotSeriesNode(0) is series
    assert series.GetTableNode() is carm.referred("convergence table") and series.GetYColumnName() == "similarity"
    before = kit.node_ids(scene)
    case.run()
    assert kit.node_ids(scene) == before and chart.GetNumberOfPlotSeriesNodes() == 1
    assert carm.referred("convergence table").GetTable().GetNumberOfRows() < len(rows)  # it starts at the answer


def test_the_table_of_results_is_that_of_the_last_run(case, monkeypatch):
    carm = case.carms[0]
    assert results.read_results_table(carm) == []
    _, registration = case.run()
    rows = results.read_results_table(carm)
    assert [row[0] for row in rows] == [row[0] for row in registration.outcome.rows()]
    assert rows[1] == ("similarity", f"{registration.outcome.similarity[1]:.4g}", "")
    monkeypatch.setattr("DiffDRRSlicerLib.scene.registration.prepared_xray", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        case.run()
    assert results.read_results_table(carm) == []


def test_a_region_leaves_out_what_hides_the_anatomy(scene):
    case = Case(scene)
    carm = case.carms[0]
    image = nodes.get_image(carm.referred("xray")).copy()
    image[:14] = image.max() + 30 * np.sin(np.arange(64) / 3)  # an apron
    carm.place_image(carm.referred("xray"), image)
    region = scene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode", "region")
    region.SetCurveTypeToLinear()
    below = nodes.transform_to_world(carm.referred("plane"))
    uv = [(-1, 14.5), (65, 14.5), (65, 61), (-1, 61)]
    for point in kit.apply(below, pixels_to_points(carm.camera, uv)):
        region.AddControlPointWorld(*point)
    case.run(region=region, find_collimator=False)
    assert case.errors()[0] < 0.6


class Kept:
    """A method that keeps what it returned."""

    def __init__(self, method):
        self.method, self.found = method, []

    def __get__(self, owner, _):
        return lambda: self.found.append(self.method(owner)) or self.found[-1]


def test_landmarks_take_part_and_are_reported(scene, monkeypatch):
    case = Case(scene)
    carm, points = case.carms[0], case.points[[3, 20, 41, 62, 83]]
    labels = [f"L-{number}" for number in range(1, 6)]
    ct = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "CT landmarks")
    ct.SetAndObserveTransformNodeID(case.inner.GetID())
    xray = landmarks.xray_landmarks(carm)
    local = kit.apply(np.linalg.inv(case.truths[0].matrix.numpy()), points)
    uv = (local / local[:, 2:] @ carm.camera.K.numpy().T)[:, :2]
    for label, point, mark in zip(labels, points, pixels_to_points(carm.camera, uv), strict=True):
        ct.AddControlPointWorld(*point, label)
        xray.AddControlPoint(*mark, label)
    monkeypatch.setattr(SceneRegistration, "_landmark_term", kept := Kept(SceneRegistration._landmark_term))
    _, registration = case.run(landmarks=(ct, xray))
    found = registration.outcome.views[0].landmarks
    assert [row.label for row in found.rows] == labels and found.rms_pixels < 0.3
    assert case.errors()[0] < 0.5 and kept.found[-1] is not None
    _, registration = case.run(landmarks=(ct, xray), use_landmarks=False)
    found = registration.outcome.views[0].landmarks
    assert [row.label for row in found.rows] == labels and kept.found[-1] is None
    xray.RemoveAllControlPoints()
    with pytest.raises(SceneError, match="no landmark pairs"):
        case.run(landmarks=(ct, xray))
    _, registration = case.run(landmarks=(ct, xray), use_landmarks=False)
    assert registration.outcome.views[0].landmarks is None


def test_structures_are_compared_locally_and_presets_are_options():
    assert type(preset_options("fast")["similarity"]).__name__ == "ZNCC"
    bones = preset_options("accurate", structures=["femur"])
    assert type(bones["similarity"]).__name__ == "LNCC"
    assert bones["sizes"] == (96, 128, 256) and bones["labels"] == ["femur"]
    assert preset_options("far", search=7)["search"] == 7
    with pytest.raises(SceneError, match="the presets are: fast, accurate, far"):
        preset_options("slow")


def test_bad_input_is_one_sentence(scene, case):
    with pytest.raises(SceneError, match="at least one X-ray"):
        SceneRegistration(case.anatomy, [])
    with pytest.raises(SceneError, match="'carm', the 'patient' or the 'bodies'"):
        SceneRegistration(case.anatomy, case.carms, target="table")
    with pytest.raises(SceneError, match="list of landmarks in the CT"):
        SceneRegistration(case.anatomy, case.carms, landmarks=(None, None))
    with pytest.raises(SceneError, match="2 entries for the references"):
        SceneRegistration(case.anatomy, case.carms, reference=[None, None])
    with pytest.raises(SceneError, match="entries for the region"):
        SceneRegistration(case.anatomy, case.carms, region=[None, None])
    with pytest.raises(DiffDRRError, match="Unknown option"):
        list(SceneRegistration(case.anatomy, case.carms, colour="red").steps())
    bare = CArmNode.create(scene, Camera(10, 10, (1, 1), 1000.0), Pose.identity())
    with pytest.raises(SceneError, match="has no X-ray"):
        list(SceneRegistration(case.anatomy, bare).steps())
    registration = SceneRegistration(case.anatomy, case.carms, **QUICK)
    list(registration.steps())
    with pytest.raises(SceneError, match="runs once"):
        next(registration.steps())


def test_the_ct_is_read_in_pieces_and_kept(monkeypatch, case):
    from DiffDRRSlicerLib.scene import anatomy

    monkeypatch.setattr(anatomy, "_SLAB", 5000)
    anatomy.forget()
    whole = case.anatomy.volume
    anatomy.forget()
    assert list(case.anatomy.preparing()).count("Reading the CT") == 24  # two slices of 48 x 40 at a time
    assert torch.equal(case.anatomy.volume.hu, whole.hu) and list(case.anatomy.preparing()) == []


def test_structures_are_read_in_pieces(case):
    numbers = (case.anatomy.volume.hu > 200).numpy().astype(np.int16)
    labels = kit.add_volume(case.ct.GetScene(), numbers, case.grid, case.inner, "bones", "vtkMRMLLabelMapVolumeNode")
    assert list(Anatomy(case.ct, labels).preparing()).count("Reading the structures") > len(numbers)


def test_compilation_is_said_before_it_blocks(monkeypatch, case):
    from DiffDRRCore import Renderer

    prepared, preparing = [], Renderer.preparing
    monkeypatch.setattr(Renderer, "must_compile", property(lambda self: not prepared))
    monkeypatch.setattr(Renderer, "preparing", lambda self: prepared.append(1) or preparing(self))
    for entry in SceneRegistration(case.anatomy, case.carms, **QUICK).steps():
        if "Compiling" in entry.text:
            assert prepared == []
            break
    else:
        raise AssertionError("nothing was said")


def test_bones_alone_by_a_labelmap(scene):
    case = Case(scene)
    volume = phantom((48, 40, 48), 5.0, seed=1)
    kind = "vtkMRMLLabelMapVolumeNode"
    labels = kit.add_volume(scene, volume.labels.flip(-1).numpy(), case.grid, case.inner, "bones", kind)
    case.anatomy = Anatomy(case.ct, labels)
    case.carms[0].pose = case.truths[0].retract(
        torch.tensor([0.01, -0.01, 0.01, 3.0, -2.0, 4.0]).double(), about=torch.from_numpy(case.anatomy.center)
    )
    before = case.errors()[0]
    bones = [number for number in case.anatomy.structures if number > 2]
    _, registration = case.run(structures=bones, similarity="gradient_ncc", search=0)
    assert case.errors()[0] < 0.5 * before and registration.outcome is not None


def test_landmarks_move_with_the_patient(scene):
    case = Case(scene)
    carm = case.carms[0]
    ct = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "CT landmarks")
    xray = landmarks.xray_landmarks(carm)
    local = kit.apply(np.linalg.inv(case.truths[0].matrix.numpy()), case.points[:4])
    uv = (local / local[:, 2:] @ carm.camera.K.numpy().T)[:, :2]
    for number, (point, mark) in enumerate(zip(case.points, pixels_to_points(carm.camera, uv), strict=False)):
        ct.AddControlPointWorld(*point, str(number))
        xray.AddControlPoint(*mark, str(number))
    before = landmarks.reprojection_errors(carm, ct, xray).rms_pixels
    _, registration = case.run(target="patient", landmarks=(ct, xray))
    assert registration.outcome.views[0].landmarks.rms_pixels < 0.3 < before
