"""The training loop: resumable to the bit on a CPU, the same for every backend.

Rows are taken in another order in each epoch (`essence/distill/order.py`). A step is `batch_rows` rows or the rows that
hold `batch_tokens` tokens (`essence/sizes/step_rows.py`), reached by accumulating the forward passes of all ranks; the
loss is the mean over the step's rows. Steps follow from the settings alone, so a resumed training goes on in the same
order. `essence/distill/checkpoint_choice.py` says which validation's weights are kept, `essence/distill/storage.py`
what is on disk.
"""

import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from essence.data.truncation import Example, Places
from essence.distill.attention import use_row_attention
from essence.distill.backends import make_backend
from essence.distill.batches import Batch
from essence.distill.checkpoint import Sampled, Validation
from essence.distill.checkpoint_choice import improves, rank_means, remembered, watched
from essence.distill.compiled_layers import settle_layers
from essence.distill.devices import COMPUTE_DTYPES, EnergyMeter, peak_memory_bytes
from essence.distill.float32_masters import lowers_weights
from essence.distill.late_graphs import UncompiledError
from essence.distill.metrics import progress_note
from essence.distill.module import Distiller
from essence.distill.order import steps_of_training
from essence.distill.ranks import ALONE, Ranks
from essence.distill.rollouts import Drawn, OnPolicy, Rollout, rollouts_sha256
from essence.distill.schedule import CyclePoint, one_cycle, validation_steps
from essence.distill.storage import Storage, TrainResult
from essence.distill.teachers import TeacherStates
from essence.errors import KitError
from essence.files import GIB
from essence.progress import Progress, Stopped, StopRequest
from essence.settings import Resources, TrainSettings
from essence.sizes.step_rows import deal, shape


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
    events: Path | None = None,
    ranks: Ranks = ALONE,
    device: torch.device | None = None,
    train_places: Places | None = None,
    validation_places: Places | None = None,
    ends: Collection[int] = (),
) -> TrainResult:
    """Train `student` in place, going on from the newest checkpoint under `work` where there is one.

    Args:
        student: causal language model with float32 parameters. Those that require a gradient are trained.
        teacher: where its hidden states come from; None when `settings.objective.kd_weight` is 0 (plain fine-tuning).
        train_examples: rows as they were drawn, before any epoch's order; at least one.
        validation_examples: may be empty: then there is no best checkpoint, only the last weights.
        settings: of these, `rows` and `view` are already in the examples and are not read here.
        resources: the sizes of micro batches, when to write checkpoints and how many to keep; activations are kept
            where no choice between keeping and recomputing them has been made (`auto`).
        work: folder for checkpoints, best weights and metrics; kept across attempts by the caller.
        progress: updated every step under the name `phase`, by the first rank.
        stop: looked at after every step; a stop that any rank was asked for stops all.
        events: folder for TensorBoard's files, written by the first rank; None = none are written.
        ranks: the processes that train together, met already; each calls this with the same arguments.
        device: to train on; None = where the student is.
        train_places: places of the rows among those drawn, whose order an epoch has; None = none was left out.
        validation_places: the same of the validation rows, which the ranks that choose a checkpoint share out.
        ends: tokens at which a rollout stops, where the student learns from its own words; then `train_examples` are
            the prompts.

    Raises:
        Stopped: a stop was asked for; a checkpoint of the last step is on disk.
        DivergedError: loss or gradient is NaN or infinite; names the rows.
        UncompiledError: layers that all ranks run alike cannot be compiled for a pass; the next attempt compiles none.
    """
    places = (train_places or Places.of(train_examples), validation_places or Places.of(validation_examples))
    run = _Run(student, teacher, train_examples, validation_examples, places, settings, resources, ranks)
    if settings.rollouts:
        run.on_policy = OnPolicy(settings, run.steps, train_examples, ends)
    storage = Storage(work, resources, ranks, events)
    run.start(storage, device or next(student.parameters()).device)
    with storage:
        try:
            run.go(progress, stop, phase)
        except UncompiledError as error:
            storage.note_uncompiled(error.problem)
            raise
        storage.keep_last(run.backend)
    return storage.result(run.state, run.packed, run.layers.at_end(ranks))


class _Run:
    """One training and its state; `train` is the way in."""

    def __init__(
        self,
        student: nn.Module,
        teacher: TeacherStates | None,
        train_examples: Sequence[Example],
        validation_examples: Sequence[Example],
        places: tuple[Places, Places],
        settings: TrainSettings,
        resources: Resources,
        ranks: Ranks,
    ) -> None:
        if teacher is None and settings.objective.kd_weight > 0.0:
            raise ValueError(f"kd_weight = {settings.objective.kd_weight} needs a teacher")
        self.student, self.teacher = student, teacher if settings.objective.kd_weight > 0.0 else None
        self.rows, self.validation_rows = train_examples, validation_examples
        self.settings, self.resources, self.ranks = settings, resources, ranks
        epochs = steps_of_training(train_examples, places[0], settings.optimizer, settings.order)
        self.steps = [step for epoch in epochs for step in epoch]
        self.total_steps = len(self.steps)
        self.watched = watched(places[1], settings.checkpoint_ranks)
        self.validate_after = (
            validation_steps([len(epoch) for epoch in epochs], settings.validations_per_epoch)
            if validation_examples
            else frozenset()
        )
        self.note = ""
        self.on_policy: OnPolicy | None = None
        if settings.rollouts and (teacher is None or ranks.processes > 1):
            raise ValueError("rollouts need a teacher and one process, which holds the whole student")

    def start(self, storage: Storage, device: torch.device) -> None:
        """Go back to the newest checkpoint, or to a seeded start, and put the student where it trains."""
        self.storage, self.energy = storage, EnergyMeter(device)
        self.packed = self._prepare_models()
        most_rows, uncompiled = self.resources.micro_batch_rows, storage.uncompiled()
        self.layers = settle_layers(
            self.student, self.teacher, self.settings, self.packed, most_rows, self.ranks, uncompiled
        )
        torch.manual_seed(self.settings.seed)
        self.state, found = storage.restore(self.student)
        self.ranks.wait()  # a checkpoint is on the page cache of one machine and not of another
        compute_dtype = COMPUTE_DTYPES[self.settings.compute_dtype]
        autocast = self.settings.compute_dtype != "float32" and not lowers_weights(self.settings)
        distiller = Distiller(self.student, self.settings.objective, self.resources.loss, compute_dtype, autocast)
        self.backend = make_backend(distiller, self.settings, self.ranks, device, found)
        self.ranks.wait()  # nor are its moments, which each rank has read
        self.autocast = torch.autocast(device.type, compute_dtype, enabled=autocast)

    def _prepare_models(self) -> bool:
        """Get the models ready; returns whether rows are packed."""
        self.student.train()
        if self.resources.activation_checkpointing == "on":
            enable: Any = self.student.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not (self.settings.packing and use_row_attention(self.student)):
            return False
        return self.teacher is None or self.teacher.read_packed_rows()

    def go(self, progress: Progress, stop: StopRequest, phase: str) -> None:
        """Train from the current step to the last."""

        def drawn(tokens: int, ended: int, rollouts: int) -> None:
            told = f"drawing rollouts: {tokens:,} tokens, {ended:,} of {rollouts:,} ended"
            progress.update(phase, self.state.step, self.total_steps, "steps", told)

        while self.state.step < self.total_steps:
            self._train_step(drawn)
            if self.state.step in self.validate_after:
                self._validate()
            if self.ranks.first:
                progress.update(phase, self.state.step, self.total_steps, "steps", self.note)
            due = self.ranks.first and self.storage.seconds_since_checkpoint >= self.resources.checkpoint_every_s
            any_due, any_stop = self.ranks.total(torch.tensor([float(due), float(bool(stop))])).tolist()
            if any_due or any_stop:
                self.storage.write(self.state, self.backend)
            if any_stop:
                raise Stopped(stop.signal_name or "a signal to another rank")
        if self.storage.checkpointed_step != self.state.step:
            # What comes now is only written; where that fails, a cured run starts from here and trains nothing again.
            self.storage.write(self.state, self.backend)

    def _train_step(self, drawn: Drawn) -> None:
        rows = self._rows_of_step(drawn)
        started = time.perf_counter()
        point = one_cycle(self.state.step, self.total_steps, self.settings.optimizer)
        parts = self._deal(rows)
        shares = [self._accumulate(part, rows, last=place == len(parts)) for place, part in enumerate(parts, 1)]
        used = self.energy.since_last()
        told = torch.cat([torch.stack(shares).sum(0).cpu(), torch.tensor([used is not None, used or 0.0])])
        loss, ce, kd, metered, joules = self.ranks.total(told).tolist()
        norm = self.backend.step(point)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"step {self.state.step + 1} of {self.total_steps}: loss {loss}, gradient norm {norm}, on rows "
                f"{[row.row for row in rows]} of the data set: look at these rows, or lower max_lr"
            )
        if metered:
            self.state.energy_j = (self.state.energy_j or 0.0) + joules
        tokens = sum(row.input_ids.size for row in rows)
        self._record_step(point, (loss, ce, kd), norm, tokens, time.perf_counter() - started)

    def _rows_of_step(self, drawn: Drawn) -> list[Example]:
        """Those of the order; of a student that learns from its own words, what it says after their prompts."""
        if self.on_policy is None:
            return [self.rows[index] for index in self.steps[self.state.step]]
        sampled = self.state.sampled = self.state.sampled or Sampled()
        started = time.perf_counter()
        self.student.eval()
        with self.autocast:
            rollouts = self.on_policy.of_step(self.state.step, sampled, self.student, self.backend.device, drawn)
        self.student.train()
        seconds = time.perf_counter() - started
        sampled.seconds += seconds
        self._record_rollouts(self.on_policy, rollouts, sampled.drawn_before_step, seconds)
        return [one.example for one in rollouts]

    def _record_rollouts(
        self, on_policy: OnPolicy, rollouts: Sequence[Rollout], drawn_before_step: int, seconds: float
    ) -> None:
        self.storage.record(
            kind="rollouts",
            step=self.state.step + 1,
            drawn_before_step=drawn_before_step + 1,
            rows=[one.row for one in rollouts],
            prompt_tokens=[one.prompt.size for one in rollouts],
            tokens=[len(one.tokens) for one in rollouts],
            ended=[on_policy.has_ended(one) for one in rollouts],
            sha256=rollouts_sha256(rollouts),
            sampling_seconds=seconds,
        )

    def _record_step(
        self, point: CyclePoint, losses: tuple[float, float, float], norm: float, tokens: int, seconds: float
    ) -> None:
        loss, ce, kd = losses
        self.state.step += 1
        self.state.last_loss = loss
        self.state.tokens += tokens
        self.state.seconds += seconds
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
        self.storage.record(kind="step", step=self.state.step, **record)

    def _accumulate(self, part: Sequence[Example], step: Sequence[Example], last: bool) -> Tensor:
        """Add the gradient of some of a step's rows; returns their share of loss, CE and KD, shape (3,)."""
        batch, share = self._batch(part)
        weights = batch.step_weights(self.settings.objective.normalisation, step) * share
        if self.teacher is None:
            return self.backend.accumulate(batch, weights, None, None, last)
        return self.backend.accumulate(batch, weights, self.teacher.states(batch), self.teacher.head, last)

    def _validate(self) -> None:
        """CE of the validation rows; keep the weights where every rank that chooses found its own rows improved."""
        state = self.state
        ce, parts = self.validation_ce()
        if not math.isfinite(ce):
            raise DivergedError(f"validation after step {state.step}: CE is {ce}: lower max_lr")
        state.validations.append(Validation(state.step, ce, parts))
        self.storage.record(kind="validation", step=state.step, ce=ce, parts=parts)
        if state.lowest_ce is None or ce < state.lowest_ce:
            state.lowest_step, state.lowest_ce = state.step, ce
        if improves(parts, state.best_parts):
            state.best_step, state.best_ce, state.best_parts = state.step, ce, remembered(parts)
            self.storage.keep_best(state, self.backend)

    def validation_ce(self) -> tuple[float, list[float]]:
        """Mean over validation rows of the mean CE over a row's supervised tokens: of all, and of each rank's rows.

        These ranks are of the settings, not our processes: rows that the same of them watch are dealt to all of ours.
        """
        self.student.eval()
        own = [self._ce_of([self.validation_rows[index] for index in rows]) for rows in self.watched.values()]
        self.student.train()
        sums = self.ranks.total(torch.tensor(own, dtype=torch.float64)).tolist()
        found = {key: (total, len(self.watched[key])) for key, total in zip(self.watched, sums, strict=True)}
        return sum(sums) / len(self.validation_rows), rank_means(found, self.settings.checkpoint_ranks)

    def _ce_of(self, rows: Sequence[Example]) -> float:
        """This rank's share of the sum of the rows' CE."""
        total = 0.0
        for part in self._deal(rows, counted=False):
            batch, share = self._batch(part)
            total += self.backend.cross_entropy(batch, batch.weights * share).item()
        return total

    def _deal(self, rows: Sequence[Example], counted: bool = True) -> list[list[Example]]:
        """The forward passes of this rank over some rows; counts those of all ranks where they are trained on."""
        lengths, multiple = [row.positions for row in rows], self.settings.pad_to_multiple
        dealt = deal(lengths, self.ranks.processes, self.packed, multiple, self.resources)
        if counted:
            passes = [part for own in dealt for part in own if part]
            shapes = [shape(lengths, part, self.packed, multiple) for part in passes]
            self.state.passes += len(passes)
            self.state.positions += sum(one.positions for one in shapes)
        return [[rows[index] for index in part] for part in dealt[self.ranks.rank]]

    def _batch(self, part: Sequence[Example]) -> tuple[Batch, float]:
        """The tensors of a pass, and what its weights are multiplied by.

        A rank that has nothing to read goes along with a short row that counts for nothing: the others cannot do
        without it, and nothing is added to loss or gradient.
        """
        rows = part or [min(self.rows, key=lambda row: row.positions)]
        batch = Batch.of(rows, self.settings.pad_to_multiple, self.backend.device, self.packed)
        return batch, 1.0 if part else 0.0
