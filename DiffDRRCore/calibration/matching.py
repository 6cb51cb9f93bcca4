"""Which bead of an image is which bead of the phantom, with no start: poses of bead triples, tested on all beads.

Three beads of the image and three of the phantom give two poses by scaled orthography (Alter, 3D pose from 3 points
using weak-perspective, IEEE PAMI 16, 1994); Newton's method makes them exact for perspective (Grunert's equations).
Triples whose sizes or distances cannot be are left out before, which makes exhaustive search over the phantom's triples
affordable; the poses under which most beads fall on beads of the right size are refined with a one-to-one assignment.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.optimize import least_squares, linear_sum_assignment
from torch import Tensor

from DiffDRRCore.calibration.bundle import Array, Bundle
from DiffDRRCore.calibration.detection import Beads
from DiffDRRCore.calibration.phantom import BeadPhantom
from DiffDRRCore.calibration.triples import poses_of_triples
from DiffDRRCore.errors import CalibrationError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.distortion import Distortion

_LEAST = 6  # beads
_SIZE = 1.4  # factor between the sizes seen and expected
_COARSE, _FINE = 0.03, 0.01  # of the diagonal: tolerance of a pose from three beads, and after refinement
_TRIALS, _MIRRORED_TRIALS = 20, 8  # triples of the image
MOST_TRIALS = _TRIALS
_PER_TRIAL = 150_000  # triples of the phantom, at most
_REFINED = 6  # poses of each trial
_ENOUGH, _ACCEPTED = 0.7, 0.5  # of the beads that could match: to stop searching, to accept in the end
_MAP = 512  # pixels a side of the map of nearest beads
_CHUNK = 20_000
_PRIORS = {"source_to_detector": 0.05, "principal_point_u": 0.03, "principal_point_v": 0.03}  # of SDD, of width


class BeadMatch(NamedTuple):
    """`index` [N]: for each bead of the phantom that of the image, -1 for none; `pose` camera_to_phantom; `errors` [N]
    pixels (NaN where there is no match); `observed` [N, 2]: the pixels in the order of the phantom, NaN for none."""

    index: Tensor
    pose: Pose
    errors: Tensor
    observed: Tensor

    @property
    def count(self) -> int:
        """Beads that were matched."""
        return int((self.index >= 0).sum())


class _Candidate(NamedTuple):
    index: NDArray[np.int64]
    pose: Pose
    errors: Array

    @property
    def count(self) -> int:
        return int((self.index >= 0).sum())

    @property
    def rms(self) -> float:
        return float(np.sqrt(np.nanmean(self.errors**2))) if self.count else np.inf


def match_beads(
    phantom: BeadPhantom,
    beads: Beads,
    camera: Camera,
    distortion: Distortion | None = None,
    pose: Pose | None = None,
    seed: int = 0,
) -> BeadMatch:
    """Find the phantom's beads among those of an image, some missing, some false, from any direction.

    `matching_beads` does the same in steps.

    Args:
        phantom: sizes that differ help, and are needed where the positions alone look alike from two sides.
        beads: as `find_beads` gives them; radii of NaN are not looked at.
        camera: roughly right: SDD to 5 %, principal point to 3 % of the width. It is refined for the match only.
        distortion: of the image, where known.
        pose: camera_to_phantom to start from, to within a few percent of the image; None searches.
        seed: of the choice of triples.

    Raises:
        CalibrationError: too few beads, no pose on which enough of them agree, a mirrored image, a phantom that fits
            in more than one way.
    """
    return last(matching_beads(phantom, beads, camera, distortion, pose, seed))


def last(steps: Generator):
    """Take all steps of a generator; what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def matching_beads(
    phantom: BeadPhantom,
    beads: Beads,
    camera: Camera,
    distortion: Distortion | None = None,
    pose: Pose | None = None,
    seed: int = 0,
) -> Generator[int, None, BeadMatch]:
    """As `match_beads`, which it returns, a step at a time: yields how many sets of beads were tried."""
    task = _Task(phantom, beads, camera, distortion)
    if pose is not None:
        found = task.refined(pose.inverse().matrix.detach().double().numpy())
    else:
        found = yield from task.search(seed)
    if found is None or not task.accepts(found):
        if pose is None:
            yield from _check_mirrored(phantom, beads, camera, distortion, seed)
        count = 0 if found is None else found.count
        raise CalibrationError(
            f"The phantom's {len(phantom)} beads do not fit the {len(task.pixels)} in the image: at best {count} agree "
            "on a pose; check that this is the phantom, its unit (mm), pixel size and SDD, and the radii to look for."
        )
    observed = np.full((len(phantom), 2), np.nan)
    observed[found.index >= 0] = task.pixels[found.index[found.index >= 0]]
    return BeadMatch(
        torch.from_numpy(found.index), found.pose, torch.from_numpy(found.errors), torch.from_numpy(observed)
    )


def _check_mirrored(phantom, beads, camera, distortion, seed) -> Generator[int, None, None]:
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    K = camera.K.detach().double() @ mirror
    other = Camera.from_intrinsics(K, camera.height, camera.width, source_to_detector=camera.source_to_detector)
    task = _Task(phantom, beads, other, distortion)
    found = yield from task.search(seed, _MIRRORED_TRIALS)
    if found is not None and task.accepts(found):
        side = "detector" if camera.view_from == "source" else "source"
        raise CalibrationError(
            f"The image is mirrored: the phantom fits if seen from the {side}; give the camera view_from='{side}'."
        )


class _Task:
    """One image and one phantom."""

    def __init__(self, phantom: BeadPhantom, beads: Beads, camera: Camera, distortion: Distortion | None):
        self.camera = camera.detached().to("cpu", torch.float64)
        self.distortion = distortion
        self.points, self.radii = phantom.positions.numpy(), phantom.radii.numpy()
        self.pixels = beads.centers.double().numpy()
        if len(self.pixels) < _LEAST:
            raise CalibrationError(
                f"Only {len(self.pixels)} beads were found in the image, six are the least to tell them apart: check "
                "the radii to look for, and that the phantom is in the beam."
            )
        self.ideal = self.pixels if distortion is None else distortion.undistort(self.pixels).numpy()
        self.sizes = beads.radii.double().numpy()
        self.diagonal = float(np.hypot(camera.height, camera.width))
        self.K = self.camera.K.numpy()
        self.focal = float(self.K[1, 1])
        self._nearest = self._map()
        self._least = max(_LEAST, _ENOUGH * min(len(self.points), len(self.pixels)))

    def accepts(self, found: _Candidate) -> bool:
        """Whether this is no chance."""
        return found.count >= max(_LEAST, _ACCEPTED * min(len(self.points), len(self.pixels)))

    def search(self, seed: int, trials: int = _TRIALS) -> Generator[int, None, _Candidate | None]:
        """The best candidate; ends early at one with enough beads. Yields the number of trials before each."""
        generator = np.random.default_rng(seed)
        best = None
        for number, chosen in enumerate(self._image_triples(generator, trials)):
            yield number
            others = self._phantom_triples(chosen, generator)
            if not len(others):
                continue
            poses = self._poses(chosen, others)
            refined = [one for one in map(self.refined, self._best(poses)) if one is not None]
            for one in refined:
                if best is None or (one.count, -one.rms) > (best.count, -best.rms):
                    best = one
            if best is not None and best.count >= self._least:
                self._check_single(best, refined)
                return best
        return best

    def _check_single(self, best: _Candidate, others: list[_Candidate]) -> None:
        for one in others:
            same = np.mean(one.index == best.index)
            if same < 0.5 and one.count >= best.count and one.rms < 1.5 * best.rms + 0.1:
                raise CalibrationError(
                    "The phantom fits the image in more than one way, as it looks alike from several sides: use one "
                    "with beads of different sizes or without symmetry, or give a start pose."
                )

    def _image_triples(self, generator, trials: int) -> Array:
        """Triples of beads in the image, wide ones, in random order."""
        count = len(self.pixels)
        triples = np.array([generator.choice(count, 3, replace=False) for _ in range(8 * trials)])
        a, b = (self.ideal[triples[:, k]] - self.ideal[triples[:, 0]] for k in (1, 2))
        area = np.nan_to_num(np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]))
        wide = np.argsort(-area, kind="stable")[: 2 * trials]
        return triples[generator.permutation(wide)[:trials]]

    def _phantom_triples(self, chosen: Array, generator) -> NDArray[np.int64]:
        """[T, 3]: those whose sizes and distances can look like that."""
        sizes = self.sizes[chosen]
        pairs = self._pairs(chosen, sizes, 0, 1)
        ok = pairs[:, :, None] & self._pairs(chosen, sizes, 0, 2)[:, None, :] & self._pairs(chosen, sizes, 1, 2)[None]
        triples = np.argwhere(ok)
        if len(triples) > _PER_TRIAL:
            triples = triples[generator.choice(len(triples), _PER_TRIAL, replace=False)]
        return triples

    def _pairs(self, chosen, sizes: Array, i: int, j: int) -> NDArray[np.bool_]:
        """[N, N]: whether bead a may be i, and b may be j."""
        distance = np.linalg.norm(self.points[:, None] - self.points[None], axis=-1)
        if np.isfinite(sizes).all():
            ratio = (self.radii[:, None] / self.radii[None]) / (sizes[i] / sizes[j])
            ok = (ratio < _SIZE) & (ratio > 1 / _SIZE)
            depth = self.focal * (self.radii[:, None] / sizes[i] + self.radii[None] / sizes[j]) / 2 / _SIZE
        else:
            ok, depth = np.ones_like(distance, dtype=bool), 0.25 * float(self.camera.source_to_detector)
        gap = (self.ideal[chosen[i]] - self.ideal[chosen[j]]) / np.diag(self.K)[:2]
        ok &= distance >= depth * float(np.hypot(*gap))
        np.fill_diagonal(ok, False)
        return ok

    def _poses(self, chosen, others: NDArray[np.int64]) -> Array:
        """world_to_camera [S, 4, 4] whose beads have the right size and lie before the detector."""
        plane = (self.ideal[chosen] - self.K[:2, 2]) / np.diag(self.K)[:2]
        poses, triple = poses_of_triples(self.points[others], plane)
        depth = np.einsum("si,sni->sn", poses[:, 2, :3], self.points[others[triple]]) + poses[:, 2, 3:]
        ok = (
            (depth > 0.2 * float(self.camera.source_to_detector)) & (depth < float(self.camera.source_to_detector))
        ).all(1)
        ratio = self.sizes[chosen] * depth / (self.focal * self.radii[others[triple]])
        ok &= (np.isnan(ratio) | ((ratio < _SIZE) & (ratio > 1 / _SIZE))).all(1)
        return poses[ok]

    def _best(self, poses: Array) -> list[Array]:
        """The poses of most support, no two of them alike."""
        scores = np.concatenate([self._score(poses[k : k + _CHUNK]) for k in range(0, len(poses), _CHUNK)] or [[]])
        chosen: list[Array] = []
        for k in np.argsort(-scores, kind="stable")[:500]:
            turns = [np.trace(poses[k, :3, :3].T @ other[:3, :3]) for other in chosen]
            if all(trace < 1 + 2 * np.cos(np.radians(8)) for trace in turns):
                chosen.append(poses[k])
            if len(chosen) == _REFINED:
                break
        return chosen

    def _score(self, poses: Array) -> Array:
        """[S]: beads that fall near one of the image of the right size, nearer ones counting more."""
        local = np.einsum("sij,nj->sni", poses[:, :3, :3], self.points) + poses[:, None, :3, 3]
        depth = np.maximum(local[..., 2], 1.0)
        uv = local[..., :2] / depth[..., None] * np.diag(self.K)[:2] + self.K[:2, 2]
        scale, away, nearest = self._nearest
        place = np.rint(uv * scale).astype(int)
        inside = (place >= 0).all(-1) & (place[..., 0] < away.shape[1]) & (place[..., 1] < away.shape[0])
        place[~inside] = 0
        u, v = place[..., 0], place[..., 1]
        near = np.clip(1 - (away[v, u] / (_COARSE * self.diagonal)) ** 2, 0, None) * inside
        ratio = self.sizes[nearest[v, u]] * depth / (self.focal * self.radii)
        return (near * (np.isnan(ratio) | ((ratio < _SIZE) & (ratio > 1 / _SIZE)))).sum(1)

    def _map(self) -> tuple[float, Array, NDArray[np.int64]]:
        """(scale, distance in pixels, number of the nearest bead) on a coarse grid of the image."""
        height, width = self.camera.height, self.camera.width
        scale = min(1.0, _MAP / max(height, width))
        bead = np.full((int(height * scale) + 1, int(width * scale) + 1), -1)
        place = np.rint(np.nan_to_num(self.ideal, nan=-1) * scale).astype(int)
        for number, (u, v) in enumerate(place):
            if 0 <= v < bead.shape[0] and 0 <= u < bead.shape[1]:
                bead[v, u] = number
        away, index = distance_transform_edt(bead < 0, return_indices=True)
        return scale, away / scale, bead[tuple(index)]

    def refined(self, world_to_camera: Array) -> _Candidate | None:
        """Assign and fit in turns, first the pose alone, then with SDD and principal point."""
        camera, found = self.camera, None
        for tolerance, free in ((_COARSE, ()), (_COARSE, ("source_to_detector", "principal_point")), (_FINE, ())):
            for _ in range(3):
                index, _ = self._assigned(world_to_camera, camera, tolerance * self.diagonal)
                if (index >= 0).sum() < _LEAST:
                    return None
                if found is not None and np.array_equal(found, index) and not free:
                    break
                found = index
                camera, world_to_camera = self._fitted(world_to_camera, camera, index, free)
        index, errors = self._assigned(world_to_camera, camera, _FINE * self.diagonal)
        if (index >= 0).sum() < _LEAST:
            return None
        return _Candidate(index, Pose(world_to_camera).inverse(), errors)

    def _assigned(self, world_to_camera: Array, camera: Camera, tolerance: float) -> tuple[NDArray[np.int64], Array]:
        """(index [N], errors [N]): each bead of the phantom with at most one of the image."""
        local = self.points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
        depth = np.maximum(local[:, 2:], 1.0)
        K = camera.K.numpy()
        uv = local[:, :2] / depth @ K[:2, :2].T + K[:2, 2]
        away = np.nan_to_num(np.linalg.norm(uv[:, None] - self.ideal[None], axis=-1), nan=np.inf)
        ratio = self.sizes[None] * depth / (K[1, 1] * self.radii[:, None])
        wrong = (away > tolerance) | (ratio > _SIZE) | (ratio < 1 / _SIZE)
        cost = np.where(wrong, 2 * tolerance, np.minimum(away, 2 * tolerance))
        rows, columns = linear_sum_assignment(cost)
        index, errors = np.full(len(self.points), -1), np.full(len(self.points), np.nan)
        good = ~wrong[rows, columns]
        index[rows[good]], errors[rows[good]] = columns[good], away[rows[good], columns[good]]
        return index, errors

    def _fitted(self, world_to_camera: Array, camera: Camera, index, free) -> tuple[Camera, Array]:
        used = index >= 0
        free = free if used.sum() >= 10 else ()
        bundle = Bundle(self.points[used], camera, None, (*free, "poses"), np.eye(4)[None], world_to_camera[None])
        sizes = {"source_to_detector": float(camera.source_to_detector)}
        deviations = np.array([_PRIORS[name] * sizes.get(name, camera.width) for name in bundle.names])
        target, noise = self.ideal[index[used]], 2.0

        def residuals(x: Array) -> Array:
            return np.concatenate(
                [(bundle.predict(x)[0][0] - target).ravel() / noise, x[: len(deviations)] / deviations]
            )

        def jacobian(x: Array) -> Array:
            rows = np.eye(len(deviations), bundle.size) / deviations[:, None]
            return np.concatenate([bundle.predict(x)[1][0].reshape(-1, bundle.size) / noise, rows])

        x = least_squares(residuals, np.zeros(bundle.size), jacobian, loss="soft_l1", x_scale="jac", max_nfev=20).x
        return bundle.camera_of(x), bundle.points_to_reference(x)[0]
