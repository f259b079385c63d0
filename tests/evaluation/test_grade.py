"""Grading: the recorded verdicts of math-verify, a deadline that holds, and the stage around it."""

import ast
import gzip
import hashlib
import json
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")


from essence.errors import InputError
from essence.evaluation import answer_search, grading_pool
from essence.evaluation.graders import GRADERS, Verdict
from essence.evaluation.graders_apart import grader_version
from essence.evaluation.grading_pool import Item, grade_all
from essence.settings import GraderName

TIMEOUT_S = 6.0
LONG = 160_000


def verdicts_of(
    items: list[Item], timeout_s: float = TIMEOUT_S, workers: int = 1, grader: str = "math-verify"
) -> list[Verdict]:
    with closing(grade_all(items, grader, timeout_s, workers)) as graded:
        return list(graded)


def test_verdicts() -> None:
    items = [
        Item("42", r"so the answer is $\boxed{42}$"),
        Item("42", r"so the answer is $\boxed{43}$"),
        Item("25", r"\boxed{025}"),
        Item("42", "I do not know"),
        Item("42", ""),
        Item(r"\frac{1}{2}", r"thus $\boxed{0.5}$"),
        Item(r"(3, \frac{\pi}{2})", r"$\boxed{\left(3, \frac{\pi}{2}\right)}$"),
    ]
    verdicts = verdicts_of(items)
    assert [v.correct for v in verdicts] == [True, False, True, False, False, True, True]
    assert [v.status for v in verdicts] == ["graded"] * 3 + ["no answer"] * 2 + ["graded"] * 2
    assert (verdicts[1].extracted, verdicts[3].extracted) == ("43", None)


def test_long_and_pathological_completions_stall_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # No worker ends by the clock here: what does not end by its CPU time would hold this test up.
    monkeypatch.setattr(grading_pool, "STALLED_AFTER_S", 900.0)
    items = [
        Item("42", r"\boxed{" + "(" * 3000 + "}"),
        Item("42", "1" * LONG),
        Item("42", "wait, " * (LONG // 6) + r"\boxed{42}"),
        Item("42", r"\boxed{9^{9^{9^{9}}}}"),
        Item("42", r"\boxed{42}"),
    ]
    started = time.monotonic()
    verdicts = verdicts_of(items, timeout_s=1.5)
    assert time.monotonic() - started < 600.0
    assert verdicts[0].status == verdicts[3].status == "timeout"
    assert [v.correct for v in verdicts] == [False, False, True, False, True]


def test_nothing_to_grade() -> None:
    assert verdicts_of([]) == []


def test_gold_that_does_not_parse() -> None:
    with pytest.raises(InputError, match="cannot read the gold answer ''"):
        verdicts_of([Item("1", r"\boxed{1}"), Item("", r"\boxed{1}")])


def published_completions(folder: Path) -> Iterator[str]:
    for record in read_gzip(folder / "qwen25math_cot70.jsonl.gz"):
        yield from record["code"]
    for record in read_gzip(folder / "palign_aime24-output.jsonl.gz"):
        yield from ast.literal_eval(record["output"]) if isinstance(record["output"], str) else record["output"]
    for run in (0, 1):
        for record in read_gzip(folder / f"nemo_skills_output-rs{run}.jsonl.gz"):
            yield record["generation"]
    for record in read_gzip(folder / "openai_gsm8k_example_model_solutions.jsonl.gz"):
        yield from (of_model["solution"] for of_model in record.values() if isinstance(of_model, dict))


def read_gzip(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def recorded(assets: Path) -> list[tuple[dict[str, Any], str]]:
    """(row with the recorded verdicts, completion) of every row."""
    texts = {hashlib.sha256(text.encode()).hexdigest(): text for text in published_completions(assets / "grading")}
    rows = read_gzip(assets / "grading" / "verdicts.jsonl.gz")
    return [(row, texts[row["completion_sha256"]]) for row in rows]


@pytest.mark.assets
@pytest.mark.parametrize(
    ("grader", "column", "exceptions"),
    [
        ("math-verify", "math_verify_0.5.2", set()),
        # "... 2 wearers / 8 wearers * 100% = 50%\nA: 50": a percentage is no integer, and comparing it with 50 asks the
        # document for a number of digits. That is lighteval 0.10.0's trap; the verdict recorded is that of 0.13.0.
        ("lighteval-0.10", "lighteval_0.10.0_math_pass@1:1_samples", {("openai_gsm8k", 1159, 0)}),
    ],
)
def test_agrees_with_every_recorded_verdict(
    recorded: list[tuple[dict[str, Any], str]], grader: str, column: str, exceptions: set[tuple[str, int, int]]
) -> None:
    """All 6,026 rows: its original's verdict on 1,806, and that of lighteval 0.13.0 on the 4,220 that have no other."""
    if grader_version() != "0.5.2":
        pytest.skip(f"recorded with math-verify 0.5.2, installed: {grader_version()}")
    verdicts = verdicts_of([Item(row["gold"], text) for row, text in recorded], workers=2, grader=grader)
    own, differing = 0, set()
    for (row, _), verdict in zip(recorded, verdicts, strict=True):
        assert verdict.status != "timeout"
        own += column in row
        if verdict.correct != bool(row.get(column, row["lighteval_0.13.0_pass_at_k_math"])):
            differing.add((row["set"], row["pid"], row["sid"]))
    assert (len(recorded), own) == (6026, 1806)
    assert differing == exceptions


@pytest.mark.parametrize(
    ("gold", "completion", "math_verify", "lighteval"),
    [
        # A decimal number written in two ways: the comparison asks a document for a number of digits.
        (r"\frac{3}{2}", r"\boxed{1.5}", True, False),
        ("1.5", r"\boxed{1.5}", True, True),
        ("0.5", "the answer is 1/2", True, True),
        # The words "final answer is" come before the box, and the number after them is read.
        ("116", r"The final answer is: $\frac{1}{115}$" "\n\n" r"\boxed{116}", True, False),
        ("25", r"\boxed{025}", True, True),
        ("25", " \\boxed{24}\n", False, False),
        ("25", "", False, False),
        # Of several boxes close together the last one counts.
        ("204", r"\boxed{205} then \boxed{204}", True, True),
        ("204", r"\boxed{204} and \boxed{204}", False, False),
    ],
)
def test_where_the_graders_differ(gold: str, completion: str, math_verify: bool, lighteval: bool) -> None:
    assert GRADERS["math-verify"](gold, completion).correct is math_verify
    assert GRADERS["lighteval-0.10"](gold, completion).correct is lighteval


PIECES = [
    "so we get 42 in the end\n",
    "Then $x = 7$ and\n$y = 8$,\nor $z$\n",
    "\n\\[\n x = \\frac{3}{4}\n\\]\n",
    "Wait\n$$ a = 3,\n b = 4 $$\n",
    "open \\[ and never closed\n",
    "1 + 2 *\n 3 - 4\nHence 12\npercent of it\n",
    "a lone $$ here\n",
    "50\n%\nThus [ 3 ]\n",
    "costs $5 and $6\nBut then \\( 5 \\)\n",
    "Let me think about it again, step by step.\n",
    "lines = 5\n\n-3 \\\\[2pt]\nNow 3,000 apples\n",
    "0.5 * √(41 * 6675 / 164) = 0.5 * √(41 * 6675 / 164), ",
    "which is 7 percentage points, plus 3 % or 4 pct; ",
    "[ 4 ] and [ 5 ], x = 6: 7 ≡ 3 mod 8 ",
    "boxed: \\boxed{3}, and \\(\\boxed{4}\\) ",
    "$$\n\\boxed{5}\n$$ and $\\boxed{6}$, ",
    "\\[ 1 \\]\n\\[\n\\boxed{\n7}\n\\] percent ",
    " [\\boxed{8}] \n [9] ",
    "$ 1 \\$ 2 \\boxed{10} $$ 3 ",
    "the answer: 11, or \\frac{1}{2} and -\\frac{3}{4} ",
    "up, right, up, 3 * 4x, right, 50 percent, mix 7 pct of it and 2 more, up, right, ",
    "= 3 + 4 quickly; -8/3, which is 6; 2 or 9 ",
    "The final answer up to here is 5, I hope. Final answer: 6. The final anſwer is 7. ",
    "\\boxed{4} and $\\boxed{5}$, ",
    "$x$ [ \\boxed{6} ] [\n \\boxed{3}\n ] ",
    "\\[ a\n= \\boxed{7}\n\\] \\( \\boxed{8} \\), ",
    "$$$ \\boxed{9}\n$$ \\] \\[ \\boxed{10} ",
    "\n [\\boxed{11}] and \\(\\boxed{12}\\)\n",
]


def whole_text_answer(text: str, boxed_priority: int) -> Any:
    """What math-verify itself finds, without pieces, shortcuts or memory."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(boxed_match_priority=boxed_priority), ExprExtractionConfig()]
    return parse(text, extraction_config=configs)


@pytest.mark.parametrize("seed", range(4))
def test_reading_from_the_end_finds_what_reading_all_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_search, "PIECE_CHARACTERS", 20)
    chooser = random.Random(seed)
    cut = 0
    for _ in range(60):
        text = "".join(chooser.choice(PIECES) for _ in range(chooser.randrange(1, 12)))[: chooser.randrange(10, 400)]
        cut += len(list(answer_search.pieces(text))) > 1
        for priority in (50, 55):
            found = answer_search.find_answer(text, priority, 3, keep_text=True, skip_broken=False)
            expected = whole_text_answer(text, priority)
            assert (found.parsed() if found else []) == expected, text
    assert cut > 20


def test_pieces_match_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_search, "PIECE_CHARACTERS", 20)
    chooser = random.Random(7)
    cut = 0
    for _ in range(400):
        text = "".join(chooser.choice(PIECES) for _ in range(chooser.randrange(1, 12)))
        text = text[chooser.randrange(9) : chooser.randrange(20, 500)]
        parts = list(answer_search.pieces(text))[::-1]
        cut += len(parts) > 1
        for pattern in answer_search.patterns(50):
            ranges = parts if pattern.priority == answer_search.LAST_MATCH_PRIORITY else [(0, len(text))]
            found = [
                m.span()
                for start, end in ranges
                for m in answer_search._matches_within(pattern.regex, text, start, end)
            ]
            assert found == [m.span() for m in pattern.regex.finditer(text)], (pattern.priority, text)
    assert cut > 200


def test_an_integer_needs_no_grammar() -> None:
    from math_verify.parser import extract_match

    plain = 0
    for text in (r"\boxed{42}", "$42$", r"$\boxed{42}$", "so 42", "= 42.", "42%", r"\boxed{9}\%", "-3", "042"):
        for pattern in answer_search.patterns(50):
            for match in pattern.regex.finditer(text):
                found = answer_search.Found(pattern.target, tuple(match.groupdict().items()))
                assert answer_search._parse(found, 3) == extract_match(match, pattern.target, 3)
                plain += answer_search._plain_integer(found) is not None
    assert plain >= 8


def test_a_number_too_long_for_sympy_is_passed_over_by_one_of_them() -> None:
    text = "we get 42\nthen " + "1" * 5000
    assert GRADERS["lighteval-0.10"]("42", text).correct is True
    assert GRADERS["math-verify"]("42", text).status == "no answer"


def test_graders_are_those_of_the_settings() -> None:
    assert set(GRADERS) == set(get_args(GraderName))
