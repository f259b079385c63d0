"""What the numbers say, in sentences computed from them, beside what the paper reports."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from essence import text
from essence.evaluation.statistics import Estimate
from essence.report.claims.verdict import ClaimVerdict
from essence.report.page import reported
from essence.report.results.records import COST_UNITS, FULL, Arm, Evaluation, Group, Results
from essence.settings import is_whole

COST_NAMES = {"time": "time", "memory": "memory", "flops": "FLOPs"}
Words = Mapping[str, ClaimVerdict]
"""Verdicts of one protocol by claim."""
SHAPE = {"shape-rise": ("rise", "more than 0 %"), "shape-plateau": ("kept", "at least 95 %")}
"""Claims on the curve: what they measure, and what is wanted."""


def findings(results: Results, group: Group, evaluation: Evaluation, verdicts: Sequence[ClaimVerdict]) -> list[str]:
    """The sentences of one group on one benchmark; one that lacks its numbers is left out.

    Numbers are of the group; what they mean for the paper is the verdict of its claim, and nothing else. No claim is
    about arms of equal tokens, so beside their numbers the paper is not named.
    """
    judged = verdicts if group.key.token_budget is None else ()
    words = {one.claim.id: one for one in judged if one.protocol == group.key.protocol}
    sentences = (
        _training_effect(results, group, evaluation),
        _retention(group, evaluation, words),
        _shape(group, evaluation, words),
        _cost(group, words),
        *not_compared(group),
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
    full = dict(_accuracies(group, evaluation)).get(FULL) if is_whole(FULL, group.key.span) else None
    if untrained is None or untrained.accuracy is None or untrained.accuracy.value is None or full is None:
        return ""
    assert full.value is not None
    points = 100 * (full.value - untrained.accuracy.value)
    below = [lsp for lsp, found in _accuracies(group, evaluation) if (found.value or 0.0) < untrained.accuracy.value]
    effect = (
        f"Trained on full sequences the student scores {text.with_interval(full)}, untrained "
        f"{text.with_interval(untrained.accuracy)}: {points:+.1f} points."
    )
    if below:
        effect += f" At LSP {_listed([f'{lsp:g}' for lsp in below])} it scores below its untrained self."
    return effect


def _retention(group: Group, evaluation: Evaluation, words: Words) -> str:
    mark = reported.RETENTION
    arm = arm_at(group, mark.lsp)
    kept = arm.pooled[evaluation].retention if arm and evaluation in arm.pooled else None
    if kept is None:
        return ""
    if kept.value is None:
        return f"Retention at LSP {mark.lsp:g} cannot be said: {kept.method}."
    ours = f"At LSP {mark.lsp:g} the student keeps {text.with_interval(kept)} of the accuracy at LSP 1.0."
    if group.key.token_budget is not None:
        return ours
    return f"{ours} The paper reports {mark.words}, {reported.OVER}{_verdict(words, reported.RETENTION_CLAIM)}."


def _shape(group: Group, evaluation: Evaluation, words: Words) -> str:
    """Which steps fall, and the verdicts on the paper's curve, each with its number."""
    points = _accuracies(group, evaluation)
    if len(points) < 2 or not any(accuracy.value for _, accuracy in points):
        return ""
    falls = [(a[0], b[0]) for a, b in pairwise(points) if (b[1].value or 0.0) < (a[1].value or 0.0)]
    steps = _listed([f"from {text.proportion(a)} to {text.proportion(b)}" for a, b in falls]) if falls else ""
    shape = f"Accuracy falls {steps}" if falls else "Accuracy rises with LSP at every step or stays level"
    judged = [shown for name, (what, wanted) in SHAPE.items() if (shown := _shown(words, name, what, wanted))]
    return f"{shape}. Over all settings: {'; '.join(judged)}." if judged else f"{shape}."


def _shown(words: Words, claim: str, what: str, wanted: str) -> str:
    """`kept at LSP 0.75: 90.2 % (at least 95 % wanted): undecided`."""
    one = words.get(claim)
    if one is None or one.measured is None or one.measured.estimate.value is None:
        return ""
    number = text.percent(one.measured.estimate.value)
    return f"{what} {one.measured.note}: {number} ({wanted} wanted), {one.word}"


def _cost(group: Group, words: Words) -> str:
    mark = reported.COST
    arm = arm_at(group, mark.lsp)
    ratios = {word: arm.ratio[word] for word in COST_UNITS if word in COST_NAMES and word in arm.ratio} if arm else {}
    if not ratios:
        return ""
    parts = _listed(
        [f"{COST_NAMES[word]} {text.times(ratio)}{_verdict(words, f'{word}-half')}" for word, ratio in ratios.items()]
    )
    costs = f"Training at LSP {mark.lsp:g} costs, against LSP 1.0: {parts}."
    if group.key.token_budget is None:
        costs += f" The paper reports {mark.words} of each."
    return f"{costs} {busy}" if (busy := busy_words(group, words)) else costs


def not_compared(group: Group) -> list[str]:
    """Which costs have no ratio to those at LSP 1.0, and why: other things than the proportion differ, too."""
    found: dict[tuple[str, str], list[str]] = {}
    for arm in group.arms:
        names: dict[str, list[str]] = {}
        for word, why in arm.unlike.items():
            names.setdefault(why, []).append(COST_NAMES.get(word, word))
        for why, costs in names.items():
            found.setdefault((_listed(costs), why), []).append(f"{arm.lsp:g}")
    return [
        f"No ratio to LSP 1.0 is given for {costs} at LSP {_listed(at)}, as trainings ran unlike: {why}."
        for (costs, why), at in found.items()
    ]


def busy_words(group: Group, words: Words) -> str:
    """What the two times at the paper's proportion and at 1.0 were measured beside, where that differs; else empty.

    Whether they are compared is for the verdict of the claim on time to say, which leaves out single pairs.
    """
    arm, full = arm_at(group, reported.COST.lsp), arm_at(group, FULL)
    if arm is None or full is None or not arm.load.differs(full.load):
        return ""
    short, whole = arm.load.beside(full.load)
    time = words.get("time-half")
    then = ", so the times are shown and not compared" if time and time.word == "not comparable" else ""
    return f"The machine was busy: {short} at LSP {arm.lsp:g}, {whole} at 1.0{then}."


def _verdict(words: Words, claim: str) -> str:
    """` (undecided)`, nothing where the claim has no verdict."""
    return f" ({words[claim].word})" if claim in words else ""


def _doubts(group: Group, evaluation: Evaluation) -> str:
    """Counts that speak against the accuracies, over all graded cells; earlier records have none."""
    pooled = [arm.pooled[evaluation] for arm in group.arms if evaluation in arm.pooled]
    scores = [score for arm in pooled for score in arm.scores]
    known = [graded.results.doubts for s in scores if (graded := s.grade.graded) and graded.results.doubts]
    if not known or len(known) < len(scores):
        return ""
    return (
        f"Of {sum(score.samples for score in scores):,} completions: graders disagree on "
        f"{sum(doubts.graders_disagree for doubts in known):,}, answers not taken from a box "
        f"{sum(doubts.answers_not_from_a_box for doubts in known):,}, box inside the thought alone "
        f"{sum(doubts.box_in_thought_alone for doubts in known):,}."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
