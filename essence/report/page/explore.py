"""What the charts of the page are drawn from: one compact JSON object for all groups, embedded in report.html."""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

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
COSTS = ("time", "memory", "flops", "energy")


def explore_data(results: Results) -> dict[str, Any]:
    """All that the charts show: groups with their arms and loss curves, marks of the paper, curves of others."""
    return {
        "groups": [_group(results, group) for group in results.groups],
        "paper": {
            "setting": reported.SETTING,
            "retention": [reported.RETENTION.lsp, reported.RETENTION.value, reported.RETENTION.words],
            "cost": [reported.COST.lsp, reported.COST.value, reported.COST.words],
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


def embedded(data: dict[str, Any]) -> Markup:
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


def facets(key: GroupKey) -> dict[str, str]:
    """What sets a group apart, by the facets of the page's selects."""
    rows = f"{key.train_rows:,} rows" if key.train_rows else "all rows"
    return {
        "dataset": key.dataset,
        "pair": f"{key.teacher} → {key.student}",
        "protocol": key.protocol,
        "span": key.span,
        "sections": key.sections,
        "rows": f"{rows} of {key.token_budget:,} tokens" if key.token_budget else rows,
    }


def _group(results: Results, group: Group) -> dict[str, Any]:
    return {
        **facets(group.key),
        "scores": [_evaluation(results, group, evaluation) for evaluation in group.evaluations],
        "costs": [_cost(arm) for arm in group.arms],
        "training": _losses(loss_curves(group, "training")),
        "validation": _losses(loss_curves(group, "validation")),
    }


def _evaluation(results: Results, group: Group, evaluation: Evaluation) -> dict[str, Any]:
    baselines = {role: results.baseline(role, group.key, evaluation[0]) for role in ("student", "teacher")}
    return {
        "benchmark": evaluation[0],
        "checkpoint": evaluation[1],
        "arms": [point for arm in group.arms if (point := _score(arm, evaluation))],
        **{role: _rounded(score.accuracy.value) for role, score in baselines.items() if score and score.accuracy},
    }


def _score(arm: Arm, evaluation: Evaluation) -> dict[str, Any] | None:
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
        "cells": [[cell.name, score.grade.link, _each(score.accuracy), score.grade.id] for cell, score in cells],
    }


def _each(accuracy: Estimate | None) -> float | None:
    return _rounded(accuracy.value) if accuracy else None


def _cost(arm: Arm) -> dict[str, Any]:
    cells = [cell for cell in arm.cells if cell.train.state == "done"]
    return {
        "lsp": arm.lsp,
        "planned": len(arm.cells),
        "load": arm.load.words,
        **{word: [_rounded(arm.ratio.get(word))] for word in COSTS},
        "cells": [[cell.name, cell.train.link, None] for cell in cells],
    }


def _losses(curves: dict[float, list[Curve]]) -> list[dict[str, Any]]:
    return [
        {"lsp": proportion(lsp), "role": lsp_role(lsp), "points": _thinned(curve)}
        for lsp, seeds in curves.items()
        for curve in seeds
    ]


def _thinned(curve: Curve) -> list[list[float | None]]:
    """About `POINTS` of at most `CURVE_POINTS` points, the last among them."""
    every = max(1, min(len(curve), CURVE_POINTS) // POINTS)
    return [[step, _rounded(loss)] for step, loss in curve[::-1][::every][::-1]]


def _interval(estimate: Estimate | None) -> list[float | None]:
    """[value, low, high]; empty where there is none."""
    return [_rounded(v) for v in (estimate.value, estimate.low, estimate.high)] if estimate else []


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
