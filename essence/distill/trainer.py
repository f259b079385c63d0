"""The training loop: resumable to the bit on a CPU.

Rows are taken in the given order, the same in every epoch, as released. A step is `batch_rows` rows (the last one of an
epoch may have fewer), reached by accumulating forward passes (`essence/distill/packing.py`); the loss is the mean over
the step's rows. What lies on disk: `essence/distill/state.py`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from essence.distill import packing
from essence.distill.attention import use_row_attention
from essence.distill.backends import SingleBackend
from essence.distill.batches import Batch
from essence.distill.devices import GIB, EnergyMeter, peak_memory_bytes
from essence.distill.distiller import COMPUTE_DTYPES, Distiller
from essence.distill.metrics import OpenTrackers, progress_note
from essence.distill.schedule import CyclePoint, one_cycle, steps_per_epoch, validation_steps
from essence.distill.sequence import Example
from essence.distill.state import Storage, TrainResult
from essence.distill.teacher import TeacherStates
from essence.errors import KitError
from essence.settings import Resources, TrainSettings
from essence.stages.context import Progress, StopRequest


class DivergedError(KitError):
    """Loss or gradient is no longer a number."""


def train(
    student: nn.Module,
    teacher: TeacherStates | None,
    train_examples: Sequence[Example],
    validation_examples: Sequence[Example],
    settings: TrainSettings,
    resources: Resources,
    work: Path,
    progress: Progress,
    stop: StopRequest,
    phase: str = "train",
    open_trackers: OpenTrackers | None = None,
) -> TrainResult:
    """Train `student` in place, going on from the newest checkpoint under `work` where there is one.

    Args:
        student: causal language model with float32 parameters, on the device to train on. All parameters are trained.
        teacher: where its hidden states come from; None when `settings.objective.kd_weight` is 0 (plain fine-tuning).
        train_examples: rows in training order; at least one.
        validation_examples: may be empty: then there is no best checkpoint, only the last weights.
        settings: of these, `rows` and `view` are already in the examples and are not read here.
        resources: `micro_batch_rows`, `micro_batch_tokens` and `checkpoint_every_s` are used.
        work: folder for checkpoints, best weights and metrics; kept across attempts by the caller.
        progress: told every step under the name `phase`.
        stop: looked at after every step.
        open_trackers: makes the trackers that are told what `metrics.jsonl` is told.

    Raises:
        Stopped: a stop was asked for; a checkpoint of the last step is on disk.
        DivergedError: loss or gradient is NaN or infinite; names the rows.
    """
    run = _Run(student, teacher, train_examples, validation_examples, settings, resources, work, open_trackers)
    with run.storage.metrics:
        run.go(progress, stop, phase)
    return run.storage.result(run.state, run.packed)


class _Run:
    """One training and its state; `train` is the way in."""

    def __init__(
        self,
        student: nn.Module,
        teacher: TeacherStates | None,
        train_examples: Sequence[Example],
        validation_examples: Sequence[Example],
        settings: TrainSettings,
        resources: Resources,
        work: Path,
        open_trackers: OpenTrackers | None,
    ) -> None:
        if teacher is None and settings.objective.kd_weight > 0.0:
            raise ValueError(f"kd_weight = {settings.objective.kd_weight} needs a teacher")
        self.teacher = teacher if settings.objective.kd_weight > 0.0 else None
        self.rows, self.validation_rows = train_examples, validation_examples
        self.settings, self.resources = settings, resources
        self.epoch_steps = steps_per_epoch(len(train_examples), settings.optimizer.batch_rows)
        self.total_steps = self.epoch_steps * settings.optimizer.epochs
        self.validate_after = (
            validation_steps(self.epoch_steps, settings.optimizer.epochs, settings.validations_per_epoch)
            if validation_examples
            else frozenset()
        )
        self.student = student
        self.packed = self._prepare_models()
        distiller = Distiller(student, settings.objective, COMPUTE_DTYPES[settings.compute_dtype])
        self.backend = SingleBackend(distiller, settings.optimizer)
        self.storage = Storage(work, self.backend, open_trackers)
        self.energy = EnergyMeter(self.backend.device)
        self.note = ""
        torch.manual_seed(settings.seed)
        self.state = self.storage.restore()

    def _prepare_models(self) -> bool:
        """Get the models ready; returns whether rows are packed."""
        self.student.train()
        if self.settings.activation_checkpointing:
            enable: Any = self.student.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not (self.settings.packing and use_row_attention(self.student)):
            return False
        return self.teacher is None or self.teacher.read_packed_rows()

    def go(self, progress: Progress, stop: StopRequest, phase: str) -> None:
        """Train from the current step to the last."""
        while self.state.step < self.total_steps:
            self._train_step()
            if self.state.step in self.validate_after:
                self._validate()
            progress.update(phase, self.state.step, self.total_steps, "steps", self.note)
            due = self.storage.seconds_since_checkpoint >= self.resources.checkpoint_every_s
            if due or stop:
                self.storage.write(self.state)
                stop.check()

    def _train_step(self) -> None:
        started = time.perf_counter()
        rows = self._rows_of_step(self.state.step)
        point = one_cycle(self.state.step, self.total_steps, self.settings.optimizer)
        parts = list(self._parts(rows))
        shares = [self._accumulate(part, len(rows), part is parts[-1]) for part in parts]
        loss, ce, kd = torch.stack(shares).sum(0).tolist()
        norm = self.backend.step(point)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"step {self.state.step + 1} of {self.total_steps}: loss {loss}, gradient norm {norm}, on rows "
                f"{[row.row for row in rows]} of the data set: look at these rows, or lower max_lr"
            )
        tokens = sum(row.input_ids.size for row in rows)
        self._record_step(point, (loss, ce, kd), norm, tokens, time.perf_counter() - started)

    def _record_step(
        self, point: CyclePoint, losses: tuple[float, float, float], norm: float, tokens: int, seconds: float
    ) -> None:
        loss, ce, kd = losses
        self.state.step += 1
        self.state.last_loss = loss
        self.state.tokens += tokens
        self.state.seconds += seconds
        used = self.energy.since_last()
        self.state.energy_j = self.state.energy_j if used is None else (self.state.energy_j or 0.0) + used
        record: dict[str, float | None] = {
            "lr": point.lr,
            "beta1": point.beta1,
            "loss": loss,
            "ce": ce,
            "kd": None if self.teacher is None else kd,
            "gradient_norm": norm,
            "tokens": tokens,
            "seconds": seconds,
            "peak_memory_gib": round(peak_memory_bytes(self.backend.device) / GIB, 3),
        }
        self.note = progress_note(record)
        self.storage.metrics.write(kind="step", step=self.state.step, **record)

    def _accumulate(self, part: Sequence[Example], rows_of_step: int, last: bool) -> Tensor:
        """Add the gradient of some of a step's rows; returns their share of loss, CE and KD, shape (3,)."""
        batch = self._batch(part)
        self.state.positions += batch.input_ids.numel()
        self.state.passes += 1
        weights = batch.weights / rows_of_step
        if self.teacher is None:
            return self.backend.accumulate(batch, weights, None, None, last)
        return self.backend.accumulate(batch, weights, self.teacher.states(batch), self.teacher.head, last)

    def _validate(self) -> None:
        """CE of the validation rows; keep the weights where it is the lowest so far."""
        ce = self.validation_ce()
        if not math.isfinite(ce):
            raise DivergedError(f"validation after step {self.state.step}: CE is {ce}: lower max_lr")
        self.state.validations.append({"step": self.state.step, "ce": ce})
        self.storage.metrics.write(kind="validation", step=self.state.step, ce=ce)
        if self.state.best_ce is None or ce < self.state.best_ce:
            self.state.best_step, self.state.best_ce = self.state.step, ce
            self.storage.keep_best(self.state)

    def validation_ce(self) -> float:
        """Mean over validation rows of the mean CE over a row's supervised tokens."""
        self.student.eval()
        batches = (self._batch(part) for part in self._parts(self.validation_rows))
        total = sum(self.backend.cross_entropy(batch, batch.weights).item() for batch in batches)
        self.student.train()
        return total / len(self.validation_rows)

    def _batch(self, part: Sequence[Example]) -> Batch:
        return Batch.of(part, self.settings.pad_to_multiple, self.backend.device, self.packed)

    def _rows_of_step(self, step: int) -> Sequence[Example]:
        first = step % self.epoch_steps * self.settings.optimizer.batch_rows
        return self.rows[first : first + self.settings.optimizer.batch_rows]

    def _parts(self, rows: Sequence[Example]) -> Iterator[Sequence[Example]]:
        lengths = [row.input_ids.size for row in rows]
        shares = packing.micro_batches(lengths, self.packed, self.settings.pad_to_multiple, self.resources)
        return ([rows[index] for index in share] for share in shares)
