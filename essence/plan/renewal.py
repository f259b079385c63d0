"""What renewed the stages of a plan, and which finished stages of earlier code take their places."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from essence.record.finished_stages import (
    Earlier,
    FinishedStage,
    FinishedStages,
    module_changes,
    modules_of_earlier_code,
    package_changes,
    setting_changes,
)
from essence.record.plan_record import StageEntry, Under
from essence.record.run_directory import RunDirectory
from essence.record.source_key import module_hashes
from essence.record.stage_key import that_differ
from essence.settings import StageName


@dataclass(frozen=True)
class Wanted:
    """What determines the result of a planned stage."""

    stage: StageName
    title: str
    settings: Mapping[str, object]
    inputs: dict[str, str]
    """Input name -> id of the planned stage."""
    environment: dict[str, str]
    source_sha256: str


@dataclass
class Renewals:
    """Finds the finished stage that a planned one would repeat. Ask for stages in the order in which they can run."""

    finished: FinishedStages
    _stands_for: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Id of a planned stage -> (key, whether it may be accepted) of what is finished in its place."""

    def is_done(self, identifier: str) -> bool:
        return self.finished.run_directory.stage(identifier).done

    def find(self, identifier: str, key: str, wanted: Wanted) -> Earlier | None:
        """The finished stage in the place of a planned one that is not done; None where there is none."""
        read = {name: self._stands_for.get(i, ("", False)) for name, i in wanted.inputs.items()}
        self._stands_for[identifier] = (key, True)
        if self.is_done(identifier):
            return None
        if found := self._equal(wanted, {name: of for name, (of, _) in read.items()}):
            earlier = self._compared(found, wanted, all(acceptable for _, acceptable in read.values()))
            self._stands_for[identifier] = self._stands_for[found.id] = (found.key, earlier.acceptable)
            return earlier
        return self._namesake(wanted)

    def _equal(self, wanted: Wanted, read: dict[str, str]) -> FinishedStage | None:
        """Of equal settings and of the inputs that replace the planned ones; where there are several, the likest."""
        settings = that_differ(wanted.settings)
        equal = [
            found
            for found in self.finished.of(wanted.stage)
            if found.inputs == read and that_differ(found.settings) == settings
        ]
        here = [found for found in equal if found.environment == wanted.environment]
        unchanged = [found for found in here if found.source_sha256 == wanted.source_sha256]
        return next(iter([*unchanged, *here, *equal]), None)

    def _namesake(self, wanted: Wanted) -> Earlier | None:
        """Of the same name, made by earlier code that had other settings."""
        for found in self.finished.of(wanted.stage):
            changes = setting_changes(found.settings, wanted.settings)
            if changes and found.title == wanted.title and found.source_sha256 != wanted.source_sha256:
                return Earlier(found.id, found.key, "earlier code with other settings", tuple(changes), False)
        return None

    def _compared(self, found: FinishedStage, wanted: Wanted, inputs_acceptable: bool) -> Earlier:
        causes: list[str] = []
        same_place = found.environment == wanted.environment
        if found.source_sha256 != wanted.source_sha256:
            causes += module_changes(found.modules, module_hashes(wanted.stage) if wanted.source_sha256 else {})
        if not same_place:
            causes += package_changes(found.packages, self.finished.packages_of(wanted.environment))
        if not causes:
            renewed = {i.rpartition("-")[0] for i in wanted.inputs.values() if not self.is_done(i)}
            causes += [f"{stage} is renewed" for stage in sorted(renewed)]
        acceptable = same_place and inputs_acceptable
        under: Under = "earlier code" if acceptable else "another environment"
        return Earlier(found.id, found.key, under, tuple(causes), acceptable)


def earlier_work(run_directory: RunDirectory, planned: Mapping[str, StageEntry]) -> list[tuple[StageName, Earlier]]:
    """(Stage, what is finished under earlier code) of the stages of a plan.json, whichever code planned them."""
    found: list[tuple[StageName, Earlier]] = []
    for identifier, entry in planned.items():
        folder = run_directory.stage(identifier)
        if not folder.done and (was := entry.earlier):
            found.append((entry.stage, Earlier(was.stage, "", was.under, tuple(was.causes), was.acceptable)))
        elif folder.done and not entry.accepted and (modules := modules_of_earlier_code(folder)) is not None:
            causes = tuple(module_changes(modules, module_hashes(entry.stage)))
            found.append((entry.stage, Earlier(identifier, entry.key, "earlier code", causes, acceptable=True)))
    return found


def renewal_lines(found: Iterable[tuple[str, Earlier]]) -> list[str]:
    """`train: distill/objective.py changed; 12 finished under earlier code`, for each kind of stage and cause."""
    counts: dict[tuple[str, str, str], int] = {}
    for stage, earlier in found:
        group = (stage, ", ".join(earlier.causes), earlier.under)
        counts[group] = counts.get(group, 0) + 1
    return [f"{stage}: {causes}; {count} finished under {under}" for (stage, causes, under), count in counts.items()]
