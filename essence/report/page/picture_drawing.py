"""The picture for a paper, drawn: a panel of curves, and one of arms for each number of tokens that arms share."""

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from essence.evaluation.statistics import Estimate
from essence.report.page.figures import on_canvas
from essence.report.page.picture_numbers import UNTRAINED, WHOLE, Picture, Point, picture_csv
from essence.report.page.svg import LIGHT
from essence.report.results.records import Figure
from essence.text import magnitude, percent, with_interval

ONE_PANEL, TWO_PANELS = (6.2, 4.3), (8.2, 4.3)
"""Inches: a column and a half of a paper, and its full width."""
LOOKS = (
    ("accent", "o", "-"), ("reported", "s", "--"), ("teacher", "^", "-."), ("violet", "D", ":"), ("ochre", "v", "-"),
    ("cyan", "P", "--"), ("ink", "X", "-."), ("untrained", "*", ":"),
)  # fmt: skip
"""Colour, marker and line of each curve in turn: told apart without colour too."""


def draw_pictures(found: Sequence[Picture]) -> list[Figure]:
    """The pictures of an experiment, each with its data."""
    return [_drawn(picture) for picture in found]


def _drawn(picture: Picture) -> Figure:
    looks = {name: LOOKS[place % len(LOOKS)] for place, name in enumerate(_names(picture))}

    def draw(canvas: Canvas) -> None:
        widths = [3.0] * bool(picture.curves) + [1.0 + 0.25 * len(points) for points in picture.matched.values()]
        panels: Sequence[Axes] = canvas.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
        if picture.curves:
            _curve_panel(panels[0], picture, looks)
        matched = panels[len(panels) - len(picture.matched) :]
        for axes, points in zip(matched, picture.matched.values(), strict=True):
            _matched_panel(axes, points, picture, looks)
        for axes in panels:
            _lines(axes, picture)
            axes.set_ylim(bottom=0)
        panels[0].yaxis.set_major_locator(MaxNLocator(6))
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        panels[0].set_ylabel(f"accuracy on {picture.evaluation[0]}")
        canvas.legend(*_legend(panels), loc="outside lower center", ncols=4, handlelength=2.6, fontsize=9.5)

    size = TWO_PANELS if bool(picture.curves) + len(picture.matched) > 1 else ONE_PANEL
    figure = on_canvas(picture.name, "picture", picture.title, _caption(picture), _words(picture), draw, size)
    return figure.with_data(picture_csv(picture))


def _names(picture: Picture) -> list[str]:
    return list(dict.fromkeys([*picture.curves, *(point.curve for point in picture.points)]))


def _curve_panel(axes: Axes, picture: Picture, looks: dict[str, tuple[str, str, str]]) -> None:
    for name, points in picture.curves.items():
        colour, marker, line = looks[name]
        _bars(axes, [point.tokens for point in points], points, LIGHT[colour], marker, linestyle=line, label=name)
    axes.set_xlabel("tokens trained on, equal rows" if picture.equal_rows else "tokens trained on")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)


def _matched_panel(
    axes: Axes, points: Sequence[Point], picture: Picture, looks: dict[str, tuple[str, str, str]]
) -> None:
    """Arms of one number of tokens side by side: their places on the axis mean nothing."""
    for place, point in enumerate(points):
        colour, marker, _ = looks[point.curve]
        label = point.curve if point.curve not in picture.curves else None
        _bars(axes, [place], [point], LIGHT[colour], marker, linestyle="none", label=label)
    axes.set_xticks(range(len(points)), [point.name for point in points], rotation=30, ha="right")
    axes.set_xlim(-0.6, len(points) - 0.4)
    tokens = [point.tokens for point in points]
    broken = "\n" if len(picture.matched) > 1 else " "
    axes.set_xlabel(f"equal tokens{broken}trained on: {magnitude(sum(tokens) / len(tokens))}")


def _bars(axes: Axes, places: Sequence[float], points: Sequence[Point], colour: str, marker: str, **more: Any) -> None:
    values = [point.accuracy.value or 0.0 for point in points]
    known = list(zip(values, points, strict=True))
    ends = [
        [max(0.0, value - low) if (low := point.accuracy.low) is not None else 0.0 for value, point in known],
        [max(0.0, high - value) if (high := point.accuracy.high) is not None else 0.0 for value, point in known],
    ]
    axes.errorbar(
        places, values, yerr=ends, color=colour, marker=marker, markersize=6.5, markeredgecolor=LIGHT["surface"],
        markeredgewidth=0.8, linewidth=1.6, elinewidth=1.2, capsize=2.5, clip_on=False, zorder=3, **more,
    )  # fmt: skip


def _lines(axes: Axes, picture: Picture) -> None:
    """Whole rows and the untrained student, each with the band of its interval."""
    for found, label, colour, style in (
        (picture.whole.accuracy if picture.whole else None, WHOLE, "ink", (0, (6, 3))),
        (picture.untrained, UNTRAINED, "untrained", (0, (1, 2))),
    ):
        if found is not None and found.value is not None:
            axes.axhline(found.value, color=LIGHT[colour], linewidth=1.1, linestyle=style, label=label, zorder=1)
            if found.low is not None and found.high is not None:
                axes.axhspan(found.low, found.high, color=LIGHT[colour], alpha=0.08, linewidth=0, zorder=0)


def _legend(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """Every curve and line once."""
    named: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    return list(named.values()), list(named)


def _caption(picture: Picture) -> str:
    level = f"{percent(picture.confidence, 0)} " if picture.confidence else ""
    trainings = {point.trainings for point in picture.points}
    each = "One training of each arm: how much another would differ is in no interval. " if trainings == {1} else ""
    matched = " Right: arms of as many tokens, of different rows." if picture.matched and picture.curves else ""
    matched += " Each number of tokens has a panel." if len(picture.matched) > 1 else ""
    matched += " Curves are of different numbers of rows." if picture.curves and not picture.equal_rows else ""
    return (
        f"{picture.subject}. Tokens are those read in all epochs. Bars and bands: {level}intervals over problems, and "
        f"over trainings where there are several. {each}{matched}"
    ).strip()


def _words(picture: Picture) -> str:
    """The values, for who does not see the figure."""
    curves = [
        f"{name}: " + "; ".join(f"{magnitude(point.tokens)} tokens {_shown(point.accuracy)}" for point in points)
        for name, points in picture.curves.items()
    ]
    matched = [
        f"equal tokens{f' ({budget:,} an epoch)' * (len(picture.matched) > 1)}, {point.name}: {_shown(point.accuracy)}"
        for budget, points in picture.matched.items()
        for point in points
    ]
    untrained = [f"{UNTRAINED}: {_shown(picture.untrained)}"] if picture.untrained else []
    return f"{picture.title}. {'. '.join([*curves, *matched, *untrained])}."


def _shown(found: Estimate) -> str:
    return with_interval(found)
