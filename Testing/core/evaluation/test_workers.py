"""Cases on other processes: the same numbers, the threads and the GPU that each is given."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.evaluation.running.records import read_records
from DiffDRRCore.evaluation.running.run import run
from DiffDRRCore.evaluation.running.workers import spread_gpus
from DiffDRRCore.parallel import pin_gpu, visible_gpus
from Testing.core.evaluation import protocols
from Testing.core.evaluation.protocols import lines_of, timeless


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_the_workers(protocol, reference, tmp_path):
    assert timeless(run(protocol, tmp_path / "one", workers=1)) == timeless(reference)
    assert timeless(run(protocol, tmp_path / "two", workers=2)) == timeless(reference)


@pytest.mark.slow
def test_workers_have_the_threads_they_are_told_and_the_parent_keeps_its_own(protocol, tmp_path):
    before = dict(os.environ), torch.get_num_threads()
    records = run(protocol, tmp_path, workers=1, threads=3, solve=protocols.stay)
    assert {record["reason"] for record in records} == {"3 3 3"}
    assert (dict(os.environ), torch.get_num_threads()) == before


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence_and_the_others_cases_are_kept(protocol, tmp_path):
    with pytest.raises(DiffDRRError, match=r"A worker process died .*finished cases are kept"):
        run(protocol, tmp_path, workers=1, solve=protocols.die_at_the_second_view)
    assert [record["case"] for record in read_records(tmp_path)] == ["phantom/ap/0", "phantom/ap/1"]
    assert len(run(protocol, tmp_path, workers=0, solve=protocols.stay)) == 4


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_numbers(protocol, reference, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        records = run(protocol, tmp_path, scheduler=cluster.scheduler_address)
    assert timeless(records) == timeless(reference)
    assert len(lines_of(tmp_path)) == 4


def test_dask_that_is_not_there(protocol, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DiffDRRError, match="pip install distributed"):
        run(protocol, tmp_path, scheduler="tcp://127.0.0.1:1")


def test_a_scheduler_that_does_not_answer(protocol, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, **options: client(address, **options | {"timeout": 1}))
    with pytest.raises(DiffDRRError, match=r"No Dask scheduler answers at 'tcp://127.0.0.1:1'"):
        run(protocol, tmp_path, scheduler="tcp://127.0.0.1:1")


def test_each_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5,7")
    gpus = visible_gpus()
    assert gpus == ("2", "5", "7")
    for rank, device in enumerate(["2", "5", "7", "2"]):
        pin_gpu(gpus, rank)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == device
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pin_gpu(visible_gpus(), 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def seen_by(monkeypatch, lists: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """What each worker says that it sees, by its CUDA_VISIBLE_DEVICES."""
    seen = {}
    for address, visible in lists.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        seen[address] = visible_gpus()
    return seen


def test_dask_workers_of_one_list_take_its_gpus_in_turn_on_each_machine(monkeypatch):
    lists = {"tcp://a:3": "0,1", "tcp://a:1": "0,1", "tcp://b:9": "4", "tcp://a:2": "0,1", "tcp://c:1": ""}
    spread = spread_gpus(seen_by(monkeypatch, lists))
    assert spread == {"tcp://a:1": "0", "tcp://a:2": "1", "tcp://a:3": "0", "tcp://b:9": "4"}


def test_dask_workers_whose_lists_differ_keep_their_first_gpu(monkeypatch):
    """As dask-cuda starts them; by their ranks all three would take GPU 0 of their turned lists."""
    lists = {"tcp://a:1": "0,1,2", "tcp://a:2": "2,0,1", "tcp://a:3": "1,2,0", "tcp://b:1": "0,1", "tcp://b:2": "0,1"}
    spread = spread_gpus(seen_by(monkeypatch, lists))
    assert spread == {"tcp://a:1": "0", "tcp://a:2": "2", "tcp://a:3": "1", "tcp://b:1": "0", "tcp://b:2": "1"}
    assert spread_gpus({address: (gpu,) for address, gpu in spread.items()}) == spread  # asked again, once pinned
