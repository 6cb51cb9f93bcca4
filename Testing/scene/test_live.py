import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import slicer.util
import torch

from DiffDRRCore import Camera, CArm
from DiffDRRSlicerLib.choices import Detail, Overlay, Tint
from DiffDRRSlicerLib.scene import frustum, live, xrays
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.drr import render_drr
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.live import LiveView, Look
from DiffDRRSlicerLib.scene.overlay import OverlayMode
from Testing.core.samples import rigid
from Testing.scene import kit

SHAPE = (16, 18, 20)
CAMERA = Camera(48, 64, (4.0, 3.0), 1000.0)
DRAG, FULL = (24, 32), (48, 64)


class Room:
    """A CT below a transform, two C-arms with X-rays, a list of fiducials, and a clock."""

    def __init__(self, scene, look=None, count=1):
        rng = np.random.default_rng(1)
        hu = np.full(SHAPE, -1000, np.int16)
        hu[3:-3, 3:-3, 3:-3] = rng.integers(0, 1200, (10, 12, 14))
        self.scene, self.now = scene, 10.0
        self.patient = kit.add_transform(scene, np.eye(4), name="patient")
        self.ct = kit.add_volume(scene, hu, kit.grid(rng, SHAPE, spacing=(4.0, 5.0)), self.patient)
        self.carms = [self.add_carm(90.0 * index) for index in range(count)]
        self.fiducials = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "F")
        self.fiducials.SetAndObserveTransformNodeID(self.patient.GetID())
        self.fiducials.AddControlPoint(10.0, -5.0, 8.0, "one")
        self.view = LiveView(scene, drag_size=32)
        self.look = look or Look()
        self.show()

    @property
    def carm(self):
        return self.carms[0]

    def add_carm(self, primary):
        pose = CArm(1000.0, 700.0, torch.zeros(3), primary, 10.0).pose
        image = np.random.default_rng(2).uniform(1, 2, FULL)
        return xrays.add_xray(self.scene, image, CAMERA, pose, {"intensity": "attenuation"})

    def show(self, look=None):
        self.look = look or self.look
        self.view.show(Anatomy(self.ct), self.carm, self.look)

    def tick(self, after=0.02):
        self.now += after
        return self.view.tick(self.now)

    def rest(self):
        """Ticks until nothing happens any more."""
        for _ in range(20):
            if not self.tick(0.2):
                return
        raise AssertionError("it never comes to rest")


def size(carm, role="drr"):
    return slicer.util.arrayFromVolume(carm.referred(role))[0].shape


def image(carm, role="drr"):
    return slicer.util.arrayFromVolume(carm.referred(role))[0].copy()


@pytest.fixture
def renders(monkeypatch):
    """The sizes that were rendered, in turn."""
    found = []

    def counted(carm, anatomy, structures=None, size=None, draft=False):
        found.append(size)
        return render_drr(carm, anatomy, structures, size, draft)

    monkeypatch.setattr(live, "render_drr", counted)
    return found


def test_a_move_is_drawn_small_at_once_and_sharp_at_rest(scene, renders):
    room = Room(scene)
    room.rest()
    assert size(room.carm) == FULL
    room.carm.move_arm(primary=25.0)
    assert room.tick() and size(room.carm) == DRAG
    assert not room.tick(0.05) and not room.tick(0.05) and size(room.carm) == DRAG
    assert room.tick(0.06) and size(room.carm) == FULL
    sharp = image(room.carm)
    assert not room.tick(1.0)
    render_drr(room.carm, Anatomy(room.ct))
    assert np.array_equal(sharp, image(room.carm))


def test_only_the_newest_pose_is_rendered(scene, renders):
    room = Room(scene)
    room.rest()
    renders.clear()
    for angle in range(30):
        room.carm.move_arm(primary=float(angle))
    assert room.tick() and renders == [32]
    small = image(room.carm)
    render_drr(room.carm, Anatomy(room.ct), size=32)
    assert np.array_equal(small, image(room.carm))


def test_steady_movement_never_waits_for_the_sharp_picture(scene, renders):
    room = Room(scene)
    room.rest()
    renders.clear()
    for angle in range(1, 11):
        room.carm.move_arm(primary=float(angle))
        assert room.tick(0.1)
    assert renders == [32] * 10


def test_nothing_is_done_where_nothing_is_new(scene, renders):
    room = Room(scene)
    room.rest()
    renders.clear()
    room.carm.node.Modified()
    room.carm.node.SetAttribute("somebody", "else")
    room.ct.SetName("another name")
    room.carm.pose = room.carm.pose
    assert not room.tick(1.0) and renders == []


def changes(room):
    rng = np.random.default_rng(4)

    def voxels():
        slicer.util.arrayFromVolume(room.ct)[8] = 1500
        slicer.util.arrayFromVolumeModified(room.ct)

    def parent():
        above = kit.add_transform(room.scene, rigid(rng, 5.0))
        room.carm.node.SetAndObserveTransformNodeID(above.GetID())

    return {
        "c-arm": lambda: room.carm.move_arm(secondary=30.0),
        "parent of the c-arm": parent,
        "patient": lambda: room.patient.SetMatrixTransformToParent(kit.matrix(rigid(rng, 5.0))),
        "voxels": voxels,
        "grid": lambda: room.ct.SetSpacing(3.0, 3.0, 3.0),
        "camera": lambda: xrays.set_camera(room.carm, Camera(48, 64, (3.0, 3.0), 900.0)),
        "structures": lambda: room.show(Look(mode=OverlayMode.EDGES)),
    }


@pytest.mark.parametrize("what", ["c-arm", "parent of the c-arm", "patient", "voxels", "grid", "camera", "structures"])
def test_every_change_is_seen(scene, what, renders):
    room = Room(scene)
    room.rest()
    before = image(room.carm)
    renders.clear()
    changes(room)[what]()
    assert room.tick() and renders == [32]
    room.rest()
    assert renders == [32, 64]
    if what == "structures":
        assert size(room.carm, "overlay") == FULL
    else:
        assert np.abs(image(room.carm) - before).max() > 0.02 * before.max()


def test_labels_that_change_are_seen(scene, renders):
    room = Room(scene)
    grid = kit.to_world(room.ct)
    numbers = np.zeros(SHAPE, np.int16)
    numbers[4:8] = 1
    labels = kit.add_volume(scene, numbers, grid, room.patient, "labels", "vtkMRMLLabelMapVolumeNode")
    room.view.show(Anatomy(room.ct, labels), room.carm, Look(structures=(1,)))
    room.rest()
    before = image(room.carm)
    slicer.util.arrayFromVolume(labels)[8:13] = 1
    slicer.util.arrayFromVolumeModified(labels)
    assert room.tick()
    room.rest()
    assert image(room.carm).sum() > 1.3 * before.sum()


def test_the_plane_goes_through_the_patients_middle(scene):
    room = Room(scene)
    room.rest()
    room.patient.SetMatrixTransformToParent(kit.matrix(rigid(np.random.default_rng(6), 30.0)))
    room.tick()
    center = Anatomy(room.ct).center
    depth = kit.apply(np.linalg.inv(room.carm.pose.matrix.numpy()), center)[2]
    assert room.carm.depth == pytest.approx(depth, abs=1e-6)


def test_fiducials_follow_the_list_without_rendering(scene, renders):
    room = Room(scene)
    room.show(Look(fiducials=(room.fiducials,)))
    room.rest()
    projected = room.carm.node.GetNodeReference("DiffDRR.fiducials")
    before = projected.GetNthControlPointPosition(0)
    renders.clear()
    room.fiducials.SetNthControlPointPosition(0, 20.0, 5.0, -8.0)
    assert room.tick()
    assert np.linalg.norm(np.subtract(projected.GetNthControlPointPosition(0), before)) > 5
    room.fiducials.AddControlPoint(0.0, 0.0, 0.0, "two")
    assert room.tick() and projected.GetNumberOfControlPoints() == 2
    room.fiducials.RemoveNthControlPoint(0)
    assert room.tick() and projected.GetNumberOfControlPoints() == 1
    assert projected.GetNthControlPointLabel(0) == "two"
    assert not room.tick(1.0) and renders == []


def test_fiducials_move_with_the_drag(scene):
    room = Room(scene)
    room.show(Look(fiducials=(room.fiducials,)))
    room.rest()
    projected = room.carm.node.GetNodeReference("DiffDRR.fiducials")
    before = np.array(projected.GetNthControlPointPositionWorld(0))
    room.carm.move_arm(primary=40.0)
    room.tick()
    assert np.linalg.norm(np.array(projected.GetNthControlPointPositionWorld(0)) - before) > 1


def test_a_deleted_list_takes_its_projection_along(scene):
    room = Room(scene)
    room.show(Look(fiducials=(room.fiducials,)))
    room.rest()
    projected = room.carm.node.GetNodeReference("DiffDRR.fiducials")
    scene.RemoveNode(room.fiducials)
    room.rest()
    assert projected.GetScene() is None and room.view.error is None


def test_rays_and_epipolar_lines_follow_the_landmarks(scene):
    room = Room(scene, Look(rays=True, epipolar=True), count=2)
    landmarks = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "clicks")
    landmarks.SetAndObserveTransformNodeID(room.carm.plane.GetID())
    room.carm.refer("landmarks", landmarks)
    room.rest()
    landmarks.AddControlPoint(3.0, 4.0, 1000.0, "one")
    assert room.tick()
    rays = room.carm.node.GetNodeReference("DiffDRR.rays")
    assert rays.GetPolyData().GetNumberOfLines() == 1
    lines = room.carms[1].node.GetNodeReference("DiffDRR.epipolar")
    assert lines.GetPolyData().GetNumberOfLines() == 1
    before = lines.GetPolyData().GetBounds()
    room.carm.move_arm(secondary=25.0)
    room.rest()
    assert not np.allclose(lines.GetPolyData().GetBounds(), before)


def test_the_frustum_follows_the_camera(scene):
    room = Room(scene)
    model = frustum.create_frustum(room.carm)
    room.rest()
    xrays.set_camera(room.carm, Camera(48, 64, (4.0, 3.0), 800.0))
    room.tick()
    assert model.GetPolyData().GetBounds()[5] == pytest.approx(800.0)


def test_the_other_c_arms_follow_at_rest(scene, renders):
    room = Room(scene, count=2)
    room.rest()
    before = [image(carm) for carm in room.carms]
    renders.clear()
    room.patient.SetMatrixTransformToParent(kit.matrix(rigid(np.random.default_rng(6), 20.0)))
    room.tick()
    room.tick()
    assert renders == [32]
    room.rest()
    assert renders == [32, 64, 64]
    assert all(not np.array_equal(image(carm), old) for carm, old in zip(room.carms, before, strict=True))


def test_a_c_arm_that_is_added_is_rendered(scene):
    room = Room(scene)
    room.rest()
    added = room.add_carm(45.0)
    room.rest()
    assert size(added) == FULL


def test_rest_size(scene):
    room = Room(scene)
    room.rest()
    assert size(room.carm) == FULL  # not more than the X-ray's own
    room.show(Look(rest_size=40))
    room.rest()
    assert size(room.carm) == (30, 40)
    room.show(Look(rest_size=1024))
    room.rest()
    assert size(room.carm) == FULL


def test_a_tick_inside_a_tick_does_nothing(scene, renders):
    room = Room(scene)
    room.rest()
    inner = []
    drr = room.carm.referred("drr")

    def move_and_tick(*_):
        if not inner:
            inner.append(None)
            room.carm.move_arm(primary=70.0)
            inner[0] = room.view.tick(room.now)

    tag = drr.AddObserver(drr.ImageDataModifiedEvent, move_and_tick)
    renders.clear()
    room.carm.move_arm(primary=25.0)
    assert room.tick() and inner == [False] and renders == [32]
    drr.RemoveObserver(tag)
    assert room.tick() and renders == [32, 32]


def test_a_bad_input_is_reported_once_and_gets_well(scene):
    room = Room(scene)
    room.rest()
    above = kit.add_transform(scene, np.diag([2.0, 1, 1, 1]))
    room.carm.node.SetAndObserveTransformNodeID(above.GetID())
    room.tick()
    assert isinstance(room.view.error, SceneError) and "scaled" in str(room.view.error)
    room.view.error = None
    room.rest()
    assert room.view.error is None
    above.SetMatrixTransformToParent(kit.matrix(np.eye(4)))
    room.carm.move_arm(primary=50.0)
    room.rest()
    assert room.view.error is None and size(room.carm) == FULL
    above.SetMatrixTransformToParent(kit.matrix(np.diag([2.0, 1, 1, 1])))
    room.tick()
    assert room.view.error is not None


def test_a_difference_that_cannot_be_drawn_does_not_stop_the_drr(scene):
    room = Room(scene, Look(mode=OverlayMode.DIFFERENCE))
    room.carm.meta = {}
    room.tick()
    assert "intensity" in str(room.view.error)
    room.view.error = None
    before = image(room.carm)
    for angle in (20.0, 30.0):
        room.carm.move_arm(primary=angle)
        assert room.tick() and room.view.error is None
    assert not np.array_equal(image(room.carm), before)


def test_deleted_nodes_are_survived(scene):
    room = Room(scene, Look(mode=OverlayMode.CHECKERBOARD), count=2)
    room.rest()
    scene.RemoveNode(room.carms[1].referred("overlay"))
    scene.RemoveNode(room.carm.referred("drr"))
    room.carm.move_arm(primary=25.0)
    room.rest()
    assert room.carm.referred("drr") is not None and room.view.error is None
    scene.RemoveNode(room.carm.node)
    room.rest()
    scene.RemoveNode(room.ct)
    room.rest()
    assert room.view.error is None


def test_a_scene_that_closes_is_survived_and_used_again(scene):
    room = Room(scene)
    room.rest()
    scene.Clear(False)
    assert not room.tick(1.0) and room.view.error is None
    again = Room(scene)
    room.view.show(Anatomy(again.ct), again.carm)
    room.tick()
    assert size(again.carm) == DRAG


def test_after_close_nothing_happens_and_nothing_is_held(scene, renders):
    room = Room(scene)
    room.rest()
    renders.clear()
    room.view.close()
    room.carm.move_arm(primary=25.0)
    assert not room.tick() and renders == []
    held = weakref.ref(room.view)
    room.view = None
    gc.collect()
    assert held() is None


def test_the_modules_parameters_are_a_look(scene, renders):
    room = Room(scene)
    parameters = SimpleNamespace(
        overlayMode=Overlay.CHECKERBOARD,
        squares=4.0,
        edgeStrength=0.3,
        tint=Tint.CYAN,
        structures=[],
        fiducials=room.fiducials,
        ctLandmarks=None,
        showRays=False,
        showEpipolar=False,
        detail=Detail.LOW,
    )
    assert Look.of(parameters) == Look(OverlayMode.CHECKERBOARD, 4, 0.3, "cyan", (), (room.fiducials,), rest_size=256)
    room.view.show(Anatomy(room.ct), room.carm, parameters)
    room.rest()
    count = np.unique(image(room.carm, "overlay")[0] < -1).size
    assert count == 2
    parameters.overlayMode = Overlay.EDGES
    room.view.show(Anatomy(room.ct), room.carm, parameters)
    assert not room.tick(1.0)  # read again only after `invalidate`
    room.view.invalidate()
    room.rest()
    assert set(np.unique(image(room.carm, "overlay"))) <= {0.0, 1.0}
    assert all(hasattr(Overlay, mode.name) for mode in OverlayMode)
