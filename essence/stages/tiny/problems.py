"""Additions with worked reasoning traces, as rows of the Bespoke-Stratos format and as a benchmark.

A thought adds column by column from the right (`7+9+0=16` is digit, digit, carry, total of a column; the total's first
digit is the next carry), states the result near the middle of the row, checks it with the numbers exchanged, and
concludes. The solution is one sentence with a box:

    What is 706 + 657?

    From the right.  6+7+0=13  0+5+1=06  7+6+0=13  That gives 1363.
    Wait, let me check the other way round.  7+6+0=13  5+0+1=06  6+7+0=13  It is 1363 again, so the sum is 1363.

    The sum is \\boxed{1363}.

A *slip* makes a trace as a weak model would write it: of the right form, but each column's total is off by a random
amount, and the result and the check follow from the wrong totals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypedDict

from essence.errors import InputError
from essence.files import sha256_text

Part = Literal["train", "benchmark"]
BENCHMARK_SHARE = 8
"""One in this number of problems belongs to the benchmark; which ones depends on their numbers alone, not on a seed."""
MISSES_ALLOWED = 1000
"""Draws in a row that bring nothing new, after which the problems of a size count as used up."""
LARGEST_TOTAL = 19
"""Of one column: 9 + 9 + 1."""
SYSTEM = "Think step by step, look at your work a second time, then give the answer in a box."


Turn = TypedDict("Turn", {"from": str, "value": str})
"""Who speaks, `user` or `assistant`, and what."""


class TrainingRow(TypedDict):
    """A row as Bespoke-Stratos-17k has it."""

    system: str
    conversations: list[Turn]


class BenchmarkRow(TypedDict):
    """A problem as benchmarks are published."""

    id: str
    problem: str
    answer: str


@dataclass(frozen=True)
class Problem:
    """Two numbers of the same number of digits, none with a leading zero."""

    first: int
    second: int

    @property
    def question(self) -> str:
        return f"What is {self.first} + {self.second}?"

    @property
    def answer(self) -> int:
        return self.first + self.second

    @property
    def part(self) -> Part:
        """`a + b` and `b + a` are always in the same part, since a check of one spells out the other."""
        low, high = sorted((self.first, self.second))
        return "benchmark" if int(sha256_text(f"{low}+{high}"), 16) % BENCHMARK_SHARE == 0 else "train"


@dataclass(frozen=True)
class Column:
    """One digit place of an addition."""

    first: int
    second: int
    carry: int
    total: int
    """`first + second + carry` unless there was a slip; 0 to 19."""


def draw_problems(count: int, digits: Sequence[int], seed: int, part: Part) -> list[Problem]:
    """`count` different problems of one part, the number of digits drawn evenly from `digits`.

    Sizes that are used up are left out of the draw; InputError when all are.
    """
    rng, sizes = Random(seed), list(digits)  # noqa: S311 (a data set, not a secret)
    found: dict[Problem, None] = {}
    while len(found) < count:
        size = rng.choice(sizes)
        problem = _draw_new(rng, size, part, found)
        if problem:
            found[problem] = None
            continue
        sizes.remove(size)
        if not sizes:
            raise InputError(
                f"there are about {len(found)} different {part} problems with {min(digits)} to {max(digits)} digits, "
                f"wanted: {count}",
                "raise largest_digits or ask for fewer",
            )
    return list(found)


def _draw_new(rng: Random, size: int, part: Part, found: dict[Problem, None]) -> Problem | None:
    for _ in range(MISSES_ALLOWED):
        problem = Problem(rng.randrange(10 ** (size - 1), 10**size), rng.randrange(10 ** (size - 1), 10**size))
        if problem.part == part and problem not in found:
            return problem
    return None


def add_columns(problem: Problem, rng: Random, slip: int) -> list[Column]:
    """The columns of the addition, from the right; each total is off by -slip to +slip, drawn evenly."""
    columns: list[Column] = []
    carry = 0
    for first, second in zip(_digits(problem.first), _digits(problem.second), strict=True):
        total = first + second + carry + rng.randint(-slip, slip)
        columns.append(Column(first, second, carry, min(max(total, 0), LARGEST_TOTAL)))
        carry = columns[-1].total // 10
    return columns


def stated_result(columns: Sequence[Column]) -> int:
    """The number that the totals spell."""
    ones = sum(column.total % 10 * 10**place for place, column in enumerate(columns))
    return int(ones + columns[-1].total // 10 * 10 ** len(columns))


def thought(columns: Sequence[Column]) -> str:
    """Derivation, check with the numbers exchanged, conclusion."""
    result = stated_result(columns)
    derivation = "\n".join(f"{c.first}+{c.second}+{c.carry}={c.total:02d}" for c in columns)
    check = "\n".join(f"{c.second}+{c.first}+{c.carry}={c.total:02d}" for c in columns)
    return (
        f"From the right.\n\n{derivation}\n\nThat gives {result}.\n\n"
        f"Wait, let me check the other way round.\n\n{check}\n\n"
        f"It is {result} again, so the sum is {result}."
    )


def training_row(problem: Problem, rng: Random, slip: int) -> TrainingRow:
    """A problem with its worked trace."""
    columns = add_columns(problem, rng, slip)
    solution = f"The sum is \\boxed{{{stated_result(columns)}}}."
    answer = (
        f"<|begin_of_thought|>\n\n{thought(columns)}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
    )
    turns: list[Turn] = [{"from": "user", "value": problem.question}, {"from": "assistant", "value": answer}]
    return {"system": SYSTEM, "conversations": turns}


def training_rows(count: int, digits: Sequence[int], seed: int, slip: int) -> list[TrainingRow]:
    """Rows of different problems, none of which is in a benchmark. `slip` changes the traces, not the problems."""
    rng = Random(seed)  # noqa: S311 (a data set, not a secret)
    return [training_row(problem, rng, slip) for problem in draw_problems(count, digits, seed, "train")]


def benchmark_rows(count: int, digits: Sequence[int], seed: int) -> list[BenchmarkRow]:
    """Problems that no training row has."""
    problems = draw_problems(count, digits, seed, "benchmark")
    return [
        {"id": f"{number:04d}", "problem": problem.question, "answer": str(problem.answer)}
        for number, problem in enumerate(problems)
    ]


def _digits(number: int) -> list[int]:
    """Digits from the right."""
    return [int(digit) for digit in reversed(str(number))]
