"""Which files of a local path a run directory takes in: what is copied, counted and looked at for changes."""

import os
from collections.abc import Iterator
from pathlib import Path

from essence.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Weights that run code when they are read."""
Identity = tuple[int, int]
"""Device and number of a folder: the same by whatever name it is reached."""


def local_files(path: Path) -> list[Path]:
    """The files at a local path that a run directory takes in: no hidden ones, no pickled weights.

    Links are followed, those to folders too. A path that is not there has no files.

    Raises:
        InputError: a link that leads nowhere or back to a folder it lies in; a folder that may not be read; a device.
    """
    try:
        if path.is_dir():
            return sorted(_below(path, ()))
        if not path.exists():
            return []
        if not path.is_file():
            raise InputError(f"{path}: neither a file nor a folder; name one that holds the data")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name another path, or mend this one") from None
    return [path] if path.suffix not in PICKLES else []


def _below(folder: Path, above: tuple[Identity, ...]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise InputError(f"{folder}: a link that leads back to a folder it lies in; remove the link")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for path in (folder / name for name in names):
        if path.is_dir():
            yield from _below(path, (*above, identity))
        elif path.suffix in PICKLES:
            continue
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise InputError(f"{path}: a link that leads nowhere (to {path.readlink()}); mend or remove it")
