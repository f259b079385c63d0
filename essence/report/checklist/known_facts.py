"""What the records of a run say of the things that committees ask: sentences, each with the stages that say so.

Nothing here is a guess. What no record tells is a fact of its own that is not known, or is not there at all.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from essence import text
from essence.files import GIB
from essence.record.stage_records import DownloadManifest
from essence.report.claims.verdict import judge
from essence.report.page.claims_table import claim_rows
from essence.report.results.records import Results
from essence.report.results.run_facts import Fact, environment_facts, settings_facts
from essence.report.results.stage_reader import StageEvidence

KIT_LICENCE = "BSD-2-Clause, the kit's own"
LICENCE_FILES = ("LICENSE", "LICENCE", "COPYING")
LONGEST_LICENCE_LINE = 80
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
    source = manifest.source
    name = f"{_kind(source.kind)} {source.name}"
    if source.builtin:
        return KnownFact(f"{name}: {KIT_LICENCE}.", (stage.id,))
    for output in manifest.outputs:
        file = Path(output.path)
        if file.name.split(".")[0].upper() in LICENCE_FILES:
            words = _first_line(stage.folder.output / output.path)
            begins = f", which begins “{words}”" if words else ""
            return KnownFact(f"{name}: its file {file.name}{begins} (sha256 {output.sha256[:16]}).", (stage.id,))
        if file.name == "README.md" and (declared := _declared(stage.folder.output / output.path)):
            return KnownFact(f"{name}: its card declares {declared}.", (stage.id,))
    return KnownFact(f"licence of {name}: no file that was downloaded states one.", (stage.id,), known=False)


def _first_line(file: Path) -> str:
    """The first line with words of a licence; empty where the file is not here."""
    if not file.is_file():
        return ""
    lines = (" ".join(line.split()) for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    return next((line[:LONGEST_LICENCE_LINE] for line in lines if line), "")


def _declared(card: Path) -> str:
    """`license:` in the front matter of a card; empty where there is none."""
    if not card.is_file():
        return ""
    head, *lines = card.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    for line in lines if head.strip() == "---" else ():
        if line.strip() == "---":
            break
        if line.startswith("license:"):
            return line.removeprefix("license:").strip().strip("'\"")
    return ""


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
    for group in results.groups:
        done = [cell for cell in group.cells if cell.train.manifest]
        lsps = ", ".join(f"{lsp:g}" for lsp in sorted({cell.lsp for cell in done}))
        key = group.key
        sentence = f"{key.student} learns from {key.teacher} on {key.dataset} ({key.details}), LSP {lsps}."
        found += [KnownFact(sentence, tuple(cell.train.id for cell in done))] if done else []
    return found


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
    """How the accuracies and their intervals were computed."""
    pairs = []
    for stage in results.stages:
        if stage.graded:
            found = stage.graded.results
            level = f"{100 * found.confidence:g} %"
            sentence = f"{found.metric} over {len(found.per_problem)} problems, {level} intervals: {found.method}."
            pairs.append((sentence, stage.id))
    return _joined(pairs)


def accuracies(results: Results) -> Facts:
    """Each arm's accuracy with its interval, pooled over its trainings."""
    found = []
    for group in results.groups:
        for benchmark, checkpoint in group.evaluations:
            for arm in group.arms:
                if pooled := arm.pooled.get((benchmark, checkpoint)):
                    where = f"{group.key.label}, LSP {arm.lsp:g}, {benchmark}, {checkpoint} checkpoint"
                    count = f"{len(pooled.scores)} training{'s' * (len(pooled.scores) != 1)}"
                    sentence = f"{where}: {text.with_interval(pooled.accuracy)} ({count})."
                    found.append(KnownFact(sentence, tuple(score.grade.id for score in pooled.scores)))
    return found


def verdicts(results: Results) -> Facts:
    """The paper's claims that this run says something of."""
    rows = [row for row in claim_rows(judge([results])) if row.word != "not run"]
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
    """What makes the same again. The plan says so, no manifest."""
    name = results.experiment
    steps = ("make setup", f"invoke reproduce {name}", f"invoke report --experiment {name}", "invoke verify runs")
    return [KnownFact(f"To reproduce: {'; '.join(steps)} (runs/{name}/experiment.json has every setting).")]


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
    return [KnownFact(f"{title} {fact.name}: {', '.join(fact.values)}.", (fact.stage,)) for fact in facts]
