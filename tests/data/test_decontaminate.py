"""Evaluation problems among training questions: what counts as the same, and what only looks alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from essence.data.decontaminate import Decontaminator, sentences, words
from essence.stages.tiny.problems import benchmark_rows, training_rows

LONG = "A rope of $12$ metres is cut into three parts so that the second part is twice as long as the first one."


def check(problems: dict[str, list[str]], question: str, overlap_words: int = 13) -> dict[str, tuple[int, int, int]]:
    found = Decontaminator(problems, overlap_words)
    answer = found.check(0, question)
    counted = {name: (e.exact, e.overlap, e.formulaic) for name, e in found.results().items()}
    assert answer == any(exact or overlap for exact, overlap, _ in counted.values())
    return counted


@pytest.mark.parametrize(
    "question",
    [
        "Compute $\\sin 60^\\circ$.",
        "compute\n  \\(\\sin  60^{\\circ}\\).",
        "Return your final response within \\boxed{}. Compute $\\sin 60^\\circ$.",
        "Compute $\\sin 60^\\circ$. Please reason step by step.",
        "Solve the problem:\n\nCompute $\\sin 60^\\circ$\n\nPut the answer in a box.",
    ],
)
def test_the_same_problem_in_other_clothes(question: str) -> None:
    assert check({"math": ["Compute $\\sin 60^\\circ$."]}, question) == {"math": (1, 0, 0)}


@pytest.mark.parametrize(
    "question",
    [
        "Compute $\\sin 60^\\circ + 1$.",
        "Compute $\\sin 30^\\circ$.",
        "If so, compute $\\sin 60^\\circ$.",
        "Compute.",
        "",
    ],
)
def test_other_problems_that_share_words(question: str) -> None:
    assert check({"math": ["Compute $\\sin 60^\\circ$."]}, question) == {"math": (0, 0, 0)}


def test_signs_tell_short_problems_apart() -> None:
    assert check({"sums": ["What is 2 + 3?"]}, "What is 2 - 3?") == {"sums": (0, 0, 0)}
    assert check({"sums": ["What is 2 + 3?"]}, "What is 2+3?") == {"sums": (1, 0, 0)}


def test_a_run_of_thirteen_words_is_an_overlap_and_twelve_are_none() -> None:
    of_problem = list(words(LONG))
    thirteen, twelve = " ".join(of_problem[3:16]), " ".join(of_problem[3:15])
    assert check({"b": [LONG]}, f"Once {thirteen} more.") == {"b": (0, 1, 0)}
    assert check({"b": [LONG]}, f"Once {twelve} more.") == {"b": (0, 0, 0)}
    assert check({"b": [LONG]}, f"Once {twelve} more.", overlap_words=12) == {"b": (0, 1, 0)}
    assert check({"b": [LONG]}, LONG) == {"b": (1, 0, 0)}
    assert check({"a": [LONG], "b": ["Other."], "c": [LONG]}, LONG) == {"a": (1, 0, 0), "b": (0, 0, 0), "c": (1, 0, 0)}


def test_a_formula_of_many_problems_marks_none() -> None:
    closing = "The area is a fraction m over n where m and n are relatively prime positive integers. Find m plus n."
    problems = [f"Problem {name} begins in its own way. {closing}" for name in ("one", "two", "three")]
    assert check({"b": problems}, f"Something else. {closing}") == {"b": (0, 0, 1)}
    assert check({"b": problems[:2]}, f"Something else. {closing}") == {"b": (0, 1, 0)}
    assert check({"b": problems}, problems[2]) == {"b": (1, 0, 0)}


def test_examples_name_row_and_problem() -> None:
    found = Decontaminator({"b": ["Other.", LONG]}, 13)
    for position in range(7):
        found.check(position, LONG)
    entry = found.results()["b"]
    assert entry.exact == 7
    assert [example.position for example in entry.examples] == [0, 1, 2, 3, 4]
    assert (entry.examples[0].problem, entry.examples[0].how) == (1, "exact")


def test_normal_forms() -> None:
    assert sentences("What  is $2+2$?\n\nNow.") == "| what is 2 + 2 | now |"
    assert sentences("x ≤ 3.5") == "| x 3 5 |"
    assert words("ﬁnd $\\frac{m}{n}$") == ("find", "frac", "m", "n")


def problems_of(file: Path) -> list[str]:
    return [json.loads(line)["problem"] for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.assets
def test_real_problems(assets: Path) -> None:
    """Every problem of AIME 2024, AIME 2025 and MATH-500 finds itself under an instruction, and no other."""
    folder = assets / "benchmarks"
    names = {"aime24": "aime24_hf_h4_schema", "aime25": "aime25_nemo_skills", "math500": "math500_simplerl"}
    problems = {name: problems_of(folder / f"{file}.jsonl") for name, file in names.items()}
    for name, texts in problems.items():
        found = Decontaminator(problems, 13)
        for position, text in enumerate(texts):
            assert found.check(position, f"Return your final response within \\boxed{{}}. {text}")
        results = found.results()
        assert results[name].exact == len(texts)
        others = [entry.exact + entry.overlap for other, entry in results.items() if other != name]
        assert others == [0, 0]


@pytest.mark.assets
def test_other_contests_are_not_taken_for_the_benchmarks(assets: Path) -> None:
    """AMC 2023 shares AIME's closing formula with ten of its 40 problems, and not one problem."""
    folder = assets / "benchmarks"
    found = Decontaminator({"aime24": problems_of(folder / "aime24_hf_h4_schema.jsonl")}, 13)
    alone = Decontaminator({"aime25": problems_of(folder / "aime25_nemo_skills.jsonl")}, 13)
    texts = (folder / "amc23_simplerl.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in texts]
    for position, row in enumerate(rows):
        question = row.get("problem") or row["question"]
        assert not found.check(position, question)
        assert not alone.check(position, question)
    assert found.results()["aime24"].formulaic == 10


def test_the_miniature_trains_on_no_problem_of_its_benchmark() -> None:
    """Disjoint as made, and the count of zero is one that can be another: a planted problem is found."""
    problems = [row["problem"] for row in benchmark_rows(60, (2, 3), seed=20)]
    rows = [row["conversations"][0]["value"] for row in training_rows(2000, (2, 3), seed=10, slip=0)]
    found = Decontaminator({"tiny-sums": problems}, 13)
    assert not any(found.check(position, question) for position, question in enumerate(rows))
    assert found.check(2000, problems[7])
    assert found.results()["tiny-sums"].exact == 1
