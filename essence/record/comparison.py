"""What differs between two stages and all that they come from, and what most likely made their results differ.

Both chains are walked from their ends to their downloads. A difference in a setting, an image, a lock, a piece of code
or a downloaded file is a cause; a difference in what a stage computed is a consequence of the causes at or before it,
and becomes a cause of its own only where there is none: then equal inputs gave different outputs.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from essence.errors import RecordError
from essence.files import read_json
from essence.record.checks import look, schema_findings
from essence.record.manifest import seal_of
from essence.record.run_directory import RunDirectory, stage_id
from essence.record.stage_key import that_count
from essence.settings.protocol import Protocol

Manifest = dict[str, Any]
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
PROTOCOL_FIELDS = {field.name for field in fields(Protocol)}
GRADER = ("grader", "timeout_s", "math_verify")
"""Settings of a grade stage that can change a verdict."""
FINGERPRINTS = ("tokens_sha256", "prompts_sha256", "samples_sha256", "train.sha256", "validation.sha256")
MEASURED = (
    "inputs.data.train.tokens", "results.steps", "results.last_loss", "results.best_validation_ce",
    "results.mean_completion_tokens", "cost.flops", "cost.wall_s", "cost.peak_memory_gib", "cost.peak_gpu_memory_gib",
    "cost.energy_j",
)  # fmt: skip
"""Numbers of a record that are shown beside the accuracies, where they differ."""
RESULTS = ("accuracy", "last_loss", "best_validation_ce")
HARDWARE: dict[str, Kind] = {
    "driver": "driver",
    "cuda": "driver",
    "nccl": "driver",
    "cpu": "hardware",
    "gpus": "hardware",
    "threads": "hardware",
}


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

    def as_json(self) -> dict[str, Any]:
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
    manifest = _record(file)
    chain = {place: manifest}
    for name, entry in manifest["inputs"]["stages"].items():
        below = f"{place.removesuffix('.states')}.{'states' if entry['stage'] == 'teacher' else name}"
        before = stage_id(entry["stage"], entry["key"])
        chain |= read_chain(run_directory, before, below, (*readers, identifier))
    return chain


@functools.cache
def _record(file: Path) -> Manifest:
    """A manifest of the published shape, read once: many cells come from the same downloads."""
    manifest = read_json(file)
    if wrong := list(schema_findings(file, manifest)):
        raise RecordError(wrong[0])
    return manifest


def built_on_earlier(chain: Chain) -> list[str]:
    """Accepted stages of earlier code that a chain is built on, by id, with what changed since."""
    accepted: dict[str, list[str]] = {}
    for manifest in chain.values():
        accepted |= manifest["inputs"].get("accepted", {})
    return [f"{identifier} ({', '.join(causes)})" for identifier, causes in accepted.items()]


def edited(chain: Chain) -> list[str]:
    """Stages of a chain whose record does not give its seal, by id."""
    wrong = [m["identity"] for m in chain.values() if seal_of(m) != m["seal"]]
    return list(dict.fromkeys(stage_id(identity["stage"], identity["key"]) for identity in wrong))


def likely_causes(first: Chain, second: Chain) -> list[Difference]:
    """The causes between two chains, the likeliest first; one that is found in several places stands once."""
    common = [place for place in first if place in second]
    causes = {place: list(_causes(place, first[place], second[place])) for place in common}
    changed = {place for place in common if causes[place]}
    for place in common:
        # A cause here, or before it in the flow (further down its chain), explains what this stage computed.
        if not any(other == place or other.startswith(f"{place}.") for other in changed):
            causes[place] += _outputs(first[place], second[place])
    return merge([found for place in common for found in causes[place]])


def result_differences(first: Chain, second: Chain) -> list[tuple[str, str, Any, Any]]:
    """(Stage, what, in A, in B) of every other number that differs: losses, lengths, tokens and costs."""
    found = []
    for place in (place for place in first if place in second):
        for field in MEASURED:
            both = look(first[place], field), look(second[place], field)
            if both[0] != both[1]:
                found.append((_named(first[place]), field.rsplit(".", 1)[-1], *both))
    return [row for row in dict.fromkeys(found) if not row[0].startswith("download")]


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
    before = [dict(_flat(that_count(manifest["settings"]["resolved"]))) for manifest in (first, second)]
    for name in sorted(before[0].keys() | before[1].keys()):
        yield from _difference(
            _kind(first["identity"]["stage"], place, name), name, (settings.get(name) for settings in before), stage
        )
    if first["identity"]["stage"] == "download" and before[0] == before[1]:
        yield from _files(place, first, second)
    yield from _surroundings(first, second)


def _surroundings(first: Manifest, second: Manifest) -> Iterator[Difference]:
    """Image, lock, source and hardware; what a downloaded file holds depends on none of them."""
    stage, both = _named(first), (first, second)
    yield from _difference("image", "image", map(_image, both), stage)
    locks = [manifest["software"]["lock_sha256"] for manifest in both]
    packages = _package_changes(first["software"]["packages"], second["software"]["packages"])
    if locks[0] != locks[1]:
        yield Difference("lock", "lock", _shown(locks[0]), _shown(locks[1]) + packages, (stage,))
    elif packages:
        yield Difference("lock", "packages", "as locked", packages.strip(" ()"), (stage,))
    yield from _difference("code", "source", (m["code"]["source_sha256"] for m in both), stage)
    for name, kind in HARDWARE.items():
        yield from _difference(kind, name, (manifest["hardware"].get(name) for manifest in both), stage)


def _image(manifest: Manifest) -> str:
    return str(manifest["image"].get("digest") or manifest["image"]["engine"])


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
    hashes = [{entry["path"]: entry["sha256"] for entry in manifest["outputs"]} for manifest in (first, second)]
    for path in sorted(hashes[0].keys() | hashes[1].keys()):
        yield from _difference(_source_kind(place), path, (found.get(path) for found in hashes), _named(first))


def _outputs(first: Manifest, second: Manifest) -> Iterator[Difference]:
    """Fingerprints and results that differ although nothing before them does."""
    data = [dict(_flat(manifest["inputs"]["data"])) for manifest in (first, second)]
    for name in FINGERPRINTS:
        yield from _difference("unexplained", name, (found.get(name) for found in data), _named(first))
    for name in RESULTS:
        values = first["results"].get(name), second["results"].get(name)
        yield from _difference("unexplained", name, values, _named(first))


def _difference(kind: Kind, name: str, values: Iterable[Any], stage: str) -> Iterator[Difference]:
    first, second = values
    if first != second:
        yield Difference(kind, name, _shown(first), _shown(second), (stage,))


def _named(manifest: Manifest) -> str:
    """`train`; of a download also what: `download bespoke`."""
    source = manifest["settings"]["resolved"].get("source")
    return f"download {source['name']}" if source else str(manifest["identity"]["stage"])


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


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _shown(value: Any) -> str:
    text = str(value) if value is not None else "nothing"
    return f"{text[:12]}..." if len(text) == 64 and Path(text).name == text else text
