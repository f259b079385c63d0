"""What was run, with what and on what: settings and surroundings as the manifests tell them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from essence.report.evidence import StageEvidence
from essence.report.records import Results

STAGES_WITH_SETTINGS = {"train": "Training", "generate": "Sampling", "grade": "Grading"}
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "datasets", "math-verify")
LONGEST_LIST = 12


@dataclass(frozen=True)
class Fact:
    """A named value, or the different values that it takes over the stages, and the manifest of the first."""

    name: str
    values: tuple[str, ...]
    link: str


def settings_facts(results: Results) -> dict[str, list[Fact]]:
    """For each kind of stage its settings, one line a setting: `optimizer.max_lr`."""
    found = {}
    for kind, title in STAGES_WITH_SETTINGS.items():
        stages = [stage for stage in results.stages if stage.stage == kind and stage.state == "done"]
        pairs = ((name, value, s) for s in stages for name, value in _flat(s.look("settings", "resolved") or {}))
        facts = _facts(pairs)
        if facts:
            found[title] = facts
    return found


def environment_facts(results: Results) -> list[Fact]:
    """Code, software and hardware of the finished stages."""
    return _facts(fact for stage in results.stages if stage.state == "done" for fact in _environment(stage))


def builtin_sources(results: Results) -> list[str]:
    """Names of the models, data sets and benchmarks that the kit made itself."""
    sources = (s.look("settings", "resolved", "source") or {} for s in results.stages if s.stage == "download")
    return sorted({str(source["name"]) for source in sources if source.get("builtin")})


def finished_at(results: Results) -> str:
    """When the last stage ended, `2026-07-01 10:01 UTC`; empty when none has."""
    times = sorted(str(s.look("identity", "finished")) for s in results.stages if s.look("identity", "finished"))
    return f"{times[-1][:16].replace('T', ' ')} UTC" if times else ""


def total_wall_s(results: Results) -> float:
    """Wall time of all finished stages together."""
    return sum(stage.number("cost", "wall_s") or 0.0 for stage in results.stages)


def _environment(stage: StageEvidence) -> Iterator[tuple[str, Any, StageEvidence]]:
    commit = stage.look("code", "commit")
    if commit:
        dirty = " with uncommitted changes" if stage.look("code", "dirty") else ""
        yield "code", f"essence {stage.look('code', 'version')} at {str(commit)[:12]}{dirty}", stage
    engine, version = stage.look("image", "engine"), stage.look("image", "engine_version")
    yield "engine", " ".join(str(part) for part in (engine, version) if part), stage
    yield "image", stage.look("image", "digest"), stage
    yield "lock", (stage.look("software", "lock_sha256") or "")[:16], stage
    yield "Python", stage.look("software", "python"), stage
    packages = stage.look("software", "packages") or {}
    for name in PACKAGES:
        yield name, packages.get(name), stage
    yield "platform", stage.look("software", "platform"), stage
    cores, threads = stage.look("hardware", "cpu_count"), stage.look("hardware", "threads")
    yield "processor", f"{stage.look('hardware', 'cpu') or 'unknown'}, {cores} cores, {threads} used", stage
    memory = stage.number("hardware", "memory_gib")
    yield "memory", f"{memory:.0f} GiB" if memory else None, stage
    gpus = [str(gpu.get("name", "unknown")) for gpu in stage.look("hardware", "gpus") or []]
    yield "GPU", ", ".join(gpus) or "none", stage
    yield "driver", stage.look("hardware", "driver"), stage


def _facts(pairs: Iterable[tuple[str, Any, StageEvidence]]) -> list[Fact]:
    """Different values by name, in the order they are met; what is None or empty is left out."""
    values: dict[str, dict[str, str]] = {}
    for name, value, stage in pairs:
        if value is not None and value != "":
            values.setdefault(name, {}).setdefault(_shown(value), stage.link)
    return [Fact(name, _shortened(list(found)), next(iter(found.values()))) for name, found in values.items()]


def _shortened(values: list[str]) -> tuple[str, ...]:
    left = len(values) - LONGEST_LIST
    return tuple(values) if left <= 0 else (*values[:LONGEST_LIST], f"and {left} more")


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return str(value)
