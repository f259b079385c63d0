"""Claims of whole runs whose answer is known: what is read of their records, joined, and judged."""

import json
import math
import tomllib
from pathlib import Path

import pytest

from essence.errors import ExperimentError
from essence.evaluation.statistics import Estimate
from essence.plan.experiment import EXPERIMENTS
from essence.report.claims.advice import advise
from essence.report.claims.definition import load_claims, load_questions
from essence.report.claims.gather import gather
from essence.report.claims.measures import MEASURES
from essence.report.claims.outcome import Measured, Replicates
from essence.report.claims.verdict import ClaimVerdict, judge
from essence.report.results.read import read_results
from support.project import invoke
from support.synthetic_run import REAL, SyntheticRun

CLAIMS = {claim.id: claim for claim in load_claims()}
BAND = (0.86, 0.96)


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
    found = MEASURES["retention"](CLAIMS["retention-half"].anywhere, evidence)
    assert isinstance(found, Measured) and found.estimate.value is not None
    return found.estimate.value


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
