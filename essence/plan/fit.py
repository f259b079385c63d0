"""Whether what is planned fits the machine it is planned for, before anything is fetched: GPU memory and main memory.

The formulas are those of the preflight (`essence/sizes/memory.py`), for a step whose rows are all as long as is let in,
each token a label; evaluations need the weights and one sequence of the greatest length. Of a model whose sizes are not
known yet nothing is said. Where a proof has measured more than the formula gives, so much more is needed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from essence.files import GIB
from essence.plan.cells import resources_of, train_settings
from essence.plan.experiment import Experiment
from essence.plan.gpu_count import backend_of
from essence.plan.model_sizes import architecture, longest_read, rollouts_together
from essence.plan.newest_proof import memory_ratio
from essence.plan.schema import PairSection
from essence.plan.stage_plan import CellPlan, Plan
from essence.record.run_directory import RunDirectory
from essence.settings import Resources, TrainSettings
from essence.sizes.architecture import Architecture
from essence.sizes.host import USABLE_MAIN_SHARE, MachineLoad, decoding_bytes, largest_pass, main_memory_bytes
from essence.sizes.least_change import Limits, Pass, PassOn, as_read_on, in_words, least_change
from essence.sizes.memory import USABLE_SHARE, DeviceLoad, device_bytes, load_of
from essence.sizes.recomputation import Activations, choose_for_full_steps


@dataclass(frozen=True)
class Room:
    """What a machine has."""

    gpu_gib: float
    """Of each GPU."""
    main_gib: float

    @property
    def gpu_bytes(self) -> int:
        """That can be used."""
        return int(self.gpu_gib * GIB * USABLE_SHARE["cuda"])

    @property
    def main_bytes(self) -> int:
        return int(self.main_gib * GIB * USABLE_MAIN_SHARE)

    def of_process(self, gpus: int, processes: int) -> int:
        """Bytes that one process of a training can use: of its GPU, or of the main memory that all share."""
        return self.gpu_bytes if gpus else int(self.main_gib * GIB * USABLE_SHARE["cpu"]) // processes


@dataclass(frozen=True)
class Fit:
    """One training or evaluation beside what it is given."""

    what: str
    gpu_gib: float | None
    """On each GPU; None without GPUs."""
    main_gib: float | None
    """Of one machine; None of an evaluation, which reads the weights from files straight onto its GPUs."""
    fits: bool
    problem: str = ""
    change: str = ""
    """The least that makes it fit."""
    loads: tuple[DeviceLoad, DeviceLoad] | None = None
    """What each GPU would hold, with the rows of as many GPUs as the change has, and what it holds after the change;
    None where a training fits, or nothing makes it."""
    activations: Activations | None = None
    """How a training has them; None of an evaluation."""
    changed_gpu_hours: float | None = None
    """That it takes then, where that is estimated (`essence/plan/changed_times.py`)."""
    changed_step_s: float | None = None

    def as_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if name != "loads"}

    def sentence(self) -> str:
        then = ""
        if self.changed_gpu_hours is not None:
            then = f"; then about {self.changed_gpu_hours:.1f} GPU hours, {self.changed_step_s:.1f} s a step"
        return f"{self.what} {self.problem}: {self.change}{then}"


def planned_room(loaded: Experiment) -> Room:
    """The machine that `[resources]` describes; what a stage may take counts where that is less."""
    resources = loaded.experiment.resources
    main = min(resources.memory_gib or resources.host_memory_gib, resources.host_memory_gib)
    return Room(resources.gpu_memory_gib, main)


def fits_of(plan: Plan, run_directory: RunDirectory, room: Room, left: set[str] | None = None) -> list[Fit]:
    """Every training and every evaluated model of a plan; with `left`, of the stages of these ids alone."""
    found = [*_trainings(plan, run_directory, room, left), *_evaluations(plan, run_directory, room, left)]
    return [fit for fit in found if fit]


def activation_lines(found: Iterable[Fit]) -> list[str]:
    """In how many trainings on GPUs activations are kept, in shorter passes, and recomputed; none without such."""
    chosen = [fit.activations for fit in found if fit.activations and fit.gpu_gib is not None]
    if not chosen:
        return []
    shortened = [one for one in chosen if one.shortened]
    recomputed = sum(one.recomputed for one in chosen)
    told = [f"kept in {len(chosen) - len(shortened) - recomputed}"]
    if shortened:
        told.append(f"in shorter passes, of {min(one.micro_batch_tokens for one in shortened):,} tokens or more, in ")
        told[-1] += f"{len(shortened)}"
    told += [f"recomputed in {recomputed} (↻)"] if recomputed else []
    return [f"activations of {len(chosen)} training{'s' * (len(chosen) > 1)}: {', '.join(told)}"]


def main_memory_of_trainings(plan: Plan, run_directory: RunDirectory) -> dict[str, float]:
    """Stage id -> GiB of main memory that a training is expected to take, where sizes are known."""
    room = planned_room(plan.loaded)
    found = {cell.stages["train"]: training_fit(cell, plan.loaded, run_directory, room) for cell in plan.cells}
    return {stage: fit.main_gib for stage, fit in found.items() if fit and fit.main_gib is not None}


def activations_of_trainings(plan: Plan, run_directory: RunDirectory) -> dict[str, Activations]:
    """Stage id -> how a training is to have its activations, where sizes are known."""
    room = planned_room(plan.loaded)
    found = {cell.stages["train"]: training_fit(cell, plan.loaded, run_directory, room) for cell in plan.cells}
    return {stage: fit.activations for stage, fit in found.items() if fit and fit.activations}


def _trainings(plan: Plan, run_directory: RunDirectory, room: Room, left: set[str] | None) -> Iterator[Fit | None]:
    for cell in plan.cells:
        if left is None or cell.stages["train"] in left:
            yield training_fit(cell, plan.loaded, run_directory, room)


def training_fit(plan: CellPlan, loaded: Experiment, run_directory: RunDirectory, room: Room) -> Fit | None:
    """Of one cell; None where a size is not known."""
    settings = train_settings(plan.cell, loaded.experiment)
    resources = resources_of("train", loaded.experiment, plan.cell)
    student = architecture(plan.cell.student, plan.stages["student"], loaded, run_directory)
    taught = settings.objective.kd_weight > 0.0
    teacher = architecture(plan.cell.teacher, plan.stages["teacher"], loaded, run_directory) if taught else None
    if student is None or (taught and teacher is None):
        return None
    planned = planned_load(settings, student, teacher, resources, room)
    load, chosen = planned.load, planned.activations
    ratio = memory_ratio(run_directory, resources.gpus) if resources.gpus else 1.0
    needed = round(ratio * device_bytes(load))
    what = f"training {plan.cell.name}"
    if not resources.gpus:
        return replace(_on_processors(what, needed * settings.processes, room), activations=chosen)
    main = main_memory_bytes(machine_load(settings, student, teacher, resources))

    def fits_changed(changed: TrainSettings, machines: int) -> bool:
        """Other settings may let activations be had in another form."""
        other = planned_load(changed, student, teacher, resources, room).load
        gpu, main = round(ratio * device_bytes(other)), main_memory_bytes(MachineLoad.of(other, machines))
        return gpu <= room.gpu_bytes and main <= room.main_bytes

    problem, change, loads = "", "", None
    if not room.gpu_gib:
        problem, change = _on_unknown_gpus(needed)
    elif needed > room.gpu_bytes:
        moved = MachineLoad.of(replace(load, optimizer_placement="main_memory"), resources.nodes)
        roomy = main_memory_bytes(moved) <= room.main_bytes
        limits = Limits(int(room.gpu_bytes / ratio), planned.longest, settings.pad_to_multiple, roomy)
        changed = least_change(load, limits, planned.pass_on)
        problem = _needs(needed, "of each GPU", room.gpu_gib, room.gpu_bytes)
        change = "use GPUs with more memory, or a smaller model"
        if changed:
            read = as_read_on(load, changed.devices, planned.pass_on)
            loads = (replace(read, devices=load.devices), changed)
            change = _changed_load(plan.cell.pair, loads[0], changed, resources.nodes)
    elif main > room.main_bytes:
        problem = _needs(main, "of main memory", room.main_gib, room.main_bytes)
        change = less_main_memory(settings, resources.nodes, plan.cell.pair, fits_changed)
    return Fit(what, needed / GIB, main / GIB, not change, problem, change, loads, chosen)


def _on_processors(what: str, needed: int, room: Room) -> Fit:
    usable = int(room.main_gib * GIB * USABLE_SHARE["cpu"])
    if needed <= usable:
        return Fit(what, None, needed / GIB, True)
    problem = _needs(needed, "of main memory", room.main_gib, usable)
    return Fit(what, None, needed / GIB, False, problem, "use a machine with more memory, or a smaller model")


def _needs(needed: int, of: str, there_gib: float, usable: int) -> str:
    return f"needs about {needed / GIB:.1f} GiB {of}, and of {there_gib:.1f} GiB {usable / GIB:.1f} can be used"


def _on_unknown_gpus(needed: int) -> tuple[str, str]:
    """The problem and its cure where nobody has said what a GPU has, as in a file that extends one without GPUs."""
    problem = f"needs about {needed / GIB:.1f} GiB of each GPU, and resources.gpu_memory_gib = 0.0 gives a GPU none"
    return problem, "set resources.gpu_memory_gib to what each GPU has"


def _changed_load(pair: str, load: DeviceLoad, changed: DeviceLoad, nodes: int) -> str:
    """What changes a load into another, as a cure; a number of GPUs is that of all pairs, and is typed."""
    if changed.devices == load.devices:
        return _for_pair(pair, in_words(load, changed))
    gpus = -(-changed.devices // nodes)
    more = f"use {gpus} GPUs (--gpus {gpus})"
    given = replace(load, devices=changed.devices, parallel=backend_of(load.parallel, changed.devices))
    rest = in_words(given, changed)
    return f"{more}, and {_for_pair(pair, rest)}" if rest else more


def _for_pair(pair: str, change: str) -> str:
    """The change as a cure, with the place where it is of one pair alone if there is one."""
    if change.split(" = ")[0] not in PairSection.model_fields:
        return f"set {change}"
    return f"set {change}, for this pair alone in [by_pair.{_key(pair)}]"


def _key(name: str) -> str:
    """A name as a key of TOML."""
    return f"'{name}'" if "." in name else name


class PlannedLoad(NamedTuple):
    """A training before any row is known."""

    load: DeviceLoad
    """What each device holds in the largest pass, with the activations that were chosen."""
    longest: int
    """Tokens of the longest row."""
    activations: Activations
    pass_on: PassOn


def planned_load(
    settings: TrainSettings, student: Architecture, teacher: Architecture | None, resources: Resources, room: Room
) -> PlannedLoad:
    """What each device of a machine with such room holds in the largest pass of such a step."""
    longest = longest_read(settings)
    load = replace(load_of(settings, student, teacher, resources.loss), rollouts=rollouts_together(settings))
    if not resources.gpus:  # all lies in the same main memory
        load = replace(load, optimizer_placement="device")
    usable = room.of_process(resources.gpus, settings.processes)
    load, chosen = choose_for_full_steps(settings, resources, load, longest, usable)

    def pass_on(devices: int) -> Pass:
        largest = largest_pass(settings.model_copy(update={"processes": devices}), longest, chosen.resources(resources))
        return Pass(largest.positions, largest.tokens)

    return PlannedLoad(load, longest, chosen, pass_on)


def machine_load(
    settings: TrainSettings, student: Architecture, teacher: Architecture | None, resources: Resources
) -> MachineLoad:
    """What the ranks of one of the machines hold."""
    return MachineLoad.of(load_of(settings, student, teacher, resources.loss), resources.nodes)


def less_main_memory(settings: TrainSettings, nodes: int, pair: str, fits: Callable[[TrainSettings, int], bool]) -> str:
    """What makes a training fit a machine's main memory: what is there on the GPUs instead, or more machines.

    fits: whether it does with these settings on so many machines.
    """
    on_gpus: dict[str, str] = {}
    if settings.optimizer_placement == "main_memory":
        on_gpus["optimizer_placement"] = "device"
    if settings.teacher_placement == "offloaded":
        on_gpus["teacher_placement"] = "sharded" if settings.parallel in ("zero2", "zero3") else "replicated"
    each = [{name: value} for name, value in on_gpus.items()]
    for way in [*each, on_gpus] if len(each) > 1 else each:
        if fits(settings.model_copy(update=way), nodes):
            return _for_pair(pair, " and ".join(f"{name} = '{value}'" for name, value in way.items()))
    for machines in (2, 4, 8):
        if settings.processes % machines == 0 and fits(settings, machines):
            return f"set nodes = {machines} in [resources]"
    return "use a machine with more memory, or a smaller model"


def _evaluations(plan: Plan, run_directory: RunDirectory, room: Room, left: set[str] | None) -> Iterator[Fit | None]:
    experiment = plan.loaded.experiment
    if not experiment.resources.gpus or experiment.evaluation.decoder != "vllm":
        return
    models: dict[str, str | None] = {}
    for cell in plan.cells:
        if left is None or left & {one.generate for one in cell.evaluations}:
            models[cell.cell.student] = cell.stages["student"]
    for baseline in plan.baselines:
        if left is None or left & {one.generate for one in baseline.evaluations}:
            models.setdefault(baseline.model, plan.stages[baseline.evaluations[0].generate].inputs["model"])
    for model, stage in models.items():
        yield _evaluation_fit(model, architecture(model, stage, plan.loaded, run_directory), plan.loaded, room)


def _evaluation_fit(model: str, sizes: Architecture | None, loaded: Experiment, room: Room) -> Fit | None:
    if sizes is None:
        return None
    section, resources = loaded.experiment.evaluation, resources_of("generate", loaded.experiment, model)
    usable = int(room.gpu_gib * GIB * resources.decoder_memory_share)
    needed = decoding_bytes(sizes, resources.tensor_parallel, section.max_model_tokens)
    what = f"evaluation of {model}"
    if needed <= usable:
        return Fit(what, needed / GIB, None, True)
    if not room.gpu_gib:
        return Fit(what, needed / GIB, None, False, *_on_unknown_gpus(needed))
    wider = [
        each
        for each in range(resources.tensor_parallel + 1, resources.gpus + 1)
        if resources.gpus % each == 0
        and sizes.heads % each == 0
        and decoding_bytes(sizes, each, section.max_model_tokens) <= usable
    ]
    change = f"set tensor_parallel = {wider[0]} in [by_model.{_key(model)}]" if wider else "use GPUs with more memory"
    problem = (
        f"needs about {needed / GIB:.1f} GiB of each GPU for one sequence of {section.max_model_tokens:,} tokens, and "
        f"of {room.gpu_gib:.1f} GiB {usable / GIB:.1f} can be used (decoder_memory_share)"
    )
    return Fit(what, needed / GIB, None, False, problem, change)
