"""What a training holds in memory on paper: static bytes, and dynamic ones, which grow with the tokens read.

Static, in bytes per parameter: the student's master 4, gradient 4, AdamW moments 8, and in bfloat16 the weight 2; the
teacher 2 or 4. With masters and moments in main memory (`optimizer_placement`) the gradient's sum alone is left beside
the weight. ZeRO-2 divides masters, gradients and moments by the number of devices (in float32 the weight is the
master, and whole), ZeRO-3 the weights too and then gathers two layers and the embeddings of each model. In float32
DDP's buckets hold a second copy of the gradients: 4.

Dynamic is the largest of these moments: the teacher reading, the student between its forward and its backward pass,
and, where a student is taught on its own words, the student speaking (`essence/sizes/rollout_sizes.py`).
What autograd keeps of a layer was counted tensor by tensor (`tests/sizes/test_memory.py` counts again), a token:

```
bfloat16: 16 hidden + 10 query + 10 key + 8 intermediate + 8 heads + 4 kv_heads + 8
autocast: 26 hidden, the rest the same (adapters: frozen weights, a residual stream in float32)
float32:  24 hidden + 16 query + 16 key + 16 intermediate + 8 heads + 4 kv_heads + 8
packed:   + one more copy of what attention returns
```

with query = heads * head_dim and key = kv_heads * head_dim. Checkpointing keeps a layer's input and one layer in
full. Host and stages both use this, so it is plain Python.
"""

from dataclasses import dataclass
from typing import Literal

from essence.settings import (
    LoraSettings,
    LossResources,
    OptimizerPlacement,
    Parallel,
    TeacherPlacement,
    TrainSettings,
)
from essence.sizes.architecture import Architecture, adapter_parameters
from essence.sizes.rollout_sizes import RolloutLoad, rollout_bytes

Dtype = Literal["float32", "bfloat16"]
BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
USABLE_SHARE = {"cuda": 0.92, "cpu": 0.8}
"""Of a device's memory: the rest is the driver's context and an allocator's gaps, or the rest of the machine."""
FLOAT32_BYTES = 4
GRADIENT_BYTES, MOMENT_BYTES = 4, 8
BUCKET_ELEMENTS = 1 << 25
"""Gradients of bfloat16 weights that are added up, cross between ranks, or go to main memory at a time."""
ZERO_BUCKET_ELEMENTS = 1 << 27
"""Gradients, or weights, that cross between ranks at a time under ZeRO; two buckets are under way."""
PLAIN_BYTES_PER_LOGIT = 29
"""Peak of the plain loss, forward and backward, in bytes per label and vocabulary entry, counted."""
GPU_BLOCK_ELEMENTS, BLOCK_BUFFERS = 1 << 25, 4
"""Of the chunked loss: logits that a GPU turns into gradients at a time, and how many such blocks in float32 live at
once, for the paper's objective."""


@dataclass(frozen=True)
class DeviceLoad:
    """What one device is given to hold."""

    student: Architecture
    teacher: Architecture | None
    compute_dtype: Dtype
    activation_checkpointing: bool
    packed: bool
    positions: int
    """Tokens and padding of the largest forward pass."""
    labels: int
    """Supervised tokens in it."""
    loss_bytes_per_logit: float
    """Peak of the loss in bytes per label and vocabulary entry; less than `PLAIN_BYTES_PER_LOGIT` where in chunks."""
    loss_bytes: int
    """What the loss takes whatever the number of labels."""
    parallel: Parallel
    devices: int
    teacher_placement: TeacherPlacement
    optimizer_placement: OptimizerPlacement = "device"
    teacher_stored: bool = False
    """Its states come from a teacher stage, and only its head is here."""
    lora: LoraSettings | None = None
    """Adapters are all that is trained; None = all weights are."""
    loss_labels: int | None = None
    """Labels whose logits the loss holds at once; None = those of all."""
    rollouts: RolloutLoad | None = None
    """Drawn together; None where rows are read as they are."""

    @property
    def lowered(self) -> bool:
        """Whether the student's own weights are bfloat16, and with them all that is computed."""
        return self.compute_dtype == "bfloat16" and self.lora is None

    @property
    def residual_bytes(self) -> int:
        """Of a number in the residual stream."""
        return BYTES["bfloat16"] if self.lowered else FLOAT32_BYTES


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak."""

    static: int
    dynamic: int

    @property
    def total(self) -> int:
        return self.static + self.dynamic


@dataclass(frozen=True)
class LossMemory:
    """What heads and loss take above the models at most, under a head of float32 weights."""

    bytes_per_logit: float
    labels: int | None
    """As `DeviceLoad.loss_labels`."""
    fixed: int


def loss_memory(student: Architecture, settings: TrainSettings, loss: LossResources) -> LossMemory:
    """Of the form that a training's steps run: see `essence/distill/chunked.py`.

    A head that is frozen (LoRA) has no gradient; then the logits of a chunk alone are kept, not of `gradient_rows`.
    """
    size, trains_head = BYTES[settings.compute_dtype], settings.lora.rank == 0
    copy = size if size < FLOAT32_BYTES else 0
    if loss.form == "plain":
        return LossMemory(PLAIN_BYTES_PER_LOGIT, None, 0)
    chunk = student.vocabulary * loss.chunk_rows * size + BLOCK_BUFFERS * FLOAT32_BYTES * GPU_BLOCK_ELEMENTS
    fixed = chunk + student.head_parameters * ((FLOAT32_BYTES if trains_head else 0) + copy)
    rows = kept_rows(loss, student.hidden, size) if trains_head else loss.chunk_rows
    return LossMemory(float(size), rows, fixed)


def kept_rows(loss: LossResources, hidden: int, element_bytes: int) -> int:
    """Labels whose gradient of the logits, of `element_bytes` an entry, is kept for one product with the states.

    Bytes kept: rows * V * element_bytes. The head's gradient in float32: 4 * V * hidden. Where the two are equal a
    product does so many operations for every byte of the sum it is added to that the adding does not count.
    """
    return loss.gradient_rows or max(loss.chunk_rows, FLOAT32_BYTES * hidden // element_bytes)


def load_of(
    settings: TrainSettings, student: Architecture, teacher: Architecture | None, loss: LossResources
) -> DeviceLoad:
    """What a training gives each device to hold, before its rows: `positions` and `labels` are 0.

    Activations are kept; `essence/sizes/recomputation.py` says where they are not.
    """
    of_loss = loss_memory(student, settings, loss)
    return DeviceLoad(
        student=student,
        teacher=teacher,
        compute_dtype=settings.compute_dtype,
        activation_checkpointing=False,
        packed=settings.packing,
        positions=0,
        labels=0,
        loss_bytes_per_logit=of_loss.bytes_per_logit,
        loss_bytes=of_loss.fixed,
        loss_labels=of_loss.labels,
        parallel=settings.parallel,
        devices=settings.processes,
        teacher_placement=settings.teacher_placement,
        optimizer_placement=settings.optimizer_placement,
        teacher_stored=settings.teacher != "live",
        lora=settings.lora if settings.lora.rank else None,
    )


def estimate_memory(load: DeviceLoad) -> Memory:
    """Static and dynamic memory of a training on each of its devices."""
    dynamic = max(_teacher_reading(load), _student_step(load), _student_speaking(load))
    return Memory(_student_static(load) + _teacher_static(load), dynamic)


def device_bytes(load: DeviceLoad) -> int:
    """The most that a device holds, in training or while the models are put there."""
    return max(estimate_memory(load).total, loading_bytes(load))


def loading_bytes(load: DeviceLoad) -> int:
    """While models are put on a device: the teacher first, whole before it is shared out; then the student."""
    teacher = load.teacher
    # While weights are lowered, both forms lie beside each other.
    student = (FLOAT32_BYTES + (BYTES["bfloat16"] if load.lowered else 0)) * load.student.parameters
    size = BYTES[load.compute_dtype]
    whole = size * teacher.parameters if teacher and not load.teacher_stored else 0
    alone = whole if load.teacher_placement != "offloaded" else 0
    return max(alone, _teacher_static(load) + student)


def _student_static(load: DeviceLoad) -> int:
    student, parameters = load.student, load.student.parameters
    shared = load.devices if load.parallel in ("zero2", "zero3") else 1
    buckets = GRADIENT_BYTES if load.parallel == "ddp" and load.devices > 1 else 0
    if load.lora:
        adapters = adapter_parameters(student, load.lora) * (FLOAT32_BYTES + GRADIENT_BYTES + buckets + MOMENT_BYTES)
        frozen = FLOAT32_BYTES if load.parallel in ("zero2", "zero3") else BYTES[load.compute_dtype]
        return parameters * frozen + adapters
    size = BYTES[load.compute_dtype]
    beside = MOMENT_BYTES + (FLOAT32_BYTES if load.lowered else buckets) if load.optimizer_placement == "device" else 0
    held = parameters * (GRADIENT_BYTES + beside) / shared
    if shared > 1:
        held += 2 * size * ZERO_BUCKET_ELEMENTS
    if load.parallel == "zero3" and load.devices > 1:
        return round(held + parameters * size / shared + size * gathered_parameters(student, trained=True))
    return round(held + parameters * size)


def gathered_parameters(model: Architecture, trained: bool) -> float:
    """Of a model in shards, those that are whole at once: two layers, embedding and head, twice where it is trained."""
    return 2 * model.layer_parameters / model.layers + (2 if trained else 1) * model.root_parameters


def _teacher_static(load: DeviceLoad) -> int:
    teacher, size = load.teacher, BYTES[load.compute_dtype]
    if teacher is None:
        return 0
    if load.teacher_stored:
        return size * teacher.head_parameters
    gathered = gathered_parameters(teacher, trained=False)
    if load.teacher_placement == "sharded" and load.devices > 1:
        return round(size * (teacher.parameters / load.devices + gathered))
    return round(size * gathered) if load.teacher_placement == "offloaded" else size * teacher.parameters


def _teacher_reading(load: DeviceLoad) -> int:
    """One layer's largest moment: the residual, its norm, and the three intermediates of the feed-forward layer."""
    if load.teacher is None or load.teacher_stored:
        return 0
    return load.positions * BYTES[load.compute_dtype] * (3 * load.teacher.hidden + 3 * load.teacher.intermediate)


def _student_speaking(load: DeviceLoad) -> int:
    return rollout_bytes(load.student, load.rollouts, BYTES[load.compute_dtype]) if load.rollouts else 0


def _student_step(load: DeviceLoad) -> int:
    """At the loss everything between is held; with checkpointing the last layer's backward pass may hold more."""
    student = load.student
    layer = layer_bytes_per_token(student, load.compute_dtype, load.packed, load.lowered)
    ends = 3 * FLOAT32_BYTES * student.hidden  # input of the final norm, the same normalised, last states
    taught = BYTES[load.compute_dtype] * load.teacher.hidden if load.teacher else 0
    logits = load.loss_bytes_per_logit * student.vocabulary
    states = 2 * FLOAT32_BYTES * student.hidden + taught  # at the labels: the student's, their gradient, the teacher's
    held = load.labels if load.loss_labels is None else min(load.labels, load.loss_labels)
    at_loss = load.positions * ends + held * logits + load.labels * states + load.loss_bytes
    if not load.activation_checkpointing:
        return round(load.positions * student.layers * layer + at_loss)
    gradients = 2 * BYTES[load.compute_dtype] * student.intermediate + FLOAT32_BYTES * student.hidden
    inputs = student.layers * load.residual_bytes * student.hidden
    return round(load.positions * inputs + max(at_loss, load.positions * (layer + gradients)))


def layer_bytes_per_token(model: Architecture, compute_dtype: Dtype, packed: bool, lowered: bool) -> int:
    """What autograd keeps of one layer for its backward pass, in bytes per token; formula above."""
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    small = 8 * model.heads + 4 * model.kv_heads + 8
    if compute_dtype == "bfloat16":
        return (
            (16 if lowered else 26) * model.hidden
            + (12 if packed else 10) * query
            + 10 * key
            + 8 * model.intermediate
            + small
        )
    return 24 * model.hidden + (20 if packed else 16) * query + 16 * key + 16 * model.intermediate + small


def compiled_models(settings: TrainSettings) -> tuple[bool, bool]:
    """Whether the layers of student and teacher are compiled: asked for, and each whole on its device."""
    asked, student = settings.compile_layers, settings.parallel != "zero3" and not settings.rollouts
    return asked and student, asked and settings.teacher_placement == "replicated"
