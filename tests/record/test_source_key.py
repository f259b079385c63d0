"""What the key of a stage counts of the kit's source, and what it does not."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from essence.files import canonical_json, sha256_text
from essence.plan.experiment import PROJECT
from essence.record.same_results import SAME_RESULTS
from essence.record.source_key import ENTRY, module_hashes, parsed
from essence.record.syntax_tree import canonical
from essence.settings import StageName
from support.kit_copy import STATEMENT, KitCopy

GOLDEN = PROJECT / "tests" / "golden" / "source_modules.json"
RENEW = "ESSENCE_RENEW_GOLDEN=1 .venv/bin/pytest tests/record/test_source_key.py -k golden"
SOURCES = (
    "import json; from essence.record.source_key import *; print(json.dumps({s: source_sha256(s) for s in ENTRY}))"
)
KEYS = """
import json
from essence.plan.experiment import load
from essence.plan.stage_plan import make_plan
loaded = load("micro.toml")
plan = make_plan(loaded, loaded.cells(), lambda _: {"lock_sha256": "0"}, baselines=True)
print(json.dumps({stage.title: stage.id for stage in plan.stages.values()}))
"""
UNSEEN = "# a comment\n"


def test_the_modules_that_count_are_the_golden_ones() -> None:
    """A key that widens is a change that somebody has read."""
    found = json.dumps({stage: list(module_hashes(stage)) for stage in ENTRY}, indent=2) + "\n"
    if os.environ.get("ESSENCE_RENEW_GOLDEN"):
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text(), f"to renew: {RENEW}"


@pytest.mark.parametrize("module", SAME_RESULTS)
def test_a_change_that_is_said_to_change_no_result_is_the_one_that_was_read(module: str) -> None:
    """Another one counts: the entry goes, and with it stages are renewed, or it is read and entered in its place."""
    change = SAME_RESULTS[module]
    found = sha256_text(canonical_json(canonical(parsed(module))))
    assert found == change.now, f"{module} counts again as it is (now {found}): remove or renew its entry"
    counted = {hashes[module] for stage in ENTRY if module in (hashes := module_hashes(stage))}
    assert counted == {change.counts_as} and change.now != change.counts_as


@pytest.mark.parametrize("stage", ENTRY)
def test_no_module_counts_that_cannot_change_a_result(stage: StageName) -> None:
    rooms = {name.split(".")[1] for name in module_hashes(stage)}
    assert ENTRY[stage] in module_hashes(stage)
    assert rooms <= {"data", "sizes", "models", "distill", "evaluation", "stages"}


def test_a_tree_holds_what_is_executed_alone() -> None:
    def tree(text: str) -> object:
        return canonical(ast.parse(text))

    plain = tree('def f(x):\n    return f"{x} and " + u"y"\n')
    assert plain == tree('"""Doc."""\n# why\ndef f(x):\n    """Doc."""\n    return (f"{x}" f" and " + "y")  # why\n')
    assert tree("class A: pass") == tree('class A:\n    """Doc."""\n') == tree("class A: ...")
    different = [
        "return None",
        "return",
        "x = 1",
        "x = 1.0",
        "x = True",
        "x = '1'",
        "x = b'1'",
        "x = {**a}",
        "x = {b: a}",
    ]
    different += ["x = f'{a}'", "x = f'{a!r}'", "x = f'{a:3}'", "x = a if b else c", "x = lambda a: a", "x: int = 1"]
    assert len({repr(tree(text)) for text in different}) == len(different)


INSTALLED = [Path("/usr/bin"), *Path.home().glob(".pyenv/versions/3.*/bin")]
OTHERS = [file for folder in INSTALLED for minor in (11, 12, 13, 14) if (file := folder / f"python3.{minor}").is_file()]
TREES = """
import ast, hashlib, json, runpy, sys
from pathlib import Path
canonical = runpy.run_path("essence/record/syntax_tree.py")["canonical"]
files = sorted(Path("essence").rglob("*.py"))
trees = [json.dumps(canonical(ast.parse(file.read_text(encoding="utf-8")))) for file in files]
print(hashlib.sha256("".join(trees).encode()).hexdigest())
"""


@pytest.mark.parametrize("python", OTHERS, ids=str)
def test_every_python_sees_the_same_trees(python: Path) -> None:
    found = {
        subprocess.run([one, "-c", TREES], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        for one in (sys.executable, python)
    }
    assert len(found) == 1


@pytest.fixture
def kit(tmp_path: Path) -> KitCopy:
    return KitCopy(tmp_path)


def test_what_cannot_change_a_result_leaves_every_key(kit: KitCopy) -> None:
    before = kit.ask(KEYS)
    for file in (kit.root / "essence").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text + UNSEEN, encoding="utf-8")
    objective = kit.root / "essence" / "distill" / "objective.py"
    objective.write_text(objective.read_text().replace('"""', '"""Other words. ', 1))
    for package in ("record", "engines", "commands", "report", "plan", "settings"):
        for file in (kit.root / "essence" / package).rglob("*.py"):
            kit.change(str(file.relative_to(kit.root / "essence")), STATEMENT)
    for module in ("progress.py", "signals.py", "text.py", "files.py", "errors.py", "stages/__main__.py"):
        kit.change(module, STATEMENT)
    kit.change("__init__.py", '__version__ = "9.9.9"\n')
    assert kit.ask(KEYS) == before


def test_a_line_of_the_objective_renews_trainings_and_what_follows(kit: KitCopy) -> None:
    before = kit.ask(KEYS)
    kit.change("distill/objective.py", STATEMENT)
    after = kit.ask(KEYS)
    renewed = {title for title, identifier in before.items() if after[title] != identifier}
    of_cells = {title for title in before if "lsp-" in title}
    assert renewed == of_cells and {title.split()[0] for title in renewed} == {"train", "generate", "grade"}


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("data/decontaminate.py", {"tokenize"}),
        ("evaluation/decoders/vllm.py", {"generate", "prove_decoding"}),
        ("evaluation/graders.py", {"grade"}),
        ("stages/tiny/problems.py", {"download"}),
        ("distill/event_files.py", set()),
        ("stages/launch.py", set()),
    ],
)
def test_a_module_renews_the_stages_that_it_can_change(kit: KitCopy, module: str, stages: set[str]) -> None:
    before = kit.ask(SOURCES)
    kit.change(module, STATEMENT)
    after = kit.ask(SOURCES)
    assert {stage for stage in before if before[stage] != after[stage]} == stages
