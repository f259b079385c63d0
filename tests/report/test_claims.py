"""The claims file, the measures and the word: on made-up runs whose answer is known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from essence.errors import ExperimentError
from essence.evaluation.statistics import Estimate
from essence.report.claims.advice import VarianceParts, advise, wanted_shrink
from essence.report.claims.definition import Claim, load_claims
from essence.report.claims.evidence import Evidence, Scored, Setting, Trained
from essence.report.claims.gather import gather
from essence.report.claims.measured import Measured
from essence.report.claims.measures import MEASURES, WITH_COT
from essence.report.claims.verdict import ClaimVerdict, decide, judge
from essence.report.results.read import read_results
from support.project import invoke
from support.synthetic_run import SyntheticRun

CLAIMS = {claim.id: claim for claim in load_claims()}
BAND = (0.86, 0.96)


def scored(lsp: float, accuracy: float, benchmark: str = "aime25", problems: int = 30, **changes: object) -> Scored:
    """An arm whose problems are solved with chances spread around an accuracy."""
    setting = Setting("bespoke", "qwen3-8b", str(changes.pop("student", "qwen3-4b-base")), "released", benchmark)
    ease = np.clip(accuracy + 0.1 * np.sin(np.arange(problems) * 7.0), 0.0, 1.0)
    shares = tuple({f"p{i}": float(round(64 * e) / 64) for i, e in enumerate(ease)} for _ in range(2))
    fields = {"checkpoint": "best", "span": "left", "sections": "p+cot+a", "samples": 64, "confidence": 0.95}
    stages = (f"grade-{lsp}-{benchmark}-{sorted(changes.items())}",)
    return Scored(setting=setting, lsp=lsp, shares=shares, stages=stages, **{**fields, **changes})  # type: ignore[arg-type]


def measure(name: str, *arms: Scored, trained: tuple[Trained, ...] = ()) -> Measured | str:
    claim = CLAIMS[name]
    return MEASURES[claim.measure](claim, Evidence(arms, trained))


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


def test_retention_is_the_mean_over_settings_of_ratios() -> None:
    arms = (scored(0.5, 0.4), scored(1.0, 0.5), scored(0.5, 0.3, "aime24"), scored(1.0, 0.6, "aime24"))
    outcome = measure("retention-half", *arms)
    means = [np.mean([list(s.values()) for s in arm.shares]) for arm in arms]
    assert value(outcome) == pytest.approx((means[0] / means[1] + means[2] / means[3]) / 2)
    assert isinstance(outcome, Measured) and outcome.settings == 2 and outcome.estimate.n == 60


def test_a_setting_whose_reference_solves_nothing_has_no_ratio() -> None:
    arms = (scored(0.5, 0.4), scored(1.0, 0.5), scored(0.5, 0.3, "aime24"), scored(1.0, -1.0, "aime24"))
    outcome = measure("retention-half", *arms)
    assert isinstance(outcome, Measured) and outcome.settings == 1
    assert measure("retention-half", *arms[2:]) == "there is no ratio: nothing is solved at LSP 1.0"
    assert measure("retention-half", *arms[::2]) == "needs LSP 0.5 and 1.0 on the same benchmark"


def test_pairing_makes_equal_arms_equal_in_every_resample() -> None:
    outcome = measure("retention-half", scored(0.5, 0.5), scored(1.0, 0.5))
    assert isinstance(outcome, Measured)
    assert (outcome.estimate.low, outcome.estimate.value, outcome.estimate.high) == (1.0, 1.0, 1.0)


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


def test_small_students_are_measured_by_their_largest_change() -> None:
    small = {"student": "qwen3-0.6b-base"}
    arms = [scored(0.1, 0.30, **small), scored(0.5, 0.33, **small), scored(1.0, 0.32, **small), scored(0.1, 0.9)]
    assert value(measure("small-students", *arms, scored(1.0, 0.2))) == pytest.approx(0.02, abs=0.01)


def test_the_shape_needs_a_rise_and_a_plateau() -> None:
    rising = [scored(0.1, 0.1), scored(0.5, 0.4), scored(0.8, 0.6), scored(1.0, 0.6)]
    flat = [scored(0.1, 0.6), scored(0.8, 0.6), scored(1.0, 0.6)]
    steep = [scored(0.1, 0.1), scored(0.8, 0.3), scored(1.0, 0.6)]
    assert value(measure("shape", *rising)) == pytest.approx(0.05, abs=0.01)
    assert value(measure("shape", *flat)) == pytest.approx(0.0, abs=0.01)
    assert value(measure("shape", *steep)) < 0.0


def test_a_reference_that_solves_nothing_leaves_its_setting_out_of_the_shape() -> None:
    rising = [scored(0.1, 0.1), scored(0.8, 0.6), scored(1.0, 0.6)]
    nothing = [scored(lsp, accuracy, "aime24") for lsp, accuracy in ((0.1, 0.1), (0.8, 0.2), (1.0, -1.0))]
    outcome = measure("shape", *rising, *nothing)
    assert isinstance(outcome, Measured) and outcome.settings == 1
    assert value(outcome) == value(measure("shape", *rising))
    assert measure("shape", *nothing) == "there is no ratio: nothing is solved at LSP 1.0"


def trained(lsp: float, seed: int, on_gpu: bool = False, **cost: float) -> Trained:
    setting = Setting("bespoke", "qwen3-8b", "qwen3-4b-base", "released", "")
    return Trained(setting, "left", "p+cot+a", lsp, seed, cost, on_gpu, (f"train-{lsp}-{seed}",))


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


def test_memory_of_a_gpu_is_not_divided_by_that_of_a_process() -> None:
    cells = (trained(0.5, 1, memory=1.0), trained(1.0, 1, True, memory=10.0), trained(0.5, 2, True, memory=4.0))
    assert "on the same devices" in str(measure("memory-half", trained=cells))
    outcome = measure("memory-half", trained=(*cells, trained(1.0, 2, True, memory=8.0)))
    assert value(outcome) == 0.5 and isinstance(outcome, Measured) and outcome.note == ""


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
        run = SyntheticRun(tmp_path / str(half), accuracy=accuracy).write()
        words[half] = judged(run, "retention-half")
    assert words[0.20].word == "not reproduced" and words[0.20].advice == ""
    assert words[0.72].word in ("undecided", "not reproduced")


def test_undecided_says_what_would_decide(tmp_path: Path) -> None:
    one = judged(SyntheticRun(tmp_path, seeds=(1,)).write(), "retention-half")
    assert one.word == "undecided" and "would decide" in one.advice


def test_the_word_is_computed_from_the_manifest(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path).write()
    before = judged(run, "flops-half").word
    for cell in (i for i, c in enumerate(run.plan["cells"]) if c["lsp"] == 0.5):
        train = run.stage_of(cell, "train")
        cost = json.loads((tmp_path / "stages" / train / "manifest.json").read_text())["cost"]
        run.damage(train, cost={**cost, "flops": cost["flops"] * 1.8})
    assert (before, judged(run, "flops-half").word) == ("reproduced", "not reproduced")


@pytest.mark.parametrize("stage", ["train", "grade"])
def test_a_record_edited_by_hand_counts_for_nothing_and_is_named(tmp_path: Path, stage: str) -> None:
    """One number in one manifest: no word may come from it, and nothing may happen in silence."""
    run = SyntheticRun(tmp_path, seeds=(1,)).write()
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


def drawn(seed: int, seeds: int, samples: int) -> list[Scored]:
    """Arms at 0.5 and 1.0 of a made-up truth: 30 problems, seeds that differ by 3 points."""
    rng = np.random.default_rng(seed)
    ease, arms = rng.normal(0.0, 0.2, 30), []
    for lsp, accuracy in ((0.5, 0.5), (1.0, 0.55)):
        chances = [np.clip(accuracy + ease + rng.normal(0.0, 0.03), 0.01, 0.99) for _ in range(seeds)]
        shares = [{f"p{i}": float(k) / samples for i, k in enumerate(rng.binomial(samples, c))} for c in chances]
        arms.append(replace(scored(lsp, 0.5), shares=tuple(shares), samples=samples))
    return arms


def test_the_foretold_error_is_the_one_that_more_samples_and_seeds_give() -> None:
    now = [measure("retention-half", *drawn(s, 2, 8)) for s in range(8)]
    spreads = [one.spread for one in now if isinstance(one, Measured)]
    for samples, seeds in ((4, 1), (1, 3)):
        found = [measure("retention-half", *drawn(100 + s, 2 * seeds, 8 * samples)) for s in range(8)]
        errors = [one.estimate.standard_error for one in found if isinstance(one, Measured)]
        foretold = np.mean([spread.variance(samples, seeds) for spread in spreads if spread]) ** 0.5
        assert foretold == pytest.approx(np.mean(np.square(np.array(errors, dtype=float))) ** 0.5, rel=0.3)


def test_what_would_decide_decides() -> None:
    """The wanted number is the smallest whose foretold interval has no edge inside."""
    outcome = measure("retention-half", *drawn(3, 2, 8))
    assert isinstance(outcome, Measured) and outcome.spread
    assert outcome.estimate.value and outcome.estimate.low and outcome.estimate.high
    shrink = wanted_shrink(outcome.estimate.value, outcome.estimate.low, outcome.estimate.high, (0.5, 0.8))
    advice = advise(outcome.estimate, (0.5, 0.8), outcome.spread)
    seeds = advice.wanted["seeds"]
    assert shrink < 1.0 and f"about {seeds} seeds instead of 2" in advice.sentence
    goal = shrink * outcome.spread.variance()
    assert outcome.spread.variance(seeds=seeds / 2) <= goal < outcome.spread.variance(seeds=(seeds - 1) / 2)


def test_advice_for_a_value_at_the_end_of_its_interval_goes_by_the_middle() -> None:
    """The largest of many numbers, driven outwards by chance, does not stay where it is with more samples."""
    spread = VarianceParts(samples=4, seeds=1, problems=60, total=4e-4, over_problems=4e-4, sampling=4e-4)
    beyond = Estimate(0.08, 0.02, 0.0, 0.08, 60, "basic")
    middle = Estimate(0.04, 0.02, 0.0, 0.08, 60, "basic")
    assert advise(beyond, (0.0, 0.05), spread) == advise(middle, (0.0, 0.05), spread)


def test_what_nothing_is_known_about_is_not_advised() -> None:
    estimate = Estimate(0.80, 0.05, 0.70, 0.90, 30, "")
    one_seed = advise(estimate, BAND, VarianceParts(64, 1, 30, 0.0025, 0.0025, 0.0024))
    assert "seeds" not in one_seed.sentence and one_seed.wanted.keys() == {"samples"}
    one_sample = advise(estimate, BAND, VarianceParts(1, 1, 30, 0.0025, 0.0025, 0.0))
    assert one_sample.wanted.keys() == {"problems"} and one_sample.wanted["problems"] > 30
    runs = advise(Estimate(0.5, 0.02, 0.25, 0.75, 2, ""), (0.45, 0.55), None)
    assert runs.wanted == {"runs": 4} and "4 pairs of runs instead of 2" in runs.sentence
    counted = advise(Estimate(0.5, 0.0, 0.4, 0.6, 3, "counted: range over runs"), (0.45, 0.55), None)
    assert counted.wanted == {} and "more runs do not narrow" in counted.sentence
    one = {method: advise(Estimate(0.5, None, None, None, 1, f"no interval: {method}"), BAND, None).sentence
           for method in ("one pair of runs", "one problem only")}  # fmt: skip
    assert [("second seed" in sentence) for sentence in one.values()] == [True, False]
    assert "any number of runs" in advise(Estimate(0.86, 0.1, 0.5, 1.2, 30, ""), BAND, None).sentence


def test_fine_tuning_without_a_teacher_and_other_recipes_are_not_mixed_in(tmp_path: Path) -> None:
    first = SyntheticRun(tmp_path, experiment="one", seeds=(1,)).write()
    other = SyntheticRun(tmp_path, experiment="two", seeds=(9,), dataset="more").write()
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
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,)).write()
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
    return value(MEASURES["retention"](CLAIMS["retention-half"], evidence))


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
    cost = MEASURES["cost-ratio"](CLAIMS["flops-half"], evidence)
    assert isinstance(cost, Measured) and cost.stages == tuple(whole.stage_of(cell, "train") for cell in (0, 2, 1, 3))


def test_times_on_other_devices_are_not_compared_and_flops_are(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0)).write()
    for cell in (0, 1):
        _taught(run, cell, processes=4)
    evidence = gather([read_results(tmp_path, run.experiment)])
    time, flops = (MEASURES["cost-ratio"](CLAIMS[name], evidence) for name in ("time-half", "flops-half"))
    assert time == "needs trainings at LSP 0.5 and 1.0 on the same devices and as many processes"
    assert isinstance(flops, Measured)


def unchanging(name: str, repetition: int, samples: int) -> Measured:
    """All arms have the same chances of solving each problem, which were drawn once."""
    random, arms = np.random.default_rng(repetition), []
    for benchmark in ("aime24", "aime25"):
        chances = random.beta(0.5, 1.5, 30)
        for step in range(1, 11) if name == "small-students" else WITH_COT:
            shares = {f"p{i}": float(random.binomial(samples, chance) / samples) for i, chance in enumerate(chances)}
            changes = {"lsp": step / 10} if isinstance(step, int) else {"lsp": 1.0, "sections": step}
            arm = scored(1.0, 0.5, benchmark, student="qwen3-1.7b", samples=samples)
            arms.append(replace(arm, shares=(shares,), stages=(f"grade-{step}-{benchmark}",), **changes))  # type: ignore[arg-type]
    outcome = measure(name, *arms)
    assert isinstance(outcome, Measured)
    return outcome


@pytest.mark.parametrize(("name", "samples"), [("small-students", 4), ("sections-inside", 1), ("sections-inside", 4)])
def test_the_largest_of_many_differences_is_not_taken_for_one(name: str, samples: int) -> None:
    """Where nothing changes, "not reproduced" is rarely said; percentile intervals say it nearly always (39 of 40)."""
    found = [unchanging(name, repetition, samples) for repetition in range(20)]
    assert sum(decide(one, CLAIMS[name].band) == "not reproduced" for one in found) <= 2
    assert sum(one.estimate.low == 0.0 for one in found) >= 13
    assert all("basic bootstrap" in one.estimate.method for one in found)


def _taught(run: SyntheticRun, cell: int, **teacher: object) -> None:
    train = run.stage_of(cell, "train")
    told = json.loads((run.root / "stages" / train / "manifest.json").read_text())["settings"]
    told["resolved"] |= teacher
    run.damage(train, settings=told)


def test_arms_taught_in_another_form_are_not_paired_and_an_approximate_one_does_not_count(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,)).write()
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
    assert {row["word"] for row in rows} <= {"reproduced", "not reproduced", "undecided", "not run"}
    assert all(row["stages"] for row in rows if row["word"] != "not run")
    assert all(row["advice"] for row in rows if row["word"] in ("not run", "undecided"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[claims.x]\nmeasur = 'none'\n", "unknown key 'measur'; did you mean 'measure'?"),
        ("[claims.x]\nmeasure = 'none'\n", "needs why_not"),
        ("[claims.x]\nmeasure = 'retention'\nreported = 0.9\ntolerance = 0.1\n", 'measure = "retention" needs lsp'),
        ("[claims.x]\nmeasure = 'retention'\nlsp = 0.5\n", "needs either reported and tolerance, or accepts"),
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


def test_what_is_reported_lies_in_its_own_band() -> None:
    for claim in CLAIMS.values():
        if isinstance(claim, Claim) and claim.reported is not None:
            assert claim.band[0] < claim.reported < claim.band[1]
        assert claim.measure == "none" or not math.isnan(claim.band[0])
