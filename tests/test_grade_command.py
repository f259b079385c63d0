"""`invoke grade` on any file of gold answers and completions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

PROJECT = Path(__file__).resolve().parents[1]
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
        ('{"gold": 1, "completion": ""}', (), "line 2: field 'gold': int, wanted"),
        ('{"gold": "", "completion": "1"}', (), "line 2: the grader math-verify cannot read the gold answer ''"),
        ("", ("--grader", "mathverify"), "--grader mathverify: unknown; did you mean 'math-verify'?"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(line: str, words: tuple[str, ...], message: str) -> None:
    found = invoke("-", *words, given=json.dumps(LINES[0]) + "\n" + line)
    assert found.returncode == 2
    assert message in found.stderr and "Traceback" not in found.stderr


def test_a_missing_file() -> None:
    found = invoke("/no/such/file.jsonl")
    assert found.returncode == 2 and "/no/such/file.jsonl cannot be read" in found.stderr
