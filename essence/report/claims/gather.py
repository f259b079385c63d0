"""From the results of experiments to evidence: which arms are one, which are compared, which count at all."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from essence.files import canonical_json, sha256_text
from essence.report.claims.evidence import Evidence, Ran, Scored, Setting, Trained
from essence.report.results.records import COST_UNITS, Arm, CellResult, Group, GroupKey, Results, Score
from essence.report.results.stage_reader import StageEvidence

RECIPE = ("rows", "objective", "optimizer", "lora", "compute_dtype", "teacher")
"""Settings of a training that are the same in all arms of a setting."""
DRAWN = {"rows": ("split_seed",), "generate": ("seed", "model_folder")}
"""What differs between the runs of one setting."""


def gather(results: Sequence[Results]) -> Evidence:
    """The evidence of some experiments; an arm has the seeds of all of them, a training that they share once.

    Trainings without a teacher are no distillation, of which alone the paper's claims speak.
    """
    runs: dict[Hashable, dict[str, Scored]] = {}
    trained: dict[Hashable, Trained] = {}
    for group in (group for one in results for group in one.groups):
        for arm in (arm for arm in group.arms if _counts(arm)):
            for training, found in _scored(group, arm):
                key = (found.setting, found.checkpoint, found.span, found.sections, found.lsp)
                runs.setdefault(key, {}).setdefault(training, found)
            for cell in _trained(group, arm):
                trained.setdefault((cell.setting, cell.stages), cell)
    scored: dict[Hashable, Scored] = {}  # two spans may share their arm at LSP 1.0
    for one_arm in (joined(list(seeds.values())) for seeds in runs.values()):
        scored.setdefault((one_arm.setting, one_arm.stages), one_arm)
    traces = tuple(record for one in results for record in one.traces)
    arms = tuple(_evaluated_most(list(scored.values())))
    return Evidence(arms, tuple(trained.values()), _untrained(results), traces=traces)


def _untrained(results: Iterable[Results]) -> dict[tuple[str, str, str], float]:
    return {
        (baseline.model, baseline.protocol, score.benchmark): score.accuracy.value
        for one in results
        for baseline in one.baselines
        for score in baseline.scores
        if baseline.role == "student" and score.accuracy and score.accuracy.value is not None
    }


def _evaluated_most(arms: Sequence[Scored]) -> list[Scored]:
    """Of a setting that was evaluated in several ways, the arms of the one with the most completions."""
    completions: Counter[Setting] = Counter()
    for arm in arms:
        completions[arm.setting] += arm.completions
    most: dict[Setting, Setting] = {}
    for setting, _ in completions.most_common():
        most.setdefault(setting._replace(evaluation=""), setting)
    return [arm for arm in arms if most[arm.setting._replace(evaluation="")] == arm.setting]


def joined(seeds: Sequence[Scored]) -> Scored:
    """One arm of its seeds."""
    return replace(
        seeds[0],
        shares=tuple(shares for one in seeds for shares in one.shares),
        trainings=tuple(training for one in seeds for training in one.trainings),
        samples=min(one.samples for one in seeds),
        stages=tuple(stage for one in seeds for stage in one.stages),
        endings=tuple(ending for one in seeds for ending in one.endings),
    )


def _setting(key: GroupKey, arm: Arm, score: Score | None = None) -> Setting:
    setting = Setting(key.dataset, key.teacher, key.student, key.protocol, "", _recipe(arm))
    return setting._replace(benchmark=score.benchmark, evaluation=_evaluation(score)) if score else setting


def _settings(arm: Arm) -> Mapping[str, object]:
    """The arm's resolved settings as JSON, which is hashed; empty where no record of a training is here."""
    manifests = (cell.train.manifest for cell in arm.cells)
    return next((manifest.resolved_json for manifest in manifests if manifest and manifest.resolved_json), {})


def _group_of(settings: Mapping[str, object], name: str) -> Mapping[str, object]:
    """A group of the settings; empty where earlier code had none."""
    group = settings.get(name)
    return group if isinstance(group, Mapping) else {}


def _counts(arm: Arm) -> bool:
    """Whether the arm was distilled, and from the exact teacher; records of earlier code name an approximate one."""
    settings = _settings(arm)
    return _group_of(settings, "objective").get("kd_weight") != 0.0 and settings.get("teacher") != "top-k"


def _recipe(arm: Arm) -> str:
    settings = _settings(arm)
    return _hash({name: _but_drawn(name, settings.get(name)) for name in RECIPE})


def _matched(arm: Arm) -> str:
    """The recipe, whatever the number of rows."""
    settings = _settings(arm)
    rows = {**_group_of(settings, "rows"), "train_rows": None, "token_budget": None}
    return _hash({name: _but_drawn(name, {**settings, "rows": rows}.get(name)) for name in RECIPE})


def _evaluation(score: Score) -> str:
    """Of the settings of its two stages."""
    stages = {"generate": score.generate, "grade": score.grade}
    return _hash({name: _but_drawn(name, stage.resolved) for name, stage in stages.items()})


def _but_drawn(name: str, settings: object) -> object:
    if not isinstance(settings, Mapping):
        return settings
    return {field: value for field, value in settings.items() if field not in DRAWN.get(name, ())}


def _hash(settings: Mapping[str, object]) -> str:
    return sha256_text(canonical_json(settings))[:16]


def _ran(train: StageEvidence) -> Ran | None:
    """None where the record does not tell."""
    if train.manifest is None:
        return None
    identity = train.manifest.identity
    started, finished = (datetime.fromisoformat(time).timestamp() for time in (identity.started, identity.finished))
    return Ran(train.manifest.hardware.host, started, finished)


def _scored(group: Group, arm: Arm) -> Iterator[tuple[str, Scored]]:
    """Id of each training with its score on each benchmark."""
    for cell in arm.cells:
        for score in (score for score in cell.scores if score.accuracy):
            found = scored(_setting(group.key, arm, score), cell, score)
            yield (
                cell.train.id,
                replace(
                    found,
                    matched=_matched(arm),
                    tokens=cell.cost.kept_tokens,
                    labels=read.supervised_tokens if (read := cell.train.trained_rows) else None,
                    rows=read.rows if read else None,
                    budget=cell.token_budget is not None,
                ),
            )


def scored(setting: Setting, cell: CellResult, score: Score) -> Scored:
    """One training on one benchmark."""
    return Scored(
        setting=setting,
        checkpoint=score.checkpoint,
        span=cell.span,
        sections=cell.sections,
        lsp=cell.lsp,
        shares=(score.shares,),
        trainings=(cell.train.id,),
        samples=score.samples // max(1, len(score.shares)),
        stages=(score.grade.id,),
        endings=(score.ending_means,),
    )


def _trained(group: Group, arm: Arm) -> Iterable[Trained]:
    for cell in arm.cells:
        cost = {word: value for word in COST_UNITS if (value := cell.cost.of(word)) is not None}
        training = cell.train.training
        if cost and training:
            yield Trained(
                setting=_setting(group.key, arm),
                span=group.key.span,
                sections=group.key.sections,
                lsp=arm.lsp,
                seed=cell.seed,
                cost=cost,
                stages=(cell.train.id,),
                form=cell.form,
                step_time=cell.train.median_time(),
                validation_ce=training.results.lowest_validation_ce,
                load=cell.train.load,
                ran=_ran(cell.train),
                budget=cell.token_budget is not None,
            )
