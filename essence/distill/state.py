"""What a training remembers, and where: the state between two steps, checkpoints and best weights under one folder.

```
<work>/
    checkpoints/               essence/distill/checkpoint.py
    best-00000040.safetensors  weights of the validation with the lowest CE so far
    metrics.jsonl              a line a step or validation; on resume cut back to the checkpoint
```
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from essence.distill import checkpoint
from essence.distill.backends import Backend
from essence.distill.metrics import MetricsLog, OpenTrackers


@dataclass
class State:
    """What a checkpoint remembers beside tensors."""

    step: int = 0
    best_step: int | None = None
    best_ce: float | None = None
    last_loss: float | None = None
    validations: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0
    positions: int = 0
    passes: int = 0
    seconds: float = 0.0
    energy_j: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. The student itself holds the last weights."""

    steps: int
    best_step: int | None
    """None where there was no validation."""
    best_validation_ce: float | None
    last_loss: float
    validations: list[dict[str, float]]
    """`{"step", "ce"}` each, in order."""
    tokens: int
    """Tokens read by the student in training steps, without padding."""
    positions: int
    """The same with padding."""
    passes: int
    """Forward passes of the student in training steps."""
    packed: bool
    """Whether rows were packed: asked for, and possible with these models."""
    seconds: float
    """Time spent in training steps, over all attempts."""
    energy_j: float | None
    """Joules of the GPUs of this machine from the first step to the last, as their driver counts; None without."""
    best_weights: Path | None
    """For `checkpoint.load_weights`."""
    metrics: Path


class Storage:
    """The folder of one training: restores and writes the tensors of a backend and the state beside them."""

    def __init__(self, work: Path, backend: Backend, open_trackers: OpenTrackers | None = None) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.backend = work, backend
        self.checkpoints = work / "checkpoints"
        self.metrics = MetricsLog(work / "metrics.jsonl", open_trackers)
        self.checkpointed_at = time.monotonic()

    def restore(self) -> State:
        """Go back to the newest whole checkpoint; a new state where there is none."""
        found = checkpoint.newest(self.checkpoints)
        if found:
            self.backend.restore(found)
        state = State(**found.state) if found else State()
        self.metrics.cut_after(state.step)
        return state

    def write(self, state: State) -> None:
        """Write a checkpoint of the finished step."""
        self.metrics.flush_to_disk()  # so that a checkpoint never knows more steps than the metrics do
        checkpoint.write(self.checkpoints, state.step, self.backend.tensors(), asdict(state))
        self._remove_old_best(state)
        self.checkpointed_at = time.monotonic()

    @property
    def seconds_since_checkpoint(self) -> float:
        return time.monotonic() - self.checkpointed_at

    def keep_best(self, state: State) -> None:
        """Write the weights of `state.best_step`, which is the step just validated."""
        assert state.best_step is not None, "nothing was validated"
        checkpoint.save_weights(self.best_path(state.best_step), self.backend.weights())
        self._remove_old_best(state)

    def best_path(self, step: int) -> Path:
        return self.work / f"best-{step:08d}.safetensors"

    def _remove_old_best(self, state: State) -> None:
        """Remove best weights that neither the state nor a stored checkpoint speaks of."""
        needed = {state.best_step} | {s["best_step"] for s in checkpoint.states(self.checkpoints)}
        for path in self.work.glob("best-*.safetensors"):
            if path not in {self.best_path(step) for step in needed if step is not None}:
                path.unlink()

    def result(self, state: State, packed: bool) -> TrainResult:
        return TrainResult(
            steps=state.step,
            best_step=state.best_step,
            best_validation_ce=state.best_ce,
            last_loss=math.nan if state.last_loss is None else state.last_loss,
            validations=state.validations,
            tokens=state.tokens,
            positions=state.positions,
            passes=state.passes,
            packed=packed,
            seconds=state.seconds,
            energy_j=state.energy_j,
            best_weights=None if state.best_step is None else self.best_path(state.best_step),
            metrics=self.metrics.path,
        )
