"""`invoke prove`: measure what this machine takes for a training and an evaluation, and check that it is right.

The stages run through the engine as any stage does, without a download, in `prove/` of the run directory. Their records
are the proof: `invoke plan`, `invoke doctor` and the times that jobs ask for take its coefficients.
"""

import contextlib
import datetime
import json
import os
import socket
import sys
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence.commands.clean import clean
from essence.commands.options import check_word, run_directory
from essence.commands.queue_jobs import print_jobs
from essence.commands.run import exit_code, print_dry_run, run_held, say_failures
from essence.commands.terminal import teller
from essence.engines import ENGINES, FLAVOURS, make_engine
from essence.engines.choice import ENGINE_VARIABLE, choose, site_of
from essence.engines.machine import this_machine
from essence.engines.readiness import make_ready
from essence.engines.selected_run import Options, Run, flavour_of
from essence.engines.slurm.slurm_engine import SlurmEngine
from essence.errors import ExitCode, KitError
from essence.files import GIB, canonical_json, sha256_text
from essence.paths import typed_path
from essence.plan.experiment import Experiment, load
from essence.plan.experiment import choose as choose_cells
from essence.plan.gpu_count import with_gpus
from essence.plan.newest_proof import Proof, proofs
from essence.plan.proof_plan import proof_plan
from essence.record.local_sources import LocalSources
from essence.record.proof_records import ProveDecodingResults
from essence.record.run_directory import RunDirectory, hold

EXPERIMENT_WITH_GPUS, EXPERIMENT_WITHOUT = "bespoke", "tiny"
"""Whose pair, sampling and resources are measured where none is named."""
NAME_DIGITS = 8


def prove(words: Options, dry_run: bool, as_json: bool, console: Console) -> int:
    """Run both stages and print what they found; 1 where a check failed, 2 for what can be cured before."""
    selection = select_proof(words, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    if dry_run:
        queue = selection.engine.queue
        return print_jobs(selection, queue, as_json) if queue else print_dry_run(selection, as_json, console)
    make_ready(selection, teller(console))
    command = words.typed(whole=False, command="prove")
    folder = selection.run_directory.experiment(selection.name)
    with hold(folder, f"run directory {folder}", command):
        summary = run_held(selection, selection.plan, console)
        if summary.complete:
            # Earlier proofs of this machine, each with a model: the plan names the newest alone.
            # Where somebody works there the next proof removes them: what this one found is shown all the same.
            with contextlib.suppress(KitError):
                clean(selection.run_directory, None, True, Console(quiet=True), earlier=True)
    if summary.interrupted:
        console.print(f"Stopped. A proof is of one moment, and begins anew: {command}", soft_wrap=True, highlight=False)
    proof = _proof(selection)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(proof), indent=2) + "\n")
    else:
        say_failures(selection, summary, command, console)
        _say(proof, console)
    return exit_code(selection, summary) or (ExitCode.FAILED if proof and proof.failed else ExitCode.DONE)


def select_proof(words: Options, taken: str) -> Run:
    """The stages that prove a machine; ExperimentError for words that cannot be meant.

    taken: the moment, UTC; the same stages at another moment are other ones.
    """
    check_word("--engine", "engine", words.engine, ENGINES)
    check_word("--flavour", "flavour", words.flavour, FLAVOURS)
    runs = run_directory(words.runs)
    machine, engine_name = this_machine(runs.root), words.engine or os.environ.get(ENGINE_VARIABLE)
    queued = engine_name == SlurmEngine.name
    default = EXPERIMENT_WITH_GPUS if machine.gpus or queued else EXPERIMENT_WITHOUT
    loaded = load(words.experiment or default, typed_path("--pins", words.pins) if words.pins else None)
    axes = words.axes()
    cell = (choose_cells(loaded, axes)[0] if axes else loaded.cells())[0]
    if machine.gpus and not queued:
        loaded = _on_fewer_gpus(loaded, len(machine.gpus))
    chosen = choose(words.engine, loaded.experiment.resources.gpus > 0, ENGINES)
    engine = make_engine(chosen.name, flavour_of(words, loaded), site_of(words.site, chosen.name), words.of_the_site())
    place = f"{engine.name} {site_of(words.site, chosen.name)}" if queued else socket.gethostname()
    digits = sha256_text(canonical_json([place, [gpu.name for gpu in machine.gpus], cell.pair]))[:NAME_DIGITS]
    loaded = replace(loaded, name=f"proof-{digits}")
    plan = proof_plan(loaded, cell, engine.environment, runs, taken)
    local, wanted = LocalSources(runs.proofs), list(plan.stages.values())
    return Run(words, engine, runs.proofs, loaded, plan, wanted, local, chosen.reason, evaluated=True)


def _on_fewer_gpus(loaded: Experiment, gpus: int) -> Experiment:
    """As `--gpus` has it where this machine has fewer than the file says: a training that can run here."""
    return with_gpus(loaded, gpus) if gpus < loaded.experiment.resources.gpus else loaded


def _proof(selection: Run) -> Proof | None:
    """What this command has left; None where its first stage did not end."""
    keys = {stage.key for stage in selection.wanted}
    found = (proof for proof in proofs(RunDirectory(selection.run_directory.root.parent)))
    return next((proof for proof in found if proof.training.identity.key in keys), None)


def _as_json(proof: Proof | None) -> dict[str, object]:
    if proof is None:
        return {"proved": False, "failed": [], "speeds": None, "training": None, "decoding": None}
    decoding = proof.decoding.results.model_dump(mode="json") if proof.decoding else None
    return {
        "proved": proof.decoding is not None and not proof.failed,
        "failed": proof.failed,
        "device": proof.device,
        "date": proof.date,
        "speeds": proof.speeds.as_json(),
        "training": proof.training.results.model_dump(mode="json"),
        "decoding": decoding,
    }


def _say(proof: Proof | None, console: Console) -> None:
    """A line for each check, then what was measured beside what the fit and the formula say."""
    if proof is None:
        return
    results = proof.training.results
    checks = [*results.checks, *(proof.decoding.results.checks if proof.decoding else [])]
    for check in checks:
        sign = Text("✓", "green") if check.passed else Text("✗", "bold red")
        console.print(Text.assemble(sign, f" {check.name}: {check.sentence}"), soft_wrap=True)
    console.print(_steps(proof))
    if proof.decoding:
        console.print(_decoding(proof.decoding.results))
    for line in _lines(proof):
        console.print(line, highlight=False, soft_wrap=True)


def _steps(proof: Proof) -> Table:
    results = proof.training.results
    title = f"training steps, {results.student_layers} and {results.teacher_layers} layers, one process"
    table = _table(title, "rows", "tokens", "measured", "by the fit", "by formula", "memory, measured", "by the rule")
    for point in results.steps:
        seconds = [duration_ms(float(each)) for each in (point.seconds, point.fitted_s, point.assumed_s)]
        sizes = ["-" if size is None else f"{size / GIB:.3g} GiB" for size in (point.peak_bytes, point.rule_bytes)]
        table.add_row(str(point.rows), f"{point.tokens:,}", *seconds, *sizes)
    return table


def _decoding(results: ProveDecodingResults) -> Table:
    table = _table(f"decoding steps ({results.decoder})", "sequences", "context", "measured", "by the fit")
    for point in results.points:
        seconds = [duration_ms(float(each)) for each in (point.seconds, point.fitted_s)]
        table.add_row(str(point.sequences), f"{point.context:,}", *seconds)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def duration_ms(seconds: float) -> str:
    """Three digits of milliseconds, as steps are read."""
    return f"{1e3 * seconds:.3g} ms"


def _lines(proof: Proof) -> list[str]:
    results = proof.training.results
    best = max((float(point.flops_per_s) for point in results.products), default=0.0)
    rates = (results.memory_bytes_per_s, results.disk_write_bytes_per_s, results.disk_read_bytes_per_s)
    memory, write, read = (f"{float(rate) / 1e9:.3g} GB/s" for rate in rates)
    lines = [
        f"products up to {best / 1e12:.3g} TFLOP/s; a copy on the device {memory}; the disk writes {write} and reads "
        f"{read}; a kernel starts in {1e6 * float(results.launch_s):.3g} µs; heads and loss "
        f"{1e6 * float(results.loss_s_per_token):.3g} µs a token"
    ]
    if link := results.link:
        reduce, gather = (float(rate) / 1e9 for rate in (link.all_reduce_bytes_per_s, link.all_gather_bytes_per_s))
        lines.append(
            f"{link.processes} ranks over {link.backend}: all-reduce {reduce:.3g}, all-gather {gather:.3g} GB/s"
        )
    if decoding := proof.decoding:
        told = decoding.results
        most = f"{float(told.tokens_per_s):,.0f} tokens/s"
        lines.append(f"the decoder starts in {float(told.start_s):.3g} s and gives up to {most}")
    return [*lines, proof.sentence() if proof.decoding else "the decoding side is not proved"]
