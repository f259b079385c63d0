"""The commands: truncate, train, evaluate, record, compare. `invoke --help TASK` explains one.

Thin on purpose: a task turns its options into a call of `essence.commands`, and returns its exit code. That is imported
inside the tasks, so that `invoke --list` answers at once. The groups below are no collections of invoke's, which would
put their name before that of each task.
"""

import sys
from dataclasses import replace
from pathlib import Path

from invoke import Collection, Context

from essence.commands import terminal
from essence.commands.command_line import check_words, command

if terminal.is_program():
    terminal.prepare()

# Cells of an experiment: what is planned, what is missing, what runs.


@command()
def run(
    _: Context, experiment: str | None = None, lsp: float | None = None, dataset: str | None = None,
    pair: str | None = None, span: str | None = None, sections: str | None = None, protocol: str | None = None,
    seed: int | None = None, only: str | None = None, engine: str | None = None, site: str | None = None,
    account: str | None = None, partition: str | None = None, sif_folder: str | None = None,
    flavour: str | None = None, gpus: int | None = None,
    pins: str | None = None, runs: str | None = None, accept_earlier: bool = False, dry_run: bool = False,
    json: bool = False
) -> int:  # fmt: skip
    """Run chosen cells of an experiment, as in: invoke run --lsp 0.5"""
    from essence.commands.options import to_plan
    from essence.commands.run import run as start

    return start(to_plan(locals()), whole=False, dry_run=dry_run, as_json=json, console=terminal.console())


@command()
def reproduce(
    _: Context, name: str, only: str | None = None, engine: str | None = None, site: str | None = None,
    account: str | None = None, partition: str | None = None, sif_folder: str | None = None,
    flavour: str | None = None, gpus: int | None = None,
    pins: str | None = None, runs: str | None = None, accept_earlier: bool = False, dry_run: bool = False,
    json: bool = False
) -> int:  # fmt: skip
    """Run the whole matrix of an experiment with its baselines and write the report."""
    from essence.commands.options import to_plan
    from essence.commands.run import run as start

    words = to_plan({**locals(), "experiment": name})
    return start(words, whole=True, dry_run=dry_run, as_json=json, console=terminal.console())


@command()
def doctor(
    _: Context, experiment: str | None = None, lsp: float | None = None, dataset: str | None = None,
    pair: str | None = None, span: str | None = None, sections: str | None = None, protocol: str | None = None,
    seed: int | None = None, only: str | None = None, engine: str | None = None, site: str | None = None,
    account: str | None = None, partition: str | None = None, sif_folder: str | None = None,
    flavour: str | None = None, gpus: int | None = None,
    pins: str | None = None, runs: str | None = None, offline: bool = False, json: bool = False
) -> int:  # fmt: skip
    """Check this machine for a run; exit code 2 if something is missing."""
    from essence.commands.doctor import doctor as look
    from essence.commands.options import to_plan

    return look(to_plan(locals()), offline, json, terminal.console())


@command()
def download(
    _: Context, experiment: str | None = None, lsp: float | None = None, dataset: str | None = None,
    pair: str | None = None, span: str | None = None, sections: str | None = None, protocol: str | None = None,
    seed: int | None = None, engine: str | None = None, flavour: str | None = None, pins: str | None = None,
    runs: str | None = None, json: bool = False
) -> int:  # fmt: skip
    """Fetch everything that chosen cells need from a network; the same as run --only download."""
    from essence.commands.options import to_plan
    from essence.commands.run import run as start

    words = to_plan({**locals(), "only": "download"})
    return start(words, whole=False, dry_run=False, as_json=json, console=terminal.console())


@command()
def plan(
    _: Context, experiment: str | None = None, lsp: float | None = None, dataset: str | None = None,
    pair: str | None = None, span: str | None = None, sections: str | None = None, protocol: str | None = None,
    seed: int | None = None, engine: str | None = None, flavour: str | None = None, gpus: int | None = None,
    pins: str | None = None, runs: str | None = None, accept_earlier: bool = False, json: bool = False,
    costs: bool = False, decide: str | None = None, training_sd: float | None = None,
    accuracy: float | None = None, assurance: float = 0.8
) -> int:  # fmt: skip
    """Show the matrix: cells, what is done and left, rows, tokens, GPU hours, disk and memory."""
    from essence.commands.cost_tables import print_costs
    from essence.commands.decide import print_decision, question
    from essence.commands.options import to_plan
    from essence.commands.plan import print_plan

    words = to_plan(locals())
    if decide:
        asked = question(decide, training_sd, accuracy, assurance)
        return print_decision(words, asked, json, terminal.console())
    return (print_costs if costs else print_plan)(words, json, terminal.console())


@command(experiment="whose sampling, grader and prompt are used (default: bespoke)")
def evaluate(
    _: Context, model: str, benchmark: str, experiment: str | None = None, samples: int | None = None,
    decoder: str | None = None, problems: int | None = None, max_new_tokens: int | None = None,
    max_model_tokens: int | None = None, protocol: str = "released", engine: str | None = None, pins: str | None = None,
    runs: str | None = None, dry_run: bool = False, json: bool = False
) -> int:  # fmt: skip
    """Evaluate any finished model, as in: invoke evaluate --model FOLDER --benchmark aime25 --samples 64"""
    from essence.commands.evaluate import ModelOptions
    from essence.commands.evaluate import evaluate as start
    from essence.engines.selected_run import Options

    words = Options(experiment, protocol=protocol, engine=engine, pins=pins, runs=runs)
    numbers = {"samples": samples, "problems": problems}
    numbers.update(max_new_tokens=max_new_tokens, max_model_tokens=max_model_tokens)
    return start(words, ModelOptions(model, benchmark, decoder, numbers), dry_run, json, terminal.console())


@command(
    experiment="whose pair, sampling and resources are measured (default: bespoke with GPUs, else tiny)",
    pair="whose cell is measured (default: the first)",
)
def prove(
    _: Context, experiment: str | None = None, pair: str | None = None, engine: str | None = None,
    site: str | None = None, account: str | None = None, partition: str | None = None,
    sif_folder: str | None = None, flavour: str | None = None, pins: str | None = None, runs: str | None = None,
    dry_run: bool = False, json: bool = False
) -> int:  # fmt: skip
    """Measure this machine in ten minutes and check that it computes right; plan and doctor then use what was found."""
    from essence.commands.prove import prove as start
    from essence.engines.selected_run import Options

    words = Options(experiment, pair=pair, engine=engine, flavour=flavour, pins=pins, runs=runs, site=site)
    words = replace(words, account=account, partition=partition, sif_folder=sif_folder)
    return start(words, dry_run, json, terminal.console())


# What a run left: how far it is, its report, its records.


@command()
def status(
    _: Context, experiment: str | None = None, runs: str | None = None, json: bool = False, watch: bool = False
) -> int:  # fmt: skip
    """Show the progress of each cell, also from another terminal during the run."""
    from essence.commands.options import recorded
    from essence.commands.status import print_status
    from essence.commands.watch import watch as keep_watching

    run_directory, name = recorded(runs, experiment)
    if watch:
        return keep_watching(run_directory, name, terminal.console())
    return print_status(run_directory, name, json, terminal.console())


@command()
def report(
    _: Context, experiment: str | None = None, runs: str | None = None, json: bool = False, csv: bool = False,
    parquet: bool = False
) -> int:  # fmt: skip
    """Write the report of all finished cells: table, figures, report.md, report.html."""
    from essence.commands.options import recorded
    from essence.commands.report import print_report

    formats = [name for name, wanted in (("csv", csv), ("parquet", parquet)) if wanted]
    return print_report(*recorded(runs, experiment), formats, json, terminal.console())


@command(experiment="one experiment (default: all in the run directory together)")
def claims(_: Context, experiment: str | None = None, runs: str | None = None, json: bool = False) -> int:
    """Compute for each claim of the paper: reproduced, not reproduced, undecided or not run."""
    from essence.commands.claims import print_all_claims
    from essence.commands.options import run_directory

    return print_all_claims(run_directory(runs), experiment, json, terminal.console())


@command()
def traces(
    _: Context, experiment: str | None = None, rows: int = 1000, runs: str | None = None, json: bool = False
) -> int:
    """Count in tokenized rows, without a judge: first appearance of answers, self-reflection, differing answers."""
    from essence.commands.options import recorded
    from essence.commands.traces import count_traces

    return count_traces(*recorded(runs, experiment), rows, json, terminal.console())


@command()
def verify(_: Context, folder: str, json: bool = False) -> int:
    """Recompute every hash of a run directory and name the file that differs, as in: invoke verify runs"""
    from essence.commands.verify import print_verification

    return print_verification(Path(folder).resolve(), None, json, terminal.console())


@command()
def compare(_: Context, first: str, second: str, json: bool = False) -> int:
    """Show how two runs differ and the most likely cause, as in: invoke compare runs ../other/runs"""
    from essence.commands.compare import compare as compare_runs

    return compare_runs(first, second, json, terminal.console())


@command(format="text or latex", output="file to write (default: print it)", venue="acl, neurips or ae")
def checklist(
    _: Context, venue: str, experiment: str | None = None, format: str = "text", output: str | None = None,
    runs: str | None = None, json: bool = False
) -> int:  # fmt: skip
    """Fill a venue's checklist or artefact appendix from the records, as in: invoke checklist --venue acl"""
    from essence.commands.checklist import fill_checklist
    from essence.commands.options import recorded

    return fill_checklist(*recorded(runs, experiment), venue, format, output, json, terminal.console())


@command(output="file to write (default: <experiment>.tar.gz here)")
def export(
    _: Context, experiment: str | None = None, output: str | None = None, weights: bool = False,
    runs: str | None = None
) -> int:  # fmt: skip
    """Write one archive of a run: records, metrics, samples, report, configuration; an RO-Crate."""
    from essence.commands.export import write_archive
    from essence.commands.options import recorded

    return write_archive(*recorded(runs, experiment), output, weights, terminal.console())


@command(output="folder to write to (default: runs/<experiment>/cards)")
def card(
    _: Context, experiment: str | None = None, cell: str | None = None, output: str | None = None,
    runs: str | None = None
) -> int:  # fmt: skip
    """Write a model card (README.md for a hub) for each trained cell, from its records."""
    from essence.commands.card import write_cards
    from essence.commands.options import recorded

    return write_cards(*recorded(runs, experiment), cell, output, terminal.console())


@command(cell="text that the name of one cell has", experiment="name of an experiment that was run")
def push(
    _: Context, experiment: str, cell: str, repository: str, checkpoint: str = "best", runs: str | None = None,
    yes: bool = False
) -> int:  # fmt: skip
    """Show what would be uploaded of a trained model, with its card, after verifying it; with --yes upload it."""
    from essence.commands.options import run_directory
    from essence.commands.push import Upload
    from essence.commands.push import push as start

    return start(run_directory(runs), Upload(experiment, cell, repository, checkpoint), yes, terminal.console())


@command(experiment="remove this experiment too")
def clean(
    _: Context, experiment: str | None = None, runs: str | None = None, earlier: bool = False, yes: bool = False
) -> int:
    """Remove stages that no experiment needs, or one experiment."""
    from essence.commands.clean import clean as remove
    from essence.commands.options import run_directory

    return remove(run_directory(runs), experiment, yes, terminal.console(), earlier)


@command()
def grade(_: Context, file: str, grader: str = "math-verify") -> int:
    """Grade any completions: one verdict per line on standard output, a summary on standard error."""
    from rich.console import Console

    from essence.commands.grade_file import grade as judge

    return judge(file, grader, Console(stderr=True, markup=False))  # standard output is for the verdicts


# The environment of the stages: pins, locks, images.


@command()
def pin(_: Context) -> int:
    """Look up the commits that are still empty in experiments/pins.toml (needs network)."""
    from essence.commands.pin import pin as fill

    return fill(terminal.console())


@command()
def lock(_: Context, upgrade: bool = False) -> int:
    """Resolve pyproject.toml to the hash-locked versions in locks/ (needs network)."""
    from essence.commands.lock import lock as write

    return write(upgrade, terminal.console())


@command(only="download, train or eval")
def images(_: Context, flavour: str = "cuda", only: str | None = None, push: str | None = None) -> int:
    """Build the images that the stages run in (needs Docker with buildx, and network); with --push, publish them."""
    from essence.commands.images import build

    return build(flavour, only, terminal.console(), push)


@command(only="download, train or eval")
def sif(
    _: Context, flavour: str | None = None, only: str | None = None, archives: str | None = None,
    from_: str | None = None
) -> int:  # fmt: skip
    """Build a SIF from each Docker image, for Apptainer and Slurm, as in: invoke sif --flavour cpu"""
    from essence.commands.sif import build

    return build(flavour, only, archives, terminal.console(), from_)


namespace = Collection(
    *(run, reproduce, doctor, download, plan, evaluate, prove),
    *(status, report, claims, checklist, traces, verify, compare, export, card, push, clean, grade),
    *(pin, lock, images, sif),
)
if terminal.is_program():
    check_words(namespace, sys.argv[1:])
