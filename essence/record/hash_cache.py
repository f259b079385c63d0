"""Hashes of large files by path, size, time of change and inode, so that a plan does not read 16 GB again.

The cache is in the user's cache folder and is only for speed: one that is damaged, gone or cannot be written is as
good as none, and what is taken into a run directory is hashed again as it is copied.
"""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from essence.errors import RecordError
from essence.files import canonical_json, read_json, sha256_file, sha256_text, write_json
from essence.record.live_records import Live

LEAST_BYTES = 1 << 20
"""Smaller files are read as fast as they are looked up."""
MOST_FILES = 4096
SETTLED_NS = 2_000_000_000
"""A file that changed just now may change again without another time: coarse clocks tick every second or two."""


def cache_file() -> Path:
    """Where the hashes lie: `$XDG_CACHE_HOME/essence`, else `~/.cache/essence`."""
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (told if told.is_absolute() else Path("~/.cache").expanduser()) / "essence" / "hashes.json"


class Hashed(Live):
    """A file when it was hashed."""

    seen: list[int]
    """Bytes, times of change of content and of status in ns, device, inode."""
    sha256: str


FILES = TypeAdapter(dict[str, Hashed])


@dataclass
class HashCache:
    """`sha256` of files; `save` writes down what was hashed."""

    file: Path = field(default_factory=cache_file)
    _known: dict[str, Hashed] | None = None
    _fresh: dict[str, Hashed] = field(default_factory=dict)

    def sha256(self, path: Path) -> str:
        """Hex sha256 of a file, read only where it is small or was changed since it was hashed."""
        status = path.stat()
        if status.st_size < LEAST_BYTES:
            return sha256_file(path)
        if self._known is None:
            self._known = self._read()
        seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]
        entry = self._fresh.get(str(path)) or self._known.get(str(path))
        if entry and entry.seen == seen:
            return entry.sha256
        digest = sha256_file(path)
        if max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - SETTLED_NS:
            self._fresh[str(path)] = Hashed(seen=seen, sha256=digest)
        return digest

    def save(self) -> None:
        """Add what was hashed; of two that save at once, one is kept."""
        if not self._fresh:
            return
        files = dict(list({**self._read(), **self._fresh}.items())[-MOST_FILES:])
        with contextlib.suppress(OSError):
            write_json(self.file, {"files": FILES.dump_python(files), "seal": _seal(files)})
        self._known, self._fresh = files, {}

    def _read(self) -> dict[str, Hashed]:
        """The whole cache as it was written, or nothing."""
        with contextlib.suppress(RecordError, OSError, ValueError):
            record = read_json(self.file)
            files = FILES.validate_python(record.get("files"))
            if record.get("seal") == _seal(files):
                return files
        return {}


def _seal(files: dict[str, Hashed]) -> str:
    return sha256_text(canonical_json(FILES.dump_python(files)))
