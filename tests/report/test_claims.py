"""The claims file, the measures and the word: on made-up runs whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from essence.evaluation.statistics import Estimate
from essence.record.trace_record import CountedMean, TraceRecord
from essence.report.claims.definition import load_claims, load_questions
from essence.report.claims.evidence import Evidence, Scored, Setting, Trained
from essence.report.claims.measures import MEASURES
from essence.report.claims.outcome import Measured
from essence.report.claims.verdict import ClaimVerdict, _judge, allow_for_number, decide
from essence.report.page.claims_table import claim_rows
from essence.report.results.cost_forms import TrainingForm

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
