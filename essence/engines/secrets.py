"""The caller's Hugging Face token: a file that a download reads, and nothing else sees.

Never the environment of a stage, an argument or a line of a record. What is written for a stage lies in memory, in a
place that the stage's folder names: what a killed host left there is found and removed by the next run.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from essence.engines.engine import Mount
from essence.files import sha256_text

INSIDE = Path("/run/secrets/hf_token")
MEMORY = Path("/dev/shm")  # noqa: S108  memory instead of a disk
DIGITS = 16


@dataclass(frozen=True)
class Token:
    """A file that holds the token."""

    file: Path
    temporary: bool

    @property
    def mount(self) -> Mount:
        """For a container."""
        return Mount(self.file, INSIDE, read_only=True)

    def variables(self, inside: bool) -> dict[str, str]:
        """What tells a download where it is, `inside` a container or as a process of this machine."""
        return {"HF_TOKEN_PATH": str(INSIDE if inside else self.file)}

    def forget(self) -> None:
        """Remove what was written for one stage."""
        if self.temporary:
            shutil.rmtree(self.file.parent, ignore_errors=True)


def token(reader: Path) -> Token | None:
    """From HF_TOKEN, or the file that the hub's own tools keep; None = not logged in. `reader`: the stage's folder."""
    left_token(reader).forget()
    if secret := os.environ.get("HF_TOKEN"):
        place = left_token(reader).file.parent
        try:
            place.mkdir(mode=0o700)
        except OSError:
            # Somebody else took the name, or there is no such folder.
            place = Path(tempfile.mkdtemp(prefix="essence-"))
        file = place / "hf_token"
        file.touch(mode=0o600)
        file.write_text(secret, encoding="utf-8")
        return Token(file, temporary=True)
    # Of somebody without a home it names no file.
    home = Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))  # noqa: PTH111
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    return Token(file.resolve(), temporary=False) if file.is_file() else None


def left_token(reader: Path) -> Token:
    """Where a reader's token lies, if one was written for it."""
    name = f"essence-{os.getuid()}-{sha256_text(str(reader))[:DIGITS]}"
    return Token(MEMORY / name / "hf_token", temporary=True)
