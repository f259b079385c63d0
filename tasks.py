"""The commands: truncate, train, evaluate, record, compare. `invoke --help TASK` explains one.

Thin on purpose: a task turns words into a call of `essence.commands` and an exit code. Everything is imported inside
the tasks, so that `invoke --list` answers at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from invoke import Context, Exit, task

if TYPE_CHECKING:
    from rich.console import Console

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
    "dry_run": "print every command line that would be started, and start none",
    "json": "print JSON for machines",
}


def _help(*names: str) -> dict[str, str]:
    return {name: CHOICE[name] for name in names}


MATRIX_WORDS = (
    "experiment",
    "lsp",
    "dataset",
    "pair",
    "span",
    "sections",
    "protocol",
    "seed",
    "engine",
    "flavour",
    "pins",
    "runs",
    "json",
)


@contextmanager
def _console() -> Iterator["Console"]:
    """A console for messages; failures that the user can cure become one sentence and exit code 2."""
    from rich.console import Console

    from essence.errors import KitError, disk_error

    try:
        # Where there is no terminal to ask, lines are as wide as the tables need.
        yield Console(stderr="--json" in sys.argv, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    except KitError as error:
        raise Exit(str(error), code=EXIT_CURABLE) from None
    except KeyboardInterrupt:
        raise Exit("stopped", code=130) from None
    except BrokenPipeError:
        # The reader (head, less) has seen enough; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if refused := disk_error(error, "the run directory"):
            raise Exit(str(refused), code=EXIT_CURABLE) from None
        raise


def _end(code: int) -> None:
    if code:
        raise Exit(code=code)


@task(help=CHOICE, auto_shortflags=False)
def run(
    _,
    experiment=None,
    lsp=None,
    dataset=None,
    pair=None,
    span=None,
    sections=None,
    protocol=None,
    seed=None,
    only=None,
    engine="local",
    flavour=None,
    pins=None,
    runs=None,
    site=None,
    dry_run=False,
    json=False,
):
    """Run chosen cells of an experiment (default: bespoke), as in: invoke run --lsp 0.5"""
    from essence.commands.run import run as start
    from essence.commands.selection import Words

    words = Words(
        experiment, lsp, dataset, pair, span, sections, protocol, seed, only, engine, flavour, pins, runs, site
    )
    with _console() as console:
        _end(start(words, whole=False, dry_run=dry_run, as_json=json, console=console))


@task(
    auto_shortflags=False,
    positional=["name"],
    help={
        "name": CHOICE["experiment"],
        **_help("only", "engine", "flavour", "pins", "runs", "site", "dry_run", "json"),
    },
)
def reproduce(
    _, name, only=None, engine="local", flavour=None, pins=None, runs=None, site=None, dry_run=False, json=False
):
    """Run the whole matrix of an experiment with its baselines and write the report."""
    from essence.commands.run import run as start
    from essence.commands.selection import Words

    words = Words(experiment=name, only=only, engine=engine, flavour=flavour, pins=pins, runs=runs, site=site)
    with _console() as console:
        _end(start(words, whole=True, dry_run=dry_run, as_json=json, console=console))


@task(
    auto_shortflags=False,
    help={
        **_help(*MATRIX_WORDS, "only", "site"),
        "offline": "what is still to be downloaded is missing, even where there is a network",
    },
)
def doctor(
    _,
    experiment=None,
    lsp=None,
    dataset=None,
    pair=None,
    span=None,
    sections=None,
    protocol=None,
    seed=None,
    only=None,
    engine="local",
    flavour=None,
    pins=None,
    runs=None,
    site=None,
    offline=False,
    json=False,
):
    """Say what is missing for a run before anything is queued, with what cures it; ends with 2 if anything is."""
    from essence.commands.doctor import doctor as look
    from essence.commands.selection import Words

    words = Words(
        experiment, lsp, dataset, pair, span, sections, protocol, seed, only, engine, flavour, pins, runs, site
    )
    with _console() as console:
        _end(look(words, offline, json, console))


@task(help=_help(*MATRIX_WORDS), auto_shortflags=False)
def download(
    _,
    experiment=None,
    lsp=None,
    dataset=None,
    pair=None,
    span=None,
    sections=None,
    protocol=None,
    seed=None,
    engine="local",
    flavour=None,
    pins=None,
    runs=None,
    json=False,
):
    """Bring in everything that chosen cells need from a network; the same as run --only download."""
    from essence.commands.run import run as start
    from essence.commands.selection import Words

    words = Words(
        experiment, lsp, dataset, pair, span, sections, protocol, seed, "download", engine, flavour, pins, runs
    )
    with _console() as console:
        _end(start(words, whole=False, dry_run=False, as_json=json, console=console))


@task(
    auto_shortflags=False,
    help={
        "model": "a folder in Hugging Face format, or owner/name@COMMIT on the hub",
        "benchmark": "benchmark by short name, as in aime25",
        "samples": "completions a problem",
        "decoder": "vllm or transformers (default: as the experiment says)",
        "problems": "take only the first so many problems",
        "max_new_tokens": "token cap of a completion (default: as the experiment says)",
        "max_model_tokens": "prompt and completion together (default: as the experiment says)",
        **_help("experiment", "protocol", "engine", "pins", "runs", "dry_run", "json"),
    },
)
def evaluate(
    _,
    model,
    benchmark,
    samples=None,
    decoder=None,
    problems=None,
    max_new_tokens=None,
    max_model_tokens=None,
    experiment=None,
    protocol="released",
    engine="local",
    pins=None,
    runs=None,
    dry_run=False,
    json=False,
):
    """Check any finished model, as in: invoke evaluate --model FOLDER --benchmark aime25 --samples 64"""
    from essence.commands.evaluate import Asked
    from essence.commands.evaluate import evaluate as start
    from essence.commands.selection import Words

    words = Words(experiment=experiment, protocol=protocol, engine=engine, pins=pins, runs=runs)
    numbers = {"samples": samples, "problems": problems}
    numbers.update(max_new_tokens=max_new_tokens, max_model_tokens=max_model_tokens)
    with _console() as console:
        _end(start(words, Asked(model, benchmark, decoder, numbers), dry_run, json, console))


@task(
    help={**_help(*MATRIX_WORDS), "costs": "instead, computed time, memory and FLOPs at LSP 0.1 to 1.0 for each pair"},
    auto_shortflags=False,
)
def plan(
    _,
    experiment=None,
    lsp=None,
    dataset=None,
    pair=None,
    span=None,
    sections=None,
    protocol=None,
    seed=None,
    engine="local",
    flavour=None,
    pins=None,
    runs=None,
    json=False,
    costs=False,
):
    """Show the matrix: cells, what is done and left, rows, tokens, GPU hours, disk and memory."""
    from essence.commands.costs import print_costs
    from essence.commands.plan import print_plan
    from essence.commands.selection import Words

    words = Words(experiment, lsp, dataset, pair, span, sections, protocol, seed, None, engine, flavour, pins, runs)
    with _console() as console:
        _end((print_costs if costs else print_plan)(words, json, console))


@task(help={**_help("experiment", "runs", "json"), "watch": "draw anew until it is over"}, auto_shortflags=False)
def status(_, experiment="tiny", runs=None, json=False, watch=False):
    """Show how far each cell is; also while it runs, from another terminal."""
    from essence.commands.selection import run_directory
    from essence.commands.status import print_status
    from essence.commands.watch import watch as keep_watching

    with _console() as console:
        if watch:
            _end(keep_watching(run_directory(runs), experiment, console))
        _end(print_status(run_directory(runs), experiment, json, console) if not watch else 0)


@task(help=_help("experiment", "runs", "json"), auto_shortflags=False)
def report(_, experiment="tiny", runs=None, json=False):
    """Write the report of what is there: table, figures, report.md, report.html."""
    from essence.commands.report import print_report
    from essence.commands.selection import run_directory

    with _console() as console:
        _end(print_report(run_directory(runs), experiment, json, console))


@task(
    auto_shortflags=False,
    help={"experiment": "one experiment (default: all in the run directory together)", **_help("runs", "json")},
)
def claims(_, experiment=None, runs=None, json=False):
    """Compute for each claim of the paper: reproduced, not reproduced, undecided or not run."""
    from essence.commands.claims import print_all_claims
    from essence.commands.selection import run_directory

    with _console() as console:
        _end(print_all_claims(run_directory(runs), experiment, json, console))


@task(
    auto_shortflags=False,
    positional=["folder"],
    help={"folder": "run directory, one experiment in it, or an exported archive", "json": CHOICE["json"]},
)
def verify(_, folder, json=False):
    """Recompute every hash of a run directory and say which file differs, as in: invoke verify runs"""
    from pathlib import Path

    from essence.commands.check import print_verification

    with _console() as console:
        _end(print_verification(Path(folder).resolve(), None, json, console))


@task(
    auto_shortflags=False,
    positional=["first", "second"],
    help={
        "first": "run directory, experiment in it, or stage folder; FOLDER:TEXT is the cell with TEXT in its name",
        "second": "what it is compared with",
        "json": CHOICE["json"],
    },
)
def compare(_, first, second, json=False):
    """Say how two runs differ and what most likely made them differ, as in: invoke compare runs ../other/runs"""
    from essence.commands.compare import compare as compare_runs

    with _console() as console:
        _end(compare_runs(first, second, json, console))


@task(
    auto_shortflags=False,
    help={
        **_help("experiment", "runs"),
        "output": "file to write (default: <experiment>.tar.gz here)",
        "weights": "with the trained weights",
    },
)
def export(_, experiment="tiny", output=None, weights=False, runs=None):
    """Write one archive of a run: records, metrics, samples, report, configuration; an RO-Crate."""
    from essence.commands.export import write_archive
    from essence.commands.selection import run_directory

    with _console() as console:
        _end(write_archive(run_directory(runs), experiment, output, weights, console))


@task(
    auto_shortflags=False,
    help={
        **_help("experiment", "runs"),
        "cell": "only cells with this text in their name",
        "output": "folder to write to (default: runs/<experiment>/cards)",
    },
)
def card(_, experiment="tiny", cell=None, output=None, runs=None):
    """Write a model card (README.md for a hub) for each trained cell, from its records."""
    from essence.commands.card import write_cards
    from essence.commands.selection import run_directory

    with _console() as console:
        _end(write_cards(run_directory(runs), experiment, cell, output, console))


@task(
    auto_shortflags=False,
    help={
        **_help("experiment", "runs"),
        "cell": "text that the name of one cell has",
        "repository": "owner/name on the hub; made private when it is not there",
        "checkpoint": "best or last",
        "yes": "really upload",
    },
)
def push(_, experiment, cell, repository, checkpoint="best", runs=None, yes=False):
    """Show what would be uploaded of a trained model, with its card, after verifying it; with --yes upload it."""
    from essence.commands.push import Upload
    from essence.commands.push import push as start
    from essence.commands.selection import run_directory

    with _console() as console:
        _end(start(run_directory(runs), Upload(experiment, cell, repository, checkpoint), yes, console))


@task(
    auto_shortflags=False,
    help={"experiment": "remove this experiment too", "runs": CHOICE["runs"], "yes": "really remove"},
)
def clean(_, experiment=None, runs=None, yes=False):
    """Remove stages that no experiment needs any more, or one experiment."""
    from essence.commands.clean import clean as remove
    from essence.commands.selection import run_directory

    with _console() as console:
        _end(remove(run_directory(runs), experiment, yes, console))


@task(
    auto_shortflags=False,
    positional=["file"],
    help={
        "file": 'JSON lines of {"gold", "completion"}; - is standard input',
        "grader": "math-verify or lighteval-0.10",
    },
)
def grade(_, file, grader="math-verify"):
    """Grade any completions: a verdict a line on standard output, a summary on standard error."""
    from rich.console import Console

    from essence.commands.grade import grade as judge

    with _console():
        _end(judge(file, grader, Console(stderr=True)))


@task
def pin(_: Context) -> None:
    """Look up the commits that are still empty in experiments/pins.toml (needs network)."""
    from essence.commands.pin import pin as fill

    with _console() as console:
        _end(fill(console))


@task(auto_shortflags=False, help={"upgrade": "take newer versions where pyproject.toml allows them"})
def lock(_, upgrade=False):
    """Make the hash-locked versions in locks/ anew from pyproject.toml (needs network)."""
    from essence.commands.lock import lock as write

    with _console() as console:
        _end(write(upgrade, console))


@task(auto_shortflags=False, help={"flavour": "cuda, cpu or paper", "only": "download, train or eval"})
def images(_, flavour="cuda", only=None):
    """Build the images that the stages run in (needs Docker with buildx, and network)."""
    from essence.commands.images import build

    with _console() as console:
        _end(build(flavour, only, console))


@task(
    auto_shortflags=False,
    help={
        "flavour": "cuda, cpu or paper",
        "only": "download, train or eval",
        "archives": "folder of archives, train-cuda.tar and so on, that docker save wrote elsewhere",
    },
)
def sif(_, flavour="cuda", only=None, archives=None):
    """Make a SIF of each Docker image, for Apptainer and Slurm, as in: invoke sif --flavour cpu"""
    from essence.commands.sif import build

    with _console() as console:
        _end(build(flavour, only, archives, console))
