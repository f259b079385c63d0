"""Finished stages of a run directory as their records say, and what sets them apart from a stage that is planned now.

By this nothing that was paid for is lost from sight: a change of the code, of an environment or of a setting renews a
stage, and the plan says which change it was and what is there already.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from essence.errors import RecordError
from essence.record import facts
from essence.record.live_records import read_spec
from essence.record.plan_record import EarlierEntry, Under
from essence.record.run_directory import RunDirectory, StageFolder
from essence.record.source_key import ENTRY, source_sha256
from essence.record.stage_key import stage_key, that_differ
from essence.record.stage_records import read_manifest

MOST_NAMED = 3


@dataclass(frozen=True)
class FinishedStage:
    """What determined the result of a stage that is done."""

    id: str
    stage: str
    title: str
    key: str
    settings: Mapping[str, object]
    inputs: dict[str, str]
    """Input name -> key."""
    environment: dict[str, str]
    source_sha256: str
    modules: dict[str, str]
    """Empty in records of earlier versions."""
    packages: dict[str, str]
    finished: str


@dataclass(frozen=True)
class Earlier:
    """A finished stage that stands where another one is planned, and why that one is planned at all."""

    id: str
    key: str
    under: Under
    causes: tuple[str, ...]
    """`distill/objective.py changed`."""
    acceptable: bool
    """True when settings, inputs and environment are equal, so that it may be taken in the place of the planned one."""

    def entry(self) -> EarlierEntry:
        """As plan.json has it."""
        return EarlierEntry(stage=self.id, under=self.under, causes=list(self.causes), acceptable=self.acceptable)

    def as_json(self) -> dict[str, object]:
        return self.entry().model_dump()


class FinishedStages:
    """The finished stages of a run directory; read once, and only when somebody asks for one."""

    def __init__(self, run_directory: RunDirectory) -> None:
        self.run_directory = run_directory

    @functools.cached_property
    def stages(self) -> list[FinishedStage]:
        """The latest first; what cannot be read is left to `invoke verify`."""
        folders = map(StageFolder, sorted(self.run_directory.stages.glob("*-*")))
        found = [stage for folder in folders if folder.done and (stage := read_finished(folder))]
        return sorted(found, key=lambda stage: stage.finished, reverse=True)

    def of(self, stage: str) -> Iterator[FinishedStage]:
        return (found for found in self.stages if found.stage == stage)

    def packages_of(self, environment: dict[str, str]) -> dict[str, str]:
        """What an environment holds: as a stage that ran in it says, or as this one does if it is this one."""
        ran_there = (found.packages for found in self.stages if found.environment == environment)
        here = environment.get("lock_sha256") == facts.lock_sha256() and "base" not in environment
        return next(ran_there, facts.packages() if here else {})


def read_finished(folder: StageFolder) -> FinishedStage | None:
    """What the record of a finished stage says; None where it does not give the key and the seal that it has."""
    try:
        spec, manifest = read_spec(folder.spec), read_manifest(folder.manifest)
    except RecordError:
        return None
    found = FinishedStage(
        id=folder.path.name,
        stage=manifest.identity.stage,
        title=manifest.identity.title,
        key=manifest.identity.key,
        settings=manifest.resolved_json,
        inputs=manifest.input_keys,
        environment=spec.environment,
        source_sha256=manifest.code.source_sha256,
        modules=manifest.code.modules,
        packages=manifest.software.packages,
        finished=manifest.identity.finished,
    )
    key = stage_key(found.stage, found.settings, found.inputs, found.environment, found.source_sha256)
    return found if key == found.key and manifest.is_sealed else None


def modules_of_earlier_code(folder: StageFolder) -> dict[str, str] | None:
    """Module -> hash, as recorded by a finished stage whose source is not that of this code; None for any other."""
    if not (folder.done and folder.spec.is_file()):
        return None
    spec = read_spec(folder.spec)
    stage = next((name for name in ENTRY if name == spec.stage), None)
    if not spec.source_sha256 or stage is None or spec.source_sha256 == source_sha256(stage):
        return None
    return spec.modules


def module_changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """`distill/objective.py changed`, for each module that counts now or counted then."""
    if not before:
        return ["the kit's source changed (the record does not say where)"]
    words = []
    for name in sorted(before.keys() | now.keys()):
        file = name.removeprefix("essence.").replace(".", "/") + ".py"
        if before.get(name) != now.get(name):
            words.append(f"{file} {'is new' if name not in before else 'is gone' if name not in now else 'changed'}")
    return shortened(words)


def package_changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """`numpy 2.4.6 -> 2.4.7`, for each package of two environments that differs."""
    if not before or not now:
        return ["another environment"]
    names = [name for name in sorted(before.keys() | now.keys(), key=str.lower) if before.get(name) != now.get(name)]
    changes = [f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in names]
    return shortened(changes) or ["another lock or base of equal packages"]


def setting_changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """`optimizer.epochs 2 -> 3`, for each setting that differs."""
    flat = [dict(flat_settings(that_differ(settings))) for settings in (before, now)]
    names = [name for name in sorted(flat[0].keys() | flat[1].keys()) if flat[0].get(name) != flat[1].get(name)]
    return shortened([f"{name} {_shown(flat[0], name)} -> {_shown(flat[1], name)}" for name in names])


def shortened(words: list[str]) -> list[str]:
    return words if len(words) <= MOST_NAMED else [*words[:MOST_NAMED], f"{len(words) - MOST_NAMED} more"]


def flat_settings(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(`optimizer.max_lr`, value) of each setting; an empty table is a value."""
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from flat_settings(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _shown(settings: Mapping[str, object], name: str) -> str:
    text = str(settings[name]) if name in settings else "absent"
    return text if len(text) <= 24 else f"{text[:21]}..."
