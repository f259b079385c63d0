"""The caller's Hugging Face token: a file that is mounted into a download, and nowhere else.

Never an environment variable, an argument or a line of a record.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from essence.engines.surroundings import Mount

INSIDE = Path("/run/secrets/hf_token")
MEMORY = Path("/dev/shm")  # noqa: S108  memory instead of a disk


@dataclass(frozen=True)
class Token:
    """A file that holds the token."""

    file: Path
    temporary: bool

    @property
    def mount(self) -> Mount:
        return Mount(self.file, INSIDE, read_only=True)

    @property
    def variables(self) -> dict[str, str]:
        return {"HF_TOKEN_PATH": str(INSIDE)}

    def forget(self) -> None:
        """Remove what was written for one stage."""
        if self.temporary:
            shutil.rmtree(self.file.parent, ignore_errors=True)


def token() -> Token | None:
    """From HF_TOKEN, or the file that the hub's own tools keep; None = not logged in."""
    if secret := os.environ.get("HF_TOKEN"):
        folder = Path(tempfile.mkdtemp(prefix="essence-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        file = folder / "hf_token"
        file.touch(mode=0o600)
        file.write_text(secret, encoding="utf-8")
        return Token(file, temporary=True)
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    return Token(file.resolve(), temporary=False) if file.is_file() else None
