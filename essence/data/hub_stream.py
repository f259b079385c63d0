"""The first rows of a data set that is too large to be fetched whole: 2 and 22 million rows.

JSON lines: the local file is a prefix of the remote one, so whatever ended an attempt, the next asks for the bytes
after those that are there. Parquet: each row group, with only the columns that are wanted, becomes a file of its own
under its final name, and a group that is there is not fetched again. Every request names its bytes; huggingface_hub
repeats one that fails, with growing pauses. At most one block or one row group is in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet

from essence.errors import InputError, nearest
from essence.progress import StageContext
from essence.settings import Source

BLOCK_BYTES = 8 << 20
STREAMED = (".jsonl", ".parquet")


def stream_rows(source: Source, folder: Path, context: StageContext) -> dict[str, int]:
    """Bring the first `source.rows_wanted` rows of a repository into a folder, or all where it has fewer.

    Raises:
        InputError: no file that can be streamed, a column that is not there, or the connection broke for good;
            what was fetched is kept.
        Stopped: asked for; what was fetched is kept.
    """
    wanted = source.rows_wanted or 0
    stream = _Stream(source, folder, context, wanted)
    with _sentence(source):
        stream.run()
    return {"rows": stream.rows, "rows_wanted": wanted}


@dataclass
class _Stream:
    source: Source
    folder: Path
    context: StageContext
    wanted: int
    rows: int = 0
    """Rows that are in the folder, of the files looked at so far."""

    def run(self) -> None:
        from huggingface_hub import HfFileSystem

        filesystem = HfFileSystem()
        root = f"datasets/{self.source.repository}@{self.source.commit}"
        fetch: dict[str, Callable[[Any, Path], None]] = {".jsonl": self._lines, ".parquet": self._groups}
        for name in _names(self.source):
            if self.rows >= self.wanted:
                return
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open(f"{root}/{name}", "rb", block_size=BLOCK_BYTES, cache_type="none") as remote:
                fetch[target.suffix](remote, target)

    def _lines(self, remote: Any, target: Path) -> None:
        """Append to the local prefix until it has all lines that are wanted, or the remote file ends."""
        have = _count_newlines(target)
        if self.rows + have < self.wanted:
            with target.open("ab") as local:
                remote.seek(local.tell())
                while self.rows + have < self.wanted and (block := remote.read(BLOCK_BYTES)):
                    block = _first_lines(block, self.wanted - self.rows - have)
                    local.write(block)
                    local.flush()
                    have += block.count(b"\n")
                    self._tell(self.rows + have)
        self.rows += have

    def _groups(self, remote: Any, target: Path) -> None:
        """Fetch one row group after the other, each to `<name of the file>/<number>.parquet`."""
        parquet = pyarrow.parquet.ParquetFile(remote, pre_buffer=True)
        columns = self._columns(parquet.schema_arrow.names, target.name)
        target.with_suffix("").mkdir(exist_ok=True)
        for number in range(parquet.num_row_groups):
            if self.rows >= self.wanted:
                return
            part = target.with_suffix("") / f"{number:05d}.parquet"
            if not part.is_file():
                table = parquet.read_row_group(number, columns).slice(0, self.wanted - self.rows)
                unfinished = part.with_suffix(".partial")
                pyarrow.parquet.write_table(table, unfinished)
                unfinished.replace(part)
            self.rows += pyarrow.parquet.read_metadata(part).num_rows
            self._tell(self.rows)

    def _columns(self, there: list[str], file: str) -> list[str] | None:
        for name in self.source.columns:
            if name not in there:
                raise InputError(
                    f"dataset '{self.source.name}': {file} has no column '{name}'{nearest(name, there)} (there: "
                    f"{', '.join(there)})",
                    "columns of its pin names it",
                )
        return self.source.columns or None

    def _tell(self, rows: int) -> None:
        self.context.progress.update("stream", rows, self.wanted, "rows")
        self.context.stop.check()


def _names(source: Source) -> list[PurePosixPath]:
    """The repository's files of the wanted patterns, in the order in which their rows are counted."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    files = HfApi().list_repo_files(str(source.repository), repo_type="dataset", revision=source.commit)
    names = sorted(PurePosixPath(name) for name in filter_repo_objects(files, allow_patterns=source.files))
    found = [name for name in names if name.suffix in STREAMED]
    if not found:
        raise InputError(
            f"dataset '{source.name}': {source.repository} holds no {' or '.join(STREAMED)} file among "
            f"{', '.join(source.files)}: files of its pin names the patterns",
            "without rows_wanted it is fetched whole",
        )
    return found


def _first_lines(block: bytes, lines: int) -> bytes:
    """The block up to the end of `lines` lines; all of it where it has fewer."""
    if block.count(b"\n") < lines:
        return block
    end = 0
    for _ in range(lines):
        end = block.index(b"\n", end) + 1
    return block[:end]


def _count_newlines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(BLOCK_BYTES), b""))


@contextmanager
def _sentence(source: Source) -> Iterator[None]:
    """One sentence for all that can end a stream from outside."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, HTTPError, OSError, pyarrow.ArrowException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"dataset '{source.name}': cannot go on streaming {source.repository} at {str(source.commit)[:12]}: "
            f"{reason} (what was fetched is kept, the same command goes on from there; it needs network, or a local "
            "path for the data set with --pins FILE)"
        ) from error
