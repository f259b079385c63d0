"""`invoke evaluate`: one finished model on one benchmark, through the same stages as a matrix.

Everything that is not said on the command line comes from an experiment (default: bespoke): sampling, grader, prompt.
"""

import json
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from essence.commands.gold_checks import require_readable_golds
from essence.commands.options import DEFAULT_EXPERIMENT, check_word, run_directory
from essence.commands.run import exit_code, print_dry_run, run_held, say_failures, to_go_on
from essence.commands.terminal import teller
from essence.engines import ENGINES, make_engine
from essence.engines.choice import choose
from essence.engines.machine import this_machine
from essence.engines.readiness import make_ready
from essence.engines.runner import Summary
from essence.engines.selected_run import Options, Run
from essence.errors import ExperimentError, PinError, RecordError
from essence.files import canonical_json, sha256_text
from essence.paths import local_path, place, typed_path
from essence.plan.catalogue import ModelPin, find_pin
from essence.plan.cells import resolve_seed
from essence.plan.experiment import Experiment, load
from essence.plan.schema import EvaluationSection
from essence.plan.stage_plan import Plan, make_evaluation_plan
from essence.record.evaluation_records import EstimateRecord
from essence.record.local_sources import LocalSources
from essence.record.recount import SAMPLES, VERDICTS
from essence.record.run_directory import EVALUATION, RunDirectory, hold
from essence.record.stage_key import that_count
from essence.record.stage_records import GenerateManifest, GradeManifest, read_manifest
from essence.settings.base import LONGEST_NAME
from essence.settings.protocol import PROTOCOLS
from essence.settings.toml import validate
from essence.text import percent

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
NAME_DIGITS = 8


@dataclass(frozen=True)
class ModelOptions:
    """What was typed beside the words of every command; None = not given."""

    model: str
    benchmark: str
    decoder: str | None
    numbers: dict[str, int | None]
    """samples, problems, max_new_tokens, max_model_tokens."""

    def typed(self, words: Options) -> str:
        """The command, to be repeated in a message."""
        named = {"model": self.model, "benchmark": self.benchmark, "decoder": self.decoder, **self.numbers}
        named.update({name: getattr(words, name) for name in ("experiment", "protocol", "engine", "pins", "runs")})
        given = [(name, value) for name, value in named.items() if value is not None]
        parts = [part for name, value in given for part in (option(name), str(value))]
        return shlex.join(["invoke", "evaluate", *parts])


def evaluate(words: Options, asked: ModelOptions, dry_run: bool, as_json: bool, console: Console) -> int:
    """Download or copy the model, generate, grade, and print what came out; the exit code."""
    selection = select_model(words, asked)
    if dry_run:
        return print_dry_run(selection, as_json, console)
    make_ready(selection, teller(console))
    require_readable_golds(selection)
    folder, command = selection.run_directory.experiment(selection.name), asked.typed(words)
    with hold(folder, f"run directory {folder}", command):
        summary = run_held(selection, selection.plan, console)
    return _say(selection, summary, command, as_json, console)


def select_model(words: Options, asked: ModelOptions) -> Run:
    """The stages that evaluate the model; ExperimentError or PinError for words that cannot be meant."""
    check_word("--engine", "engine", words.engine, ENGINES)
    check_word("--protocol", "protocol", words.protocol, PROTOCOLS)
    root = run_directory(words.runs)
    loaded = load(words.experiment or DEFAULT_EXPERIMENT, typed_path("--pins", words.pins) if words.pins else None)
    find_pin(loaded.catalogue.benchmarks, asked.benchmark, "benchmark", "--benchmark")
    local = LocalSources(root)
    name, pin = model_pin(asked.model, local)
    loaded = _with(loaded, name, pin, asked, root)
    gpus = loaded.experiment.resources.gpus > 0
    chosen = choose(words.engine, gpus, ENGINES)
    engine = make_engine(chosen.name, "cuda" if gpus else "cpu")
    if engine.queue:
        others = ", ".join(name for name in ENGINES if name != engine.name)
        raise ExperimentError(
            f"--engine {engine.name}: queues jobs and ends, and invoke evaluate waits for its result",
            f"choose one of {others}",
        )
    seed = resolve_seed(loaded.experiment.evaluation.seed, loaded.experiment.matrix[0].seed[0])
    protocol: Any = words.protocol
    plan = make_evaluation_plan(loaded, name, protocol, seed, engine.environment, local)
    loaded = replace(loaded, name=f"{loaded.name}-{_digits(plan)}")
    return Run(
        words, engine, root, loaded, replace(plan, loaded=loaded), plan.wanted(), local, chosen.reason, evaluated=True
    )


def _digits(plan: Plan) -> str:
    """What distinguishes one evaluation from another of the same names: the model's content, and how it was asked."""
    settings = [that_count(stage.settings.model_dump(mode="json")) for stage in plan.stages.values()]
    return sha256_text(canonical_json(settings))[:NAME_DIGITS]


def model_pin(text: str, local: LocalSources) -> tuple[str, ModelPin]:
    """(short name, where it comes from) of a folder or of `owner/name@COMMIT`; PinError for anything else.

    A folder that is gone is as good as there where the run directory took it in.
    """
    path = _local(text)
    if path and local.is_kept("model", path):
        return _short(path.name), ModelPin(path=str(path))
    if path and place(path) == "file":
        raise PinError(f"--model {text}: a file, wanted: the folder of a model, or owner/name@COMMIT")
    if path and path.is_dir():
        if not (path / "config.json").is_file():
            raise PinError(f"--model {text}: the folder holds no model, config.json is missing")
        return _short(path.name), ModelPin(path=str(path))
    repository, _, commit = text.partition("@")
    if not HUB_ID.fullmatch(repository) or text.startswith(("/", "~")):
        raise PinError(f"--model {text}: no such folder", "a model of the hub is written owner/name@COMMIT")
    if not COMMIT.fullmatch(commit):
        found = f"'{commit}'" if commit else "none"
        raise PinError(
            f"--model {text}: no such folder, and a model of the hub needs its full commit of 40 hexadecimal digits "
            f"(found: {found}), as in {repository}@0123456789abcdef0123456789abcdef01234567"
        )
    return _short(repository.split("/")[1]), ModelPin(repository=repository, commit=commit)


def _local(text: str) -> Path | None:
    """The path that a text may mean; None where it can mean none."""
    try:
        return local_path(text, Path.cwd())
    except ValueError:
        return None


def _short(name: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower())[:LONGEST_NAME].strip("-.") or "model"


def _with(loaded: Experiment, name: str, pin: ModelPin, asked: ModelOptions, root: RunDirectory) -> Experiment:
    """The experiment with this model, this benchmark, and the GPUs of this machine."""
    numbers = {key: number for key, number in asked.numbers.items() if number is not None}
    for key, number in numbers.items():
        if number < 1:
            raise ExperimentError(f"{option(key)} {number}: must be an integer of at least 1")
    decoder = {"decoder": asked.decoder} if asked.decoder else {}
    fields = {**loaded.experiment.evaluation.model_dump(), **numbers, **decoder, "benchmarks": [asked.benchmark]}
    section = validate(EvaluationSection, fields, "invoke evaluate")
    machine = this_machine(root.root)
    gpus = {"gpus": len(machine.gpus), "gpu_memory_gib": machine.gpu_memory_gib}
    resources = loaded.experiment.resources.model_copy(update=gpus)
    catalogue = loaded.catalogue.model_copy(update={"models": {**loaded.catalogue.models, name: pin}})
    experiment = loaded.experiment.model_copy(
        update={"title": f"{name} on {asked.benchmark}", "evaluation": section, "resources": resources}
    )
    return Experiment(f"{EVALUATION}{name}-{asked.benchmark}", loaded.file, experiment, catalogue)


def option(name: str) -> str:
    """`max_new_tokens` as it is typed."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Evaluated:
    """What the records of the two stages say, and where to read more."""

    generated: GenerateManifest
    graded: GradeManifest
    samples_file: Path
    verdicts_file: Path

    def as_json(self) -> dict[str, object]:
        generated = self.generated.results.model_dump(mode="json")
        return {
            **self.graded.results.model_dump(mode="json", exclude={"per_problem"}),
            "loops": generated["loops"],
            "at_cap": generated["at_cap"],
            "executed": self.generated.settings.executed.model_dump(mode="json"),
            "samples_file": str(self.samples_file),
            "verdicts_file": str(self.verdicts_file),
        }

    def lines(self) -> list[str]:
        """Accuracy with its interval, how completions ended, how long they were, where to read them."""
        results, executed = self.graded.results, self.generated.settings.executed
        low, high = results.interval
        completions = sum(results.finish_reasons.values())
        ends = ", ".join(f"{reason} {percent(count / completions)}" for reason, count in results.finish_reasons.items())
        loops = self.generated.results.loops
        return [
            f"{results.metric}: {percent(results.accuracy)} [{percent(low)}, {percent(high)}] "
            f"({results.confidence:.0%} interval, {results.method})",
            f"{completions} completions: {ends}; {loops.count if loops else 0} loop; "
            f"{results.mean_completion_tokens:.0f} tokens on average{_interval(results.completion_tokens)}, "
            f"cap {executed.max_new_tokens} ({executed.decoder})",
            *([results.doubts.words] if results.doubts else []),
            f"samples: {self.samples_file}",
            f"verdicts: {self.verdicts_file}",
        ]


def _say(selection: Run, summary: Summary, command: str, as_json: bool, console: Console) -> int:
    """The result, or what failed and why."""
    results = _results(selection) if summary.complete else None
    if as_json:
        told = {"model": selection.plan.baselines[0].model, "results": results.as_json() if results else None}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        say_failures(selection, summary, command, console)
    if summary.interrupted:
        console.print(to_go_on(command), soft_wrap=True)
    if results is not None and not as_json:
        for line in results.lines():
            console.print(line, highlight=False, soft_wrap=True)
    return exit_code(selection, summary)


def _interval(found: EstimateRecord | None) -> str:
    """` [980, 1,210]`; nothing where there is none, as of a single problem."""
    known = found and found.low is not None and found.high is not None
    return f" [{found.low:,.0f}, {found.high:,.0f}]" if found and known else ""


def _results(selection: Run) -> Evaluated:
    evaluation = selection.plan.baselines[0].evaluations[0]
    generate, grade = (selection.run_directory.stage(id) for id in (evaluation.generate, evaluation.grade))
    generated, graded = read_manifest(generate.manifest), read_manifest(grade.manifest)
    if not (isinstance(generated, GenerateManifest) and isinstance(graded, GradeManifest)):
        raise RecordError(f"{generate.manifest}: of a {generated.identity.stage} stage, wanted: generate, then grade")
    return Evaluated(generated, graded, generate.output / SAMPLES, grade.output / VERDICTS)
