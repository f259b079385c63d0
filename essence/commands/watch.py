"""`invoke status --watch`: a matrix while it runs, from files alone, so on a login node or over ssh as well.

Looks at the run directory every second or two and never takes a lock, so it disturbs nothing and can be ended or
started again at any moment. A scheduler that has stages of it is asked less often.
"""

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from essence.commands.matrix_state import CellState, MatrixState, StageView, collect, planned, see_queue
from essence.commands.progress_bars import left_words, seconds_of_rest
from essence.commands.status import CELL_COLUMNS, cell_row, queued_lines
from essence.engines.slurm.snapshot import QueueSnapshot
from essence.record.live_records import GpuUse
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import read_manifest
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

    def look(self) -> "Seen":
        """State of the matrix, and how long it will still take as far as stages say."""
        state = collect(self.run_directory, self.experiment, self._queue())
        return Seen(state, self._seconds_left(state))

    def _queue(self) -> QueueSnapshot | None:
        if self._asked is None or time.monotonic() - self._asked > ASK_SCHEDULER_S:
            self._view = see_queue(self.run_directory, self.experiment)
            self._asked = time.monotonic()
        return self._view

    def _seconds_left(self, state: MatrixState) -> float | None:
        """What running stages say, and for the others the mean time of the finished ones of their kind.

        None while a kind has no finished stage. At least as long as the longest of those that run.
        """
        told = {s.id: s.progress.seconds_left for s in state.running if s.progress}
        known = {identifier: seconds for identifier, seconds in told.items() if seconds is not None}
        left = []
        for identifier, entry in planned(self.run_directory, self.experiment).stages.items():
            if identifier not in self._walls and self.run_directory.stage(identifier).done:
                self._walls[identifier] = (entry.stage, self._wall_s(identifier))
            if identifier not in self._walls and identifier not in known:
                left.append(entry.stage)
        times: dict[str, list[float]] = {}
        for kind, wall in self._walls.values():
            times.setdefault(kind, []).append(wall)
        rest = seconds_of_rest(times, left)
        if rest is None:
            return None
        return max((rest + sum(known.values())) / max(1, len(state.running)), *known.values(), 0.0)

    def _wall_s(self, identifier: str) -> float:
        return read_manifest(self.run_directory.stage(identifier).manifest).cost.wall_s


@dataclass(frozen=True)
class Seen:
    """One look."""

    matrix: MatrixState
    seconds_left: float | None
    """None while a kind of stage has none finished."""


def watch(
    run_directory: RunDirectory,
    experiment: str,
    console: Console,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Draw until everything is done or Ctrl-C; 0 when everything is done, 1 when nothing runs and something failed."""
    watched = Watch(run_directory, experiment)
    seen = watched.look()
    with Live(screen(seen, console.height, console.width), console=console, refresh_per_second=2, screen=False) as live:
        while not seen.matrix.is_over:
            pause(REFRESH_S)
            seen = watched.look()
            live.update(screen(seen, console.height, console.width))
    return 1 if seen.matrix.failed else 0


def screen(seen: Seen, height: int, width: int) -> RenderableType:
    """The whole view in as many lines as the terminal has: failures before what runs, and that before the cells."""
    state = seen.matrix
    short = short_names([cell.name for cell in state.cells])
    room = height - LINES_AROUND_CELLS - FEWEST_CELLS
    failures = _fitting([_failure(stage, short, width) for stage in state.failed], room // 2, "failed")
    queued = _queued(state.queued, short)
    left = room - len(failures) - len(queued)
    running = _fitting([_running(stage, short) for stage in state.running], left, "running")
    return Group(
        _head(state),
        _all_stages(seen),
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


def _head(state: MatrixState) -> Text:
    head = Text(f"{state.experiment}  ", style="bold")
    head.append(f"{time.strftime('%H:%M:%S')}  {state.count_words}", style="dim")
    head.append(f"\n{state.who_works}", style="dim")
    head.no_wrap, head.overflow = True, "ellipsis"
    return head


def _all_stages(seen: Seen) -> Progress:
    left, counts = seen.seconds_left, seen.matrix.counts
    note = f"stages, about {duration(left)} left" if left else "stages"
    return _bar(counts["done"], sum(counts.values()), note)


def _running(stage: StageView, short: dict[str, str]) -> list[RenderableType]:
    """What runs; phase, how far, how long still, and its own note (loss, tokens a second, memory); its GPUs."""
    at = stage.progress
    title = _line(f"▶ {_shortened(stage.title, short)}{stage.gpu_words}{stage.job_words}", "cyan")
    if at is None:
        return [title, _bar(0, 1, "starting")]
    note = f"{at.unit} {at.phase}{left_words(at)}  {at.note}".strip()
    gpus = [_line(f"  {gpu_words(at.gpus)}", "dim")] if at.gpus else []
    return [title, _bar(at.done, max(1, at.total), note), *gpus]


def gpu_words(gpus: list[GpuUse]) -> str:
    """`GPU 93 % busy, 31.2 of 79.6 GiB`; of several the mean, and the memory of the fullest."""
    busy = sum(gpu.busy_percent for gpu in gpus) / len(gpus)
    fullest = max(gpus, key=lambda gpu: gpu.memory_gib)
    memory = f"{fullest.memory_gib:.1f} of {fullest.total_gib:.1f} GiB"
    if len(gpus) == 1:
        return f"GPU {busy:.0f} % busy, {memory}"
    return f"{len(gpus)} GPUs {busy:.0f} % busy on average, the fullest {memory}"


def _shortened(title: str, short: dict[str, str]) -> str:
    """A stage's title with the short name of its cell."""
    name = max((name for name in short if name in title), key=len, default="")
    return title.replace(name, short[name]) if name else title


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, overflow="ellipsis", no_wrap=True)


def _queued(stages: list[StageView], short: dict[str, str]) -> list[Text]:
    """The first few that wait in a scheduler's queue, with why."""
    named = [replace(stage, title=_shortened(stage.title, short)) for stage in stages]
    return [_line(f"◦ {line}", "blue") for line in queued_lines(named, MOST_QUEUED)]


def _bar(done: float, total: float, note: str) -> Progress:
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.description}", markup=False),
    )
    bar = Progress(TextColumn(" "), *columns)
    bar.add_task(note, total=total, completed=int(done))
    return bar


def _failure(stage: StageView, short: dict[str, str], width: int) -> list[RenderableType]:
    """What failed, why in a few lines, and its log."""
    lines = textwrap.wrap(stage.reason, max(20, width - 2), max_lines=LINES_OF_A_REASON, placeholder=" …")
    log = textwrap.wrap(stage.log, max(20, width - 2), break_on_hyphens=False)
    texts = [f"✗ {_shortened(stage.title, short)}", *(f"  {line}" for line in [*lines, *log])]
    return [_line(text, "red") for text in texts]


def _cells(state: MatrixState, short: dict[str, str], most: int) -> Table:
    """Cells that something happens to first; those that do not fit are counted."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in CELL_COLUMNS:
        table.add_column(heading, no_wrap=True)
    cells = sorted(state.cells, key=_urgency)
    shown = len(cells) if len(cells) <= most else max(FEWEST_CELLS, most) - 1
    for cell in cells[:shown]:
        table.add_row(*cell_row(replace(cell, name=short[cell.name])))
    if len(cells) > shown:
        table.add_row(Text(f"and {len(cells) - shown} more", style="dim"), "", "", "")
    return table


def _urgency(cell: CellState) -> int:
    """Failed and running cells first, then half done ones, then those that wait, then those that are done."""
    states = set(cell.stages.values())
    if "failed" in states:
        return 0
    if "running" in states:
        return 1
    if states == {"done"}:
        return 4
    return 2 if "done" in states else 3
