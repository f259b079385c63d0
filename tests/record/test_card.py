"""The model card: from records alone, the same bytes each time, safe against names that look like markup."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from essence.commands.card import write_cards
from essence.commands.report import write as write_report
from essence.errors import ExperimentError, RecordError
from essence.record.model_card import cell, front_matter, model_card
from essence.record.plan_record import plan_of
from essence.record.run_directory import RunDirectory
from support.synthetic_run import SyntheticRun


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    made = SyntheticRun(tmp_path / "runs", lsps=(0.5, 1.0), seeds=(1,)).write()
    entry = made.plan["cells"][0]
    for role, repository in (("student", "Owner/Student"), ("teacher", "Owner/Teacher")):
        source = {"kind": "model", "name": role, "repository": repository, "commit": "ab" * 20}
        made.damage(entry["stages"][role], settings={"resolved": {"source": source}, "executed": {}})
    made.plan["stages"][entry["stages"]["tokenize"]]["inputs"] = {"rows": made._download("rows")}
    source = {"kind": "dataset", "name": "sums", "repository": "Owner/Rows", "commit": "cd" * 20}
    rows = made.plan["stages"][entry["stages"]["tokenize"]]["inputs"]["rows"]
    made.damage(rows, settings={"resolved": {"source": source}, "executed": {}})
    weights = {"path": "best/model.safetensors", "bytes": 3, "sha256": "ef" * 32}
    made.damage(made.stage_of(0, "train"), outputs=[weights])
    made.write_plan()
    return made


def _text(run: SyntheticRun, cell_number: int = 0) -> str:
    directory = RunDirectory(run.root)
    plan = plan_of(directory, run.experiment)
    return model_card(directory, plan, plan.cells[cell_number]).text()


def test_the_card_says_what_the_records_say(run: SyntheticRun) -> None:
    text = _text(run)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "Owner/Student"
    assert front["datasets"] == ["Owner/Rows"]
    assert front["library_name"] == "transformers"
    assert "license" not in front
    grade = json.loads((run.root / "stages" / run.stage_of(0, "grade") / "manifest.json").read_text())["results"]
    assert f"| {grade['accuracy']:.1%} | {grade['interval'][0]:.1%} to {grade['interval'][1]:.1%} (95%" in text
    assert f"Owner/Teacher at {'ab' * 20}" in text
    assert f"Owner/Rows at {'cd' * 20}" in text
    assert f"| best/model.safetensors | `{'ef' * 32}` |" in text
    assert f"`{run.stage_of(0, 'train')}`" in text
    assert text == _text(run)
    assert text != _text(run, 1)


def test_what_is_not_finished_is_said(run: SyntheticRun) -> None:
    run.leave(run.stage_of(0, "grade"))
    text = _text(run)
    assert "No evaluation of this model is finished." in text
    assert "Not finished when this was written: sums-test (best)." in text


def test_one_problem_has_no_interval_and_the_method_says_so(run: SyntheticRun) -> None:
    stage = run.stage_of(0, "grade")
    results = json.loads((run.root / "stages" / stage / "manifest.json").read_text())["results"]
    none = {"standard_error": None, "interval": [None, None], "method": "no interval: one problem only"}
    run.damage(stage, results=results | none | {"per_problem": results["per_problem"][:1]})
    assert f"{results['accuracy']:.1%} | no interval: one problem only |" in _text(run)


def test_the_hub_reads_the_results_from_it(run: SyntheticRun) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(_text(run)).data
    (result,) = data.eval_results
    grade = json.loads((run.root / "stages" / run.stage_of(0, "grade") / "manifest.json").read_text())["results"]
    assert (result.dataset_name, result.metric_type) == ("sums-test", "accuracy")
    assert result.metric_value == pytest.approx(100 * grade["accuracy"], abs=1e-3)
    assert data.base_model == "Owner/Student" and "distilled from" in data.model_name


def test_cards_come_with_the_report_and_none_from_an_edited_record(run: SyntheticRun) -> None:
    file = run.root / "stages" / run.stage_of(0, "train") / "manifest.json"
    record = json.loads(file.read_text())
    record["results"]["last_loss"] = 0.0
    file.write_text(json.dumps(record))
    write_report(RunDirectory(run.root), "tiny", Console())
    (written,) = (run.root / "tiny" / "cards").glob("*/README.md")
    assert written.read_text() == _text(run, 1)
    with pytest.raises(RecordError, match=r"edited after it was written.*no card is made from it"):
        _text(run)


def test_names_cannot_break_out() -> None:
    odd = 'x"\n---\nlicense: mit: | \u2028'
    assert yaml.safe_load(front_matter({"base_model": odd, "tags": [odd]})) == {"base_model": odd, "tags": [odd]}
    assert cell("a | b\n<script>&") == "a \\| b &lt;script>&amp;"


def test_the_command_writes_chosen_cells_and_names_what_lacks(
    run: SyntheticRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, console = RunDirectory(run.root), Console(width=400)
    assert write_cards(directory, "tiny", "lsp-0.50", str(tmp_path / "cards"), console) == 0
    (file,) = (tmp_path / "cards").glob("*/README.md")
    assert file.read_text() == _text(run)
    assert str(file) in capsys.readouterr().out
    run.leave(run.stage_of(0, "train"))
    assert write_cards(directory, "tiny", "lsp-0.50", None, console) == 1
    assert "1 of 1 trainings are not finished" in capsys.readouterr().out
    with pytest.raises(ExperimentError, match="no cell of tiny has it in its name"):
        write_cards(directory, "tiny", "lsp-0.9", None, console)
