from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from DiffDRRCore.errors import DiffDRRError, LearningError
from DiffDRRCore.learning.network.model_file import read_model, write_model
from DiffDRRCore.learning.training.learner import learning_rate
from DiffDRRCore.learning.training.logs import read_log, read_state
from DiffDRRCore.learning.training.options import TrainingOptions
from DiffDRRCore.learning.training.run_files import CHECKPOINT
from DiffDRRCore.learning.training.stopping import request_stop
from DiffDRRCore.learning.training.training import Training, read_options, train
from DiffDRRCore.learning.training.validation import target_errors, targets_of
from Testing.core.learning.small_training import small_options, write_phantom

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("ct") / "patient.nii.gz")


def weights(net) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_resumed_training_takes_the_same_steps_bit_for_bit(ct, tmp_path):
    options = small_options(ct)
    whole = train(options, tmp_path / "whole")
    losses = [(row["step"], row["loss"]) for row in read_log(tmp_path / "whole")]

    part = Training(options, tmp_path / "part")
    for step in part.steps():
        if step.step == 5:  # one step after its checkpoint: that step is made again
            break
    resumed = train(None, tmp_path / "part")

    assert resumed.step == whole.step == 8 and resumed.finished
    assert_same(weights(resumed.learner.net), weights(whole.learner.net))
    assert_same(weights(resumed.learner.average), weights(whole.learner.average))
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path / "part")] == losses
    assert resumed.best == whole.best


def test_other_seeds_learn_something_else(ct, tmp_path):
    one = train(small_options(ct, steps=3), tmp_path / "one")
    other = train(small_options(ct, steps=3, seed=1), tmp_path / "other")
    assert not torch.equal(one.learner.net.rotation.weight, other.learner.net.rotation.weight)


def test_one_batch_is_learned_by_heart(ct, tmp_path, monkeypatch):
    options = small_options(ct, steps=120, warmup=5, learning_rate=2e-3, validate_every=1000, checkpoint_every=1000)
    training = Training(options, tmp_path)
    learner = training.learner
    kept = learner._batch(training.subjects[0], 0, 1, 0)
    monkeypatch.setattr(learner, "_batch", lambda subject, *numbers: kept)
    points = targets_of(training.subjects[0])

    def error() -> float:
        with torch.no_grad():
            outputs = learner.net(kept.input)
        pose = learner.target.decode(kept.views.camera, outputs.rotation, outputs.offsets)
        return float(target_errors(pose, kept.views.pose, points).mean())

    before = error()
    for _ in training.steps():
        pass
    assert before > 20 and error() < 0.2 * before


def test_what_a_run_leaves(ct, tmp_path):
    seen = []
    training = train(small_options(ct), tmp_path / "run", seen.append)
    folder = tmp_path / "run"
    assert [step.step for step in seen] == list(range(1, 9))
    assert [step.step for step in seen if step.validation is not None] == [4, 8]
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert {"loss", "ncc", "geodesic", "likelihood", "learning_rate", "held_out_mm"} <= rows[0].keys()
    assert [bool(row["held_out_mm"]) for row in rows] == [False, False, False, True] * 2
    assert float(rows[3]["held_out_mm"]) == pytest.approx(seen[3].validation.mm, rel=1e-5)

    state = read_state(folder)
    assert state["status"] == "finished" and state["step"] == state["steps"] == 8 and state["pid"] == os.getpid()
    net, description = read_model(folder / "model.safetensors")
    best = min((step.validation.mm, step.step) for step in seen if step.validation is not None)
    assert (training.best["mm"], training.best["step"]) == best == (state["best"]["mm"], state["best"]["step"])
    assert description["frame"]["kind"] == "patient" and description["frame"]["ct"] == training.subjects[0].fingerprint
    if best[1] == 8:
        average = training.learner.average
        shift = net.deviation[-1].bias - average.deviation[-1].bias
        torch.testing.assert_close(shift, shift[:1].expand(6))  # one factor on all deviations
        average.deviation[-1].bias.data.copy_(net.deviation[-1].bias)
        assert_same(weights(net), weights(average))
    assert not (folder / "running.lock").exists() and read_options(folder) == small_options(ct)


def test_the_learning_rate_warms_up_and_falls_to_zero(ct):
    options = small_options(ct, steps=102, warmup=2, learning_rate=0.5)
    assert [learning_rate(options, step) for step in (1, 2, 3)] == [0.25, 0.5, 0.5]
    assert learning_rate(options, 53) == pytest.approx(0.25)  # half a cosine, in its middle
    assert 0 < learning_rate(options, 102) < 0.5 * 2.5e-4


def test_batches_that_are_accumulated_are_one_larger_batch(ct, tmp_path):
    """The gradient of two batches is the mean of the two, so Adam takes the step of their mean loss."""
    training = Training(small_options(ct, accumulate=2, clip=0.0), tmp_path)
    learner = training.learner
    parts = []
    for micro in range(2):
        learner.optimizer.zero_grad()
        learner._backward(learner._batch(training.subjects[0], 0, 1, micro))
        parts.append(learner.net.offsets.bias.grad.clone())
    learner.learn(1)
    torch.testing.assert_close(learner.net.offsets.bias.grad, parts[0] + parts[1], rtol=1e-5, atol=1e-9)


def test_gradients_are_clipped(ct, tmp_path):
    training = Training(small_options(ct, clip=1e-3), tmp_path)
    training.learner.learn(1)
    squares = [parameter.grad.square().sum() for parameter in training.learner.net.parameters()]
    assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_learns_the_same_thing(ct, tmp_path):
    full = train(small_options(ct, steps=3, validate_every=9), tmp_path / "full")
    half = train(small_options(ct, steps=3, validate_every=9, precision="bfloat16"), tmp_path / "half")
    one, other = (read_log(run.folder)[-1] for run in (full, half))
    assert one["loss"] != other["loss"] and float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.05)


def test_it_ends_where_there_is_no_progress(ct, tmp_path):
    options = small_options(ct, steps=40, warmup=0, learning_rate=1e-12, ema=0.0, validate_every=2, patience=2)
    training = train(options, tmp_path)
    assert training.step < 40 and training.finished and read_state(tmp_path)["status"] == "finished"


def test_a_file_stops_it_and_it_goes_on(ct, tmp_path):
    options = small_options(ct)

    def stop(step):
        if step.step == 3:
            request_stop(tmp_path / "run")

    training = train(options, tmp_path / "run", stop)
    assert training.step == 4 and not training.finished
    assert read_state(tmp_path / "run")["status"] == "stopped" and not (tmp_path / "run" / "stop").exists()
    assert train(None, tmp_path / "run").step == 8


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_in_the_middle_leaves_a_checkpoint(ct, tmp_path):
    options, folder = tmp_path / "options.json", tmp_path / "run"
    options.write_text(json.dumps(small_options(ct, steps=100000, warmup=2, checkpoint_every=100000).to_dict()))
    command = [sys.executable, "-m", "DiffDRRCore", "train", "--options", str(options), "--output", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and ((read_state(folder) or {}).get("step") or 0) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in out
    state = read_state(folder)
    assert state["status"] == "stopped" and state["step"] >= 2
    assert Training.resume(folder).step == state["step"]


def test_a_full_disk_leaves_the_last_checkpoint(ct, tmp_path, monkeypatch):
    folder, write, written = tmp_path / "run", Path.write_bytes, []

    def full(path, content):
        if CHECKPOINT in path.name:
            written.append(path)
            if len(written) == 2:
                write(path, content[:1000])
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiffDRRError, match=r"checkpoint\.safetensors': No space left on device"):
        train(small_options(ct), folder)
    monkeypatch.undo()
    assert read_state(folder)["status"] == "failed" and "No space" in read_state(folder)["message"]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    assert Training.resume(folder).step == 4 and train(None, folder).step == 8


def test_a_loss_that_is_no_number_ends_it(ct, tmp_path, monkeypatch):
    training = Training(small_options(ct), tmp_path)
    backward = training.learner._backward
    monkeypatch.setattr(
        training.learner,
        "_backward",
        lambda made: {name: value * float("nan") for name, value in backward(made).items()},
    )
    with pytest.raises(LearningError, match=r"not a number any more at step 1: try a lower learning rate"):
        list(training.steps())


def test_a_folder_that_holds_a_training_is_refused(ct, tmp_path):
    """Also by the very same command, which would begin it anew."""
    train(small_options(ct, steps=4), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for seed in (0, 3):
        with pytest.raises(LearningError, match=r"holds a training already .* \(restart\)"):
            train(small_options(ct, steps=4, seed=seed), tmp_path)
    with pytest.raises(LearningError, match=r"has finished its 4 steps"):
        train(None, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(None, tmp_path, steps=6).step == 6


def test_a_training_whose_ct_has_changed_does_not_go_on(tmp_path):
    path = write_phantom(tmp_path / "patient.nii.gz")
    train(small_options(path, steps=4), tmp_path / "run")
    write_phantom(path, scale=1.2)
    with pytest.raises(LearningError, match="not the one that the training"):
        train(None, tmp_path / "run", steps=6)
    assert read_state(tmp_path / "run")["status"] == "failed"


def test_damaged_and_foreign_checkpoints(ct, tmp_path):
    train(small_options(ct, steps=4), tmp_path)
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LearningError, match="damaged"):
        Training.resume(tmp_path)
    path.unlink()
    with pytest.raises(LearningError, match="There is no checkpoint"):
        Training.resume(tmp_path)
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(DiffDRRError, match="damaged"):
        train(None, tmp_path)
    with pytest.raises(LearningError, match="There is no training"):
        train(None, tmp_path / "nothing")


def test_fine_tuning_begins_where_the_model_ended(ct, tmp_path):
    from DiffDRRCore.learning.training.finetuning import finetuning_options

    first = train(small_options(ct), tmp_path / "first")
    other = write_phantom(tmp_path / "other.nii.gz", scale=1.1)
    options = finetuning_options(
        tmp_path / "first" / "model.safetensors", {"cts": [str(other)], "steps": 50, "warmup": 1}
    )
    tuned = Training(options, tmp_path / "tuned")
    net, _ = read_model(tmp_path / "first" / "model.safetensors")
    assert_same(weights(tuned.learner.net), weights(net))
    assert tuned.learner.target == first.learner.target
    assert tuned.subjects[0].fingerprint != first.subjects[0].fingerprint
    next(iter(tuned.steps()))
    tuned.best = {"step": 1}
    write_model(tmp_path / "tuned" / "model.safetensors", tuned.learner.average, tuned.description())
    _, description = read_model(tmp_path / "tuned" / "model.safetensors")
    assert "other" not in json.dumps(description) and "patient.nii" not in json.dumps(description)  # names of files
    assert options.learning_rate == 3e-4 and options.validate_every == 50
    assert description["frame"]["ct"] == tuned.subjects[0].fingerprint


def test_tensorboard_events(ct, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small_options(ct, steps=4, tensorboard=True), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("held_out_mm")] == [4]


@pytest.mark.skipif(sys.platform == "win32", reason="torch has no gloo for torchrun there")
def test_two_processes_take_the_step_of_two_accumulated_batches(ct, tmp_path):
    """Each process has a batch of its own, and their gradients are averaged."""
    alone = train(
        small_options(ct, steps=2, warmup=1, accumulate=2, validate_every=9, losses={"likelihood": 0.0}),
        tmp_path / "alone",
    )
    options = tmp_path / "options.json"
    changes = {"steps": 2, "warmup": 1, "validate_every": 9, "losses": {"likelihood": 0.0}}
    options.write_text(json.dumps(small_options(ct, **changes).to_dict()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "DiffDRRCore", "train", "--options", str(options), "--output", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher + command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    both = Training.resume(tmp_path / "two", steps=3)
    for name, value in weights(alone.learner.net).items():
        torch.testing.assert_close(value, weights(both.learner.net)[name], rtol=1e-3, atol=1e-5, msg=name)
    assert [row["step"] for row in read_log(tmp_path / "two")] == ["1", "2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"nc": 1}}, "did you mean 'ncc'"),
        ({"losses": {"seen": 0, "ncc": 0, "geodesic": 0}}, "knows the pose"),
        ({"ema": 1.0}, "below 1"),
        ({"warmup": 100}, "warm-up takes 100 steps .* of 8"),
        ({"views": {"primary": [-10, 10]}}, "need 'sod'"),
        ({"views": {"primry": [-10, 10], "sod": 700}}, "primry"),
        ({"backbone": "resnet50"}, "resnet50"),
        ({"batch": 0}, "batch must be a whole number of 1 or more"),
        ({"around": [[1, 0, 0, 0]] * 4, "cts": ["a.nii", "b.nii"]}, "several CTs need warps"),
        ({"initial": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_options_that_cannot_be(ct, tmp_path, changes, message):
    with pytest.raises(DiffDRRError, match=message):
        Training(small_options(ct, **changes), tmp_path)


def test_options_from_a_file_have_paths_from_its_folder(ct, tmp_path):
    path = tmp_path / "options.yaml"
    options = small_options(ct)
    path.write_text(json.dumps({**options.to_dict(), "cts": ["here/ct.nii.gz"]}))
    assert TrainingOptions.read(path).cts == (str(tmp_path / "here" / "ct.nii.gz"),)
    (tmp_path / "twice.yaml").write_text("steps: 1\nsteps: 2\n")
    with pytest.raises(DiffDRRError, match="there already"):
        TrainingOptions.read(tmp_path / "twice.yaml")
