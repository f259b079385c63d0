"""What the records of a run say of the things that committees ask: sentences, each with the stages that say so.

Nothing here is a guess. What no record tells is a fact of its own that is not known, or is not there at all.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from essence import text
from essence.files import GIB
from essence.plan.experiment import EXPERIMENTS, PROJECT, available
from essence.record.live_records import ResolvedFile, look_at
from essence.record.manifest import Manifest
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import DownloadManifest
from essence.report.checklist.stated_licence import stated_licence
from essence.report.claims.verdict import ClaimVerdict, judge
from essence.report.page.claims_table import claim_rows
from essence.report.results.records import CellResult, Group, Results
from essence.report.results.run_facts import Fact, environment_facts, settings_facts
from essence.report.results.stage_reader import StageEvidence

KIT_LICENCE = "BSD-2-Clause, the kit's own"
IMAGES = {"docker": "images", "apptainer": "sif"}
"""Engine -> the command that builds what it starts."""
DEFAULT_RUNS = "runs"
WORK = {
    "teacher": "states of the teacher", "train": "training", "generate": "sampling", "grade": "grading",
    "tokenize": "tokenizing", "download": "downloads",
}  # fmt: skip


@dataclass(frozen=True)
class KnownFact:
    """One sentence of an answer."""

    sentence: str
    stages: tuple[str, ...] = ()
    """Ids of the stages whose manifests say so; empty where the plan does, or nothing."""
    known: bool = True
    """False: the sentence names what no record tells."""


Facts = list[KnownFact]


def artefacts(results: Results) -> Facts:
    """Models, data sets and benchmarks: repository and commit, or what they were made from."""
    found = []
    for stage, manifest in _downloads(results):
        source = manifest.source
        if source.repository:
            place = f"{source.repository} at commit {source.commit}"
        elif source.builtin:
            place = "made by the kit itself"
        else:
            place = f"a local copy whose content has the hash {source.path_state}"
        found.append(KnownFact(f"{_kind(source.kind)} {source.name}: {place}.", (stage.id,)))
    return found


def licences(results: Results) -> Facts:
    """The licence of each, from the files that came with it."""
    return [_licence(stage, manifest) for stage, manifest in _downloads(results)]


def _licence(stage: StageEvidence, manifest: DownloadManifest) -> KnownFact:
    name = f"{_kind(manifest.source.kind)} {manifest.source.name}"
    if manifest.source.builtin:
        return KnownFact(f"{name}: {KIT_LICENCE}.", (stage.id,))
    found = stated_licence(stage.folder.output, manifest.outputs)
    sentence = f"{name}: {found.words}." if found.known else f"licence of {name}: {found.words}."
    return KnownFact(sentence, (stage.id,), found.known)


def compute(results: Results) -> Facts:
    """GPU hours, wall time and energy by kind of stage, of what is finished; what is not is counted."""
    kinds: dict[str, list[StageEvidence]] = defaultdict(list)
    for stage in results.stages:
        if stage.manifest:
            kinds[stage.stage].append(stage)
    found = [_work(kind, kinds[kind]) for kind in WORK if kind in kinds]
    if found:
        hours = sum(stage.manifest.cost.gpu_hours for stage in results.stages if stage.manifest)
        total = f"{hours:,.2f} GPU hours" if hours else "no GPU hours"
        every = tuple(stage.id for stage in results.stages if stage.manifest)
        found.append(KnownFact(f"All finished stages together: {total}.", every))
    left = sum(stage.manifest is None for stage in results.stages)
    if left:
        sentence = f"cost of {left} of {len(results.stages)} planned stages, which have no record here."
        found.append(KnownFact(sentence, known=False))
    return found


def _work(kind: str, stages: Sequence[StageEvidence]) -> KnownFact:
    costs = [stage.manifest.cost for stage in stages if stage.manifest]
    gpu_hours, energy = sum(cost.gpu_hours for cost in costs), [c.energy_j for c in costs if c.energy_j is not None]
    parts = [f"{len(stages)} finished", f"{text.duration(sum(cost.wall_s for cost in costs))} of wall time"]
    parts += [f"{gpu_hours:,.2f} GPU hours"] if gpu_hours else []
    parts += [f"{sum(energy) / 3.6e6:.3g} kWh of {len(energy)}"] if energy else []
    loads = [stage.load.wall_over_cpu for stage in stages if stage.load.wall_over_cpu is not None]
    parts += [f"wall/CPU {min(loads):.2f} to {max(loads):.2f}"] if loads and not gpu_hours else []
    return KnownFact(f"{WORK[kind].capitalize()}: {', '.join(parts)}.", tuple(stage.id for stage in stages))


def parameters(results: Results) -> Facts:
    """Parameters of the students: trained, and all."""
    pairs = []
    for cell in results.cells:
        training = cell.train.training
        if training and (counts := training.settings.executed.parameters):
            shown = f"trained {counts.trained:,}, all {counts.all:,}"
            pairs.append((f"Parameters of {cell.student}: {shown}.", cell.train.id))
    return _joined(pairs)


def methods(results: Results) -> Facts:
    """What was trained on what, by which protocol."""
    found = []
    for key, done in ((group.key, [cell for cell in group.cells if cell.train.manifest]) for group in results.groups):
        alone, taught = ([cell for cell in done if _is_alone(cell) is so] for so in (True, False))
        ways = (
            (taught, f"{key.student} learns from {key.teacher} on {key.dataset} ({key.details})"),
            (alone, f"{key.student} is fine-tuned on {key.dataset}, without a teacher ({key.details})"),
        )
        for cells, words in ways:
            lsps = ", ".join(f"{lsp:g}" for lsp in sorted({cell.lsp for cell in cells}))
            found += [KnownFact(f"{words}, LSP {lsps}.", tuple(cell.train.id for cell in cells))] if cells else []
    return found


def _is_alone(cell: CellResult) -> bool:
    """True where the record says that no teacher had a part in the loss."""
    objective = cell.train.training.settings.resolved.objective if cell.train.training else None
    return objective is not None and "kd_weight" in objective.model_fields_set and objective.kd_weight == 0.0


def training_settings(results: Results) -> Facts:
    """Every setting of the trainings, as resolved."""
    return _of_facts("Training", settings_facts(results).get("Training", []))


def sampling_settings(results: Results) -> Facts:
    """Every setting of sampling and grading, as resolved."""
    found = settings_facts(results)
    return [*_of_facts("Sampling", found.get("Sampling", [])), *_of_facts("Grading", found.get("Grading", []))]


def trainings(results: Results) -> Facts:
    """Seeds and the number of trainings an arm rests on."""
    done = [cell for cell in results.cells if cell.train.manifest]
    if not done:
        return []
    counts = Counter(len([c for c in arm.cells if c.train.manifest]) for g in results.groups for arm in g.arms)
    arms = ", ".join(f"{arms} with {number}" for number, arms in sorted(counts.items()) if number)
    seeds = ", ".join(map(str, sorted({cell.seed for cell in done})))
    sentence = f"{len(done)} trainings, seeds {seeds}; arms (one proportion in one setting) by trainings: {arms}."
    return [KnownFact(sentence, tuple(dict.fromkeys(cell.train.id for cell in done)))]


def intervals(results: Results) -> Facts:
    """How the accuracy of each grading and its interval were computed; `accuracies` has those over trainings."""
    pairs = []
    for stage in results.stages:
        if stage.graded:
            found = stage.graded.results
            level = f"{100 * found.confidence:g} %"
            what = f"{found.metric} over {len(found.per_problem)} problems, {level} intervals"
            sentence = f"Each grading by itself: {what}: {found.method}."
            pairs.append((sentence, stage.id))
    return _joined(pairs)


def accuracies(results: Results) -> Facts:
    """Each arm's accuracy with its interval, pooled over its trainings, and the method of that interval."""
    found = []
    for group in results.groups:
        for benchmark, checkpoint in group.evaluations:
            for arm in group.arms:
                if pooled := arm.pooled.get((benchmark, checkpoint)):
                    where = f"{_setting(group)}, LSP {arm.lsp:g}, {benchmark}, {checkpoint} checkpoint"
                    count = f"{len(pooled.scores)} training{'s' * (len(pooled.scores) != 1)}"
                    how = f"{count}; {pooled.accuracy.method}"
                    sentence = f"{where}: {text.with_interval(pooled.accuracy)} ({how})."
                    found.append(KnownFact(sentence, tuple(score.grade.id for score in pooled.scores)))
    return found


def _setting(group: Group) -> str:
    """What the arms of a group have in common; no teacher where none of them had one."""
    key = group.key
    if all(map(_is_alone, group.cells)):
        return f"{key.dataset}, {key.student} without a teacher, {key.details}"
    return key.label


def verdicts(results: Results, judged: Sequence[ClaimVerdict] | None = None) -> Facts:
    """The paper's claims that this run says something of; `judged`: their verdicts, where they are known."""
    rows = [row for row in claim_rows(judge([results]) if judged is None else judged) if row.word != "not run"]
    return [
        KnownFact(f"{row.title}: {row.verdict} (ours {row.ours}; {row.count}).", row.stages)
        for row in rows
        if row.stages
    ]


def data(results: Results) -> Facts:
    """Rows read, kept and split, and problems of the benchmarks."""
    found = []
    for stage in results.stages:
        if stage.tokenized:
            counts = stage.tokenized.results
            sentence = (
                f"{stage.title}: {counts.rows_kept:,} of {counts.rows_read:,} rows kept, {counts.tokens:,} tokens."
            )
            found.append(KnownFact(sentence, (stage.id,)))
    splits = []
    for cell in results.cells:
        manifest = cell.train.training
        train, validation = (manifest.inputs.data.train, manifest.inputs.data.validation) if manifest else (None, None)
        if train and validation:
            words = f"{train.rows:,} rows for training, {validation.rows:,} for validation"
            splits.append((f"Split of {cell.dataset}: {words}.", cell.train.id))
    return [*found, *_joined(splits), *_joined(_problems(results))]


def _problems(results: Results) -> Iterable[tuple[str, str]]:
    for stage in results.stages:
        if stage.graded:
            count = len(stage.graded.results.per_problem)
            yield f"Test: {count:,} problems of {stage.graded.results.benchmark}.", stage.id


def contamination(results: Results) -> Facts:
    """Training rows that share problems with the benchmarks."""
    return [
        KnownFact(
            f"{stage.title} beside {name} ({found.problems:,} problems): {found.exact:,} rows repeat a problem, "
            f"{found.overlap:,} overlap with one.",
            (stage.id,),
        )
        for stage in results.stages
        if stage.tokenized
        for name, found in stage.tokenized.results.contamination.items()
    ]


def hardware(results: Results) -> Facts:
    """Machines: processor, memory, GPUs."""
    return _of_facts("Hardware", environment_facts(results).get("Hardware", []))


def software(results: Results) -> Facts:
    """Versions, drivers, images and locks."""
    found = environment_facts(results)
    return [
        *_of_facts("Software", found.get("Software", [])),
        *_of_facts("Made with", found.get("Code and images", [])),
    ]


def code(results: Results) -> Facts:
    """The commit of the kit, and whether it was changed."""
    pairs = []
    for stage in results.stages:
        if stage.manifest and stage.manifest.code.commit:
            found = stage.manifest.code
            changed = "with uncommitted changes, kept with the run" if found.dirty else "without changes"
            pairs.append((f"Code: essence {found.version} at commit {found.commit}, {changed}.", stage.id))
    return _joined(pairs)


def disk(results: Results) -> Facts:
    """Bytes of all outputs."""
    done = [(stage.id, stage.manifest) for stage in results.stages if stage.manifest]
    total = sum(output.bytes for _, manifest in done for output in manifest.outputs)
    if not total:
        return []
    return [KnownFact(f"Outputs of the finished stages: {total / GIB:.3g} GiB.", tuple(name for name, _ in done))]


def commands(results: Results) -> Facts:
    """What makes the same again, for an experiment of the kit, in what the records say that it ran in."""
    name, run = results.experiment, RunDirectory(results.run_dir)
    if name not in available() or not _is_of_the_kit(run, name):
        return [KnownFact("commands: the experiment is no file of the kit.", known=False)]
    local = [(stage.id, found.source.name) for stage, found in _downloads(results) if _is_local(found)]
    work = [stage for stage in results.stages if stage.manifest and stage.stage != "download"]
    setup, engine = _setup(stage.manifest for stage in work if stage.manifest)
    folder = shlex.quote(_from_the_project(results.run_dir))
    runs = "" if folder == DEFAULT_RUNS else f" --runs {folder}"
    steps = [
        *setup,
        f"invoke reproduce {name}{engine}{' --pins FILE' * bool(local)}{runs}",
        f"invoke report --experiment {name}{runs}",
        f"invoke verify {folder}",
    ]
    notes = [f"{folder}/{name}/experiment.json has every setting"] if run.resolved(name).is_file() else []
    notes += [f"FILE names local copies of {', '.join(which for _, which in local)}"] if local else []
    shown = f" ({'; '.join(notes)})" if notes else ""
    evidence = (*(stage for stage, _ in local), *(stage.id for stage in work))
    return [KnownFact(f"To reproduce: {'; '.join(steps)}{shown}.", evidence)]


def _is_of_the_kit(run: RunDirectory, name: str) -> bool:
    """False where the run tells of a file of one's own; a copy was read from the kit of another machine."""
    told = look_at(run.resolved(name), ResolvedFile)
    return told is None or Path(told.file.path).parent.name == EXPERIMENTS.name


def _is_local(manifest: DownloadManifest) -> bool:
    source = manifest.source
    return bool(source.path or source.path_state) and not (source.repository or source.builtin)


def _setup(manifests: Iterable[Manifest]) -> tuple[list[str], str]:
    """The commands that make what the stages ran in, and the option that chooses it again."""
    done = list(manifests)
    gpus = any(manifest.cost.gpu_hours for manifest in done)
    engines = list(dict.fromkeys(manifest.image.engine for manifest in done))
    flavour = "" if gpus else " --flavour cpu"
    images = [f"invoke {IMAGES[name]}{flavour}" for name in engines if name in IMAGES]
    chosen = f" --engine {engines[0]}" if len(engines) == 1 and (images or gpus) else ""
    return ["make setup-gpu" if gpus and "local" in engines else "make setup", *images], chosen


def _from_the_project(folder: Path) -> str:
    return str(folder.relative_to(PROJECT) if folder.is_relative_to(PROJECT) else folder)


FACTS: dict[str, Callable[[Results], Facts]] = {
    function.__name__: function
    for function in (
        artefacts, licences, compute, parameters, methods, training_settings, sampling_settings, trainings, intervals,
        accuracies, verdicts, data, contamination, hardware, software, code, disk, commands,
    )
}  # fmt: skip
"""By name, as the questions of the venues ask for them."""
NOTHING_OF = {
    "artefacts": "models, data and benchmarks", "licences": "licences", "compute": "compute",
    "parameters": "numbers of parameters", "methods": "what was trained", "training_settings": "settings of training",
    "sampling_settings": "settings of sampling and grading", "trainings": "number of trainings, seeds",
    "intervals": "how intervals were computed", "accuracies": "accuracies", "verdicts": "verdicts on claims",
    "data": "sizes and splits of the data", "contamination": "rows that share problems with a benchmark",
    "hardware": "machines", "software": "packages and images", "code": "commit of the kit", "disk": "disk space",
    "commands": "commands",
}  # fmt: skip
"""What is not known where the records tell nothing of a fact."""


def _downloads(results: Results) -> list[tuple[StageEvidence, DownloadManifest]]:
    return [(stage, stage.download) for stage in results.stages if stage.download]


def _kind(kind: str | None) -> str:
    return {"dataset": "Data set", "model": "Model", "benchmark": "Benchmark"}.get(kind or "", "Source")


def _joined(pairs: Iterable[tuple[str, str]]) -> Facts:
    """Equal sentences of several stages as one."""
    stages: dict[str, dict[str, None]] = {}
    for sentence, stage in pairs:
        stages.setdefault(sentence, {})[stage] = None
    return [KnownFact(sentence, tuple(found)) for sentence, found in stages.items()]


def _of_facts(title: str, facts: Iterable[Fact]) -> Facts:
    return [KnownFact(f"{title} {fact.name}: {', '.join(fact.values)}.", fact.stages) for fact in facts]
