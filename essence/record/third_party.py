"""What the stages of an environment import from other packages: read from the kit's own source, nothing is imported."""

import ast
import sys
from collections.abc import Iterator

from essence.record.source_key import ENTRY, RUNNER, TOYS, imported_modules, parsed
from essence.settings import STAGES_IN, EnvironmentName

OPTIONAL = {"vllm": "vllm", "pynvml": "nvidia-ml-py"}
"""Top-level modules that an environment may lack -> the distribution in whose lock they are, where they are needed."""


def third_party_imports(environment: EnvironmentName) -> dict[str, list[str]]:
    """Dotted module of another package -> the kit's modules that import it, sorted; imports in functions count.

    `from torch.nn import functional` gives `torch.nn`: only an import can say whether the name is a module.
    """
    found: dict[str, set[str]] = {}
    for importer in _own_modules(environment):
        for module in _imported(parsed(importer)):
            if module.split(".")[0] not in {*sys.stdlib_module_names, "essence"}:
                found.setdefault(module, set()).add(importer)
    return {module: sorted(found[module]) for module in sorted(found)}


def _own_modules(environment: EnvironmentName) -> set[str]:
    """The kit's modules that run there: ranks, and toy models, are started where models are trained."""
    entries = [*RUNNER, *(ENTRY[stage] for stage in STAGES_IN[environment])]
    here = [entry for entry in entries if environment == "train" or not _only_trains(entry)]
    follow = (lambda _: True) if environment == "train" else (lambda name: not _only_trains(name))
    return set().union(*(imported_modules(entry, follow) for entry in here))


def _only_trains(module: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in (TOYS, "essence.stages.launch", "essence.stages.rank"))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from _executed(child)
