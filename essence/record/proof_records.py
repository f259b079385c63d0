"""What the two stages of `invoke prove` add to their manifests: checks, measurements, and coefficients of time."""

from pydantic import Field

from essence.record.record_files import Group, Number


class CheckRecord(Group):
    """One thing that has to be right on a machine."""

    name: str
    passed: bool
    sentence: str
    """What was found; of a check that failed also what was wanted, and what cures it."""


class ProductPoint(Group):
    """A matrix product, [rows, inner] times [inner, columns], in the dtype of the computation."""

    rows: int
    inner: int
    columns: int
    flops_per_s: Number


class StepParts(Group):
    """Where the time of a step goes, in seconds; that of all its forward passes together."""

    teacher_s: Number
    forward_s: Number
    """Of the student, heads and loss included."""
    backward_s: Number
    """With what crosses between ranks, as far as that waits for no later part."""
    optimizer_s: Number
    communication_s: Number | None
    """In which ranks bring something together, beside the other parts or as some of them; None where nobody told."""
    host_gap_s: Number | None
    """In which the GPU waits for the next kernel; None on a CPU, and where its driver does not tell."""


class StepPoint(Group):
    """Optimiser steps of equal rows, timed with the real backend."""

    ranks: int = 1
    """Processes that train together; the rows, tokens and passes are those of each."""
    recomputed: bool | None = None
    """Activations, in the backward pass; None of a proof of an earlier version, see its results."""
    rows: int
    tokens: int
    """Of each row."""
    passes: int
    flops: Number
    seconds: Number
    """The median."""
    fitted_s: Number
    """By the coefficients that all points give together."""
    assumed_s: Number
    """By the speeds that a machine is assumed to have until it is proved."""
    peak_bytes: int | None
    """That PyTorch allocated on the GPU; None on a CPU."""
    reserved_bytes: int | None = None
    """That PyTorch took from the GPU's driver for it; None on a CPU."""
    rule_bytes: int
    """The memory rule for the same load (`essence/sizes/memory.py`)."""
    parts: StepParts | None = None
    """None of a proof of an earlier version."""


class StepCoefficients(Group):
    """Of `essence/sizes/speeds.py`."""

    flop_s: Number
    layer_s: Number
    parameter_s: Number
    error: Number
    """Largest relative difference from a measured step, those of several ranks included."""


class ValidationPoint(Group):
    """Validation rows read forward, each in a pass of its own."""

    rows: int
    tokens: int
    """Of each row."""
    seconds: Number
    """Of each row."""
    fitted_s: Number
    """By the coefficients of the steps."""


class LinkPoint(Group):
    """Ranks of this machine that bring something together."""

    processes: int
    backend: str
    bytes: int
    all_reduce_bytes_per_s: Number
    all_gather_bytes_per_s: Number
    over: list[str] = Field(default_factory=list)
    """What NCCL says that its channels go over, as `P2P/CUMEM`; empty without NCCL."""
    exposed_byte_s: Number | None = None
    """Seconds that a byte which crosses adds to a step: below 1 over `all_reduce_bytes_per_s` where it crosses beside
    the computation. None of a proof of an earlier version."""


class ProveTrainingResults(Group):
    checks: list[CheckRecord]
    device: str
    """Name of the GPU, or of the processor."""
    devices: int
    """GPUs of the stage; 0 on a CPU."""
    student_layers: int
    """After cutting."""
    teacher_layers: int
    recomputed: bool | None = None
    """Whether the steps that are timed recompute activations; None of a proof of an earlier version."""
    products: list[ProductPoint]
    launch_s: Number
    """Of a kernel that does next to nothing."""
    memory_bytes_per_s: Number
    """Read and written by a copy on the device."""
    host_bytes_per_s: Number | None
    """From the device to main memory that it copies to by itself; None on a CPU."""
    main_memory_parameter_s: Number | None = None
    """Of the update of a parameter there; records of an earlier version have none."""
    disk_write_bytes_per_s: Number
    """fsync included."""
    disk_read_bytes_per_s: Number
    """As the system has it then: from its cache where memory allows."""
    loss_s_per_token: Number
    """Heads and loss of a label, forward and backward."""
    save_bytes_per_s: Number
    """Of a model folder."""
    checkpoint_bytes_per_s: Number | None = None
    """Of a checkpoint as the backend of the settings writes it, fsync included; None where the disk had no room for it,
    and of a proof of an earlier version."""
    validation: ValidationPoint | None = None
    """None of a proof of an earlier version."""
    steps: list[StepPoint]
    coefficients: StepCoefficients
    link: LinkPoint | None = None
    """None where one process trains."""


class DecodePoint(Group):
    """Steps of decoding that each give so many sequences a token."""

    sequences: int
    context: int
    """Mean tokens that a sequence has behind it."""
    seconds: Number
    """Of one step."""
    fitted_s: Number


class DecodeCoefficients(Group):
    """Of `essence/sizes/speeds.py`."""

    weight_s: Number
    sequence_s: Number
    cache_byte_s: Number
    error: Number


class ProveDecodingResults(Group):
    checks: list[CheckRecord]
    decoder: str
    start_s: Number
    """Until the model is loaded and can be asked, with nothing compiled before."""
    warm_start_s: Number | None = None
    """The same once more, with what the first start compiled; None of a proof of an earlier version."""
    key_value_tokens: int | None = None
    """That the decoder has room for; None where it has no fixed room."""
    tokens_per_s: Number
    """The most, of all points."""
    points: list[DecodePoint]
    coefficients: DecodeCoefficients


class ProveResolved(Group):
    taken: str = ""
    lengths: list[int] = Field(default_factory=list)
