"""What differs between two stages and all that they come from, and what most likely made their results differ.

Both chains are walked from their ends to their downloads. A difference in a setting, an image, a lock, a piece of code
or a downloaded file is a cause; a difference in what a stage computed is a consequence of the causes at or before it,
and becomes a cause of its own only where there is none: then equal inputs gave different outputs. Of samples the
completions count, and not the hash of their file, whose lines hold the seconds that each took.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from essence.errors import InputError, RecordError
from essence.evaluation.sample_lines import SampleLine, read_lines, text_of
from essence.files import sha256_text
from essence.record.finished_stages import flat_settings
from essence.record.manifest import Manifest
from essence.record.recount import SAMPLES
from essence.record.run_directory import RunDirectory, stage_id
from essence.record.stage_key import that_differ
from essence.record.stage_records import (
    DownloadManifest,
    GenerateManifest,
    GradeManifest,
    TokenizeManifest,
    TrainManifest,
    read_manifest,
)
from essence.settings.protocol import Protocol

Chain = dict[str, Manifest]
"""Manifests by place: the way from the end of the chain, `grade.samples.model`."""
Kind = Literal[
    "data", "model", "view", "protocol", "setting", "grader", "samples", "image", "lock", "code", "seed", "driver",
    "hardware", "unexplained",
]  # fmt: skip
KINDS: dict[Kind, str] = {
    "data": "other rows or problems",
    "model": "another model",
    "view": "another part of the rows is read or supervised",
    "protocol": "another protocol",
    "setting": "another setting",
    "grader": "another grader",
    "samples": "another number of samples",
    "image": "another image",
    "lock": "other versions of packages",
    "code": "other source code of the stage",
    "seed": "another seed",
    "driver": "another GPU driver",
    "hardware": "other hardware",
    "unexplained": "equal inputs gave different outputs",
}
"""Kinds of causes in the order of how much they change a result, as far as one can say before looking; in words."""
Roots = tuple[RunDirectory, RunDirectory]
"""Where the stages of two chains lie."""
PROTOCOL_FIELDS = {field.name for field in fields(Protocol)}
GRADER = ("grader", "timeout_s", "math_verify")
"""Settings of a grade stage that can change a verdict."""
OF_SAMPLES = "samples_sha256"
"""Fingerprint of a file that holds times."""
Value = str | int | float | None
"""Of a field that is compared."""


@dataclass(frozen=True)
class Difference:
    """One field that differs, in one or several stages of the two chains."""

    kind: Kind
    field: str
    first: str
    second: str
    stages: tuple[str, ...]
    """Where: `train`, `download bespoke`."""

    @property
    def sentence(self) -> str:
        """`another seed: seed is 1 in A and 2 in B (train)`."""
        where = ", ".join(self.stages)
        return f"{KINDS[self.kind]}: {self.field} is {self.first} in A and {self.second} in B ({where})"

    def as_json(self) -> dict[str, object]:
        return {**vars(self), "stages": list(self.stages), "sentence": self.sentence}


def read_chain(run_directory: RunDirectory, identifier: str, place: str, readers: tuple[str, ...] = ()) -> Chain:
    """The manifest of a stage and of all stages that it comes from; what is not there is left out.

    A teacher paid once stands at `train.states`, and the model behind it where a live teacher stands: `train.teacher`.

    Raises:
        RecordError: a record is damaged, of another shape, of a newer kit, or says that it comes from itself.
    """
    file = run_directory.stage(identifier).manifest
    if not file.is_file():
        return {}
    if identifier in readers:
        raise RecordError(f"{file}: says that it comes from itself")
    manifest = _read(file)
    chain = {place: manifest}
    for name, entry in manifest.inputs.stages.items():
        below = f"{place.removesuffix('.states')}.{'states' if entry.stage == 'teacher' else name}"
        before = stage_id(entry.stage, entry.key)
        chain |= read_chain(run_directory, before, below, (*readers, identifier))
    return chain


@functools.cache
def _read(file: Path) -> Manifest:
    """Read once: many cells come from the same downloads."""
    return read_manifest(file)


def built_on_earlier(chain: Chain) -> list[str]:
    """Accepted stages of earlier code that a chain is built on, by id, with what changed since."""
    accepted: dict[str, list[str]] = {}
    for manifest in chain.values():
        accepted |= manifest.inputs.accepted
    return [f"{identifier} ({', '.join(causes)})" for identifier, causes in accepted.items()]


def edited(chain: Chain) -> list[str]:
    """Stages of a chain whose record does not give its seal, by id."""
    wrong = [manifest.identity for manifest in chain.values() if not manifest.is_sealed]
    return list(dict.fromkeys(stage_id(identity.stage, identity.key) for identity in wrong))


def likely_causes(first: Chain, second: Chain, roots: Roots | None = None) -> list[Difference]:
    """The causes between two chains, the likeliest first; one that is found in several places stands once.

    roots: where completions are read; without them, or where they are gone, their counts are compared.
    """
    common = [place for place in first if place in second]
    causes = {place: list(_causes(place, first[place], second[place])) for place in common}
    changed = {place for place in common if causes[place]}
    for place in common:
        # A cause here, or before it in the flow (further down its chain), explains what this stage computed.
        if not any(other == place or other.startswith(f"{place}.") for other in changed):
            causes[place] += _outputs(first[place], second[place], roots)
    return merge([found for place in common for found in causes[place]])


def result_differences(first: Chain, second: Chain) -> list[tuple[str, str, Value, Value]]:
    """(Stage, what, in A, in B) of every other number that differs: losses, lengths, tokens and costs."""
    found: dict[tuple[str, str, Value, Value], None] = {}
    for place in (place for place in first if place in second):
        if isinstance(first[place], DownloadManifest):
            continue
        measured = _measured(first[place]), _measured(second[place])
        for name in dict.fromkeys([*measured[0], *measured[1]]):
            both = measured[0].get(name), measured[1].get(name)
            if both[0] != both[1]:
                found[_named(first[place]), name, *both] = None
    return list(found)


def _measured(manifest: Manifest) -> dict[str, Value]:
    """Numbers of a record that are shown beside the accuracies, where they differ."""
    found: dict[str, Value] = {}
    if isinstance(manifest, TrainManifest):
        train, results = manifest.inputs.data.train, manifest.results
        found = {"tokens": train.tokens if train else None, "steps": results.steps, **_computed(manifest)}
    elif isinstance(manifest, GenerateManifest | GradeManifest):
        found = {"mean_completion_tokens": manifest.results.mean_completion_tokens}
    cost = manifest.cost
    return {
        **found,
        "flops": cost.flops,
        "wall_s": cost.wall_s,
        "peak_memory_gib": cost.peak_memory_gib,
        "peak_gpu_memory_gib": cost.peak_gpu_memory_gib,
        "energy_j": cost.energy_j,
    }


def _computed(manifest: Manifest) -> dict[str, Value]:
    """Results that equal inputs give again."""
    if isinstance(manifest, TrainManifest):
        results = manifest.results
        return {"last_loss": results.last_loss, "best_validation_ce": results.best_validation_ce}
    return {"accuracy": manifest.results.accuracy} if isinstance(manifest, GradeManifest) else {}


def _fingerprints(manifest: Manifest) -> dict[str, Value]:
    """Hashes of what a stage made or read, by their place in `inputs.data`."""
    if isinstance(manifest, TokenizeManifest):
        return {"tokens_sha256": manifest.inputs.data.tokens_sha256}
    if isinstance(manifest, GenerateManifest):
        return {"prompts_sha256": manifest.inputs.data.prompts_sha256}
    if isinstance(manifest, GradeManifest):
        return {OF_SAMPLES: manifest.inputs.data.samples_sha256}
    if isinstance(manifest, TrainManifest):
        train, validation = manifest.inputs.data.train, manifest.inputs.data.validation
        return {
            "train.sha256": train.sha256 if train else None,
            "validation.sha256": validation.sha256 if validation else None,
        }
    return {}


def merge(differences: Sequence[Difference]) -> list[Difference]:
    """Equal differences as one with all of their stages, ranked."""
    merged: dict[tuple[Kind, str, str, str], list[str]] = {}
    for found in differences:
        merged.setdefault((found.kind, found.field, found.first, found.second), []).extend(found.stages)
    ranked = [Difference(*key, tuple(dict.fromkeys(stages))) for key, stages in merged.items()]
    order = list(KINDS)
    return sorted(ranked, key=lambda found: order.index(found.kind))


def _causes(place: str, first: Manifest, second: Manifest) -> Iterator[Difference]:
    """Differences of one stage that are nobody's consequence."""
    stage = _named(first)
    before = [dict(flat_settings(that_differ(manifest.resolved_json))) for manifest in (first, second)]
    for name in sorted(before[0].keys() | before[1].keys()):
        yield from _difference(
            _kind(first.identity.stage, place, name), name, (settings.get(name) for settings in before), stage
        )
    if isinstance(first, DownloadManifest) and before[0] == before[1]:
        yield from _files(place, first, second)
    yield from _surroundings(first, second)


def _surroundings(first: Manifest, second: Manifest) -> Iterator[Difference]:
    """Image, lock, source and hardware; what a downloaded file holds depends on none of them."""
    stage, both = _named(first), (first, second)
    yield from _difference("image", "image", map(_image, both), stage)
    locks = [manifest.software.lock_sha256 for manifest in both]
    packages = _package_changes(first.software.packages, second.software.packages)
    if locks[0] != locks[1]:
        yield Difference("lock", "lock", _shown(locks[0]), _shown(locks[1]) + packages, (stage,))
    elif packages:
        yield Difference("lock", "packages", "as locked", packages.strip(" ()"), (stage,))
    yield from _difference("code", "source", (manifest.code.source_sha256 for manifest in both), stage)
    hardware = [_hardware(manifest) for manifest in both]
    for name, kind in HARDWARE.items():
        yield from _difference(kind, name, (found[name] for found in hardware), stage)


HARDWARE: dict[str, Kind] = {
    "driver": "driver", "cuda": "driver", "nccl": "driver",
    "cpu": "hardware", "gpus": "hardware", "threads": "hardware",
}  # fmt: skip


def _hardware(manifest: Manifest) -> dict[str, object]:
    found = manifest.hardware
    gpus = [gpu.model_dump() for gpu in found.gpus]
    return {"driver": found.driver, "cuda": found.cuda, "nccl": found.nccl, "cpu": found.cpu, "gpus": gpus,
            "threads": found.threads}  # fmt: skip


def _image(manifest: Manifest) -> str:
    found = manifest.image
    of_base = f"a SIF straight from base {found.base_digest}" if found.sif_sha256 else found.engine
    return found.digest or of_base


def _package_changes(first: dict[str, str], second: dict[str, str]) -> str:
    """`(torch 2.12.1, 2.13.0; ...)`, at most three."""
    changed = [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
    if not changed:
        return ""
    shown = [f"{name} {first.get(name, 'absent')} -> {second.get(name, 'absent')}" for name in changed[:3]]
    more = f"; {len(changed) - 3} more" if len(changed) > 3 else ""
    return f" ({'; '.join(shown)}{more})"


def _files(place: str, first: Manifest, second: Manifest) -> Iterator[Difference]:
    """Files of a download that hold other bytes under the same name."""
    hashes = [{entry.path: entry.sha256 for entry in manifest.outputs} for manifest in (first, second)]
    for path in sorted(hashes[0].keys() | hashes[1].keys()):
        yield from _difference(_source_kind(place), path, (found.get(path) for found in hashes), _named(first))


def _outputs(first: Manifest, second: Manifest, roots: Roots | None) -> Iterator[Difference]:
    """Fingerprints and results that differ although nothing before them does."""
    for of in (_fingerprints, _computed):
        found = of(first), of(second)
        for name in dict.fromkeys([*found[0], *found[1]]):
            values = [one.get(name) for one in found]
            if name == OF_SAMPLES and values[0] != values[1] and _same_completions(first, second, roots):
                continue
            yield from _difference("unexplained", name, values, _named(first))


def _same_completions(first: Manifest, second: Manifest, roots: Roots | None) -> bool:
    """Whether two grade stages had the same completions before them, in whatever time and order."""
    if roots:
        read = [_completions(_samples_file(*each)) for each in zip((first, second), roots, strict=True)]
        if None not in read:
            return read[0] == read[1]
    return _counted(first) == _counted(second)


def _samples_file(manifest: Manifest, run_directory: RunDirectory) -> Path | None:
    """That a grade stage read; None in a record that does not say of which stage."""
    entry = manifest.inputs.stages.get("samples")
    return run_directory.stage(stage_id(entry.stage, entry.key)).output / SAMPLES if entry else None


@functools.cache
def _completions(file: Path | None) -> str | None:
    """Hash of all samples without their seconds; None where the file is gone or damaged."""
    if file is None:
        return None
    try:
        lines = read_lines(file, SampleLine)
    except InputError:
        return None
    in_order = sorted(lines, key=lambda line: (line.problem, line.sample))
    return sha256_text(text_of(replace(line, seconds=0.0) for line in in_order))


def _counted(manifest: Manifest) -> object:
    """What a record counts of completions and verdicts, each number a whole one."""
    if not isinstance(manifest, GradeManifest):
        return None
    results = manifest.results
    return results.per_problem, results.finish_reasons, results.statuses, results.doubts


def _difference(kind: Kind, name: str, values: Iterable[object], stage: str) -> Iterator[Difference]:
    first, second = values
    if first != second:
        yield Difference(kind, name, _shown(first), _shown(second), (stage,))


def _named(manifest: Manifest) -> str:
    """`train`; of a download also what: `download bespoke`."""
    if isinstance(manifest, DownloadManifest) and manifest.source.name:
        return f"download {manifest.source.name}"
    return manifest.identity.stage


def _kind(stage: str, place: str, name: str) -> Kind:
    """What kind of cause a setting of a stage is."""
    parts = name.split(".")
    if parts[0] == "source":
        return _source_kind(place)
    if stage == "grade" and parts[0] in GRADER:  # before the protocol, which also chooses a grader
        return "grader"
    if parts[-1] in PROTOCOL_FIELDS:
        return "protocol"
    if "seed" in parts[-1]:
        return "seed"
    if parts[0] == "view":
        return "view"
    return "samples" if parts[-1] == "samples" else "setting"


def _source_kind(place: str) -> Kind:
    return "data" if place.rsplit(".", 1)[-1] in ("rows", "problems") or ".problems" in place else "model"


def _shown(value: object) -> str:
    text = str(value) if value is not None else "nothing"
    return f"{text[:12]}..." if len(text) == 64 and Path(text).name == text else text
