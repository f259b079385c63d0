"""Golds: what a dollar in one means, all bad ones named before anything is spent, the shipped ones all right."""

import json
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

from essence.errors import InputError
from essence.evaluation.benchmarks import read_problems
from essence.evaluation.golds import check_golds
from essence.evaluation.graders import GRADERS, gold_as_latex
from essence.evaluation.graders_apart import is_installed
from essence.evaluation.grading_pool import Item, grade_all
from essence.plan.experiment import EXPERIMENTS
from essence.settings import BenchmarkSettings
from essence.settings.toml import read_toml
from support.project import PROJECT

OWN = ("math-verify", "lighteval-0.10")
SHIPPED = {
    "aime24": ("aime24_hf_h4_schema.jsonl", 30, {}),
    "aime25": ("aime25_nemo_skills.jsonl", 30, {"answer_field": "expected_answer"}),
    "amc23": ("amc23_simplerl.jsonl", 40, {"problem_field": "problem"}),
    "gsm8k": ("gsm8k_test_openai.jsonl", 1319, {}),
    "math500": ("math500_simplerl.jsonl", 500, {}),
}


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"\$32,\!348", ["32348", r"32,\!348", r"\$32{,}348"], ["32", "348"]),
        (r"\$18.90", ["18.90", "18.9", r"\$18.90"], ["18", "90"]),
        (r"\$36", ["36", r"\$36"], ["3", "6"]),
        ("$36", ["36"], ["3"]),
        ("36$", ["36"], ["6"]),
        (r"\$x = 4 + y", ["x = 4 + y"], ["4"]),
        ("$x = 4 + y", ["x = 4 + y"], ["4"]),
        (r"3\$ \text{ or } 5\$", ["3, 5", r"3\$ \text{ or } 5\$"], ["5", "3"]),
        (r"\$5 \text{ and } \$6", ["5, 6"], ["6"]),
        ("$36$", ["36"], ["6"]),
        (r"$\$36$", ["36"], ["6"]),
        (r"\(36\)", ["36"], ["6"]),
        (r"\[36\]", ["36"], ["6"]),
        ("it costs $5", ["5"], ["6"]),
    ],
)
@pytest.mark.parametrize("grader", OWN)
def test_a_dollar_that_delimits_nothing_is_a_currency_sign(
    grader: str, gold: str, right: list[str], wrong: list[str]
) -> None:
    def correct(answer: str) -> bool:
        return GRADERS[grader](gold, f"So it is $\\boxed{{{answer}}}$.").correct

    assert [answer for answer in right if not correct(answer)] == []
    assert [answer for answer in wrong if correct(answer)] == []


def test_delimiters_that_are_there_are_kept() -> None:
    for gold in ("42", "$3$ and $4$", "$ 36 $", "$$ 36 $$", r"\(x\)", r"\boxed{36}", "-7"):
        assert gold_as_latex(f" {gold} ") == gold
    assert gold_as_latex(r"\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}").startswith(r"$\begin")
    assert gold_as_latex("$5-$7") == r"$\$5-\$7$"


def test_all_unreadable_golds_are_named_at_once() -> None:
    golds = [
        Item("42", "", "line 1"),
        Item("", "", "line 2"),
        Item(r"\frac{1}{2}", "", "line 3"),
        Item("?!", "", "line 4"),
    ]
    with pytest.raises(InputError) as caught:
        check_golds(golds, {"lighteval-0.10": 20.0}, 1)
    assert "line 2: the grader lighteval-0.10 cannot read the gold answer ''; line 4: " in str(caught.value)
    assert "line 1" not in str(caught.value) and "line 3" not in str(caught.value)
    check_golds(golds[::2], {"lighteval-0.10": 20.0}, 1)


def gold_texts(folder: Path, benchmark: str, expected: int, changes: dict[str, str]) -> list[str]:
    table = read_toml(EXPERIMENTS / "benchmarks" / f"{benchmark}.toml")["benchmarks"][benchmark]
    fields = {name: table[name] for name in ("problem_field", "answer_field", "answer_type", "prompt")} | changes
    golds = [p.gold for p in read_problems(folder, BenchmarkSettings(name=benchmark, problems=None, **fields))]
    assert len(golds) == expected
    return golds


def not_right(golds: Iterable[str], grader: str) -> list[str]:
    """Golds that are not their own right answers, boxed; each grader in a process that finds its own version."""
    if not is_installed(grader):
        pytest.skip(f"{grader} is not installed: locks/install.sh cpu dev {grader}")
    items = [Item(gold, f"\\boxed{{{gold}}}", gold) for gold in sorted(set(golds))]
    with closing(grade_all(items, grader, timeout_s=20.0, workers=1)) as verdicts:
        return [item.gold for item, verdict in zip(items, verdicts, strict=True) if not verdict.correct]


@pytest.mark.assets
@pytest.mark.parametrize("benchmark", SHIPPED)
@pytest.mark.parametrize("grader", GRADERS)
def test_every_shipped_gold_is_its_own_right_answer(assets: Path, tmp_path: Path, benchmark: str, grader: str) -> None:
    name, expected, changes = SHIPPED[benchmark]
    (tmp_path / name).write_bytes((assets / "benchmarks" / name).read_bytes())
    assert not_right(gold_texts(tmp_path, benchmark, expected, changes), grader) == []


@pytest.mark.parametrize("grader", GRADERS)
def test_golds_of_each_kind_are_their_own_right_answers(grader: str) -> None:
    """A piece of MATH-500 that is always here."""
    golds = json.loads((PROJECT / "tests" / "cases" / "math500_golds.json").read_text(encoding="utf-8"))
    assert len(golds) == 40
    assert not_right(golds, grader) == []
