"""The paper's claim on cost as a table: time, memory and FLOPs of a training row at each LSP against the whole row.

Computed from sizes, for two forms of the same training. *released*: one row a forward pass, both models sharded over
the GPUs, activation checkpointing, a loss that holds all logits at once. *chunked*: the same with a loss that never
holds more than a chunk of them. So it shows by itself what the claim rests on: FLOPs halve with the tokens, and of the
memory only the dynamic part does, nearly all of which is the loss.

Time is that of the matrix products at one and the same speed; the second number adds the gathering of both models'
weights at every forward pass, which no row makes shorter, as if nothing hid it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from essence import text
from essence.files import GIB
from essence.sizes.architecture import BFLOAT16_BYTES, MASTER_BYTES, Architecture, distillation_flops
from essence.sizes.memory import PLAIN_BYTES_PER_LOGIT, DeviceLoad, estimate_memory, gathered_parameters

PROPORTIONS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))
DEVICE_FLOPS = 450e12
"""Dense bfloat16 FLOP/s that eager training of one row at a time is assumed to reach on an H100."""
LINK_BYTES_PER_S = 300e9
"""Of one GPU to the others, as all-gathers reach it."""
CHUNK_LABELS, CHUNK_BYTES_PER_LOGIT = 256, 10
"""A loss in chunks: labels of a chunk, and the bytes of its logits in all the forms that live at once."""
KEPT_BYTES_PER_LOGIT = 2.0
"""Gradient of the logits in bfloat16, kept for one product that gives the gradient of the head."""


@dataclass(frozen=True)
class CostRow:
    """One proportion; ratios are against LSP 1.0 of the same form."""

    lsp: float
    tokens: int
    flops: int
    flops_ratio: float
    time_ratio: float
    """Weights gathered behind the computation."""
    time_ratio_exposed: float
    """Weights gathered in front of it."""
    static_gib: float
    dynamic_gib: float
    memory_ratio: float
    chunked_dynamic_gib: float
    chunked_memory_ratio: float


COLUMNS: dict[str, Callable[[CostRow], str]] = {
    "LSP": lambda row: text.proportion(row.lsp),
    "Tokens": lambda row: f"{row.tokens:,}",
    "FLOPs": lambda row: f"{row.flops_ratio:.3f}",
    "Time": lambda row: f"{row.time_ratio:.2f} to {row.time_ratio_exposed:.2f}",
    "Static GiB": lambda row: _gib(row.static_gib),
    "Dynamic GiB": lambda row: _gib(row.dynamic_gib),
    "Memory": lambda row: f"{row.memory_ratio:.2f}",
    "Dynamic GiB, chunked": lambda row: _gib(row.chunked_dynamic_gib),
    "Memory, chunked": lambda row: f"{row.chunked_memory_ratio:.2f}",
}
"""Heading -> how a row is written under it, in the terminal, in report.md and on the page."""


def _gib(value: float) -> str:
    """Three digits, and all of a number that has more before its point."""
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"


@dataclass(frozen=True)
class CostTable:
    """The computed costs of one pair on one data set."""

    name: str
    """Of the data set and the pair."""
    devices: int
    rows: tuple[CostRow, ...]
    """By proportion; the last one keeps everything."""

    @property
    def title(self) -> str:
        return f"{self.name}: a row of {self.rows[-1].tokens:,} tokens on {self.devices} GPUs"

    @property
    def lines(self) -> list[list[str]]:
        """The rows as text, a cell for each of `COLUMNS`."""
        return [[written(row) for written in COLUMNS.values()] for row in self.rows]

    @property
    def finding(self) -> str:
        """What the table says of the claim "about half at LSP 0.5", in one sentence."""
        half = next(row for row in self.rows if row.lsp == 0.5)
        return (
            f"At LSP 0.5, {half.flops_ratio:.0%} of the FLOPs, {half.time_ratio:.0%} to {half.time_ratio_exposed:.0%} "
            f"of the time and {half.memory_ratio:.0%} of the peak memory remain; with the loss in chunks "
            f"{half.chunked_memory_ratio:.0%} of it, since what truncation shortens is then not what fills the memory."
        )

    def as_json(self) -> dict[str, object]:
        return {"title": self.title, "finding": self.finding, "rows": [asdict(row) for row in self.rows]}


def cost_table(name: str, student: Architecture, teacher: Architecture, row_tokens: int, devices: int) -> CostTable:
    """A row for each of `PROPORTIONS`, for rows of `row_tokens` tokens on `devices` GPUs."""
    whole = _numbers(student, teacher, row_tokens, devices)
    tokens = {lsp: max(1, int(row_tokens * lsp)) for lsp in PROPORTIONS}
    rows = (_row(lsp, kept, _numbers(student, teacher, kept, devices), whole) for lsp, kept in tokens.items())
    return CostTable(name, devices, tuple(rows))


@dataclass(frozen=True)
class _Numbers:
    """What one row of some length takes."""

    flops: float
    compute_s: float
    gather_s: float
    static: float
    """Bytes that have no length."""
    dynamic: float
    chunked: float
    """As `dynamic`, with the loss in chunks."""


def _row(lsp: float, tokens: int, one: _Numbers, whole: _Numbers) -> CostRow:
    return CostRow(
        lsp=lsp,
        tokens=tokens,
        flops=int(one.flops),
        flops_ratio=one.flops / whole.flops,
        time_ratio=one.flops / whole.flops,
        time_ratio_exposed=(one.compute_s + one.gather_s) / (whole.compute_s + whole.gather_s),
        static_gib=one.static / GIB,
        dynamic_gib=one.dynamic / GIB,
        memory_ratio=(one.static + one.dynamic) / (whole.static + whole.dynamic),
        chunked_dynamic_gib=one.chunked / GIB,
        chunked_memory_ratio=(one.static + one.chunked) / (whole.static + whole.chunked),
    )


def _numbers(student: Architecture, teacher: Architecture, tokens: int, devices: int) -> _Numbers:
    flops = distillation_flops(student, teacher, [tokens], activation_checkpointing=True)
    released = DeviceLoad(
        student=student,
        teacher=teacher,
        compute_dtype="bfloat16",
        activation_checkpointing=True,
        packed=False,
        positions=tokens,
        labels=tokens,
        loss_bytes_per_logit=PLAIN_BYTES_PER_LOGIT,
        loss_bytes=0,
        parallel="zero3",
        devices=devices,
        teacher_placement="sharded",
    )
    buffers = min(CHUNK_LABELS, tokens) * CHUNK_BYTES_PER_LOGIT * student.vocabulary
    buffers += BFLOAT16_BYTES * student.head_parameters
    chunked = replace(released, loss_bytes_per_logit=KEPT_BYTES_PER_LOGIT, loss_bytes=buffers)
    # The student's weights come together for forward, recomputation and backward, the teacher's once.
    gathered = BFLOAT16_BYTES * (3 * student.parameters + teacher.parameters) * (devices - 1) / devices
    return _Numbers(
        flops=float(flops),
        compute_s=flops / DEVICE_FLOPS,
        gather_s=gathered / LINK_BYTES_PER_S,
        static=float(released_static_bytes(student, teacher, devices)),
        dynamic=float(estimate_memory(released).dynamic),
        chunked=float(estimate_memory(chunked).dynamic),
    )


def released_static_bytes(student: Architecture, teacher: Architecture, devices: int) -> int:
    """Of FSDP over `devices` GPUs, on each: shards in float32 of the student's weights, gradients and moments.

    Under FSDP's mixed precision a weight is bfloat16 only while it is whole (counted in tests/plan/test_costs.py),
    unlike under ZeRO-3, whose shards are in both dtypes. The teacher has no master: its shards are bfloat16.
    """
    whole = gathered_parameters(student, trained=True) + gathered_parameters(teacher, trained=False)
    shards = MASTER_BYTES * student.parameters + BFLOAT16_BYTES * teacher.parameters
    return round(shards / devices + BFLOAT16_BYTES * whole)
