"""Words that are given again and again while seeds are added: a false one is rare over all looks together."""

import json
from pathlib import Path

import numpy as np
import pytest

from essence.errors import RecordError
from essence.report.build import report_is_current, write_report
from essence.report.claims.definition import load_claims
from essence.report.claims.evidence import Evidence, Scored, Setting
from essence.report.claims.interim_looks import Look, Looks, level_of, look_at, share_of
from essence.report.claims.outcome import Measured
from essence.report.claims.verdict import ClaimVerdict, at_this_look, decide, judge
from essence.report.results.read import read_results
from support.project import invoke
from support.synthetic_run import REAL, SyntheticRun

CLAIM = next(claim for claim in load_claims() if claim.id == "retention-half")
PLACE = Setting("bespoke", "qwen3-8b", "qwen3-4b-base", "released", "aime25")
EASE = np.linspace(0.1, 0.9, 30)
MOST_SEEDS, RUNS = 8, 300


def grown(kept: float, random: np.random.Generator) -> list[tuple[Scored, Scored]]:
    """One run at each look: two seeds of both arms, then three, and so on."""
    factors = {lsp: 1.0 + 0.015 * random.standard_normal(MOST_SEEDS) for lsp in (0.5, 1.0)}

    def arm(lsp: float, share: float, seeds: int) -> Scored:
        shares = tuple({f"p{i}": float(e) for i, e in enumerate(0.7 * share * f * EASE)} for f in factors[lsp][:seeds])
        names = tuple(f"train-{lsp}-{seed}" for seed in range(seeds))
        stages = tuple(f"grade-{lsp}-{seed}" for seed in range(seeds))
        return Scored(PLACE, "best", "left", "p+cot+a", lsp, shares, names, 64, stages)

    return [(arm(0.5, kept, seeds), arm(1.0, 1.0, seeds)) for seeds in range(2, MOST_SEEDS + 1)]


def words(arms: list[tuple[Scored, Scored]], remembered: bool) -> list[str]:
    """The verdict at each look, as the report gives it; `remembered`: each knows of those before it."""
    looks, found = Looks(), []
    for both in arms:
        measured = at_this_look(CLAIM, "released", Evidence(both, ()), looks)
        assert isinstance(measured, Measured)
        found.append(decide(measured, CLAIM.band))
        look = look_at(CLAIM.id, "released", measured)
        looks = looks.extended([look] if look and remembered else [])
    return found


@pytest.mark.slow
def test_a_false_word_is_rare_over_all_looks_together() -> None:
    """Stopping at the first look that decides: just outside what is accepted, and just inside."""
    random = np.random.default_rng(3)
    edge, forgotten = CLAIM.band[0], []
    for truth, false in ((edge - 1e-6, "reproduced"), (edge + 1e-6, "not reproduced")):
        runs = [grown(truth, random) for _ in range(RUNS)]
        ever = {how: np.mean([false in words(run, how) for run in runs]) for how in (True, False)}
        assert ever[True] <= 0.05
        forgotten.append(ever[False])
    assert max(forgotten) > 0.05, "without an allowance there is nothing to allow for"


def test_what_all_looks_may_err_sums_to_twice_the_first() -> None:
    assert [level_of(number) for number in (1, 2, 3)] == pytest.approx([0.95, 0.975, 1 - 0.05 / 6])
    assert sum(share_of(number) for number in range(1, 10_000)) == pytest.approx(2.0, abs=1e-3)


def test_a_look_counts_once_and_only_where_it_saw_the_same_trainings() -> None:
    def look(evidence: str, *trainings: str, claim: str = "a") -> Look:
        return Look(claim=claim, protocol="released", evidence=evidence, trainings=list(trainings))

    looks = Looks(((look("1", "x", "y"), look("1", "x", "y"), look("2", "x", "y", "z"), look("3", "u")),))
    assert looks.number(look("1", "x", "y")) == 1, "the same evidence again is no second look"
    assert looks.number(look("2", "x", "y", "z")) == 2
    assert looks.number(look("9", "x")) == 3 and looks.number(look("9", "v")) == 1
    assert looks.number(look("9", "x", claim="b")) == 1


def verdict(run: SyntheticRun) -> ClaimVerdict:
    return next(one for one in judge([read_results(run.root, run.experiment)]) if one.claim.id == "retention-half")


@pytest.mark.slow
def test_seeds_that_are_added_after_a_report_widen_the_interval_and_the_page_says_so(tmp_path: Path) -> None:
    first = SyntheticRun(tmp_path, seeds=(1, 2), **REAL).write()
    page = write_report(tmp_path, "tiny")
    write_report(tmp_path, "tiny")
    assert verdict(first).measured.look == 1 and "judged once before" not in page.read_text()  # type: ignore[union-attr]
    lines = [json.loads(line) for line in (tmp_path / "tiny" / "looks.jsonl").read_text().splitlines()]
    assert len({(line["claim"], line["evidence"]) for line in lines}) == len(lines) > 1
    more = SyntheticRun(tmp_path, seeds=(1, 2, 3), **REAL).write()
    page = write_report(tmp_path, "tiny")
    found = verdict(more).measured
    assert (
        found and found.look == 2 and "judged once before on less or other data, so this is a 97.50" in page.read_text()
    )
    assert report_is_current(tmp_path, "tiny")
    rows = {row["id"]: row for row in json.loads((page.parent / "report.json").read_text())["claims"]}
    assert rows["retention-half"]["confidence"] == 0.975 and rows["flops-half"]["look"] == 1
    assert invoke("verify", str(tmp_path)).stdout.count("looks") == 0


def test_claims_over_all_experiments_are_a_look_at_each_of_them(tmp_path: Path) -> None:
    one = SyntheticRun(tmp_path, experiment="one", **REAL).write()
    SyntheticRun(tmp_path, experiment="two", **{**REAL, "dataset": "skyt1"}).write()
    done = invoke("claims", "--runs", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / name / "looks.jsonl").is_file() for name in ("one", "two"))
    assert verdict(one).measured.look == 2, "both were judged together before"  # type: ignore[union-attr]


def test_a_damaged_list_of_looks_is_one_sentence(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, **REAL).write()
    (tmp_path / "tiny" / "looks.jsonl").write_text('{"claim": "a"}\n')
    with pytest.raises(RecordError, match=r"looks\.jsonl: not a list of looks of this kit: key 'protocol' is missing"):
        judge([read_results(tmp_path, run.experiment)])


def test_a_checklist_that_shows_verdicts_is_a_look(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), texts=False, **REAL).write()
    file = tmp_path / run.experiment / "looks.jsonl"
    here = ("checklist", "--experiment", run.experiment, "--runs", str(tmp_path), "--json")
    assert invoke(*here, "--venue", "acl").returncode == 0 and not file.exists()
    done = invoke(*here, "--venue", "ae")
    assert done.returncode == 0 and "reproduced (ours" in done.stdout
    seen = file.read_text(encoding="utf-8")
    assert '"retention-half"' in seen
    assert invoke(*here, "--venue", "ae").stdout == done.stdout and file.read_text(encoding="utf-8") == seen
