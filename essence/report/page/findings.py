"""What the numbers say, in sentences computed from them, beside what the paper reports."""

from itertools import pairwise

from essence import text
from essence.evaluation.statistics import Estimate
from essence.report.page import reported
from essence.report.results.records import COST_UNITS, FULL, Arm, Evaluation, Group, Results

COST_NAMES = {"time": "time", "memory": "memory", "flops": "FLOPs"}
CLOSE_TO_REPORTED = 0.05
"""A cost ratio this near to the reported half is called about half."""


def findings(results: Results, group: Group, evaluation: Evaluation) -> list[str]:
    """The sentences of one group on one benchmark; one that lacks its numbers is left out."""
    sentences = (
        _training_effect(results, group, evaluation),
        _retention(group, evaluation),
        _shape(group, evaluation),
        _cost(group),
        _doubts(group, evaluation),
    )
    return [sentence for sentence in sentences if sentence]


def arm_at(group: Group, lsp: float) -> Arm | None:
    """The arm of a group at a proportion."""
    return next((arm for arm in group.arms if arm.lsp == lsp), None)


def _accuracies(group: Group, evaluation: Evaluation) -> list[tuple[float, Estimate]]:
    graded = ((arm.lsp, arm.pooled[evaluation].accuracy) for arm in group.arms if evaluation in arm.pooled)
    return [(lsp, estimate) for lsp, estimate in graded if estimate.value is not None]


def _training_effect(results: Results, group: Group, evaluation: Evaluation) -> str:
    untrained = results.baseline("student", group.key, evaluation[0])
    full = dict(_accuracies(group, evaluation)).get(FULL)
    if untrained is None or untrained.accuracy is None or untrained.accuracy.value is None or full is None:
        return ""
    assert full.value is not None
    points = 100 * (full.value - untrained.accuracy.value)
    worse = [lsp for lsp, e in _accuracies(group, evaluation) if _apart(untrained.accuracy, e)]
    effect = (
        f"Trained on full sequences the student scores {text.with_interval(full)}, untrained "
        f"{text.with_interval(untrained.accuracy)}: {points:+.1f} points."
    )
    if worse:
        listed = _listed([f"{lsp:g}" for lsp in worse])
        effect += f" At LSP {listed} training leaves it clearly below its untrained self."
    return effect


def _retention(group: Group, evaluation: Evaluation) -> str:
    mark = reported.RETENTION
    arm = arm_at(group, mark.lsp)
    kept = arm.pooled[evaluation].retention if arm and evaluation in arm.pooled else None
    if kept is None:
        return ""
    if kept.value is None:
        return f"Retention at LSP {mark.lsp:g} cannot be said: {kept.method}."
    return (
        f"At LSP {mark.lsp:g} the student keeps {text.with_interval(kept)} of the accuracy at LSP 1.0. The paper "
        f"reports {mark.words}, {reported.OVER}: the table of claims says whether this run decides it."
    )


def _shape(group: Group, evaluation: Evaluation) -> str:
    points = _accuracies(group, evaluation)
    if len(points) < 2 or not any(accuracy.value for _, accuracy in points):
        return ""
    falls = [(a, b) for a, b in pairwise(points) if (b[1].value or 0.0) < (a[1].value or 0.0)]
    if not falls:
        return "Accuracy rises with LSP at every step or stays level, the ordering that the paper shows."
    clear = [(a, b) for a, b in falls if _apart(a[1], b[1])]
    steps = ", ".join(f"from {text.proportion(a[0])} to {text.proportion(b[0])}" for a, b in clear or falls)
    if clear:
        return f"Accuracy falls {steps}, with intervals apart: the ordering differs from the paper's rising curve."
    return (
        f"Accuracy falls {steps}, but the intervals overlap: a difference from the paper's rising curve cannot be told "
        "from chance."
    )


def _apart(higher: Estimate, lower: Estimate) -> bool:
    return higher.low is not None and lower.high is not None and lower.high < higher.low


def _cost(group: Group) -> str:
    mark = reported.COST
    arm = arm_at(group, mark.lsp)
    ratios = {word: arm.ratio[word] for word in COST_UNITS if word in COST_NAMES and word in arm.ratio} if arm else {}
    if not ratios:
        return ""
    parts = ", ".join(f"{COST_NAMES[word]} {text.times(ratio)}" for word, ratio in ratios.items())
    above = [COST_NAMES[w] for w, ratio in ratios.items() if ratio > mark.value + CLOSE_TO_REPORTED]
    below = [COST_NAMES[w] for w, ratio in ratios.items() if ratio < mark.value - CLOSE_TO_REPORTED]
    notes = [f"{_listed(above)} above that"] if above else []
    notes += [f"{_listed(below)} below that"] if below else []
    return f"Training at LSP {mark.lsp:g} costs, against LSP 1.0: {parts}. The paper reports {mark.words} of each" + (
        f"; here {' and '.join(notes)}." if notes else ", as here."
    )


def _doubts(group: Group, evaluation: Evaluation) -> str:
    """Counts that speak against the accuracies, over all graded cells; earlier records have none."""
    pooled = [arm.pooled[evaluation] for arm in group.arms if evaluation in arm.pooled]
    scores = [score for arm in pooled for score in arm.scores]
    known = [doubts for score in scores if (doubts := score.grade.look("results", "doubts"))]
    if not known or len(known) < len(scores):
        return ""
    names = ("graders_disagree", "answers_not_from_a_box", "box_in_thought_alone")
    disagree, unboxed, in_thought = (sum(doubts[name] for doubts in known) for name in names)
    return (
        f"Of {sum(score.samples for score in scores):,} completions: graders disagree on {disagree:,}, answers not "
        f"taken from a box {unboxed:,}, box inside the thought alone {in_thought:,}."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
