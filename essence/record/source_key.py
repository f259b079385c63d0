"""The source that a stage's result depends on: its module and all modules of the kit that it imports, in turn.

A change to the report does not repeat a training, a change to the loss does. Three modules do not count: the settings'
values are in the key themselves, the texts of errors and the way progress is written change no result.
"""

import ast
import functools
from pathlib import Path
from typing import get_args

from essence.files import sha256_text
from essence.settings import StageName

PACKAGE = Path(__file__).resolve().parents[1]
WITHOUT_EFFECT = {"essence.settings", "essence.errors", "essence.files"}
ENTRY = {stage: f"essence.stages.{stage}" for stage in get_args(StageName)}


@functools.cache
def source_sha256(stage: StageName) -> str:
    """Hash over the names and texts of the modules that a stage imports."""
    modules = {name for name in imported_modules(ENTRY[stage]) if ".".join(name.split(".")[:2]) not in WITHOUT_EFFECT}
    return sha256_text("".join(f"{name}\0{_file(name).read_text(encoding='utf-8')}\0" for name in sorted(modules)))


def imported_modules(entry: str) -> set[str]:
    """Names of the `essence` modules reached from `entry`, itself included; imports inside functions count."""
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(name)
    return found


def _imports(module: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "essence" and _exists(name)]


def _exists(module: str) -> bool:
    try:
        return _file(module).is_file()
    except FileNotFoundError:
        return False


def _file(module: str) -> Path:
    base = PACKAGE.parent.joinpath(*module.split("."))
    if base.is_dir():
        return base / "__init__.py"
    file = base.with_suffix(".py")
    if not file.is_file():
        raise FileNotFoundError(file)
    return file
