"""`invoke status --watch`: a matrix while it runs, from files alone, so on a login node or over ssh as well.

Looks at the run directory every second or two and never takes a lock, so it disturbs nothing and can be ended or
started again at any moment. A scheduler that has stages of it is asked less often.
"""

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from essence.commands.status import CELL_COLUMNS, cell_row, collect, job_words, queued_lines, see_queue, who_works
from essence.engines.slurm.snapshot import QueueSnapshot
from essence.files import read_json
from essence.record.run_directory import RunDirectory
from essence.text import duration

REFRESH_S = 2.0
ASK_SCHEDULER_S = 10.0
MOST_QUEUED = 4
LINES_AROUND_CELLS = 6
"""Of the screen, beside cells, running stages and failures."""
FEWEST_CELLS = 3
LINES_OF_A_REASON = 2


@dataclass
class Watch:
    """What a watcher remembers between two looks."""

    run_directory: RunDirectory
    experiment: str
    _walls: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Finished stage -> its kind and wall time; a manifest never changes."""
    _asked: float | None = None
    _view: QueueSnapshot | None = None
    """What the scheduler said then."""

    def look(self) -> dict[str, Any]:
        """State of the matrix, and how long it will still take as far as stages report."""
        state = collect(self.run_directory, self.experiment, self._queue())
        return {**state, "seconds_left": self._seconds_left(state)}

    def _queue(self) -> QueueSnapshot | None:
        if self._asked is None or time.monotonic() - self._asked > ASK_SCHEDULER_S:
            self._view = see_queue(self.run_directory, self.experiment)
            self._asked = time.monotonic()
        return self._view

    def _seconds_left(self, state: dict[str, Any]) -> float | None:
        """What running stages say, and for the others the mean time of the finished ones of their kind.

        None while a kind has no finished stage. At least as long as the longest of those that run.
        """
        running = state["running"]
        told: dict[str, float] = {s["stage"]: s["seconds_left"] for s in running if s.get("seconds_left") is not None}
        plan = read_json(self.run_directory.plan(self.experiment))["stages"]
        left = []
        for identifier, entry in plan.items():
            if identifier not in self._walls and self.run_directory.stage(identifier).done:
                wall = read_json(self.run_directory.stage(identifier).manifest)["cost"]["wall_s"]
                self._walls[identifier] = (entry["stage"], float(wall))
            if identifier not in self._walls and identifier not in told:
                left.append(entry["stage"])
        times: dict[str, list[float]] = {}
        for kind, wall in self._walls.values():
            times.setdefault(kind, []).append(wall)
        if any(kind not in times for kind in left):
            return None
        seconds = sum(sum(times[kind]) / len(times[kind]) for kind in left) + sum(told.values())
        return max(seconds / max(1, len(running)), *told.values(), 0.0)


def watch(
    run_directory: RunDirectory,
    experiment: str,
    console: Console,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Draw until everything is done or Ctrl-C; 0 when everything is done, 1 when nothing runs and something failed."""
    watched = Watch(run_directory, experiment)
    state = watched.look()
    with Live(
        screen(state, console.height, console.width), console=console, refresh_per_second=2, screen=False
    ) as live:
        while not is_over(state):
            pause(REFRESH_S)
            state = watched.look()
            live.update(screen(state, console.height, console.width))
    return 1 if state["failed"] else 0


def is_over(state: dict[str, Any]) -> bool:
    """True when no stage can change state: all are done, or one failed and nothing runs or is queued.

    False while the scheduler does not answer: what waits there is unknown.
    """
    counts = state["counts"]
    left = sum(number for name, number in counts.items() if name != "done")
    silent = state["scheduler"] is not None and not state["scheduler"]["answers"]
    works = state["held_by"] or state["running"] or state["queued"] or silent
    return left == 0 or (counts["failed"] > 0 and not works)


def screen(state: dict[str, Any], height: int, width: int) -> RenderableType:
    """The whole view in as many lines as the terminal has: failures before what runs, and that before the cells."""
    short = short_names([cell["name"] for cell in state["cells"]])
    room = height - LINES_AROUND_CELLS - FEWEST_CELLS
    failures = _fitting([_failure(stage, short, width) for stage in state["failed"]], room // 2, "failed")
    queued = _queued(state["queued"], short)
    left = room - len(failures) - len(queued)
    running = _fitting([_running(stage, short) for stage in state["running"]], left, "running")
    return Group(
        _head(state),
        _all_stages(state),
        *running,
        *queued,
        *failures,
        _cells(state, short, height - LINES_AROUND_CELLS - len(running) - len(queued) - len(failures)),
    )


def short_names(names: list[str]) -> dict[str, str]:
    """Name of a cell -> its parts in which the cells differ; a name that has no such parts stays as it is."""
    parts = {name: name.split("/") for name in names if "/" in name}
    if len({len(own) for own in parts.values()}) != 1 or len(parts) == 1:
        return {name: name for name in names}
    differing = [place for place, values in enumerate(zip(*parts.values(), strict=True)) if len(set(values)) > 1]
    return {name: " ".join(parts[name][place] for place in differing) if name in parts else name for name in names}


def _fitting(blocks: list[list[RenderableType]], most: int, what: str) -> list[RenderableType]:
    """The lines of as many blocks as fit; those that do not are counted."""
    lines: list[RenderableType] = []
    for number, block in enumerate(blocks):
        if number and len(lines) + len(block) + (number + 1 < len(blocks)) > most:
            return [*lines, Text(f"and {len(blocks) - number} more {what}: invoke status", style="dim")]
        lines += block
    return lines


def _head(state: dict[str, Any]) -> Text:
    counts = ", ".join(f"{number} {name}" for name, number in state["counts"].items() if number)
    head = Text(f"{state['experiment']}  ", style="bold")
    head.append(f"{time.strftime('%H:%M:%S')}  {counts}", style="dim")
    head.append(f"\n{who_works(state)}", style="dim")
    head.no_wrap, head.overflow = True, "ellipsis"
    return head


def _all_stages(state: dict[str, Any]) -> Progress:
    left = state["seconds_left"]
    note = f"stages, about {duration(left)} left" if left else "stages"
    return _bar(state["counts"]["done"], sum(state["counts"].values()), note)


def _running(stage: dict[str, Any], short: dict[str, str]) -> list[RenderableType]:
    """What runs; phase, how far, how long still, and its own note (loss, tokens a second, memory); its GPUs."""
    known = stage.get("seconds_left")
    left = f", {duration(known)} left" if known is not None else ""
    note = f"{stage.get('unit', '')} {stage.get('phase', 'starting')}{left}  {stage.get('note', '')}".strip()
    title = _line(f"▶ {_shortened(stage['title'], short)}{job_words(stage)}", "cyan")
    gpus = [_line(f"  {gpu_words(stage['gpus'])}", "dim")] if stage.get("gpus") else []
    return [title, _bar(stage.get("done", 0), max(1, stage.get("total", 1)), note), *gpus]


def gpu_words(gpus: list[dict[str, float]]) -> str:
    """`GPU 93 % busy, 31.2 of 79.6 GiB`; of several the mean, and the memory of the fullest."""
    busy = sum(gpu["busy_percent"] for gpu in gpus) / len(gpus)
    fullest = max(gpus, key=lambda gpu: gpu["memory_gib"])
    memory = f"{fullest['memory_gib']:.1f} of {fullest['total_gib']:.1f} GiB"
    if len(gpus) == 1:
        return f"GPU {busy:.0f} % busy, {memory}"
    return f"{len(gpus)} GPUs {busy:.0f} % busy on average, the fullest {memory}"


def _shortened(title: str, short: dict[str, str]) -> str:
    """A stage's title with the short name of its cell."""
    name = max((name for name in short if name in title), key=len, default="")
    return title.replace(name, short[name]) if name else title


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, overflow="ellipsis", no_wrap=True)


def _queued(stages: list[dict[str, Any]], short: dict[str, str]) -> list[Text]:
    """The first few that wait in a scheduler's queue, with why."""
    named = [{**stage, "title": _shortened(stage["title"], short)} for stage in stages]
    return [_line(f"◦ {line}", "blue") for line in queued_lines(named, MOST_QUEUED)]


def _bar(done: int, total: int, note: str) -> Progress:
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.description}", markup=False),
    )
    bar = Progress(TextColumn(" "), *columns)
    bar.add_task(note, total=total, completed=done)
    return bar


def _failure(stage: dict[str, Any], short: dict[str, str], width: int) -> list[RenderableType]:
    """What failed, why in a few lines, and its log."""
    reason = str(stage["message"]).strip().splitlines()[-1]
    lines = textwrap.wrap(reason, max(20, width - 2), max_lines=LINES_OF_A_REASON, placeholder=" …")
    log = textwrap.wrap(str(stage["log"]), max(20, width - 2), break_on_hyphens=False)
    texts = [f"✗ {_shortened(stage['title'], short)}", *(f"  {line}" for line in [*lines, *log])]
    return [_line(text, "red") for text in texts]


def _cells(state: dict[str, Any], short: dict[str, str], most: int) -> Table:
    """Cells that something happens to first; those that do not fit are counted."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in CELL_COLUMNS:
        table.add_column(heading, no_wrap=True)
    cells = sorted(state["cells"], key=_urgency)
    shown = len(cells) if len(cells) <= most else max(FEWEST_CELLS, most) - 1
    for cell in cells[:shown]:
        table.add_row(*cell_row({**cell, "name": short[cell["name"]]}))
    if len(cells) > shown:
        table.add_row(Text(f"and {len(cells) - shown} more", style="dim"), "", "", "")
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
