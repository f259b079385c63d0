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
from essence.plan.newest_proof import LOCK, Proof, proofs
from essence.plan.proof_plan import proof_plan
from essence.record.local_sources import LocalSources
from essence.record.proof_records import LinkPoint, ProveDecodingResults, StepPoint
from essence.record.run_directory import RunDirectory, hold

EXPERIMENT_WITH_GPUS, EXPERIMENT_WITHOUT = "bespoke", "tiny"
"""Whose pair, sampling and resources are measured where none is named."""
NAME_DIGITS = 8
KIND = ("ranks", "rows", "tokens", "activations")
PARTS = ("teacher", "forward", "backward", "optimizer", "between ranks", "GPU waits")
"""Columns of the tables of steps."""


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
    gpus, lock = loaded.experiment.resources.gpus, engine.environment("train").get(LOCK)
    digits = sha256_text(canonical_json([place, [gpu.name for gpu in machine.gpus], gpus, lock, cell.pair]))
    loaded = replace(loaded, name=f"proof-{digits[:NAME_DIGITS]}")
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
    for table in _steps(proof):
        console.print(table)
    if proof.decoding:
        console.print(_decoding(proof.decoding.results))
    for line in _lines(proof):
        console.print(line, highlight=False, soft_wrap=True)


def _steps(proof: Proof) -> list[Table]:
    """Steps beside what the fit and the formula say, and where their time goes."""
    results = proof.training.results
    title = f"training steps, {results.student_layers} and {results.teacher_layers} layers"
    whole = _table(title, *KIND, "measured", "by the fit", "by formula", "memory, measured", "reserved", "by the rule")
    parts = _table("where the time of these steps goes", *KIND, *PARTS)
    for point in results.steps:
        kind = [str(point.ranks), str(point.rows), f"{point.tokens:,}", _activations(point, results.recomputed)]
        seconds = [duration_ms(float(each)) for each in (point.seconds, point.fitted_s, point.assumed_s)]
        memory = (point.peak_bytes, point.reserved_bytes, point.rule_bytes)
        whole.add_row(*kind, *seconds, *("-" if size is None else f"{size / GIB:.3g} GiB" for size in memory))
        if told := point.parts:
            each = (told.teacher_s, told.forward_s, told.backward_s, told.optimizer_s)
            rest = (told.communication_s, told.host_gap_s)
            parts.add_row(*kind, *("-" if one is None else duration_ms(float(one)) for one in (*each, *rest)))
    return [whole, parts] if parts.row_count else [whole]


def _activations(point: StepPoint, chosen: bool | None) -> str:
    """Of a step; a proof of an earlier version says it of all."""
    recomputed = chosen if point.recomputed is None else point.recomputed
    return "recomputed" if recomputed else "kept"


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


def _exposed(link: LinkPoint) -> str:
    """How much of what crosses shows in steps; on a CPU it is the ranks that take turns, and nothing is said."""
    if link.exposed_byte_s is None or link.backend == "gloo":
        return ""
    share = float(link.exposed_byte_s) * float(link.all_reduce_bytes_per_s)
    return f"; in steps a byte that crosses costs {share:.0%} of its time in an all-reduce alone"


def _room(decoded: ProveDecodingResults) -> str:
    tokens = decoded.key_value_tokens
    return "" if tokens is None else f", with room for keys and values of {tokens:,} tokens"


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
        over = f" ({', '.join(link.over)})" if link.over else ""
        told = (
            f"{link.processes} ranks over {link.backend}{over}: all-reduce {reduce:.3g}, all-gather {gather:.3g} GB/s"
        )
        lines.append(f"{told}{_exposed(link)}")
    if written := results.checkpoint_bytes_per_s:
        saved = f"a checkpoint is written at {float(written) / 1e9:.3g} GB/s, a model folder at "
        lines.append(f"{saved}{float(results.save_bytes_per_s) / 1e9:.3g}")
    if validated := results.validation:
        seconds = [duration_ms(float(each)) for each in (validated.seconds, validated.fitted_s)]
        lines.append(f"a validation row of {validated.tokens:,} tokens takes {seconds[0]}, by the fit {seconds[1]}")
    if decoding := proof.decoding:
        decoded = decoding.results
        again = f", again in {float(decoded.warm_start_s):.3g} s," if decoded.warm_start_s is not None else ""
        told = f"the decoder starts in {float(decoded.start_s):.3g} s{again} and gives up to "
        lines.append(f"{told}{float(decoded.tokens_per_s):,.0f} tokens/s{_room(decoded)}")
    return [*lines, proof.sentence() if proof.decoding else "the decoding side is not proved"]
