"""A teacher that was computed before: `essence/stages/teacher.py` has stored its states, this looks them up."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from essence.distill.batches import Batch
from essence.distill.stored_rows import HEAD, MODEL, ROWS, StoredPads, StoredRows
from essence.distill.top_k import VALUES, TopK
from essence.errors import InputError


class CachedTeacher:
    """Looks up the states of the tokens that predict a label. Exact: the states of a row's first tokens are the same
    whatever follows them, so only rounding differs from a live teacher, which reads rows in other batches."""

    def __init__(self, output: Path, device: torch.device) -> None:
        """Map a teacher stage's output; the head alone is loaded.

        Raises:
            InputError: a file is missing or damaged.
        """
        self.rows, self.pads = StoredRows(output / ROWS), StoredPads(output)
        self._device = device
        self._head: Tensor = load_file(output / MODEL / HEAD)["head"].to(device)

    @property
    def head(self) -> Tensor:
        return self._head

    def states(self, batch: Batch) -> Tensor:
        return _at_predictors(self.rows, self.pads, "states", batch).to(self._device)

    def read_packed_rows(self) -> bool:
        """Rows are looked up one by one, however they are packed."""
        return True


class TopKTeacher:
    """Looks up the likeliest tokens of the teacher's distributions: approximate (`essence/distill/top_k.py`)."""

    def __init__(self, output: Path, k: int, device: torch.device) -> None:
        """Map a teacher stage's output.

        Raises:
            InputError: a file is missing or damaged, or holds another number of tokens than `k`.
        """
        self.rows, self.pads = StoredRows(output / ROWS), StoredPads(output)
        self._device = device
        if self.rows.index["top_k"] != k:
            raise InputError(f"{output / ROWS}: holds top_k = {self.rows.index['top_k']}, not {k}: run the stage again")

    @property
    def head(self) -> None:
        return None

    def states(self, batch: Batch) -> TopK:
        ids, log_p, log_rest = (_at_predictors(self.rows, self.pads, name, batch).to(self._device) for name in VALUES)
        return TopK(ids.long(), log_p, log_rest, self.rows.index["vocabulary"])

    def read_packed_rows(self) -> bool:
        """Rows are looked up one by one, however they are packed."""
        return True


def _at_predictors(rows: StoredRows, pads: StoredPads, name: str, batch: Batch) -> Tensor:
    """What is stored for the tokens that predict a label, in the order of the labels."""
    parts = []
    for example in batch.examples:
        predictors = np.flatnonzero(example.supervised) - 1
        if example.pad is not None:
            parts.append(pads.values(name, example.pad))
            predictors = predictors[1:]
        if not predictors.size:
            continue
        first = int(predictors[0])
        kept = rows.values(name, example, first, int(predictors[-1]) + 1)
        parts.append(kept[torch.from_numpy(predictors - first)])
    return torch.cat(parts)
