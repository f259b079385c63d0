"""Submission, with functions instead of Slurm: what is recorded when, and the effect of a limit on jobs."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from essence.commands.options import select
from essence.commands.queue_jobs import planned_jobs, queue_left
from essence.engines import ENGINES, make_engine
from essence.engines.engine import Engine, Exit
from essence.engines.selected_run import Options, Run
from essence.engines.slurm import queue
from essence.engines.slurm.jobs import note_submission
from essence.engines.slurm.queue import JobState
from essence.engines.slurm.queued_stage import QueuedStage
from essence.engines.slurm.refusals import refusal
from essence.engines.slurm.slurm_engine import SlurmEngine
from essence.errors import ExperimentError, SchedulerError
from essence.files import read_json_lines
from support.project import MICRO

LIMIT = (
    "sbatch: AssocMaxSubmitJobLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit "
    "limit, user's size and/or time limits)"
)
LONG = LIMIT.replace("AssocMaxSubmitJobLimit", "QOSMaxWallDurationPerJobLimit")


class StandIn:
    """A queue that accepts this number of jobs."""

    def __init__(self, most: int, words: str = LIMIT) -> None:
        self.most, self.words, self.there = most, words, list[JobState]()

    def queue(self) -> list[JobState]:
        return list(self.there)

    def submit(self, text: str, after: Any = (), _ending: Any = ()) -> str:
        if len(self.there) >= self.most:
            raise SchedulerError(self.words)
        waits = ",".join(f"afterok:{job}(unfulfilled)" for job in after)
        folder = re.findall(r"--chdir=(\S+)", text)[0]
        self.there.append(JobState(str(len(self.there) + 1), "PENDING", folder=folder, dependency=waits))
        return self.there[-1].job

    def cancel(self, jobs: Any) -> None:
        self.there = [state for state in self.there if state.job not in list(jobs)]


def queue_with(slurm: StandIn, runs: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    for name in ("queue", "submit", "cancel"):
        monkeypatch.setattr(queue, name, getattr(slurm, name))
    monkeypatch.setattr(SlurmEngine, "check", lambda _engine, _stages: None)
    words = Options(experiment=str(MICRO), lsp=0.5, runs=str(runs), engine="slurm", only="train")
    console = Console(file=io.StringIO(), width=200)
    selection = select(words, baselines=False)
    code = queue_left(selection, slurm_engine(selection), False, False, console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def slurm_engine(selection: Run) -> SlurmEngine:
    assert isinstance(selection.engine, SlurmEngine)
    return selection.engine


def noted(runs: Path) -> list[str]:
    return sorted(line["job"] for file in runs.glob("stages/*/jobs.jsonl") for line in read_json_lines(file))


def test_a_limit_on_jobs_is_told_each_time_until_all_are_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = StandIn(2)
    for _ in range(2):
        code, said = queue_with(slurm, tmp_path, monkeypatch)
        assert code == 1 and "Slurm takes no more now (sbatch: AssocMaxSubmitJobLimit" in said
        assert noted(tmp_path) == ["1", "2"]
    slurm.most = 100
    code, said = queue_with(slurm, tmp_path, monkeypatch)
    assert code == 0 and "2 were in the queue" in said


def test_a_job_is_written_down_before_the_next_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = StandIn(100)
    seen = []
    take = slurm.submit

    def look(*words: Any) -> str:
        seen.append(len(noted(tmp_path)))
        return take(*words)

    monkeypatch.setattr(slurm, "submit", look)
    assert queue_with(slurm, tmp_path, monkeypatch)[0] == 0
    assert seen == list(range(len(seen))) and len(seen) > 2
    # Killed between the two: what is found in the queue is written down by the next.
    next(iter(tmp_path.glob("stages/*/jobs.jsonl"))).unlink()
    queue_with(slurm, tmp_path, monkeypatch)
    assert len(noted(tmp_path)) == len(seen)


def test_a_refusal_for_good_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = StandIn(2, LONG)
    with pytest.raises(SchedulerError, match="the 2 jobs queued before it were cancelled"):
        queue_with(slurm, tmp_path, monkeypatch)
    assert not slurm.there and not list(tmp_path.glob("stages/*"))


def test_a_limit_on_jobs_is_not_about_the_account(tmp_path: Path) -> None:
    words = Options(experiment=str(MICRO), lsp=0.5, runs=str(tmp_path), engine="slurm")
    selection = select(words, baselines=False)
    engine = slurm_engine(selection)
    said = refusal(engine.site, "generic", planned_jobs(selection, engine)[0], SchedulerError(LIMIT)).cure
    assert "the limit on queued jobs is reached" in said and "set one that you may use" not in said
    assert not queue.takes_no_more(LONG)


def test_a_runner_that_waits_takes_over_the_job_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = StandIn(100)
    assert queue_with(slurm, tmp_path, monkeypatch)[0] == 0
    words = Options(experiment=str(MICRO), lsp=0.5, runs=str(tmp_path), engine="slurm", only="train")
    selection = select(words, baselines=False)
    engine = slurm_engine(selection)
    launch = engine.launches(selection.left(), selection.run_directory)[0]
    before = [state.job for state in slurm.there]
    started = engine.start(launch)
    assert [state.job for state in slurm.there] == before and started.job == before[0]
    assert started.poll() is None
    for state, ended in (("COMPLETED", Exit(0)), ("TIMEOUT", None)):
        slurm.there = [replace(one, state=state) if one.job == started.job else one for one in slurm.there]
        launch.folder.jobs.unlink(missing_ok=True)
        note_submission(launch.folder, started.job, "generic", [], "2026-01-01T00:00:00+00:00")
        again = QueuedStage(started.job, launch).poll()
        assert again is not None and (again == ended if ended else again.code == 1 and "time-out" in str(again.cause))


def test_every_engine_has_the_same_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = []
    for name in ENGINES:
        engine = make_engine(name, "cpu")
        assert isinstance(engine, Engine) and engine.name == name
        assert (engine.queue is not None) == (name == "slurm") and engine.contained == (name != "local")
        identities.append(engine.environment("train"))
    # The same image has the same identity, and so have the stages that run in it.
    local, *images = identities
    assert all(identity == images[0] for identity in images) and local.keys() <= images[0].keys()
    with pytest.raises(ExperimentError, match="only --engine slurm has sites, not --engine docker"):
        make_engine("docker", "cpu", "generic")
