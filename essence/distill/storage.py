"""The saved state of a training: the state between two steps, checkpoints and best weights under one folder.

```
<work>/
    checkpoints/               essence/distill/checkpoint.py
    best-00000040.safetensors  weights of the validation that is kept so far (essence/distill/checkpoint_choice.py)
    last.safetensors           weights at the end
    metrics.jsonl              a line per step or validation; on resume cut back to the checkpoint
    uncompiled-00001.json      rank 1 could not compile the student's layers for a pass (essence/distill/late_graphs.py)
```
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch import Tensor, nn

from essence.distill import checkpoint
from essence.distill.adamw import MOMENTS
from essence.distill.backends import Backend
from essence.distill.checkpoint import Checkpoint, Sampled, State, Validation
from essence.distill.compiled_layers import CheckedLayers
from essence.distill.metrics import MetricsLog
from essence.distill.ranks import ALONE, Ranks
from essence.files import read_json, write_json
from essence.settings import Resources


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. Alone or under DDP, the student itself holds the last weights."""

    steps: int
    best_step: int | None
    """Of the weights that are kept (`essence/distill/checkpoint_choice.py`); None where there was no validation."""
    best_validation_ce: float | None
    lowest_step: int | None
    """Of the lowest mean, the first of equal ones; the same as `best_step` where one rank chooses."""
    lowest_validation_ce: float | None
    last_loss: float
    validations: list[Validation]
    """In order."""
    tokens: int
    """Tokens read by the student in training steps, without padding."""
    positions: int
    """The same with padding."""
    passes: int
    """Forward passes of the student in training steps."""
    packed: bool
    """True when rows were packed: asked for, and possible with these models."""
    layers: CheckedLayers
    """Whose layers were compiled."""
    seconds: float
    """Time spent in training steps, over all attempts."""
    energy_j: float | None
    """Joules of the GPUs of this machine from the first step to the last, as their driver counts; None without."""
    last_weights: Path
    """For `checkpoint.load_weights`."""
    best_weights: Path | None
    """None where there was no validation."""
    metrics: Path
    sampled: Sampled | None = None
    """None where rows are read as they are."""


class Storage:
    """The folder of one training: restores and writes the tensors of a backend and the state beside them.

    Every rank calls the same methods, since weights that are sharded come together only when all take part; what is
    written once is written by the first.
    """

    def __init__(self, work: Path, resources: Resources, ranks: Ranks = ALONE, events: Path | None = None) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.kept, self.ranks = work, resources.kept_checkpoints, ranks
        self.checkpoints = work / "checkpoints"
        self.metrics = MetricsLog(work / "metrics.jsonl", events)
        self.checkpointed_at, self.checkpointed_step = time.monotonic(), 0

    def __enter__(self) -> "Storage":
        if self.ranks.first:
            self.metrics.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.ranks.first:
            self.metrics.__exit__(kind, error, traceback)

    def restore(self, student: nn.Module) -> tuple[State, Checkpoint | None]:
        """Give the student the weights of the newest whole checkpoint, whose state comes back; a new one without."""
        found = checkpoint.newest(self.checkpoints, self.ranks)
        if found:
            checkpoint.load_weights(student, found)
            checkpoint.restore_random_states(found, self.ranks.rank)
        state = found.state if found else State()
        self.checkpointed_step = state.step
        if self.ranks.first:
            self.metrics.cut_after(state.step)
        return state, found

    def note_uncompiled(self, problem: str) -> None:
        """Remember for later attempts that layers which all ranks run alike cannot be compiled; of any rank."""
        note = {"problem": problem, "after_step": self.checkpointed_step}
        write_json(self.work / f"uncompiled-{self.ranks.rank:05d}.json", note)

    def uncompiled(self) -> str | None:
        """What an earlier attempt has noted of the student's layers; the same on every rank, and each calls this."""
        found: str | None = self.ranks.all_of(self._noted() if self.ranks.first else None)[0]
        return found

    def _noted(self) -> str | None:
        """Of all notes the one from which on nothing was compiled."""
        notes = [read_json(path) for path in sorted(self.work.glob("uncompiled-*.json"))]
        if not notes:
            return None
        first = min(notes, key=lambda note: int(note["after_step"]))
        return f"{first['problem']}: from step {first['after_step'] + 1} on none is compiled"

    def record(self, **values: object) -> None:
        """Append one record to the metrics."""
        if self.ranks.first:
            self.metrics.write(**values)

    def write(self, state: State, backend: Backend) -> None:
        """Write a checkpoint of the finished step."""
        if self.ranks.first:
            self.metrics.flush_to_disk()  # so that a checkpoint never knows more steps than the metrics do
        tensors = {**checkpoint.random_states(self.ranks.rank), **_own_tensors(backend)}
        checkpoint.write(self.checkpoints, state.step, tensors, state, self.kept, self.ranks)
        self._remove_old_best(state)
        self.checkpointed_at, self.checkpointed_step = time.monotonic(), state.step

    @property
    def seconds_since_checkpoint(self) -> float:
        return time.monotonic() - self.checkpointed_at

    def keep_best(self, state: State, backend: Backend) -> None:
        """Write the weights of `state.best_step`, which is the step just validated."""
        assert state.best_step is not None, "nothing was validated"
        self._save_weights(self.best_path(state.best_step), backend)
        self._remove_old_best(state)

    def keep_last(self, backend: Backend) -> None:
        """Write the weights at the end."""
        self._save_weights(self.last_path, backend)

    def _save_weights(self, path: Path, backend: Backend) -> None:
        weights: dict[str, Tensor] = {}
        for name, parameter in trained(backend.student):
            whole = backend.weight(parameter)
            if self.ranks.first:
                weights[name] = whole.cpu()
        if self.ranks.first:
            checkpoint.save_weights(path, weights)

    @property
    def last_path(self) -> Path:
        return self.work / "last.safetensors"

    def best_path(self, step: int) -> Path:
        return self.work / f"best-{step:08d}.safetensors"

    def _remove_old_best(self, state: State) -> None:
        """Remove best weights that neither the state nor a stored checkpoint speaks of."""
        if not self.ranks.first:
            return
        needed = {state.best_step} | {s.best_step for s in checkpoint.states(self.checkpoints)}
        for path in self.work.glob("best-*.safetensors"):
            if path not in {self.best_path(step) for step in needed if step is not None}:
                path.unlink()

    def result(self, state: State, packed: bool, layers: CheckedLayers) -> TrainResult:
        return TrainResult(
            steps=state.step,
            best_step=state.best_step,
            best_validation_ce=state.best_ce,
            lowest_step=state.lowest_step,
            lowest_validation_ce=state.lowest_ce,
            last_loss=math.nan if state.last_loss is None else state.last_loss,
            validations=state.validations,
            tokens=state.tokens,
            positions=state.positions,
            passes=state.passes,
            packed=packed,
            layers=layers,
            seconds=state.seconds,
            energy_j=state.energy_j,
            last_weights=self.last_path,
            best_weights=None if state.best_step is None else self.best_path(state.best_step),
            metrics=self.metrics.path,
            sampled=state.sampled,
        )


def trained(student: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, by name; tied ones once."""
    return [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]


def _own_tensors(backend: Backend) -> dict[str, Tensor]:
    """Weights and moments that this rank writes: every so-many-th parameter, whole."""
    tensors: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(trained(backend.student)):
        own = backend.ranks.owner(index) == backend.ranks.rank
        for kind in ("weight", *MOMENTS):
            whole = backend.weight(parameter) if kind == "weight" else backend.moment(parameter, kind)
            if own:
                tensors[f"{kind}/{name}"] = whole.cpu()
    return tensors
