"""The kit's own questions: on made-up arms whose answer is known, judged as claims are and never among them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from essence.errors import ExperimentError
from essence.record.run_directory import RunDirectory
from essence.report.build import report_record, write_report
from essence.report.claims.definition import QUESTIONS_FILE, load_claims, load_questions
from essence.report.claims.evidence import Evidence, Scored, Setting
from essence.report.claims.retention_rows import read_with_retention
from essence.report.claims.verdict import ClaimVerdict, _judge, judge_questions
from essence.report.page.printed_report import print_results
from essence.report.page.questions_table import print_questions, question_record, question_rows, questions_lead
from essence.report.recheck import report_findings
from support.project import invoke
from support.synthetic_run import REAL, SyntheticRun

QUESTIONS = {question.id: question for question in load_questions()}
PROBLEMS = [f"p{number}" for number in range(30)]


def arm(span: str, lsp: float, accuracy: float, **changes: object) -> Scored:
    """Three trainings on one benchmark; problems differ, and trainings by half a point."""
    setting = Setting("bespoke", "qwen3-8b", "qwen3-4b-base", "corrected", "aime25")
    ease = accuracy + 0.1 * np.sin(7.0 * np.arange(30))
    shares = tuple(dict(zip(PROBLEMS, (ease + apart).tolist(), strict=True)) for apart in (-0.005, 0.0, 0.005))
    fields: dict[str, object] = {"tokens": 1e6, "labels": 9e5, "rows": 12_000, **changes}
    name = f"{span}-{lsp}-{fields['tokens']}"
    trainings = tuple(f"{name}-{seed}" for seed in (1, 2, 3))
    return Scored(setting, "best", span, "p+cot+a", lsp, shares, trainings, 16, (f"grade-{name}",), **fields)  # type: ignore[arg-type]


def ending(stopped: float, tokens: float) -> dict[str, object]:
    each = [
        {"stopped": dict.fromkeys(PROBLEMS, stopped + apart), "length": dict.fromkeys(PROBLEMS, tokens * (1 + apart)),
         "capped": dict.fromkeys(PROBLEMS, 1.0 - stopped - apart)}
        for apart in (-0.01, 0.0, 0.01)
    ]  # fmt: skip
    return {"endings": tuple(each)}


def answer(name: str, *arms: Scored) -> ClaimVerdict:
    return _judge(QUESTIONS[name], "corrected", Evidence(arms, ()))


def shown(judged: ClaimVerdict) -> str:
    return question_rows([judged])[0].verdict


def test_left_over_a_drawn_half_at_equal_tokens() -> None:
    left, drawn = arm("left", 0.5, 0.5), arm("random-span", 0.5, 0.4, tokens=1.004e6)
    judged = answer("first-half-or-any-half", left, drawn)
    assert shown(judged) == "yes" and judged.measured and judged.measured.estimate.value == pytest.approx(0.1)
    assert judged.measured.note == "1,000,000 and 1,004,000 tokens"
    assert shown(answer("first-half-or-any-half", arm("left", 0.5, 0.3), drawn)) == "no"
    assert shown(answer("first-half-or-any-half", arm("left", 0.5, 0.4), drawn)) == "undecided"


def test_own_words_are_compared_with_those_of_the_rows_and_with_full_rollouts() -> None:
    def of_thought(span: str, accuracy: float, tokens: float) -> Scored:
        return replace(arm(span, 1.0, accuracy, tokens=tokens), sections="cot+a")

    short, full = of_thought("rollout-512", 0.5, 9e5), of_thought("rollout-4096", 0.52, 4e6)
    rows = of_thought("first-512", 0.4, 1e6)
    assert shown(answer("own-words", short, rows, full)) == "yes"
    judged = answer("short-rollouts", short, rows, full)
    assert shown(judged) == "yes" and judged.measured and judged.measured.estimate.value == pytest.approx(-0.02)
    assert shown(answer("short-rollouts", short, replace(full, shares=arm("left", 1.0, 0.7).shares))) == "no"
    assert answer("short-rollouts", short, rows).word == "not run"


def test_arms_that_read_different_numbers_of_tokens_are_not_compared_as_equal() -> None:
    judged = answer("first-half-or-any-half", arm("left", 0.5, 0.5), arm("random-span", 0.5, 0.4, tokens=1.5e6))
    assert judged.word == "not run" and judged.measured is None
    assert judged.advice.endswith("left has 1,000,000 tokens, random-span 1,500,000")
    unknown = answer("first-half-or-any-half", arm("left", 0.5, 0.5, tokens=None), arm("random-span", 0.5, 0.4))
    assert unknown.word == "not run" and "do not say how many tokens" in unknown.advice


def test_labels_are_matched_by_what_the_records_counted() -> None:
    left = arm("left", 0.5, 0.5)
    drawn = arm("random-tokens", 0.5, 0.45, tokens=2e6, labels=9e5)
    assert shown(answer("fewer-labels-or-less-text", left, drawn)) == "yes"
    more = answer("fewer-labels-or-less-text", left, replace(drawn, labels=9.9e5))
    assert more.word == "not run" and "random-tokens 990,000" in more.advice


def test_an_amount_is_compared_with_the_share_of_as_many_tokens() -> None:
    shares = [arm("left", 0.25, 0.2, tokens=5e5), arm("left", 0.5, 0.4), arm("left", 1.0, 0.5, tokens=2e6)]
    judged = answer("amount-over-share", *shares, arm("first-512", 1.0, 0.35, tokens=7.5e5))
    assert judged.measured and judged.measured.estimate.value == pytest.approx(0.05)
    assert judged.measured.note == "first-512 reads as much as LSP 0.38, between 0.25 and 0.50"
    assert shown(judged) == "yes" and judged.measured.trainings == 3
    # A second amount that shares its neighbour: the mean of both, each training counted once.
    both = answer("amount-over-share", *shares, arm("first-512", 1.0, 0.35, tokens=7.5e5),
                  arm("first-2048", 1.0, 0.4, tokens=1.5e6))  # fmt: skip
    assert both.measured and both.measured.estimate.value == pytest.approx((0.05 - 0.05) / 2)
    weights = {"first": 0.5, "first again": 0.5, "low": -0.25, "middle": -0.25 - 0.25, "whole": -0.25}
    sd = 0.005  # of three trainings 0.005 apart
    error = (sum(weight**2 for weight in weights.values()) * sd**2 / 3) ** 0.5
    assert both.measured.estimate.standard_error == pytest.approx(error, rel=1e-3)


def test_arms_that_an_amount_is_not_compared_with_are_no_part_of_the_evidence() -> None:
    """A share further off, and a neighbour of exactly as many tokens as the other one would weigh with nothing."""
    needed = [arm("left", 0.25, 0.2, tokens=5e5), arm("left", 0.5, 0.4), arm("first-512", 1.0, 0.35, tokens=7.5e5)]
    beside = arm("left", 1.0, 0.5, tokens=2e6)
    alone, among = answer("amount-over-share", *needed).measured, answer("amount-over-share", *needed, beside).measured
    assert alone and among and alone == among and "grade-left-1.0-2000000.0" not in among.stages
    equal = answer("amount-over-share", *needed[:2], arm("first-512", 1.0, 0.35, tokens=5e5)).measured
    assert equal and equal.estimate.value == pytest.approx(0.15) and len(equal.rests_on) == 6


def test_settings_whose_amounts_need_more_or_fewer_arms_all_count() -> None:
    def elsewhere(one: Scored) -> Scored:
        names = tuple(f"openthoughts-{name}" for name in one.trainings)
        return replace(one, setting=one.setting._replace(dataset="openthoughts"), trainings=names)

    shares = [arm("left", 0.25, 0.2, tokens=5e5), arm("left", 0.5, 0.4), arm("left", 1.0, 0.5, tokens=2e6)]
    two = [arm("first-512", 1.0, 0.35, tokens=7.5e5), arm("first-2048", 1.0, 0.4, tokens=1.5e6)]
    one = [elsewhere(some) for some in (*shares, arm("first-512", 1.0, 0.42, tokens=7.5e5))]
    found = answer("amount-over-share", *shares, *two, *one).measured
    assert found and found.settings == 2 and found.estimate.value == pytest.approx((0.0 + 0.12) / 2)
    assert len(found.rests_on) == 3 * (5 + 3)
    assert found.trainings == 3 and found.estimate.low is not None


@pytest.mark.parametrize("tokens", [4e5, 2.1e6])
def test_an_amount_beyond_every_share_is_not_compared(tokens: float) -> None:
    shares = [arm("left", 0.25, 0.2, tokens=5e5), arm("left", 1.0, 0.5, tokens=2e6)]
    judged = answer("amount-over-share", *shares, arm("first-64", 1.0, 0.35, tokens=tokens))
    assert judged.word == "not run" and "both fewer and more tokens" in judged.advice


def test_does_a_student_that_sees_the_end_stop() -> None:
    led = arm("lead+answer", 0.5, 0.5, **ending(0.9, 1200.0))
    cut, whole = arm("left", 0.5, 0.5, **ending(0.2, 4000.0)), arm("left", 1.0, 0.5, **ending(0.92, 1000.0))
    judged = answer("answer-ends-turns", led, cut, whole)
    assert shown(judged) == "yes" and judged.measured and judged.measured.estimate.value == pytest.approx(0.7)
    assert "left 0.50 20.0" in judged.measured.note and "whole rows 92.0" in judged.measured.note
    assert shown(answer("answer-ends-turns-as-whole", led, cut, whole)) == "yes"
    longer = answer("longer-completions", led, cut, whole)
    assert shown(longer) == "yes" and longer.measured and longer.measured.estimate.value == pytest.approx(4.0)
    assert longer.measured.note == "lead+answer 0.50 1,200 tokens; left 0.50 4,000 tokens; whole rows 1,000 tokens"
    assert answer("longer-completions", replace(cut, endings=()), whole).word == "not run"


def test_arms_of_other_numbers_of_rows_are_not_compared_as_equal_rows() -> None:
    """At one `token_budget` the recipe is the same, and the first half has twice the rows."""
    led, cut = arm("lead+answer", 0.5, 0.5, **ending(0.9, 1200.0)), arm("left", 0.5, 0.5, **ending(0.2, 4000.0))
    whole = arm("left", 1.0, 0.5, rows=6_000, **ending(0.92, 1000.0))
    for name in ("longer-completions", "answer-ends-turns-as-whole"):
        judged = answer(name, led, cut, whole)
        assert judged.word == "not run" and judged.advice.endswith("has 12,000 rows, whole 6,000")
    assert shown(answer("answer-ends-turns", led, cut, whole)) == "yes"
    unknown = answer("longer-completions", replace(cut, rows=None), whole)
    assert unknown.word == "not run" and "do not say how many rows" in unknown.advice


def test_arms_of_equal_tokens_answer_the_kits_own_questions() -> None:
    left, drawn = (arm(span, 0.5, share, budget=True) for span, share in (("left", 0.5), ("random-span", 0.4)))
    assert shown(answer("first-half-or-any-half", left, drawn)) == "yes"


def test_half_of_twice_the_rows_and_whole_rows_at_one_token_budget() -> None:
    """Both arms have one recipe, whose rows are as many as the budget lets in; arms of equal rows are no pair of it."""
    half, whole = arm("left", 0.5, 0.5, budget=True), arm("left", 1.0, 0.4, budget=True, rows=6_000, tokens=1.004e6)
    judged = answer("token-matched", half, whole)
    assert shown(judged) == "yes" and judged.measured and judged.measured.estimate.value == pytest.approx(0.1)
    assert judged.measured.note == "1,000,000 and 1,004,000 tokens" and judged.measured.settings == 1
    of_rows = replace(whole, setting=whole.setting._replace(recipe="6,000 rows"), budget=False)
    other = replace(half, setting=half.setting._replace(recipe="2,000,000 tokens"))
    for pair in ((half, of_rows), (other, whole), (replace(half, budget=False), replace(whole, budget=False))):
        assert answer("token-matched", *pair).word == "not run"


def test_one_training_of_each_arm_answers_nothing() -> None:
    def once(one: Scored) -> Scored:
        return replace(one, shares=one.shares[:1], trainings=one.trainings[:1])

    judged = answer("first-half-or-any-half", once(arm("left", 0.5, 0.6)), once(arm("random-span", 0.5, 0.2)))
    assert shown(judged) == "undecided" and judged.measured and judged.measured.estimate.low is not None


def test_whatever_else_was_run_questions_and_claims_share_no_id_and_no_grade() -> None:
    claims = load_claims()
    assert not {claim.id for claim in claims} & QUESTIONS.keys()
    assert all(claim.grade != "kit" for claim in claims)
    assert all(question.grade == "kit" and question.is_judged and question.accepts for question in QUESTIONS.values())


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('against = "random-span"', 'against = "rihgt"', "against"),
        ('equal = "labels"\n', "", 'measure = "arm-over-arm" needs equal'),
        ('quantity = "length"', 'quantity = "lenght"', "quantity"),
        ("accepts = [1.0, inf]", "accepts = [1.0, 1.0]", "accepts nothing"),
        ('span = "schedule"', 'span = "schedule"\ngrade = "A"', "is a claim of the paper: it belongs in claims.toml"),
    ],
)
def test_a_damaged_file_of_questions_is_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    text = QUESTIONS_FILE.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "questions.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        load_questions(file)
    assert str(file) in str(caught.value) and sentence in str(caught.value)


def test_a_question_among_the_claims_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "claims.toml"
    fields = 'title = "t"\ngrade = "kit"\nsource = "s"\nmeasure = "token-matched"\nunit = "points"\nlsp = 0.5'
    defaults = '[defaults]\ncheckpoint = "best"\nspan = "left"\nsections = "p+cot+a"\n'
    file.write_text(f"{defaults}[claims.mine]\n{fields}\naccepts = [0.0, inf]\n", encoding="utf-8")
    with pytest.raises(
        ExperimentError, match=r"\[claims.mine\] is no claim of the paper: it belongs in questions.toml"
    ):
        load_claims(file)


def controls(folder: Path, **where: str) -> SyntheticRun:
    """Arms of controls.toml, as far as a made-up run has them."""
    return SyntheticRun(
        folder, experiment="controls", lsps=(0.5, 1.0), seeds=(1, 2, 3), spans=("left", "random-tokens"), **where
    ).write()


def test_questions_have_a_table_of_their_own_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = controls(tmp_path, **REAL)
    page = write_report(run.root, run.experiment)
    record = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    ids = [row["id"] for row in record["questions"]]
    assert ids == list(QUESTIONS) and not {row["id"] for row in record["claims"]} & set(ids)
    assert all("word" not in row and "reported" not in row and "answer" in row for row in record["questions"])
    html, text = page.read_text(encoding="utf-8"), (page.parent / "report.md").read_text(encoding="utf-8")
    claims, questions = (html[html.index(f'<section id="{name}"') :] for name in ("claims", "questions"))
    assert 'id="question-longer-completions-corrected"' in questions
    assert "question-" not in claims[: claims.index("</section>")]
    assert "claim-" not in questions[: questions.index("</section>")]
    assert text.index("## Claims of the paper") < text.index("## Questions of the kit") < text.index("### ")
    print_results(run.root, run.experiment, Console(width=80, color_system=None))
    printed = capsys.readouterr().out
    assert printed.index("Claims of the paper") < printed.index("Questions of the kit")
    assert max(map(len, printed.splitlines())) <= 80
    assert report_findings(RunDirectory(run.root), run.experiment) == ([], [])
    looks = (run.root / run.experiment / "looks.jsonl").read_text(encoding="utf-8")
    assert "fewer-labels-or-less-text" in looks and "retention-half" in looks


def test_output_length_by_arm_is_answered_from_records(tmp_path: Path) -> None:
    run = controls(tmp_path, **REAL)
    judged = {one.claim.id: one for one in judge_questions([read_with_retention(run.root, run.experiment)])}
    found = judged["longer-completions"]
    assert found.measured and found.measured.estimate.value == pytest.approx(71 / 81, rel=1e-6)
    assert "random-tokens 0.50 71 tokens" in found.measured.note
    assert question_record(found)["yes"] == [1.0, None]


def test_a_miniature_answers_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = controls(tmp_path)
    judged = judge_questions([read_with_retention(run.root, run.experiment)])
    words = {one.word for one in judged}
    assert words <= {"shown, not judged", "not run"} and "shown, not judged" in words
    assert "no question is answered" in questions_lead(judged)
    print_questions(judged, Console(width=80, color_system=None))
    assert "no question is answered" in " ".join(capsys.readouterr().out.split())
    assert "yes" not in {row["answer"] for row in report_record(read_with_retention(run.root, "controls"))["questions"]}  # type: ignore[attr-defined]


def test_where_no_question_was_asked_a_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.25, 0.75), **REAL).write()
    print_questions(judge_questions([read_with_retention(run.root, run.experiment)]), Console(width=80))
    assert "none was asked of these cells" in " ".join(capsys.readouterr().out.split())
    page = write_report(run.root, run.experiment)
    assert '<section id="questions"' not in page.read_text(encoding="utf-8")
    assert "Questions of the kit" not in (page.parent / "report.md").read_text(encoding="utf-8")
    assert len(json.loads((page.parent / "report.json").read_text(encoding="utf-8"))["questions"]) == len(QUESTIONS)


def test_the_command_prints_both_and_keeps_them_apart(tmp_path: Path) -> None:
    run = controls(tmp_path, **REAL)
    done = invoke("claims", "--runs", str(run.root), "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [row["id"] for row in record["questions"]] == list(QUESTIONS)
    assert {row["id"] for row in record["claims"]} == {claim.id for claim in load_claims()}
