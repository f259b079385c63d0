"""How long ranks wait for one that does not answer, and what is said then. gloo stands in for NCCL."""

import datetime
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from support.project import PROJECT

pytest.importorskip("transformers", reason="transformers is not installed")
from essence.distill.backends import make_backend
from essence.distill.first_rank_loading import load_once
from essence.distill.ranks import WAITS, Ranks, limit_waits
from essence.distill.storage import Storage
from essence.errors import StageError
from essence.progress import StopRequest
from essence.stages.launch import REPORTS, run_here, why_ended
from support.hung_rank_program import GROUPS, LONGEST_S
from support.small_training import model, run

START_S = 240.0
"""Two processes start and train two steps on a busy machine: far less than gloo's two hours."""


class Backend:
    """Of a process group."""

    def __init__(self, name: str) -> None:
        self.told, self.waits = name, datetime.timedelta(0)

    def name(self) -> str:
        return self.told

    def _set_default_timeout(self, waits: datetime.timedelta) -> None:
        self.waits = waits


class Group:
    """A process group with a backend for each kind of device."""

    def __init__(self, **backends: Any) -> None:
        self.backends, self._device_types = backends, list(backends)

    def _get_backend(self, device: str) -> Any:
        return self.backends[device]


class Wrapped:
    """A backend under TORCH_DISTRIBUTED_DEBUG=DETAIL."""

    def __init__(self, backend: Backend) -> None:
        self.wrapped_pg = backend


def test_a_gpu_waits_a_quarter_of_an_hour_and_main_memory_two_hours() -> None:
    gloo, nccl = Backend("gloo"), Backend("nccl")
    for group in (Group(cpu=gloo, cuda=nccl), Group(cpu=Wrapped(gloo), cuda=Wrapped(nccl))):
        gloo.waits = nccl.waits = datetime.timedelta(0)
        assert limit_waits(group) is group
        assert (gloo.waits, nccl.waits) == (datetime.timedelta(hours=2), datetime.timedelta(minutes=15))
    assert set(WAITS) == {"gloo", "nccl"}


def test_the_others_wait_in_main_memory_while_the_first_rank_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that waited for the weights themselves would give up on a model that takes a quarter of an hour to read."""
    done: list[str] = []

    def note(what: str) -> Any:
        return lambda *_: done.append(what)

    class Model:
        def parameters(self) -> list[Any]:
            return [torch.zeros(1)]

        def buffers(self) -> list[Any]:
            return []

    monkeypatch.setattr("essence.distill.first_rank_loading.load_model", lambda *_: note("loaded")() or Model())
    monkeypatch.setattr("torch.distributed.broadcast", note("broadcast"))
    monkeypatch.setattr(Ranks, "wait", note("waited"))
    load_once(Path(), torch.float32, Ranks(processes=2), torch.device("cpu"))
    assert done == ["loaded", "waited", "broadcast"]


def test_ranks_wait_for_each_other_where_each_has_read_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before the weights cross, and before the first step."""
    done: list[str] = []

    def noted(what: str, work: Any) -> Any:
        return lambda *args: done.append(what) or work(*args)

    monkeypatch.setattr(Storage, "restore", noted("restored", Storage.restore))
    monkeypatch.setattr("essence.distill.trainer.make_backend", noted("backend", make_backend))
    monkeypatch.setattr(Ranks, "wait", lambda _: done.append("waited"))
    run(tmp_path / "training", model(0))
    assert done[:4] == ["restored", "waited", "backend", "waited"]


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "where", "groups"), [("ddp", "loop", 1), ("zero2", "forward", 2)])
def test_a_rank_that_hangs_ends_the_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str, where: str, groups: int
) -> None:
    """DeepSpeed has a group of its own, which waited PyTorch's 30 minutes whatever the backend."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT), str(PROJECT / "tests")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / parallel / where
    folder.mkdir(parents=True)
    started = time.monotonic()
    codes = run_here(2, 1, folder, StopRequest(), "support.hung_rank_program")
    assert time.monotonic() - started < START_S
    failed = why_ended(codes, 2, folder / REPORTS)
    assert isinstance(failed, StageError) and failed.problem == "rank 0 of 2 waited 3.0\u00a0s for another, which hangs"
    assert failed.cure.startswith("run the command again: it continues from the newest checkpoint")
    assert json.loads((folder / GROUPS).read_text()) == [{"gloo": LONGEST_S}] * groups


def test_a_rank_that_nccl_has_ended_is_told_with_the_same_cure(tmp_path: Path) -> None:
    failed = why_ended({0: 0, 1: -signal.SIGABRT}, 2, tmp_path)
    assert isinstance(failed, StageError) and "rank 1 of 2 was killed by SIGABRT (did a GPU" in failed.problem
    assert "the log names the operation" in failed.cure
