"""Several bodies, free C-arms and unknown cameras: images against moved voxels, slopes against differences."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from DiffDRRCore import Camera, CArm, Pose, Registration, Renderer, Volume, XRay, project
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.registration import Body, FreeCamera, Joint, Landmarks, Limits
from Testing.core.samples import differences

POINTS = torch.tensor([[-30.0, 0, 10], [-35, 10, -20], [35, 5, 5], [30, -10, 25]]).double()
OWNERS = ("left", "left", "right", "right")


@cache
def volume() -> Volume:
    """Two lumpy bones, labels 1 and 2, in soft matter, label 0; air all around, on an oblique grid, in float64."""
    k, j, i = torch.meshgrid(*(torch.linspace(-1, 1, n).double() for n in (16, 14, 22)), indexing="ij")
    lumps = 1 + 0.4 * torch.sin(7 * k + 3 * i) * torch.cos(5 * j)
    left = ((i + 0.45) ** 2 / 0.1 + j**2 / 0.3 + k**2 / 0.4) < 1
    right = ((i - 0.45) ** 2 / 0.08 + j**2 / 0.2 + k**2 / 0.5) < 1
    soft = ((i**2 + j**2 + k**2) < 0.8).double() * 0.003
    turn = Pose.exp(torch.tensor([0.2, -0.3, 0.1, 0, 0, 0]).double()).rotation
    affine = torch.eye(4).double()
    affine[:3, :3] = turn @ torch.diag(torch.tensor([6.0, 7.0, 8.0]).double())
    affine[:3, 3] = -affine[:3, :3] @ torch.tensor([10.5, 6.5, 7.5]).double()
    mu = soft + (0.02 * left + 0.025 * right) * lumps
    labels = left.int() + 2 * right.int()
    return Volume.from_attenuation(mu, affine, labels, {1: "left", 2: "right"})


def arm(primary: float) -> CArm:
    return CArm(1000.0, 600.0, volume().center, primary=primary, secondary=5.0)


def views(*primaries: float) -> list[XRay]:
    found = []
    for primary in primaries:
        camera = arm(primary).camera(20, 24, (11.0, 10.0), view_from="detector")
        found.append(XRay(Renderer(volume())(camera, arm(primary).pose)[0, 0], camera, arm(primary).pose))
    return found


def bodies(**changes) -> list[Body]:
    return [Body("left", ["left"], **changes), Body("right", [2], **changes), Body("rest", locked=True)]


def registration(*primaries: float, **options) -> Registration:
    options = {"sizes": (24, 24), "bodies": bodies(), "voxels_per_pixel": 0.1} | options
    xrays = options.pop("xrays", None) or views(*primaries)
    return Registration(volume(), xrays, **options)


def motion(*xi: float) -> Pose:
    return Pose.identity().retract(torch.tensor(xi).double(), about=volume().center)


MOTIONS = {"left": motion(0.05, -0.08, 0.1, 4.0, -3.0, 5.0), "right": motion(-0.1, 0.02, 0.06, -5.0, 2.0, 1.0)}


def moved(name: str, patient_motion: Pose) -> Volume:
    """A bone alone, its grid carried along."""
    bone = volume().select(name)
    return Volume.from_attenuation(bone.attenuation, patient_motion.matrix @ bone.ijk_to_ras)


def test_image_is_that_of_the_moved_bones():
    """The bodies' motions are those of the anatomy, and their line integrals add up."""
    bones = [Body(name, [name], motion=MOTIONS[name]) for name in MOTIONS]
    found = registration(10.0, 80.0, bodies=[*bones, Body("rest", locked=True)], step=0.2)
    objective = found.levels[-1].objective
    rest = volume().select([0])
    for view in objective.views:
        image, _ = list_of(objective.images.linearizing(view, objective.unknowns.start()))
        parts = [moved(name, motion) for name, motion in MOTIONS.items()]
        expected = sum(Renderer(part, step=0.2)(view.camera, view.start) for part in [*parts, rest])
        assert torch.allclose(image, expected, atol=1e-3)
        assert float((image - view.fixed).abs().max()) > 0.05


def list_of(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


JOINTS = [
    Joint(("left", "right"), deviations=(3.0, None, 5.0, 1.0, 2.0, None), axes=motion(0.3, 0.2, 0.1, 0, 0, 0).rotation),
    Joint(("right", "left"), center=(1.0, 2.0, 3.0), bounds=(1.0, 1.0, 1.0, 0.5, 0.5, 0.5), weight=0.01),
]


def everything(similarity: str = "zncc") -> Registration:
    """Two bones, a second C-arm of its own, an unknown camera for both, joints, landmarks, priors."""
    clicked = [project(xray.camera, xray.pose, POINTS)[0] + 1.0 for xray in views(10.0, 80.0)]
    clicked[1][2] = math.nan
    return registration(
        *(10.0, 80.0),
        similarity=similarity,
        bodies=bodies(limits=Limits(deviations=(3.0, None, 5.0, 10.0, 10.0, 20.0), weight=0.02)),
        joints=JOINTS,
        free_views=[None, Limits(deviations=(2.0,) * 6)],
        free_cameras=FreeCamera(30.0, 5.0, 4.0),
        view_weights=[1.0, 3.0],
        landmarks=Landmarks(POINTS, clicked, bodies=OWNERS),
    )


@pytest.mark.parametrize("similarity", ["zncc", "ssd", "gradient_ncc", "mutual_information"])
def test_gradient_of_everything(similarity):
    objective = everything(similarity).levels[-1].objective
    unknowns = objective.unknowns
    assert unknowns.size == 3 * 6 + 6 + 4
    q = torch.randn(1, unknowns.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    state = unknowns.state(torch.where(unknowns.locked, 0.0, q * unknowns.unit * 3))
    free = ~unknowns.locked
    expected = differences(
        lambda xi: objective.linearize(unknowns.moved(state, torch.where(free, xi, 0.0)[None])).cost[0],
        torch.zeros(unknowns.size).double(),
        step=1e-5,
    )
    found = objective.linearize(state).gradient[0]
    scaled = [slope * unknowns.unit for slope in (found, expected)]
    assert float((scaled[0] - scaled[1]).norm()) < 2e-3 * float(scaled[1].norm())
    assert bool((found[~free] == 0).all()) and bool((found[free] != 0).all())


def test_a_batch_is_linearized_as_one_by_one():
    objective = everything().levels[-1].objective
    unknowns = objective.unknowns
    q = torch.randn(3, unknowns.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    states = unknowns.state(torch.where(unknowns.locked, 0.0, q * unknowns.unit))
    together = objective.linearize(states)
    for row in range(3):
        alone = objective.linearize(states[row : row + 1])
        for name in ("cost", "gradient", "hessian"):
            assert torch.allclose(getattr(together, name)[row], getattr(alone, name)[0], rtol=1e-8, atol=1e-11), name


def test_a_joint_by_hand():
    """The second body turned by 3 degrees about the joint's first axis costs one deviation; with the first, none."""
    found = registration(10.0, joints=[Joint(("left", "right"), (5.0, 6.0, 7.0), deviations=(3.0,) * 6, weight=0.25)])
    knowledge, unknowns = found.levels[-1].objective.knowledge, found.levels[-1].objective.unknowns
    center, turn = torch.tensor([5.0, 6.0, 7.0]).double(), torch.tensor([math.radians(3), 0, 0, 0, 0, 0]).double()
    common = motion(0.1, 0.2, -0.1, 5.0, 6.0, 7.0)
    relative = Pose.identity().retract(turn, about=center)
    state = unknowns.start()
    state.motions.matrix[0, 0] = common.inverse().matrix
    state.motions.matrix[0, 1] = (common @ relative).inverse().matrix
    residuals = knowledge.residuals(state)[0][0]
    assert float(residuals @ residuals) / 2 == pytest.approx(0.25, rel=1e-6)
    state.motions.matrix[0, 1] = common.inverse().matrix
    assert float(knowledge.residuals(state)[0].abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bodies": []}, "empty"),
        ({"bodies": Body("a", [1])}, "bodies is a list of Body"),
        ({"bodies": ["a"]}, r"made by DiffDRRCore.registration.Body\(...\), got 'a'"),
        ({"bodies": [Body("a", [1]), Body("b", [77])]}, "'b' is empty: the labelmap has no voxel of label 77"),
        ({"bodies": [Body("a", [0, 1, 2]), Body("rest")]}, "'rest' is empty"),
        ({"joints": Joint(("left", "right"), deviations=(1.0,) * 6)}, "joints is a list of Joint"),
        ({"free_views": [None, True]}, "that is not None must be made by DiffDRRCore.registration.Limits"),
        ({"free_cameras": 3.0}, "free_cameras is a list of FreeCamera"),
        ({"about": (1.0, 2.0)}, "about is a point of three numbers"),
        ({"bodies": [Body("a", [1]), Body("a", [2])]}, "a name of its own"),
        ({"bodies": [Body("a", [1]), Body("b", [1, 2])]}, "Label 1 is in two bodies"),
        ({"bodies": [Body("a"), Body("b")]}, "Only one body"),
        ({"bodies": [Body("a", locked=True)]}, "nothing to register"),
        ({"joints": [Joint(("left", "skull"), deviations=(1.0,) * 6)]}, "the body 'skull'"),
        ({"labels": [1]}, "not in both"),
        ({"free_views": [None]}, "2 X-rays but 1 free_views"),
        ({"free_views": [Limits(), Limits()], "bodies": None}, "All C-arms are free"),
        ({"view_weights": [1.0, 0.0]}, "above 0"),
        ({"view_weights": [1.0, math.inf]}, "above 0"),
        ({"bodies": None, "joints": [Joint(("a", "b"), deviations=(1.0,) * 6)]}, "names the body 'a'"),
        ({"bodies": [Body("a", locked=True)], "free_views": [None, None]}, "nothing to register"),
        ({"free_cameras": [FreeCamera(1.0)]}, "2 X-rays but 1 free_cameras"),
    ],
)
def test_bad_problems(options, message):
    with pytest.raises(RegistrationError, match=message):
        registration(10.0, 80.0, **options)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Body("a", limits=(1.0,) * 6), r"limits of the body 'a' must be made by .*Limits\(...\)"),
        (lambda: Body("a", about=(1.0, math.nan, 2.0)), "'a' turns about is a point"),
        (lambda: Body("a", about="center"), "'a' turns about is a point"),
        (lambda: Joint("ab", deviations=(1.0,) * 6), "whose names it gives, got 'ab'"),
        (lambda: Joint(("a", "b"), center=(1.0, 2.0), deviations=(1.0,) * 6), "centre of a joint is a point"),
        (lambda: Joint(("a", "b"), deviations=1.0), "deviations are six positive numbers"),
        (lambda: Joint(("a", "b"), deviations=(1.0,) * 6, weight="1"), "weight of a joint must be 0 or more"),
        (lambda: Limits(bounds=("1",) * 6), "bounds are six positive numbers"),
    ],
)
def test_what_is_no_body_joint_or_limits(make, message):
    with pytest.raises(RegistrationError, match=message):
        make()


def test_a_body_that_no_view_shows():
    away = Body("left", [1], motion=Pose.exp(torch.tensor([0.0, 0, 0, 900, 0, 900]).double()))
    with pytest.raises(RegistrationError, match="No view shows the body 'left'"):
        registration(10.0, bodies=[away, Body("right", [2])])


def test_one_view_twice_and_two_images_from_one_place():
    (one,) = views(10.0)
    with pytest.raises(RegistrationError, match="the same image"):
        registration(xrays=[one, one])
    other = one.with_image(one.image.flip(0))
    with pytest.raises(RegistrationError, match="from the same pose"):
        registration(xrays=[one, other])


def finished(made: Registration):
    for _ in made.steps():
        pass
    return made.result()


def test_bounds_of_bodies_hold_after_the_first_level():
    """Moved by 15 mm, allowed 3 mm: the level that moves all together may go farther, the answer may not."""
    truth = motion(0, 0, 0, 15.0, 0, 0)
    parts = [Renderer(moved("left", truth)), Renderer(moved("right", truth)), Renderer(volume().select([0]))]
    xrays = []
    for xray in views(10.0, 80.0):
        xrays.append(xray.with_image(sum(part(xray.camera, xray.pose) for part in parts)[0, 0]))
    limits = Limits(bounds=(2.0, 2.0, 2.0, 3.0, 3.0, 3.0))
    result = finished(registration(xrays=xrays, bodies=bodies(limits=limits), search=0))
    for body in result.bodies[:2]:
        shift = body.motion.transform(body.about[None])[0] - body.about
        assert float(shift.abs().max()) < 3 * 3**0.5 + 0.1
    assert result.at_bound


def test_limits_are_in_the_cameras_axes_whatever_the_bodys_start():
    """Depth is along the beam, for a body that starts turned by a right angle too."""
    turned = Pose.from_parameters([0.0, 0, 90], [0.0, 0, 0], "axis_angle", degrees=True)
    found = registration(10.0, bodies=[Body("left", [1], motion=turned), Body("rest", locked=True)])
    objective = found.levels[-1].objective
    view, unknowns = objective.views[0], objective.unknowns
    q = torch.zeros(1, unknowns.size, dtype=torch.float64)
    q[0, 5] = 10.0
    poses = [objective.images.poses(s, objective.models[0], view) for s in (unknowns.start(), unknowns.state(q))]
    shift = poses[0].inverse().transform(poses[1].translation[:, None])[0, 0]
    assert torch.allclose(shift, torch.tensor([0.0, 0, 10]).double(), atol=1e-6)


def test_a_locked_body_may_come_first():
    """History and alternatives tell the motion of what is free, and the answer is no rival of itself."""
    ordered = [Body("rest", locked=True), Body("left", [1]), Body("right", [2])]
    parts = [Renderer(moved(name, MOTIONS[name])) for name in MOTIONS] + [Renderer(volume().select([0]))]
    xrays = []
    for xray in views(10.0, 80.0):
        xrays.append(xray.with_image(sum(part(xray.camera, xray.pose) for part in parts)[0, 0]))
    result = finished(registration(xrays=xrays, bodies=ordered))
    assert not torch.equal(torch.tensor(result.history[-1]["motion"]), torch.eye(4))
    assert not any("nearly as good" in doubt for doubt in result.doubts)


def test_one_by_one_leaves_free_arms_where_they_are():
    objective = everything().levels[-1].objective
    alone = objective.only(0).linearize(objective.unknowns.start())
    assert bool((alone.gradient[0, 6:] == 0).all()) and bool((alone.gradient[0, :6] != 0).any())


def test_a_camera_far_from_what_was_told_is_found_all_the_same():
    """The principal point is off by half of its deviation; the prior must not hold it back."""
    xrays = []
    for xray in views(10.0, 80.0):
        K = xray.camera.K.clone()
        K[0, 2] += 1.0  # a pixel: 10 mm
        distance = xray.camera.source_to_detector
        camera = Camera.from_intrinsics(K, xray.camera.height, xray.camera.width, source_to_detector=distance)
        xrays.append(XRay(xray.image, camera, xray.pose))
    result = finished(registration(xrays=xrays, bodies=None, free_cameras=FreeCamera(principal_point=20.0), search=0))
    assert abs(float(result.cameras[0].changes[1])) == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Body(""),
        lambda: Body("a", []),
        lambda: Joint(("a", "a")),
        lambda: Joint(("a", "b")),
        lambda: FreeCamera(-1.0),
        lambda: Joint(("a", "b"), axes=torch.ones(3, 3), deviations=(1.0,) * 6),
    ],
)
def test_bad_parts(call):
    with pytest.raises(RegistrationError):
        call()
