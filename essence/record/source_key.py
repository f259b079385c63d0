"""The source that a stage's result depends on: its module and the result-bearing modules that it imports, in turn.

Only code that can change a result counts: a change to the loss renews trainings, a change to the report, to progress or
to an engine renews nothing. Settings do not count here, since their values are in the key themselves. Modules are
hashed as syntax trees without comments and docstrings, the same under every Python that the kit runs on.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from essence.files import canonical_json, sha256_text
from essence.record.same_results import SAME_RESULTS
from essence.record.syntax_tree import canonical
from essence.settings import StageName

PACKAGE = Path(__file__).resolve().parents[1]
COUNTED = ("data", "sizes", "models", "distill", "evaluation")
"""Packages whose modules can change a result."""
WITHOUT_EFFECT = {
    "essence.distill.event_files",  # curves for people, beside those in metrics.jsonl
    "essence.evaluation.decoders.kept_compilations",  # where vLLM keeps what it compiles
    "essence.evaluation.decoders.sharing",  # which copy decodes a request, as little in the key as how many there are
    "essence.sizes.least_change",  # what a training that is refused is told
    "essence.sizes.recomputation",  # by memory, as little in the key as the size of passes is
    "essence.evaluation.golds",  # stops a stage before it starts, and changes no completion and no verdict
}
TOYS = "essence.stages.tiny"
"""What makes builtin models and problems. A toy model is where a matrix starts, as a downloaded model is: its record
has its bytes, and a change to the trainer that pre-trained it renews trainings, not the models that they start from."""
ENTRY = {stage: f"essence.stages.{stage}" for stage in get_args(StageName)}
RUNNER = ("essence.stages.__main__", "essence.stages.rank")
"""The modules that are started inside an environment."""
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Fields of a statement that hold further statements."""


@functools.cache
def source_sha256(stage: StageName) -> str:
    """Hash over the modules that can change a stage's result."""
    return sha256_text(canonical_json(module_hashes(stage)))


@functools.cache
def module_hashes(stage: StageName) -> dict[str, str]:
    """Module -> hash of its syntax tree, of all that can change a stage's result; empty modules are left out."""

    def counts(name: str) -> bool:
        if name == ENTRY[stage] or (stage == "download" and f"{name}.".startswith(f"{TOYS}.")):
            return True
        package = f"{name}.".split(".")[1]
        return package in COUNTED and name not in WITHOUT_EFFECT and (stage, package) != ("download", "distill")

    trees = {name: _source(name).tree for name in sorted(imported_modules(ENTRY[stage], counts))}
    return {name: _counted(name, sha256_text(tree)) for name, tree in trees.items() if tree != EMPTY}


def _counted(module: str, tree_sha256: str) -> str:
    """The hash that a module counts with: where a change is listed that changes no result, the one before it."""
    change = SAME_RESULTS.get(module)
    return change.counts_as if change and change.now == tree_sha256 else tree_sha256


def runtime_sha256(stages: tuple[StageName, ...]) -> str:
    """Hash over all modules that run inside an environment of these stages, without those that only hold text."""
    names = set().union(*map(imported_modules, (*RUNNER, *(ENTRY[stage] for stage in stages)))) - {"essence"}
    return sha256_text(canonical_json({name: sha256_text(_source(name).tree) for name in names}))


def imported_modules(entry: str, follow: Callable[[str], bool] = lambda _: True) -> set[str]:
    """Names of the `essence` modules reached from `entry`, itself included; imports inside functions count.

    follow: whether a module is taken in, and its imports followed.
    """
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name not in found and follow(name):
            found.add(name)
            waiting += _source(name).imports
    return found


def _own_imports(tree: ast.Module) -> tuple[str, ...]:
    names: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    own = [name for name in names if name.split(".")[0] == "essence" and _exists(name)]
    # Importing a module runs the packages that it is in.
    parents = {name.rsplit(".", depth)[0] for name in own for depth in range(1, name.count(".") + 1)}
    return (*own, *sorted(parents))


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Every statement; expressions, most of a tree, hold no import and are passed over."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in BLOCKS:
            waiting += getattr(node, name, ())


class Source(NamedTuple):
    """What the key needs of one module: a process parses each file once."""

    imports: tuple[str, ...]
    """Dotted names of the `essence` modules that it imports."""
    tree: str
    """The canonical syntax tree, as JSON."""


@functools.cache
def _source(module: str) -> Source:
    tree = parsed(module)
    return Source(_own_imports(tree), canonical_json(canonical(tree)))


EMPTY = canonical_json(canonical(ast.parse("")))


def parsed(module: str) -> ast.Module:
    """Syntax tree of one of the kit's modules, by its dotted name."""
    return ast.parse(_file(module).read_text(encoding="utf-8"))


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
