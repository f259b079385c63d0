"""How tests are dealt to parallel processes (`pytest -n auto --dist loadgroup --no-loadscope-reorder`).

Tests that share something expensive or that only one may use stay in one process: those of an engine, those of a
browser, and otherwise those of one file, which share its fixtures. What takes longest is dealt out first.
"""

import os

import psutil
import pytest

GROUPS = {
    "docker": "containers",
    "apptainer": "containers",
    "slurm": "slurm",
    "vllm": "vllm",
    "browser": "browser",
}
"""Mark -> the group of tests that has one process, the longest first. One Docker engine has the images and SIFs."""
BUILD_TIMEOUT_S = 2700
"""The first test with an engine waits until its images and SIFs are built, which a slow network makes long."""
PROCESSES_A_CORE = 2
"""Half of the time a test waits for another process."""
GIB_A_PROCESS = 5
"""Of memory, with the stages that a test starts; those of vLLM take most."""


def group_of(item: pytest.Item) -> str:
    """The process that a test needs, by its marks; else the file that it stands in."""
    for mark in item.iter_markers("xdist_group"):
        return str(mark.args[0])
    for mark, group in GROUPS.items():
        if item.get_closest_marker(mark):
            return group
    return item.path.stem


def rank_of(item: pytest.Item, slow_files: set[str]) -> int:
    """Small is early: engines in their order, then files with a test that is marked slow, then the rest."""
    group = group_of(item)
    order = list(dict.fromkeys(GROUPS.values()))
    if group in order:
        return order.index(group)
    return len(order) + (group not in slow_files)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if group_of(item) == GROUPS["docker"]:
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S))
    if not hasattr(config, "workerinput"):
        return
    slow_files = {group_of(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: rank_of(item, slow_files))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: as many processes as cores and memory carry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = psutil.virtual_memory().total / 2**30
    return max(1, min(PROCESSES_A_CORE * cores, int(memory_gib / GIB_A_PROCESS)))
