"""Stages that may be removed from a run directory: none that another plan or a report names, none of their inputs."""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from essence.errors import RecordError
from essence.record.finished_stages import modules_of_earlier_code
from essence.record.live_records import Live, SettingsSpec, read_spec
from essence.record.plan_record import EarlierEntry
from essence.record.record_files import read_record
from essence.record.run_directory import RunDirectory, StageFolder

ORDER = (
    *("prove_decoding", "prove_training"),
    *("grade", "generate", "train", "teacher", "tokenize", "download"),
)
"""What is made of others goes first, so that a half done removal leaves nothing without its inputs."""
STAGE = re.compile(rf"({'|'.join(ORDER)})-[0-9a-f]{{16}}")
"""Folders of `stages/` that are the kit's; others are somebody's own and stay."""
OF_AN_EXPERIMENT = (
    *(".*.partial", ".*.tmp", "report", "cards", "traces", "looks.jsonl", "experiment.json", "holder.json", "lock"),
    "plan.json",
)
"""What the kit writes into an experiment's folder, as patterns; the plan goes last: by it the experiment is found."""
REMOVING = ".removing-"
"""How a folder is called while it is being removed: a kill leaves it under this name, never half under its own."""


class StageNames(Live):
    """A stage in a plan of any version, as far as a removal looks."""

    earlier: EarlierEntry | None = None


class PlanNames(Live):
    """Stages that a plan names."""

    stages: dict[str, StageNames]


class ReportNames(Live):
    """Stages that a report was made from, with the hashes of their records."""

    records: dict[str, str]


class ResolvedNames(Live):
    """experiment.json: settings by stage."""

    settings: dict[str, SettingsSpec] = Field(default_factory=dict)


@dataclass
class Removable:
    """What would go, and why."""

    stages: dict[Path, str] = field(default_factory=dict)
    """Folder -> why nothing needs it."""
    experiment: Path | None = None
    shared: list[str] = field(default_factory=list)
    """Stages of the experiment that stay, since something else names them."""
    earlier: list[str] = field(default_factory=list)
    """Stages that nothing names and that stay, since they are finished work of earlier code."""


def removable(run_directory: RunDirectory, experiment: str | None, earlier: bool = False) -> Removable:
    """Stages that nothing names; with an experiment, those that only it names, and its folder.

    What earlier code has finished stays, unless `earlier` asks for it too.

    Raises:
        RecordError: there is no such experiment, or a plan or report cannot be read: no one knows what it names.
    """
    if experiment is None:
        kept, why = kept_by_others(run_directory, None), "no plan or report names it"
        unnamed = [path for path in _stages(run_directory) if path.name not in kept]
        paid = set() if earlier else finished_earlier(run_directory)
        return Removable(
            {path: why for path in unnamed if path.name not in paid},
            earlier=[path.name for path in unnamed if path.name in paid],
        )
    if experiment not in run_directory.experiments():
        ran = ", ".join(run_directory.experiments()) or "none"
        raise RecordError(f"{experiment} has not run in {run_directory.root} (ran: {ran})")
    kept = kept_by_others(run_directory, experiment)
    own = needed(run_directory, [experiment])
    stages = [path for path in _stages(run_directory) if path.name in own]
    return Removable(
        {path: f"only {experiment} names it" for path in stages if path.name not in kept},
        run_directory.experiment(experiment),
        [path.name for path in stages if path.name in kept],
    )


def kept_by_others(run_directory: RunDirectory, experiment: str | None) -> set[str]:
    """What all experiments need, or all but this one."""
    return needed(run_directory, [name for name in run_directory.planned() if name != experiment])


def needed(run_directory: RunDirectory, experiments: Iterable[str]) -> set[str]:
    """Stages that the plans and reports of these experiments name, and all that those were or will be made of."""
    waiting: list[str] = []
    for name in experiments:
        waiting += read_named(run_directory.plan(name), PlanNames, "a plan").stages
        if (report := run_directory.report(name) / "report.json").is_file():
            waiting += read_named(report, ReportNames, "a report").records
        if (resolved := run_directory.resolved(name)).is_file():
            waiting += _sources(run_directory, resolved)
    return _with_inputs(run_directory, waiting)


def _with_inputs(run_directory: RunDirectory, stages: Iterable[str]) -> set[str]:
    waiting, found = list(stages), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _inputs(run_directory, name)
    return found


def finished_earlier(run_directory: RunDirectory) -> set[str]:
    """Finished stages of earlier code, or in whose place a plan has others; with what they are made of, and what is
    made of them."""
    found = _replaced(run_directory)
    for path in reversed(_stages(run_directory)):  # what a stage reads comes before it
        folder = StageFolder(path)
        if not folder.done:
            continue
        if modules_of_earlier_code(folder) is not None or found & set(_inputs(run_directory, path.name)):
            found.add(path.name)
    return _with_inputs(run_directory, found)


def _replaced(run_directory: RunDirectory) -> set[str]:
    """Finished stages in whose place a plan has others."""
    found: set[str] = set()
    for name in run_directory.planned():
        stages = read_named(run_directory.plan(name), PlanNames, "a plan").stages.values()
        found |= {stage.earlier.stage for stage in stages if stage.earlier}
    return {name for name in found if run_directory.stage(name).done}


def leftovers(run_directory: RunDirectory) -> list[Path]:
    """What a removal that was killed has left."""
    return sorted(run_directory.stages.glob(f"{REMOVING}*"))


def unused_compilations(run_directory: RunDirectory) -> list[Path]:
    """What decoders compiled in environments that no stage here has, as far as their specs can be read."""
    used: set[Path] = set()
    for path in _stages(run_directory):
        with contextlib.suppress(RecordError):
            used.add(run_directory.compiled(read_spec(path / "spec.json").environment))
    return sorted(set(run_directory.all_compiled.glob("*")) - used)


def _stages(run_directory: RunDirectory) -> list[Path]:
    found = [path for path in run_directory.stages.glob("*-*") if STAGE.fullmatch(path.name)]
    return sorted(found, key=lambda path: (ORDER.index(path.name.split("-")[0]), path.name))


AnyNames = TypeVar("AnyNames", bound=Live)


def read_named(file: Path, kind: type[AnyNames], what: str) -> AnyNames:
    """A record that names stages; RecordError with what to do where it cannot be read."""
    try:
        return read_record(file, kind, what)
    except RecordError as error:
        raise RecordError(str(error), "nothing is removed while it cannot be read: put it back, or remove it") from None


def _inputs(run_directory: RunDirectory, stage: str) -> list[str]:
    """What a stage reads, and where its folder is a link, the stage that it leads to."""
    folder = run_directory.stage(stage)
    linked = [folder.path.resolve().name] if folder.path.is_symlink() else []
    if not folder.spec.is_file():
        return linked
    return linked + [Path(place).name for place in read_spec(folder.spec).inputs.values()]


def _sources(run_directory: RunDirectory, resolved: Path) -> list[str]:
    """Stages of this run directory whose outputs are sources that were not taken in yet."""
    settings = read_record(resolved, ResolvedNames, "the resolved settings of an experiment").settings
    sources = [one.source for name, one in settings.items() if not run_directory.stage(name).done]
    paths = [Path(source.path).resolve() for source in sources if source and source.path]
    stages = run_directory.stages.resolve()
    return [path.relative_to(stages).parts[0] for path in paths if stages in path.parents]
