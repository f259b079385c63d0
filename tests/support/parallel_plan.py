"""How tests are distributed over parallel processes (`pytest -n auto`).

Tests that share an expensive or exclusive resource stay in one process: those of an engine, those of a browser, and
those of a file that share its fixtures. All others are distributed one by one, so no long file is left at the end. The
longest start first.
"""

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

GROUPS = {
    "docker": "containers",
    "apptainer": "containers",
    "slurm": "slurm",
    "vllm": "vllm",
    "browser": "browser",
}
"""Mark -> the group of tests that has one process, the longest first. One Docker engine has the images and SIFs."""
OWN_ENGINE = "own_engine"
"""Mark of a test that starts its own engine, and so need not wait for those that share one."""
BUILD_TIMEOUT_S = 5400
"""The first test with an engine waits until its images and SIFs are built, which is slow on a slow network."""
PROCESSES_A_CORE = 2
"""Half of the time a test waits for another process."""
GIB_A_PROCESS = 5
"""Memory, including the stages that a test starts; those of vLLM take most."""
GROUPS_FILE = "essence_groups"
"""Key of the file to which a process writes the group of each test."""


def group_of(item: pytest.Item) -> str:
    """The tests that need the same process, by their marks; else those of the file, where they share its fixtures."""
    if item.get_closest_marker(OWN_ENGINE):
        return item.nodeid
    for mark, group in GROUPS.items():
        if item.get_closest_marker(mark):
            return group
    return item.nodeid.partition("::")[0] if shares_fixtures(item) else item.nodeid


def shares_fixtures(item: pytest.Item) -> bool:
    """True when a fixture of the test is made once for its file or class; those of a session each process makes."""
    info = getattr(item, "_fixtureinfo", None)
    made = [definitions[-1] for definitions in info.name2fixturedefs.values()] if info else []
    return any(fixture.scope in ("class", "module", "package") for fixture in made)


def rank_of(item: pytest.Item, slow_groups: set[str]) -> int:
    """Small is early: engines in their order, then groups with a test that is marked slow, then the rest."""
    group = group_of(item)
    order = list(dict.fromkeys(GROUPS.values()))
    if group in order:
        return order.index(group)
    return len(order) + (group not in slow_groups)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if group_of(item) == GROUPS["docker"] or item.get_closest_marker(OWN_ENGINE):
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S))
    if not hasattr(config, "workerinput"):
        return
    slow_groups = {group_of(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: rank_of(item, slow_groups))
    file = Path(config.workerinput[GROUPS_FILE])
    whole = file.with_suffix(f".{os.getpid()}")
    whole.write_text(json.dumps({item.nodeid: group_of(item) for item in items}), encoding="utf-8")
    # Each process writes the same.
    whole.replace(file)


class GroupScheduling(LoadScopeScheduling):
    """Deals groups, in the order in which they were collected.

    xdist's own `--dist loadgroup` changes the names of tests, which pytest 9.2 does not let it do.
    """

    def __init__(self, config: pytest.Config, log: Any, groups_file: Path) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)
        self.groups_file = groups_file

    @functools.cached_property
    def groups(self) -> dict[str, str]:
        """Name of a test -> its group."""
        return dict(json.loads(self.groups_file.read_text(encoding="utf-8")))

    def _split_scope(self, nodeid: str) -> str:
        return self.groups[nodeid]


class Dealing:
    """The side of the process that deals."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ess-groups-")
        self.file = Path(self.folder.name) / "groups.json"

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[GROUPS_FILE] = str(self.file)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> GroupScheduling:
        return GroupScheduling(config, log, self.file)

    def pytest_unconfigure(self) -> None:
        self.folder.cleanup()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        config.pluginmanager.register(Dealing(), "essence-dealing")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: as many processes as cores and memory carry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = psutil.virtual_memory().total / 2**30
    return max(1, min(PROCESSES_A_CORE * cores, int(memory_gib / GIB_A_PROCESS)))
