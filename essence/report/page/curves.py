"""Loss curves of a group, ready to be drawn: by LSP, a curve for each seed."""

from collections.abc import Sequence
from typing import Literal

from essence import text
from essence.report.results.records import Group
from essence.report.results.stage_reader import StageEvidence

Kind = Literal["training", "validation"]
Curve = list[tuple[float, float]]
"""(step, loss) points."""
CURVE_POINTS = 160
WINDOWS = 20


def loss_curves(group: Group, kind: Kind) -> dict[float, list[Curve]]:
    """LSP -> curves of its seeds; an LSP without any is left out. Training curves are smoothed."""
    curves: dict[float, list[Curve]] = {}
    for arm in group.arms:
        found = [_training(cell.train) if kind == "training" else _validation(cell.train) for cell in arm.cells]
        if any(found):
            curves[arm.lsp] = [curve for curve in found if curve]
    return curves


def last_values(curves: dict[float, list[Curve]]) -> str:
    """`LSP 0.50 ends at 0.442; ...`, means over seeds."""
    ends = {lsp: sum(curve[-1][1] for curve in seeds) / len(seeds) for lsp, seeds in curves.items()}
    return "; ".join(f"LSP {text.proportion(lsp)} ends at {end:.3f}" for lsp, end in ends.items()) + "."


def smoothed(points: Sequence[tuple[float, float]]) -> Curve:
    """Running mean over a twentieth of the points, thinned to about `CURVE_POINTS` that include the last."""
    window = max(1, len(points) // WINDOWS)
    every = max(1, len(points) // CURVE_POINTS)
    kept = []
    for end in range(len(points), 0, -every):
        part = [value for _, value in points[max(0, end - window) : end]]
        kept.append((points[end - 1][0], sum(part) / len(part)))
    return kept[::-1]


def _training(train: StageEvidence) -> Curve:
    return smoothed([(line.step, line.loss) for line in train.steps() if line.loss is not None])


def _validation(train: StageEvidence) -> Curve:
    return [(line.step, line.ce) for line in train.validations() if line.ce is not None]
