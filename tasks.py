"""The commands: truncate, train, evaluate, record, compare. `invoke --help TASK` explains one.

Thin on purpose: a task turns words into a call of `essence.commands` and an exit code. Everything is imported inside
the tasks, so that `invoke --list` answers at once.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from invoke import Exit, Task, task

from essence.commands import terminal
from essence.errors import KitError, disk_error

if TYPE_CHECKING:
    from rich.console import Console

if sys.argv[0].endswith(("/invoke", "/inv", "/invoke/__main__.py")):  # not where a test imports this module
    terminal.prepare()

EXIT_CURABLE = 2
PIPED_WIDTH = 140
CHOICE = {
    "experiment": "name of an experiment in experiments/, or a path to a TOML file",
    "lsp": "lead-span proportion, 0 < p <= 1",
    "dataset": "data set by short name",
    "pair": "teacher_student, as in qwen3-8b_qwen3-4b-base",
    "span": "left, middle, right, right-with-context or cot-lead",
    "sections": "a, p+a, cot, cot+a, p+cot or p+cot+a",
    "protocol": "released or corrected",
    "seed": "seed of the cell",
    "only": "stop after these stages: download, tokenize, train, generate, grade or evaluate",
    "engine": "what runs the stages: local, docker or apptainer; slurm queues jobs and ends",
    "site": "cluster for --engine slurm: a name in experiments/sites/ or a TOML file (default: generic)",
    "flavour": "images to run in: cuda, cpu or paper (default: cuda, or cpu when no GPU is asked for)",
    "pins": "TOML file whose models, datasets and benchmarks replace those of experiments/pins.toml",
    "runs": "run directory (default: runs/)",
    "accept_earlier": "take finished stages of earlier code where settings, inputs and environment are equal",
    "dry_run": "print every command line that would be started, and start none",
    "json": "print JSON for machines",
}
MATRIX_WORDS = (
    *("experiment", "lsp", "dataset", "pair", "span", "sections", "protocol", "seed"),
    *("engine", "flavour", "pins", "runs"),
)
"""What chooses cells, and what they run in."""


@contextmanager
def _console() -> Iterator["Console"]:
    """A console for messages; failures that the user can cure become one sentence and exit code 2."""
    try:
        with terminal.interruptible():
            from rich.console import Console

            terminal.check_arguments([*sys.argv, __file__, os.getcwd()])  # noqa: PTH109  text, not a path
            # Where there is no terminal to ask, lines are as wide as the tables need. What is printed holds messages
            # and paths: brackets in them are no markup.
            width = None if sys.stdout.isatty() else PIPED_WIDTH
            yield Console(stderr="--json" in sys.argv, width=width, markup=False)
            terminal.check_output()
    except KeyboardInterrupt:
        raise Exit("stopped", code=terminal.EXIT_INTERRUPTED) from None
    except (KitError, OSError) as error:
        sentence = error if isinstance(error, KitError) else disk_error(error, "the run directory")
        if sentence is None:
            raise
        raise Exit(str(sentence), code=EXIT_CURABLE) from None


def _command(*words: str, **more: str) -> Callable[[Callable[..., int]], Task]:
    """Make a task of a function that gets a console, then its options, and returns the exit code.

    With `words`, these are options too, and the function gets them together as `words`. What an option is stands in
    CHOICE or in `more`.
    """

    def decorate(body: Callable[..., int]) -> Task:
        console, *own = inspect.signature(body).parameters.values()
        own = [option for option in own if option.name != "words"]
        chosen = [console.replace(name=word, default="local" if word == "engine" else None) for word in words]
        required = [option for option in own if option.default is option.empty]
        options = [*required, *chosen, *(option for option in own if option not in required)]

        @functools.wraps(body)
        def called(_context, **given):
            with _console() as console:
                if words:
                    from essence.engines.selected_run import Options

                    given["words"] = Options(**{word: given.pop(word) for word in words})
                if code := body(console, **given):
                    raise Exit(code=code)

        # From this invoke makes the options.
        signature = inspect.Signature([console.replace(name="_context"), *options])
        called.__signature__ = signature  # type: ignore[attr-defined]
        explained = {option.name: CHOICE[option.name] for option in options if option.name in CHOICE}
        return task(auto_shortflags=False, help={**explained, **more})(called)

    return decorate


@_command(*MATRIX_WORDS, "only", "site")
def run(console, words, accept_earlier=False, dry_run=False, json=False):
    """Run chosen cells of an experiment (default: bespoke), as in: invoke run --lsp 0.5"""
    from essence.commands.run import run as start

    words = replace(words, accept_earlier=accept_earlier)
    return start(words, whole=False, dry_run=dry_run, as_json=json, console=console)


@_command("only", "engine", "flavour", "pins", "runs", "site", name=CHOICE["experiment"])
def reproduce(console, words, name, accept_earlier=False, dry_run=False, json=False):
    """Run the whole matrix of an experiment with its baselines and write the report."""
    from essence.commands.run import run as start

    words = replace(words, experiment=name, accept_earlier=accept_earlier)
    return start(words, whole=True, dry_run=dry_run, as_json=json, console=console)


@_command(
    *(*MATRIX_WORDS, "only", "site"),
    offline="what is still to be downloaded is missing, even where there is a network",
)
def doctor(console, words, offline=False, json=False):
    """Say what is missing for a run before anything is queued, with what cures it; ends with 2 if anything is."""
    from essence.commands.doctor import doctor as look

    return look(words, offline, json, console)


@_command(*MATRIX_WORDS)
def download(console, words, json=False):
    """Bring in everything that chosen cells need from a network; the same as run --only download."""
    from essence.commands.run import run as start

    return start(replace(words, only="download"), whole=False, dry_run=False, as_json=json, console=console)


@_command(
    *("experiment", "engine", "pins", "runs"),
    model="a folder in Hugging Face format, or owner/name@COMMIT on the hub",
    benchmark="benchmark by short name, as in aime25",
    samples="completions a problem",
    decoder="vllm or transformers (default: as the experiment says)",
    problems="take only the first so many problems",
    max_new_tokens="token cap of a completion (default: as the experiment says)",
    max_model_tokens="prompt and completion together (default: as the experiment says)",
)
def evaluate(
    console,
    words,
    model,
    benchmark,
    samples=None,
    decoder=None,
    problems=None,
    max_new_tokens=None,
    max_model_tokens=None,
    protocol="released",
    dry_run=False,
    json=False,
):
    """Check any finished model, as in: invoke evaluate --model FOLDER --benchmark aime25 --samples 64"""
    from essence.commands.evaluate import ModelOptions
    from essence.commands.evaluate import evaluate as start

    numbers = {"samples": samples, "problems": problems}
    numbers.update(max_new_tokens=max_new_tokens, max_model_tokens=max_model_tokens)
    return start(
        replace(words, protocol=protocol), ModelOptions(model, benchmark, decoder, numbers), dry_run, json, console
    )


@_command(
    *MATRIX_WORDS,
    costs="instead, computed time, memory and FLOPs at LSP 0.1 to 1.0 for each pair",
    decide="instead, what the cells can decide of a claim, as in --decide retention-half",
    training_sd="with --decide: points between two trainings of one arm, where measured",
    accuracy="with --decide: accuracy expected at LSP 1.0",
    assurance="with --decide: wanted chance that a true claim is called reproduced",
)
def plan(
    console,
    words,
    accept_earlier=False,
    json=False,
    costs=False,
    decide=None,
    training_sd=None,
    accuracy="0.2",
    assurance="0.8",
):
    """Show the matrix: cells, what is done and left, rows, tokens, GPU hours, disk and memory."""
    from essence.commands.cost_tables import print_costs
    from essence.commands.decide import print_decision, question
    from essence.commands.plan import print_plan

    words = replace(words, accept_earlier=accept_earlier)
    if decide:
        return print_decision(words, question(decide, training_sd, accuracy, assurance), json, console)
    return (print_costs if costs else print_plan)(words, json, console)


@_command(watch="draw anew until it is over")
def status(console, experiment="tiny", runs=None, json=False, watch=False):
    """Show how far each cell is; also while it runs, from another terminal."""
    from essence.commands.options import run_directory
    from essence.commands.status import print_status
    from essence.commands.watch import watch as keep_watching

    if watch:
        return keep_watching(run_directory(runs), experiment, console)
    return print_status(run_directory(runs), experiment, json, console)


@_command()
def report(console, experiment="tiny", runs=None, json=False):
    """Write the report of what is there: table, figures, report.md, report.html."""
    from essence.commands.options import run_directory
    from essence.commands.report import print_report

    return print_report(run_directory(runs), experiment, json, console)


@_command(experiment="one experiment (default: all in the run directory together)")
def claims(console, experiment=None, runs=None, json=False):
    """Compute for each claim of the paper: reproduced, not reproduced, undecided or not run."""
    from essence.commands.claims import print_all_claims
    from essence.commands.options import run_directory

    return print_all_claims(run_directory(runs), experiment, json, console)


@_command(folder="run directory, one experiment in it, or an exported archive")
def verify(console, folder, json=False):
    """Recompute every hash of a run directory and say which file differs, as in: invoke verify runs"""
    from pathlib import Path

    from essence.commands.verify import print_verification

    return print_verification(Path(folder).resolve(), None, json, console)


@_command(
    first="run directory, experiment in it, or stage folder; FOLDER:TEXT is the cell with TEXT in its name",
    second="what it is compared with",
)
def compare(console, first, second, json=False):
    """Say how two runs differ and what most likely made them differ, as in: invoke compare runs ../other/runs"""
    from essence.commands.compare import compare as compare_runs

    return compare_runs(first, second, json, console)


@_command(
    output="file to write (default: <experiment>.tar.gz here)",
    weights="with the trained weights",
)
def export(console, experiment="tiny", output=None, weights=False, runs=None):
    """Write one archive of a run: records, metrics, samples, report, configuration; an RO-Crate."""
    from essence.commands.export import write_archive
    from essence.commands.options import run_directory

    return write_archive(run_directory(runs), experiment, output, weights, console)


@_command(
    cell="only cells with this text in their name",
    output="folder to write to (default: runs/<experiment>/cards)",
)
def card(console, experiment="tiny", cell=None, output=None, runs=None):
    """Write a model card (README.md for a hub) for each trained cell, from its records."""
    from essence.commands.card import write_cards
    from essence.commands.options import run_directory

    return write_cards(run_directory(runs), experiment, cell, output, console)


@_command(
    cell="text that the name of one cell has",
    repository="owner/name on the hub; made private when it is not there",
    checkpoint="best or last",
    yes="really upload",
)
def push(console, experiment, cell, repository, checkpoint="best", runs=None, yes=False):
    """Show what would be uploaded of a trained model, with its card, after verifying it; with --yes upload it."""
    from essence.commands.options import run_directory
    from essence.commands.push import Upload
    from essence.commands.push import push as start

    return start(run_directory(runs), Upload(experiment, cell, repository, checkpoint), yes, console)


@_command(
    experiment="remove this experiment too",
    earlier="remove what earlier code has finished too",
    yes="really remove",
)
def clean(console, experiment=None, runs=None, earlier=False, yes=False):
    """Remove stages that no experiment needs any more, or one experiment."""
    from essence.commands.clean import clean as remove
    from essence.commands.options import run_directory

    return remove(run_directory(runs), experiment, yes, console, earlier)


@_command(
    file='JSON lines of {"gold", "completion"}; - is standard input',
    grader="math-verify, lighteval-0.10 or math-verify-0.9",
)
def grade(_, file, grader="math-verify"):
    """Grade any completions: a verdict a line on standard output, a summary on standard error."""
    from rich.console import Console

    from essence.commands.grade_file import grade as judge

    return judge(file, grader, Console(stderr=True, markup=False))  # standard output is for the verdicts


@_command()
def pin(console):
    """Look up the commits that are still empty in experiments/pins.toml (needs network)."""
    from essence.commands.pin import pin as fill

    return fill(console)


@_command(upgrade="take newer versions where pyproject.toml allows them")
def lock(console, upgrade=False):
    """Make the hash-locked versions in locks/ anew from pyproject.toml (needs network)."""
    from essence.commands.lock import lock as write

    return write(upgrade, console)


@_command(
    flavour="cuda, cpu or paper",
    only="download, train or eval",
)
def images(console, flavour="cuda", only=None):
    """Build the images that the stages run in (needs Docker with buildx, and network)."""
    from essence.commands.images import build

    return build(flavour, only, console)


@_command(
    flavour="cuda, cpu or paper",
    only="download, train or eval",
    archives="folder of archives, train-cuda.tar and so on, that docker save wrote elsewhere",
)
def sif(console, flavour="cuda", only=None, archives=None):
    """Make a SIF of each Docker image, for Apptainer and Slurm, as in: invoke sif --flavour cpu"""
    from essence.commands.sif import build

    return build(flavour, only, archives, console)
