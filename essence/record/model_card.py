"""The model card of a trained cell: `README.md` in the form of the Hugging Face hub, filled from manifests alone.

The same records give the same bytes. What a record does not tell (a licence, a local model's repository) is left out.
"""

import json
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from essence.errors import RecordError
from essence.files import read_json
from essence.record.checks import schema_findings, seal_findings
from essence.record.run_directory import RunDirectory

Row = tuple[str, str]
Metadata = dict[str, Any]
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


def model_card(run: RunDirectory, plan: dict[str, Any], entry: dict[str, Any]) -> ModelCard:
    """The card of one cell of a plan; RecordError where its training is not finished."""
    stage = entry["stages"]["train"]
    manifest = _finished(run, stage)
    if manifest is None:
        raise RecordError(f"{run.stage(stage).path}: {entry['name']} is not trained yet, so it has no card")
    sources = {role: _source(run, entry["stages"].get(role)) for role in ("teacher", "student")}
    sources["dataset"] = _source(run, plan["stages"][entry["stages"]["tokenize"]]["inputs"].get("rows"))
    graded = [(evaluation, _finished(run, evaluation["grade"])) for evaluation in entry["evaluations"]]
    made = f"distilled from {entry['teacher']}" if "teacher" in entry["stages"] else f"fine-tuned on {entry['dataset']}"
    title = f"{entry['student']} {made} at LSP {entry['lsp']:g}"
    index = [_index(run, plan, evaluation, record) for evaluation, record in graded if record]
    return ModelCard(
        title=title,
        metadata=_metadata(sources) | ({"model-index": [{"name": title, "results": index}]} if index else {}),
        facts=_facts(entry, sources),
        training=_training(manifest),
        accuracies=[_accuracy(evaluation, record) for evaluation, record in graded if record],
        cost=_cost(manifest["cost"]),
        stage=stage,
        key=manifest["identity"]["key"],
        seal=manifest["seal"],
        weights=[(f["path"], f["sha256"]) for f in manifest["outputs"] if f["path"].endswith(WEIGHTS)],
        teacher=entry["teacher"] if "teacher" in entry["stages"] else None,
        unfinished=[f"{e['benchmark']} ({e['checkpoint']})" for e, record in graded if record is None],
    )


def _finished(run: RunDirectory, stage: str) -> dict[str, Any] | None:
    """The record of a stage, if it has one; RecordError where that is not as it was written."""
    folder = run.stage(stage)
    if not folder.done:
        return None
    manifest = read_json(folder.manifest)
    wrong = list(schema_findings(folder.manifest, manifest)) or list(seal_findings(folder, manifest))
    if wrong:
        raise RecordError(f"{wrong[0]}: no card is made from it")
    return manifest


def _source(run: RunDirectory, stage: str | None) -> dict[str, Any]:
    """The source as a download stage resolved it; empty where its record is not here."""
    manifest = _finished(run, stage) if stage else None
    return dict(manifest["settings"]["resolved"].get("source", {})) if manifest else {}


def _index(
    run: RunDirectory, plan: dict[str, Any], evaluation: dict[str, Any], manifest: dict[str, Any]
) -> dict[str, Any]:
    """One accuracy in the form that the hub reads (`model-index`), in per cent."""
    results, generate = manifest["results"], plan["stages"][evaluation["generate"]]
    source = _source(run, generate["inputs"].get("problems"))
    benchmark = {"type": source.get("repository") or results["benchmark"], "name": results["benchmark"]}
    metric = {
        "type": "accuracy",
        "name": f"{results['metric']}, {evaluation['checkpoint']} checkpoint",
        "value": round(100.0 * results["accuracy"], 4),
    }
    return {
        "task": {"type": "text-generation"},
        "dataset": benchmark | ({"revision": source["commit"]} if source.get("commit") else {}),
        "metrics": [metric],
    }


def _metadata(sources: dict[str, dict[str, Any]]) -> Metadata:
    metadata: Metadata = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if student := sources["student"].get("repository"):
        metadata |= {"base_model": student, "base_model_relation": "finetune"}
    if dataset := sources["dataset"].get("repository"):
        metadata["datasets"] = [dataset]
    return {**metadata, "tags": TAGS}


def _facts(entry: dict[str, Any], sources: dict[str, dict[str, Any]]) -> list[Row]:
    return [
        ("cell", entry["name"]),
        ("teacher", _origin(entry["teacher"], sources["teacher"]) if "teacher" in entry["stages"] else "none"),
        ("student", _origin(entry["student"], sources["student"])),
        ("data set", _origin(entry["dataset"], sources["dataset"])),
        ("lead-span proportion (LSP)", f"{entry['lsp']:g}"),
        ("span", entry["span"]),
        ("sections", entry["sections"]),
        ("protocol", entry["protocol"]),
        ("seed", str(entry["seed"])),
    ]


def _origin(name: str, source: dict[str, Any]) -> str:
    if source.get("repository"):
        return f"{name}: {source['repository']} at {source['commit']}"
    if source.get("builtin"):
        return f"{name}: made by the kit ({source['builtin']})"
    return f"{name}: a local folder" if source.get("path") else f"{name} (no record of its source is here)"


def _training(manifest: dict[str, Any]) -> list[Row]:
    resolved, executed = manifest["settings"]["resolved"], manifest["settings"]["executed"]
    results, train = manifest["results"], manifest["inputs"]["data"].get("train", {})
    objective = resolved["objective"]
    facts = {
        "rows": train.get("rows"),
        "tokens read": train.get("tokens"),
        "tokens supervised": train.get("supervised_tokens"),
        "sha256 of the tokens": train.get("sha256"),
        "optimizer steps": results["steps"],
        "selected step (best)": results["best_step"],
        "rows a step, as executed": executed.get("batch_rows"),
        "epochs": resolved["optimizer"]["epochs"],
        "highest learning rate": resolved["optimizer"]["max_lr"],
        "loss": f"{1 - objective['kd_weight']:g} x cross-entropy + {objective['kd_weight']:g} x "
        f"{objective.get('divergence', 'divergence')} at temperature {objective['temperature']:g}",
        "last loss": results["last_loss"],
        "validation cross-entropy at the selected step": results["best_validation_ce"],
        "commit of the kit": manifest["code"]["commit"],
        "uncommitted changes": manifest["code"]["diff_sha256"],
    }
    return [(name, number(value)) for name, value in facts.items() if value is not None]


def _accuracy(evaluation: dict[str, Any], manifest: dict[str, Any]) -> tuple[str, ...]:
    results = manifest["results"]
    reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(results["finish_reasons"].items()))
    return (
        results["metric"],
        evaluation["checkpoint"],
        f"{results['accuracy']:.1%}",
        _interval(results),
        str(len(results["per_problem"])),
        f"{sum(problem['samples'] for problem in results['per_problem']):,}",
        reasons,
        number(results["mean_completion_tokens"]),
        evaluation["grade"],
    )


def _interval(results: dict[str, Any]) -> str:
    """Both ends and how they were computed; of a single problem there is none, and the method says so."""
    low, high = results["interval"]
    if low is None or high is None:
        return str(results["method"])
    return f"{low:.1%} to {high:.1%} ({results['confidence']:.0%}, {results['method']})"


def _cost(cost: dict[str, Any]) -> list[Row]:
    names = {
        "wall_s": "wall time, s",
        "gpu_hours": "GPU hours",
        "peak_memory_gib": "peak main memory, GiB",
        "peak_gpu_memory_gib": "peak GPU memory, GiB",
        "energy_j": "energy, J",
        "flops": "FLOPs",
        "flops_formula": "FLOPs counted as",
    }
    return [(text, number(cost[name])) for name, text in names.items() if cost[name] is not None]


def number(value: object) -> str:
    """A value as a reader wants it: thousands with commas, fractions with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
