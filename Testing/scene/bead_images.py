"""X-rays of a bead phantom by closed forms: chords through balls along the rays of a pinhole.

Of the library only the camera's numbers (K, size), the poses and the phantom's beads are read.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from DiffDRRCore import Camera, CArm, Pose, XRay
from DiffDRRCore.calibration import BeadPhantom
from DiffDRRCore.errors import CalibrationError

SIZE, SPACING, SDD = 288, 0.7, 1020.0
POINT = (146.0, 141.0)
PHANTOM = BeadPhantom.helix(16, 40.0, 90.0, 2.0, bead_radii=(1.6, 2.6))
CAMERA = Camera(SIZE, SIZE, (SPACING, SPACING), SDD, POINT)
START = Camera(SIZE, SIZE, (SPACING, SPACING), 1000.0)
K1 = 0.04  # of the distorted images
_FINE = 3  # rays a pixel and side


def poses(count: int, seed: int = 1) -> list[Pose]:
    rng = np.random.default_rng(seed)
    angles = [(rng.uniform(-90, 90), rng.uniform(-40, 40), rng.uniform(-30, 30)) for _ in range(count)]
    return [CArm(SDD, rng.uniform(580, 640), rng.normal(0, 3, 3), *one).pose for one in angles]


def pixels(camera: Camera, pose: Pose, points) -> np.ndarray:
    """[N, 2] of points [N, 3]."""
    local = (np.asarray(points) - pose.matrix.numpy()[:3, 3]) @ pose.matrix.numpy()[:3, :3]
    uvw = local @ camera.K.numpy().T
    return uvw[:, :2] / uvw[:, 2:]


def distorted(uv, k1: float = K1) -> np.ndarray:
    """Ideal pixels [..., 2] as recorded: r (1 + k1 r^2) about the image's centre, r in half diagonals."""
    center, half = (SIZE - 1) / 2, SIZE / np.sqrt(2)
    away = (np.asarray(uv, dtype=float) - center) / half
    return center + half * away * (1 + k1 * (away**2).sum(-1, keepdims=True))


def undistorted(uv, k1: float = K1) -> np.ndarray:
    """The inverse, by the real root of the cubic (Cardano; k1 > 0)."""
    center, half = (SIZE - 1) / 2, SIZE / np.sqrt(2)
    away = (np.asarray(uv, dtype=float) - center) / half
    radius = np.linalg.norm(away, axis=-1, keepdims=True)
    if k1 == 0:
        return np.asarray(uv, dtype=float)
    p, q = 1 / k1, -radius / k1
    root = np.sqrt(q * q / 4 + p**3 / 27)
    ideal = np.cbrt(-q / 2 + root) + np.cbrt(-q / 2 - root)
    return center + half * away * np.divide(ideal, radius, out=np.ones_like(radius), where=radius > 0)


def image(
    pose: Pose, phantom: BeadPhantom = PHANTOM, camera: Camera = CAMERA, k1: float = 0.0, seed=None
) -> np.ndarray:
    """[H, W] attenuation: 0.3 per mm of bead over a slope, with a little noise."""
    steps = (np.arange(_FINE) - (_FINE - 1) / 2) / _FINE
    v, u = np.meshgrid(*(np.arange(size, dtype=float) for size in (camera.height, camera.width)), indexing="ij")
    total, to_rays = np.zeros_like(u), np.linalg.inv(camera.K.numpy()).T
    centers = (phantom.positions.numpy() - pose.matrix.numpy()[:3, 3]) @ pose.matrix.numpy()[:3, :3]
    for du in steps:
        for dv in steps:
            uv = undistorted(np.stack([u + du, v + dv], axis=-1), k1)
            rays = np.concatenate([uv, np.ones_like(uv[..., :1])], axis=-1) @ to_rays
            rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
            for center, radius in zip(centers, phantom.radii.numpy(), strict=True):
                near = _near(camera, center, radius)
                along = rays[near] @ center
                squares = radius**2 - (center @ center - along**2)
                total[near] += 2 * np.sqrt(np.maximum(squares, 0))
    rng = np.random.default_rng(seed)
    noise = 0.0 if seed is None else rng.normal(0, 0.005, u.shape)
    return 0.3 * total / _FINE**2 + 1.0 + 0.001 * u + noise


def _near(camera: Camera, center, radius: float) -> tuple[slice, slice]:
    """Rows and columns about a bead, wide enough for any distortion here."""
    uvw = camera.K.numpy() @ center
    u, v = uvw[:2] / uvw[2]
    reach = 1.5 * radius / center[2] * camera.K.numpy()[1, 1] + 12
    return slice(max(0, int(v - reach)), int(v + reach) + 1), slice(max(0, int(u - reach)), int(u + reach) + 1)


def xray(pose: Pose, start: Camera = START, seed: int = 0, k1: float = 0.0, phantom: BeadPhantom = PHANTOM) -> XRay:
    """With the camera to start from, and what is bright."""
    return XRay(image(pose, phantom, k1=k1, seed=seed), start, None, {"intensity": "attenuation"})


@pytest.fixture(scope="module")
def once() -> Iterator[None]:
    """What is found in an image, and which bead is which, is looked for once: tests of Core show that it is right.

    Steps are taken again as they were the first time; errors are raised again.
    """
    from DiffDRRCore.calibration import images

    found, matched = images.find_beads, images.matching_beads
    beads, steps = {}, {}

    def find_beads(xray, radii):
        key = (np.asarray(xray.image).tobytes(), tuple(radii))
        if key not in beads:
            beads[key] = found(xray, radii)
        return beads[key]

    def matching_beads(phantom, seen, camera, distortion=None, pose=None):
        known = (phantom.positions, phantom.radii, seen.centers, seen.radii, camera.K)
        key = (*(np.asarray(one).tobytes() for one in known), repr(distortion and distortion.to_dict()))
        if pose is not None:
            return (yield from matched(phantom, seen, camera, distortion, pose))
        if key not in steps:
            steps[key] = _taken(matched(phantom, seen, camera, distortion))
        yields, end = steps[key]
        yield from yields
        if isinstance(end, Exception):
            raise end
        return end

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "find_beads", find_beads)
        patch.setattr(images, "matching_beads", matching_beads)
        yield


def _taken(steps) -> tuple[list, object]:
    """What a generator yields, and what it returns or raises."""
    yields = []
    while True:
        try:
            yields.append(next(steps))
        except StopIteration as end:
            return yields, end.value
        except CalibrationError as error:
            return yields, error
