"""A copy of the kit whose source can be changed, as by a pull."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.project import PROJECT

STATEMENT = "\nEXTRA_LINE = 1\n"


class KitCopy:
    """A copy of the kit whose source can be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("essence", "experiments", "locks"):
            shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("tasks.py", "pyproject.toml", "tests/micro.toml"):
            shutil.copy(PROJECT / name, root)

    def change(self, module: str, line: str = STATEMENT) -> None:
        with (self.root / "essence" / module).open("a") as file:
            file.write(line)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        told = {**os.environ, "PYTHONPATH": str(self.root), "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.root, env=told, capture_output=True, text=True, timeout=600
        )

    def ask(self, program: str) -> dict[str, str]:
        """The JSON object that a program prints."""
        ended = self.python("-c", program)
        assert ended.returncode == 0, ended.stderr
        answer: dict[str, str] = json.loads(ended.stdout)
        return answer

    def invoke(self, *arguments: str) -> str:
        """What a command prints."""
        ended = self.python("-m", "invoke", *arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout
