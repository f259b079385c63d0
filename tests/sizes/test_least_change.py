"""The change that is named where a training does not fit: it fits, and needs every setting in it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from essence.files import GIB
from essence.plan.gpu_count import backend_of
from essence.sizes.architecture import Architecture
from essence.sizes.least_change import Limits, Pass, PassOn, as_read_on, least_change, smallest_change
from essence.sizes.memory import DeviceLoad, device_bytes, estimate_memory
from support.paper_sizes import PAPER, QWEN3

MULTIPLE = 16


def cure_of(load: DeviceLoad, limit: int, main_memory: bool = False) -> str | None:
    """Of rows of 4,096 tokens, where every device reads the same number of them, however many devices there are."""
    return smallest_change(load, Limits(limit, 4096, 16, main_memory), lambda _: Pass(load.positions, load.labels))


def test_the_cure_is_the_least_change_that_fits() -> None:
    gib_80 = 80 * GIB
    chunked = replace(PAPER, loss_bytes_per_logit=2.0, parallel="single", devices=1, teacher_placement="replicated")

    cure = cure_of(chunked, gib_80)
    assert cure is not None and cure.startswith("parallel = 'zero2' on 2 GPUs")
    assert cure_of(chunked, gib_80, main_memory=True) == "optimizer_placement = 'main_memory'"
    two = replace(chunked, parallel="zero3", devices=2, teacher_placement="sharded")
    cure = cure_of(two, 36 * GIB, main_memory=True)
    assert cure == "parallel = 'zero2' on 2 GPUs and optimizer_placement = 'main_memory'"
    cure = cure_of(replace(two, devices=4), 28 * GIB, main_memory=True)
    assert cure is not None and "main_memory" not in cure
    wide = replace(chunked, positions=32768, labels=32768)
    limit = estimate_memory(replace(wide, positions=8192, labels=8192)).total
    assert cure_of(wide, limit) == "micro_batch_tokens = 8192"
    keeping = replace(chunked, activation_checkpointing=False)
    limit = estimate_memory(chunked).total
    assert cure_of(keeping, limit) == "activation_checkpointing = 'on'"
    assert cure_of(chunked, GIB) is None


def test_on_more_gpus_each_reads_fewer_rows() -> None:
    """32B to 8B on one GPU of 80 GB has passes of two rows, on four of one: no shorter pass is to be asked for."""
    load = replace(
        PAPER,
        student=QWEN3["8b"],
        teacher=QWEN3["32b"],
        packed=True,
        positions=8192,
        labels=8192,
        loss_bytes_per_logit=2.0,
        loss_bytes=6 * GIB,
        loss_labels=4096,
        parallel="single",
        devices=1,
        teacher_placement="replicated",
    )
    shared = {"parallel": "zero2", "devices": 4, "teacher_placement": "sharded"}
    limits = Limits(device_bytes(replace(load, positions=4096, labels=4096, **shared)), 4096, 16)
    cure = smallest_change(load, limits, lambda devices: Pass(8192, 8192) if devices == 1 else Pass(4096, 4096))
    assert cure == "parallel = 'zero2' on 4 GPUs and teacher_placement = 'sharded'"
    cure = smallest_change(load, limits, lambda _: Pass(8192, 8192))
    assert cure == "parallel = 'zero2' on 4 GPUs, teacher_placement = 'sharded' and micro_batch_tokens = 4096"


def test_one_setting_that_is_enough_is_named_alone() -> None:
    """ZeRO-3 was named with a sharded teacher alone, and recomputation beside ZeRO-2 with passes of one row."""
    load = replace(PAPER, teacher=QWEN3["0.6b"], teacher_placement="replicated", parallel="ddp")
    limits = Limits(device_bytes(replace(load, parallel="zero3")), 4096, 16)
    assert smallest_change(load, limits, lambda _: Pass(4096, 4096)) == "parallel = 'zero3' on 4 GPUs"
    keeping = replace(load, activation_checkpointing=False, positions=8192, labels=8192)
    limits = Limits(device_bytes(replace(keeping, parallel="zero2", activation_checkpointing=True)), 4096, 16)
    cure = smallest_change(keeping, limits, lambda _: Pass(8192, 8192))
    assert cure == "parallel = 'zero2' on 4 GPUs and activation_checkpointing = 'on'"


def same_backend(load: DeviceLoad, devices: int) -> Any:
    return backend_of(load.parallel, devices)


SIZES = st.builds(
    Architecture,
    hidden=st.sampled_from([512, 1024, 2560, 4096]),
    layers=st.integers(2, 64),
    heads=st.sampled_from([8, 32]),
    kv_heads=st.just(8),
    head_dim=st.sampled_from([64, 128]),
    intermediate=st.sampled_from([1024, 9728, 25600]),
    vocabulary=st.sampled_from([32_000, 151_936]),
    tied=st.booleans(),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[DeviceLoad, Limits, PassOn]:
    """A training that does not fit, in every form that settings allow."""
    devices = draw(st.sampled_from([1, 2, 4, 8]))
    parallel = draw(st.sampled_from(["single"] if devices == 1 else ["ddp", "zero2", "zero3"]))
    dtype = draw(st.sampled_from(["bfloat16", "float32"]))
    placements = ["replicated", "offloaded", *(["sharded"] if parallel in ("zero2", "zero3") else [])]
    moved = dtype == "bfloat16" and parallel != "zero3" and draw(st.booleans())
    main_memory = moved or draw(st.booleans())
    longest, of_pass, of_step = draw(st.integers(20, 4096)), draw(st.integers(1, 8)), draw(st.integers(1, 64))
    padded = -(-longest // MULTIPLE) * MULTIPLE

    def pass_on(count: int) -> Pass:
        rows = min(of_pass, -(-of_step // count))
        return Pass(rows * padded, rows * longest)

    load = DeviceLoad(
        student=draw(SIZES),
        teacher=draw(st.none() | SIZES),
        compute_dtype=dtype,
        activation_checkpointing=draw(st.booleans()),
        packed=draw(st.booleans()),
        positions=0,
        labels=0,
        loss_bytes_per_logit=draw(st.sampled_from([2.0, 29.0])),
        loss_bytes=draw(st.sampled_from([0, GIB])),
        parallel=parallel,
        devices=devices,
        teacher_placement=draw(st.sampled_from(placements)),
        optimizer_placement="main_memory" if moved else "device",
        teacher_stored=draw(st.booleans()),
        loss_labels=draw(st.sampled_from([None, 2048])),
    )
    load = replace(load, positions=pass_on(devices).positions, labels=pass_on(devices).labels)
    limit = int(device_bytes(load) * draw(st.floats(0.05, 0.999)))
    return load, Limits(limit, longest, MULTIPLE, main_memory), pass_on


def allowed(load: DeviceLoad, limits: Limits) -> bool:
    """What settings, and the machine's main memory, allow."""
    if load.optimizer_placement == "main_memory" and (load.parallel == "zero3" or not limits.main_memory):
        return False
    if load.teacher_placement == "sharded" and load.parallel not in ("zero2", "zero3"):
        return False
    return (load.parallel == "single") == (load.devices == 1)


def without_each(load: DeviceLoad, changed: DeviceLoad, pass_on: PassOn) -> Iterator[tuple[str, DeviceLoad]]:
    """The change, but for one of the settings that it names."""
    read = as_read_on(load, changed.devices, pass_on)
    if changed.devices != load.devices:
        most = min(changed.positions, load.positions) if changed.positions < read.positions else load.positions
        labels = load.labels if most == load.positions else round(load.labels * most / load.positions)
        back = replace(changed, devices=load.devices, positions=most, labels=labels)
        yield "devices", replace(back, parallel=same_backend(changed, load.devices))
    if changed.parallel != (before := same_backend(load, changed.devices)):
        yield "parallel", replace(changed, parallel=before)
    for name in ("teacher_placement", "optimizer_placement", "activation_checkpointing"):
        if getattr(changed, name) != getattr(load, name):
            yield name, replace(changed, **{name: getattr(load, name)})
    if changed.positions != read.positions:
        yield "positions", replace(changed, positions=read.positions, labels=read.labels)


@settings(max_examples=400, deadline=None)
@given(cases())
def test_every_setting_that_is_named_is_needed(case: tuple[DeviceLoad, Limits, PassOn]) -> None:
    load, limits, pass_on = case
    changed = least_change(load, limits, pass_on)
    if changed is None:
        return
    assert device_bytes(changed) <= limits.bytes and allowed(changed, limits)
    assert changed.positions >= limits.longest_row and changed.devices >= load.devices
    for name, other in without_each(load, changed, pass_on):
        assert not allowed(other, limits) or device_bytes(other) > limits.bytes, name


@settings(max_examples=100, deadline=None)
@given(cases(), st.floats(0.5, 1.0))
def test_what_fits_more_gpus_is_found(case: tuple[DeviceLoad, Limits, PassOn], share: float) -> None:
    """A limit that some way of sharing out keeps to is met by the change that is named."""
    load, limits, pass_on = case
    teacher = "sharded" if load.teacher and not load.teacher_stored else load.teacher_placement
    most = replace(as_read_on(load, 32, pass_on), parallel="zero3", teacher_placement=teacher)
    most = replace(most, optimizer_placement="device", activation_checkpointing=True)
    room = limits._replace(bytes=int(device_bytes(most) / share))
    if device_bytes(load) > room.bytes:
        assert least_change(load, room, pass_on) is not None
