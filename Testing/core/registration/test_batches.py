"""Many candidates at once: each as if it were alone, and only those under way are rendered."""

from __future__ import annotations

import pytest
import torch

from DiffDRRCore import Registration, Renderer
from DiffDRRCore.registration.optimizers import adam, levenberg_marquardt
from DiffDRRCore.registration.optimizers.lbfgs import lbfgs
from DiffDRRCore.registration.problem.unknowns import State
from DiffDRRCore.similarity import SIMILARITIES
from Testing.core.registration import scene
from Testing.core.registration.test_objective import here, objective

OFFSETS = torch.tensor(
    [
        [0.0, 0, 0, 0, 0, 0],
        [0.05, -0.04, 0.03, 4, -3, 6],
        [-0.1, 0.1, 0.2, 10, 10, -20],
        [0.01, 0.01, 0, 0.5, 0, 1],
    ],
    dtype=torch.float64,
)


def candidates(target) -> State:
    return target.unknowns.moved(here(target), OFFSETS)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("robust", [None, "tukey"])
def test_a_batch_is_linearized_as_one_by_one(name, robust):
    target = objective(SIMILARITIES[name](), 2, weighted=True)
    target.robust = robust
    batch = candidates(target)
    together = target.linearize(batch)
    assert len(together) == len(OFFSETS)
    for row in range(len(OFFSETS)):
        alone = target.linearize(batch[row : row + 1])
        for field in ("similarity", "cost", "gradient", "hessian"):
            one, other = getattr(together, field), getattr(alone, field)
            if one is None:
                assert other is None
            else:
                assert torch.allclose(one[row : row + 1], other, rtol=1e-9, atol=1e-12), field


@pytest.mark.parametrize("name", ["zncc", "lncc", "mutual_information", "ssd"])
def test_similarity_without_derivatives_is_that_of_the_linearization(name):
    target = objective(SIMILARITIES[name](), 2, weighted=True)
    batch = candidates(target)
    assert torch.allclose(target.similarity(batch), target.linearize(batch).similarity, atol=1e-10)


@pytest.mark.parametrize(
    "run",
    [
        lambda target, states: levenberg_marquardt(target, states, 0.01, 12),
        lambda target, states: adam(target, states, 0.01, 12, (5e-3, 1.0)),
        lambda target, states: lbfgs(target, states, 0.01, 12, 5.0),
    ],
    ids=["levenberg_marquardt", "adam", "lbfgs"],
)
def test_a_candidate_ends_where_it_would_alone(run):
    target = objective(SIMILARITIES["zncc"](), 1)
    batch = candidates(target)
    *_, together = run(target, batch)
    for row in range(len(OFFSETS)):
        *_, alone = run(target, batch[row : row + 1])
        assert torch.allclose(together.best.state.first.matrix[row], alone.best.state.first.matrix[0], atol=1e-6)
        assert bool(together.converged[row]) == bool(alone.converged[0])


def test_candidates_that_have_converged_or_were_taken_out_are_rendered_no_more():
    target, rendered = objective(SIMILARITIES["zncc"](), 1), []
    linearize = target.renderer.linearize
    target.renderer.linearize = lambda camera, pose, **options: (
        rendered.append(len(pose)) or linearize(camera, pose, **options)
    )
    steps = levenberg_marquardt(target, candidates(target), 0.01, 40)
    progress = next(steps)
    progress.active[2] = False
    left_out = progress.best.state.first.matrix[2].clone()
    for _ in steps:
        pass
    assert rendered[:2] == [4, 3]
    assert rendered == sorted(rendered, reverse=True)
    assert rendered[-1] < 3
    assert progress.converged.tolist() == [True, True, False, True]
    assert torch.equal(progress.best.state.first.matrix[2], left_out)


def test_the_worse_half_gives_up(monkeypatch):
    monkeypatch.setattr("DiffDRRCore.registration.engine._TRIAL", 2)
    truth = scene.xray()
    options = {"starts": 8, "start_spread": (20.0, 20.0, 40.0), "sizes": (16,), "tolerance": 1e-6, "search": 0}
    registration = Registration(scene.ct(), truth, scene.moved(truth.pose), **options)
    running = [step.candidates for step in registration.steps()]
    assert running[0] == 8
    assert running[2] <= 4
    assert max(running[4:]) <= 3  # as many as would go on to a next level


def test_closing_the_generator_keeps_the_best_so_far():
    truth = scene.xray()
    registration = Registration(scene.ct(), truth, scene.moved(truth.pose), sizes=scene.SIZES, starts=3)
    steps = registration.steps()
    first, second = next(steps), next(steps)
    steps.close()
    result = registration.result()
    assert result.similarity == second.similarity >= first.similarity
    assert result.reason == "stopped before the end"
    assert len(result.history) == 2
    assert list(steps) == []


def test_one_rendering_of_each_view_a_step(monkeypatch):
    calls = []
    linearize = Renderer.linearize

    def counted(self, camera, pose, **options):
        calls.append(len(pose))
        return linearize(self, camera, pose, **options)

    monkeypatch.setattr(Renderer, "linearize", counted)
    views = [scene.xray(), scene.xray(80.0)]
    starts = [scene.moved(view.pose) for view in views]
    registration = Registration(scene.ct(), views, starts, sizes=(16,), starts=5, max_steps=3, search=0)
    for _ in registration.steps():
        pass
    assert calls[:2] == [5, 5]
    assert len(calls) <= 2 * 4
