"""Golds that no grader can read stop a run before it starts: said by run, doctor and the queueing of jobs alike."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("math_verify", reason="math-verify is not installed")

from essence.commands.doctor import doctor
from essence.commands.options import select
from essence.commands.queue_jobs import queue_left
from essence.commands.run import run
from essence.engines.selected_run import Options, Run
from essence.engines.slurm.slurm_engine import SlurmEngine
from essence.errors import InputError
from essence.settings import GradeSettings
from support.project import MICRO

OWN = f"""
extends = "{MICRO}"
title = "Answers that are none"
[evaluation]
benchmarks = ["own"]
[decontamination]
benchmarks = []
[benchmarks.own]
path = "own.jsonl"
problem_field = "problem"
answer_field = "answer"
answer_type = "latex"
prompt = "{{problem}}"
"""
SAID = "own, problem 1: the grader {} cannot read the gold answer '?!', wanted: a number or LaTeX"


@pytest.fixture
def words(tmp_path: Path) -> Options:
    (tmp_path / "own.toml").write_text(OWN)
    rows = [{"problem": "1+1?", "answer": "2"}, {"problem": "Why?", "answer": "?!"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Options(experiment=str(tmp_path / "own.toml"), runs=str(tmp_path / "runs"), lsp=0.5)


def sentence(selection: Run) -> str:
    (grader,) = {stage.settings.grader for stage in selection.wanted if isinstance(stage.settings, GradeSettings)}
    return SAID.format(grader)


def test_run_and_queue_say_it_before_anything_is_written(
    words: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlurmEngine, "check", lambda _engine, _stages: None)  # there is no Slurm here
    said = sentence(select(words, baselines=False))
    queued = select(replace(words, engine="slurm"), baselines=False)
    assert isinstance(queued.engine, SlurmEngine)
    with pytest.raises(InputError) as refused_run:
        run(words, whole=False, dry_run=False, as_json=False, console=Console(file=io.StringIO()))
    with monkeypatch.context() as patched, pytest.raises(InputError) as refused_queue:
        patched.setattr("essence.commands.queue_jobs.check_downloads", lambda _selection: None)  # made here, or copied
        queue_left(queued, queued.engine, False, False, Console(file=io.StringIO()))
    assert refused_run.value.problem == refused_queue.value.problem == said
    assert not list(tmp_path.glob("runs/*"))


def test_doctor_has_a_line_for_it(words: Options, capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> tuple[int, list[tuple[str, bool]]]:
        code = doctor(words, False, as_json=True, console=Console(file=io.StringIO()))
        told = json.loads(capsys.readouterr().out)["checks"]
        return code, [(check["found"], check["ok"]) for check in told if check["name"] == "golds of own"]

    said = sentence(select(words, baselines=False))
    assert look() == (2, [(said, False)])
    own = Path(str(words.experiment)).with_name("own.jsonl")
    own.write_text(own.read_text().replace("?!", "1/2"))
    code, found = look()
    assert [ok for _, ok in found] == [True] and code in (0, 2)
