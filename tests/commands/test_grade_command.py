"""`invoke grade` on any file of gold answers and completions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.project import PROJECT

pytest.importorskip("math_verify", reason="math-verify is not installed")

from essence.commands.graded_lines import Lines
from essence.errors import InputError
from essence.evaluation.graders_apart import is_installed

LINES = [
    {"gold": "42", "completion": r"\boxed{42}", "more": 1},
    {"gold": r"\frac{3}{2}", "completion": r"\boxed{1.5}"},
    {"gold": "7", "completion": "I do not know"},
]


def invoke(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", "grade", *words], input=given, cwd=PROJECT, capture_output=True, text=True
    )


def test_verdicts_and_summary_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    found = invoke(str(file), "--grader", "lighteval-0.10")
    assert found.returncode == 0, found.stderr
    verdicts = [json.loads(line) for line in found.stdout.splitlines()]
    assert [verdict["correct"] for verdict in verdicts] == [True, False, False]
    assert [verdict["status"] for verdict in verdicts] == ["graded", "graded", "no answer"]
    assert "1 of 3 correct (33.3%)" in found.stderr


def test_standard_input_and_the_other_grader() -> None:
    found = invoke("-", given="\n".join(map(json.dumps, LINES)))
    assert (found.returncode, found.stdout.count('"correct": true')) == (0, 2)


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        ("{", (), "standard input, line 2: no JSON"),
        ("[1]", (), "standard input, line 2: found list, wanted"),
        ('{"gold": "1", "completon": ""}', (), "line 2: field 'completion': no such field; did you mean 'completon'?"),
        ('{"gold": true, "completion": ""}', (), "line 2: field 'gold': bool, wanted"),
        ('{"gold": "", "completion": "1"}', (), "line 2: field 'gold' is empty, wanted"),
        ('{"gold": "$", "completion": "1"}', (), "line 2: the grader math-verify cannot read the gold answer '$'"),
        ("", ("--grader", "mathverify"), "--grader mathverify: unknown; did you mean 'math-verify'?"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(line: str, words: tuple[str, ...], message: str) -> None:
    found = invoke("-", *words, given=json.dumps(LINES[0]) + "\n" + line)
    assert found.returncode == 2
    assert message in found.stderr and "Traceback" not in found.stderr


CASES = PROJECT / "tests" / "cases" / "grading"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("array.json", "line 1: found list"),
        ("cr.jsonl", "line 1: found a carriage return"),
        ("empty.jsonl", "holds no line"),
        ("emptygold.jsonl", "line 1: field 'gold' is empty"),
        ("listcompletion.jsonl", "line 1: field 'completion': list"),
        ("nan.jsonl", "line 1: no JSON (NaN is no number of JSON)"),
        ("nullcompletion.jsonl", "line 1: field 'completion': NoneType"),
        ("torn.jsonl", "line 3: no JSON"),
        ("utf16.jsonl", "is UTF-16, wanted: UTF-8"),
    ],
)
def test_files_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        Lines(str(CASES / name))
    assert message in str(refused.value) and name in str(refused.value)


@pytest.mark.parametrize(
    ("name", "golds", "notes"),
    [
        ("bom.jsonl", ["7", "8"], 0),
        ("blanklines.jsonl", ["7", "8"], 0),
        ("crlf.jsonl", ["7", "8"], 0),
        ("nonl.jsonl", ["7", "8"], 0),
        ("u2028.jsonl", ["7", "8"], 0),
        ("numgold.jsonl", ["7"], 0),
        ("extra_dup.jsonl", ["7", "7"], 2),
    ],
)
def test_files_that_work(name: str, golds: list[str], notes: int) -> None:
    lines = Lines(str(CASES / name))
    assert [item.gold for item in lines.items] == golds
    assert all(item.completion.endswith(r"\boxed{7}") for item in lines.items)
    assert len(lines.notes()) == notes


def test_repeated_lines_are_said_and_no_verdict_precedes_the_golds() -> None:
    found = invoke(str(CASES / "extra_dup.jsonl"))
    assert (found.returncode, found.stdout.count('"correct": true')) == (0, 2)
    assert "repeated lines 1" in found.stderr and "graders disagree on 0" in found.stderr
    lines = [LINES[0]] * 200 + [{"gold": "$", "completion": "1"}]
    refused = invoke("-", given="\n".join(map(json.dumps, lines)))
    assert (refused.returncode, refused.stdout) == (2, "")


def test_a_missing_file() -> None:
    found = invoke("/no/such/file.jsonl")
    assert found.returncode == 2 and "/no/such/file.jsonl: no such file" in found.stderr


PER_GRADER = (  # gold, completion, the verdicts of math-verify 0.5.2 and of 0.9
    ("42", r"So \boxed{42}.", True, True),
    (r"\$32,\!348", r"<think>\boxed{1}</think> It is \boxed{32348}", True, True),
    ("12:00", r"\boxed{1:00}", True, False),
    ("n=2,3,4", r"\boxed{n=1,2,3}", True, False),
    ("7", "I do not know", False, False),
)


def test_the_third_grader_runs_to_the_end(tmp_path: Path) -> None:
    """`12:00` is no ratio, and `n=2,3,4` is not `n=1,2,3`: what 0.9 reads right and 0.5.2 does not."""
    if not is_installed("math-verify-0.9"):
        pytest.skip("math-verify 0.9 is not installed: locks/install.sh cpu dev math-verify-0.9")
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps({"gold": g, "completion": c}) + "\n" for g, c, *_ in PER_GRADER))
    done = invoke(str(file), "--grader", "math-verify-0.9")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["others"]["math-verify"], line["correct"]) for line in found] == [row[2:] for row in PER_GRADER]
    assert "2 of 5 correct (40.0%); 4 graded, 1 no answer; math-verify-0.9, math-verify 0.9.0" in done.stderr
    assert "graders disagree on 2" in done.stderr


def test_a_grader_that_is_not_installed_is_one_sentence() -> None:
    if is_installed("math-verify-0.9"):
        pytest.skip("math-verify 0.9 is installed")
    done = invoke("lines.jsonl", "--grader", "math-verify-0.9")
    assert done.returncode == 2 and "install it (locks/install.sh cpu math-verify-0.9), or choose" in done.stderr
