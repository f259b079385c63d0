"""`invoke status --watch`: a matrix while it runs, from files alone, so on a login node or over ssh as well.

Looks at the run directory every second or two and never takes a lock, so it disturbs nothing and can be ended or
started again at any moment. A scheduler that has stages of it is asked less often.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from essence.atomic import read_json
from essence.commands.queued import SchedulerView
from essence.commands.status import CELL_COLUMNS, cell_row, collect, job_words, queued_lines, see_queue, who_works
from essence.report.words import duration
from essence.store import RunDirectory

REFRESH_S = 2.0
ASK_SCHEDULER_S = 10.0
MOST_QUEUED = 4
LINES_AROUND_CELLS = 8
"""Of the screen, beside cells, running stages and failures."""


@dataclass
class Watch:
    """What a watcher remembers between two looks."""

    run_directory: RunDirectory
    experiment: str
    _walls: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Finished stage -> its kind and wall time; a manifest never changes."""
    _asked: float | None = None
    _view: SchedulerView | None = None
    """What the scheduler said then."""

    def look(self) -> dict[str, Any]:
        """State of the matrix, and how long it will still take as far as finished stages tell."""
        state = collect(self.run_directory, self.experiment, self._queue())
        return {**state, "seconds_left": self._seconds_left(state)}

    def _queue(self) -> SchedulerView | None:
        if self._asked is None or time.monotonic() - self._asked > ASK_SCHEDULER_S:
            self._view = see_queue(self.run_directory, self.experiment)
            self._asked = time.monotonic()
        return self._view

    def _seconds_left(self, state: dict[str, Any]) -> float | None:
        """Mean time of the finished stages of each kind times those that are left; None while a kind has none."""
        plan = read_json(self.run_directory.plan(self.experiment))["stages"]
        left = []
        for identifier, entry in plan.items():
            if identifier not in self._walls and self.run_directory.stage(identifier).done:
                wall = read_json(self.run_directory.stage(identifier).manifest)["cost"]["wall_s"]
                self._walls[identifier] = (entry["stage"], float(wall))
            if identifier not in self._walls:
                left.append(entry["stage"])
        times: dict[str, list[float]] = {}
        for kind, wall in self._walls.values():
            times.setdefault(kind, []).append(wall)
        if any(kind not in times for kind in left):
            return None
        seconds = sum(sum(times[kind]) / len(times[kind]) for kind in left)
        return seconds / max(1, len(state["running"]))


def watch(
    run_directory: RunDirectory,
    experiment: str,
    console: Console,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Draw until everything is done or Ctrl-C; 0 when everything is done, 1 when nothing runs and something failed."""
    watched = Watch(run_directory, experiment)
    state = watched.look()
    with Live(screen(state, console.height), console=console, refresh_per_second=2, screen=False) as live:
        while not is_over(state):
            pause(REFRESH_S)
            state = watched.look()
            live.update(screen(state, console.height))
    return 1 if state["failed"] else 0


def is_over(state: dict[str, Any]) -> bool:
    """Whether nothing will change any more: everything is done, or something failed and nobody works on the rest."""
    counts = state["counts"]
    left = sum(number for name, number in counts.items() if name != "done")
    works = state["held_by"] or state["running"] or state["queued"]
    return left == 0 or (counts["failed"] > 0 and not works)


def screen(state: dict[str, Any], height: int) -> RenderableType:
    """The whole view in as many lines as the terminal has."""
    running = [part for stage in state["running"] for part in _running(stage)]
    failures = [_failure(stage) for stage in state["failed"]]
    queued = _queued(state["queued"])
    taken = LINES_AROUND_CELLS + len(running) + 2 * len(failures) + len(queued)
    return Group(_head(state), _all_stages(state), *running, *queued, *failures, _cells(state, max(3, height - taken)))


def _head(state: dict[str, Any]) -> Text:
    counts = ", ".join(f"{number} {name}" for name, number in state["counts"].items() if number)
    head = Text(f"{state['experiment']}  ", style="bold")
    head.append(f"{time.strftime('%H:%M:%S')}  {counts}", style="dim")
    head.append(f"\n{who_works(state)}", style="dim")
    return head


def _all_stages(state: dict[str, Any]) -> Progress:
    left = state["seconds_left"]
    note = f"stages, about {duration(left)} left" if left else "stages"
    return _bar(state["counts"]["done"], sum(state["counts"].values()), note)


def _running(stage: dict[str, Any]) -> list[RenderableType]:
    """Two lines: what runs; phase, how far, how long still, and its own note (loss, tokens a second, memory)."""
    known = stage.get("seconds_left")
    left = f", {duration(known)} left" if known is not None else ""
    note = f"{stage.get('unit', '')} {stage.get('phase', 'starting')}{left}  {stage.get('note', '')}".strip()
    title = Text(f"▶ {stage['title']}{job_words(stage)}", style="cyan", overflow="ellipsis", no_wrap=True)
    return [title, _bar(stage.get("done", 0), max(1, stage.get("total", 1)), note)]


def _queued(stages: list[dict[str, Any]]) -> list[Text]:
    """The first few that wait in a scheduler's queue, with why."""
    lines = [f"◦ {line}" for line in queued_lines(stages, MOST_QUEUED)]
    return [Text(line, style="blue", overflow="ellipsis", no_wrap=True) for line in lines]


def _bar(done: int, total: int, note: str) -> Progress:
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.description}"),
    )
    bar = Progress(TextColumn(" "), *columns)
    bar.add_task(note, total=total, completed=done)
    return bar


def _failure(stage: dict[str, Any]) -> Text:
    reason = str(stage["message"]).strip().splitlines()[-1]
    return Text(f"✗ {stage['title']}: {reason}\n  {stage['log']}", style="red", overflow="ellipsis", no_wrap=True)


def _cells(state: dict[str, Any], most: int) -> Table:
    """Cells that something happens to first; those that do not fit are counted."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in CELL_COLUMNS:
        table.add_column(heading, no_wrap=heading != "cell")
    cells = sorted(state["cells"], key=_urgency)
    for cell in cells[:most]:
        table.add_row(*cell_row(cell))
    if len(cells) > most:
        table.add_row(Text(f"and {len(cells) - most} more", style="dim"), "", "", "")
    return table


def _urgency(cell: dict[str, Any]) -> int:
    """Failed and running cells first, then half done ones, then those that wait, then those that are done."""
    states = set(cell["stages"].values())
    if "failed" in states:
        return 0
    if "running" in states:
        return 1
    if states == {"done"}:
        return 4
    return 2 if "done" in states else 3
