"""Training questions that are evaluation problems: the same text, or a run of words in common.

*Exact*: the problem is in the question as whole sentences, so an instruction before or after it hides nothing.
Letter case, white space, punctuation and LaTeX's braces, dollars and backslashes do not count; numbers, words and the
signs `+ - * / ^ = < >` do. *Overlap*: `overlap_words` words in a row (runs of letters or digits) of a problem are in
the question. A run with eight words in a row that are in three problems or more, such as the closing formula of AIME
("where m and n are relatively prime positive integers"), marks no problem; a question that shares only such runs is
counted as *formulaic* and never removed.

Only questions are compared: an answer that quotes a problem belongs to a question that does.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from essence.data.row_files import read_rows
from essence.data.row_records import Contamination, How, SharedProblem
from essence.errors import InputError, nearest

FORMULA_WORDS = 8
FORMULA_PROBLEMS = 3
EXAMPLES_KEPT = 5
SENTENCE_END = "|"
_WORD = re.compile(r"[^\W_]+")
_TOKEN = re.compile(r"[^\W_]+|[-+*/^=<>]|[.?!](?=\s|$)|\n\s*\n")


@dataclass(frozen=True)
class Problem:
    """One evaluation problem, ready to be looked for."""

    benchmark: str
    number: int
    """Position in its benchmark, from 0."""
    sentences: str
    words: tuple[str, ...]


@dataclass
class Found:
    """What was found of one benchmark."""

    problems: int
    rows: Counter[How] = field(default_factory=Counter)
    examples: list[SharedProblem] = field(default_factory=list)

    def add(self, example: SharedProblem) -> None:
        """Count a row; the first few that mark a problem are kept."""
        self.rows[example.how] += 1
        if example.how != "formulaic" and len(self.examples) < EXAMPLES_KEPT:
            self.examples.append(example)

    def record(self) -> Contamination:
        rows = self.rows
        return Contamination(
            problems=self.problems,
            exact=rows["exact"],
            overlap=rows["overlap"],
            formulaic=rows["formulaic"],
            examples=self.examples,
        )


class Decontaminator:
    """Looks for the problems of some benchmarks in one question after the other, and counts."""

    def __init__(self, questions: Mapping[str, Sequence[str]], overlap_words: int) -> None:
        """`questions`: benchmark -> its problems."""
        self._overlap_words = overlap_words
        self._found = {name: Found(len(texts)) for name, texts in questions.items()}
        problems = [
            Problem(name, number, sentences(text), words(text))
            for name, texts in questions.items()
            for number, text in enumerate(texts)
        ]
        self._short = [problem for problem in problems if len(problem.words) < overlap_words]
        self._runs: dict[str, list[Problem]] = defaultdict(list)
        for problem in problems:
            for run in set(runs(problem.words, overlap_words)):
                self._runs[run].append(problem)
        self._formulas = _formulas(problems)

    def check(self, position: int, question: str) -> bool:
        """Count a row's question; whether it is an evaluation problem, exactly or by overlap."""
        matches = self._matches(question)
        for benchmark in {problem.benchmark for problem, _, _ in matches}:
            of_benchmark = [match for match in matches if match[0].benchmark == benchmark]
            problem, how, shared = min(of_benchmark, key=lambda match: get_args(How).index(match[1]))
            example = SharedProblem(position=position, problem=problem.number, how=how, shared=shared)
            self._found[benchmark].add(example)
        return any(how != "formulaic" for _, how, _ in matches)

    def results(self) -> dict[str, Contamination]:
        """By benchmark."""
        return {name: found.record() for name, found in self._found.items()}

    def _matches(self, question: str) -> list[tuple[Problem, How, str]]:
        """(problem, how, what is shared) for every problem that has something in common with the question."""
        shared: dict[tuple[str, int], tuple[Problem, str]] = {}
        telling: set[tuple[str, int]] = set()
        of_question = words(question)
        for run in runs(of_question, self._overlap_words):
            for problem in self._runs.get(run, ()):
                key = (problem.benchmark, problem.number)
                shared.setdefault(key, (problem, run))
                if key not in telling and not self._is_formula(run):
                    telling.add(key)
                    shared[key] = (problem, run)
        spaced = _spaced(of_question)
        likely = [problem for problem in self._short if _spaced(problem.words) in spaced]
        if not shared and not likely:
            return []
        text = sentences(question)
        matches: list[tuple[Problem, How, str]] = [
            (problem, "exact", problem.sentences) for problem in likely if problem.sentences in text
        ]
        for key, (problem, run) in shared.items():
            exact = problem.sentences in text
            matches.append((problem, "exact" if exact else "overlap" if key in telling else "formulaic", run))
        return matches

    def _is_formula(self, run: str) -> bool:
        return any(part in self._formulas for part in runs(run.split(" "), FORMULA_WORDS))


def sentences(text: str) -> str:
    """A text as words and signs, with a bar at each end of a sentence: `| what is 2 + 2 |`."""
    tokens = [SENTENCE_END]
    for found in _TOKEN.findall(_folded(text)):
        part = SENTENCE_END if found in {".", "?", "!"} or found.isspace() else found
        if part != SENTENCE_END or tokens[-1] != SENTENCE_END:
            tokens.append(part)
    return " ".join(tokens if tokens[-1] == SENTENCE_END else [*tokens, SENTENCE_END])


def words(text: str) -> tuple[str, ...]:
    """The runs of letters or digits of a text, in lower case."""
    return tuple(_WORD.findall(_folded(text)))


def runs(of: Sequence[str], length: int) -> Iterator[str]:
    """Every `length` words in a row."""
    return (" ".join(of[start : start + length]) for start in range(len(of) - length + 1))


def _spaced(of: Sequence[str]) -> str:
    return f" {' '.join(of)} "


def read_questions(folder: Path, problem_field: str) -> list[str]:
    """The problems of a benchmark's files; InputError where a row has no text in that field."""
    questions = []
    for number, row in enumerate(read_rows(folder)):
        text = row.get(problem_field) if isinstance(row, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            known = list(map(str, row)) if isinstance(row, Mapping) else []
            raise InputError(
                f"{folder}, problem {number}: no text in field '{problem_field}'{nearest(problem_field, known)} "
                f"(fields found: {', '.join(known) or 'none'})",
                "problem_field of the benchmark's pin names it",
            )
        questions.append(text)
    return questions


def _formulas(problems: Iterable[Problem]) -> set[str]:
    """Runs of words that are in several problems of different text, so that they mark none."""
    texts: dict[str, set[str]] = defaultdict(set)
    for problem in problems:
        for run in set(runs(problem.words, FORMULA_WORDS)):
            texts[run].add(problem.sentences)
    return {run for run, having in texts.items() if len(having) >= FORMULA_PROBLEMS}


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
