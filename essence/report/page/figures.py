"""The figures: drawn once by matplotlib in the light colours, kept as PNG and as an SVG that follows light and dark.

One panel a figure, so that a phone shows it at full size and a wide page sets figures side by side.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from essence.evaluation.statistics import Estimate
from essence.report.page import reported
from essence.report.page.curves import Curve, Kind, last_values, loss_curves
from essence.report.page.svg import LIGHT, lsp_role, themed
from essence.report.results.records import FULL, Arm, Evaluation, Figure, FigureKind, Group, Results, Score
from essence.text import percent, proportion, slug, times, with_interval

WIDE, NARROW = (4.8, 3.45), (3.7, 3.1)
"""Inches; at 72 units an inch a phone shows text about as large as the page's small print."""
PNG_DPI = 200
STYLE: Mapping[str, str | float | bool | list[str]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "essence",
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.color": LIGHT["rule"],
    "ytick.labelcolor": LIGHT["muted"],
    "ytick.left": False,
    "legend.frameon": False,
}
COSTS = {"time": "Training time", "memory": "Peak memory", "flops": "Training FLOPs", "energy": "Energy of training"}
Draw = Callable[[Axes], None]


def draw_figures(results: Results, group: Group, prefix: str) -> list[Figure]:
    """The figures of one group; those without anything to show are left out."""
    figures = []
    for benchmark, checkpoint in group.evaluations:
        arms = [arm for arm in group.arms if (benchmark, checkpoint) in arm.pooled]
        name = f"{prefix}{slug(benchmark)}-{slug(checkpoint)}"
        if arms:
            figure = _accuracy(results, group, arms, (benchmark, checkpoint), f"{name}-accuracy")
            figures.append(replace(figure, evaluation=(benchmark, checkpoint)))
        kept = [(arm.lsp, arm.pooled[benchmark, checkpoint].retention) for arm in arms]
        if any(lsp < FULL and estimate and estimate.value is not None for lsp, estimate in kept):
            figure = _retention(arms, (benchmark, checkpoint), f"{name}-retention")
            figures.append(replace(figure, evaluation=(benchmark, checkpoint)))
    for word in COSTS:
        arms = [arm for arm in group.arms if word in arm.ratio]
        if any(arm.lsp < FULL for arm in arms):
            figures.append(_cost(arms, word, f"{prefix}{word}", _left_out(group, word)))
    return figures + _losses(group, prefix)


def _accuracy(results: Results, group: Group, arms: list[Arm], evaluation: Evaluation, name: str) -> Figure:
    benchmark, checkpoint = evaluation
    baselines = {role: results.baseline(role, group.key, benchmark) for role in ("teacher", "student")}

    def draw(axes: Axes) -> None:
        _seed_lines(axes, arms, lambda s: s.accuracy.value if s.accuracy else None, evaluation)
        _pooled_line(axes, [(a.lsp, a.pooled[evaluation].accuracy) for a in arms])
        _baseline_line(axes, baselines["teacher"], "teacher", "teacher", (0.0, "left"), "--")
        _baseline_line(axes, baselines["student"], "untrained student", "untrained", (1.0, "right"), ":")
        _percent_axis(axes, f"accuracy on {benchmark}")

    values = "; ".join(f"LSP {proportion(a.lsp)}: {with_interval(a.pooled[evaluation].accuracy)}" for a in arms)
    return _figure(
        name,
        "accuracy",
        f"Accuracy against LSP, {benchmark}",
        f"Bold: pooled over seeds, with {_confidence(arms[0].pooled[evaluation].scores)} intervals. Faint: each seed. "
        f"{_checkpoint_words(checkpoint)}",
        f"Accuracy on {benchmark}. {values}.",
        draw,
    )


def _retention(arms: list[Arm], evaluation: Evaluation, name: str) -> Figure:
    mark = reported.RETENTION
    shown = [(arm.lsp, kept) for arm in arms if (kept := arm.pooled[evaluation].retention)]

    def draw(axes: Axes) -> None:
        axes.axhline(1.0, color=LIGHT["muted"], linewidth=0.9)
        _seed_lines(axes, arms, lambda s: s.retention.value if s.retention else None, evaluation)
        _pooled_line(axes, shown)
        _reported_mark(axes, mark, f"paper reports {mark.words}\n(other models and data)", (0.97, 0.13))
        _percent_axis(axes, "accuracy kept, LSP 1.0 = 100 %")

    values = "; ".join(f"LSP {proportion(lsp)}: {with_interval(e)}" for lsp, e in shown)
    methods = "; ".join(dict.fromkeys(kept.method for _, kept in shown if kept.low is not None))
    return _figure(
        name,
        "retention",
        f"Retention against LSP, {evaluation[0]}",
        f"Share of the accuracy at LSP 1.0 that is kept{f', with intervals ({methods})' if methods else ''}. "
        f"Diamond: the mean that the paper reports for {reported.SETTING}; it is another setting, not a target.",
        f"Retention against LSP 1.0. {values}. The paper reports {mark.words} at LSP {mark.lsp:g}.",
        draw,
    )


def _left_out(group: Group, word: str) -> str:
    """Arms whose cost is not divided, for the caption; the group's sentences say why."""
    left = [proportion(arm.lsp) for arm in group.arms if word in arm.unlike]
    return f"Not shown, as trainings ran unlike: LSP {', '.join(left)}." if left else ""


def _cost(arms: list[Arm], word: str, name: str, left_out: str) -> Figure:
    mark = reported.COST
    on_device = any((m := cell.train.manifest) and m.cost.peak_gpu_memory_gib for arm in arms for cell in arm.cells)
    note = "Resident memory of the process, its libraries included." if word == "memory" and not on_device else ""
    if word == "time":
        loads = [f"{proportion(arm.lsp)}: {arm.load.words}" for arm in arms if arm.load.words]
        note = f"Measured beside, by LSP: {', '.join(loads)}." if loads else ""

    caption = "Ratio to LSP 1.0, mean over seeds; faint: each seed. Dashed: in proportion to LSP."

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
        if word != "energy":
            _reported_mark(axes, mark, f"paper: {mark.words}", (0.97, 0.1))
        for arm in arms:
            full = arm.cost[word] / arm.ratio[word] if arm.ratio[word] else None
            each = [c.cost.of(word) for c in arm.cells]
            points = [value / full for value in each if value is not None and full]
            axes.scatter([arm.lsp] * len(points), points, s=16, color=LIGHT["accent"], alpha=0.35, linewidths=0)
        x, y = [arm.lsp for arm in arms], [arm.ratio[word] for arm in arms]
        _mark_pooled(*axes.plot(x, y, color=LIGHT["accent"], linewidth=2))
        axes.set_ylim(0, max(1.1, 1.1 * max(y)))
        axes.set_ylabel("ratio to LSP 1.0")
        _lsp_axis(axes)

    values = "; ".join(f"LSP {proportion(a.lsp)}: {times(a.ratio[word])}" for a in arms)
    paper = "no energy" if word == "energy" else f"{mark.words} of each"
    return _figure(
        name,
        "cost",
        f"{COSTS[word]} against LSP",
        " ".join(part for part in (caption, note, left_out) if part),
        f"{COSTS[word]} as a ratio to LSP 1.0. {values}. The paper reports {paper} at LSP {mark.lsp:g}.",
        draw,
        NARROW,
    )


def _losses(group: Group, prefix: str) -> list[Figure]:
    notes: dict[Kind, str] = {
        "training": "Objective on the training rows, running mean over a twentieth of the steps; a line a seed.",
        "validation": "Cross-entropy on the validation rows; a line a seed. Under the released protocol these rows are "
        "truncated like the training rows, so curves of different LSPs are not measured on the same tokens.",
    }
    drawn = ((kind, note, loss_curves(group, kind)) for kind, note in notes.items())
    return [_loss(curves, kind, note, prefix) for kind, note, curves in drawn if curves]


def _loss(curves: dict[float, list[Curve]], kind: Kind, note: str, prefix: str) -> Figure:
    title = f"{kind.capitalize()} loss by LSP"
    values = f"{kind.capitalize()} loss by step. {last_values(curves)}"
    return _figure(f"{prefix}loss-{kind}", "loss", title, note, values, lambda axes: _draw_losses(axes, curves, kind))


def _draw_losses(axes: Axes, curves: dict[float, list[Curve]], kind: Kind) -> None:
    for lsp, seeds in curves.items():
        for index, points in enumerate(seeds):
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                color=LIGHT[lsp_role(lsp)],
                linewidth=2.0 if lsp == FULL else 1.4,
                marker="o" if kind == "validation" else None,
                markersize=3.2,
                alpha=1.0 if index == 0 else 0.45,
                label=None if index else proportion(lsp),
            )
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(f"{kind} loss")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.02)
    axes.figure.legend(
        loc="outside upper left", ncols=min(6, len(curves) + 1), handlelength=1.4, columnspacing=1.4, title="LSP",
        alignment="left", title_fontproperties={"size": 9.5}, fontsize=9.5,
    )  # fmt: skip


def _seed_lines(
    axes: Axes, arms: Sequence[Arm], value: Callable[[Score], float | None], evaluation: Evaluation
) -> None:
    """A faint line for each seed, where there are several."""
    seeds: dict[int, list[tuple[float, float]]] = {}
    for arm in arms:
        for cell in arm.cells:
            score = cell.score(evaluation)
            number = value(score) if score else None
            if number is not None:
                seeds.setdefault(cell.seed, []).append((arm.lsp, number))
    for points in seeds.values() if len(seeds) > 1 else ():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=LIGHT["accent"], linewidth=1, alpha=0.35, marker="o", markersize=3, markeredgewidth=0)


def _pooled_line(axes: Axes, points: Sequence[tuple[float, Estimate]]) -> None:
    """The bold line, with a bar wherever an end of the interval is known."""
    x, y, below, above = [], [], [], []
    for lsp, estimate in points:
        if estimate.value is not None:
            x.append(lsp)
            y.append(estimate.value)
            below.append(max(0.0, estimate.value - estimate.low) if estimate.low is not None else 0.0)
            above.append(max(0.0, estimate.high - estimate.value) if estimate.high is not None else 0.0)
    bars = axes.errorbar(
        x, y, yerr=[below, above], color=LIGHT["accent"], linewidth=2, elinewidth=1.6, zorder=3, clip_on=False
    )
    _mark_pooled(bars.lines[0])


def _mark_pooled(line: Line2D) -> None:
    """A dot at each point that is pooled over seeds."""
    line.set(marker="o", markersize=7, markeredgecolor=LIGHT["surface"], markeredgewidth=1.2)


def _baseline_line(
    axes: Axes, score: Score | None, label: str, role: str, place: tuple[float, str], linestyle: str
) -> None:
    if score is None or score.accuracy is None or score.accuracy.value is None:
        return
    value = score.accuracy.value
    axes.axhline(value, color=LIGHT[role], linewidth=1.4, linestyle=linestyle)
    axes.annotate(
        f"{label} {percent(value)}", (place[0], value), xytext=(0, 3), textcoords="offset points",
        ha=place[1], va="bottom", color=LIGHT[role], fontsize=9.5,
    )  # fmt: skip


def _reported_mark(axes: Axes, mark: reported.Reported, text: str, place: tuple[float, float]) -> None:
    """A hollow diamond at the published value, with its words in a free corner and a thin line between."""
    colour = LIGHT["reported"]
    axes.annotate(
        text, (mark.lsp, mark.value), xytext=place, textcoords="axes fraction", ha="right", va="center",
        color=colour, fontsize=9.5, arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 7},
    )  # fmt: skip
    axes.plot(
        [mark.lsp], [mark.value], marker="D", markersize=10, color=colour, markerfacecolor="none",
        markeredgewidth=1.6, linestyle="none", zorder=5,
    )  # fmt: skip


def _percent_axis(axes: Axes, label: str) -> None:
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.04)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylabel(label)
    _lsp_axis(axes)


def _lsp_axis(axes: Axes) -> None:
    axes.set_xlim(0, 1.05)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.set_xlabel("lead-span proportion (LSP)")


def _confidence(scores: Sequence[Score]) -> str:
    level = next((score.confidence for score in scores), None)
    return f"{percent(level, 0)} confidence" if level else "confidence"


def _checkpoint_words(checkpoint: str) -> str:
    return {"best": "Checkpoint chosen by validation loss.", "last": "Last checkpoint."}.get(checkpoint, "")


def _figure(
    name: str, kind: FigureKind, title: str, caption: str, alt: str, draw: Draw, size: tuple[float, float] = WIDE
) -> Figure:
    """Draw on one fresh pair of axes."""
    return on_canvas(name, kind, title, caption, alt, lambda canvas: draw(canvas.add_subplot()), size)


def on_canvas(
    name: str,
    kind: FigureKind,
    title: str,
    caption: str,
    alt: str,
    draw: Callable[[Canvas], None],
    size: tuple[float, float],
) -> Figure:
    """Draw on a fresh canvas and keep both forms; the bytes depend on nothing but the numbers."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas)
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        canvas.savefig(png, format="png", dpi=PNG_DPI, facecolor=LIGHT["surface"], metadata={"Software": None})
    return Figure(name, kind, title, caption.strip(), alt, themed(svg.getvalue(), title, alt), png.getvalue())
