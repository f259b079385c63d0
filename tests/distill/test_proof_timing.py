"""How a proof takes a step apart: parts by marks, spans of a profiler, and what several ranks add."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from essence.distill.proof_timing import PARTS, Marks, covered_s, profiled, timed  # noqa: E402
from essence.record.proof_records import StepParts  # noqa: E402
from essence.sizes.speeds import StepWork  # noqa: E402
from essence.stages.prove_steps import MeasuredStep, computed_s, exposed_byte_s, fit_of, step_points  # noqa: E402

CPU = torch.device("cpu")
SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)).map(lambda span: (span[0], span[0] + span[1])))


@given(SPANS)
def test_what_overlaps_counts_once(spans: list[tuple[int, int]]) -> None:
    covered = {moment for begin, end in spans for moment in range(begin, end)}
    assert covered_s([(float(begin), float(end)) for begin, end in spans]) == len(covered)


def test_each_part_has_the_time_up_to_its_mark() -> None:
    """A second pass of the same step is added to the first."""
    marks = Marks(CPU)
    for part in ("teacher", *PARTS[:3], *PARTS):
        marks.mark(part)
        if part == "forward":
            time.sleep(0.02)
    found = marks.seconds()
    assert set(found) == set(PARTS) and found["backward"] >= 0.04 and found["forward"] < 0.02


def test_a_step_is_timed_once_warmed_and_then_looked_at() -> None:
    """Steps that warm up, those that are timed, and one under the profiler; on a CPU nothing waits for a kernel."""
    done = []

    def step(marks: Marks) -> None:
        done.append(1)
        marks.mark("teacher")
        torch.ones(8) + 1
        marks.mark("optimizer")

    found = timed(step, CPU, 2, 3)
    assert len(done) == 2 + 3 + 1 and found.host_gap_s is None and found.communication_s == 0.0
    assert found.parts["optimizer"] > 0.0 and found.parts["forward"] == 0.0
    assert any(event.name == "aten::add" for event in profiled(lambda: torch.ones(8) + 1, CPU))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_tells_its_parts_and_how_long_it_waits() -> None:
    """Two products on the device's own clock, and a pause of the host in which the device has nothing to do."""
    gpu = torch.device("cuda")
    one = torch.ones(2048, 2048, device=gpu)

    def step(marks: Marks) -> None:
        marks.mark("teacher")
        one @ one
        marks.mark("forward")
        torch.cuda.synchronize()
        time.sleep(0.02)
        one @ one
        marks.mark("optimizer")

    found = timed(step, gpu, 2, 3)
    assert 0.0 < found.parts["forward"] < 0.02 <= found.parts["optimizer"] + 1e-3
    assert found.host_gap_s is not None and 0.015 < found.host_gap_s < found.seconds
    assert found.communication_s == 0.0


def measured(ranks: int, work: StepWork, seconds: float) -> MeasuredStep:
    parts = StepParts(
        teacher_s=0.0, forward_s=0.0, backward_s=0.0, optimizer_s=0.0, communication_s=None, host_gap_s=None
    )
    return MeasuredStep(
        ranks=ranks, recomputed=False, rows=1, tokens=8, work=list(work), seconds=seconds, parts=parts,
        peak_bytes=None, reserved_bytes=None, rule_bytes=1,
    )  # fmt: skip


@given(st.floats(0.0, 1e-9), st.floats(0.0, 1e-9))
def test_what_a_byte_between_ranks_costs_is_found_again(byte_s: float, update_s: float) -> None:
    """Steps made by the model of time give its coefficients, that of the link among them; none is below zero."""
    loads = [(1e12, 24.0, 4e8), (4e12, 24.0, 4e8), (9e12, 24.0, 4e8), (1e12, 48.0, 4e8)]
    speeds = (3e-15, 2e-4, 2e-11)
    alone = [StepWork(*load) for load in loads]
    own = [sum(each * amount for each, amount in zip(speeds, load, strict=True)) for load in loads]
    single = [measured(1, work, seconds) for work, seconds in zip(alone, own, strict=True)]
    several = [work._replace(link_bytes=1e9, main_memory_parameters=1e8) for work in alone]
    together = [
        measured(4, work, seconds + byte_s * work.link_bytes + update_s * work.main_memory_parameters)
        for work, seconds in zip(several, own, strict=True)
    ]
    fit = fit_of(single)
    found = exposed_byte_s(fit, together, update_s)
    assert found == pytest.approx(byte_s, rel=1e-3, abs=1e-13)
    points, coefficients = step_points(single, together, found, update_s)
    assert coefficients.error == pytest.approx(0.0, abs=1e-6) and len(points) == 8
    hidden = [measured(4, work, 0.9 * computed_s(fit, work)) for work in several]
    assert exposed_byte_s(fit, hidden, 0.0) == 0.0
