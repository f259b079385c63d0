"""What the same proportions cost as an experiment trains them here, beside the released form of `cost_table.py`.

Time by the one model of time, with its fixed cost a step; memory by the rule of the preflight, for a pass of one row.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from essence import text
from essence.files import GIB
from essence.plan.cost_table import PROPORTIONS
from essence.plan.times import Trained, step_work
from essence.sizes.memory import Memory, estimate_memory, load_of
from essence.sizes.speeds import Speeds, step_seconds


@dataclass(frozen=True)
class OurCostRow:
    """One proportion; ratios are against LSP 1.0."""

    lsp: float
    step_s: float
    """Of an optimiser step, of the rank that has the most to read."""
    time_ratio: float
    static_gib: float
    dynamic_gib: float
    memory_ratio: float


OUR_COLUMNS: dict[str, Callable[[OurCostRow], str]] = {
    "LSP": lambda row: text.proportion(row.lsp),
    "Step": lambda row: f"{1e3 * row.step_s:.3g} ms",
    "Time": lambda row: text.proportion(round(row.time_ratio, 2)),
    "Static GiB": lambda row: f"{row.static_gib:.3g}",
    "Dynamic GiB": lambda row: f"{row.dynamic_gib:.3g}",
    "Memory": lambda row: text.proportion(round(row.memory_ratio, 2)),
}


@dataclass(frozen=True)
class OurCosts:
    """The costs of one pair under the settings of one experiment."""

    rows: tuple[OurCostRow, ...]
    """By proportion; the last one keeps everything."""
    recomputed: bool
    """Activations, at every proportion: as at the proportion of the cell that was asked for."""

    @property
    def lines(self) -> list[list[str]]:
        """The rows as text, a cell for each of `OUR_COLUMNS`."""
        return [[written(row) for written in OUR_COLUMNS.values()] for row in self.rows]

    @property
    def finding(self) -> str:
        """One sentence for LSP 0.5."""
        half = next(row for row in self.rows if row.lsp == 0.5)
        time, memory = f"{half.time_ratio:.0%}", f"{half.memory_ratio:.0%}"
        how = "recomputed" if self.recomputed else "kept"
        return (
            f"As this experiment trains, with activations {how}, {time} of a step's time and {memory} of the peak "
            "memory remain at LSP 0.5."
        )

    def as_json(self) -> list[dict[str, float]]:
        return [asdict(row) for row in self.rows]


def our_costs(trained: Trained, row_tokens: int, speeds: Speeds) -> OurCosts:
    """A row for each proportion of rows of `row_tokens` tokens."""
    kept = {lsp: replace(trained, kept=max(1, int(row_tokens * lsp))) for lsp in PROPORTIONS}
    seconds = {lsp: step_seconds(speeds, step_work(one)) for lsp, one in kept.items()}
    memory = {lsp: _memory(one) for lsp, one in kept.items()}
    return OurCosts(
        tuple(
            OurCostRow(
                lsp=lsp,
                step_s=seconds[lsp],
                time_ratio=seconds[lsp] / seconds[1.0],
                static_gib=memory[lsp].static / GIB,
                dynamic_gib=memory[lsp].dynamic / GIB,
                memory_ratio=memory[lsp].total / memory[1.0].total,
            )
            for lsp in PROPORTIONS
        ),
        trained.recomputed,
    )


def _memory(of: Trained) -> Memory:
    load = load_of(of.settings, of.student, of.teacher, of.resources.loss)
    load = replace(load, activation_checkpointing=of.recomputed)
    return estimate_memory(replace(load, positions=of.kept, labels=of.kept))
