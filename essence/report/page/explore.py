"""What the charts of the page are drawn from: one compact JSON object for all groups, embedded in report.html."""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import NotRequired, TypedDict

from markupsafe import Markup

from essence.evaluation.statistics import Estimate
from essence.report.claims.definition import load_rivals
from essence.report.page import reported
from essence.report.page.curves import CURVE_POINTS, Curve, loss_curves
from essence.report.page.endings import ending_shares
from essence.report.page.svg import lsp_role
from essence.report.results.records import Arm, Evaluation, Group, GroupKey, Results
from essence.text import proportion

POINTS = 60
"""Of one loss curve; the figures beside the page have more."""
SCRIPTS = ("shared.js", "charts.js", "samples.js")


Interval = list[float | None]
"""[value, low, high], or [value]; [null] where nothing was measured."""
CellLink = tuple[str, str, float | None] | tuple[str, str, float | None, str]
"""(cell, its manifest, its own number), and the id of its completions where it has any."""


class Facets(TypedDict):
    """What sets a group apart, by the facets of the page's selects."""

    dataset: str
    pair: str
    protocol: str
    span: str
    sections: str
    rows: str


class ScorePoint(TypedDict):
    """One arm on one benchmark."""

    lsp: float
    planned: int
    accuracy: Interval
    retention: Interval
    length: Interval
    cap: Interval
    stopped: Interval
    """Share of the completions that stopped by themselves."""
    endings: dict[str, float | None]
    """Finish reason -> share of the completions."""
    cells: list[CellLink]


class Scores(TypedDict):
    """One benchmark and checkpoint of a group."""

    benchmark: str
    checkpoint: str
    arms: list[ScorePoint]
    student: NotRequired[float | None]
    """Accuracy of the untrained student, where it was graded."""
    teacher: NotRequired[float | None]


class CostPoint(TypedDict):
    """What an arm cost, as ratios to LSP 1.0."""

    lsp: float
    planned: int
    load: str
    """How much of the machine the trainings had."""
    time: Interval
    memory: Interval
    flops: Interval
    energy: Interval
    unlike: list[str]
    """Of these, the costs that have no ratio, as trainings ran unlike."""
    cells: list[CellLink]


class LossCurve(TypedDict):
    """One training."""

    lsp: str
    role: str
    """Name of its colour."""
    points: list[tuple[float, float | None]]
    """(step, loss)."""


class ChartGroup(Facets):
    """One group of cells."""

    scores: list[Scores]
    costs: list[CostPoint]
    training: list[LossCurve]
    validation: list[LossCurve]


class PaperMarks(TypedDict):
    """Where the paper's own values stand."""

    setting: str
    retention: tuple[float, float, str]
    """(LSP, value, in words)."""
    cost: tuple[float, float, str]


class RivalCurve(TypedDict):
    """A published curve of others."""

    label: str
    source: str
    points: list[list[float]]


class ExploreData(TypedDict):
    """What charts.js reads."""

    groups: list[ChartGroup]
    paper: PaperMarks
    rivals: list[RivalCurve]


def explore_data(results: Results) -> ExploreData:
    """All that the charts show: groups with their arms and loss curves, marks of the paper, curves of others."""
    return {
        "groups": [_group(results, group) for group in results.groups],
        "paper": {
            "setting": reported.SETTING,
            "retention": (reported.RETENTION.lsp, reported.RETENTION.value, reported.RETENTION.words),
            "cost": (reported.COST.lsp, reported.COST.value, reported.COST.words),
        },
        "rivals": [
            {
                "label": f"{rival.title}: {rival.student}, {rival.benchmark}",
                "source": rival.source,
                "points": sorted([float(kept), percent / 100.0] for kept, percent in rival.accuracy.items()),
            }
            for rival in load_rivals()
        ],
    }


def embedded(data: Mapping[str, object]) -> Markup:
    """JSON for a `<script type="application/json">`: no character in it can end the element or start another."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


def script() -> Markup:
    """The page's own script, as it stands between its tags: one function around the files of `SCRIPTS`."""
    texts = (files("essence.report.page").joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Markup('"use strict";\n(() => {\n' + "\n".join(texts) + "})();\n")  # noqa: S704


def script_hash(text: str) -> str:
    """What a Content-Security-Policy names a script by; any other script on the page stays unrun."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def facets(key: GroupKey) -> Facets:
    """The facets of a group, in words."""
    rows = f"{key.train_rows:,} rows" if key.train_rows else "all rows"
    return {
        "dataset": key.dataset,
        "pair": f"{key.teacher} → {key.student}",
        "protocol": key.protocol,
        "span": key.span,
        "sections": key.sections,
        "rows": f"{rows} of {key.token_budget:,} tokens" if key.token_budget else rows,
    }


def _group(results: Results, group: Group) -> ChartGroup:
    return {
        **facets(group.key),
        "scores": [_evaluation(results, group, evaluation) for evaluation in group.evaluations],
        "costs": [_cost(arm) for arm in group.arms],
        "training": _losses(loss_curves(group, "training")),
        "validation": _losses(loss_curves(group, "validation")),
    }


def _evaluation(results: Results, group: Group, evaluation: Evaluation) -> Scores:
    found: Scores = {
        "benchmark": evaluation[0],
        "checkpoint": evaluation[1],
        "arms": [point for arm in group.arms if (point := _score(arm, evaluation))],
    }
    student, teacher = (results.baseline(role, group.key, evaluation[0]) for role in ("student", "teacher"))
    if student and student.accuracy:
        found["student"] = _rounded(student.accuracy.value)
    if teacher and teacher.accuracy:
        found["teacher"] = _rounded(teacher.accuracy.value)
    return found


def _score(arm: Arm, evaluation: Evaluation) -> ScorePoint | None:
    pooled = arm.pooled.get(evaluation)
    if pooled is None:
        return None
    cells = [(cell, score) for cell in arm.cells if (score := cell.score(evaluation)) and score.accuracy]
    return {
        "lsp": arm.lsp,
        "planned": len(arm.cells),
        "accuracy": _interval(pooled.accuracy),
        "retention": _interval(pooled.retention) or [None],
        "length": _interval(pooled.endings.get("length")) or [_rounded(pooled.mean_tokens)],
        "cap": _interval(pooled.endings.get("capped")) or [_rounded(pooled.capped_share)],
        "stopped": _interval(pooled.endings.get("stopped")) or [None],
        "endings": {reason: _rounded(share) for reason, share in ending_shares(pooled.scores).items()},
        "cells": [(cell.name, score.grade.link, _each(score.accuracy), score.grade.id) for cell, score in cells],
    }


def _each(accuracy: Estimate | None) -> float | None:
    return _rounded(accuracy.value) if accuracy else None


def _cost(arm: Arm) -> CostPoint:
    cells = [cell for cell in arm.cells if cell.train.state == "done"]
    return {
        "lsp": arm.lsp,
        "planned": len(arm.cells),
        "load": arm.load.words,
        "time": [_rounded(arm.ratio.get("time"))],
        "memory": [_rounded(arm.ratio.get("memory"))],
        "flops": [_rounded(arm.ratio.get("flops"))],
        "energy": [_rounded(arm.ratio.get("energy"))],
        "unlike": list(arm.unlike),
        "cells": [(cell.name, cell.train.link, None) for cell in cells],
    }


def _losses(curves: dict[float, list[Curve]]) -> list[LossCurve]:
    return [
        {"lsp": proportion(lsp), "role": lsp_role(lsp), "points": _thinned(curve)}
        for lsp, seeds in curves.items()
        for curve in seeds
    ]


def _thinned(curve: Curve) -> list[tuple[float, float | None]]:
    """About `POINTS` of at most `CURVE_POINTS` points, the last among them."""
    every = max(1, min(len(curve), CURVE_POINTS) // POINTS)
    return [(step, _rounded(loss)) for step, loss in curve[::-1][::every][::-1]]


def _interval(estimate: Estimate | None) -> Interval:
    """Empty where there is none."""
    return [_rounded(v) for v in (estimate.value, estimate.low, estimate.high)] if estimate else []


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
