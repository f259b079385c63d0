"""Results computed again from the files that a stage wrote: samples, verdicts, training metrics."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from essence.distill.checkpoint_choice import choose
from essence.errors import RecordError
from essence.evaluation.doubts import sample_doubts, verdict_doubts
from essence.evaluation.scores import answer_numbers, completion_facts
from essence.evaluation.statistics import accuracy, majority_at_k, pass_at_k
from essence.files import read_json, sha256_file
from essence.record.run_directory import StageFolder, stage_id

Manifest = dict[str, Any]
Line = dict[str, Any]
CLOSE = 1e-9


def result_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """True when the results follow from the lines that were written; nothing where these are not here.

    KeyError, TypeError or ValueError where results or lines are not those of such a stage.
    """
    stage, results = manifest["identity"]["stage"], manifest["results"]
    if stage not in LINES or not (folder.output / LINES[stage]).is_file():
        return
    lines = _read(folder.output / LINES[stage])
    where = f"{folder.manifest}: "
    if stage == "train":
        yield from (where + finding for finding in _training(results, lines))
        return
    yield from _twice(folder.output / LINES[stage], lines)
    if stage == "generate":
        yield from (where + finding for finding in _completions(results, lines))
        return
    samples = _samples_read(folder, manifest)
    found = [*_verdicts(results, lines), *_votes(results, lines), *_endings(results, samples)]
    found += _doubts(results, lines, samples)
    yield from (where + finding for finding in found)


LINES = {"generate": "samples.jsonl", "grade": "verdicts.jsonl", "train": "metrics.jsonl"}


def _read(file: Path) -> list[Line]:
    """Records by line; bytes, since a text is also split at U+2028 and U+0085, which completions hold."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def _samples_read(folder: StageFolder, manifest: Manifest) -> list[Line]:
    """The completions that were graded; none where they are not here or differ, which is reported elsewhere."""
    entry = manifest["inputs"]["stages"].get("samples")
    if entry is None:
        return []
    read = StageFolder(folder.path.parent / stage_id(entry["stage"], entry["key"]))
    file = read.output / LINES["generate"]
    try:
        recorded = {output["path"]: output["sha256"] for output in read_json(read.manifest)["outputs"]}
        intact = recorded[file.name] == sha256_file(file)
    except (RecordError, OSError, KeyError, TypeError):
        return []
    return _read(file) if intact else []


def _twice(file: Path, lines: list[Line]) -> Iterator[str]:
    samples = Counter((str(line["problem"]), line["sample"]) for line in lines)
    name, count = max(samples.items(), key=lambda item: item[1], default=(("", 0), 0))
    if count > 1:
        yield f"{file}: sample {name[1]} of problem {name[0]} is there {count} times"


def _training(results: dict[str, Any], lines: list[Line]) -> Iterator[str]:
    """Of a step written twice, after a resume, the later counts."""
    steps = {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}
    validations = {line["step"]: line for line in lines if line["kind"] == "validation"}
    checks = {step: line["ce"] for step, line in validations.items()}
    yield from _differs("steps", results["steps"], max(steps, default=0), "metrics.jsonl")
    yield from _differs("last_loss", results["last_loss"], steps.get(results["steps"]), "metrics.jsonl")
    recorded = {check["step"]: check["ce"] for check in results["validations"]}
    for step in sorted(recorded.keys() | checks.keys()):
        yield from _differs(f"validation at step {step}", recorded.get(step), checks.get(step), "metrics.jsonl")
    best = recorded.get(results["best_step"])
    yield from _differs("best_validation_ce", results["best_validation_ce"], best, "the validations")
    yield from _chosen(results, [validations[step] for step in sorted(validations)])


def _chosen(results: dict[str, Any], validations: list[Line]) -> Iterator[str]:
    """The step that is kept and that of the lowest mean, by their rules, from the losses that were written down.

    Records of an earlier version hold no losses by rank; nothing can be said of them.
    """
    if not validations or not all("parts" in line for line in validations):
        return
    kept = choose([line["parts"] for line in validations])
    lowest = min(validations, key=lambda line: line["ce"])
    counted = {
        "best_step": None if kept is None else validations[kept]["step"],
        "lowest_step": lowest["step"],
        "lowest_validation_ce": lowest["ce"],
    }
    for name, value in counted.items():
        yield from _differs(name, results[name], value, "metrics.jsonl")


def _completions(results: dict[str, Any], lines: list[Line]) -> Iterator[str]:
    reasons = Counter(str(line["finish_reason"]) for line in lines)
    tokens = sum(line["tokens"] for line in lines) / len(lines) if lines else 0.0
    counted = {
        "samples": len(lines),
        "problems": len({str(line["problem"]) for line in lines}),
        "mean_completion_tokens": tokens,
    }
    for name, value in counted.items():
        yield from _differs(name, results[name], value, "samples.jsonl")
    for reason in sorted(results["finish_reasons"].keys() | reasons.keys()):
        recorded = results["finish_reasons"].get(reason, 0)
        yield from _differs(f"finish reason {reason}", recorded, reasons[reason], "samples.jsonl")


def _verdicts(results: dict[str, Any], lines: list[Line]) -> Iterator[str]:
    marks: dict[str, list[bool]] = {}
    for line in lines:
        marks.setdefault(str(line["problem"]), []).append(bool(line["correct"]))
    recorded = {str(p["problem"]): (p["correct"], p["samples"]) for p in results["per_problem"]}
    counted = {problem: (sum(found), len(found)) for problem, found in marks.items()}
    for problem in sorted(recorded.keys() | counted.keys()):
        if recorded.get(problem) != counted.get(problem):
            first = f"{recorded.get(problem)} recorded, {counted.get(problem)} in verdicts.jsonl"
            yield f"problem {problem}: (correct, samples) {first}"
            break
    statuses = Counter(str(line["status"]) for line in lines)
    for status in sorted(results["statuses"].keys() | statuses.keys()):
        yield from _differs(f"status {status}", results["statuses"].get(status, 0), statuses[status], "verdicts.jsonl")
    yield from _score(results, list(marks.values()))


def _score(results: dict[str, Any], marks: list[list[bool]]) -> Iterator[str]:
    """Accuracy, its error and interval, and by what method."""
    if not marks or len({len(found) for found in marks}) != 1:
        return
    estimate = accuracy(marks, results["confidence"])
    yield from _differs("accuracy", results["accuracy"], estimate.value, "verdicts.jsonl")
    yield from _differs("method", results["method"], estimate.method, "verdicts.jsonl")
    yield from _differs("standard_error", results["standard_error"], estimate.standard_error, "verdicts.jsonl")
    for name, recorded, value in zip(("low", "high"), results["interval"], (estimate.low, estimate.high), strict=True):
        yield from _differs(f"interval {name}", recorded, value, "verdicts.jsonl")


def _votes(results: dict[str, Any], lines: list[Line]) -> Iterator[str]:
    """pass@k and maj@k, as many as are recorded."""
    of_problem: dict[str, list[Line]] = {}
    for line in lines:
        of_problem.setdefault(str(line["problem"]), []).append(line)
    recorded = {**results.get("pass_at_k", {}), **results.get("majority_at_k", {})}
    if not recorded or not lines or len({len(found) for found in of_problem.values()}) != 1:
        return
    correct = [[bool(line["correct"]) for line in found] for found in of_problem.values()]
    answers = [answer_numbers(found) for found in of_problem.values()]
    for name, estimate in recorded.items():
        measure, _, k = name.partition("@")
        if measure == "pass":
            computed = pass_at_k(correct, int(k), results["confidence"])
        else:
            computed = majority_at_k(answers, correct, int(k), results["confidence"])
        for part in ("value", "standard_error", "low", "high"):
            yield from _differs(f"{name} {part}", estimate[part], getattr(computed, part), "verdicts.jsonl")


def _endings(results: dict[str, Any], samples: list[Line]) -> Iterator[str]:
    """How completions ended and how long they are."""
    if not samples:
        return
    counted = completion_facts(samples)
    reasons = counted.pop("finish_reasons")
    for reason in sorted(results["finish_reasons"].keys() | reasons.keys()):
        yield from _differs(f"finish reason {reason}", results["finish_reasons"].get(reason, 0),
                            reasons.get(reason, 0), "samples.jsonl")  # fmt: skip
    for name, value in counted.items():
        yield from _differs(name, results[name], value, "samples.jsonl")


def _doubts(results: dict[str, Any], lines: list[Line], samples: list[Line]) -> Iterator[str]:
    """What speaks against the accuracy; records of earlier versions have none of it."""
    if "doubts" not in results:
        return
    sources = {"verdicts.jsonl": verdict_doubts(lines), "samples.jsonl": sample_doubts(samples) if samples else {}}
    for source, counted in sources.items():
        for name, value in counted.items():
            yield from _differs(name, results["doubts"][name], value, source)


def _differs(name: str, recorded: Any, value: Any, source: str) -> Iterator[str]:
    numbers = isinstance(recorded, int | float) and isinstance(value, int | float)
    if recorded != value and not (numbers and math.isclose(recorded, value, rel_tol=CLOSE, abs_tol=CLOSE)):
        yield f"{name} {recorded} recorded, {value} from {source}"
