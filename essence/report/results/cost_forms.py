"""Which costs may be divided by each other: the one rule of tables, tiles, figures, sentences and claims.

A proportion is to be the only thing in which two trainings differ. What else a cost depends on is the form in which a
training ran: memory chooses some of it (`essence/sizes/recomputation.py`), the machine the rest.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from essence.record.manifest import Hardware
from essence.record.stage_records import TrainManifest

MEASURED = ("activations", "passes", "loss", "compiled", "ranks", "devices", "memory")
"""Aspects of a form on which what is measured depends."""
ASPECTS: dict[str, tuple[str, ...]] = {
    "time": MEASURED, "memory": MEASURED, "energy": MEASURED,
    "flops": ("activations",),  # counted from the rows, and recomputation is counted, too
    "tokens": (),
}  # fmt: skip
"""Cost, a word of `COST_UNITS` -> the aspects in which two trainings must be alike for it to be divided."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class TrainingForm:
    """How a training ran. What a record does not tell is None or empty: it is like what others do not tell, alone."""

    recomputed: bool | None = None
    """Activations, in the backward pass."""
    pass_tokens: int | None = None
    """Most tokens of a forward pass: fewer where activations are kept in shorter passes."""
    pass_rows: int | None = None
    """Most rows of a forward pass; None where rows are packed."""
    loss: str = ""
    """Whether it holds the logits (`plain`) or never does (`chunked`)."""
    compiled: tuple[str, ...] = ()
    """Parts that ran compiled: each falls back by itself where it is not right."""
    ranks: str = ""
    """How the training was shared out among processes, and what lay elsewhere than on their devices."""
    devices: str = ""
    """What it ran on."""
    on_gpu: bool = False
    """Whether its memory is that of a GPU, or of its process."""

    @property
    def aspects(self) -> dict[str, str]:
        """Each of `MEASURED` in words that can follow its name: `passes of at most 8,192 tokens`."""
        rows = f"{self.pass_rows} rows and " if self.pass_rows is not None else ""
        return {
            "activations": NOT_RECORDED if self.recomputed is None else ("kept", "recomputed")[self.recomputed],
            "passes": f"of at most {rows}{self.pass_tokens:,} tokens" if self.pass_tokens else NOT_RECORDED,
            "loss": self.loss or NOT_RECORDED,
            "compiled": " and ".join(self.compiled) or "nothing",
            "ranks": self.ranks or NOT_RECORDED,
            "devices": self.devices or NOT_RECORDED,
            "memory": "of a GPU" if self.on_gpu else "of the process",
        }


UNKNOWN_FORM = TrainingForm()


def unlike(cost: str, forms: Iterable[TrainingForm], full: Iterable[TrainingForm]) -> str:
    """Why a cost of some trainings is not divided by that of some at LSP 1.0; empty where it may be.

    It may be where all of them have one form: `activations kept, at LSP 1.0 recomputed`.
    """
    here, there = ([form.aspects for form in some] for some in (forms, full))
    return "; ".join(
        f"{aspect} {_either(here, aspect)}, at LSP 1.0 {_either(there, aspect)}"
        for aspect in ASPECTS[cost]
        if len({form[aspect] for form in (*here, *there)}) > 1
    )


def _either(forms: list[dict[str, str]], aspect: str) -> str:
    return " or ".join(dict.fromkeys(form[aspect] for form in forms))


def form_of(training: TrainManifest) -> TrainingForm:
    """The form in which a finished training ran, as its record tells it."""
    ran = training.settings.executed
    passes, objective, layers = ran.micro_batches, ran.preflight.objective, ran.preflight.layers
    compiled = {"loss": objective.compiled, "student": layers.student, "teacher": layers.teacher}
    return TrainingForm(
        recomputed=training.recomputed,
        pass_tokens=passes.most_tokens if passes else None,
        pass_rows=passes.most_rows if passes else None,
        loss=objective.form or "",
        compiled=tuple(part for part, is_so in compiled.items() if is_so),
        ranks=_ranks(training),
        devices=_devices(training.hardware),
        on_gpu=training.cost.peak_gpu_memory_gib is not None,
    )


def _ranks(training: TrainManifest) -> str:
    """`zero2, 4 processes, teacher sharded`."""
    asked, ran = training.settings.resolved, training.settings.executed.parallel
    parts = [asked.parallel or ""]
    parts += [f"{asked.processes} process{'es' * (asked.processes != 1)}"] if asked.processes else []
    parts += [f"{ran.nodes} machines"] if (ran.nodes or 1) > 1 else []
    parts += [f"teacher {ran.teacher}"] if ran.teacher else []
    # Records of an earlier version do not name the other place, which all of them had.
    parts += ["optimizer in main memory"] if ran.optimizer == "main_memory" else []
    return ", ".join(part for part in parts if part)


def _devices(hardware: Hardware) -> str:
    """`4 × NVIDIA H100`; without a GPU the processor and its threads."""
    gpus = Counter(gpu.name or "GPU" for gpu in hardware.gpus)
    processor = f"{hardware.cpu or 'processor'}, {hardware.threads} thread{'s' * (hardware.threads != 1)}"
    return ", ".join(f"{count} × {name}" for name, count in sorted(gpus.items())) or processor
