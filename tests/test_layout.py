"""The layout of the house: one direction of imports, light imports at the top, a host side without torch."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import essence
from support.project import PROJECT

PACKAGE = PROJECT / "essence"
ORDER = re.findall(r"\w+", " ".join(re.findall(r"^    ((?:\w+, )*\w+) {2,}", str(essence.__doc__), re.MULTILINE)))
"""The list in the docstring of the package; a file or folder imports only what stands above it."""
MOST_LOOSE_DICTIONARIES = 12
"""`dict[str, Any]` in the source; lower it with each one that becomes a record."""
INSIDE_ENVIRONMENT = ("data", "models", "distill", "evaluation", "stages")
HEAVY = {
    *(
        "accelerate",
        "deepspeed",
        "docker",
        "httpx2",
        "huggingface_hub",
        "math_verify",
        "peft",
        "pyarrow",
        "pynvml",
        "rich",
        "sympy",
    ),
    *("tokenizers", "torch", "transformers", "vllm"),
}
"""Libraries that take long to import, or that not every environment has."""
HEAVY_MODULES = {
    "essence.data.hub_stream": "pyarrow and huggingface_hub",
    "essence.distill.zero": "deepspeed",
    "essence.engines.docker": "docker, which only one engine needs",
    "essence.engines.image_transfers": "docker, which only one engine needs",
    "essence.engines.registry_image": "requests, which only images from a registry need",
    "essence.evaluation.decoders.replicas": "imports the module that imports it, in processes of their own",
    "essence.evaluation.decoders.transformers": "torch",
    "essence.evaluation.decoders.vllm": "vllm",
    "essence.evaluation.grading_examples": "the grader of another version, from a folder that is on the path only then",
    "essence.record.ro_crate": "rocrate and the HTTP client that it brings, for an export alone",
    "essence.report.build": "matplotlib, and a run that finds everything done draws nothing",
    "essence.report.page.figures": "matplotlib",
    "essence.report.page.picture_drawing": "matplotlib",
    "essence.stages.rank": "torch",
    "essence.stages.tiny.sources": "tokenizers, for what only the miniature makes",
    "essence.stages.tiny.toy_models": "torch",
}
"""Modules that may be imported inside a function, and why."""
LONGEST_FILE = 400
BLOCKED = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} on the host side")

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
        importlib.import_module(found.name)
"""


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def where(module: str) -> str:
    """`essence.engines.slurm.jobs` -> `engines`."""
    return module.split(".")[1]


def imported(node: ast.AST) -> Iterator[str]:
    """Modules that an import names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module == "essence":
        yield from (f"essence.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module


def line_of(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def test_the_list_names_everything_there_is() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(ORDER) == there - {"__init__"} and len(ORDER) == len(set(ORDER))


def test_imports_go_one_way() -> None:
    against = [
        f"{file.relative_to(PROJECT)}:{line_of(node)} imports {module}"
        for file in sources()
        if (place := file.relative_to(PACKAGE).parts[0].removesuffix(".py")) != "__init__"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for module in imported(node)
        if module.startswith("essence.") and ORDER.index(where(module)) > ORDER.index(place)
    ]
    assert against == []


TRIES_IMPORTS = "self_test.py"
"""It imports what it needs where a broken package becomes a line of its output."""


def test_only_what_is_heavy_is_imported_inside_a_function() -> None:
    light = [
        f"{file.relative_to(PROJECT)}:{line_of(node)} imports {module}"
        for file in sources()
        if file.name != TRIES_IMPORTS
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        for module in imported(node)
        if module.split(".")[0] not in HEAVY and module not in HEAVY_MODULES
    ]
    assert light == []


def test_the_host_side_needs_neither_torch_nor_transformers() -> None:
    host = [f"essence.{name}" for name in ORDER if name not in INSIDE_ENVIRONMENT]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *host, "tasks"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    caught = subprocess.run([sys.executable, "-c", BLOCKED, "essence.distill"], capture_output=True, text=True)
    assert caught.returncode and "on the host side" in caught.stderr


def test_no_file_name_stands_twice() -> None:
    counts = Counter(path.name for path in sources() if path.name not in ("__init__.py", "__main__.py"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_file_is_long() -> None:
    files = [*sources(), *(path for folder in ("tests", "bench") for path in sorted((PROJECT / folder).rglob("*.py")))]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {str(path): length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_test_module_imports_another() -> None:
    files = sorted((PROJECT / "tests").rglob("*.py"))
    modules = {file.stem for file in files if file.parent.name != "support"}
    imports = [
        f"{file.relative_to(PROJECT)}:{line_of(node)} imports {module}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for module in imported(node)
        if module.split(".")[0] in modules
    ]
    assert imports == []


def test_records_are_objects() -> None:
    """Few dictionaries of anything, and no list of the exceptions that odd ones end in."""
    texts = {path: path.read_text(encoding="utf-8") for path in [*PACKAGE.rglob("*.py"), PROJECT / "tasks.py"]}
    assert sum(text.count("dict[str, Any]") for text in texts.values()) <= MOST_LOOSE_DICTIONARIES
    readers = [path for path in texts if {"record", "report", "commands"} & set(path.parts)]
    assert [str(path) for path in readers if "except (KeyError" in texts[path]] == []
    assert [str(path) for path in texts if "import jsonschema" in texts[path]] == []
