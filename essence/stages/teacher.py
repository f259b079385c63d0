"""Read every training row of a data set with the teacher once, and store what it gives: last hidden states and head.

A causal teacher's states of a row's first tokens do not depend on what follows, so all cells that read their rows from
the first token on (every proportion, epoch and seed of a sweep) are taught by this one reading. `rows/` holds the
states and entropies (`essence/distill/stored_states.py`), `model/` the teacher's head, config and tokenizer, and the
states of pads that see nothing: a training loads no more of it. Takes up where a killed attempt ended, at the file.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from essence.data.token_table import TokenTable
from essence.data.truncation import Example, fingerprint
from essence.distill.attention import use_row_attention
from essence.distill.batches import Batch, head_weight, states_of_pads, states_of_rows
from essence.distill.devices import COMPUTE_DTYPES, prepare_device
from essence.distill.entropy import entropies
from essence.distill.pair_checks import check_pair, read_decoder
from essence.distill.row_split import describe_positions, select_rows
from essence.distill.stored_states import HEAD, MODEL, ROWS, RowWriter, StoredRow, write_pads
from essence.errors import InputError, MachineError
from essence.files import GIB, flush_to_disk
from essence.models.loading import check_model, load_model, load_tokenizer
from essence.models.saving import TOKENIZER_FILES
from essence.progress import StageContext
from essence.record.outcomes import StageCost, TeacherOutcome
from essence.record.stage_records import TeacherData, TeacherExecuted, TeacherResults
from essence.record.training_records import RowsRecord
from essence.settings import TeacherSettings
from essence.sizes import step_rows
from essence.sizes.architecture import Architecture, forward_flops, stored_bytes_per_token

SPARE_BYTES = 1 << 26
"""Beside the rows and the head: tokenizer, index, headers."""
FLOPS_FORMULA = "a row of T tokens: 2 * (N_linear + N_head) * T + 2 * T^2 * heads * head_dim * layers; no padding"


def run(settings: TeacherSettings, context: StageContext) -> TeacherOutcome:
    """Store what the teacher gives for the rows of the inputs `tokens`, `tokenizer` (whose ids these are), `teacher`.

    Raises:
        InputError: too few rows, a damaged file, another tokenizer than the teacher's.
        MachineError: the disk is too small, or a GPU is asked for and there is none.
        Stopped: asked for; files that are finished are kept.
    """
    folder = context.inputs["teacher"] / "model"
    check_model(folder, context.scratch)
    check_pair(context.inputs["tokenizer"] / "model", folder)
    architecture = Architecture.from_config(read_decoder(folder))
    rows = load_rows(context.inputs["tokens"] / "tokens.arrow", settings, architecture.vocabulary)
    writer = RowWriter(context.partial / ROWS, settings.compute_dtype, architecture.vocabulary)
    left = sum(row.input_ids.size for row in rows) - writer.tokens
    check_disk(context.partial, left * bytes_per_token(settings, architecture), architecture, settings)
    device = prepare_device(context.resources, 0)
    model = load_model(folder, COMPUTE_DTYPES[settings.compute_dtype], device).eval().requires_grad_(False)
    reader = Reader(model, settings, context, device)
    for part in shards(rows[writer.rows :], settings, architecture, context.resources.teacher_shard_mib):
        writer.add(reader.read(part, writer.tokens, writer.tokens + left))
        left -= sum(row.input_ids.size for row in part)
    write_model(context.partial / MODEL, folder, head_weight(model))
    pads = pads_of(load_tokenizer(folder), architecture.vocabulary)
    write_pads(context.partial / MODEL, pads, reader.read_pads(pads))
    writer.seal(context.partial / MODEL)
    return outcome(settings, rows, writer, reader, architecture)


def load_rows(path: Path, settings: TeacherSettings, vocabulary: int) -> list[Example]:
    """The whole training rows, in training order; nothing of them is supervised.

    Raises:
        InputError: too few rows, or a token that the teacher does not know.
    """
    table = TokenTable(path)
    indices = select_rows(table.lengths, settings.rows).train
    rows = [
        Example(position, ids, np.zeros(ids.size, np.bool_))
        for position, ids in zip(table.positions[indices].tolist(), table.rows(indices), strict=True)
    ]
    largest = max(int(row.input_ids.max()) for row in rows)
    if largest >= vocabulary:
        raise InputError(
            f"{path}: holds token id {largest}, but the teacher knows {vocabulary}: choose another teacher"
        )
    return rows


def bytes_per_token(settings: TeacherSettings, architecture: Architecture) -> int:
    """Of the rows' files."""
    return stored_bytes_per_token(architecture, settings.compute_dtype)


def check_disk(folder: Path, rows_bytes: int, architecture: Architecture, settings: TeacherSettings) -> None:
    """MachineError where what is still to be written does not fit."""
    needed = rows_bytes + architecture.head_parameters * COMPUTE_DTYPES[settings.compute_dtype].itemsize + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"the teacher's states take {needed / GIB:.1f} GiB more, but {folder} has {free / GIB:.1f} GiB left: make "
            "room there, name another run directory with --runs, or set teacher = 'live'"
        )


def shards(
    rows: Sequence[Example], settings: TeacherSettings, architecture: Architecture, mib: float
) -> Iterator[Sequence[Example]]:
    """The rows of each file: as many as `mib` hold, at least one."""
    most = max(1, int(mib * (1 << 20)) // bytes_per_token(settings, architecture))
    for part in step_rows.steps_of_tokens([row.input_ids.size for row in rows], most):
        yield rows[part.start : part.stop]


class Reader:
    """The teacher reading rows, in the batches that a training would make of them."""

    def __init__(
        self, model: nn.Module, settings: TeacherSettings, context: StageContext, device: torch.device
    ) -> None:
        self.model: Any = model
        self.settings, self.context, self.device = settings, context, device
        self.packed = settings.packing and use_row_attention(model)
        self.head = head_weight(model)
        self.tokens = self.positions = 0

    def read(self, rows: Sequence[Example], done: int, total: int) -> list[StoredRow]:
        """What is stored of some rows, in their order; `done` of `total` tokens were read before."""
        lengths, multiple = [row.input_ids.size for row in rows], self.settings.pad_to_multiple
        found: dict[int, StoredRow] = {}
        for part in step_rows.micro_batches(lengths, self.packed, multiple, self.context.resources):
            self.context.stop.check()  # loses the rows of one file
            for index, (states, sure) in zip(part, self._states([rows[i] for i in part]), strict=True):
                row = rows[index]
                found[index] = StoredRow(row.row, torch.from_numpy(row.input_ids.copy()), states, sure)
            shape = step_rows.shape(lengths, part, self.packed, multiple)
            self.tokens, self.positions = self.tokens + shape.tokens, self.positions + shape.positions
            done += shape.tokens
            self.context.progress.update("teacher", done, total, "tokens")
        return [found[index] for index in range(len(rows))]

    def _states(self, rows: Sequence[Example]) -> list[tuple[Tensor, Tensor]]:
        """States and entropies of each row's tokens."""
        batch = Batch.of(rows, self.settings.pad_to_multiple, self.device, self.packed)
        with self._computing():
            read = states_of_rows(self.model, batch)
            kept = [states.to(COMPUTE_DTYPES[self.settings.compute_dtype]) for states in read]
            return [(states.cpu(), entropies(states, self.head).cpu()) for states in kept]

    def read_pads(self, pads: Sequence[int]) -> Tensor:
        """States of single tokens that see nothing."""
        with self._computing():
            return self._stored(states_of_pads(self.model, pads, self.device))

    @contextmanager
    def _computing(self) -> Iterator[None]:
        dtype = COMPUTE_DTYPES[self.settings.compute_dtype]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            yield

    def _stored(self, states: Tensor) -> Tensor:
        return states.to("cpu", COMPUTE_DTYPES[self.settings.compute_dtype])


def pads_of(tokenizer: Any, vocabulary: int) -> list[int]:
    """Ids of the tokens with which a student may pad: the special and the added ones, its end of sequence among them.

    The students that share this reading have the same vocabulary, but not all end a sequence with the same token.
    """
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return sorted(token for token in known if token < vocabulary)


def write_model(folder: Path, teacher: Path, head: Tensor) -> None:
    """The teacher's head with its config and tokenizer, so that a training checks the pair as with the whole model."""
    folder.mkdir(exist_ok=True)
    for name in ("config.json", *TOKENIZER_FILES):
        if (teacher / name).is_file():
            shutil.copyfile(teacher / name, folder / name)
    save_file({"head": head.detach().contiguous().cpu()}, folder / HEAD)
    flush_to_disk(folder / HEAD)


def outcome(
    settings: TeacherSettings, rows: Sequence[Example], writer: RowWriter, reader: Reader, model: Architecture
) -> TeacherOutcome:
    """What the manifest is given; the cost is that of all attempts, `executed` speaks of the last one alone."""
    tokens = sum(row.input_ids.size for row in rows)
    return TeacherOutcome(
        results=TeacherResults(
            rows=len(rows),
            tokens=tokens,
            bytes=writer.bytes,
            bytes_per_token=writer.bytes / tokens,
            files=len(writer.files),
        ),
        data=TeacherData(
            rows=RowsRecord(rows=len(rows), tokens=tokens, sha256=fingerprint(rows)),
            positions=describe_positions(np.array([row.row for row in rows])),
        ),
        executed=TeacherExecuted(
            dtype=settings.compute_dtype,
            device=reader.device.type,
            attention=reader.model.config._attn_implementation,
            packed=reader.packed,
            tokens=reader.tokens,
            fill=reader.tokens / reader.positions if reader.positions else None,
        ),
        cost=StageCost(
            tokens=tokens,
            flops=sum(forward_flops(model, row.input_ids.size) for row in rows),
            flops_formula=FLOPS_FORMULA,
        ),
        seeds={"split": settings.rows.split_seed},
    )
