"""Poses of one body smoothed over time by one optimisation.

Sought are the poses and twists of all frames that are most probable (maximum a posteriori) given what the
registrations found, each with its covariance, and white noise on the acceleration (`motion_model`). By Gauss-Newton
with exact derivatives; each step solves a block-tridiagonal system, which is a Kalman smoother forwards and backwards
(T. D. Barfoot, C. H. Tong, S. Sarkka: Batch continuous-time trajectory estimation as exactly sparse Gaussian process
regression, RSS 2014; Barfoot, State Estimation for Robotics, 2017, section 11.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import nnls
from torch import Tensor

from DiffDRRCore.geometry.se3 import exp_se3, hat, log_se3
from DiffDRRCore.registration.tracking.motion_model import believed, difference, inverse, noise

_STEPS = 30
_SMALL = 1e-7  # rad and mm: the largest change of a step at the end
_LOOSE = 1e-9  # information on a twist, so that one that nothing tells is 0
_LEAST_TRIPLES = 8
# Second differences of a path with white acceleration q and white noise v: covariances at lags 0, 1, 2 are
# (2/3 q + 6 v, 1/6 q - 4 v, v): a cubic B-spline's, and (1, -2, 1) with itself.
_LAGS = ((2 / 3, 6.0), (1 / 6, -4.0), (0.0, 1.0))


def smoothed(
    numbers: Sequence[int], poses: Tensor, covariances: Tensor, known: Tensor, acceleration: Tensor
) -> tuple[Tensor, Tensor]:
    """Poses [F, 4, 4] and their covariances [F, 6, 6] after smoothing.

    Args:
        numbers: of the frames, ascending: the time.
        poses: [F, 4, 4] centred on the body's pivot; of frames that are not known, any start.
        covariances: [F, 6, 6] of each pose's xi, pose exp(xi).  known: [F] bool.
        acceleration: [6] variances of (rad, mm) a frame^2.
    """
    times = torch.tensor(numbers, dtype=torch.float64).diff()
    information = torch.zeros(len(poses), 6, 6, dtype=torch.float64)
    information[known] = torch.linalg.inv(covariances[known])
    twists = torch.zeros(len(poses), 6, dtype=torch.float64)
    if len(poses) > 1:
        twists[:-1] = difference(poses[:-1], poses[1:]) / times[:, None]
        twists[-1] = twists[-2]
    weights = [torch.linalg.inv(noise(acceleration, float(step))) for step in times]
    weights = torch.stack(weights) if weights else torch.zeros(0, 12, 12, dtype=torch.float64)
    measured = poses
    for _ in range(_STEPS):
        system = _normal_equations(measured, information, times, weights, poses, twists)
        change, spread = _solved(*system)
        poses, twists = poses @ exp_se3(change[:, :6]), twists + change[:, 6:]
        if float(change.abs().max()) < _SMALL:
            break
    return poses, spread[:, :6, :6]


def estimated(
    numbers: Sequence[int], poses: Tensor, covariances: Tensor, known: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Variances [6] of the acceleration (rad, mm a frame^2), and factors [6] of the deviations against those stated.

    By the moments of second differences (of twists from frame to frame) at lags 0, 1 and 2, apart for turns and shifts.
    Noise is in all frames, so it is no more than most second differences allow; a few large ones are accelerations. The
    stated covariances know of the images' noise alone, so factors are 1 or more. None where fewer than eight
    neighbouring triples of frames are known.
    """
    times = torch.tensor(numbers, dtype=torch.float64).diff()
    even = known[:-1] & known[1:] & (times == 1)
    second = difference(poses[:-1], poses[1:]).diff(dim=0)
    fine = even[:-1] & even[1:]
    if int(fine.sum()) < _LEAST_TRIPLES:
        return None
    stated = believed(covariances[known]).diagonal(dim1=-2, dim2=-1).mean(0)
    acceleration, factors = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for part in (slice(0, 3), slice(3, 6)):
        moments = [_moment(second[:, part], fine, lag) for lag in range(3)]
        size = max(moments[0], 1e-300)
        own, white = nnls(torch.tensor(_LAGS).numpy(), [moment / size for moment in moments])[0] * size
        least, most = float(stated[part].mean()), (1.4826 * float(second[fine][:, part].abs().median())) ** 2 / 6
        if not least <= white <= max(least, most):
            white = min(max(white, least), max(least, most))
            own = 1.5 * (moments[0] - 6 * white)
        acceleration[part] = max(own, 1e-3 * least)
        factors[part] = (white / least) ** 0.5
    return acceleration, factors


def _moment(second: Tensor, fine: Tensor, lag: int) -> float:
    """Mean product of second differences so many frames apart, over the axes."""
    last = len(second) - lag
    pairs = fine[:last] & fine[lag:]
    if not bool(pairs.any()):
        return 0.0
    return float((second[:last] * second[lag:])[pairs].mean())


def _normal_equations(measured, information, times, weights, poses, twists) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal blocks [F, 12, 12], blocks above them [F - 1, 12, 12], right side [F, 12] of a Gauss-Newton step."""
    count = len(poses)
    diagonal = torch.zeros(count, 12, 12, dtype=torch.float64)
    right = torch.zeros(count, 12, dtype=torch.float64)
    diagonal[:, range(6, 12), range(6, 12)] += _LOOSE
    residual, slope = _measurement(measured, poses)
    diagonal[:, :6, :6] += slope.mT @ information @ slope
    right[:, :6] -= (slope.mT @ information @ residual[..., None])[..., 0]
    residual, before, after = _prior(poses, twists, times)
    diagonal[:-1] += before.mT @ weights @ before
    diagonal[1:] += after.mT @ weights @ after
    right[:-1] -= (before.mT @ weights @ residual[..., None])[..., 0]
    right[1:] -= (after.mT @ weights @ residual[..., None])[..., 0]
    return diagonal, before.mT @ weights @ after, right


def _measurement(measured: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """[F, 6] from the measured poses to these, and derivatives [F, 6, 6] by xi of pose exp(xi)."""
    leaf = torch.zeros(len(poses), 6, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        residual = log_se3(inverse(measured) @ poses @ exp_se3(leaf))
    return residual.detach(), _derivatives(residual, [leaf])[0]


def _prior(poses: Tensor, twists: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals [F - 1, 12] of the motion, and derivatives [F - 1, 12, 12] by the frame before and by the one after.

    Along the way, the pose's velocity in the coordinates xi = log(C(k)^-1 C) is J(xi)^-1 twist.
    """
    leaves = [torch.zeros(len(times), 12, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    with torch.enable_grad():
        first = poses[:-1] @ exp_se3(leaves[0][:, :6])
        second = poses[1:] @ exp_se3(leaves[1][:, :6])
        way, twist = difference(first, second), twists[:-1] + leaves[0][:, 6:]
        arriving = _inverse_right_jacobian_times(way, twists[1:] + leaves[1][:, 6:])
        residual = torch.cat([way - times[:, None] * twist, arriving - twist], dim=-1)
    return residual.detach(), *_derivatives(residual, leaves)


def _derivatives(residual: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """[F, R, 12] by each leaf [F, 12]; rows of the residuals [F, R] depend on their own rows alone."""
    rows = [torch.autograd.grad(column.sum(), leaves, retain_graph=True) for column in residual.unbind(-1)]
    return [torch.stack(by_leaf, dim=1) for by_leaf in zip(*rows, strict=True)]


def _inverse_right_jacobian_times(xi: Tensor, vector: Tensor) -> Tensor:
    """[..., 6] of vectors, to the fourth power of xi (Barfoot 2017, equation 7.85 and section 7.1.5)."""
    once = _bracket(xi, vector)
    twice = _bracket(xi, once)
    return vector + once / 2 + twice / 12 - _bracket(xi, _bracket(xi, twice)) / 720


def _bracket(xi: Tensor, other: Tensor) -> Tensor:
    """[..., 6] the Lie bracket of SE(3)."""
    turn, shift = hat(xi[..., :3]), hat(xi[..., 3:])
    turned = turn @ other[..., :3, None]
    moved = turn @ other[..., 3:, None] + shift @ other[..., :3, None]
    return torch.cat([turned, moved], dim=-2)[..., 0]


def _solved(diagonal: Tensor, above: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solution [F, N], and the diagonal blocks [F, N, N] of the inverse, of a block-tridiagonal system."""
    pivots, shares = [diagonal[0]], []
    values = [right[0]]
    for number in range(1, len(diagonal)):
        share = torch.linalg.solve(pivots[-1], above[number - 1])
        shares.append(share)
        pivots.append(diagonal[number] - above[number - 1].mT @ share)
        values.append(right[number] - share.mT @ values[-1])
    inverses = torch.linalg.inv(torch.stack(pivots))
    solution, spread = [inverses[-1] @ values[-1]], [inverses[-1]]
    for number in range(len(diagonal) - 2, -1, -1):
        solution.append(inverses[number] @ values[number] - shares[number] @ solution[-1])
        spread.append(inverses[number] + shares[number] @ spread[-1] @ shares[number].mT)
    return torch.stack(solution[::-1]), torch.stack(spread[::-1])
