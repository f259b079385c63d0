"""The training loop: plain PyTorch, one process, resumable to the bit on a CPU.

Rows are taken in the given order, the same in every epoch, as released. A step is `batch_rows` rows (the last one of an
epoch may have fewer), reached by accumulating forward passes (`essence/distill/packing.py`); the loss is the mean over
the step's rows.
Under the folder `work`:

```
checkpoints/               essence/distill/checkpoint.py
best-00000040.safetensors  weights of the validation with the lowest CE so far
metrics.jsonl              {"kind": "step", ...} and {"kind": "validation", ...}; on resume cut back to the checkpoint
```
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from essence.distill import checkpoint, packing
from essence.distill.attention import use_row_attention
from essence.distill.batches import Batch, logits_at
from essence.distill.loss import cross_entropy_of_rows, objective
from essence.distill.metrics import MetricsLog
from essence.distill.schedule import one_cycle, steps_per_epoch, validation_steps
from essence.distill.sequence import Example
from essence.errors import KitError
from essence.settings import Resources, TrainSettings
from essence.stages.context import Progress, StopRequest


class DivergedError(KitError):
    """Loss or gradient is no longer a number."""


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
    best_weights: Path | None
    """For `checkpoint.load_weights`."""
    metrics: Path


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


def train(
    student: nn.Module,
    teacher: nn.Module | None,
    train_examples: Sequence[Example],
    validation_examples: Sequence[Example],
    settings: TrainSettings,
    resources: Resources,
    work: Path,
    progress: Progress,
    stop: StopRequest,
    phase: str = "train",
) -> TrainResult:
    """Train `student` in place, going on from the newest checkpoint under `work` where there is one.

    Args:
        student: causal language model with float32 parameters, on the device to train on. All parameters are trained.
        teacher: frozen model on the same device; None when `settings.objective.kd_weight` is 0 (plain fine-tuning).
        train_examples: rows in training order; at least one.
        validation_examples: may be empty: then there is no best checkpoint, only the last weights.
        settings: of these, `rows` and `view` are already in the examples and are not read here.
        resources: `micro_batch_rows`, `micro_batch_tokens` and `checkpoint_every_s` are used.
        work: folder for checkpoints, best weights and metrics; kept across attempts by the caller.
        progress: told every step under the name `phase`.
        stop: looked at after every step.

    Raises:
        Stopped: a stop was asked for; a checkpoint of the last step is on disk.
        DivergedError: loss or gradient is NaN or infinite; names the rows.
    """
    run = _Run(student, teacher, train_examples, validation_examples, settings, resources, work)
    run.restore()
    with run.metrics:
        run.go(progress, stop, phase)
    return run.result()


class _Run:
    """One training and its state; `train` is the way in."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        train_examples: Sequence[Example],
        validation_examples: Sequence[Example],
        settings: TrainSettings,
        resources: Resources,
        work: Path,
    ) -> None:
        if teacher is None and settings.objective.kd_weight > 0.0:
            raise ValueError(f"kd_weight = {settings.objective.kd_weight} needs a teacher")
        self.student, self.teacher = student, teacher if settings.objective.kd_weight > 0.0 else None
        self.rows, self.validation_rows = train_examples, validation_examples
        self.settings, self.resources, self.work = settings, resources, work
        self.device = next(student.parameters()).device
        self.epoch_steps = steps_per_epoch(len(train_examples), settings.optimizer.batch_rows)
        self.total_steps = self.epoch_steps * settings.optimizer.epochs
        self.validate_after = (
            validation_steps(self.epoch_steps, settings.optimizer.epochs, settings.validations_per_epoch)
            if validation_examples
            else frozenset()
        )
        self.optimizer = torch.optim.AdamW(
            student.parameters(),
            betas=(settings.optimizer.beta1_high, settings.optimizer.adam_beta2),
            eps=settings.optimizer.adam_epsilon,
            weight_decay=settings.optimizer.weight_decay,
            fused=True,
        )
        self.state = State()
        work.mkdir(parents=True, exist_ok=True)
        self.metrics = MetricsLog(work / "metrics.jsonl")
        self.checkpointed_at = time.monotonic()
        self._prepare_models()

    def _prepare_models(self) -> None:
        self.student.train()
        if self.settings.activation_checkpointing:
            enable: Any = self.student.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        models = [model for model in (self.student, self.teacher) if model is not None]
        self.packed = self.settings.packing and all(use_row_attention(model) for model in models)
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)

    def restore(self) -> None:
        """Go back to the newest checkpoint, or to a seeded start."""
        torch.manual_seed(self.settings.seed)
        found = checkpoint.newest(self.work / "checkpoints")
        if found:
            checkpoint.restore_training(self.student, self.optimizer, found)
            self.state = State(**found.state)
        self.metrics.cut_after(self.state.step)

    def go(self, progress: Progress, stop: StopRequest, phase: str) -> None:
        """Train from the current step to the last."""
        while self.state.step < self.total_steps:
            self._train_step()
            if self.state.step in self.validate_after:
                self._validate()
            progress.update(phase, self.state.step, self.total_steps, "steps", f"loss {self.state.last_loss:.4f}")
            due = time.monotonic() - self.checkpointed_at >= self.resources.checkpoint_every_s
            if due or stop:
                self._checkpoint()
                stop.check()

    def _train_step(self) -> None:
        started = time.perf_counter()
        rows = self._rows_of_step(self.state.step)
        point = one_cycle(self.state.step, self.total_steps, self.settings.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = point.lr, (point.beta1, self.settings.optimizer.adam_beta2)
        self.optimizer.zero_grad(set_to_none=True)
        loss, ce, kd = torch.stack([self._accumulate(part, len(rows)) for part in self._parts(rows)]).sum(0).tolist()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.optimizer.gradient_clip_norm).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"step {self.state.step + 1} of {self.total_steps}: loss {loss}, gradient norm {norm}, on rows "
                f"{[row.row for row in rows]} of the data set: look at these rows, or lower max_lr"
            )
        self.optimizer.step()
        tokens, seconds = sum(row.input_ids.size for row in rows), time.perf_counter() - started
        self.state.step += 1
        self.state.last_loss = loss
        self.state.tokens += tokens
        self.state.seconds += seconds
        self.metrics.write(
            kind="step",
            step=self.state.step,
            lr=point.lr,
            beta1=point.beta1,
            loss=loss,
            ce=ce,
            kd=None if self.teacher is None else kd,
            gradient_norm=norm,
            tokens=tokens,
            seconds=seconds,
        )

    def _accumulate(self, part: Sequence[Example], rows_of_step: int) -> Tensor:
        """Add the gradient of some of a step's rows; returns their share of loss, CE and KD, shape (3,)."""
        batch = Batch.of(part, self.settings.pad_to_multiple, self.device, self.packed)
        self.state.positions += batch.input_ids.numel()
        self.state.passes += 1
        teacher_logits = None
        with self._compute_dtype():
            if self.teacher is not None:
                with torch.inference_mode():
                    teacher_logits = logits_at(self.teacher, batch)
            student_logits = logits_at(self.student, batch)
        losses = objective(
            student_logits, teacher_logits, batch.labels, batch.weights / rows_of_step, self.settings.objective
        )
        losses.loss.backward()  # type: ignore[no-untyped-call]
        return torch.stack([losses.loss.detach(), losses.ce, losses.kd])

    def _validate(self) -> None:
        """CE of the validation rows; keep the weights where it is the lowest so far."""
        ce = self.validation_ce()
        if not math.isfinite(ce):
            raise DivergedError(f"validation after step {self.state.step}: CE is {ce}: lower max_lr")
        self.state.validations.append({"step": self.state.step, "ce": ce})
        self.metrics.write(kind="validation", step=self.state.step, ce=ce)
        if self.state.best_ce is None or ce < self.state.best_ce:
            self.state.best_step, self.state.best_ce = self.state.step, ce
            checkpoint.save_weights(self._best_path(self.state.step), self.student)
            self._remove_old_best()

    def validation_ce(self) -> float:
        """Mean over validation rows of the mean CE over a row's supervised tokens."""
        self.student.eval()
        total = 0.0
        with torch.inference_mode(), self._compute_dtype():
            for part in self._parts(self.validation_rows):
                batch = Batch.of(part, self.settings.pad_to_multiple, self.device, self.packed)
                total += cross_entropy_of_rows(logits_at(self.student, batch), batch.labels, batch.weights).item()
        self.student.train()
        return total / len(self.validation_rows)

    def _checkpoint(self) -> None:
        self.metrics.flush_to_disk()  # so that a checkpoint never knows more steps than the metrics do
        tensors = checkpoint.training_tensors(self.student, self.optimizer)
        checkpoint.write(self.work / "checkpoints", self.state.step, tensors, asdict(self.state))
        self._remove_old_best()
        self.checkpointed_at = time.monotonic()

    def _remove_old_best(self) -> None:
        """Remove best weights that neither the state nor a stored checkpoint speaks of."""
        needed = {self.state.best_step} | {s["best_step"] for s in checkpoint.states(self.work / "checkpoints")}
        for path in self.work.glob("best-*.safetensors"):
            if path not in {self._best_path(step) for step in needed if step is not None}:
                path.unlink()

    def _best_path(self, step: int) -> Path:
        return self.work / f"best-{step:08d}.safetensors"

    def _rows_of_step(self, step: int) -> Sequence[Example]:
        first = step % self.epoch_steps * self.settings.optimizer.batch_rows
        return self.rows[first : first + self.settings.optimizer.batch_rows]

    def _parts(self, rows: Sequence[Example]) -> Iterator[Sequence[Example]]:
        lengths = [row.input_ids.size for row in rows]
        shares = packing.micro_batches(lengths, self.packed, self.settings.pad_to_multiple, self.resources)
        return ([rows[index] for index in share] for share in shares)

    def _compute_dtype(self) -> torch.autocast:
        bfloat16 = self.settings.compute_dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16)

    def result(self) -> TrainResult:
        state = self.state
        return TrainResult(
            steps=state.step,
            best_step=state.best_step,
            best_validation_ce=state.best_ce,
            last_loss=math.nan if state.last_loss is None else state.last_loss,
            validations=state.validations,
            tokens=state.tokens,
            positions=state.positions,
            passes=state.passes,
            packed=self.packed,
            seconds=state.seconds,
            best_weights=None if state.best_step is None else self._best_path(state.best_step),
            metrics=self.metrics.path,
        )
