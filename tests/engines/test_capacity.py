"""What may run at once: cores and main memory beside GPUs."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from essence.commands.options import select
from essence.engines import machine
from essence.engines.capacity import Capacity, cores_of
from essence.engines.gpu_pool import GpuPool
from essence.engines.selected_run import Options
from essence.plan.experiment import load
from essence.plan.proof_plan import proof_plan
from essence.plan.stage_plan import PlannedStage
from essence.record.run_directory import RunDirectory
from essence.settings.proving import ProveTrainingSettings
from support.gpu_host import matrix

EIGHT = GpuPool({str(number): f"a test of {os.getpid()}: {number}" for number in range(8)})


@pytest.fixture(scope="module")
def stages() -> list[PlannedStage]:
    """Those of the paper's main experiment."""
    return select(Options(experiment="bespoke", engine="local"), baselines=True).wanted


def one_of(stages: list[PlannedStage], kind: str) -> PlannedStage:
    return next(stage for stage in stages if stage.stage == kind)


def test_a_training_takes_its_threads_for_each_process_of_a_machine(stages: list[PlannedStage]) -> None:
    training, generation = one_of(stages, "train"), one_of(stages, "generate")
    assert training.resources.threads == 8 and training.resources.gpus == 4
    assert cores_of(training) == 4 * 8 and cores_of(generation) == cores_of(one_of(stages, "grade")) == 8
    on_two = training.resources.model_copy(update={"nodes": 2})
    assert cores_of(replace(training, resources=on_two)) == 2 * 8
    loaded = load("bespoke")
    plan = proof_plan(loaded, loaded.cells()[0], lambda _: {}, RunDirectory(Path("runs")), "2026-01-01T00:00:00")
    proof = one_of(list(plan.stages.values()), "prove_training")
    assert isinstance(proof.settings, ProveTrainingSettings) and cores_of(proof) == 4 * 8
    eight = proof.settings.model_copy(update={"processes": 8, "machines": 2})
    assert cores_of(replace(proof, settings=eight)) == 4 * 8


@pytest.mark.parametrize(
    ("cores", "trainings", "beside"), [(2, 1, False), (39, 1, False), (40, 1, True), (64, 2, True)]
)
def test_what_an_eight_gpu_host_runs_at_once(
    stages: list[PlannedStage], cores: float, trainings: int, beside: bool
) -> None:
    """Two trainings of the paper from 64 cores on, a training beside a generation from 40; one alone on a laptop."""
    training, generation = one_of(stages, "train"), one_of(stages, "generate")
    capacity = Capacity(1, EIGHT, cores=cores)
    assert capacity.at_once(stages) == trainings
    assert capacity.have_room([training]) and capacity.have_room([training, training]) == (trainings == 2)
    assert capacity.have_room([training, generation]) == beside
    told = "" if trainings == 2 else f"train: 1 at a time, though there are GPUs for 2: each takes 32 of {cores} cores"
    assert capacity.remark(stages).startswith(told) and bool(capacity.remark(stages)) == (trainings == 1)


def test_memory_and_what_asks_for_no_gpus(stages: list[PlannedStage]) -> None:
    training = one_of(stages, "train")
    short = Capacity(1, EIGHT, 100.0, {training.id: 60.0}, cores=64)
    assert short.at_once([training]) == 1 and "60 of 100 GiB of main memory" in short.remark([training])
    downloads = [stage for stage in stages if stage.stage == "download"]
    assert Capacity(3, cores=1).at_once(downloads) == 3 and not Capacity(3, EIGHT, cores=1).remark(downloads)
    # Of several kinds those that take most count.
    assert Capacity(1, EIGHT, cores=8.0).at_once(matrix(1, 1)) == 8


def test_the_cores_of_a_process_are_those_it_is_bound_to_and_its_control_groups_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    monkeypatch.setattr(machine, "OWN_GROUP", own)
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.usable_cores() == 64.0
    own.write_text("12:cpu:/elsewhere\n0::/user.slice/job\n")
    job = tmp_path / "user.slice" / "job"
    job.mkdir(parents=True)
    for group, told, expected in (
        (job, "max 100000", 64),
        (job.parent, "4800000 100000", 48),
        (job, "250000 100000", 2.5),
    ):
        (group / "cpu.max").write_text(f"{told}\n")
        assert machine.usable_cores() == expected
    # A container sees its own group as the root, and the path that its host gives it leads nowhere.
    own.write_text("0::/../../docker/abc\n")
    (tmp_path / "cpu.max").write_text("800000 100000\n")
    assert machine.usable_cores() == 8.0
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.usable_cores() == 6.0
