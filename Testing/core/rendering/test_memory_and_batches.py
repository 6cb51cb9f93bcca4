"""Batches, chunks and memory: none of them may change a pixel."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, CArm, Renderer, Volume
from DiffDRRCore.errors import RenderError
from DiffDRRCore.geometry import stack_poses
from DiffDRRCore.rendering import renderer as renderer_module
from Testing.core import samples
from Testing.core.rendering import reference

INTEGRATORS = ("trilinear", "siddon")
SHAPE = (10, 11, 12)


def volume(seed: int = 0, **more) -> Volume:
    rng = np.random.default_rng(seed)
    affine = samples.oblique_grid(rng, SHAPE, spacing=(2.0, 3.0))
    return reference.double(rng.uniform(0, 0.05, SHAPE), affine, rng.integers(0, 3, SHAPE), **more)


def arm(ct: Volume, **angles) -> CArm:
    return CArm(900, 600, ct.center, **{"primary": 23, "secondary": -31, **angles})


class Recorder:
    """An integrator that notes how many rays it is given at a time."""

    def __init__(self, integrate):
        self.integrate, self.sizes = integrate, []

    def bytes_per_ray(self, field):
        return self.integrate.bytes_per_ray(field)

    def __call__(self, field, s, t):
        self.sizes.append(len(s))
        return self.integrate(field, s, t)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_batch_of_cameras_and_poses_is_its_members(integrator):
    ct = volume()
    arms = [arm(ct, roll=roll) for roll in (0, 45, 90)]
    cameras = [one.camera(7, 6, (5, row)) for one, row in zip(arms, (4, 5, 6), strict=True)]
    poses = stack_poses([one.pose for one in arms])
    batch = Camera.from_intrinsics(torch.stack([c.K for c in cameras]), 7, 6, source_to_detector=900)
    renderer = Renderer(ct, integrator)
    both, one_camera, one_pose = renderer(batch, poses), renderer(cameras[0], poses), renderer(batch, arms[1].pose)
    assert both.shape == one_camera.shape == one_pose.shape == (3, 1, 7, 6)
    for index in range(3):
        single = lambda c, p: renderer(c, p)[0]  # noqa: E731
        assert torch.allclose(both[index], single(cameras[index], arms[index].pose), rtol=1e-12)
        assert torch.allclose(one_camera[index], single(cameras[0], arms[index].pose), rtol=1e-12)
        assert torch.allclose(one_pose[index], single(cameras[index], arms[1].pose), rtol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_pixel_does_not_depend_on_its_neighbours(integrator, dtype, tolerance):
    """A pixel alone, in its image, in a window, and in a batch beside long oblique rays and rays that miss."""
    ct = volume(1).to(dtype=dtype)
    carm, renderer = arm(ct), Renderer(ct, integrator)
    camera = carm.camera(16, 17, (5, 4))
    image = renderer(camera, carm.pose)[0, 0]
    close = {"rtol": tolerance, "atol": tolerance * float(image.max())}
    assert torch.allclose(renderer(camera.cropped(5, 4, 3, 7), carm.pose)[0, 0], image[5:12, 3:10], **close)
    for v, u in ((8, 8), (3, 11), (0, 0)):
        alone = renderer(camera.cropped(v, 15 - v, u, 16 - u), carm.pose)
        assert torch.allclose(alone[0, 0, 0, 0], image[v, u], **close)
    beside = stack_poses([arm(ct, secondary=80).pose, carm.pose, carm.pose.retract([0, 0, 0, 900.0, 0, 0])])
    assert torch.allclose(renderer(camera, beside)[1, 0], image, **close)
    assert renderer(camera, beside)[2].abs().max() == 0


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("labels, mode", [(None, "nearest"), ([0, 2], "nearest"), ([0, 2], "soft")])
def test_chunks_do_not_change_the_image_or_its_gradients(integrator, labels, mode):
    ct = volume(2)
    carm = arm(ct)
    camera = carm.camera(9, 7, (5, 6))
    results = []
    for memory in (2**30, 1):
        voxels = ct.attenuation.clone().requires_grad_(True)
        xi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        chunked = Renderer(Volume.from_attenuation(voxels, ct.ijk_to_ras, ct.labels), integrator, max_memory=memory)
        image = chunked(camera, carm.pose.retract(xi, ct.center), labels, mode)
        gradients = torch.autograd.grad((image * torch.linspace(-1, 1, 63).reshape(9, 7)).sum(), (xi, voxels))
        results.append((image, *gradients))
    for whole, chunked in zip(*results, strict=True):
        assert torch.allclose(whole, chunked, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_blocks_of_rays_do_not_change_the_image(integrator, monkeypatch):
    ct = volume(3)
    poses = stack_poses([arm(ct, roll=roll).pose for roll in (0, 40)])
    camera, renderer = arm(ct).camera(9, 7, (5, 6)), Renderer(ct, integrator)
    whole = (renderer(camera, poses, labels=[1, 2]), *renderer.linearize(camera, poses, about=ct.center))
    recorder = renderer._tracer.integrator = Recorder(renderer._tracer.integrator)
    monkeypatch.setattr(renderer_module, "_RAYS_AT_A_TIME", 10)
    blocks = (renderer(camera, poses, labels=[1, 2]), *renderer.linearize(camera, poses, about=ct.center))
    for one, other in zip(whole, blocks, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)
    assert max(recorder.sizes) == 10  # of both poses together


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_chunk_has_as_many_rays_as_the_memory_holds(integrator):
    ct = volume(4)
    carm = arm(ct)
    camera = carm.camera(24, 24, (3, 3))
    renderer = Renderer(ct, integrator, max_memory=2**18)
    recorder = renderer._tracer.integrator = Recorder(renderer._tracer.integrator)
    per_ray = recorder.bytes_per_ray(renderer.field())
    renderer(camera, carm.pose)
    assert sum(recorder.sizes) == 24 * 24
    assert max(recorder.sizes) * per_ray <= 2**18
    assert recorder.sizes[0] * per_ray > 2**17  # and does not waste it
    recorder.sizes.clear()
    renderer.linearize(camera, carm.pose)
    assert max(recorder.sizes) * per_ray * 3 <= 2**18


MEASURE = """
import resource, torch
from DiffDRRCore import CArm, Renderer, Volume
torch.set_num_threads(1)
affine = torch.eye(4, dtype=torch.float64)
affine[:3, 3] = -12
volume = Volume.from_attenuation(torch.rand(24, 24, 24) * 0.01, affine)
carm = CArm(1000, 700)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def render(size, memory):
    camera = carm.camera(size, size, (35 / size, 35 / size))
    for integrator in ("siddon", "trilinear"):
        renderer = Renderer(volume, integrator, max_memory=memory * 2**20)
        renderer(camera, carm.pose)
        renderer.linearize(camera.resized(size // 4, size // 4), carm.pose)
render(16, 4)
before = peak()
render(512, 4)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the module `resource`, which measures the peak, is for Unix")
def test_the_peak_memory_of_a_large_image_stays_near_the_limit():
    """A 512 x 512 image: rays of all pixels with all their samples would take 900 MB; their ends alone 30 MB."""
    script = textwrap.dedent(MEASURE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 25


def test_the_number_of_samples_is_enough_for_the_step():
    """The volume's diagonal, rims included, in parts of at most `step` mm; one step for all rays."""
    ct = reference.double(np.ones((2, 3, 4)), np.diag([1.0, 2.0, 3.0, 1.0]))
    field = Renderer(ct).field()
    diagonal = np.linalg.norm([5 * 1, 4 * 2, 3 * 3])
    for step in (0.3, 1.0, 100.0):
        parts = field.samples(step)
        assert parts == int(np.ceil(diagonal / step))
    assert Renderer(ct).step == 1.0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"integrator": "raymarch"}, "trilinear, siddon"),
        ({"backend": "metal"}, "auto, torch"),
        ({"step": 0}, "step along a ray must be positive"),
        ({"step": float("nan")}, "step along a ray must be positive"),
        ({"max_memory": 0}, "max_memory must be positive"),
    ],
)
def test_bad_arguments_are_refused(arguments, sentence):
    with pytest.raises(RenderError, match=sentence):
        Renderer(volume(), **arguments)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_backend_that_is_not_there_falls_back_with_one_log_line(name, caplog):
    with caplog.at_level("WARNING", logger="DiffDRRCore"):
        renderer = Renderer(volume(), backend=name)
    if renderer.backend != name:
        assert len(caplog.records) == 1
        assert name in caplog.records[0].getMessage()
