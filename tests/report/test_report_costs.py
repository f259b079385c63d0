"""The computed cost claim in the report: from the configs that a run has downloaded, and absent where none is known."""

import json
from dataclasses import replace

import pytest

from essence.plan.cost_table import COLUMNS, PROPORTIONS, cost_table
from essence.report.build import write_report
from essence.report.page.cost_claim import claim_tables
from essence.report.results.read import read_results
from support.paper_sizes import QWEN3
from support.synthetic_run import SyntheticRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    return SyntheticRun(tmp_path_factory.mktemp("costs"), texts=False).write()


def test_page_markdown_and_record_show_the_table(run: SyntheticRun) -> None:
    page = write_report(run.root, run.experiment)
    expected = cost_table("bespoke", QWEN3["4b"], QWEN3["8b"], 200, 4).finding
    for text in (page.read_text(), (page.parent / "report.md").read_text()):
        assert "a row of 200 tokens on 4 GPUs" in text and expected in text
    (told,) = json.loads((page.parent / "report.json").read_text())["computed_costs"]
    assert [row["lsp"] for row in told["rows"]] == list(PROPORTIONS)
    assert told["finding"].startswith("At LSP 0.5, ") and told["finding"] == expected


def test_a_table_for_each_pair_whose_sizes_are_known(run: SyntheticRun) -> None:
    results = read_results(run.root, run.experiment)
    (table,) = claim_tables(results)
    assert len(table.lines) == len(PROPORTIONS) and {len(line) for line in table.lines} == {len(COLUMNS)}
    assert table.lines[-1][2] == "1.000" and table.lines[-1][-1] == "1.00"
    nowhere = tuple(stage for stage in results.stages if stage.stage != "download")
    assert claim_tables(replace(results, stages=nowhere)) == []


def test_a_teacher_that_is_stored_is_looked_up_behind_its_stage(run: SyntheticRun) -> None:
    results = read_results(run.root, run.experiment)
    train = results.cells[0].train
    stored = replace(train, id="teacher-1", inputs={"teacher": train.inputs["teacher"]}, manifest={})
    taught = replace(train, inputs={**train.inputs, "teacher": stored.id})
    cell = results.cells[0].model_copy(update={"train": taught})
    groups = (replace(results.groups[0], arms=(replace(results.groups[0].arms[0], cells=(cell,)),)),)
    changed = replace(results, stages=(*results.stages, stored), groups=groups)
    assert len(claim_tables(changed)) == 1
