"""Read every training row of a data set with the teacher once, and store what it gives: last hidden states and head.

A causal teacher's states of a row's first tokens do not depend on what follows, so all cells that read their rows from
the first token on (every proportion, epoch and seed of a sweep) are taught by this one reading. `rows/` holds the
states (`essence/distill/stored_states.py`), `model/` the teacher's head, config and tokenizer, and the states of pads
that see nothing: a training loads no more of it. Takes up where a killed attempt ended, at the file.
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
from essence.distill.devices import GIB, prepare_device
from essence.distill.pair import check_pair, read_decoder
from essence.distill.row_split import describe_positions, select_rows
from essence.distill.stored_states import HEAD, MODEL, ROWS, RowWriter, StoredRow, write_pads
from essence.distill.top_k import VALUES, likeliest
from essence.errors import InputError, MachineError
from essence.files import flush_to_disk
from essence.models.loading import check_model, load_model, load_tokenizer
from essence.models.saving import TOKENIZER_FILES
from essence.progress import StageContext, StageOutcome
from essence.settings import TeacherSettings, TopKSettings
from essence.sizes import architecture as cost
from essence.sizes import passes as packing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOGIT_ROWS = 512
SPARE_BYTES = 1 << 26
"""Beside the rows and the head: tokenizer, index, headers."""
FLOPS_FORMULA = (
    "a row of T tokens: 2 * N_linear * T + 2 * T^2 * heads * head_dim * layers, and for a top-k "
    "2 * vocabulary * hidden * T; no padding"
)


def run(settings: TeacherSettings, context: StageContext) -> StageOutcome:
    """Store what the teacher gives for the rows of the inputs `tokens`, `tokenizer` (whose ids these are), `teacher`.

    Raises:
        InputError: too few rows, a damaged file, another tokenizer than the teacher's.
        MachineError: the disk is too small, or a GPU is asked for and there is none.
        Stopped: asked for; files that are finished are kept.
    """
    folder = context.inputs["teacher"] / "model"
    check_model(folder, context.scratch)
    check_pair(context.inputs["tokenizer"] / "model", folder)
    architecture = cost.Architecture.from_config(read_decoder(folder))
    rows = load_rows(context.inputs["tokens"] / "tokens.arrow", settings, architecture.vocabulary)
    k = settings.top_k.k if settings.top_k else None
    facts = {"dtype": settings.compute_dtype, "top_k": k, "vocabulary": architecture.vocabulary}
    writer = RowWriter(context.partial / ROWS, facts)
    left = sum(row.input_ids.size for row in rows) - writer.tokens
    check_disk(context.partial, left * bytes_per_token(settings, architecture), architecture, settings)
    device = prepare_device(context.resources, 0)
    model = load_model(folder, DTYPES[settings.compute_dtype], device).eval().requires_grad_(False)
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
    if settings.top_k and settings.top_k.k >= vocabulary:
        raise InputError(f"teacher_top_k = {settings.top_k.k}, but the teacher knows {vocabulary} tokens: lower it")
    largest = max(int(row.input_ids.max()) for row in rows)
    if largest >= vocabulary:
        raise InputError(
            f"{path}: holds token id {largest}, but the teacher knows {vocabulary}: choose another teacher"
        )
    return rows


def bytes_per_token(settings: TeacherSettings, architecture: cost.Architecture) -> int:
    """Of the rows' files."""
    return cost.stored_bytes_per_token(
        architecture, settings.compute_dtype, settings.top_k.k if settings.top_k else None
    )


def check_disk(folder: Path, rows_bytes: int, architecture: cost.Architecture, settings: TeacherSettings) -> None:
    """MachineError where what is still to be written does not fit."""
    needed = rows_bytes + architecture.head_parameters * DTYPES[settings.compute_dtype].itemsize + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"the teacher's states take {needed / GIB:.1f} GiB more, but {folder} has {free / GIB:.1f} GiB left: make "
            "room there, name another run directory with --runs, or set teacher = 'live'"
        )


def shards(
    rows: Sequence[Example], settings: TeacherSettings, architecture: cost.Architecture, mib: float
) -> Iterator[Sequence[Example]]:
    """The rows of each file: as many as `mib` hold, at least one."""
    most = max(1, int(mib * (1 << 20)) // bytes_per_token(settings, architecture))
    for part in packing.steps_of_tokens([row.input_ids.size for row in rows], most):
        yield rows[part.start : part.stop]


class Reader:
    """The teacher reading rows, in the batches that a training would make of them."""

    def __init__(
        self, model: nn.Module, settings: TeacherSettings, context: StageContext, device: torch.device
    ) -> None:
        self.model: Any = model
        self.settings, self.context, self.device = settings, context, device
        self.packed = settings.packing and use_row_attention(model)
        self.tokens = self.positions = 0

    def read(self, rows: Sequence[Example], done: int, total: int) -> list[StoredRow]:
        """What is stored of some rows, in their order; `done` of `total` tokens were read before."""
        lengths, multiple = [row.input_ids.size for row in rows], self.settings.pad_to_multiple
        found: dict[int, StoredRow] = {}
        for part in packing.micro_batches(lengths, self.packed, multiple, self.context.resources):
            self.context.stop.check()  # loses the rows of one file
            for index, values in zip(part, self._values([rows[i] for i in part]), strict=True):
                row = rows[index]
                found[index] = StoredRow(row.row, torch.from_numpy(row.input_ids.copy()), values)
            shape = packing.shape(lengths, part, self.packed, multiple)
            self.tokens, self.positions = self.tokens + shape.tokens, self.positions + shape.positions
            done += shape.tokens
            self.context.progress.update("teacher", done, total, "tokens")
        return [found[index] for index in range(len(rows))]

    def _values(self, rows: Sequence[Example]) -> list[dict[str, Tensor]]:
        """What is stored of each row's tokens: states, or the likeliest tokens."""
        batch = Batch.of(rows, self.settings.pad_to_multiple, self.device, self.packed)
        with self._computing():
            return [self._stored(states) for states in states_of_rows(self.model, batch)]

    def read_pads(self, pads: Sequence[int]) -> dict[str, Tensor]:
        """What is stored of single tokens that see nothing."""
        with self._computing():
            return self._stored(states_of_pads(self.model, pads, self.device))

    @contextmanager
    def _computing(self) -> Iterator[None]:
        dtype = DTYPES[self.settings.compute_dtype]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            yield

    def _stored(self, states: Tensor) -> dict[str, Tensor]:
        if self.settings.top_k is None:
            return {"states": states.to("cpu", DTYPES[self.settings.compute_dtype])}
        return self._likeliest(states, self.settings.top_k)

    def _likeliest(self, states: Tensor, asked: TopKSettings) -> dict[str, Tensor]:
        """A few hundred logits at a time."""
        head = head_weight(self.model).T
        parts = [
            likeliest(states[first : first + LOGIT_ROWS] @ head, asked.k, asked.temperature)
            for first in range(0, len(states), LOGIT_ROWS)
        ]
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in VALUES}


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
    settings: TeacherSettings, rows: Sequence[Example], writer: RowWriter, reader: Reader, model: cost.Architecture
) -> StageOutcome:
    """What the manifest is told; the cost is that of all attempts, `executed` speaks of the last one alone."""
    tokens = sum(row.input_ids.size for row in rows)
    read_flops = cost.forward_flops if settings.top_k else cost.layer_flops
    results: dict[str, Any] = {
        "form": "top-k, approximate" if settings.top_k else "states",
        "exact": settings.top_k is None,
        "rows": len(rows),
        "tokens": tokens,
        "bytes": writer.bytes,
        "bytes_per_token": writer.bytes / tokens,
        "files": len(writer.files),
    }
    return StageOutcome(
        results=results,
        data={
            "rows": {"rows": len(rows), "tokens": tokens, "sha256": fingerprint(rows)},
            "positions": describe_positions(np.array([row.row for row in rows])).model_dump(mode="json"),
        },
        executed={
            "dtype": settings.compute_dtype,
            "device": reader.device.type,
            "attention": reader.model.config._attn_implementation,
            "packed": reader.packed,
            "tokens": reader.tokens,
            "fill": reader.tokens / reader.positions if reader.positions else None,
        },
        cost={
            "tokens": tokens,
            "flops": sum(read_flops(model, row.input_ids.size) for row in rows),
            "flops_formula": FLOPS_FORMULA,
        },
        seeds={"split": settings.rows.split_seed},
    )
