"""Run one stage: `python -m essence.stages train --spec runs/stages/train-3fa9.../spec.json`.

This is all that ever runs inside an environment. Exit codes: 0 done (or was done before), 1 a bug (traceback in the
log), 2 a failure that the user can cure (one sentence), 75 stopped on request with everything kept: start it again.
"""

from essence.signals import leave_on_signals

if __name__ == "__main__":
    leave_on_signals()

import argparse
import contextlib
import functools
import importlib
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import get_args

from essence.errors import ExitCode, InputError, KitError, RecordError, disk_error
from essence.files import GIB, sha256_file, write_json
from essence.progress import (
    Progress,
    StageContext,
    Stopped,
    StopRequest,
    die_with_launcher,
    peak_memory_gib,
    stop_when_alone,
)
from essence.record.attempts import AttemptJournal, now
from essence.record.facts import hardware, software
from essence.record.input_checks import check_untouched, own_names
from essence.record.live_records import read_whole_spec, stage_settings
from essence.record.manifest import Code, Cost, Identity, Image, OutputFile, StageInput
from essence.record.outcomes import StageOutcome
from essence.record.run_directory import StageFolder, hold
from essence.record.source_key import source_sha256
from essence.record.stage_records import MANIFESTS, read_manifest
from essence.settings import Resources, Spec, StageName, TrainSettings
from essence.stages.compilations import compile_apart, remove_earlier
from essence.stages.launch import help_out, helps, run_ranks, starts_ranks
from essence.stages.watcher import ORPHAN_WAIT_S, Watcher


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m essence.stages", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stage", choices=get_args(StageName))
    parser.add_argument("--spec", required=True, type=Path, help="the stage's spec.json")
    arguments = parser.parse_args()
    die_with_launcher(signal.SIGTERM)
    stop = StopRequest()
    stop.install()
    stop_when_alone()
    watcher = Watcher(stop, arguments.stage)
    watcher.watch()
    try:
        return _run(arguments.stage, arguments.spec.resolve(), stop, watcher)
    except Stopped as stopped:
        print(f"{arguments.spec.parent.name}: stopped by {stopped}; start it again to go on")
        return ExitCode.STOPPED
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.CURABLE


def _run(stage: StageName, spec_file: Path, stop: StopRequest, watcher: Watcher) -> int:
    folder = StageFolder(spec_file.parent)
    spec = read_whole_spec(spec_file)
    if spec.stage != stage:
        raise RecordError(f"{spec_file}: is the spec of a {spec.stage} stage, not of {stage}")
    if spec.source_sha256 and spec.source_sha256 != source_sha256(stage):
        raise RecordError(
            f"{spec_file}: was planned with another source of the kit than this environment holds",
            "after a change, build the images again (make images) and run the command again",
        )
    compile_apart(stage, folder)
    if helps(spec, os.environ):
        return help_out(spec, spec_file, stop)
    command = f"python -m essence.stages {stage}"
    with hold(folder.path, f"stage {folder.path.name}", command, ORPHAN_WAIT_S, stop.check):
        if folder.done:
            print(f"{folder.path.name}: done before")
            return 0
        remove_earlier(folder, spec.resources.nodes)
        return _attempt(folder, spec, stop, watcher)


def _attempt(folder: StageFolder, spec: Spec, stop: StopRequest, watcher: Watcher) -> int:
    """One attempt, written down however it ends."""
    folder.failure.unlink(missing_ok=True)
    journal = AttemptJournal(folder.attempts, folder.progress)
    try:
        outcome = _work(folder, spec, stop)
        watcher.rest()
        _finish(folder, spec, outcome, journal)
    except Stopped:
        journal.end("stopped")
        raise
    except BaseException as error:
        refused = disk_error(error, folder.path)
        # A full disk may not even take the reason; then the log, or the exit code, is all there is.
        with contextlib.suppress(OSError):
            _write_failure(folder, journal, refused or error)
        if refused:
            raise refused from error
        raise
    journal.end("finished")
    return 0


def _write_failure(folder: StageFolder, journal: AttemptJournal, error: BaseException) -> None:
    journal.end("failed")
    curable = isinstance(error, KitError)
    text = str(error) if curable else "".join(traceback.format_exception(error)[-3:]).strip()
    write_json(folder.failure, {"kind": type(error).__name__, "curable": curable, "message": text, "time": now()})


def _work(folder: StageFolder, spec: Spec, stop: StopRequest) -> StageOutcome:
    """Run the stage's module on what is in `partial/`."""
    settings = stage_settings(folder.spec, spec)
    inputs = {name: StageFolder((folder.path / place).resolve()) for name, place in spec.inputs.items()}
    for name, place in inputs.items():
        if not place.done:
            raise InputError(f"{folder.path.name}: its input '{name}' ({place.path}) is not finished")
    check_untouched(inputs.values())
    folder.open_partial()
    context = StageContext(
        partial=folder.partial,
        inputs={name: place.output for name, place in inputs.items()},
        resources=spec.resources,
        progress=Progress(folder.progress, watch_gpus=spec.resources.gpus > 0),
        stop=stop,
        graders=spec.graders,
        engine=str(spec.image.get("engine")),
    )
    try:
        if isinstance(settings, TrainSettings) and starts_ranks(spec, os.environ):
            return run_ranks(settings, context)  # without the imports that only ranks need
        module = importlib.import_module(f"essence.stages.{spec.stage}")
        outcome = module.run(settings, context)
    except KitError as error:
        named = error.reworded(functools.partial(own_names, folders=list(inputs.values())))
        raise named.reworded(functools.partial(own_names, folders=[folder], partial=True)) from error
    if not isinstance(outcome, StageOutcome):
        raise TypeError(f"{spec.stage}: run() returned {type(outcome).__name__}, not StageOutcome")
    return outcome.with_gpu_use(context.progress)


def _finish(folder: StageFolder, spec: Spec, outcome: StageOutcome, journal: AttemptJournal) -> None:
    """Name the output finally and write the manifest, last."""
    folder.commit()
    attempts = journal.attempts()
    manifest = MANIFESTS[spec.stage].of(
        identity=Identity(
            stage=spec.stage,
            key=spec.key,
            title=spec.title,
            status="finished",
            started=attempts[0].started,
            finished=now(),
            attempts=attempts,
        ),
        code=Code.model_validate({**spec.code, "source_sha256": spec.source_sha256, "modules": spec.modules}),
        image=Image.model_validate(spec.image),
        software=software(),
        inputs={"stages": _stage_inputs(folder, spec), "data": outcome.data, "accepted": spec.accepted},
        settings={"resolved": spec.settings, "executed": outcome.executed},
        hardware=hardware(spec.resources.threads),
        seeds=outcome.seeds,
        results=outcome.results,
        cost=_cost(outcome, sum(attempt.seconds for attempt in attempts), spec.resources),
        outputs=list_outputs(folder.output),
        seal="",
    )
    write_json(folder.manifest, manifest.sealed())
    folder.progress.unlink(missing_ok=True)
    shutil.rmtree(folder.scratch, ignore_errors=True)


def list_outputs(output: Path) -> list[OutputFile]:
    """Every file below a folder with its size and sha256, sorted by path."""
    files = sorted(p for p in output.rglob("*") if p.is_file())
    return [
        OutputFile(path=p.relative_to(output).as_posix(), bytes=p.stat().st_size, sha256=sha256_file(p)) for p in files
    ]


def _stage_inputs(folder: StageFolder, spec: Spec) -> dict[str, StageInput]:
    inputs = {}
    for name, place in spec.inputs.items():
        manifest = (folder.path / place).resolve() / "manifest.json"
        identity = read_manifest(manifest).identity
        inputs[name] = StageInput(stage=identity.stage, key=identity.key, manifest_sha256=sha256_file(manifest))
    return inputs


def _cost(outcome: StageOutcome, wall_s: float, resources: Resources) -> Cost:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    torch = sys.modules.get("torch")
    # A process that has allocated nothing knows nothing of the GPUs: others may have used them for it.
    gpu_peak = torch.cuda.max_memory_allocated() / GIB or None if torch and torch.cuda.is_available() else None
    told = outcome.cost
    return Cost(
        wall_s=round(wall_s, 3),
        cpu_s=round(usage.ru_utime + usage.ru_stime + children.ru_utime + children.ru_stime, 3),
        gpu_hours=round(wall_s * resources.gpus * resources.nodes / 3600, 6),
        peak_memory_gib=round(peak_memory_gib() if told.peak_memory_gib is None else told.peak_memory_gib, 4),
        peak_gpu_memory_gib=gpu_peak if told.peak_gpu_memory_gib is None else told.peak_gpu_memory_gib,
        energy_j=told.energy_j,
        tokens=told.tokens,
        flops=told.flops,
        flops_formula=told.flops_formula,
        more=told.more,
    )


if __name__ == "__main__":
    sys.exit(main())
