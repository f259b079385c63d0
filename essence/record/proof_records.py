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


class StepPoint(Group):
    """Optimiser steps of equal rows, timed with the real backend in one process."""

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
    rule_bytes: int
    """The memory rule for the same load (`essence/sizes/memory.py`)."""


class StepCoefficients(Group):
    """Of `essence/sizes/speeds.py`."""

    flop_s: Number
    layer_s: Number
    parameter_s: Number
    error: Number
    """Largest relative difference from a measured step."""


class LinkPoint(Group):
    """Ranks of this machine that bring something together."""

    processes: int
    backend: str
    bytes: int
    all_reduce_bytes_per_s: Number
    all_gather_bytes_per_s: Number


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
    """Until the model is loaded and can be asked."""
    tokens_per_s: Number
    """The most, of all points."""
    points: list[DecodePoint]
    coefficients: DecodeCoefficients


class ProveResolved(Group):
    taken: str = ""
    lengths: list[int] = Field(default_factory=list)
