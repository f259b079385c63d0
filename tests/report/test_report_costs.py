"""The computed cost claim in the report: from the configs that a run has downloaded, and absent where none is known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from essence.plan.cost_table import COLUMNS, PROPORTIONS, cost_table
from essence.record.record_files import seal_of
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import TrainManifest
from essence.report.build import write_report
from essence.report.page.cost_claim import claim_tables
from essence.report.page.predicted_times import _work
from essence.report.recheck import report_findings
from essence.report.results.read import read_results
from support.paper_sizes import QWEN3
from support.proof_record import proof
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


ACTIVATIONS = {"asked": "auto", "micro_batch_tokens": 9, "kept_bytes": 2, "recomputed_bytes": 1, "usable_bytes": 1}


@pytest.mark.parametrize(
    ("checkpointing", "recomputed", "gathers"),
    [(True, None, 3), (False, None, 2), (None, None, 2), (None, True, 3), (None, False, 2)],
)
def test_weights_in_shards_are_gathered_once_more_where_they_are_recomputed(
    tmp_path: Path, checkpointing: bool | None, recomputed: bool | None, gathers: int
) -> None:
    """ZeRO-3 on two devices: what crosses above the gradients, in halves of the student's weights. A setting of earlier
    records; now a choice."""
    run = SyntheticRun(tmp_path, texts=False).write()
    record = json.loads(next(run.root.glob("stages/train-*/manifest.json")).read_text())
    record["settings"]["resolved"]["activation_checkpointing"] = checkpointing
    record["settings"]["executed"] = {
        "parallel": {"backend": "zero3", "processes": 2, "teacher": "replicated"}, "dtype": "float32",
        "parameters": {"trained": 100, "all": 100}, "micro_batches": {
            "packed": False, "most_rows": 1, "most_tokens": 9, "passes": 2 * record["results"]["steps"], "tokens": 9,
            "positions": 9, "fill": 1.0,
        },
    }  # fmt: skip
    if recomputed is not None:
        chosen = {**ACTIVATIONS, "recomputed": recomputed, "because": "they fit"}
        record["settings"]["executed"]["activations"] = chosen
    work = _work(TrainManifest.model_validate(record), QWEN3["0.6b"], None, 1.0)
    assert work and work.link_bytes == 4 * 100 + gathers * 4 * QWEN3["0.6b"].parameters / 2


def test_trainings_stand_beside_what_their_machine_s_proof_predicts(tmp_path: Path) -> None:
    """A step that FLOPs alone make: those of the record over its steps, at the speed of the proof."""
    run = SyntheticRun(tmp_path, texts=False).write()
    assert (
        json.loads((write_report(run.root, run.experiment).parent / "report.json").read_text())["predicted_steps"] == []
    )
    executed = {
        "parallel": {"backend": "single", "processes": 1, "teacher": "replicated"}, "dtype": "float32",
        "parameters": {"trained": 100, "all": 100}, "micro_batches": {
            "packed": False, "most_rows": 1, "most_tokens": 9, "passes": 120, "tokens": 9, "positions": 9, "fill": 1.0,
        },
    }  # fmt: skip
    for file in run.root.glob("stages/train-*/manifest.json"):
        record = json.loads(file.read_text())
        steps = record["results"]["steps"]
        record["settings"]["executed"] = executed
        record["cost"]["more"] = {"training_s": 4.0 * steps, "training_flops": 1e12 * steps}
        file.write_text(json.dumps({**record, "seal": seal_of(record)}))
    proof(run.root, "prove_training-00000000000000a1", "2026-07-01T00:00:00+00:00", "laptop", 2e-12)
    (generated, *_) = sorted(run.root.glob("stages/generate-*/manifest.json"))
    record = json.loads(generated.read_text())
    counts = {"decoder_start_s": 61.5, "decode_tokens_per_s": 4321.0, "key_value_tokens": 98765, "preemptions": 3}
    record["cost"]["more"] = {"prompt_tokens": 7, **counts}
    generated.write_text(json.dumps({**record, "seal": seal_of(record)}))
    page = write_report(run.root, run.experiment)
    (decoded,) = json.loads((page.parent / "report.json").read_text())["decoding"]
    assert [decoded[name] for name in ("start_s", "tokens_per_s", "key_value_tokens", "preemptions")] == [
        *counts.values()
    ]
    for text in (page.read_text(), (page.parent / "report.md").read_text()):
        assert "How completions were decoded" in text and "4,321" in text and "98,765" in text
    told = json.loads((page.parent / "report.json").read_text())["predicted_steps"]
    assert told and all((row["measured_s"], row["predicted_s"]) == (4.0, 2.0) for row in told)
    for text in (page.read_text(), (page.parent / "report.md").read_text()):
        assert "Steps, measured and predicted" in text and "2026-07-01, A device" in text
    assert report_findings(RunDirectory(run.root), run.experiment) == ([], [])
    proof(run.root, "prove_training-00000000000000a2", "2026-07-02T00:00:00+00:00", "laptop", 4e-12)
    assert report_findings(RunDirectory(run.root), run.experiment) == ([], [])
    shutil.rmtree(RunDirectory(run.root).proofs.root)  # as in an archive, which has none
    assert report_findings(RunDirectory(run.root), run.experiment) == ([], [])
    other = json.loads((page.parent / "report.json").read_text())
    other["title"] = "Another"
    (page.parent / "report.json").write_text(json.dumps({**other, "seal": seal_of(other)}), encoding="utf-8")
    (finding,) = report_findings(RunDirectory(run.root), run.experiment)[0]
    assert "title not what the records give" in finding
