"""What a place among the unknowns means for bodies, C-arms and cameras."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.pyramid import Level
from DiffDRRCore.registration.problem import lens
from DiffDRRCore.registration.problem.lens import Lens
from DiffDRRCore.registration.problem.problem import Problem
from DiffDRRCore.registration.problem.unknowns import State
from DiffDRRCore.registration.result import FoundBody, FoundCamera
from DiffDRRCore.registration.starts.screening import best_apart


def outcome(problem: Problem, level: Level, state: State, covariance: Tensor) -> dict:
    """The fields of a `RegistrationResult` that follow from one candidate, with its covariance [P, P]."""
    objective = level.objective
    unknowns = objective.unknowns
    motions, carms = places(problem, level, state)
    bodies = [_body(problem, level, motion, covariance, number) for number, motion in enumerate(motions)]
    return {
        "poses": objective.poses(state, level.owners[0]),
        "patient_motion": bodies[0].motion,
        "covariance": bodies[0].covariance,
        "about": bodies[0].about,
        "at_bound": unknowns.at_bound(unknowns.coordinates(state)[0]),
        "bodies": bodies,
        "carms": carms,
        "cameras": [_camera(problem, state, covariance, number) for number in range(len(carms))],
    }


def places(problem: Problem, level: Level, state: State) -> tuple[list[Pose], Pose]:
    """Of one candidate: the motion of each body from where the CT shows it, and the C-arms [V, 4, 4] in the room."""
    objective = level.objective
    models = [objective.models[owner] for owner in level.owners]
    motions = [(_own(state, model.motion) @ model.start).inverse() for model in models]
    views = [view.start if view.motion is None else _own(state, view.motion) @ view.start for view in objective.views]
    return motions, Pose._rigid(torch.stack([view.matrix for view in views]))


def _own(state: State, motion: int) -> Pose:
    return Pose._rigid(state.motions.matrix[0, motion])


def _body(problem: Problem, level: Level, motion: Pose, covariance: Tensor, number: int) -> FoundBody:
    model = level.objective.models[level.owners[number]]
    rows = slice(6 * model.motion, 6 * model.motion + 6)
    pivot = level.objective.unknowns.motions[model.motion].pivot
    part = problem.parts[number]
    return FoundBody(part.body.name, motion, covariance[rows, rows], pivot, part.labels)


def _camera(problem: Problem, state: State, covariance: Tensor, view: int) -> FoundCamera:
    xray: XRay = problem.xrays[view]
    number = problem.camera_of[view]
    if number is None:
        nothing = torch.zeros(lens.COUNT, dtype=torch.float64)
        return FoundCamera(xray.camera.detached(), nothing, nothing)
    changes = state.cameras[0, number]
    first = covariance.shape[-1] - lens.COUNT * (len(problem.cameras) - number)
    deviations = covariance.diagonal()[first : first + lens.COUNT].clamp(min=0).sqrt()
    return FoundCamera(Lens(xray.camera).camera(xray.camera, changes), changes, deviations)


def finding_alternatives(
    first: Level, answer: State, optima: Linearization | None, searched: Sequence[dict]
) -> Generator[None, None, list[dict]]:
    """The first level's optima that are not the answer, and those of a search, all by its images, best first."""
    found = [] if optima is None else _other_optima(first, answer, optima)
    for other in searched:
        unknowns = first.objective.unknowns
        motion = Pose(torch.tensor(other["motion"], dtype=torch.float64)[None])
        similarity = yield from first.objective.measuring(unknowns.within(unknowns.together(motion)))
        found.append({**other, "similarity": float(similarity)})
    return sorted(found, key=lambda other: -other["similarity"])


def _other_optima(first: Level, answer: State, optima: Linearization) -> list[dict]:
    unknowns, distance = first.objective.unknowns, 2 * first.pixel
    rows = best_apart(unknowns, optima.state, optima.cost, len(optima), distance)
    away = unknowns.displacement(optima.state[rows], answer) > distance
    motions = optima.state.motions.matrix[:, first.lead]
    return [
        {"similarity": float(optima.similarity[row]), "motion": motions[row].tolist()} for row in rows[away].tolist()
    ]
