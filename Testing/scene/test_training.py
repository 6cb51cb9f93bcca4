"""A training from the scene: its files and ranges, its process, and what is told of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from DiffDRRCore import CArm, Volume
from DiffDRRCore.datasets.phantom import phantom
from Testing.scene import kit

slicer = pytest.importorskip("slicer")

from DiffDRRCore.errors import DiffDRRError, LearningError  # noqa: E402
from DiffDRRCore.learning.training.options import TrainingOptions  # noqa: E402
from DiffDRRSlicerLib.scene import training, training_run  # noqa: E402
from DiffDRRSlicerLib.scene.anatomy import Anatomy  # noqa: E402
from DiffDRRSlicerLib.scene.carm import CArmNode  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.training import TrainingSettings, prepare_training, views_around  # noqa: E402
from DiffDRRSlicerLib.scene.training_curve import TrainingCurve, read_losses  # noqa: E402
from DiffDRRSlicerLib.scene.training_run import TrainingRun  # noqa: E402
from Testing.scene import fake_trainer  # noqa: E402

FAKE = [sys.executable, str(Path(fake_trainer.__file__))]


@pytest.fixture
def place(scene):
    """A phantom with labels on an oblique grid below a moved transform, and a C-arm."""
    rng = np.random.default_rng(3)
    volume = phantom((16, 20, 18), 12.0)
    above = kit.add_transform(scene, kit.rigid(rng), name="above")
    grid = kit.rigid(rng) @ volume.ijk_to_ras.numpy()
    ct = kit.add_volume(scene, volume.hu.numpy().astype(np.int16), grid, above)
    labels = kit.add_volume(
        scene, volume.labels.numpy().astype(np.int16), grid, above, "labels", "vtkMRMLLabelMapVolumeNode"
    )
    anatomy = Anatomy(ct, labels)
    arm = CArm(1000.0, 700.0, anatomy.center + 5.0, 25.0, -10.0, 5.0)
    carm = CArmNode.create(scene, arm.camera(60, 80, (4.0, 3.0), view_from="detector"), arm.pose, 700.0)
    return anatomy, carm


@pytest.fixture
def fake(monkeypatch):
    """The stand-in is started in place of the trainer; what is left at the end is ended."""
    monkeypatch.setattr(training_run, "command", lambda: FAKE)
    yield
    for process in training_run._processes.values():
        process.kill()
        process.wait()
    training_run._processes.clear()


def wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def started(place, folder, manner=None, steps=40):
    """A run of the stand-in."""
    anatomy, carm = place
    run = prepare_training(folder, carm, anatomy, TrainingSettings(steps=steps))
    (run.folder / "manner.json").write_text(json.dumps(manner or {}))
    run.start()
    return run


def ended(run):
    wait(lambda: not run.state.going)
    return run.state


def test_ct_and_structures_go_to_files_as_the_renderer_has_them(place, tmp_path):
    anatomy, carm = place
    run = prepare_training(tmp_path / "all", carm, anatomy, TrainingSettings(structures=True))
    assert {path.name for path in run.folder.iterdir()} == {"ct copy.nrrd", "ct copy.seg.nrrd", "training.json"}
    options = TrainingOptions.read(run.folder / "training.json")
    assert all(Path(path).is_file() for path in (*options.cts, *options.labelmaps))
    again, volume = Volume.read(options.cts[0], options.labelmaps[0]), anatomy.volume
    assert np.array_equal(again.hu, volume.hu) and np.array_equal(again.labels, volume.labels)
    assert np.allclose(again.ijk_to_ras, volume.ijk_to_ras, rtol=0, atol=1e-9)
    assert options.losses["dice"] > 0 and options.labels is None
    plain = prepare_training(tmp_path / "all", carm, anatomy, TrainingSettings())
    assert plain.folder != run.folder and not (plain.folder / "ct copy.seg.nrrd").exists()
    beside = prepare_training(run.folder, carm, anatomy, TrainingSettings())
    assert beside.folder.parent == run.folder.parent  # never inside another run


def test_what_the_options_have_too_is_as_there(place):
    anatomy, carm = place
    own, options = TrainingSettings(), training.training_options(carm, anatomy, TrainingSettings())
    for name in ("steps", "batch", "backbone", "learning_rate", "seed"):
        assert getattr(own, name) == getattr(TrainingOptions, name)
    for name in ("validate_every", "checkpoint_every"):
        assert options[name] == getattr(TrainingOptions, name)
    assert "warmup" not in options


@pytest.mark.parametrize("torch_takes, there_are, taken", [(8, 8, 7), (4, 8, 4), (1, 1, 1), (2, 1, 1)])
def test_a_core_is_left_to_slicer(place, monkeypatch, torch_takes, there_are, taken):
    anatomy, carm = place
    monkeypatch.setattr(training, "cores", lambda: there_are)
    monkeypatch.setattr("torch.get_num_threads", lambda: torch_takes)
    assert training.training_options(carm, anatomy, TrainingSettings())["threads"] == taken
    assert training.training_options(carm, anatomy, TrainingSettings(threads=9))["threads"] == 9


def test_the_copy_of_the_ct_is_compressed_and_can_be_removed(place, tmp_path, fake):
    run = started(place, tmp_path, {"pause": 0.02}, steps=60)
    copy = run.folder / "ct copy.nrrd"
    assert b"encoding: gzip" in copy.read_bytes()[:2000]
    wait(lambda: run.state.step > 3)
    with pytest.raises(SceneError, match="stop it first"):
        run.clear()
    run.stop()
    ended(run)
    (run.folder / "ct.nrrd").write_text("of somebody else")
    left = {path.name for path in run.folder.iterdir()} - {"ct copy.nrrd", "checkpoint.safetensors"}
    assert run.clearable
    run.clear()
    assert {path.name for path in run.folder.iterdir()} == left and run.model.is_file()
    assert not run.clearable and not run.resumable and run.state.status == "stopped"
    with pytest.raises(SceneError, match="no checkpoint"):
        run.resume()
    run.clear()  # nothing is left to do


def test_voxels_that_are_no_whole_numbers_are_kept(place, tmp_path):
    anatomy, carm = place
    voxels = slicer.util.arrayFromVolume(anatomy.ct).astype(np.float32) + 0.25
    slicer.util.updateVolumeFromArray(anatomy.ct, voxels)
    run = prepare_training(tmp_path, carm, anatomy, TrainingSettings())
    assert np.array_equal(Volume.read(run.folder / "ct copy.nrrd").hu, voxels)


def test_ranges_lie_about_the_c_arm_as_the_ct_sees_it(place):
    """The middle of all ranges is the C-arm's own pose, by `CArm` from the numbers of the options alone."""
    anatomy, carm = place
    settings = TrainingSettings(primary=20, secondary=10, roll=5, shift=7, depth=40)
    ranges, isocenter = views_around(carm, anatomy, settings)
    middle = {name: np.mean(ends) for name, ends in ranges.items()}
    half = {name: np.ptp(ends) / 2 for name, ends in ranges.items()}
    assert half == pytest.approx(
        {"primary": 20, "secondary": 10, "roll": 5, "shift_r": 7, "shift_a": 7, "shift_s": 7, "sod": 40}
    )
    angles = {name: middle[name] for name in ("primary", "secondary", "roll")}
    pose = CArm(1000.0, middle["sod"], isocenter, **angles).pose
    expected = np.linalg.inv(anatomy.to_world) @ carm.to_world
    assert np.allclose(pose.matrix, expected, atol=1e-6)
    assert not np.allclose(expected, carm.to_world, atol=1.0)  # the transform above the CT counts


def test_the_network_sees_the_detector_in_fewer_pixels(place):
    anatomy, carm = place
    options = training.training_options(carm, anatomy, TrainingSettings(size=64, backbone="resnet34", steps=30))
    assert (options["camera"]["height"], options["camera"]["width"]) == (48, 64)
    assert options["camera"]["pixel_spacing"] == pytest.approx([4.0 * 60 / 48, 3.0 * 80 / 64])
    assert options["camera"]["view_from"] == "detector"
    assert (options["backbone"], options["steps"], options["validate_every"]) == ("resnet34", 30, 3)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"depth": 290.0}, "can change by 250 mm at most"),
        ({"backbone": "resnet99"}, "there is no 'resnet99'"),
        ({"size": 32}, "images have 32 to 1024 rows and columns"),
        ({"steps": 0}, "steps must be a whole number of 1 or more"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_no_folder(place, tmp_path, settings, words):
    anatomy, carm = place
    with pytest.raises(DiffDRRError, match=words):
        prepare_training(tmp_path, carm, anatomy, TrainingSettings.of(**settings))
    assert not list(tmp_path.iterdir())


def test_a_setting_that_there_is_not(place):
    with pytest.raises(SceneError, match="no setting 'step'"):
        TrainingSettings.of(step=3)


def test_what_cannot_be_written_leaves_no_folder(place, tmp_path):
    anatomy, carm = place
    anatomy.ct.SetName("ske/wed: CT?")
    grid = np.diag([1.0, 1, 1, 1])
    grid[0, 1] = 0.4  # a tilted gantry
    anatomy.ct.SetIJKToRASMatrix(kit.matrix(grid))
    with pytest.raises(DiffDRRError, match="not perpendicular"):
        prepare_training(tmp_path, carm, Anatomy(anatomy.ct), TrainingSettings())
    assert not list(tmp_path.iterdir())


def test_from_start_to_end(place, tmp_path, fake, scene):
    run = started(place, tmp_path, {"pause": 0.02}, steps=30)
    assert run.folder.parent == tmp_path and run.state.going
    with pytest.raises(SceneError, match="at work already"):
        run.start()
    seen = set()
    curve = TrainingCurve(scene)

    def looked():
        state = run.state
        curve.follow(run.folder)
        seen.add((state.status, state.step))
        return not state.going

    wait(looked)
    state = run.state
    assert (state.status, state.step, state.steps, state.fraction) == ("finished", 30, 30, 1.0)
    assert state.best["mm"] == pytest.approx(1.0) and run.model.is_file() and not run.resumable
    assert len({step for status, step in seen if status == "running"}) > 3
    curve.follow(run.folder)
    table = curve.table.GetTable()
    rows = [(table.GetValue(row, 0).ToInt(), table.GetValue(row, 1).ToDouble()) for row in range(30)]
    assert rows == [(step, pytest.approx(1 / step)) for step in range(1, 31)] and table.GetNumberOfRows() == 30
    series = curve.chart.GetNthPlotSeriesNode(0)
    assert (series.GetXColumnName(), series.GetYColumnName()) == ("step", "loss")
    assert series.GetTableNode() is curve.table


def test_stop_and_resume(place, tmp_path, fake):
    run = started(place, tmp_path, {"pause": 0.02}, steps=60)
    with pytest.raises(SceneError, match="no checkpoint"):
        run.resume()
    wait(lambda: run.state.step > 3)
    run.stop()
    state = ended(run)
    assert state.status == "stopped" and 3 < state.step < 60 and run.resumable
    with pytest.raises(SceneError, match="no training at work"):
        run.stop()
    (run.folder / "manner.json").write_text("{}")
    (run.folder / "stop").touch()  # of somebody who pressed twice
    run.resume()
    assert run.state.going  # and not "stopped" still
    assert ended(run).status == "finished" and run.state.step == 60
    steps = [step for step, _ in read_losses(run.folder)]
    assert steps == list(range(1, 61))


def test_a_failure_says_why(place, tmp_path, fake):
    run = started(place, tmp_path, {"end": "failed", "at": 3})
    state = ended(run)
    assert (state.status, state.message) == ("failed", fake_trainer.MESSAGE) and run.resumable


def test_a_death_without_a_word_is_told_with_the_last_lines(place, tmp_path, fake):
    run = started(place, tmp_path, {"end": "dead", "at": 4})
    state = ended(run)
    assert state.status == "lost" and state.step == 3
    assert state.message.splitlines()[-3:] == ["reading", "out of memory", "killed"]
    assert run.resumable
    run.resume()
    assert ended(run).status == "lost"


def test_a_kill_while_the_ct_is_read_is_told_without_the_words_of_an_earlier_process(place, tmp_path, fake):
    run = started(place, tmp_path, {"end": "dead", "at": 4})
    assert ended(run).message.endswith("killed")
    (run.folder / "manner.json").write_text('{"reading": 60}')
    run.resume()
    wait(lambda: run.state.status == "running")
    assert run.state.message == "reading the CTs"
    wait(lambda: "pid" in (run.folder / "output.txt").read_text().splitlines()[-1])
    training_run._processes[run.folder].terminate()
    state = ended(run)
    assert state.status == "lost" and "killed" not in state.message and state.message.startswith("pid")


def test_a_process_that_dies_before_it_says_anything(place, tmp_path, fake, monkeypatch):
    monkeypatch.setattr(training_run, "command", lambda: [sys.executable, "-c", "raise SystemExit('no such module')"])
    state = ended(started(place, tmp_path))
    assert state.status == "lost" and state.message == "no such module"
    script = "raise SystemExit('DiffDRRCore train: error: Every loss has the weight 0.')"
    monkeypatch.setattr(training_run, "command", lambda: [sys.executable, "-c", script])
    state = ended(started(place, tmp_path))
    assert (state.status, state.message) == ("failed", "Every loss has the weight 0.")


def test_a_program_that_is_not_there(place, tmp_path, fake, monkeypatch):
    monkeypatch.setattr(training_run, "command", lambda: [str(tmp_path / "PythonSlicer")])
    anatomy, carm = place
    run = prepare_training(tmp_path, carm, anatomy, TrainingSettings())
    with pytest.raises(SceneError, match="cannot be started: No such file"):
        run.start()
    assert run.state.status == "none"


def test_it_outlives_the_program_that_started_it_and_is_found_again(place, tmp_path):
    """Another Python starts it and ends; this one, which never heard of it, finds it at work, and stops it."""
    anatomy, carm = place
    run = prepare_training(tmp_path, carm, anatomy, TrainingSettings(steps=2000))
    (run.folder / "manner.json").write_text('{"pause": 0.05}')
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from DiffDRRSlicerLib.scene import training_run\n"
        "training_run.command = lambda: sys.argv[4:]\n"
        "training_run.TrainingRun(sys.argv[3]).start()\n"
    )
    root = Path(__file__).resolve().parents[2]
    arguments = [str(root), str(root / "DiffDRRSlicer"), str(run.folder), *FAKE]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    wait(lambda: run.state.step > 1)
    number = json.loads((run.folder / "state.json").read_text())["pid"]
    assert run.state.status == "running" and os.getpgid(number) != os.getpgid(0)
    with pytest.raises(SceneError, match="at work already"):
        TrainingRun(run.folder).start()
    TrainingRun(run.folder).stop()
    assert ended(run).status == "stopped"


def test_a_child_that_nobody_waited_for_is_dead(place, tmp_path, fake):
    """As after a reload of the module, which forgets its processes."""
    run = started(place, tmp_path, {"end": "dead", "at": 2})
    forgotten = training_run._processes.pop(run.folder)
    state = ended(run)
    assert state.status == "lost"
    forgotten.wait()


def test_a_number_that_another_process_has_by_now(place, tmp_path):
    """After a restart of the computer the numbers are given anew: who is silent for long is not it."""
    anatomy, carm = place
    run = prepare_training(tmp_path, carm, anatomy, TrainingSettings())
    told = {"status": "running", "step": 5, "steps": 9, "pid": os.getpid(), "updated": time.time()}
    (run.folder / "state.json").write_text(json.dumps(told))
    assert run.state.status == "running"
    (run.folder / "state.json").write_text(json.dumps({**told, "updated": time.time() - 7200}))
    assert run.state.status == "lost"


def test_damaged_files_are_told(place, tmp_path):
    run = TrainingRun(tmp_path)
    assert run.state.status == "none" and not run.exists
    (tmp_path / "state.json").write_text('{"status": "runn')
    with pytest.raises(LearningError, match=r"state.json' is damaged"):
        run.state  # noqa: B018
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(LearningError, match="no status"):
        run.state  # noqa: B018


def test_watching_a_training_loads_no_torch(place, tmp_path):
    """The panel does so each second."""
    anatomy, carm = place
    folder = prepare_training(tmp_path, carm, anatomy, TrainingSettings()).folder
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from DiffDRRSlicerLib.scene.training_run import TrainingRun\n"
        "run = TrainingRun(sys.argv[3])\n"
        "assert run.exists and run.clearable and run.state.status == 'none'\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, str(root), str(root / "DiffDRRSlicer"), str(folder)], check=True)


def test_python_of_slicer_is_found(monkeypatch, tmp_path):
    assert training_run.command() == [sys.executable, "-m", "DiffDRRCore"]
    own = tmp_path / "bin" / "SlicerApp-real"
    own.parent.mkdir()
    monkeypatch.setattr(sys, "executable", str(own))
    with pytest.raises(SceneError, match="was not found"):
        training_run.python_executable()
    beside = own.with_name("PythonSlicer")
    beside.write_text("")
    assert training_run.python_executable() == str(beside)
    on_path = tmp_path / "PythonSlicer"
    on_path.write_text("")
    on_path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert training_run.python_executable() == str(on_path)


def test_the_process_finds_the_library_and_prints_to_a_file(place, tmp_path, fake, monkeypatch):
    script = "import DiffDRRCore.files, sys; print(DiffDRRCore.files.__file__, sys.stdin.read() == '')"
    monkeypatch.setattr(training_run, "command", lambda: [sys.executable, "-c", script])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = started(place, tmp_path)
    wait(lambda: not run.state.going)
    assert (run.folder / "output.txt").read_text().split()[-1] == "True"
    assert "DiffDRRCore" in run.state.message
