"""What a run needs and what is here: the list that `invoke doctor` prints, and that every run goes through first."""

import http.client
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from essence.engines.capacity import Capacity
from essence.engines.choice import DOCKER, queueing
from essence.engines.engine import fetches
from essence.engines.image_builds import to_be_made
from essence.engines.machine import Machine, refusal, this_machine
from essence.engines.recipes import COMPATIBLE_DRIVER, DATA_CENTRE, cuda_of, least_driver, recipe
from essence.engines.requirement import Requirement, asked, unmet
from essence.engines.selected_run import Options, Run
from essence.errors import CURES, DISK, MachineError
from essence.models.folder import check_folder
from essence.plan.catalogue import missing
from essence.plan.estimate import download_gib, estimate
from essence.plan.expected_times import expected_seconds
from essence.plan.fit import Fit, Room, fits_of, planned_room
from essence.plan.newest_proof import LOCK, newest_proof
from essence.plan.schema import ResourcesSection
from essence.plan.stage_plan import PlannedStage
from essence.plan.stored_teacher import stored_teachers
from essence.record.verification import verify
from essence.settings import DownloadSettings

HUB = "https://huggingface.co"
PROBE_S = 10.0
LEAST_GIB = 1.0
GPU_MEMORY_TOLERANCE = 0.95
"""A GPU that is sold as 80 GiB tells a little less."""


def require(selection: Run) -> None:
    """MachineError naming the first thing that is missing for the stages that are left, before anything is started."""
    unmet = [check for check in checks(selection, thorough=False) if not check.met]
    if unmet and selection.proves:
        raise _all_of_a_proof(selection, unmet)
    if unmet:
        first, more = unmet[0], len(unmet) - 1
        rest = f" (and {more} more{'' if selection.evaluated else f': {doctor_command(selection)}'})" if more else ""
        raise MachineError(_named(selection, first), f"{first.cure}{rest}")


def _all_of_a_proof(selection: Run, lacking: list[Requirement]) -> MachineError:
    """All that is missing at once, since no command lists what a proof needs."""
    first, *others = lacking
    told = [f"{check.problem()}: {check.cure}" for check in others]
    return MachineError(_named(selection, first), "; also: ".join([first.cure, *told]))


def _named(selection: Run, check: Requirement) -> str:
    name = selection.name if check.wanted else f"{selection.name}:"
    return f"{name} {check.problem()}"


def make_ready(selection: Run, say: Callable[[str], None]) -> None:
    """MachineError for what is missing; images that are lacking are made, once everything else is there.

    Some things can only be tried in an image, as whether a container may write: so all is asked again after that.
    """
    require(selection)
    left = selection.left()
    if left and (lacking := selection.engine.lacking(left)):
        selection.engine.make(lacking, say)
        require(selection)


def checks(selection: Run, thorough: bool, offline: bool = False) -> Iterator[Requirement]:
    """Every thing that the stages that are left need; `thorough` hashes what was downloaded, too.

    `offline`: what is still to be fetched is missing, whether the hub answers or not.
    """
    left = selection.left()
    if left:
        machine = this_machine(selection.run_directory.root)
        yield _writable(selection)
        yield from _pins(left)
        yield from _models(selection)
        # Of a cluster's nodes Slurm is asked.
        if not selection.engine.queue:
            yield from _machines(selection.loaded.experiment.resources, left)
            yield from _gpus(selection, left, machine)
            yield from _memory(selection, left, machine)
        yield from _fits(selection, left, machine)
        yield _disk(selection, machine)
        expected = expected_seconds(selection.plan, selection.run_directory) if selection.engine.queue else {}
        yield from selection.engine.requirements(left, selection.run_directory, expected)
        if offline:
            yield from _images_offline(selection, left)
    if thorough:
        yield _proof(selection)
    # Compute nodes have no network.
    yield from _downloads(selection, thorough, offline or selection.engine.queue is not None)


def _proof(selection: Run) -> Requirement:
    """Whether this machine was measured, and found to be right."""
    gpus = selection.loaded.experiment.resources.gpus
    proof = newest_proof(selection.run_directory, gpus)
    if proof is None:
        return Requirement("proof", "not proved: estimates by formula; invoke prove measures this machine")
    cure = "cure it and take another proof: invoke prove" if proof.failed else ""
    told = proof.sentence(gpus, selection.engine.environment("train").get(LOCK))
    return Requirement("proof", told, cure=cure)


def _images_offline(selection: Run, left: list[PlannedStage]) -> Iterator[Requirement]:
    """Images that a run would make, which takes a network."""
    engine = selection.engine
    if engine.queue or not asked("", lambda: engine.check([])).met:
        return
    if lacking := engine.lacking(left):
        cure = f"on a machine with network: make images sif FLAVOUR={selection.flavour}, and bring them here"
        yield Requirement("images offline", to_be_made(lacking), "images that are here", cure)


def doctor_command(selection: Run) -> str:
    """The command that prints the whole list."""
    return selection.words.typed(whole=False, command="doctor")


def _writable(selection: Run) -> Requirement:
    root = selection.run_directory.root
    if refused := refusal(root):
        return Requirement("run directory", f"{root}: {DISK[refused]}", cure=CURES[refused])
    return Requirement("run directory", str(root))


def _pins(left: list[PlannedStage]) -> Iterator[Requirement]:
    sources = [stage.settings.source for stage in left if isinstance(stage.settings, DownloadSettings)]
    lacking = [error for source in sources if (error := missing(source))]
    for error in lacking:
        yield unmet("pin", error)
    if not lacking:
        yield Requirement("pins", f"{len(sources)} sources to bring in, each with its commit or a path that is there")


def _models(selection: Run) -> Iterator[Requirement]:
    """The models that lie on this machine, downloaded or to be copied: read without being loaded."""
    for stage in selection.wanted:
        if not isinstance(stage.settings, DownloadSettings) or stage.settings.source.kind != "model":
            continue
        source, folder = stage.settings.source, selection.run_directory.stage(stage.id)
        path = folder.output / "model" if folder.done else Path(source.path or "")
        if folder.done or (source.path and path.exists()):
            yield asked(f"model {source.name}", partial(check_folder, path), f"{path}: whole, as far as can be read")


def _gpus(selection: Run, left: list[PlannedStage], machine: Machine) -> Iterator[Requirement]:
    resources = selection.loaded.experiment.resources
    if not any(stage.resources.gpus for stage in left):
        yield Requirement("GPUs", "none is asked for")
        return
    wanted = f"{resources.gpus} GPUs of {resources.gpu_memory_gib:.0f} GiB"
    enough = machine.gpu_memory_gib >= resources.gpu_memory_gib * GPU_MEMORY_TOLERANCE
    fits = len(machine.gpus) >= resources.gpus and enough
    yield Requirement("GPUs", machine.describe_gpus(), wanted, "" if fits else _smaller(selection))
    if machine.gpus and selection.contained:
        yield _driver(selection, machine)


def _machines(resources: ResourcesSection, left: list[PlannedStage]) -> Iterator[Requirement]:
    """What a machine alone cannot do: be several."""
    if any(stage.resources.nodes > 1 for stage in left):
        yield Requirement(
            "machines", "one", f"{resources.nodes} machines", "set nodes = 1, or queue it: --engine slurm"
        )


def _driver(selection: Run, machine: Machine) -> Requirement:
    """The driver against the CUDA of the image: both numbers."""
    image = recipe("train", selection.flavour)
    here, cuda = machine.driver, cuda_of(image.base)
    if cuda is None:
        cure = "leave --flavour out, or choose cuda"
        return Requirement("driver", f"{image.name}, which has no CUDA", "an image with CUDA for these GPUs", cure)
    least = least_driver(cuda)
    wanted = f"driver {least} or newer for CUDA {cuda} of {image.name}"
    if _version(here) < _version(least) and _forward_compatible(selection, machine):
        return Requirement(
            "driver", f"{here}, older than {least}: works with forward compatibility, to be tried", wanted
        )
    cure = (
        "" if _version(here) >= _version(least) else "update the driver: there is no forward compatibility with it here"
    )
    return Requirement("driver", here, wanted, cure)


def _forward_compatible(selection: Run, machine: Machine) -> bool:
    """Whether the CUDA libraries of the image can serve an older driver: all GPUs are of data centres.

    NVIDIA's toolkit for Docker puts them in place; Apptainer's --nv takes the machine's own.
    """
    if selection.engine.name != DOCKER:
        return False
    of_data_centres = all(DATA_CENTRE.search(str(gpu.name)) for gpu in machine.gpus)
    return of_data_centres and _version(machine.driver) >= _version(COMPATIBLE_DRIVER)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _memory(selection: Run, left: list[PlannedStage], machine: Machine) -> Iterator[Requirement]:
    """A login node that only downloads need not have what the jobs take."""
    wanted = selection.loaded.experiment.resources.memory_gib
    if wanted and any(stage.stage != "download" for stage in left):
        cure = "" if machine.memory_gib >= wanted else "lower memory_gib in [resources], or take a larger machine"
        yield Requirement("memory", f"{machine.memory_gib:.0f} GiB", f"{wanted:g} GiB of memory", cure)


def room_of(selection: Run, machine: Machine) -> Room:
    """What the stages can use: of a cluster's nodes what the jobs ask for, of this machine what is there.

    Where this machine has no such GPU, which is told anyway, the one that is asked for counts.
    """
    planned = planned_room(selection.loaded)
    limit = selection.loaded.experiment.resources.memory_gib
    if queue := selection.engine.queue:
        return replace(planned, main_gib=limit or queue.site.limits["train"].memory_gib or planned.main_gib)
    main = min(machine.memory_gib, limit) if limit else machine.memory_gib
    return Room(machine.gpu_memory_gib or planned.gpu_gib, main)


def _fits(selection: Run, left: list[PlannedStage], machine: Machine) -> Iterator[Requirement]:
    """Every training and every evaluated model, in GPU memory and in main memory."""
    room = room_of(selection, machine)
    found = fits_of(selection.plan, selection.run_directory, room, {stage.id for stage in left})
    by_change: dict[str, list[Fit]] = {}
    for fit in (fit for fit in found if not fit.fits):
        by_change.setdefault(fit.change, []).append(fit)
    if by_change:
        worst = [max(same, key=lambda fit: (fit.gpu_gib or 0.0, fit.main_gib or 0.0)) for same in by_change.values()]
        others = [f" (and {len(same) - 1} more)" if same[1:] else "" for same in by_change.values()]
        told = [f"{fit.what}{more} {fit.problem}" for fit, more in zip(worst, others, strict=True)]
        cure = "; ".join(by_change)
        if selection.engine.queue and any((fit.main_gib or 0.0) > room.main_gib for fit in worst):
            cure = f"raise limits.train.memory_gib in the site file, or resources.memory_gib; or {cure}"
        yield Requirement("memory of the stages", "; ".join(told), cure=cure)
    elif found:
        yield Requirement("memory of the stages", fitting(found))


def fitting(found: list[Fit]) -> str:
    """What fits, and how much the largest takes."""
    gpu, main = (max((getattr(fit, name) or 0.0 for fit in found), default=0.0) for name in ("gpu_gib", "main_gib"))
    of_gpu = f"{gpu:.1f} GiB of a GPU and " if gpu else ""
    what = f"all {len(found)} trainings and evaluated models fit" if len(found) > 1 else f"{found[0].what} fits"
    return f"{what}: at most {of_gpu}{_size(main)} of main memory"


def _disk(selection: Run, machine: Machine) -> Requirement:
    gib, where = disk_gib(selection), f"free in {selection.run_directory.root}: {_size(machine.disk_gib)}"
    cure = "" if gib <= machine.disk_gib else "make room there, or name another run directory with --runs"
    return Requirement("disk", where, f"about {_size(gib)} of disk", cure)


def _size(gib: float) -> str:
    return f"{gib:.0f} GiB" if gib >= LEAST_GIB else f"{gib * 1024:.1f} MiB"


def _smaller(selection: Run) -> str:
    command = "prove" if selection.proves else "run"
    queued = queueing(replace(selection.words.without_site(), engine=None).typed(whole=False, command=command))
    before = f"{queued}; " if queued else ""
    if selection.proves:
        miniature = Options("tiny", runs=selection.words.runs).typed(whole=False, command="prove")
        return f"{before}without such GPUs the miniature is proved here: {miniature}"
    return before + (
        "the same matrix in miniature runs here: make reproduce-tiny; what this one takes: "
        f"invoke plan --experiment {shlex.quote(selection.words.experiment or selection.name)}"
    )


def disk_gib(selection: Run) -> float:
    """Disk that what is left is estimated to take: models saved and downloaded, stored states, scratch."""
    loaded, run_directory = selection.loaded, selection.run_directory
    stages = selection.left()
    left = {stage.id for stage in stages}
    cells = [plan for plan in selection.plan.cells if plan.stages["train"] in left]
    costs = [estimate(plan, loaded, run_directory) for plan in cells]
    scratch = max((cost.scratch_gib or 0.0 for cost in costs), default=0.0)
    trainings = [stage for stage in stages if stage.stage == "train"]
    at_once = min(len(cells), Capacity.of_this_machine(selection).at_once(trainings))
    downloads = download_gib(stages, loaded, run_directory)
    stored = stored_teachers(selection.plan.cells, loaded, run_directory)
    states = sum(one.disk_gib for one in stored if one.stage in left)
    return sum(cost.disk_gib or 0.0 for cost in costs) + scratch * at_once + downloads + states


def _downloads(selection: Run, thorough: bool, offline: bool) -> Iterator[Requirement]:
    """What was downloaded and verifies, and what is still to come from a network."""
    downloads = [stage for stage in selection.wanted if stage.stage == "download"]
    done = [stage for stage in downloads if selection.run_directory.stage(stage.id).done]
    if thorough and done:
        yield _verified(selection, done)
    to_fetch = [stage for stage in downloads if fetches(stage) and stage not in done]
    if not to_fetch:
        yield Requirement("downloads", f"none to come; {len(done)} of {len(downloads)} are here")
        return
    titles = ", ".join(stage.title.removeprefix("download ") for stage in to_fetch)
    found = f"{len(to_fetch)} still to come: {titles}"
    if offline or (answer := _hub_refuses()):
        reason = "" if offline else f"; {answer}"
        yield Requirement("downloads", f"{found}{reason}", "all downloads", _fetching(selection))
    else:
        yield Requirement("downloads", f"{found}; the hub answers")


def _fetching(selection: Run) -> str:
    """How what is still to come gets here, where there is no network."""
    if selection.evaluated:
        return "fetch them where there is network, and name the folders: --model FOLDER, a benchmark's path with --pins"
    return f"on a machine with network, into this run directory: {selection.fetching()}"


def _verified(selection: Run, done: list[PlannedStage]) -> Requirement:
    result = verify(selection.run_directory, stages=[stage.id for stage in done])
    if result.findings:
        more = f" (and {len(result.findings) - 1} more)" if len(result.findings) > 1 else ""
        cure = "remove the folder of that stage and fetch it again with invoke download"
        return Requirement("downloaded files", f"{result.findings[0]}{more}", cure=cure)
    return Requirement("downloaded files", f"{result.files} files of {len(done)} downloads, every hash verified")


def _hub_refuses() -> str | None:
    """Why nothing can be fetched; None when the hub gives any answer at all."""
    url = os.environ.get("HF_ENDPOINT") or HUB
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_S):  # noqa: S310
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{url} does not answer ({getattr(error, 'reason', error)})"
