"""Finished stages of a run directory as their records say, and what sets them apart from a stage that is planned now.

By this nothing that was paid for is lost from sight: a change of the code, of an environment or of a setting renews a
stage, and the plan says which change it was and what is there already.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from essence.errors import RecordError
from essence.files import read_json
from essence.record import facts
from essence.record.manifest import seal_of
from essence.record.run_directory import RunDirectory, StageFolder
from essence.record.source_key import ENTRY, source_sha256
from essence.record.stage_key import stage_key, that_count

MOST_NAMED = 3
Under = Literal["earlier code", "another environment", "earlier code with other settings"]


@dataclass(frozen=True)
class FinishedStage:
    """What determined the result of a stage that is done."""

    id: str
    stage: str
    title: str
    key: str
    settings: dict[str, Any]
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

    def as_json(self) -> dict[str, Any]:
        return {"stage": self.id, "under": self.under, "causes": list(self.causes), "acceptable": self.acceptable}


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
        spec, manifest = read_json(folder.spec), read_json(folder.manifest)
        inputs = {name: entry["key"] for name, entry in manifest["inputs"]["stages"].items()}
        settings, code, identity = manifest["settings"]["resolved"], manifest["code"], manifest["identity"]
        found = FinishedStage(
            id=folder.path.name,
            stage=identity["stage"],
            title=identity["title"],
            key=identity["key"],
            settings=settings,
            inputs=inputs,
            environment=spec["environment"],
            source_sha256=code["source_sha256"],
            modules=code.get("modules", {}),
            packages=manifest["software"]["packages"],
            finished=identity["finished"],
        )
        key = stage_key(found.stage, settings, inputs, found.environment, found.source_sha256)
        whole = key == found.key and seal_of(manifest) == manifest["seal"]
    except (RecordError, LookupError, TypeError, AttributeError):
        return None
    return found if whole else None


def modules_of_earlier_code(folder: StageFolder) -> dict[str, str] | None:
    """Module -> hash, as recorded by a finished stage whose source is not that of this code; None for any other."""
    if not (folder.done and folder.spec.is_file()):
        return None
    spec = read_json(folder.spec)
    recorded, stage = spec.get("source_sha256"), spec.get("stage")
    if not recorded or stage not in ENTRY or recorded == source_sha256(stage):
        return None
    modules = spec.get("modules", {})
    return modules if isinstance(modules, dict) else {}


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


def setting_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`optimizer.epochs 2 -> 3`, for each setting that differs."""
    flat = [dict(_flat(that_count(settings))) for settings in (before, now)]
    names = [name for name in sorted(flat[0].keys() | flat[1].keys()) if flat[0].get(name) != flat[1].get(name)]
    return shortened([f"{name} {_shown(flat[0], name)} -> {_shown(flat[1], name)}" for name in names])


def shortened(words: list[str]) -> list[str]:
    return words if len(words) <= MOST_NAMED else [*words[:MOST_NAMED], f"{len(words) - MOST_NAMED} more"]


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _shown(settings: dict[str, Any], name: str) -> str:
    text = str(settings[name]) if name in settings else "absent"
    return text if len(text) <= 24 else f"{text[:21]}..."


def accepted_sentences(planned: Iterable[dict[str, Any]]) -> list[str]:
    """What `--accept-earlier` took in, from the stages of plan.json: a sentence for each kind of stage and cause."""
    counts: dict[tuple[str, str], int] = {}
    for entry in planned:
        if accepted := entry.get("accepted"):
            group = (str(entry["stage"]), ", ".join(accepted["causes"]))
            counts[group] = counts.get(group, 0) + 1
    return [
        f"Accepted from earlier code (--accept-earlier): {count} finished {stage} "
        f"stage{'s' if count > 1 else ''}; since then: {causes}."
        for (stage, causes), count in counts.items()
    ]
