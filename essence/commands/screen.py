"""What a person sees while stages run: live bars in a terminal, one plain line a change of state elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from essence.commands.progress_bars import left_words, seconds_of_rest
from essence.engines.runner import Event
from essence.plan.stage_plan import PlannedStage
from essence.record.live_records import ProgressRecord
from essence.record.run_directory import StageFolder
from essence.text import duration

REFRESH_S = 0.5
SIGNS = {"started": "·", "finished": "✓", "failed": "✗", "stopped": "‖"}
STYLES = {"started": "dim", "finished": "green", "failed": "bold red", "stopped": "yellow"}


class RunDisplay:
    """Events as lines; in a terminal, below them, a bar for everything and one for each running stage."""

    def __init__(
        self,
        console: Console,
        stages: list[PlannedStage],
        left: list[PlannedStage],
        parallel: int,
        found: Callable[[PlannedStage], list[str]] = lambda _: [],
    ) -> None:
        """`found` gives lines to print below a stage that has finished."""
        self.console, self.found = console, found
        self.titles = {stage.id: stage.title for stage in stages}
        self.kinds = {stage.id: stage.stage for stage in stages}
        self.total, self.done, self.parallel = len(stages), len(stages) - len(left), parallel
        self.left = {stage.id for stage in left}
        self.seconds: dict[str, list[float]] = {}
        self._last_refresh = 0.0
        self._live: Live | None = None

    def __enter__(self) -> "RunDisplay":
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def event(self, kind: Event, stage: PlannedStage, seconds: float) -> None:
        """One line: when, what, how far the whole is, how long still."""
        if kind != "started":
            self.left.discard(stage.id)
        if kind == "finished":
            self.done += 1
            self.seconds.setdefault(stage.stage, []).append(seconds)
        line = Text(f"{time.strftime('%H:%M:%S')} ", style="dim")
        line.append(f"{SIGNS[kind]} {stage.title}", style=STYLES[kind])
        if kind != "started":
            left = self.seconds_left()
            rest = f", about {duration(left)} left" if left and kind == "finished" else ""
            line.append(f"  {kind} after {duration(seconds)} ({self.done}/{self.total}{rest})", style="dim")
        self.console.print(line, soft_wrap=True, highlight=False)
        for told in self.found(stage) if kind == "finished" else []:
            self.console.print(f"           {told}", style="dim", markup=False, highlight=False, soft_wrap=True)

    def waits(self, stage: PlannedStage, holder: str) -> None:
        """One line for a stage that an earlier run, which was killed, still works on."""
        line = f"           {stage.title} waits until {holder} has ended, of an earlier run (11 minutes at most)"
        self.console.print(Text(line, style="yellow"), soft_wrap=True, highlight=False)

    def waits_for_gpus(self, stage: PlannedStage) -> None:
        """One line for the first stage that finds too few GPUs, where this run itself has none."""
        line = f"           {stage.title} waits until {stage.resources.gpus} GPUs are free: other runs have them"
        self.console.print(Text(line, style="yellow"), soft_wrap=True, highlight=False)

    def seconds_left(self) -> float | None:
        """From the mean time of the finished stages of each kind; None while a kind has none."""
        rest = seconds_of_rest(self.seconds, (self.kinds[identifier] for identifier in self.left))
        return None if rest is None else rest / self.parallel

    def tick(self, running: dict[str, StageFolder]) -> None:
        """Draw the bars again, from the files that the stages write."""
        now = time.monotonic()
        if self._live is None or now - self._last_refresh < REFRESH_S:
            return
        self._last_refresh = now
        bars = _bars(self.console)
        bars.add_task("all stages", total=self.total, completed=self.done, note=duration(self.seconds_left()) + " left")
        for identifier, folder in running.items():
            _add_bar(bars, self.titles[identifier], folder.progress_record())
        self._live.update(Group(Text(""), bars))


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
    )


def _add_bar(bars: Progress, title: str, record: ProgressRecord | None) -> TaskID:
    if record is None:
        return bars.add_task(title, total=1, completed=0, note="starting")
    note = f"{record.phase}, {record.unit}{left_words(record)} {record.note}".strip()
    return bars.add_task(title, total=max(1, record.total), completed=int(record.done), note=note)
