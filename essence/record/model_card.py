"""The model card of a trained cell: `README.md` in the form of the Hugging Face hub, filled from manifests alone.

The same records give the same bytes. What a record does not tell (a licence, a local model's repository) is left out.
"""

import json
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from essence.errors import RecordError
from essence.record.evaluation_records import GradeResults
from essence.record.machine_load import load_of
from essence.record.manifest import Manifest
from essence.record.plan_record import CellEntry, EvaluationEntry, PlanRecord
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import DownloadManifest, GradeManifest, SourceRecord, TrainManifest, intact_manifest
from essence.settings import takes_proportion

Row = tuple[str, str]
Metadata = dict[str, object]
"""The front matter, as the hub reads it."""
TAGS = ["essence", "distillation", "sequence-truncation", "reasoning"]
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class ModelCard:
    """What the template shows; all values as text."""

    title: str
    metadata: Metadata
    facts: list[Row]
    training: list[Row]
    accuracies: list[tuple[str, ...]]
    cost: list[Row]
    stage: str
    key: str
    seal: str
    weights: list[Row]
    teacher: str | None
    """None after plain fine-tuning."""
    unfinished: list[str]

    def text(self) -> str:
        """The whole README.md."""
        environment = Environment(  # noqa: S701  Markdown: `cell` escapes what would be read as a tag or a column
            loader=PackageLoader("essence.record", "."), undefined=StrictUndefined, keep_trailing_newline=True
        )
        environment.filters["cell"] = cell
        return environment.get_template("model_card.md.jinja").render(
            card=self, front_matter=front_matter(self.metadata)
        )


def front_matter(metadata: Metadata) -> str:
    """YAML lines; JSON's strings, lists and objects are YAML's too, so nothing in a name can end or add a line."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in metadata.items())


def cell(text: object) -> str:
    """Text that stays within one cell of a Markdown table and is no tag."""
    words = " ".join(str(text).split())
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def model_card(run: RunDirectory, plan: PlanRecord, cell: CellEntry) -> ModelCard:
    """The card of one cell of a plan; RecordError where its training is not finished."""
    manifest = _finished(run, cell.train)
    if not isinstance(manifest, TrainManifest):
        raise RecordError(f"{run.stage(cell.train).path}: {cell.name} is not trained yet, so it has no card")
    sources = {role: _source(run, cell.stages.get(role)) for role in ("teacher", "student")}
    sources["dataset"] = _source(run, _input(plan, cell.stages.get("tokenize"), "rows"))
    graded = [(evaluation, _finished(run, evaluation.grade)) for evaluation in cell.evaluations]
    done = [(evaluation, record) for evaluation, record in graded if isinstance(record, GradeManifest)]
    made = f"distilled from {cell.teacher}" if cell.taught else f"fine-tuned on {cell.dataset}"
    title = f"{cell.student} {made} at {_view(cell)}"
    index = [_index(run, plan, evaluation, record.results) for evaluation, record in done]
    return ModelCard(
        title=title,
        metadata=_metadata(sources) | ({"model-index": [{"name": title, "results": index}]} if index else {}),
        facts=_facts(cell, sources),
        training=_training(manifest),
        accuracies=[_accuracy(evaluation, record.results) for evaluation, record in done],
        cost=_cost(manifest),
        stage=cell.train,
        key=manifest.identity.key,
        seal=manifest.seal,
        weights=[(file.path, file.sha256) for file in manifest.outputs if file.path.endswith(WEIGHTS)],
        teacher=cell.teacher if cell.taught else None,
        unfinished=[f"{e.benchmark} ({e.checkpoint})" for e, record in graded if record is None],
    )


def _view(cell: CellEntry) -> str:
    """`LSP 0.5`, `random-span, LSP 0.5`, `first-512`: what of a row was read."""
    proportion = f"LSP {cell.lsp:g}" if takes_proportion(cell.span) else ""
    return ", ".join(part for part in (cell.span if cell.span != "left" else "", proportion) if part)


def _finished(run: RunDirectory, stage: str) -> Manifest | None:
    """The record of a stage, if it has one; RecordError where that is not as it was written."""
    folder = run.stage(stage)
    if not folder.done:
        return None
    try:
        return intact_manifest(folder.manifest)
    except RecordError as error:
        raise RecordError(f"{error.problem}: no card is made from it", error.cure) from None


def _input(plan: PlanRecord, stage: str | None, name: str) -> str | None:
    """Id of the stage that makes an input of a planned stage."""
    return plan.stages[stage].inputs.get(name) if stage in plan.stages else None


def _source(run: RunDirectory, stage: str | None) -> SourceRecord:
    """The source as a download stage resolved it; empty where its record is not here."""
    manifest = _finished(run, stage) if stage else None
    return manifest.source if isinstance(manifest, DownloadManifest) else SourceRecord()


def _index(run: RunDirectory, plan: PlanRecord, evaluation: EvaluationEntry, results: GradeResults) -> Metadata:
    """One accuracy in the form that the hub reads (`model-index`), in per cent."""
    source = _source(run, _input(plan, evaluation.generate, "problems"))
    benchmark = {"type": source.repository or results.benchmark, "name": results.benchmark}
    metric = {
        "type": "accuracy",
        "name": f"{results.metric}, {evaluation.checkpoint} checkpoint",
        "value": round(100.0 * results.accuracy, 4),
    }
    return {
        "task": {"type": "text-generation"},
        "dataset": benchmark | ({"revision": source.commit} if source.commit else {}),
        "metrics": [metric],
    }


def _metadata(sources: dict[str, SourceRecord]) -> Metadata:
    metadata: Metadata = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if student := sources["student"].repository:
        metadata |= {"base_model": student, "base_model_relation": "finetune"}
    if dataset := sources["dataset"].repository:
        metadata["datasets"] = [dataset]
    return {**metadata, "tags": TAGS}


def _facts(cell: CellEntry, sources: dict[str, SourceRecord]) -> list[Row]:
    return [
        ("cell", cell.name),
        ("teacher", _origin(cell.teacher, sources["teacher"]) if cell.taught else "none"),
        ("student", _origin(cell.student, sources["student"])),
        ("data set", _origin(cell.dataset, sources["dataset"])),
        ("lead-span proportion (LSP)", f"{cell.lsp:g}"),
        ("span", cell.span),
        ("sections", cell.sections),
        ("protocol", cell.protocol),
        ("seed", str(cell.seed)),
    ]


def _origin(name: str, source: SourceRecord) -> str:
    if source.repository:
        return f"{name}: {source.repository} at {source.commit}"
    if source.builtin:
        return f"{name}: made by the kit ({source.builtin})"
    return f"{name}: a local folder" if source.path else f"{name} (no record of its source is here)"


def _training(manifest: TrainManifest) -> list[Row]:
    resolved, results, train = manifest.settings.resolved, manifest.results, manifest.inputs.data.train
    objective = resolved.objective
    facts = {
        "rows": train and train.rows,
        "tokens read": train and train.tokens,
        "tokens supervised": train and train.supervised_tokens,
        "sha256 of the tokens": train and train.sha256,
        "optimizer steps": results.steps,
        "selected step (best)": results.best_step,
        "rows a step, as executed": manifest.settings.executed.batch_rows,
        "epochs": resolved.optimizer.epochs,
        "highest learning rate": resolved.optimizer.max_lr,
        "loss": f"{1 - objective.kd_weight:g} x cross-entropy + {objective.kd_weight:g} x "
        f"{objective.divergence} at temperature {objective.temperature:g}",
        "last loss": results.last_loss,
        "validation cross-entropy at the selected step": results.best_validation_ce,
        "commit of the kit": manifest.code.commit,
        "uncommitted changes": manifest.code.diff_sha256,
    }
    return [(name, number(value)) for name, value in facts.items() if value is not None]


def _accuracy(evaluation: EvaluationEntry, results: GradeResults) -> tuple[str, ...]:
    reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(results.finish_reasons.items()))
    return (
        results.metric,
        evaluation.checkpoint,
        f"{results.accuracy:.1%}",
        _interval(results),
        str(len(results.per_problem)),
        f"{sum(problem.samples for problem in results.per_problem):,}",
        reasons,
        number(results.mean_completion_tokens),
        evaluation.grade,
    )


def _interval(results: GradeResults) -> str:
    """Both ends and how they were computed; of a single problem there is none, and the method says so."""
    low, high = results.interval
    if low is None or high is None:
        return results.method
    return f"{low:.1%} to {high:.1%} ({results.confidence:.0%}, {results.method})"


def _cost(manifest: TrainManifest) -> list[Row]:
    cost = manifest.cost
    load = load_of(cost, len(manifest.identity.attempts))
    facts = {
        "wall time, s": cost.wall_s,
        "wall time over processor time": load.wall_over_cpu,
        "share of the time that the GPUs were busy": load.gpu_busy,
        "GPU hours": cost.gpu_hours,
        "peak main memory, GiB": cost.peak_memory_gib,
        "peak GPU memory, GiB": cost.peak_gpu_memory_gib,
        "energy, J": cost.energy_j,
        "FLOPs": cost.flops,
        "FLOPs counted as": cost.flops_formula,
    }
    return [(text, number(value)) for text, value in facts.items() if value is not None]


def number(value: object) -> str:
    """A value as a reader wants it: thousands with commas, fractions with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
