"""A search without a start: ranges, templates and poses by closed forms, and what it finds on the phantom."""

from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore import Camera, CArm, Pose, Registration, XRay, register
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import pixel_rays, project
from DiffDRRCore.registration import GlobalSearch
from DiffDRRCore.registration.global_search.ranges import SearchRanges
from DiffDRRCore.registration.global_search.view_matching import Canvas, canvas_for, crossing, make_templates, pose_from
from DiffDRRCore.registration.starts.starts import StartFinder
from Testing.core.registration import scene

PIVOT = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
WHERE = {"primary": (-40, 60), "secondary": (-30, 30), "roll": (-20, 20), "sod": (550, 650), "isocenter": 20.0}


def ball(camera: Camera, pose: Pose, centre: torch.Tensor, radius: float) -> torch.Tensor:
    """Chord lengths [H, W] of rays through a ball: the closed form."""
    source, target = pixel_rays(camera, pose)
    ray = torch.nn.functional.normalize(target - source, dim=-1)
    nearest = torch.linalg.cross(centre - source, ray).norm(dim=-1)
    return 2 * (radius**2 - nearest**2).clamp(min=0).sqrt().reshape(camera.height, camera.width)


def balls(camera: Camera, pose: Pose) -> torch.Tensor:
    """Three balls of different sizes near the pivot: no view of them is symmetric."""
    places = ([40.0, 0, 0], 25.0), ([0.0, 0, 35.0], 18.0), ([-30.0, 0, -30.0], 12.0)
    return sum(ball(camera, pose, PIVOT + torch.tensor(shift), radius) for shift, radius in places)


@pytest.mark.parametrize("seed", range(5))
def test_pose_from_shows_the_pivot_where_and_from_where_it_says(seed):
    generator = torch.Generator().manual_seed(seed)
    direction = torch.rand(4, 2, generator=generator).double() * 60 - 30
    roll, distance = torch.rand(4, generator=generator).double() * 80 - 40, torch.linspace(500, 900, 4).double()
    centre = torch.rand(4, 2, generator=generator).double() * 0.3 - 0.15
    poses = pose_from(direction, roll, distance, centre, PIVOT)
    plane = Camera.from_intrinsics(torch.eye(3).double(), 8, 8, source_to_detector=1000.0)
    assert torch.allclose(project(plane, poses, PIVOT[None])[:, 0], centre, atol=1e-12)
    straight = CArm(1000.0, distance, PIVOT, direction[:, 0], direction[:, 1], roll).pose
    assert torch.allclose(poses.translation, straight.translation)  # the source stays
    turned = (straight.rotation.mT @ poses.rotation).diagonal(dim1=-2, dim2=-1).sum(-1)
    angle = torch.acos((turned - 1) / 2)
    assert torch.allclose(angle, torch.atan(centre.norm(dim=-1)), atol=1e-7)  # no more than it takes


@pytest.mark.parametrize("view_from", ["source", "detector"])
@pytest.mark.parametrize(("roll", "distance", "row", "column"), [(0, 700, 0, 0), (14, 770, 3, -4), (-14, 640, -5, 2)])
def test_a_match_is_found_at_the_pose_that_made_the_image(view_from, roll, distance, row, column):
    """Balls in a plane across the beam: turning, scaling and shifting their image is exact but for perspective."""
    canvas_camera = Camera(24, 24, (12.0, 12.0), 1000.0, (13.0, 10.5), view_from)
    grid = torch.cartesian_prod(torch.tensor([-14.0, 0, 14]), torch.tensor([640.0, 700, 770])).double()
    canvas = canvas_for(canvas_camera, grid, 700.0, 80.0)
    zero = torch.zeros(1, dtype=torch.float64)
    direction = torch.zeros(1, 2, dtype=torch.float64)
    still = pose_from(direction, zero, zero + 700.0, torch.zeros(1, 2).double(), PIVOT)
    rendered = balls(canvas.camera(1000.0), still).float()
    number = int(((grid - torch.tensor([roll, distance])).abs().sum(-1)).argmin())
    blank = make_templates(XRay(torch.rand(24, 24), canvas_camera), None, canvas, grid, 700.0)
    centre = blank.centres()[number, row, column]
    truth = pose_from(direction, zero + roll, zero + distance, centre[None], PIVOT)
    xray = XRay(2 * balls(canvas_camera, truth).float() + 5, canvas_camera)
    found = make_templates(xray, None, canvas, grid, 700.0).correlation(
        rendered[None], torch.ones_like(rendered[None])
    )[0]
    best = int(found.argmax())
    assert best // canvas.size**2 == number
    assert best % canvas.size**2 == (row % canvas.size) * canvas.size + column % canvas.size
    assert 0.95 < float(found.max()) <= 1 + 1e-4


def test_correlation_is_that_of_the_window_and_leaves_out_what_does_not_count():
    """Against the plain formula, pixel by pixel; part of the X-ray is hidden, and part of the view is beyond the CT."""
    generator = torch.Generator().manual_seed(0)
    camera = Camera(13, 13, (20.0, 20.0), 1000.0)
    weight = torch.ones(13, 13)
    weight[:, :4] = 0
    image = torch.rand(13, 13, generator=generator)
    grid = torch.tensor([[0.0, 700.0]]).double()
    canvas = canvas_for(camera, grid, 700.0, 70.0)
    size = canvas.size + 1 - canvas.size % 2  # odd, so that pixels of both lie on each other
    canvas, first = Canvas(size, canvas.pitch), (size - 13) // 2
    view, covered = torch.rand(1, size, size, generator=generator), torch.ones(1, size, size)
    covered[:, : size // 2 - 1] = 0
    view = view + torch.linspace(0, 5, size)  # the average of a window is not that of the view
    image = image + torch.linspace(0, 2, 13)[:, None]
    templates = make_templates(XRay(torch.where(weight > 0, image, 1e3), camera), weight, canvas, grid, 700.0)
    found = templates.correlation(torch.where(covered > 0, view, -1e3), covered)[0, 0]
    for down, right in ((0, 0), (2, -1), (1, 3)):
        window = (0, slice(first + down, first + down + 13), slice(first + right, first + right + 13))
        counted = (weight > 0) & (covered[window] > 0)
        pair = torch.stack([view[window][counted], image[counted]])
        assert float(found[down, right]) == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-3)
    assert float(found[-4, 0]) == -1  # less than half of the X-ray's pixels lie on what is covered


def test_a_ct_that_covers_a_small_part_of_the_x_ray_is_compared_there():
    """A view of 5 x 5 covered pixels under an X-ray of 21 x 21: every place that holds them all counts."""
    generator = torch.Generator().manual_seed(1)
    camera = Camera(21, 21, (20.0, 20.0), 1000.0)
    image = torch.rand(21, 21, generator=generator)
    grid = torch.tensor([[0.0, 700.0]]).double()
    canvas = canvas_for(camera, grid, 700.0, 70.0)
    size = canvas.size + 1 - canvas.size % 2  # odd, so that pixels of both lie on each other
    canvas, first, middle = Canvas(size, canvas.pitch), (size - 21) // 2, size // 2
    here = (0, slice(middle - 2, middle + 3), slice(middle - 2, middle + 3))
    view, covered = torch.zeros(1, size, size), torch.zeros(1, size, size)
    covered[here], view[here] = 1.0, torch.rand(5, 5, generator=generator)
    found = make_templates(XRay(image, camera), None, canvas, grid, 700.0).correlation(view, covered)[0, 0]
    for down, right in ((0, 0), (4, -3), (-8, 8)):
        row, column = (middle - 2 - first - shift for shift in (down, right))
        pair = torch.stack([view[here].flatten(), image[row : row + 5, column : column + 5].flatten()])
        assert float(found[down, right]) == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-3)
    assert float(found[0, 12]) == -1  # none of them lies on the X-ray


def test_which_rays_cross_the_grid_of_the_ct():
    """A parallel beam along S through the phantom: those within its voxels' centres do."""
    volume = scene.ct()
    low = (volume.ijk_to_ras @ torch.tensor([0.0, 0, 0, 1]).to(volume.ijk_to_ras))[:3].double()
    high = (volume.ijk_to_ras @ torch.tensor([47.0, 39, 47, 1]).to(volume.ijk_to_ras))[:3].double()
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    at = low + (high - low) * torch.tensor([[0.5, 0.5, 0], [0.01, 0.99, 0], [-0.01, 0.5, 0], [0.5, 1.01, 0]])
    source, target = (at + torch.tensor([0.0, 0, z]) for z in (-500.0, 500.0))
    assert crossing(volume, source, target).tolist() == [True, True, False, False]
    assert not crossing(volume, source, source + torch.tensor([0.0, 0, 100])).any()  # they end before it


def test_directions_cover_the_sphere_evenly():
    """No place in the ranges is farther from a direction than half the diagonal of its share, and a little."""
    limits = SearchRanges((-90, 90), (-40, 40), isocenter=0.0)
    directions = limits.directions(500, 700.0, seed=3)
    assert 450 < len(directions) < 550
    share = math.degrees(math.sqrt(math.pi * 2 * math.sin(math.radians(40)) / 500))

    def beams(angles):
        return CArm(1.0, 1.0, (0.0, 0, 0), angles[:, 0], angles[:, 1]).pose.rotation[..., 2]

    everywhere = torch.cartesian_prod(torch.linspace(-90, 90, 91), torch.linspace(-40, 40, 41)).double()
    nearest = torch.rad2deg(torch.acos((beams(everywhere) @ beams(directions).T).amax(-1).clamp(max=1)))
    assert float(nearest.max()) < 1.1 * share
    assert float(nearest.mean()) < 0.5 * share


def test_one_direction_where_the_ranges_hold_one():
    limits = SearchRanges((30, 30), (10, 10), (5, 5), (700, 700), isocenter=0.0)
    assert torch.allclose(limits.directions(1, 700.0, 0), torch.tensor([[30.0, 10.0]]).double())
    assert torch.allclose(limits.template_grid(700.0, 700.0), torch.tensor([[5.0, 700.0]]).double())


def test_a_registration_without_a_start():
    """Some 50 degrees from the middle of the ranges."""
    xray = scene.xray(primary=55.0, secondary=-25.0)
    search = GlobalSearch(**WHERE, count=100)
    assert isinstance(search, StartFinder)
    result = register(scene.ct(), xray.with_pose(None), search, sizes=(32, 64))
    assert scene.error(result.poses[0], xray.pose) < 2
    scores = [other["similarity"] for other in result.alternatives]
    assert scores
    assert scores == sorted(scores, reverse=True)


def test_a_search_in_pieces_of_a_registration():
    xray = scene.xray().with_pose(None)
    work, words = Registration.preparing(scene.ct(), xray, GlobalSearch(**WHERE, count=8), sizes=(16,)), []
    with pytest.raises(StopIteration):
        while True:
            words.append(next(work))
    assert words.count("Looking for the start") > 10


def test_two_views_and_what_is_told():
    xrays = [scene.xray(20.0, 10.0), scene.xray(-60.0, 0.0)]
    elsewhere = Pose.from_parameters([0.3, -0.2, 0.4], [300.0, -100, 50], "axis_angle")
    moved = [xray.with_pose(elsewhere @ xray.pose) for xray in xrays]  # the places to each other are all that is known
    search, steps = GlobalSearch(**WHERE, count=40, keep=3), []
    work = search.searching(scene.ct(), moved)
    while True:
        try:
            steps.append(next(work))
        except StopIteration as end:
            found = end.value
            break
    for pose, xray in zip(found.poses, xrays, strict=True):
        assert scene.error(pose, xray.pose) < 3
    assert {step.doing.split(",")[0] for step in steps} >= {
        "Looking from all sides",
        "Comparing the best",
        "Optimising",
    }
    assert all(0 <= step.done <= step.total for step in steps)
    assert 30 < found.views < 50
    assert found.tried > 100 * found.views
    assert set(found.seconds) == {"match", "screen", "optimise"}
    assert len(found.alternatives) <= 2
    assert all(other["similarity"] <= found.similarity for other in found.alternatives)
    for other in found.alternatives:
        assert scene.error(Pose(torch.tensor(other["motion"]).double()) @ found.poses[0], found.poses[0]) > 2


def test_the_seed_alone_decides():
    xray = scene.xray()
    first, again = (GlobalSearch(**WHERE, count=4, seed=1).find(scene.ct(), xray) for _ in range(2))
    assert torch.equal(first.poses.matrix, again.poses.matrix)
    one, other = (SearchRanges().directions(50, 600.0, seed) for seed in (1, 2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"primary": (40, -40)}, "range of primary is reversed: 40 is more than -40"),
        ({"secondary": (-100, 0)}, "secondary must lie within -90 to 90"),
        ({"roll": (0, math.nan)}, "roll is two finite numbers"),
        ({"primary": 10}, "primary is two finite numbers"),
        ({"primary": (-300, 300)}, "more than a full turn"),
        ({"sod": (0, 500)}, "sod must be above 0"),
        ({"sod": (700, 600)}, "sod is reversed"),
        ({"isocenter": -1}, "isocenter is one number of 0 or more"),
        ({"isocenter": (1, 2)}, "isocenter is one number of 0 or more"),
        ({"about": (0, 0, math.inf)}, "about is three finite numbers"),
        ({"count": 0}, "count is a whole number of 1 or more"),
        ({"keep": 2.5}, "keep is a whole number"),
        ({"similarity": "mutual_information"}, "not a sum of squares"),
    ],
)
def test_ranges_that_cannot_be(options, message):
    with pytest.raises(RegistrationError, match=message):
        GlobalSearch(**options)


def test_x_rays_that_cannot_be():
    xray, search = scene.xray(), GlobalSearch(**WHERE, count=4)
    with pytest.raises(RegistrationError, match="no X-ray"):
        search.find(scene.ct(), [])
    with pytest.raises(RegistrationError, match="X-ray 2 has no pose"):
        search.find(scene.ct(), [xray, xray.with_pose(None)])
    with pytest.raises(RegistrationError, match="beyond the detector"):
        GlobalSearch(sod=(1200, 1300)).find(scene.ct(), xray)
    flat = xray.with_image(torch.full_like(xray.image, 3.0))
    with pytest.raises(RegistrationError, match="too few or all equal"):
        search.find(scene.ct(), flat)
    parallel = Camera.parallel_beam(64, 64, (5.0, 5.0), 1000.0)
    with pytest.raises(RegistrationError, match="point source"):
        search.find(scene.ct(), XRay(xray.image, parallel))


def test_nothing_in_view():
    search = GlobalSearch(**WHERE, count=4, about=(2000.0, 0.0, 0.0))
    with pytest.raises(RegistrationError, match="From none of the directions"):
        search.find(scene.ct(), scene.xray())
