"""The picture for a paper: accuracy against the tokens trained on, a curve for each arm of one comparison, as numbers.

`picture_drawing.py` draws it; `picture_csv` is the same for other programs. An experiment has one for each pair, data
set, supervision, protocol, benchmark and checkpoint in which two arms or more were graded.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from essence.evaluation.statistics import Estimate
from essence.report.results.records import FULL, Arm, CellResult, Evaluation, Group, GroupKey, Results
from essence.settings import first_tokens, is_whole, rollout_tokens
from essence.text import proportion

COLUMNS = (
    "picture", "dataset", "teacher", "student", "sections", "protocol", "benchmark", "checkpoint", "curve", "span",
    "lsp", "train_rows", "token_budget", "tokens_an_epoch", "labels_an_epoch", "tokens_trained_on", "accuracy",
    "low", "high", "trainings", "problems", "method",
)  # fmt: skip
PICTURE = "accuracy-by-tokens"
"""Stem of its files."""
WHOLE, UNTRAINED = "whole rows", "untrained student"


@dataclass(frozen=True)
class Point:
    """One arm: trainings of a span at a proportion."""

    curve: str
    """What it is joined with: its span, and what else sets its rows apart."""
    span: str
    lsp: float
    train_rows: int | None
    token_budget: int | None
    tokens_an_epoch: float | None
    """Of the training rows as they are read, mean over trainings."""
    labels_an_epoch: float | None
    tokens: float
    """Trained on: those of all epochs."""
    accuracy: Estimate
    trainings: int

    @property
    def is_whole(self) -> bool:
        """True for whole rows, all of them."""
        return self.token_budget is None and is_whole(self.lsp, self.span)

    @property
    def name(self) -> str:
        """`random-span 0.50`; `first-512`."""
        return self.span if self.lsp == FULL else f"{self.span} {proportion(self.lsp)}"


@dataclass(frozen=True)
class Picture:
    """One comparison on one benchmark."""

    name: str
    """Stem of its files in `figures/`."""
    key: GroupKey
    """Of its first group: what all have in common is data set, pair, sections and protocol."""
    evaluation: Evaluation
    curves: dict[str, tuple[Point, ...]]
    """Each on equal rows, from the fewest tokens to the most; whole rows are the end of each that leads there."""
    matched: dict[int, tuple[Point, ...]]
    """At one number of tokens each: by `token_budget`, in the order of the plan."""
    whole: Point | None
    """None where there are none, or where curves are of several numbers of rows, each with whole rows of its own."""
    untrained: Estimate | None
    confidence: float | None

    @property
    def title(self) -> str:
        return f"Accuracy against tokens trained on, {self.evaluation[0]}"

    @property
    def equal_rows(self) -> bool:
        """True where all curves are of as many rows."""
        return len({point.train_rows for curve in self.curves.values() for point in curve}) == 1

    @property
    def points(self) -> tuple[Point, ...]:
        """Every arm once: those of the curves, then those of equal tokens."""
        groups = (*self.curves.values(), *self.matched.values())
        return tuple(dict.fromkeys(point for points in groups for point in points))

    @property
    def subject(self) -> str:
        """`bespoke, qwen3-8b → qwen3-4b-base, p+cot+a supervised, corrected protocol, best checkpoint`."""
        key = self.key
        return f"{key.title}, {key.sections} supervised, {key.protocol} protocol, {self.evaluation[1]} checkpoint"


def pictures(results: Results) -> list[Picture]:
    """Those that there is something to compare in, in the order of the plan; numbered where there are several."""
    compared: dict[tuple[str, ...], list[Group]] = {}
    for group in results.groups:
        key = group.key
        place = (key.dataset, key.teacher, key.student, key.sections, key.protocol)
        compared.setdefault(place, []).append(group)
    found = [
        (groups, evaluation)
        for groups in compared.values()
        for evaluation in dict.fromkeys(one for group in groups for one in group.evaluations)
        if sum(any(evaluation in arm.pooled for arm in group.arms) for group in groups) > 1
    ]
    names = [f"{PICTURE}-{number}" for number in range(1, len(found) + 1)] if len(found) > 1 else [PICTURE]
    made = (_picture(results, name, *one) for name, one in zip(names, found, strict=False))
    return [picture for picture in made if picture.curves or picture.matched]


def _picture(results: Results, name: str, groups: Sequence[Group], evaluation: Evaluation) -> Picture:
    points = [
        point for group in groups for arm in group.arms if (point := _point(group, arm, evaluation, len(groups) > 1))
    ]
    unmatched = [point for point in points if point.token_budget is None]
    budgets = dict.fromkeys(point.token_budget for point in points if point.token_budget is not None)
    whole = [point for point in unmatched if point.is_whole]
    untrained = results.baseline("student", groups[0].key, evaluation[0])
    scores = (score for group in groups for cell in group.cells if (score := cell.score(evaluation)))
    return Picture(
        name=name,
        key=groups[0].key,
        evaluation=evaluation,
        curves=_curves(unmatched, whole),
        matched={budget: tuple(point for point in points if point.token_budget == budget) for budget in budgets},
        whole=whole[0] if whole and len({point.train_rows for point in unmatched}) == 1 else None,
        untrained=untrained.accuracy if untrained else None,
        confidence=next((score.confidence for score in scores if score.confidence), None),
    )


def _curves(points: Iterable[Point], whole: Iterable[Point]) -> dict[str, tuple[Point, ...]]:
    """Whole rows, which are planned once, end every curve of as many rows whose span is the whole row at LSP 1.0."""
    whole_of: dict[int | None, Point] = {}
    for point in whole:
        whole_of.setdefault(point.train_rows, point)
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.curve, []).append(point)
    for curve in found.values():
        first = curve[0]
        leads_there = is_whole(FULL, first.span) and not any(point.is_whole for point in curve)
        if leads_there and first.train_rows in whole_of:
            curve.append(whole_of[first.train_rows])
    return {name: tuple(sorted(curve, key=lambda point: point.tokens)) for name, curve in found.items()}


def _point(group: Group, arm: Arm, evaluation: Evaluation, several: bool) -> Point | None:
    """None where it is not graded, or its record does not say how many tokens it read."""
    pooled, key = arm.pooled.get(evaluation), group.key
    counted = [
        (read.tokens, read.supervised_tokens, _epochs(cell)) for cell in arm.cells if (read := cell.train.trained_rows)
    ]
    known = [(tokens, labels, epochs) for tokens, labels, epochs in counted if tokens]
    if pooled is None or pooled.accuracy.value is None or not known or not several:
        return None
    labels = [one for _, one, _ in known if one is not None]
    curve = "first-k" if first_tokens(key.span) else "rollout-k" if rollout_tokens(key.span) else key.span
    return Point(
        curve=f"{curve}, {key.train_rows:,} rows" if key.train_rows else curve,
        span=key.span,
        lsp=arm.lsp,
        train_rows=key.train_rows,
        token_budget=key.token_budget,
        tokens_an_epoch=sum(tokens for tokens, _, _ in known) / len(known),
        labels_an_epoch=sum(labels) / len(labels) if labels else None,
        tokens=sum(tokens * epochs for tokens, _, epochs in known) / len(known),
        accuracy=pooled.accuracy,
        trainings=len(pooled.scores),
    )


def _epochs(cell: CellResult) -> float:
    training = cell.train.training
    return (training.settings.resolved.optimizer.epochs if training else None) or 1.0


def picture_csv(picture: Picture) -> str:
    """A line for each point, and one for the untrained student; numbers in full, empty where nothing is known."""
    written = io.StringIO()
    lines = csv.DictWriter(written, COLUMNS, lineterminator="\n")
    lines.writeheader()
    key = picture.key
    common: dict[str, object] = {
        "picture": picture.name, "dataset": key.dataset, "teacher": key.teacher, "student": key.student,
        "sections": key.sections, "protocol": key.protocol, "benchmark": picture.evaluation[0],
        "checkpoint": picture.evaluation[1],
    }  # fmt: skip
    for point in picture.points:
        curve = WHOLE if point.is_whole else point.curve
        lines.writerow({**common, **_point_columns(point), "curve": curve, **_accuracy_columns(point.accuracy)})
    if picture.untrained:
        lines.writerow({**common, "checkpoint": "model", "curve": UNTRAINED, **_accuracy_columns(picture.untrained)})
    return written.getvalue()


def _point_columns(point: Point) -> dict[str, object]:
    return {
        "span": point.span, "lsp": point.lsp, "train_rows": point.train_rows, "token_budget": point.token_budget,
        "tokens_an_epoch": point.tokens_an_epoch, "labels_an_epoch": point.labels_an_epoch,
        "tokens_trained_on": point.tokens, "trainings": point.trainings,
    }  # fmt: skip


def _accuracy_columns(found: Estimate) -> dict[str, object]:
    return {
        "accuracy": found.value, "low": found.low, "high": found.high, "problems": found.n, "method": found.method,
    }  # fmt: skip
