"""The claims file, the measures and the word: on made-up runs whose answer is known."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from essence.errors import ExperimentError
from essence.evaluation.statistics import Estimate
from essence.plan.experiment import EXPERIMENTS
from essence.record.trace_record import CountedMean, TraceRecord
from essence.report.claims.advice import advise
from essence.report.claims.definition import load_claims, load_questions
from essence.report.claims.evidence import Evidence, Scored, Setting, Trained
from essence.report.claims.gather import gather
from essence.report.claims.measurement import Measured, Replicates
from essence.report.claims.measures import MEASURES
from essence.report.claims.verdict import ClaimVerdict, _judge, allow_for_number, decide, judge
from essence.report.page.claims_table import claim_rows
from essence.report.results.cost_forms import TrainingForm
from essence.report.results.read import read_results
from support.project import invoke
from support.synthetic_run import REAL, SyntheticRun

CLAIMS = {claim.id: claim for claim in load_claims()}
BAND = (0.86, 0.96)


def scored(lsp: float, accuracy: float, benchmark: str = "aime25", problems: int = 30, **changes: object) -> Scored:
    """An arm of two trainings whose problems are solved with chances spread around an accuracy."""
    setting = Setting("bespoke", "qwen3-8b", str(changes.pop("student", "qwen3-4b-base")), "released", benchmark)
    ease = [np.clip(accuracy + apart + 0.1 * np.sin(np.arange(problems) * 7.0), 0.0, 1.0) for apart in (-0.004, 0.004)]
    shares = tuple({f"p{i}": float(round(1024 * e) / 1024) for i, e in enumerate(one)} for one in ease)
    fields = {"checkpoint": "best", "span": "left", "sections": "p+cot+a", "samples": 64}
    fields |= {"trainings": tuple(f"{lsp}-{changes}-{seed}" for seed in (1, 2))}
    stages = (f"grade-{lsp}-{benchmark}-{sorted(changes.items())}",)
    return Scored(setting=setting, lsp=lsp, shares=shares, stages=stages, **{**fields, **changes})  # type: ignore[arg-type]


def measure(name: str, *arms: Scored, trained: tuple[Trained, ...] = ()) -> Measured | str:
    claim = CLAIMS[name]
    return MEASURES[claim.measure](claim, Evidence(arms, trained))


def verdict_of(name: str, evidence: Evidence) -> ClaimVerdict:
    return _judge(CLAIMS[name], "released", evidence, 0)


def value(outcome: Measured | str) -> float:
    assert isinstance(outcome, Measured) and outcome.estimate.value is not None
    return outcome.estimate.value


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.87, 0.95, "reproduced"),
        (0.86, 0.96, "reproduced"),
        (0.80, 0.85, "not reproduced"),
        (0.97, 0.99, "not reproduced"),
        (0.80, 0.90, "undecided"),
        (0.90, 0.97, "undecided"),
        (0.10, 1.90, "undecided"),
        (None, None, "undecided"),
        (None, 0.5, "not reproduced"),
        (0.9, None, "undecided"),
    ],
)
def test_the_word_follows_from_interval_and_band(low: float | None, high: float | None, word: str) -> None:
    assert decide(Measured(Estimate(0.9, 0.1, low, high, 30, ""), 1, ()), BAND) == word


def test_without_a_value_nothing_is_decided() -> None:
    assert decide(Measured(Estimate(None, None, None, None, 30, "nothing solved"), 1, ()), BAND) == "undecided"


def test_retention_is_the_ratio_of_means_over_settings() -> None:
    arms = (scored(0.5, 0.4), scored(1.0, 0.5), scored(0.5, 0.3, "aime24"), scored(1.0, 0.6, "aime24"))
    outcome = measure("retention-half", *arms)
    means = [np.mean([list(s.values()) for s in arm.shares]) for arm in arms]
    assert value(outcome) == pytest.approx((means[0] + means[2]) / (means[1] + means[3]))
    assert isinstance(outcome, Measured) and outcome.settings == 2 and outcome.estimate.n == 60
    assert outcome.trainings == 2


def test_a_setting_whose_reference_solves_nothing_has_no_ratio() -> None:
    arms = (scored(0.5, 0.4), scored(1.0, 0.5), scored(0.5, 0.3, student="s"), scored(1.0, -1.0, student="s"))
    shown = MEASURES["retention"](CLAIMS["retention-half"].anywhere, Evidence(arms, ()))
    assert isinstance(shown, Measured) and shown.settings == 1
    elsewhere = CLAIMS["retention-half"].anywhere
    assert MEASURES["retention"](elsewhere, Evidence(arms[2:], ())) == "there is no ratio: nothing is solved at LSP 1.0"
    assert measure("retention-half", *arms[::2]) == "needs LSP 0.5 and 1.0 on the same benchmark"


def test_equal_arms_keep_everything() -> None:
    assert value(measure("retention-half", scored(0.5, 0.5), scored(1.0, 0.5))) == 1.0


def test_supervision_with_the_chain_of_thought_is_compared_at_its_worst() -> None:
    names = {"a": 0.1, "p+a": 0.2, "cot": 0.5, "cot+a": 0.6, "p+cot": 0.55, "p+cot+a": 0.6}
    arms = [scored(1.0, accuracy, sections=name) for name, accuracy in names.items()]
    assert value(measure("sections", *arms)) == pytest.approx(0.3, abs=0.02)
    for some in (arms[2:], arms[1:], arms[1:3]):
        assert str(measure("sections", *some)).startswith(
            "needs the four supervisions with the chain of thought and both"
        )


def test_supervisions_with_the_chain_of_thought_are_compared_with_each_other() -> None:
    names = {"cot": 0.5, "cot+a": 0.53, "p+cot": 0.51, "p+cot+a": 0.52}
    arms = [scored(1.0, accuracy, sections=name) for name, accuracy in names.items()]
    assert value(measure("sections-inside", *arms)) == pytest.approx(0.03, abs=0.01)
    assert "needs the four supervisions" in str(measure("sections-inside", *arms[1:]))


def test_losses_of_the_halves() -> None:
    def half(span: str, ce: float, lsp: float = 0.5) -> tuple[Trained, ...]:
        return tuple(replace(trained(lsp, seed, time=1.0), span=span, validation_ce=ce + seed / 100) for seed in (1, 2))

    cells = (*half("left", 1.0, lsp=1.0), *half("left", 1.02), *half("right", 1.5))
    outcome = measure("halves-loss", trained=cells)
    assert value(outcome) == pytest.approx(0.08, abs=0.01)
    assert isinstance(outcome, Measured) and decide(outcome, CLAIMS["halves-loss"].band) == "reproduced"
    assert "left 1.02, right 1.49" in outcome.note
    cells = (*half("left", 1.0, lsp=1.0), *half("left", 1.02), *half("right", 1.03))
    assert value(measure("halves-loss", trained=cells)) < 0.0
    assert "needs left and right spans" in str(measure("halves-loss", trained=cells[:4]))


def test_left_is_compared_with_right_of_the_same_setting() -> None:
    arms = [scored(0.5, 0.5), scored(0.5, 0.3, span="right"), scored(0.5, 0.4, span="middle"), scored(1.0, 0.6)]
    outcome = measure("halves", *arms)
    assert value(outcome) == pytest.approx(0.2, abs=0.02)
    assert isinstance(outcome, Measured) and outcome.note == "left ahead in 1 of 1"


def test_all_settings_are_every_benchmark_and_not_their_mean() -> None:
    ahead = [scored(0.5, 0.5), scored(0.5, 0.3, span="right")]
    behind = [scored(0.5, 0.4, "aime24"), scored(0.5, 0.45, "aime24", span="right")]
    outcome = measure("halves", *ahead, *behind)
    assert isinstance(outcome, Measured) and outcome.note == "left ahead in 1 of 2" and outcome.settings == 2
    assert value(outcome) == pytest.approx(-0.05, abs=0.01)
    assert decide(outcome, CLAIMS["halves"].band) != "reproduced"


def test_an_equal_number_of_tokens_is_compared_across_numbers_of_rows() -> None:
    def rows(lsp: float, accuracy: float, recipe: str, tokens: float) -> Scored:
        arm = scored(lsp, accuracy)
        setting = arm.setting._replace(recipe=recipe)
        return replace(arm, setting=setting, stages=(recipe,), matched="same", tokens=tokens)

    arms = [rows(0.5, 0.55, "8000", 1e7), rows(1.0, 0.6, "8000", 2e7), rows(1.0, 0.5, "4000", 1.01e7)]
    question = next(one for one in load_questions() if one.id == "token-matched")
    outcome = MEASURES["token-matched"](question, Evidence(tuple(arms), ()))
    assert value(outcome) == pytest.approx(0.05, abs=0.01)
    assert isinstance(outcome, Measured) and set(outcome.stages) == {"8000", "4000"}
    assert outcome.note == "10,000,000 and 10,100,000 tokens"
    unmatched = MEASURES["token-matched"](question, Evidence(tuple(arms[:2]), ()))
    assert "on as many tokens of fewer rows" in str(unmatched)
    other = replace(arms[2], matched="another learning rate")
    assert isinstance(MEASURES["token-matched"](question, Evidence((*arms[:2], other), ())), str)


def counted(dataset: str, same: float, rows: int = 100) -> TraceRecord:
    def mean(value: float) -> CountedMean:
        return CountedMean(value=value, standard_error=0.01, rows=rows)

    return TraceRecord(
        dataset=dataset, tokenize_stage="tokenize-1", manifest_sha256="ab", rows_kept=9000, rows_counted=rows,
        rows_without_trace=0, rows_without_answer=0, rows_with_answer_in_question=0, rows_with_answer_nowhere=0,
        first_answer_place=mean(0.4), cues_before_answer=mean(2.5), same_answer=mean(same), cues_by_tenth=[0.1] * 10,
        grader="math-verify", grader_version="0.5.2",
    )  # fmt: skip


def test_a_proxy_is_shown_with_its_rows_and_never_judged() -> None:
    evidence = Evidence((), (), traces=(counted("bespoke", 0.9), counted("bespoke", 0.8, 1000), counted("skyt1", 0.7)))
    judged = verdict_of("same-answer", evidence)
    assert judged.word == "shown, not judged" and judged.advice.startswith("a proxy")
    assert judged.measured and judged.measured.estimate.value == 0.8
    assert judged.measured.counted == "1,000 rows of 1 data set"
    assert allow_for_number([judged]) == [judged]
    everywhere = verdict_of("first-derivation", evidence).measured
    assert everywhere and everywhere.settings == 2 and everywhere.note == "bespoke 40.0 %, skyt1 40.0 %"
    assert "invoke traces" in verdict_of("same-answer", Evidence((), ())).advice
    row = claim_rows([judged, verdict_of("cues-before-derivation", evidence)])
    assert [one.accepted for one in row] == ["–", "–"] and row[1].ours.startswith("2.5 [")


def test_small_students_are_measured_by_their_largest_change() -> None:
    small = {"student": "qwen3-0.6b-base"}
    curve = [scored(lsp, accuracy, **small) for lsp, accuracy in ((0.1, 0.30), (0.3, 0.31), (0.5, 0.33), (0.7, 0.32))]
    arms = [*curve, scored(1.0, 0.32, **small), scored(0.1, 0.9)]
    assert "at least 4 below it" in str(measure("small-students", *arms[1:], scored(1.0, 0.2)))
    assert value(measure("small-students", *arms, scored(1.0, 0.2))) == pytest.approx(0.02, abs=0.01)


def test_the_shape_is_a_rise_and_a_plateau() -> None:
    rising = [scored(0.1, 0.1), scored(0.5, 0.4), scored(0.8, 0.6), scored(1.0, 0.6)]
    flat = [scored(0.1, 0.6), scored(0.8, 0.6), scored(1.0, 0.6)]
    steep = [scored(0.1, 0.1), scored(0.8, 0.3), scored(1.0, 0.6)]
    rises = [value(measure("shape-rise", *arms)) for arms in (rising, flat, steep)]
    plateaus = [value(measure("shape-plateau", *arms)) for arms in (rising, flat, steep)]
    assert rises == pytest.approx([0.83, 0.0, 0.83], abs=0.02)
    assert plateaus == pytest.approx([1.0, 1.0, 0.5], abs=0.01)
    assert "needs LSP 1.0 and two below it" in str(measure("shape-rise", scored(0.5, 0.5), scored(1.0, 0.6)))


def test_a_reference_that_solves_nothing_leaves_its_setting_out_of_the_shape() -> None:
    rising = [scored(0.1, 0.1), scored(0.8, 0.6), scored(1.0, 0.6)]
    nothing = [scored(p, a, student="other") for p, a in ((0.1, 0.1), (0.8, 0.2), (1.0, -1.0))]
    outcome = measure("shape-plateau", *rising, *nothing)
    assert isinstance(outcome, Measured) and outcome.settings == 1
    assert value(outcome) == value(measure("shape-plateau", *rising))
    assert measure("shape-plateau", *nothing) == "there is no ratio: nothing is solved at LSP 1.0"


def trained(lsp: float, seed: int, on_gpu: bool = False, **cost: float) -> Trained:
    setting = Setting("bespoke", "qwen3-8b", "qwen3-4b-base", "released", "")
    form = TrainingForm(on_gpu=on_gpu)
    return Trained(setting, "left", "p+cot+a", lsp, seed, cost, (f"train-{lsp}-{seed}",), form)


def test_costs_are_ratios_of_the_same_seed_and_counted_ones_have_no_error() -> None:
    cells = (
        trained(0.5, 1, time=10.0, flops=4.9), trained(1.0, 1, time=20.0, flops=10.0),
        trained(0.5, 2, time=30.0, flops=4.9), trained(1.0, 2, time=50.0, flops=10.0), trained(0.5, 3, time=1.0),
    )  # fmt: skip
    time, flops = measure("time-half", trained=cells), measure("flops-half", trained=cells)
    assert value(time) == pytest.approx(0.55) and value(flops) == pytest.approx(0.49)
    assert isinstance(flops, Measured) and decide(flops, CLAIMS["flops-half"].band) == "reproduced"
    one = measure("time-half", trained=cells[:2])
    assert isinstance(one, Measured) and decide(one, CLAIMS["time-half"].band) == "undecided"


def in_form(lsp: float, seed: int, form: TrainingForm) -> Trained:
    return replace(trained(lsp, seed, flops=10 * lsp, time=lsp, memory=lsp), form=form)


COSTS = ("time-half", "memory-half", "flops-half")
KEPT = TrainingForm(recomputed=False, pass_tokens=8192, on_gpu=True, loss="plain")
RECOMPUTED, SHORTER = replace(KEPT, recomputed=True), replace(KEPT, pass_tokens=4624)


@pytest.mark.parametrize(
    ("full", "why", "not_compared"),
    [
        (RECOMPUTED, "activations kept, at LSP 1.0 recomputed", COSTS),
        (SHORTER, "passes of at most 8,192 tokens, at LSP 1.0 of at most 4,624 tokens", COSTS[:2]),
        (replace(KEPT, devices="2 × A"), "devices not recorded, at LSP 1.0 2 × A", COSTS[:2]),
        (replace(KEPT, ranks="zero2"), "ranks not recorded, at LSP 1.0 zero2", COSTS[:2]),
        (replace(KEPT, compiled=("loss", "student")), "compiled nothing, at LSP 1.0 loss and student", COSTS[:2]),
        (replace(KEPT, loss="chunked"), "loss plain, at LSP 1.0 chunked", COSTS[:2]),
        (replace(KEPT, pass_rows=4), "at LSP 1.0 of at most 4 rows and 8,192 tokens", COSTS[:2]),
    ],
)
def test_costs_of_unlike_trainings_are_not_compared_and_the_row_says_why(
    full: TrainingForm, why: str, not_compared: tuple[str, ...]
) -> None:
    """What is counted may be divided on whatever devices; recomputation is counted, too."""
    for name in COSTS:
        unlike = (in_form(0.5, 1, KEPT), in_form(1.0, 1, full))
        alone = measure(name, trained=unlike)
        some = measure(name, trained=(*unlike, in_form(0.5, 2, KEPT), in_form(1.0, 2, KEPT)))
        assert isinstance(some, Measured) and value(some) == 0.5
        if name in not_compared:
            assert str(alone).startswith("needs trainings at LSP 0.5 and 1.0") and str(alone).endswith(why)
            assert some.note.endswith(why) and "1 of 2 pairs left out, as they ran unlike: " in some.note
            assert some.estimate.n == 1 and {"train-0.5-1", "train-1.0-1"}.isdisjoint(some.stages)
        else:
            assert isinstance(alone, Measured) and some.estimate.n == 2 and "left out" not in some.note


def test_a_training_is_paired_with_the_one_of_its_form() -> None:
    """As where a run was repeated on another machine: seeds alone would pair it with either."""
    again = replace(in_form(1.0, 1, RECOMPUTED), cost={"time": 9.0, "flops": 99.0, "memory": 9.0})
    for name in COSTS:
        found = measure(name, trained=(in_form(1.0, 1, KEPT), again, in_form(0.5, 1, KEPT)))
        assert value(found) == 0.5 and isinstance(found, Measured) and "left out" not in found.note


def test_memory_of_a_gpu_is_not_divided_by_that_of_a_process() -> None:
    cells = (trained(0.5, 1, memory=1.0), trained(1.0, 1, True, memory=10.0), trained(0.5, 2, True, memory=4.0))
    left = measure("memory-half", trained=cells)
    assert str(left).endswith("1 of 1 pairs left out, as they ran unlike: memory of the process, at LSP 1.0 of a GPU")
    outcome = measure("memory-half", trained=(*cells, trained(1.0, 2, True, memory=8.0)))
    assert value(outcome) == 0.5 and isinstance(outcome, Measured) and outcome.incomparable == ""


def test_the_memory_example_wants_a_gpu() -> None:
    cells = [trained(lsp, s, True, memory=m) for lsp, m in ((0.5, 30.0), (1.0, 60.0)) for s in (1, 2)]
    assert value(measure("memory-example", trained=tuple(cells))) == pytest.approx(1 - 30 / (40e9 / 2**30))
    on_cpu = tuple(trained(lsp, 1, memory=1.0) for lsp in (0.5, 1.0))
    assert measure("memory-example", trained=on_cpu) == (
        "needs trainings at LSP 0.5 and 1.0 on a GPU, of qwen3-8b, qwen3-4b-base"
    )


def judged(run: SyntheticRun, name: str) -> ClaimVerdict:
    return next(one for one in judge([read_results(run.root, run.experiment)]) if one.claim.id == name)


def test_a_run_that_keeps_91_percent_is_reproduced_and_one_that_does_not_is_not(tmp_path: Path) -> None:
    words = {}
    for half in (0.20, 0.72):
        accuracy = {0.25: 0.1, 0.5: half, 0.75: 0.7, 1.0: 0.72}
        run = SyntheticRun(tmp_path / str(half), accuracy=accuracy, **REAL).write()
        words[half] = judged(run, "retention-half")
    assert words[0.20].word == "not reproduced" and words[0.20].advice == ""
    assert words[0.72].word in ("undecided", "not reproduced")


def test_one_training_of_each_arm_decides_nothing_and_says_so(tmp_path: Path) -> None:
    one = judged(SyntheticRun(tmp_path, seeds=(1,), **REAL).write(), "retention-half")
    assert one.word == "undecided" and one.advice.startswith("one training of each arm")
    assert one.measured and "these trainings" in one.measured.estimate.method
    assert "seeds" not in one.measured.estimate.method and one.measured.estimate.low is not None


def test_the_word_is_computed_from_the_manifest(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, **REAL).write()
    before = judged(run, "flops-half").word
    for cell in (i for i, c in enumerate(run.plan["cells"]) if c["lsp"] == 0.5):
        train = run.stage_of(cell, "train")
        cost = json.loads((tmp_path / "stages" / train / "manifest.json").read_text())["cost"]
        run.damage(train, cost={**cost, "flops": cost["flops"] * 1.8})
    assert (before, judged(run, "flops-half").word) == ("reproduced", "not reproduced")


@pytest.mark.parametrize("stage", ["train", "grade"])
def test_a_record_edited_by_hand_counts_for_nothing_and_is_named(tmp_path: Path, stage: str) -> None:
    """One number in one manifest: no word may come from it, and nothing may happen in silence."""
    run = SyntheticRun(tmp_path, seeds=(1,), **REAL).write()
    cell = next(i for i, c in enumerate(run.plan["cells"]) if c["lsp"] == 0.5)
    edited = run.stage_of(cell, stage)
    path = tmp_path / "stages" / edited / "manifest.json"
    record = json.loads(path.read_text())
    record["cost"]["flops"] = 1.0
    path.write_text(json.dumps(record))
    done = invoke("claims", "--runs", str(tmp_path), "--json")
    found = json.loads(done.stdout)
    rows = {row["id"]: row for row in found["claims"]}
    touched = rows["flops-half"] if stage == "train" else rows["retention-half"]
    assert touched["word"] == "not run" and "1 records are there but are not counted" in touched["advice"]
    assert edited not in {name for row in found["claims"] for name in row["stages"]}
    assert list(found["not_counted"]) == [edited] and "edited after it was written" in found["not_counted"][edited]
    shown = invoke("report", "--experiment", run.experiment, "--runs", str(tmp_path))
    assert shown.returncode == 0 and "edited after it was written" in shown.stdout
    page = (tmp_path / run.experiment / "report" / "report.html").read_text()
    assert edited in page and "records cannot be believed" in page


def test_what_nothing_is_known_about_is_not_advised() -> None:
    def advised(estimate: Estimate, replicates: Replicates | None = None, **more: object) -> tuple[str, dict[str, int]]:
        found = advise(Measured(estimate, 1, (), replicates=replicates, **more), BAND)  # type: ignore[arg-type]
        return found.sentence, found.wanted

    wide = Estimate(0.91, 0.05, 0.80, 1.02, 30, "")
    sentence, wanted = advised(wide, Replicates(0.05 * 3**0.5, 3, 4, "seeds of each arm"), trainings=3)
    assert wanted["seeds"] > 3 and f"{wanted['seeds']} seeds of each arm instead of 3" in sentence
    assert "cannot be said from one training" in advised(wide, trainings=1)[0]
    counted = Estimate(0.5, 0.0, 0.4, 0.6, 3, "counted: range over runs")
    assert "more runs do not narrow" in advised(counted)[0]
    assert "second seed" in advised(Estimate(0.5, None, None, None, 1, "no interval: one pair of runs"))[0]
    edge = advised(Estimate(0.86, 0.01, 0.80, 0.92, 30, ""), Replicates(0.02, 4, 3, "pairs of runs"))
    assert sum(edge[1].values()) > 4 or "too near the edge" in edge[0]


def test_fine_tuning_without_a_teacher_and_other_recipes_are_not_mixed_in(tmp_path: Path) -> None:
    first = SyntheticRun(tmp_path, experiment="one", seeds=(1,), **REAL).write()
    other = SyntheticRun(tmp_path, experiment="two", seeds=(9,), **{**REAL, "dataset": "skyt1"}).write()
    for kd_weight, settings in ((0.0, 1), (0.25, 2)):
        for cell in range(len(other.plan["cells"])):
            train = other.stage_of(cell, "train")
            told = json.loads((tmp_path / "stages" / train / "manifest.json").read_text())["settings"]
            told["resolved"]["objective"]["kd_weight"] = kd_weight
            other.damage(train, settings=told)
        outcome = judge([read_results(tmp_path, run.experiment) for run in (first, other)])
        measured = next(one.measured for one in outcome if one.claim.id == "retention-half")
        assert measured is not None and measured.settings == settings


def test_fine_tuning_alone_leaves_every_claim_without_a_run(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), **REAL).write()
    for cell in (0, 1):
        _taught(run, cell, objective={"kd_weight": 0.0})
    found = judge([read_results(tmp_path, run.experiment)])
    assert len(found) == len(CLAIMS) and {one.word for one in found} == {"not run"}


def test_two_experiments_are_judged_together_and_shared_stages_count_once(tmp_path: Path) -> None:
    first = SyntheticRun(tmp_path, experiment="one").write()
    second = SyntheticRun(tmp_path, experiment="two").write()
    results = [read_results(tmp_path, run.experiment) for run in (first, second)]
    assert gather(results) == gather(results[:1])


def test_the_same_arm_in_two_experiments_has_each_seed_once(tmp_path: Path) -> None:
    runs = [SyntheticRun(tmp_path, experiment=name, seeds=s).write() for name, s in (("a", (1,)), ("b", (1, 2, 3)))]
    both, all_seeds = (gather([read_results(tmp_path, one.experiment) for one in some]) for some in (runs, runs[1:]))
    assert both.scored == all_seeds.scored and len(both.trained) == len(all_seeds.trained)
    assert {len(arm.shares) for arm in both.scored} == {3}


def retention_of(*runs: SyntheticRun) -> float:
    evidence = gather(read_results(run.root, run.experiment) for run in runs)
    return value(MEASURES["retention"](CLAIMS["retention-half"].anywhere, evidence))


def test_a_quick_look_at_one_arm_does_not_stand_in_for_its_evaluation(tmp_path: Path) -> None:
    """The same trainings sampled in another way, in an experiment whose name comes first."""
    whole = SyntheticRun(tmp_path, experiment="bespoke", lsps=(0.5, 1.0)).write()
    quick = SyntheticRun(tmp_path, experiment="a", lsps=(0.5,), accuracy={0.5: 0.1}, temperature=0.0).write()
    assert {quick.stage_of(0, "train")} < set(whole.plan["stages"])
    assert retention_of(quick, whole) == retention_of(whole)


def test_a_training_in_two_experiments_counts_where_its_partner_is(tmp_path: Path) -> None:
    """Its number of rows is an axis in one of them and a default in the other."""
    whole = SyntheticRun(tmp_path, experiment="openthoughts", lsps=(0.5, 1.0)).write()
    halves = SyntheticRun(tmp_path, experiment="budget", lsps=(0.5,)).write()
    for entry in halves.plan["cells"]:
        entry["train_rows"] = 2000
    halves.write_plan()
    assert retention_of(halves, whole) == retention_of(whole)


def test_a_chain_of_thought_without_its_answer_is_no_whole_row(tmp_path: Path) -> None:
    whole = SyntheticRun(tmp_path, experiment="a", lsps=(0.5, 1.0)).write()
    lead = SyntheticRun(tmp_path, experiment="b", lsps=(1.0,), spans=("cot-lead",), accuracy={1.0: 0.3}).write()
    assert retention_of(whole, lead) == retention_of(whole)
    evidence = gather(read_results(tmp_path, name) for name in ("a", "b"))
    cost = MEASURES["cost-ratio"](CLAIMS["flops-half"].anywhere, evidence)
    assert isinstance(cost, Measured) and cost.stages == tuple(whole.stage_of(cell, "train") for cell in (0, 2, 1, 3))


def test_times_on_other_devices_are_not_compared_and_flops_are(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), **REAL).write()
    for cell in (0, 1):
        _taught(run, cell, processes=4)
    evidence = gather([read_results(tmp_path, run.experiment)])
    time, flops = (MEASURES["cost-ratio"](CLAIMS[name], evidence) for name in ("time-half", "flops-half"))
    assert isinstance(time, str)
    assert time.endswith("2 of 2 pairs left out, as they ran unlike: ranks 4 processes, at LSP 1.0 not recorded")
    assert isinstance(flops, Measured)


def _taught(run: SyntheticRun, cell: int, **teacher: object) -> None:
    train = run.stage_of(cell, "train")
    told = json.loads((run.root / "stages" / train / "manifest.json").read_text())["settings"]
    told["resolved"] |= teacher
    run.damage(train, settings=told)


def test_arms_taught_in_another_form_are_not_paired_and_an_approximate_one_does_not_count(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), **REAL).write()
    compared = []
    for half, full in (("cached", "cached"), ("live", "cached"), ("top-k", "top-k")):
        for cell, form in enumerate((half, full)):
            _taught(run, cell, teacher=form)
        evidence = gather([read_results(tmp_path, run.experiment)])
        compared.append(not isinstance(MEASURES["retention"](CLAIMS["retention-half"], evidence), str))
    assert compared == [True, False, False]


def test_every_claim_has_a_row_in_report_and_command(tmp_path: Path) -> None:
    SyntheticRun(tmp_path).write()
    done = invoke("claims", "--runs", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["claims"]
    assert [row["id"] for row in rows] == list(CLAIMS)
    assert {row["word"] for row in rows} <= {"shown, not judged", "not run"}
    assert all(row["stages"] for row in rows if row["word"] != "not run")
    assert all(row["advice"] for row in rows if row["word"] == "not run")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[claims.x]\nmeasur = 'none'\n", "unknown key 'measur'; did you mean 'measure'?"),
        ("[claims.x]\nmeasure = 'none'\n", "needs why_not"),
        ("[claims.x]\nmeasure = 'retention'\nreported = 0.9\ntolerance = 0.1\n", 'measure = "retention" needs lsp'),
        ("[claims.x]\nmeasure = 'none'\nwhy_not = 'x'\ncheckpoint = 'bset'\n", "[claims.x]: checkpoint = 'bset'"),
        (
            "[claims.x]\nmeasure = 'retention'\nlsp = 0.5\n",
            "[claims.x]: needs either reported and tolerance, or accepts",
        ),
        ("[claims.x]\nmeasure = 'retention'\nlsp = 0.5\naccepts = [1.0, 0.0]\n", "accepts nothing"),
    ],
)
def test_a_wrong_claims_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    common = "title = 't'\ngrade = 'A'\nsource = 's'\nunit = 'share'\n"
    defaults = "[defaults]\ncheckpoint = 'best'\nspan = 'left'\nsections = 'p+cot+a'\n"
    file = tmp_path / "claims.toml"
    file.write_text(defaults + text + common)
    with pytest.raises(ExperimentError) as raised:
        load_claims(file)
    assert sentence in str(raised.value) and str(file) in str(raised.value)


def test_the_settings_of_claims_and_questions_are_ones_that_the_kit_knows() -> None:
    """A misspelt name would be about nothing: whatever is run would be shown and not judged."""
    pins = tomllib.loads((EXPERIMENTS / "pins.toml").read_text())
    benchmarks = {file.stem for file in (EXPERIMENTS / "benchmarks").glob("*.toml")}
    for claim in (*CLAIMS.values(), *load_questions()):
        pairs = [name for pair in claim.pairs for name in pair.split("_")]
        assert {*claim.teachers, *claim.students, *pairs} <= set(pins["models"]), claim.id
        assert set(claim.datasets) <= set(pins["datasets"]) and set(claim.benchmarks) <= benchmarks, claim.id


def test_what_is_reported_lies_in_its_own_band() -> None:
    for claim in CLAIMS.values():
        if claim.is_judged and claim.reported is not None:
            assert claim.band[0] < claim.reported < claim.band[1]
        assert not claim.is_judged or not math.isnan(claim.band[0])
