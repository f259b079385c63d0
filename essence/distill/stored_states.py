"""Files of a teacher's states for whole rows: written once, a file at a time, memory-mapped by every training.

```
<folder>/index.json           what is stored, and of each file its size and sha256; rewritten after each file, and at
                              the end with the sha256 of the teacher's head, which is in another folder
<folder>/rows-00000.safetensors
    positions  int64 (rows,)    of the rows in their data set
    lengths    int64 (rows,)    tokens of each row
    input_ids  int32 (tokens,)  the rows one after the other, as are the states
    states     (tokens, hidden) last hidden states, in the dtype of the computation
    entropies  float16 (tokens,) of the teacher's distribution for each token, in nats; 0 for a row's first one
```

A file has its name only when it is on the disk as a whole, and the index speaks of it only then, so a kill loses at
most one file.

`model/pads.safetensors` holds the same for single tokens that see nothing, `ids` int64 (pads,): a row's first token is
predicted from one of them under protocol `released`.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from essence.data.truncation import Entropies, Example
from essence.errors import InputError, RecordError
from essence.files import flush_to_disk, read_json, sha256_file, write_json
from essence.settings import Record
from essence.settings.toml import first_fault

ROWS, MODEL = "rows", "model"
"""Folders of a teacher stage's output."""
INDEX = "index.json"
HEAD, PADS = "head.safetensors", "pads.safetensors"
"""In `model/`, with the teacher's config and tokenizer."""
CURE = "remove this stage's folder and run the command again"


class StoredFile(Record):
    """What the index says of a file."""

    file: str
    rows: int
    tokens: int
    bytes: int
    sha256: str


class Index(Record):
    """index.json."""

    schema_version: Literal[1] = 1
    dtype: str
    vocabulary: int
    head_sha256: str | None = None
    """None, and not written, until all rows are stored; as the next."""
    pads_sha256: str | None = None
    files: list[StoredFile]


def read_index(folder: Path) -> Index:
    """The index of a folder of rows; InputError where it is missing, damaged or of another shape."""
    file = folder / INDEX
    try:
        index = read_json(file)
        return Index.model_validate(index)
    except ValidationError as error:
        reason = first_fault(Index, index, error)
    except RecordError as error:
        reason = str(error)
    raise InputError(f"{file}: missing or damaged ({reason})", CURE)


@dataclass(frozen=True)
class StoredRow:
    """One row: its position in the data set, its tokens, the teacher's states, shape (L, hidden), and entropies."""

    position: int
    input_ids: Tensor
    states: Tensor
    entropies: Tensor


class RowWriter:
    """Adds files to a folder, after those that an earlier attempt has finished."""

    def __init__(self, folder: Path, dtype: str, vocabulary: int) -> None:
        """Look at what is there; files that the index does not know are removed.

        dtype: of the computation; vocabulary: of the teacher.
        """
        self.folder, self.dtype, self.vocabulary = folder, dtype, vocabulary
        folder.mkdir(parents=True, exist_ok=True)
        self.files = list(_whole_files(folder))
        known = {entry.file for entry in self.files}
        for path in folder.glob("*.safetensors*"):
            if path.name not in known:
                path.unlink()

    @property
    def rows(self) -> int:
        """Stored so far; the first rows of all."""
        return sum(entry.rows for entry in self.files)

    @property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self.files)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)

    def add(self, rows: Sequence[StoredRow]) -> None:
        """Write one file, on the disk as a whole when this returns."""
        tensors = {
            "positions": torch.tensor([row.position for row in rows], dtype=torch.int64),
            "lengths": torch.tensor([len(row.input_ids) for row in rows], dtype=torch.int64),
            "input_ids": torch.cat([row.input_ids for row in rows]).to(torch.int32),
            "states": torch.cat([row.states for row in rows]),
            "entropies": torch.cat([row.entropies for row in rows]),
        }
        path = self.folder / f"rows-{len(self.files):05d}.safetensors"
        temporary = path.with_name(f"{path.name}.tmp")
        save_file(tensors, temporary)
        flush_to_disk(temporary)
        digest = sha256_file(temporary)
        temporary.replace(path)
        flush_to_disk(self.folder)
        stored = StoredFile(
            file=path.name,
            rows=len(rows),
            tokens=len(tensors["input_ids"]),
            bytes=path.stat().st_size,
            sha256=digest,
        )
        self.files.append(stored)
        self._write_index()

    def seal(self, model: Path) -> None:
        """Note the sha256 of the teacher's head and of the pads, the last of what is written, in the folder `model`."""
        self._write_index(sha256_file(model / HEAD), sha256_file(model / PADS))

    def _write_index(self, head_sha256: str | None = None, pads_sha256: str | None = None) -> None:
        index = Index(
            dtype=self.dtype,
            vocabulary=self.vocabulary,
            head_sha256=head_sha256,
            pads_sha256=pads_sha256,
            files=self.files,
        )
        write_json(self.folder / INDEX, index.model_dump(mode="json", exclude_none=True))


def _whole_files(folder: Path) -> Iterable[StoredFile]:
    """Entries of the index up to the first file that is not there with its size; none where there is no whole index."""
    try:
        entries = read_index(folder).files
    except InputError:
        return
    for entry in entries:
        path = folder / entry.file
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return
        yield entry


def check_sealed(output: Path) -> None:
    """InputError where the head or the pads of a teacher stage's output are not those that were written."""
    index = read_index(output / ROWS)
    for name, sha256 in ((HEAD, index.head_sha256), (PADS, index.pads_sha256)):
        path = output / MODEL / name
        if sha256 is None:
            raise InputError(f"{output / ROWS / INDEX}: has no sha256 of {name}: {CURE}")
        if not path.is_file():
            raise InputError(f"{path}: is missing: {CURE}")
        if (digest := sha256_file(path)) != sha256:
            raise InputError(f"{path}: damaged, its sha256 is {digest[:16]}: {CURE}")


def write_pads(folder: Path, pads: Sequence[int], states: Tensor) -> None:
    """Write the states of tokens that see nothing, shape (pads, hidden), into the folder `model/`."""
    save_file({"ids": torch.tensor(pads, dtype=torch.int64), "states": states}, folder / PADS)
    flush_to_disk(folder / PADS)


class StoredPads:
    """A teacher's states of tokens that see nothing."""

    def __init__(self, output: Path) -> None:
        """Load the file of a teacher stage's output; InputError where it is missing or damaged."""
        self.path = output / MODEL / PADS
        try:
            values = load_file(self.path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path}: missing or damaged ({str(error).splitlines()[0]}): {CURE}") from None
        self._states: dict[int, Tensor] = dict(zip(values["ids"].tolist(), values["states"].split(1), strict=True))

    def states(self, pad: int) -> Tensor:
        """Of one pad, shape (1, hidden); InputError where it is not stored."""
        if pad not in self._states:
            raise InputError(
                f"{self.path}: the padding token {pad} is none of the stored ones {sorted(self._states)}: use "
                "teacher = 'live'"
            )
        return self._states[pad]

    def check(self, examples: Sequence[Example]) -> None:
        """InputError where a pad of these rows is not stored."""
        for pad in {example.pad for example in examples if example.pad is not None}:
            self.states(pad)


class StoredRows:
    """The files of a folder, mapped into memory; a row is found by its position in the data set."""

    def __init__(self, folder: Path) -> None:
        """Open all files; InputError where one is missing, of another size, or no safetensors file."""
        self.folder = folder
        self._entries = read_index(folder).files
        self._files = [self._open(entry) for entry in self._entries]
        self._places: dict[int, tuple[int, int, int]] = {}
        for number, file in enumerate(self._files):
            lengths = file.get_tensor("lengths").tolist()
            starts = np.cumsum([0, *lengths[:-1]]).tolist()
            for position, start, length in zip(file.get_tensor("positions").tolist(), starts, lengths, strict=True):
                self._places[position] = (number, start, length)

    def _open(self, entry: StoredFile) -> Any:
        path = self.folder / entry.file
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            found = "is missing" if size is None else f"has {size} bytes, not {entry.bytes}"
            raise InputError(f"{path}: {found}: {CURE}")
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}): {CURE}") from None

    @cached_property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self._entries)

    def states(self, example: Example, first: int, stop: int) -> Tensor:
        """Of the tokens from `first` up to `stop` of a row, on the CPU."""
        number, start, _ = self._place(example)
        found: Tensor = self._files[number].get_slice("states")[start + first : start + stop]
        return found

    def entropies(self, positions: Iterable[int]) -> Iterator[Entropies]:
        """Of some rows, by their positions in the data set; float16, shape (L,) each.

        Raises:
            InputError: a row is not stored, or was stored by a version of the kit that kept no entropies.
        """
        for position in positions:
            number, start, length = self._stored(position)
            file, path = self._files[number], self.folder / self._entries[number].file
            if "entropies" not in set(file.keys()):
                raise InputError(f"{path}: holds no entropies, which span 'teacher-entropy' reads: {CURE}")
            found: Entropies = file.get_slice("entropies")[start : start + length].numpy()
            yield found

    def check(self, examples: Sequence[Example], threads: int) -> int:
        """Compare rows with those that a training reads, and the files that hold them with their sha256.

        Returns:
            Bytes of these files.

        Raises:
            InputError: a row is not stored, has other tokens, or its file was changed.
        """
        numbers = set()
        for example in examples:
            number, start, _ = self._place(example)
            stored = self._files[number].get_slice("input_ids")[start : start + example.input_ids.size]
            if not np.array_equal(stored.numpy(), example.input_ids):
                raise InputError(
                    f"{self.folder / self._entries[number].file}: row {example.row} has other tokens than the "
                    f"training reads: {CURE}"
                )
            numbers.add(number)
        entries = [self._entries[number] for number in sorted(numbers)]
        with ThreadPoolExecutor(max_workers=threads) as pool:
            for entry, digest in zip(entries, pool.map(self._digest, entries), strict=True):
                if digest != entry.sha256:
                    raise InputError(f"{self.folder / entry.file}: damaged, its sha256 is {digest[:16]}: {CURE}")
        return sum(entry.bytes for entry in entries)

    def _digest(self, entry: StoredFile) -> str:
        return sha256_file(self.folder / entry.file)

    def _place(self, example: Example) -> tuple[int, int, int]:
        found = self._stored(example.row)
        if example.first or example.input_ids.size > found[2]:
            raise InputError(
                f"{self.folder}: row {example.row} is read from token {example.first} on, {example.input_ids.size} "
                f"tokens, but stored states serve the first of its {found[2]} tokens alone: use teacher = 'live'"
            )
        return found

    def _stored(self, position: int) -> tuple[int, int, int]:
        """Number of the file, first token in it, and tokens of a row."""
        found = self._places.get(position)
        if found is None:
            raise InputError(f"{self.folder}: row {position} of the data set is not stored: {CURE}")
        return found
