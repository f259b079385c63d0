"""Verdicts on results that are hard to judge: every report ends with a page, and with a word that can be trusted."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from essence.plan.decision_power import Design
from essence.record.machine_load import MachineLoad
from essence.report.claims.definition import Claim, load_claims
from essence.report.claims.evidence import Evidence, Ran, Scored, Setting, Trained
from essence.report.claims.gather import gather
from essence.report.claims.measures import MEASURES, WITH_COT, WITHOUT_COT
from essence.report.claims.outcome import Measured
from essence.report.claims.retention_rows import read_with_retention
from essence.report.claims.simulated_runs import judge_made_up, made_up
from essence.report.claims.verdict import ClaimVerdict, _judge, allow_for_number, judge
from essence.report.page.claims_table import claim_rows, headline
from essence.report.page.findings import findings
from essence.report.results.cost_forms import TrainingForm
from essence.report.results.read import read_results
from support.synthetic_run import REAL, SyntheticRun

CLAIMS = {claim.id: claim for claim in load_claims()}
PLACE = Setting("bespoke", "qwen3-8b", "qwen3-4b-base", "released", "aime25")


def arm(lsp: float, shares: Sequence[Sequence[float]], place: Setting = PLACE, sections: str = "p+cot+a") -> Scored:
    """Shares of correct samples by training and problem."""
    named = tuple({f"p{i}": float(share) for i, share in enumerate(one)} for one in shares)
    trainings = tuple(f"{place.dataset}-{lsp}-{sections}-{number}" for number in range(len(named)))
    return Scored(place, "best", "left", sections, lsp, named, trainings, 64, (f"grade-{lsp}-{place.benchmark}",))


def on_both(lsp: float, shares: Sequence[Sequence[float]]) -> list[Scored]:
    """The same trainings on two benchmarks."""
    return [arm(lsp, shares, PLACE._replace(benchmark=name)) for name in ("aime24", "aime25")]


def verdict(claim: str | Claim, *arms: Scored, trained: Sequence[Trained] = ()) -> ClaimVerdict:
    found = CLAIMS[claim] if isinstance(claim, str) else claim
    return _judge(found, "released", Evidence(arms, tuple(trained)), 0)


EASE = np.linspace(0.1, 0.9, 30)


def test_the_unit_is_the_training_and_not_its_benchmarks() -> None:
    half = on_both(0.5, [0.9 * EASE * (1.0 + e) for e in (-0.1, 0.0, 0.1)])
    found = verdict("retention-half", *half, *on_both(1.0, [EASE] * 3)).measured
    assert found and found.estimate.standard_error == pytest.approx(0.05196, abs=1e-4)
    assert found.replicates and found.replicates.degrees == 2
    assert found.estimate.value == pytest.approx(0.9) and found.trainings == 3 and found.settings == 2


def test_two_trainings_of_each_arm_are_two_and_not_four() -> None:
    half = on_both(0.5, [0.873 * EASE, 0.927 * EASE])
    found = verdict("retention-half", *half, *on_both(1.0, [EASE] * 2))
    assert found.word == "undecided" and found.measured
    ends = (found.measured.estimate.low, found.measured.estimate.high)
    assert ends == pytest.approx((0.557, 1.243), abs=0.001)


def test_one_training_decides_nothing_unless_how_far_two_differ_is_declared() -> None:
    arms = [*on_both(0.5, [0.91 * EASE]), *on_both(1.0, [EASE])]
    found = verdict("retention-half", *arms)
    assert found.word == "undecided" and "one training of each arm" in found.advice
    assert found.measured and "these trainings" in found.measured.estimate.method
    assert "seed" not in found.measured.estimate.method and "seeds" not in found.advice.split(";")[0]
    declared = {"training_sd_points": 0.5, "training_sd_source": "five seeds elsewhere"}
    known = verdict(CLAIMS["retention-half"].model_copy(update=declared), *arms)
    assert known.word == "reproduced" and known.measured and "declared 0.5 points" in known.measured.estimate.method
    unsure = verdict(CLAIMS["retention-half"].model_copy(update={**declared, "training_sd_points": 5.0}), *arms)
    assert unsure.word == "undecided"


def test_a_declared_deviation_stands_in_the_row_with_its_source() -> None:
    declared = {"training_sd_points": 0.5, "training_sd_source": "five seeds elsewhere"}
    claim = CLAIMS["retention-half"].model_copy(update=declared)
    (row,) = claim_rows([verdict(claim, *on_both(0.5, [0.91 * EASE]), *on_both(1.0, [EASE]))])
    assert "0.5 points between two trainings are declared, not measured (five seeds elsewhere)" in row.rests


def test_an_interval_on_other_problems_is_never_the_narrower_one() -> None:
    """Two trainings far apart have few degrees of freedom; with the problems' variance there are more."""
    found = verdict("retention-half", *on_both(0.5, [0.873 * EASE, 0.927 * EASE]), *on_both(1.0, [EASE] * 2)).measured
    assert found and found.other_problems and found.estimate.low is not None and found.other_problems.low is not None
    assert found.other_problems.low <= found.estimate.low


def test_a_row_says_on_how_many_trainings_it_rests() -> None:
    three = [0.9 * EASE * (1.0 + e) for e in (-0.06, 0.0, 0.06)]
    (row,) = claim_rows([verdict("retention-half", *on_both(0.5, three), *on_both(1.0, [EASE, 1.01 * EASE]))])
    assert row.count == "2 of 30 settings, 5 trainings (2 to 3 of an arm), 60 problems × 64 samples"
    assert row.decides.endswith("assurance") and "invoke plan" not in row.decides
    once = claim_rows([verdict("retention-half", *on_both(0.5, three[:1]), *on_both(1.0, [EASE]))])[0]
    assert "2 trainings (1 of each arm)" in once.count and "invoke plan --decide retention-half" in once.decides


def test_the_headline_says_what_is_accepted_and_what_would_decide() -> None:
    open_one = verdict("retention-half", *on_both(0.5, [0.9 * EASE]), *on_both(1.0, [EASE]))
    ((word, sentence),) = headline([open_one])
    assert word == "undecided" and "(accepted: 86.0\u00a0% to 96.0\u00a0%)" in sentence
    assert "2 trainings (1 of each arm)" in sentence and "a second seed of each arm" in sentence
    assert "invoke plan" not in sentence


def test_one_training_of_each_arm_in_several_settings_is_replicated_by_settings() -> None:
    arms = []
    for number, dataset in enumerate(("bespoke", "openthoughts", "synthetic1", "nemotron", "skyt1")):
        place = PLACE._replace(dataset=dataset)
        arms += [arm(0.5, [(0.91 + 0.002 * (number - 2)) * EASE], place), arm(1.0, [EASE], place)]
    found = verdict("retention-half", *arms)
    assert found.measured and "over settings" in found.measured.estimate.method
    assert (found.word, found.where) == ("reproduced", "in 5 of 30 settings")
    error = np.std([0.002 * (number - 2) for number in range(5)], ddof=1) / 5**0.5
    assert found.measured.estimate.standard_error == pytest.approx(error)


def timed(lsp: float, seed: int, wall: float, processor: float, ran: Ran | None = None) -> Trained:
    place = PLACE._replace(benchmark="")
    identifier = (f"train-{lsp}-{seed}",)
    cost, load = {"time": wall}, MachineLoad(wall / processor)
    return Trained(place, "left", "p+cot+a", lsp, seed, cost, identifier, load=load, ran=ran)


def test_a_busy_machine_is_told_and_not_judged() -> None:
    busy = [
        timed(0.5, 1, 36.9, 37.4), timed(0.5, 2, 39.8, 40.3), timed(1.0, 1, 289.5, 67.9), timed(1.0, 2, 298.0, 67.5),
    ]  # fmt: skip
    found = verdict("time-half", trained=busy)
    assert found.word == "not comparable" and "machine was busy" in found.advice
    assert found.measured and "wall/CPU 0.99 at LSP 0.5, wall/CPU 4.34 at 1.0" in found.measured.note
    one_quiet = [*busy[:3], timed(1.0, 2, 80.0, 79.0)]
    kept = verdict("time-half", trained=one_quiet).measured
    assert kept and kept.estimate.n == 1 and "1 of 2 pairs left out" in kept.note


def test_a_busy_machine_is_told_by_what_was_compared_however_busy_its_gpus_were() -> None:
    cells = [timed(0.5, 1, 40.0, 40.0), timed(1.0, 1, 290.0, 68.0)]
    on_gpus = [replace(cell, load=replace(cell.load, gpu_busy=0.93)) for cell in cells]
    found = verdict("time-half", trained=on_gpus)
    assert found.word == "not comparable" and found.measured
    assert found.measured.note == "wall/CPU 1.00 at LSP 0.5, wall/CPU 4.26 at 1.0"
    quiet = [replace(cell, load=MachineLoad(1.0, 0.93)) for cell in cells]
    alike = verdict("time-half", trained=quiet).measured
    assert alike and alike.note == "93\u00a0% GPU at LSP 0.5, 93\u00a0% GPU at 1.0"


@pytest.mark.parametrize(("busy", "compared"), [((1,), True), ((1, 2), False)])
def test_the_page_says_not_compared_where_the_verdict_does(
    tmp_path: Path, busy: tuple[int, ...], compared: bool
) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), texts=False, **REAL).write()
    for cell in range(4):
        train = run.stage_of(cell, "train")
        cost = json.loads((tmp_path / "stages" / train / "manifest.json").read_text())["cost"]
        seed, lsp = run.plan["cells"][cell]["seed"], run.plan["cells"][cell]["lsp"]
        slowed = 0.2 if lsp == 1.0 and seed in busy else 1.0
        more = {**cost["more"], "gpu_busy_share": 0.93}
        run.damage(train, cost={**cost, "cpu_s": cost["wall_s"] * slowed, "more": more})
    results = read_results(tmp_path, run.experiment)
    verdicts = judge([results])
    assert next(one for one in verdicts if one.claim.id == "time-half").measured
    group = results.groups[0]
    said = " ".join(findings(results, group, group.evaluations[0], verdicts))
    full = {1: "3.00", 2: "5.00"}[len(busy)]
    assert f"The machine was busy: wall/CPU 1.00 at LSP 0.5, wall/CPU {full} at 1.0" in said
    assert ("not compared" not in said) == compared


def test_arms_of_equal_tokens_count_for_no_claim() -> None:
    """At one `token_budget` LSP 0.5 has twice the rows: its FLOPs are nearly those of whole rows."""
    place = PLACE._replace(benchmark="")
    cells = [
        Trained(place, "left", "p+cot+a", lsp, seed, {"flops": flops, "time": flops + seed / 100},
                (f"train-{lsp}-{seed}",), budget=True)
        for lsp, flops in ((0.5, 0.98), (1.0, 1.0)) for seed in (1, 2)
    ]  # fmt: skip
    arms = [replace(arm(lsp, [EASE] * 2), budget=True) for lsp in (0.5, 1.0)]
    for claim in ("flops-half", "time-half", "retention-half"):
        found = verdict(claim, *arms, trained=cells)
        assert found.word == "not run" and "token_budget" in found.advice
    rows = [replace(cell, budget=False, cost={"flops": 0.5 * cell.lsp}) for cell in cells]
    assert verdict("flops-half", trained=[*cells, *rows]).word == "reproduced"


def test_a_token_budget_is_read_from_the_plan_of_a_run(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), texts=False, **REAL).write()
    for cell in run.plan["cells"]:
        cell["token_budget"] = 200_000
    run.write_plan()
    evidence = gather([read_results(tmp_path, run.experiment)])
    assert all(one.budget for one in evidence.scored) and all(one.budget for one in evidence.trained)
    assert sorted(one.rows or 0 for one in evidence.scored) == [2000, 2000]
    results = read_with_retention(tmp_path, run.experiment)
    judged, group = judge([results]), results.groups[0]
    words = {one.claim.id: one.word for one in judged}
    said = " ".join(findings(results, group, group.evaluations[0], judged))
    assert "the student keeps" in said and "costs, against LSP 1.0" in said
    assert "paper" not in said and "not run" not in said
    assert {words[name] for name in ("flops-half", "time-half", "retention-half")} == {"not run"}


def test_trainings_that_ran_at_the_same_moment_are_one_replicate() -> None:
    def starts(apart: float, hosts: str = "aaa") -> list[Trained]:
        return [timed(lsp, seed, lsp * (10.0 + seed / 100), 10.0 * lsp,
                      Ran(hosts[seed], 1000 * lsp + apart * seed, 1000 * lsp + apart * seed + 10.0))
                for seed in (1, 2) for lsp in (0.5, 1.0)]  # fmt: skip

    together = verdict("time-half", trained=starts(1.0))
    assert together.word == "undecided" and together.measured and together.measured.estimate.n == 1
    assert "2 pairs in 1 start: what ran at the same moment" in together.measured.note
    for one_by_one in (starts(20.0), starts(1.0, "abc")):
        found = verdict("time-half", trained=one_by_one)
        assert found.word == "reproduced" and found.measured and found.measured.estimate.n == 2


def test_a_time_is_the_median_of_its_steps(tmp_path: Path) -> None:
    """One step in ten that other work held up a hundredfold changes nothing."""
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), **REAL).write()
    before = next(one for one in judge([read_results(tmp_path, run.experiment)]) if one.claim.id == "time-half")
    file = tmp_path / "stages" / run.stage_of(2, "train") / "output" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[::10]:
        line["seconds"] = 100.0
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = next(one for one in judge([read_results(tmp_path, run.experiment)]) if one.claim.id == "time-half")
    assert before.measured and after.measured
    assert after.measured.estimate.value == before.measured.estimate.value
    assert after.measured.estimate.value == pytest.approx(np.mean([(25 + s) / (40 + s) for s in (1, 2)]))


def test_the_steps_of_one_training_are_not_divided_by_the_wall_of_another(tmp_path: Path) -> None:
    """Of one arm no step tells its time, as where the file of its metrics is gone."""
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), texts=False, **REAL).write()
    (short, full), found = (run.stage_of(0, "train"), run.stage_of(2, "train")), []
    for lost in ((), (short,), (short, full)):
        for stage in lost:
            (tmp_path / "stages" / stage / "output" / "metrics.jsonl").unlink(missing_ok=True)
        evidence = gather([read_results(tmp_path, run.experiment)])
        found.append(verdict("time-half", trained=[one for one in evidence.trained if one.seed == 1]))
    ratios = [one.measured.estimate.value for one in found if one.measured]
    assert ratios == pytest.approx([26 / 41, 30 / 45, 30 / 45])


@pytest.mark.parametrize(("on_gpu", "form", "reason"), [(False, "plain", "process"), (True, "chunked", "logits")])
def test_memory_that_is_not_the_papers_is_not_comparable(on_gpu: bool, form: str, reason: str) -> None:
    place = PLACE._replace(benchmark="")
    cells = [
        Trained(place, "left", "p+cot+a", lsp, seed, {"memory": 8.0 + 2 * lsp + seed / 100},
                (f"train-{lsp}-{seed}",), TrainingForm(on_gpu=on_gpu, loss=form))
        for lsp in (0.5, 1.0) for seed in (1, 2)
    ]  # fmt: skip
    found = verdict("memory-half", trained=cells)
    assert found.word == "not comparable" and reason in found.advice
    measured = [replace(cell, form=TrainingForm(on_gpu=True, loss="plain")) for cell in cells]
    assert verdict("memory-half", trained=measured).word == "not reproduced"


def test_the_largest_of_five_is_not_judged_on_one() -> None:
    arms = [arm(0.5, [0.99 * EASE] * 2), arm(1.0, [EASE] * 2)]
    found = verdict("retention-best", *arms)
    assert found.word == "not run" and found.advice.startswith("1 of 5 settings")


def test_what_is_outside_the_papers_settings_is_shown_and_not_judged() -> None:
    place = PLACE._replace(dataset="tiny", benchmark="tiny-sums")
    arms = [arm(0.5, [0.5 * EASE, 0.51 * EASE], place), arm(1.0, [EASE, 0.99 * EASE], place)]
    found = verdict("retention-half", *arms)
    assert found.word == "shown, not judged" and found.where == "" and found.measured


def test_a_student_that_solves_nothing_cannot_show_that_it_changes_little() -> None:
    place = PLACE._replace(student="qwen3-0.6b-base")
    two_percent, nothing = [0.02 + 0.001 * (EASE - 0.5)] * 2, [0.0 * EASE] * 2
    curve = [arm(lsp, nothing, place) for lsp in (0.1, 0.3, 0.5, 0.7)]
    found = verdict("small-students", *curve, arm(1.0, two_percent, place))
    assert found.word == "undecided"
    apart = [two_percent[0], two_percent[0] + 0.002]
    curve = [arm(lsp, [nothing[0], nothing[0] + 0.001], place) for lsp in (0.1, 0.3, 0.5, 0.7)]
    found = verdict("small-students", *curve, arm(1.0, apart, place))
    assert found.word == "undecided" and "floor" in found.advice


def test_every_supervision_with_the_chain_of_thought_has_to_be_ahead() -> None:
    def supervised(worst: float) -> ClaimVerdict:
        accuracy = dict.fromkeys(WITH_COT, 0.5) | dict.fromkeys(WITHOUT_COT, 0.3) | {"cot": worst}
        arms = [arm(1.0, [value + apart + 0.0 * EASE for apart in (-0.01, 0.0, 0.01)], sections=name)
                for name, value in accuracy.items()]  # fmt: skip
        return verdict("sections", *arms)

    assert [supervised(worst).word for worst in (0.5, 0.31, 0.1)] == ["reproduced", "undecided", "not reproduced"]


def test_the_untrained_student_and_the_share_of_the_gain_stand_beside_the_retention() -> None:
    arms = (arm(0.5, [0.8 * EASE]), arm(1.0, [EASE]))
    evidence = Evidence(arms, (), {("qwen3-4b-base", "released", "aime25"): 0.1})
    found = MEASURES["retention"](CLAIMS["retention-half"], evidence)
    assert isinstance(found, Measured)
    assert "untrained student has 20.0" in found.note and "gain kept 75.0" in found.note


def test_of_many_claims_one_fails_by_chance() -> None:
    def failing(p: float, name: str) -> ClaimVerdict:
        base = verdict("flops-half", trained=[timed(0.5, 1, 1.0, 1.0)])
        outcome = verdict("retention-half", arm(0.5, [EASE] * 2), arm(1.0, [EASE] * 2)).measured
        assert outcome
        measured = Measured(**{**vars(outcome), "outside": p})
        return ClaimVerdict(CLAIMS[name], base.protocol, "not reproduced", measured, "")

    names = ("retention-half", "halves", "sections", "sections-inside", "shape-rise")
    alone = allow_for_number([failing(0.04, name) for name in names])
    assert [one.word for one in alone] == ["not reproduced", *["undecided"] * 4]
    assert "Holm" in alone[1].advice
    clear = allow_for_number([failing(0.001, name) for name in names])
    assert {one.word for one in clear} == {"not reproduced"}


def test_a_claim_that_fails_to_be_judged_takes_no_other() -> None:
    """Two trainings and the shares of one: what nobody foresaw."""
    broken = replace(arm(0.5, [EASE] * 2), shares=({"p0": 1.0},))
    found = verdict("retention-half", broken, arm(1.0, [EASE] * 2))
    assert found.word == "undecided" and found.measured is None and "could not be judged" in found.advice
    assert verdict("flops-half", broken, arm(1.0, [EASE] * 2)).word == "not run"


def test_the_ratio_of_means_is_not_driven_upwards_by_chance() -> None:
    """At 5 % accuracy the mean of ratios is far above the truth; it stands beside the ratio of means in the note."""
    random, claim = np.random.default_rng(8), CLAIMS["retention-half"]
    runs = [made_up(Design(15, 1, 64, 0.05, 0.01), random) for _ in range(60)]
    means = np.array([[[unit.accuracies.mean() for unit in units] for units in run] for run in runs])
    ours = np.mean([judge_made_up(claim, run)[1].estimate.value or 0.0 for run in runs])
    assert ours == pytest.approx(0.91, abs=0.02) and (means[..., 0] / means[..., 1]).mean() > ours + 0.02
    kept = {("bespoke", 0.5): 0.8, ("bespoke", 1.0): 1.0, ("skyt1", 0.5): 1.0, ("skyt1", 1.0): 1.0}
    arms = [arm(lsp, [share * EASE] * 2, PLACE._replace(dataset=name)) for (name, lsp), share in kept.items()]
    note = verdict("retention-half", *arms).measured
    assert note and "mean of ratios 90.0" in note.note and "geometric mean 89.4" in note.note


def test_made_up_runs_are_judged_as_read_ones_are() -> None:
    """The same shares, as the arms of an experiment and as a made-up run, give the same value, interval and word."""
    random, claim = np.random.default_rng(4), CLAIMS["retention-half"]
    settings = made_up(Design(3, 2, 64, 0.3, 0.01), random)
    arms = [
        arm(unit.lsp, list(unit.shares[name]), PLACE._replace(dataset=dataset, benchmark=benchmark))
        for dataset, units in zip(("bespoke", "skyt1", "nemotron"), settings, strict=True)
        for unit in units
        for name, benchmark in zip(unit.shares, ("aime24", "aime25"), strict=True)
    ]
    read, (word, measured) = verdict(claim, *arms), judge_made_up(claim, settings)
    assert read.measured and read.word == word
    assert vars(read.measured.estimate) == pytest.approx(vars(measured.estimate))
