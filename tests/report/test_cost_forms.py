"""Costs of trainings that ran in other forms: shown, not divided, and the page and the claim's record say why."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from essence.report.build import write_report
from essence.report.claims.claim_record import claim_record
from essence.report.claims.verdict import judge
from essence.report.page.findings import not_compared
from essence.report.page.overview import overview_rows
from essence.report.page.printed_report import print_results
from essence.report.page.table import cell_rows
from essence.report.results.cost_forms import ASPECTS, MEASURED, TrainingForm, form_of, unlike
from essence.report.results.read import read_results
from essence.report.results.records import COST_UNITS
from support.synthetic_run import REAL, SyntheticRun

LSPS = (0.25, 0.5, 1.0)
SENTENCE = (
    "No ratio to LSP 1.0 is given for time, memory and FLOPs at LSP 0.5, as trainings ran unlike: "
    "activations kept, at LSP 1.0 recomputed."
)
ROOM = {"asked": "auto", "kept_bytes": 2, "recomputed_bytes": 1, "usable_bytes": 1, "because": "they fit"}
PASSES = {"packed": True, "most_rows": None, "passes": 9, "tokens": 9, "positions": 9, "fill": 1.0}


def ran(run: SyntheticRun, lsp: float, recomputed: bool, seed: int | None = None, tokens: int = 8192) -> None:
    """Give the trainings of an arm, or one of them, a form."""
    for place, cell in enumerate(run.plan["cells"]):
        if cell["lsp"] == lsp and seed in (None, cell["seed"]):
            told = run.group_of(place, "settings")
            told["executed"] = {
                "activations": {**ROOM, "recomputed": recomputed, "micro_batch_tokens": tokens},
                "micro_batches": {**PASSES, "most_tokens": tokens},
            }
            run.damage(run.stage_of(place, "train"), settings=told)


def in_forms(root: Path) -> SyntheticRun:
    """Whole rows do not fit, and at LSP 0.25 recomputation was asked for."""
    run = SyntheticRun(root, lsps=LSPS, texts=False, **REAL).write()
    for lsp, recomputed in zip(LSPS, (True, False, True), strict=True):
        ran(run, lsp, recomputed)
    return run


def note_of(run: SyntheticRun, claim: str) -> tuple[str, str]:
    """What the record of a claim says of its pairs, and what it needs."""
    judged = judge([read_results(run.root, run.experiment)])
    (record,) = (claim_record(one) for one in judged if one.claim.id == claim)
    return record.note, record.advice


def test_a_cost_of_another_form_has_no_ratio(tmp_path: Path) -> None:
    results = read_results(tmp_path, in_forms(tmp_path).experiment)
    (group,) = results.groups
    quarter, half, whole = group.arms
    assert half.ratio == {"tokens": 0.5} and half.unlike.keys() == {"time", "memory", "flops"}
    assert half.cost.keys() == quarter.ratio.keys() == whole.ratio.keys() == {"time", "memory", "flops", "tokens"}
    assert not_compared(group) == [SENTENCE]
    assert [(row.time, row.load) for row in overview_rows(results)] == [("–", "trainings ran unlike")]
    rows = {row.label: row.ratio.keys() for row in cell_rows(group, group.evaluations[0])}
    assert rows["0.50 · seed 1"] == {"tokens"} and rows["0.25 · seed 2"] == quarter.ratio.keys()


def test_page_table_figure_and_claims_say_what_was_left_out(tmp_path: Path) -> None:
    run = in_forms(tmp_path)
    page = write_report(run.root, run.experiment)
    with (tmp_path / "printed.txt").open("w") as file:
        print_results(run.root, run.experiment, Console(file=file, width=400))
    texts = [page.read_text(), (page.parent / "report.md").read_text(), (tmp_path / "printed.txt").read_text()]
    for text in texts:
        assert SENTENCE in text and "Training at LSP 0.5 costs" not in text
        assert "2 of 2 pairs left out, as they ran unlike: activations kept, at LSP 1.0 recomputed" in text
    assert all("Not shown, as trainings ran unlike: LSP 0.50." in text for text in texts[:2])
    record = json.loads((page.parent / "report.json").read_text())
    assert SENTENCE in record["groups"][0]["evaluations"][0]["findings"]
    (flops,) = (claim for claim in record["claims"] if claim["id"] == "flops-half")
    assert flops["word"] == "not run" and flops["advice"].endswith("activations kept, at LSP 1.0 recomputed")


def test_an_arm_of_two_forms_has_no_ratio_and_its_claims_count_the_pairs_of_one(tmp_path: Path) -> None:
    run = in_forms(tmp_path)
    ran(run, 0.5, True, seed=1)
    half = read_results(tmp_path, run.experiment).groups[0].arms[1]
    assert half.unlike["flops"] == "activations recomputed or kept, at LSP 1.0 recomputed"
    for claim in ("time-half", "flops-half"):
        assert note_of(run, claim)[0].endswith(
            "1 of 2 pairs left out, as they ran unlike: activations kept, at LSP 1.0 recomputed"
        )


def test_passes_of_another_length_change_what_is_measured_and_not_what_is_counted(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), texts=False, **REAL).write()
    ran(run, 0.5, False)
    ran(run, 1.0, False, tokens=4624)
    half = read_results(tmp_path, run.experiment).groups[0].arms[0]
    assert half.ratio.keys() == {"flops", "tokens"}
    why = "passes of at most 8,192 tokens, at LSP 1.0 of at most 4,624 tokens"
    assert half.unlike == {"time": why, "memory": why}
    assert note_of(run, "time-half")[1].endswith(why) and "left out" not in "".join(note_of(run, "flops-half"))
    ran(run, 0.5, False, tokens=4624)
    assert read_results(tmp_path, run.experiment).groups[0].arms[0].unlike == {}


def test_other_devices_are_told_by_their_names(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), texts=False, **REAL).write()
    hardware = {**run.group_of(0, "hardware"), "gpus": [{"name": "A"}, {"name": "A"}]}
    cost = {**run.group_of(0, "cost"), "peak_gpu_memory_gib": 38.5, "energy_j": 9.0}
    run.damage(run.stage_of(0, "train"), hardware=hardware, cost=cost)
    half = read_results(tmp_path, run.experiment).groups[0].arms[0]
    assert half.ratio.keys() == {"flops", "tokens"}
    assert half.unlike["memory"] == (
        "devices 2 × A, at LSP 1.0 A processor of eight cores, 2 threads; memory of a GPU, at LSP 1.0 of the process"
    )
    assert not_compared(read_results(tmp_path, run.experiment).groups[0]) == [
        f"No ratio to LSP 1.0 is given for time and memory at LSP 0.5, as trainings ran unlike: {half.unlike['time']}."
    ]


def test_what_a_training_fell_back_to_is_part_of_its_form(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5,), seeds=(1,), texts=False).write()
    told = run.group_of(0, "settings")
    told["resolved"] |= {"parallel": "zero2", "processes": 4}
    told["executed"] = {
        "preflight": {"objective": {"form": "chunked", "compiled": True}, "layers": {"student": True}},
        "parallel": {"nodes": 2, "teacher": "sharded", "optimizer": "main_memory"},
        "micro_batches": {**PASSES, "most_rows": 4, "most_tokens": 2048},
    }
    run.damage(run.stage_of(0, "train"), settings=told)
    training = read_results(tmp_path, run.experiment).cells[0].train.training
    assert training
    form = form_of(training)
    assert form == TrainingForm(
        pass_tokens=2048,
        pass_rows=4,
        loss="chunked",
        compiled=("loss", "student"),
        ranks="zero2, 4 processes, 2 machines, teacher sharded, optimizer in main memory",
        devices="A processor of eight cores, 2 threads",
    )
    assert form.aspects["passes"] == "of at most 4 rows and 2,048 tokens"
    assert form.aspects["activations"] == "not recorded"


@pytest.mark.parametrize("cost", COST_UNITS)
def test_every_cost_has_its_rule(cost: str) -> None:
    """One of them without a rule would end the report in an error; no aspect is misspelt."""
    assert set(ASPECTS[cost]) <= TrainingForm().aspects.keys() == set(MEASURED)
    assert unlike(cost, [TrainingForm()], [TrainingForm()]) == unlike(cost, [], [TrainingForm(recomputed=True)]) == ""
