"""Main memory of a machine on paper: what a training takes there beside its GPUs, and what vLLM takes on them.

A training takes the most of three moments, above what its processes take anyway: one model on its way to the devices
(the first rank alone reads it, the others are sent it); a checkpoint on its way to the disk, in the shares of the
ranks; at the end one whole student beside the weights that are put into it. Where masters and moments lie in main
memory they are what a checkpoint is written from, and go before the end. Plain Python; no torch.
"""

from dataclasses import dataclass

from essence.settings import LoraSettings, OptimizerPlacement, Resources, TeacherPlacement, TrainSettings
from essence.sizes.architecture import BFLOAT16_BYTES, FLOAT32_BYTES, Architecture, adapter_parameters
from essence.sizes.memory import BUCKET_ELEMENTS, BYTES, DeviceLoad
from essence.sizes.step_rows import Shape, deal, shape

PROCESS_BYTES = 4 << 30
"""Assumed of a process with PyTorch and a GPU: libraries, the driver's host side, the rows."""
CHECKPOINT_BYTES = 12
"""A trained parameter and its two moments, float32."""
USABLE_MAIN_SHARE = 0.95
"""Of a machine's main memory; the system has the rest."""
DECODING_BYTES = 3 << 30
"""Assumed of a decoder on each GPU beside weights and keys and values: activations, recorded graphs, logits."""


def trained_parameters(student: Architecture, lora: LoraSettings | None) -> int:
    """That are updated, and that a checkpoint holds: all of the student, or its adapters alone."""
    return adapter_parameters(student, lora) if lora and lora.rank else student.parameters


def largest_pass(settings: TrainSettings, longest: int, resources: Resources) -> Shape:
    """The largest forward pass of a step whose rows all have so many tokens, before any row is known."""
    rows, multiple = rows_of_step(settings, longest), settings.pad_to_multiple
    passes = deal([longest] * rows, settings.processes, settings.packing, multiple, resources)[0]
    return max(shape([longest] * rows, part, settings.packing, multiple) for part in passes if part)


def rows_of_step(settings: TrainSettings, tokens: int) -> int:
    """Rows of an optimiser step, of all ranks together, where each has so many tokens."""
    optimizer = settings.optimizer
    return max(1, optimizer.batch_tokens // tokens) if optimizer.batch_tokens else optimizer.batch_rows


@dataclass(frozen=True)
class MachineLoad:
    """What the ranks of one machine hold in its main memory together."""

    student: Architecture
    teacher: Architecture | None
    """None where none is loaded: plain fine-tuning, or stored states."""
    compute_bytes: int
    """Of a number in the dtype of the computation."""
    processes: int
    """Of this machine."""
    machines: int
    teacher_placement: TeacherPlacement
    lora: LoraSettings | None
    optimizer_placement: OptimizerPlacement = "device"

    @classmethod
    def of(cls, load: DeviceLoad, machines: int) -> "MachineLoad":
        """Of one of the machines that share such devices out among them."""
        return cls(
            student=load.student,
            teacher=None if load.teacher_stored else load.teacher,
            compute_bytes=BYTES[load.compute_dtype],
            processes=-(-load.devices // machines),
            machines=machines,
            teacher_placement=load.teacher_placement,
            lora=load.lora,
            optimizer_placement=load.optimizer_placement,
        )


def main_memory_bytes(load: MachineLoad) -> int:
    """The most that a training on GPUs takes at a time."""
    teacher = load.compute_bytes * load.teacher.parameters if load.teacher else 0
    student = FLOAT32_BYTES * load.student.parameters
    trained = trained_parameters(load.student, load.lora)
    stepping = CHECKPOINT_BYTES * trained // load.machines
    if load.optimizer_placement == "main_memory":
        # Of weights that are the best so far the first rank copies those of the others beside its own.
        others = 1.0 - 1.0 / (load.processes * load.machines)
        stepping += load.processes * staged_bytes(load.student) + round(FLOAT32_BYTES * trained * others)
    moments = (max(student, teacher), stepping, student + FLOAT32_BYTES * trained)
    held = teacher * load.processes if load.teacher_placement == "offloaded" else 0
    return load.processes * PROCESS_BYTES + held + max(moments)


def staged_bytes(student: Architecture) -> int:
    """Of sums on their way to main memory and roundings on their way back (`essence/distill/main_memory.py`).

    An embedding beside a bucket, each tensor in as much as the next power of two.
    """
    embedding = 1 << (student.vocabulary * student.hidden - 1).bit_length()
    return (FLOAT32_BYTES + BFLOAT16_BYTES) * (embedding + 2 * BUCKET_ELEMENTS)


def decoding_bytes(model: Architecture, tensor_parallel: int, model_tokens: int) -> int:
    """Least memory of each GPU of a copy: its share of weights in bfloat16 and of one sequence of the greatest length.

    Keys and values are shared out by heads, and a head is not cut.
    """
    heads = -(-model.kv_heads // tensor_parallel)
    cache = 2 * BFLOAT16_BYTES * model.layers * heads * model.head_dim * model_tokens
    return BFLOAT16_BYTES * model.parameters // tensor_parallel + cache + DECODING_BYTES
