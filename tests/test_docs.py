"""The pages name only what exists: links and anchors, commands and flags, make targets, paths."""

import ast
import dataclasses
import functools
import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from invoke import Task
from pydantic import BaseModel

from essence.record.manifest import Manifest
from essence.record.training_records import TrainMore
from essence.settings.base import Group
from essence.settings.protocol import Protocol
from support.project import PROJECT

BESIDE = ("README.md", "CONTRIBUTING.md", "DEVIATIONS.md", "CHANGELOG.md")
PAGES = sorted([PROJECT / name for name in BESIDE] + list((PROJECT / "docs").glob("*.md")), key=str)
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
"""To a page or a picture."""
TICKS = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"invoke ([a-z][a-z-]*)((?: +[^\s`#&|;()]+)*)")
TARGET = re.compile(r"(?:^|[`&(] *)make ([a-z][a-z-]*)", re.MULTILINE)
ROOTS = tuple(p.name for p in PROJECT.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "runs")


def _ids(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(PROJECT)) for page in pages]


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def _tasks() -> dict[str, set[str]]:
    """Command -> its options, as invoke reads them from tasks.py."""
    declared = runpy.run_path(str(PROJECT / "tasks.py"))
    return {
        name: {
            (argument.attr_name or argument.name).replace("-", "_").rstrip("_") for argument in value.get_arguments()
        }
        for name, value in declared.items()
        if isinstance(value, Task)
    }


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        if anchor:
            assert anchor in _anchors(target), f"{page.name}: {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_commands_exist_with_their_flags(page: Path) -> None:
    known = _tasks()
    for name, words in COMMAND.findall(page.read_text()):
        assert name in known, f"{page.name}: no command invoke {name}"
        for flag in re.findall(r"--([a-z-]+)", words):
            assert flag.replace("-", "_") in known[name], f"{page.name}: invoke {name} has no --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z%-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    patterns = [re.compile(target.replace("%", ".+") + "$") for target in targets]
    for name in TARGET.findall(page.read_text()):
        assert any(pattern.match(name) for pattern in patterns), f"{page.name}: no make {name}"


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_paths_exist(page: Path) -> None:
    for text in TICKS.findall(FENCE.sub("", page.read_text())):
        path = text.rstrip("/")
        if not re.fullmatch(r"[\w.*/-]+", path) or "/" not in path or path.split("/")[0] not in ROOTS:
            continue
        assert list(PROJECT.glob(path)), f"{page.name}: `{text}` is not in the project"


def test_the_readme_shows_the_record_of_the_miniature() -> None:
    renew = runpy.run_path(str(PROJECT / "docs" / "tiny" / "renew.py"))
    record = json.loads((PROJECT / "docs" / "tiny" / "report.json").read_text())
    assert renew["table"](record) in (PROJECT / "README.md").read_text()
    pictures = sorted((PROJECT / "docs" / "tiny").glob("*.png"))
    assert [picture.name for picture in pictures] == ["curve.png", "report.png"]
    assert all(picture.stat().st_size <= renew["MOST_BYTES"] for picture in pictures)


def _has_every_field(shown: dict[str, Any], model: type[BaseModel]) -> None:
    """Groups whose form depends on the stage are shown in part."""
    if issubclass(model, Group):
        return
    assert shown.keys() == model.model_fields.keys()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            _has_every_field(shown[name], field.annotation)


def test_the_annotated_manifest_has_the_fields_of_the_record() -> None:
    (block,) = re.findall(r"^```jsonc\n(.*?)^```", (PROJECT / "docs" / "manifest.md").read_text(), re.M | re.S)
    shown = json.loads(re.sub(r"  // .*$", "", block, flags=re.MULTILINE))
    assert Manifest.model_validate(shown).identity.stage == "train"
    assert shown["cost"]["more"].keys() <= TrainMore.model_fields.keys()
    _has_every_field(shown, Manifest)


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((PROJECT / "docs" / "README.md").read_text()))
    pages = {page.name for page in (PROJECT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= linked


def _fields_of_the_protocol() -> dict[str, set[str]]:
    """Field -> numbers of the traps that its docstring names."""
    (table,) = (n for n in _protocol_module().body if isinstance(n, ast.ClassDef) and n.name == "Protocol")
    found: dict[str, set[str]] = {}
    for field, text in itertools.pairwise(table.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = set(re.findall(r"Trap (\d+)", ast.literal_eval(text.value)))
    return found


def _protocol_module() -> ast.Module:
    return ast.parse((PROJECT / "essence" / "settings" / "protocol.py").read_text())


def test_every_difference_of_the_protocols_has_its_row_on_both_pages() -> None:
    fields = _fields_of_the_protocol()
    assert fields.keys() == {field.name for field in dataclasses.fields(Protocol)}
    rows = re.findall(r"^\| `(\w+)`", (PROJECT / "docs" / "protocols.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(fields)
    traps = re.findall(r"^\| (\d+|-) \| .* \| (.*) \|$", (PROJECT / "DEVIATIONS.md").read_text(), re.MULTILINE)
    for name, numbers in fields.items():
        settings = [setting for number, setting in traps if number in (numbers or {"-"})]
        forms = (name, name.replace("_", ".", 1), name.partition("_")[2])
        assert any(form in setting for form in forms for setting in settings), f"{name} is not at trap {numbers}"


def test_the_map_names_every_package_and_only_modules_that_are_there() -> None:
    named = set(TICKS.findall((PROJECT / "docs" / "design.md").read_text().split("## The map")[1]))
    packages = {
        path.parent.relative_to(PROJECT / "essence").as_posix() for path in PROJECT.glob("essence/*/**/__init__.py")
    }
    assert packages == {name.rstrip("/") for name in named if name.endswith("/")} - {"essence"}
    modules = {path.name for path in PROJECT.glob("essence/**/*")}
    beside = {name for name in named if (PROJECT / name).exists()}
    assert {name.split("/")[-1] for name in named - beside if name.endswith((".py", ".sh"))} <= modules


def test_the_commands_are_found() -> None:
    known = _tasks()
    assert {"run", "evaluate", "verify", "images"} <= known.keys()
    assert "dry_run" in known["run"]


def _sentences() -> str:
    """All strings of the kit, one per line, with a NUL for each value; of a failure its problem and cure as one."""
    lines: list[str] = []
    for file in (PROJECT / "essence").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                lines.append("; ".join(map(_text, node.args)))
            elif isinstance(node, ast.expr):
                lines.append(_text(node))
    return "\n".join(lines)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "\0"


def _texts_of_errors() -> dict[str, str]:
    """Error class -> all strings that it is made with."""
    texts: dict[str, str] = {}
    for file in (PROJECT / "essence").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id.endswith("Error"):
                parts = [n.value for a in call.args for n in ast.walk(a) if isinstance(n, ast.Constant)]
                texts[call.func.id] = texts.get(call.func.id, "") + "\n".join(map(str, parts)) + "\n"
    return texts


def test_every_kind_of_failure_is_on_the_troubleshooting_page() -> None:
    tree = ast.parse((PROJECT / "essence" / "errors.py").read_text())
    kinds = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Error")]
    rows = re.findall(r"^\| (`.+?) \| ", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages, texts = TICKS.findall("\n".join(rows)), _texts_of_errors()
    assert len(kinds) >= 9
    for kind in kinds:
        if kind in ("KitError", "DiskError"):  # the base of all, and one whose words stand in a table
            continue
        longest = [max(re.split(r"\.\.\.|\b[NMX]\b|'", message), key=len).strip(" :;(") for message in messages]
        assert any(part and part in texts.get(kind, "") for part in longest), f"no message of {kind} is explained"


def test_messages_of_the_troubleshooting_page_are_the_kits() -> None:
    sentences = _sentences()
    rows = re.findall(r"^\| (`.+?) \| ", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) >= 15
    for message in TICKS.findall("\n".join(rows)):
        parts = re.split(r"\(?\.\.\.[)\]]?|\b[NMX]\b|\b[0-9]+\b|\[\.\.\.\]|'|\[data\.|nan", message)
        for part in (part.strip(" ,:;()[]") for part in parts):
            assert part in sentences, f"troubleshooting.md: no message of the kit has {part!r}"
