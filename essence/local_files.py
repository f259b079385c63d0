"""Which files of a local path a run directory takes in: what is copied, counted and looked at for changes."""

from pathlib import Path

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Weights that run code when they are read."""


def local_files(path: Path) -> list[Path]:
    """The files at a local path that a run directory takes in: no hidden ones, no pickled weights."""
    if not path.is_dir():
        return [path] if path.exists() and path.suffix not in PICKLES else []
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix not in PICKLES)
    return [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
