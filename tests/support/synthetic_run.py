"""A made-up finished run directory, in the shapes of docs/design.md: what the tests of the report read."""

import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from essence.evaluation.scores import ending_estimates
from essence.evaluation.statistics import accuracy as estimate
from essence.record.record_files import seal_of
from essence.record.stage_records import MANIFESTS
from essence.settings import StageName

ACCURACY = {0.25: 0.42, 0.5: 0.66, 0.75: 0.71, 1.0: 0.72}
REAL: dict[str, Any] = {
    "dataset": "bespoke", "teacher": "qwen3-8b", "student": "qwen3-4b-base", "benchmark": "aime25",
}  # fmt: skip
"""One of the settings that the claims are about."""
PROBLEMS = 40
SAMPLES = 4
STEPS = 120


def stage_id(stage: str, *name: object) -> str:
    return f"{stage}-{hashlib.sha256(repr(name).encode()).hexdigest()[:16]}"


CONFIGS = [
    {
        "model_type": "qwen3", "hidden_size": hidden, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": inner, "vocab_size": 151_936,
        "tie_word_embeddings": tied,
    }
    for hidden, inner, tied in ((2560, 9728, True), (4096, 12288, False))
]  # fmt: skip
"""Sizes of student and teacher: those of Qwen3 4B and 8B."""


@dataclass
class SyntheticRun:
    """Writes plan.json and the folders of finished stages; `leave`, `fail` and `damage` change some of them."""

    root: Path
    experiment: str = "tiny"
    lsps: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
    seeds: Sequence[int] = (1, 2)
    protocol: str = "corrected"
    dataset: str = "sums"
    student: str = "tiny-student"
    teacher: str = "tiny-teacher"
    benchmark: str = "sums-test"
    checkpoints: Sequence[str] = ("best",)
    spans: Sequence[str] = ("left",)
    texts: bool = True
    """True when evaluations have problems, samples and verdicts line by line."""
    title: str = "The whole matrix in miniature"
    note: str = "Arithmetic with worked traces; Qwen3 architecture of under a million parameters."
    accuracy: dict[float, float] = field(default_factory=lambda: dict(ACCURACY))
    untrained: float = 0.08
    temperature: float = 0.6
    """Of sampling; another one makes other stages of evaluation."""
    builtin: bool = True
    """Whether models, data and benchmarks are made by the kit, or come from repositories."""
    first_minute: int = 0
    """When its first stage starts, in minutes."""
    finished: bool = True
    plan: dict[str, Any] = field(default_factory=dict)

    def write(self) -> "SyntheticRun":
        self.plan = {
            "schema_version": 1, "experiment": self.experiment, "title": self.title,
            "note": self.note,
            "cells": [], "baselines": [], "stages": {},
        }  # fmt: skip
        for span in self.spans:
            for lsp in self.lsps:
                self.plan["cells"] += [self._cell(span, lsp, seed) for seed in self.seeds]
        for role, model, accuracy in (("student", self.student, self.untrained), ("teacher", self.teacher, 0.97)):
            evaluations = [self._evaluation(model, "model", accuracy, 7)]
            entry = {"role": role, "model": model, "protocol": self.protocol, "evaluations": evaluations}
            self.plan["baselines"].append(entry)
        self.write_plan()
        return self

    def write_plan(self) -> None:
        folder = self.root / self.experiment
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(self.plan))

    def stage_of(self, cell: int, stage: str) -> str:
        """Id of a cell's `train`, `generate` or `grade` stage."""
        entry = self.plan["cells"][cell]
        name: str = entry["stages"]["train"] if stage == "train" else entry["evaluations"][0][stage]
        return name

    def leave(self, *stages: str) -> None:
        """Make stages look as if they had never been started."""
        for name in stages:
            folder = self.root / "stages" / name
            for file in sorted(folder.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()

    def fail(self, stage: str, message: str) -> None:
        """Make a stage look as if it had failed."""
        self.leave(stage)
        (self.root / "stages" / stage / "failure.json").write_text(
            json.dumps({"kind": "InputError", "curable": True, "message": message, "time": "2026-07-01T10:00:00+00:00"})
        )

    def damage(self, stage: str, **changes: Any) -> None:
        """Change groups of a stage's manifest as if the stage had written it so: under a new seal."""
        path = self.root / "stages" / stage / "manifest.json"
        record = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({**record, "seal": seal_of(record)}))

    def group_of(self, cell: int, group: str) -> dict[str, Any]:
        """A group of the manifest of a cell's training, as it lies there."""
        path = self.root / "stages" / self.stage_of(cell, "train") / "manifest.json"
        found: dict[str, Any] = json.loads(path.read_text())[group]
        return found

    def _cell(self, span: str, lsp: float, seed: int) -> dict[str, Any]:
        name = f"{self.dataset}/{self.teacher}_{self.student}/lsp-{lsp:.2f}/p+cot+a/{self.protocol}/seed-{seed}"
        name += "" if span == "left" else f"/{span}"
        downloads = {
            role: self._download(model) for role, model in (("student", self.student), ("teacher", self.teacher))
        }
        train = stage_id("train", name, span)
        settings = {
            "rows": {"max_row_tokens": 512, "train_rows": 2000, "validation_rows": 100, "split_seed": 42},
            "view": {"lsp": lsp, "span": span, "sections": "p+cot+a"}, "validation_view": "full",
            "objective": {"kd_weight": 0.5, "temperature": 1.0}, "seed": seed,
            "optimizer": {"epochs": 2, "batch_rows": 16, "max_lr": 1e-3, "weight_decay": 0.05},
        }  # fmt: skip
        checks, steps = list(validation_curve(lsp)), list(step_metrics(lsp, seed, (10 + 30 * lsp + seed) / STEPS))
        self._stage(
            train, "train", f"train {name}", settings,
            results={"steps": STEPS, "best_step": STEPS, "best_validation_ce": checks[-1]["ce"],
                     "lowest_step": STEPS, "lowest_validation_ce": checks[-1]["ce"],
                     "last_loss": steps[-1]["loss"], "validations": checks},
            data={"train": {"rows": 2000, "tokens": int(400_000 * lsp), "supervised_tokens": int(390_000 * lsp)},
                  "validation": {"rows": 100, "tokens": 20_000}},
            cost={"wall_s": 14 + 30 * lsp + seed, "cpu_s": 14 + 30 * lsp + seed, "peak_memory_gib": 0.4 + 0.35 * lsp,
                  "flops": 3.1e12 * lsp * (0.9 + 0.1 * lsp)},
            lines={"metrics.jsonl": [*steps, *({"kind": "validation", **check} for check in checks)]},
            inputs=downloads,
        )  # fmt: skip
        accuracy = self.accuracy[lsp]
        return {
            "name": name, "dataset": self.dataset, "teacher": self.teacher, "student": self.student, "lsp": lsp,
            "span": span, "sections": "p+cot+a", "protocol": self.protocol, "seed": seed,
            "train_rows": None, "token_budget": None,
            "stages": {"tokenize": self._tokenize(self.dataset), "train": train, **downloads},
            "evaluations": [self._evaluation(name + span, c, accuracy, seed, lsp) for c in self.checkpoints],
        }  # fmt: skip

    def _tokenize(self, name: str) -> str:
        self._download(name)
        identifier = stage_id("tokenize", name)
        example = {"position": 7, "row": "{}"}
        results = {
            "rows_read": 4001, "rows_kept": 4000, "tokens": 500_000,
            "rejections": {"thought never closed": {"count": 1, "examples": [example]}},
            "remarks": {"empty <answer>": {"count": 1234, "examples": [example]}},
            "contamination": {"sums": {"problems": 60, "exact": 2, "overlap": 0, "formulaic": 1, "examples": []}},
        }  # fmt: skip
        self._stage(identifier, "tokenize", f"tokenize {name}", {}, results=results)
        return identifier

    def _problems(self) -> str:
        identifier = stage_id("download", self.benchmark)
        source = self._source("benchmark", self.benchmark)
        problems = (
            {"id": f"sum-{n:02d}", "problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(PROBLEMS)
        )
        self._stage(
            identifier, "download", f"download {self.benchmark}", {"source": source}, results={},
            lines={"problems/problems.jsonl": problems if self.texts else ()},
        )  # fmt: skip
        return identifier

    def _download(self, name: str) -> str:
        identifier = stage_id("download", name)
        source = self._source("dataset" if name == self.dataset else "model", name)
        results = {"config": CONFIGS[name == self.teacher]} if name in (self.student, self.teacher) else {}
        self._stage(identifier, "download", f"download {name}", {"source": source}, results=results)
        return identifier

    def _source(self, kind: str, name: str) -> dict[str, Any]:
        made = {"builtin": "made by the kit"}
        pinned = {"repository": f"somebody/{name}", "commit": hashlib.sha256(name.encode()).hexdigest()[:40]}
        return {"kind": kind, "name": name, **(made if self.builtin else pinned)}

    def _evaluation(self, of: str, checkpoint: str, accuracy: float, seed: int, lsp: float = 1.0) -> dict[str, Any]:
        names = (of, checkpoint, self.benchmark, self.temperature)
        generate, grade = stage_id("generate", *names), stage_id("grade", *names)
        total = PROBLEMS * SAMPLES
        capped = round(total * 0.2 * (1.1 - lsp))
        reasons = {"stop": total - capped, "length": capped}
        lengths: dict[str, Any] = {"finish_reasons": reasons, "mean_completion_tokens": 61.0 + 20 * lsp}
        correct = [
            {**one, **ends_of(number, round(SAMPLES * lengths["mean_completion_tokens"]), capped)}
            for number, one in enumerate(per_problem(accuracy, seed))
        ]
        endings = {name: asdict(one) for name, one in ending_estimates(correct, 0.95).items()}  # type: ignore[arg-type]
        problems = self._problems()
        self._stage(
            generate, "generate", f"generate with {of}",
            {"samples": SAMPLES, "temperature": self.temperature, "top_p": 0.95},
            results={"samples": total, "problems": PROBLEMS, **lengths},
            cost={"wall_s": 9.0, "peak_memory_gib": 0.5, "flops": None},
            lines={"samples.jsonl": sample_lines(correct, capped) if self.texts else ()},
        )  # fmt: skip
        found = estimate([[number < c["correct"] for number in range(c["samples"])] for c in correct], 0.95)
        results = {
            "benchmark": self.benchmark, "metric": f"{self.benchmark} avg@{SAMPLES}", "accuracy": found.value,
            "standard_error": found.standard_error, "interval": [found.low, found.high],
            "confidence": 0.95, "method": found.method, "per_problem": correct,
            "statuses": {"graded": total, "no answer": 0, "timeout": 0}, **lengths, **endings,
        }  # fmt: skip
        fields = {"problem_field": "problem", "answer_field": "answer", "answer_type": "integer", "prompt": "{problem}"}
        benchmark = {"name": self.benchmark, **fields, "problems": None}
        settings = {"grader": "math-verify", "timeout_s": 5.0, "confidence": 0.95, "benchmark": benchmark}
        self._stage(
            grade, "grade", f"grade {of}", settings, results=results,
            lines={"verdicts.jsonl": verdict_lines(correct) if self.texts else ()},
            inputs={"samples": generate, "problems": problems},
        )  # fmt: skip
        return {
            "benchmark": self.benchmark,
            "samples": SAMPLES,
            "checkpoint": checkpoint,
            "generate": generate,
            "grade": grade,
        }

    def _stage(
        self, identifier: str, stage: StageName, title: str, settings: dict[str, Any], results: dict[str, Any],
        data: dict[str, Any] | None = None, cost: dict[str, Any] | None = None,
        lines: dict[str, Iterable[dict[str, Any]]] | None = None, inputs: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`lines`: by file of the output, the records of its lines; no file where there are none."""
        entry = {"stage": stage, "title": title, "key": identifier, "inputs": inputs or {}}
        self.plan["stages"][identifier] = entry
        if not self.finished:
            return
        folder = self.root / "stages" / identifier
        (folder / "output").mkdir(parents=True, exist_ok=True)
        for name, records in (lines or {}).items():
            text = "".join(json.dumps(record) + "\n" for record in records)
            file = folder / "output" / name
            file.parent.mkdir(exist_ok=True)
            if text and not file.exists():
                file.write_text(text)
        record = manifest(identifier, stage, title, settings, results, data or {}, cost or {})
        record["identity"] |= started_in_turn(self.first_minute + len(self.plan["stages"]))
        (folder / "manifest.json").write_text(json.dumps({**record, "seal": seal_of(record)}))


def started_in_turn(number: int) -> dict[str, str]:
    """No two stages at the same moment."""
    times = [datetime(2026, 7, 1, 10, tzinfo=UTC) + timedelta(minutes=minutes) for minutes in (number, number + 1)]
    return dict(zip(("started", "finished"), (time.isoformat() for time in times), strict=True))


def per_problem(accuracy: float, seed: int) -> list[dict[str, Any]]:
    """Correct samples of each problem: some problems are easier, and every seed finds the same ones easy."""
    chance = random.Random(round(1000 * accuracy) + seed)
    ease = [
        accuracy if accuracy in (0.0, 1.0) else min(1.0, max(0.0, accuracy + 0.35 * math.sin(7.0 * index)))
        for index in range(PROBLEMS)
    ]
    return [
        {"problem": f"sum-{index:02d}", "correct": sum(chance.random() < p for _ in range(SAMPLES)), "samples": SAMPLES}
        for index, p in enumerate(ease)
    ]


def ends_of(number: int, tokens: int, capped: int) -> dict[str, int]:
    """How the samples of a problem end, as `sample_lines` has it; lengths differ, and not their mean."""
    at_cap = min(SAMPLES, max(0, (number + 1) * SAMPLES - (PROBLEMS * SAMPLES - capped)))
    return {"tokens": tokens + 4 * (number % 5 - 2), "stopped": SAMPLES - at_cap, "at_cap": at_cap}


def sample_lines(correct: Sequence[dict[str, Any]], capped: int) -> Iterator[dict[str, Any]]:
    """Lines of samples.jsonl; the last `capped` of them end at the cap."""
    last = PROBLEMS * SAMPLES - capped
    for index, (problem, number, right) in enumerate(samples_of(correct)):
        text = (
            f"<think>\n{'Carry the one. ' * (index % 5)}\n</think>\n\nThe sum is \\boxed{{{answer(problem, right)}}}."
        )
        yield {
            "problem": problem, "sample": number, "seed": index, "prompt_sha256": "ef" * 32, "completion": text,
            "tokens": 10 + index % 7, "finish_reason": "stop" if index < last else "length", "stop_token": None,
            "loop_at": 12 if index % 50 == 49 else None, "seconds": 0.1,
        }  # fmt: skip


def verdict_lines(correct: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for problem, number, right in samples_of(correct):
        found = answer(problem, right)
        yield {
            "problem": problem, "sample": number, "gold": answer(problem, True), "extracted": found, "answer": found,
            "correct": right, "status": "graded",
        }  # fmt: skip


def samples_of(correct: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, bool]]:
    """(problem, sample, correct); the first samples of each problem are the correct ones."""
    for entry in correct:
        yield from ((entry["problem"], number, number < entry["correct"]) for number in range(entry["samples"]))


def answer(problem: str, right: bool) -> str:
    return str(2 * int(problem.removeprefix("sum-")) + (0 if right else 1))


def step_metrics(lsp: float, seed: int, seconds: float) -> Iterator[dict[str, Any]]:
    chance = random.Random(seed)
    for step in range(1, STEPS + 1):
        loss = 0.35 + 2.6 * math.exp(-step / 25) + 0.12 * (1 - lsp) + chance.gauss(0, 0.05)
        yield {
            "kind": "step",
            "step": step,
            "lr": 1e-3,
            "loss": loss,
            "ce": loss,
            "kd": loss,
            "tokens": 900,
            "seconds": seconds,
        }


def validation_curve(lsp: float) -> Iterator[dict[str, Any]]:
    for step in range(STEPS // 10, STEPS + 1, STEPS // 10):
        ce = 0.4 + 2.2 * math.exp(-step / 28) + 0.3 * (1 - lsp)
        yield {"step": step, "ce": ce, "parts": [ce] * 4}


def manifest(
    identifier: str, stage: StageName, title: str, settings: dict[str, Any], results: dict[str, Any],
    data: dict[str, Any], cost: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """A manifest that follows the published schema."""
    times = {"started": "2026-07-01T10:00:00+00:00", "finished": "2026-07-01T10:01:00+00:00"}
    gpu = dict.fromkeys(("driver", "cuda", "nccl"))
    full_cost = {
        "wall_s": 2.0, "cpu_s": 2.0, "gpu_hours": 0.0, "peak_memory_gib": 0.2, "peak_gpu_memory_gib": None,
        "energy_j": None, "tokens": None, "flops": None, "flops_formula": None, "more": {}, **cost,
    }  # fmt: skip
    record = {
        "schema_version": 1,
        "identity": {"stage": stage, "key": identifier, "title": title, "status": "finished", "attempts": [], **times},
        "code": {"version": "0.1.0", "commit": "0123abcd" * 5, "dirty": False, "diff_sha256": None,
                 "source_sha256": "ab" * 32},
        "image": {"engine": "local", "engine_version": None, "digest": None, "base_digest": None, "sif_sha256": None},
        "software": {"lock_sha256": "cd" * 32, "python": "3.11.7", "platform": "Linux-6.1-x86_64", "variables": {},
                     "packages": {"torch": "2.13.0", "transformers": "5.19.0", "math-verify": "0.5.2"}},
        "inputs": {"stages": {}, "data": data},
        "settings": {"resolved": settings, "executed": {}},
        "hardware": {"host": "laptop", "cpu": "A processor of eight cores", "cpu_count": 8, "threads": 2,
                     "memory_gib": 16.0, "gpus": [], "scheduler": {}, **gpu},
        "seeds": {}, "results": results, "cost": full_cost, "outputs": [], "seal": "",
    }  # fmt: skip
    return MANIFESTS[stage].model_validate(record).sealed()


def full_size_run(root: Path) -> SyntheticRun:
    """Five data sets, two students, ten LSPs, five seeds: 500 cells with real manifests under one plan."""
    lsps = [step / 10 for step in range(1, 11)]
    accuracy = {lsp: 0.3 + 0.4 * lsp for lsp in lsps}
    whole: SyntheticRun | None = None
    for dataset in range(5):
        for student in range(2):
            part = SyntheticRun(
                root,
                lsps=lsps,
                seeds=range(5),
                dataset=f"data-{dataset}",
                student=f"student-{student}",
                accuracy=accuracy,
                texts=False,
            ).write()
            if whole is None:
                whole = part
                continue
            whole.plan["cells"] += part.plan["cells"]
            whole.plan["baselines"] += part.plan["baselines"][:1]
            whole.plan["stages"] |= part.plan["stages"]
    assert whole
    whole.write_plan()
    return whole
