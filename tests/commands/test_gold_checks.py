"""Golds that no grader can read stop a run before it starts: said by run and doctor alike.

The queueing of jobs is tried on a real Slurm, in tests/engines/test_slurm_jobs.py.
"""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("math_verify", reason="math-verify is not installed")

from essence.commands.doctor import doctor
from essence.commands.options import select
from essence.commands.run import run
from essence.engines.selected_run import Options, Run
from essence.errors import InputError
from essence.settings import GradeSettings
from support.unreadable_gold import SAID, write_experiment


@pytest.fixture
def words(tmp_path: Path) -> Options:
    return Options(experiment=str(write_experiment(tmp_path)), runs=str(tmp_path / "runs"), lsp=0.5)


def sentence(selection: Run) -> str:
    (grader,) = {stage.settings.grader for stage in selection.wanted if isinstance(stage.settings, GradeSettings)}
    return SAID.format(grader)


def test_run_says_it_before_anything_is_written(words: Options, tmp_path: Path) -> None:
    said = sentence(select(words, baselines=False))
    with pytest.raises(InputError) as refused:
        run(words, whole=False, dry_run=False, as_json=False, console=Console(file=io.StringIO()))
    assert refused.value.problem == said
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
