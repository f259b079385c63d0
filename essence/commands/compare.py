"""`invoke compare A B`: differences in the results of two runs, cells or stages, and their most likely cause."""

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence.errors import RecordError
from essence.evaluation.statistics import Estimate, difference, student_t, student_two_sided
from essence.paths import typed_path
from essence.plan.experiment import PROJECT
from essence.record.archive import unpack
from essence.record.comparison import (
    Chain,
    Difference,
    Value,
    built_on_earlier,
    edited,
    likely_causes,
    merge,
    read_chain,
    result_differences,
)
from essence.record.evaluation_records import GradeResults
from essence.record.plan_record import CellEntry, PlanRecord, read_plan
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import GradeManifest
from essence.text import interval, percent

EXPERIMENT_END = ": "
"""Between an experiment and the name of a cell, which has no colon."""
MOST_NAMED = 6
WITHIN, BEYOND, SAME, UNKNOWN = "within sampling error", "beyond sampling error", "equal", "cannot be told"
AMONG_MANY = "beyond sampling error alone, not among all comparisons"
RETRAINED = "beyond sampling error; how far two trainings differ by chance is not known"
LEVEL = 0.05
"""Chance that the exit code is 1 where two runs differ in nothing but sampling, over all comparisons together."""
ONE_EACH = "Each side was trained once: how far two trainings of one arm differ by chance is not known from these runs."
TRAININGS = ("seed", "unexplained")
"""Causes that leave two trainings of one and the same arm."""


@dataclass(frozen=True)
class Compared:
    """One cell of A against one of B."""

    name: str
    benchmark: str
    """`tiny-sums, best checkpoint`; empty where a side has no score."""
    accuracy: tuple[float | None, float | None]
    change: Estimate | None
    word: str
    p: float = 1.0
    """Two-sided, of this comparison alone; 1 where nothing can be told."""
    retrained: bool = False
    """True when the two sides are trainings of one arm that differ in their seed, or in nothing that is recorded."""

    def as_json(self) -> dict[str, object]:
        return {**vars(self), "change": vars(self.change) if self.change else None}


@dataclass(frozen=True)
class Overall:
    """The mean of all comparisons, which share their problems where they share a benchmark."""

    change: Estimate
    p: float

    @property
    def sentence(self) -> str:
        value = 100 * (self.change.value or 0.0)
        return f"Over all comparisons: B - A is {value:+.1f} points {interval(self.change)}, p = {self.p:.2g}."


@dataclass(frozen=True)
class Side:
    """What one of the two references names: chains of manifests by the name of a cell."""

    reference: str
    cells: dict[str, Chain]
    """With the name of the experiment before it, `bespoke: `, where there are several."""
    run_directory: RunDirectory


def compare(first: str, second: str, as_json: bool, console: Console) -> int:
    """Print differences and likely causes; exit code 1 when a result differs by more than chance, all counted."""
    with ExitStack() as unpacked:
        sides = resolve(first, unpacked), resolve(second, unpacked)
        pairs = pair(*sides)
        roots = sides[0].run_directory, sides[1].run_directory
        likely = [likely_causes(a, b, roots) for _, a, b in pairs]  # reads samples, also those of archives
    edits = {name: edited(side) for name, side in zip("AB", (_all(s) for s in sides), strict=True)}
    accepted = {name: built_on_earlier(_all(side)) for name, side in zip("AB", sides, strict=True)}
    scores = (_scores(*one, causes) for one, causes in zip(pairs, likely, strict=True))
    compared = allow_for_number([one for each in scores for one in each])
    overall = over_all([(a, b) for _, a, b in pairs])
    numbers = [(name, *row) for name, a, b in pairs for row in result_differences(a, b)]
    causes = merge([cause for found in likely for cause in found])
    alone = only_in(pairs, *sides)
    if as_json:
        record = {
            "results": [one.as_json() for one in compared],
            "overall": None if overall is None else {**vars(overall), "change": vars(overall.change)},
            "causes": [cause.as_json() for cause in causes],
            "numbers": [dict(zip(("cell", "stage", "number", "A", "B"), row, strict=True)) for row in numbers],
            "edited": edits,
            "accepted": accepted,
            "only_in": alone,
        }
        sys.stdout.write(json.dumps(record, indent=2, allow_nan=False) + "\n")
    else:
        _print(compared, overall, causes, console)
        _print_numbers(numbers, console)
        for side, names in alone.items():
            if names:
                more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
                console.print(Text(f"only in {side}, not compared: {', '.join(names[:MOST_NAMED])}{more}"))
        for side, names in accepted.items():
            if names:
                console.print(Text(f"{side} is built on stages of earlier code (--accept-earlier): {', '.join(names)}"))
        for side, stages in edits.items():
            for name in stages:
                console.print(
                    Text(f"in {side}, {name} was edited after it was written: see invoke verify", style="bold red")
                )
    return int(any(one.word == BEYOND for one in compared))


def _all(side: Side) -> Chain:
    return {f"{name} {place}": m for name, chain in side.cells.items() for place, m in chain.items()}


def resolve(reference: str, unpacked: ExitStack) -> Side:
    """A run directory, an experiment in it, a stage's folder, an archive; `:TEXT` takes cells with TEXT in their name.

    unpacked: removes what an archive was unpacked to.

    Raises:
        RecordError: nothing is there, or the text fits no cell.
    """
    path, _, wanted = reference.partition(":")
    folder = typed_path("folder", path) if path else PROJECT / "runs"
    if folder.is_file() and folder.name != "manifest.json":
        temporary = Path(unpacked.enter_context(tempfile.TemporaryDirectory(prefix="essence-compare-")))
        folder, wrong = unpack(folder, temporary)
        if wrong:
            raise RecordError(f"{path}: {wrong[0]}: see invoke verify")
    folder = folder.parent if folder.name == "manifest.json" else folder
    if (folder / "manifest.json").is_file():
        root = RunDirectory(folder.parent.parent)
        chain = read_chain(root, folder.name, folder.name.rsplit("-", 1)[0])
        return Side(reference, {folder.name: chain}, root)
    root = RunDirectory(folder.parent if (folder / "plan.json").is_file() else folder)
    cells = dict(_cells(folder, root))
    found = {name: chains for name, chains in cells.items() if wanted in name}
    if not found:
        names = ", ".join(sorted(cells)[:6])
        raise RecordError(f"{reference}: no finished cell {f'with {wanted!r} in its name ' if wanted else ''}is there"
                          + (f" (there are: {names})" if names else ": name a run directory"))  # fmt: skip
    return Side(reference, found, root)


def _cells(folder: Path, root: RunDirectory) -> Iterator[tuple[str, Chain]]:
    """Cells and baselines of an experiment, or of all in a run directory, that have anything finished."""
    plans = [folder / "plan.json"] if (folder / "plan.json").is_file() else sorted(folder.glob("*/plan.json"))
    for file in plans:
        before = f"{file.parent.name}{EXPERIMENT_END}" if len(plans) > 1 else ""
        found = _cells_of(root, read_plan(file))
        yield from ((before + name, chain) for name, chain in found)


def _cells_of(run_directory: RunDirectory, plan: PlanRecord) -> Iterator[tuple[str, Chain]]:
    for entry in plan.entries:
        trained = isinstance(entry, CellEntry)
        chains = read_chain(run_directory, entry.stages["train"], "train") if trained else {}
        for evaluation in entry.evaluations:
            chains |= read_chain(run_directory, evaluation.grade, f"grade {evaluation.name}")
        if chains:
            yield entry.title if trained else f"{entry.title} ({entry.protocol})", chains


def pair(first: Side, second: Side) -> list[tuple[str, Chain, Chain]]:
    """Cells of the same name, in the same experiment where several have one; where one is left on each side, these."""
    names: dict[str, str] = {}
    for word in (str, _without_experiment, lambda _: "left"):
        left = _by(word, [name for name in first.cells if name not in names])
        right = _by(word, [name for name in second.cells if name not in names.values()])
        names |= {a[0]: right[key][0] for key, a in left.items() if len(a) == len(right.get(key, [])) == 1}
    if not names:
        raise RecordError(
            f"{first.reference} and {second.reference} have no cell in common: name one on each side, as in "
            f"{first.reference}:{next(iter(first.cells))}"
        )
    return [(a if a == b else f"{a} | {b}", first.cells[a], second.cells[b]) for a, b in names.items()]


def _without_experiment(name: str) -> str:
    return name.rpartition(EXPERIMENT_END)[2]


def _by(word: Callable[[str], str], names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(word(name), []).append(name)
    return found


def only_in(pairs: list[tuple[str, Chain, Chain]], first: Side, second: Side) -> dict[str, list[str]]:
    """Cells of either side that nothing was compared with."""
    used = {id(chain) for _, a, b in pairs for chain in (a, b)}
    sides = {"A": first, "B": second}
    return {name: [n for n, chain in side.cells.items() if id(chain) not in used] for name, side in sides.items()}


def allow_for_number(compared: Sequence[Compared]) -> list[Compared]:
    """Holm's procedure: of many comparisons some are beyond their own interval by chance alone."""
    beyond = sorted((one for one in compared if one.word == BEYOND), key=lambda one: one.p)
    tested = sum(one.word in (BEYOND, WITHIN) for one in compared)
    kept: set[tuple[str, str]] = set()
    for place, one in enumerate(beyond):
        if one.p > LEVEL / (tested - place):
            break
        kept.add((one.name, one.benchmark))

    def corrected(one: Compared) -> Compared:
        if one.word != BEYOND:
            return one
        word = AMONG_MANY if (one.name, one.benchmark) not in kept else RETRAINED if one.retrained else BEYOND
        return replace(one, word=word)

    return [corrected(one) for one in compared]


def over_all(pairs: Sequence[tuple[Chain, Chain]]) -> Overall | None:
    """B minus A over every comparison: differences of one problem are averaged first; None without two problems."""
    found: dict[tuple[str, str], list[float]] = {}
    confidence = 1.0 - LEVEL
    for first, second in pairs:
        for place in _graded(first, second):
            sides = [_shares(graded) for graded in _both(first, second, place)]
            for problem in sides[0].keys() & sides[1].keys():
                benchmark = place.removeprefix("grade ").split()[0]
                found.setdefault((benchmark, problem), []).append(sides[1][problem] - sides[0][problem])
    values = np.array([np.mean(found[key]) for key in sorted(found)])
    if len(values) < 2:
        return None
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    margin = student_t(confidence, len(values) - 1) * error
    change = Estimate(mean, error, mean - margin, mean + margin, len(values), "Student t over problems")
    return Overall(change, _p(mean, error, len(values)))


def _graded(first: Chain, second: Chain) -> list[str]:
    return [place for place in first if len(_both(first, second, place)) == 2]


def _both(first: Chain, second: Chain, place: str) -> list[GradeResults]:
    """The results at a place of both chains, as far as grade stages are there."""
    manifests = (chain[place] for chain in (first, second) if place in chain)
    return [manifest.results for manifest in manifests if isinstance(manifest, GradeManifest)]


def _shares(results: GradeResults) -> dict[str, float]:
    return {one.problem: one.correct / one.samples for one in results.per_problem if one.samples}


def _p(value: float, error: float, problems: int) -> float:
    """Two-sided; where all problems differ by the same amount, that of as many equal signs, since no error is known."""
    if error:
        return student_two_sided(value / error, problems - 1)
    return 2.0 ** (1 - problems) if value else 1.0


def _scores(name: str, first: Chain, second: Chain, likely: Sequence[Difference]) -> Iterator[Compared]:
    places = _graded(first, second)
    if not places:
        yield Compared(name, "", (None, None), None, UNKNOWN)
    causes = {cause.kind for cause in likely}
    trained = [_trainings(chain) for chain in (first, second)]
    retrained = trained[0] != trained[1] and causes <= set(TRAININGS)
    for place in places:
        a, b = _both(first, second, place)
        change, word, p = _change(a, b)
        yield Compared(name, place.removeprefix("grade "), (a.accuracy, b.accuracy), change, word, p, retrained)


def _trainings(chain: Chain) -> set[str]:
    return {manifest.identity.key for manifest in chain.values() if manifest.identity.stage == "train"}


def _change(first: GradeResults, second: GradeResults) -> tuple[Estimate | None, str, float]:
    """B minus A on the problems that both have, whether that alone is more than chance, and its p."""
    shares = [_shares(results) for results in (first, second)]
    problems = [problem for problem in shares[0] if problem in shares[1]]
    if not problems:
        return None, UNKNOWN, 1.0
    matrices = [[[side[problem] for problem in problems]] for side in shares]
    estimate = difference(matrices[1], matrices[0], first.confidence)
    if matrices[0] == matrices[1]:
        return estimate, SAME, 1.0
    if len(problems) == 1:  # no interval, so any difference may be chance
        return estimate, UNKNOWN, 1.0
    p = _p(estimate.value or 0.0, estimate.standard_error or 0.0, len(problems))
    if estimate.low is None or estimate.high is None:
        return estimate, BEYOND if p <= LEVEL else UNKNOWN, p
    return estimate, WITHIN if estimate.low <= 0.0 <= estimate.high else BEYOND, p


def _print_numbers(numbers: list[tuple[str, str, str, Value, Value]], console: Console) -> None:
    """Of one pair of cells all that differ; of a matrix how many, since the JSON has them."""
    cells = dict.fromkeys(row[0] for row in numbers)
    if not numbers:
        return
    console.print()
    if len(cells) > 1:
        console.print(f"{len(numbers)} other numbers differ in {len(cells)} cells: --json lists them", highlight=False)
        return
    table = Table(title="Other numbers that differ", title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in ("Stage", "Number", "A", "B"):
        table.add_column(column)
    for _, *row in numbers:
        table.add_row(*(Text(f"{value:.6g}" if isinstance(value, float) else str(value)) for value in row))
    console.print(table)


def _print(compared: Sequence[Compared], overall: Overall | None, causes: list[Difference], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("Cell", "Benchmark", "A", "B", "B - A", ""):
        table.add_column(column, overflow="fold")
    for one in compared:
        change = "" if one.change is None else f"{100 * (one.change.value or 0.0):+.1f} {interval(one.change)}"
        a, b = (percent(value) for value in one.accuracy)
        table.add_row(*(Text(text) for text in (one.name, one.benchmark, a, b, change, one.word)))
    console.print(table)
    console.print()
    if overall and len(compared) > 1:
        console.print(Text(overall.sentence))
    if any(one.word == RETRAINED for one in compared):
        console.print(Text(ONE_EACH), soft_wrap=True)
    if not causes:
        console.print("No difference in settings, inputs, software, hardware or data.", highlight=False)
        return
    console.print(Text("Likely causes, the likeliest first", style="bold"))
    for number, cause in enumerate(causes, 1):
        console.print(Text(f"{number:3}. {cause.sentence}"), soft_wrap=True)
