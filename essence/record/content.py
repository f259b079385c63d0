"""What a local source holds, as one hash: the same bytes under the same names are one source, wherever they are."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from essence.files import sha256_file
from essence.paths import local_files

CONTENT = "content:"
"""How a hash over names and contents begins. Older records have one over names, sizes and times, without this."""


def content_of(path: Path, hash_of: Callable[[Path], str] = sha256_file, patterns: Sequence[str] = ()) -> str | None:
    """Hash over names and contents of the files that are taken in; None where there are none.

    Of a single file the ending counts and not the name: it says how the file is read.
    """
    lines = []
    for file in local_files(path, patterns):
        name = file.relative_to(path).as_posix() if path.is_dir() else "*" + ending(file)
        lines.append(f"{name}\0{file.stat().st_size}\0{hash_of(file)}\n")
    return CONTENT + hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest() if lines else None


def ending(file: Path) -> str:
    """`.jsonl`, or with what is packed, `.jsonl.gz`."""
    return "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix
