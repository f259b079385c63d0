"""The chunked objective against the plain one, and the memory and products it takes at the paper's sizes."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import log_softmax, pad
from torch.utils.flop_counter import FlopCounterMode

from essence.distill import chunked
from essence.distill.module import objective_from_states
from essence.distill.objective import Losses
from essence.errors import InputError
from essence.plan.experiment import load
from essence.settings import Divergence, LossResources
from support.live_bytes import LiveBytes
from support.some_resources import some_objective

DIVERGENCES = get_args(Divergence)
GIB = 1 << 30


def loss_resources(**changes: Any) -> LossResources:
    return LossResources(
        **{"form": "chunked", "chunk_rows": 3, "gradient_rows": 7, "compiled": False, "fallback": False, **changes}
    )


PLAIN = loss_resources(form="plain")
ROUNDINGS = 64
"""Of parts that cancel."""


class Case:
    """Random states, heads, labels and weights."""

    def __init__(self, rows: int, vocabulary: int, padding: int, seed: int, dtype: torch.dtype, ignored: bool) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.states, self.head = random(rows, 6), 2 * random(vocabulary, 6)
        self.teacher_states, self.teacher_head = random(rows, 4), 2 * random(vocabulary + padding, 4)
        self.labels = torch.randint(-2 if ignored else 0, vocabulary, (rows,), generator=generator)
        self.weights = torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) > 0.2 * ignored)

    def parts(self, objective: Any, scale: float) -> float:
        """Largest sum of what may cancel in an entry of a gradient of reverse KL, where the student is nearly sure."""
        logits, taught = self.states @ self.head.T, self.teacher_states @ self.teacher_head.T
        logits = pad(logits, (0, taught.shape[1] - logits.shape[1]))
        log_q, log_p = (log_softmax(x / objective.temperature, dim=-1) for x in (logits, taught))
        weights = self.weights * scale / objective.temperature
        each = (log_q.exp() * (log_q - log_p).abs() * weights[:, None])[:, : len(self.head)]
        sums = [each @ self.head.abs(), each.T @ self.states.abs()]
        return max((float(found.max()) for found in sums if found.numel()), default=0.0)

    def run(self, objective: Any, resources: LossResources, scale: float = 1.0) -> tuple[Losses, Tensor, Tensor]:
        """Losses, d states, d head."""
        states, head = self.states.clone().requires_grad_(), self.head.clone().requires_grad_()
        teacher = (self.teacher_states, self.teacher_head)
        losses = objective_from_states(states, head, *teacher, self.labels, self.weights, objective, resources)
        (scale * losses.loss).backward()
        assert states.grad is not None and head.grad is not None
        return losses, states.grad, head.grad


@given(
    rows=st.integers(0, 20),
    vocabulary=st.integers(1, 40),
    padding=st.integers(0, 5),
    divergence=st.sampled_from(DIVERGENCES),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    kd_weight=st.sampled_from([0.0, 0.3, 1.0]),
    chunk=st.integers(1, 25),
    store=st.integers(0, 25),
    ignored=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_equals_plain_in_float64(
    rows: int, vocabulary: int, padding: int, divergence: str, temperature: float, kd_weight: float, chunk: int,
    store: int, ignored: bool, seed: int,
) -> None:  # fmt: skip
    case = Case(rows, vocabulary, padding, seed, torch.float64, ignored)
    objective = some_objective(divergence=divergence, temperature=temperature, kd_weight=kd_weight)
    resources = loss_resources(chunk_rows=chunk, gradient_rows=store)
    plain, *expected = case.run(objective, PLAIN, scale=3.0)
    found, *gradients = case.run(objective, resources, scale=3.0)
    torch.testing.assert_close(torch.stack(found), torch.stack(plain), rtol=1e-12, atol=1e-12)
    for gradient, reference in zip(gradients, expected, strict=True):
        # By the largest entry: one in which large parts cancel has the rounding of those.
        largest = max(1.0, float(reference.abs().max())) if reference.numel() else 1.0
        allowed = 1e-12 * largest
        if divergence == "reverse_kl":
            allowed = max(allowed, ROUNDINGS * torch.finfo(torch.float64).eps * case.parts(objective, scale=3.0))
        torch.testing.assert_close(gradient, reference, rtol=0.0, atol=allowed)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("padding", [0, 2])
def test_gradient_is_that_of_the_value(divergence: str, padding: int) -> None:
    """Against central differences along random directions of states and head."""
    case, step = Case(5, 7, padding, 1, torch.float64, ignored=True), 1e-6
    objective = some_objective(divergence=divergence, temperature=1.5)
    _, *gradients = case.run(objective, loss_resources())
    generator = torch.Generator().manual_seed(2)
    for name, gradient in zip(("states", "head"), gradients, strict=True):
        at = getattr(case, name)
        direction = torch.randn(at.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            setattr(case, name, at + sign * step * direction)
            losses.append(case.run(objective, loss_resources())[0].loss.item())
        setattr(case, name, at)
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-6, abs=1e-8)


def test_a_second_backward_is_refused() -> None:
    case = Case(3, 8, 0, 11, torch.float64, ignored=False)
    arguments = (case.teacher_states, case.teacher_head, case.labels, case.weights, some_objective(), loss_resources())
    losses = objective_from_states(case.states.requires_grad_(), case.head, *arguments)
    losses.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward can be called once"):
        losses.loss.backward()


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_is_as_exact_as_plain(divergence: str) -> None:
    """Against float64 on the same bfloat16 inputs: error of each gradient at most 1.1 times that of full logits."""
    case, objective = Case(200, 500, 0, 2, torch.bfloat16, ignored=False), some_objective(divergence=divergence)
    exact = Case(200, 500, 0, 2, torch.bfloat16, ignored=False)
    for name in ("states", "head", "teacher_states", "teacher_head"):
        setattr(exact, name, getattr(exact, name).double())
    truth, *true_gradients = exact.run(objective, PLAIN)
    plain, *plain_gradients = case.run(objective, PLAIN)
    found, *gradients = case.run(objective, loss_resources(chunk_rows=32, gradient_rows=4096))
    assert abs(found.loss - truth.loss) <= 2 * abs(plain.loss - truth.loss) + 1e-5 * abs(truth.loss)
    for gradient, reference, true in zip(gradients, plain_gradients, true_gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert error(gradient, true) <= 1.1 * error(reference, true)


def test_head_gradient_of_many_parts_is_summed_in_float32() -> None:
    """Summed in bfloat16 part by part, the error is a multiple."""
    case, exact = (Case(2000, 60, 0, 3, torch.bfloat16, ignored=False) for _ in range(2))
    for name in ("states", "head", "teacher_states", "teacher_head"):
        setattr(exact, name, getattr(exact, name).double())
    *_, true = exact.run(some_objective(), PLAIN)
    *_, plain = case.run(some_objective(), PLAIN)
    parts = loss_resources(chunk_rows=50, gradient_rows=50)
    *_, exact_sum = case.run(some_objective(), parts)
    coarse_sum = torch.zeros_like(case.head)
    for rows in torch.arange(2000).split(50):
        part = Case(2000, 60, 0, 3, torch.bfloat16, ignored=False)
        for name in ("states", "teacher_states", "labels", "weights"):
            setattr(part, name, getattr(part, name)[rows])
        coarse_sum += part.run(some_objective(), PLAIN)[2]
    assert error(exact_sum, true) <= 1.1 * error(plain, true)
    assert error(coarse_sum, true) > 1.5 * error(plain, true)


def test_head_in_float32_under_bfloat16_states() -> None:
    """Float32 masters: products in bfloat16, gradient in float32."""
    case = Case(50, 30, 0, 4, torch.bfloat16, ignored=True)
    case.head = case.head.float()
    plain, chunked = (case.run(some_objective(), resources) for resources in (PLAIN, loss_resources()))
    assert chunked[2].dtype == torch.float32 and chunked[1].dtype == torch.bfloat16
    torch.testing.assert_close(chunked[0].loss, plain[0].loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(chunked[2], plain[2], rtol=0.03, atol=0.01)


@pytest.mark.parametrize("resources", [PLAIN, loss_resources()])
def test_ignored_lines_add_nothing_whatever_they_hold(resources: LossResources) -> None:
    case = Case(9, 11, 0, 5, torch.float64, ignored=False)
    kept = torch.tensor([0, 2, 3, 6, 7, 8])
    case.labels[1], case.weights[4], case.labels[5] = -100, 0.0, -1
    case.weights[[0, 2, 3, 6, 7, 8]] = 0.1
    case.states[[1, 4, 5]], case.teacher_states[[1, 4, 5]] = float("nan"), float("inf")
    found, d_states, d_head = case.run(some_objective(), resources)
    for name in ("states", "teacher_states", "labels", "weights"):
        setattr(case, name, getattr(case, name)[kept])
    alone, d_kept, d_head_alone = case.run(some_objective(), resources)
    torch.testing.assert_close(found.loss, alone.loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(d_states[kept], d_kept, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(d_head, d_head_alone, rtol=1e-12, atol=1e-14)
    assert not d_states[[1, 4, 5]].any()


def test_all_ignored_is_zero() -> None:
    case = Case(6, 8, 0, 6, torch.float32, ignored=False)
    case.labels[:] = -100
    losses, d_states, d_head = case.run(some_objective(), loss_resources())
    assert losses.loss.item() == 0.0 and not d_states.any() and not d_head.any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_on_extreme_logits(divergence: str, dtype: torch.dtype) -> None:
    case = Case(6, 9, 2, 7, dtype, ignored=False)
    case.states, case.teacher_states = 300 * case.states, -300 * case.teacher_states
    losses, d_states, d_head = case.run(some_objective(divergence=divergence), loss_resources())
    assert all(torch.isfinite(value).all() for value in (*losses, d_states, d_head))


def test_parts_of_a_batch_add_up_and_tied_weights_get_both_gradients() -> None:
    case, objective = Case(10, 12, 0, 8, torch.float64, ignored=False), some_objective()
    embedding = case.head.clone().requires_grad_()
    for rows in (slice(0, 4), slice(4, 10)):
        states = embedding[case.labels[rows]]
        teacher = (case.teacher_states[rows], case.teacher_head)
        losses = objective_from_states(
            states, embedding, *teacher, case.labels[rows], case.weights[rows], objective, loss_resources()
        )
        losses.loss.backward()
    whole = case.head.clone().requires_grad_()
    arguments = (case.teacher_states, case.teacher_head, case.labels, case.weights, objective, PLAIN)
    objective_from_states(whole[case.labels], whole, *arguments).loss.backward()
    torch.testing.assert_close(embedding.grad, whole.grad, rtol=1e-12, atol=1e-13)


def test_without_gradients_none_are_made() -> None:
    case = Case(5, 8, 0, 9, torch.float32, ignored=False)
    objective, arguments = some_objective(kd_weight=0.0), (None, None, case.labels, case.weights)
    head = case.head.requires_grad_()
    with torch.no_grad():
        found = objective_from_states(case.states, head, *arguments, objective, loss_resources())
    assert not found.loss.requires_grad
    plain = objective_from_states(case.states, head, *arguments, objective, PLAIN)
    assert found.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)


def test_smaller_teacher_vocabulary_and_missing_teacher_are_refused() -> None:
    case = Case(3, 8, 0, 10, torch.float32, ignored=False)
    case.teacher_head = case.teacher_head[:5]
    for resources in (PLAIN, loss_resources()):
        with pytest.raises(InputError, match=r"teacher's vocabulary \(5\) is smaller than the student's \(8\)"):
            case.run(some_objective(), resources)
        with pytest.raises(ValueError, match="needs the teacher"):
            arguments = (case.labels, case.weights, some_objective(), resources)
            objective_from_states(case.states, case.head, None, None, *arguments)


VOCABULARY = 151_936


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time grows with the number of operations. Larger blocks than those of a processor's cache need few, and no fewer
    bytes: 16, 64 and 128 rows have the same peak."""
    monkeypatch.setattr(chunked, "block_rows", lambda lines: 128)


def counted(tokens: int, hidden: int, teacher_hidden: int, resources: LossResources | None) -> tuple[float, int]:
    """Peak GiB above the inputs and FLOPs of products of heads and loss in bfloat16; None = the released form."""
    with FakeTensorMode():
        options = {"dtype": torch.bfloat16}
        states, head = torch.empty(tokens, hidden, **options), torch.empty(VOCABULARY, hidden, **options)
        teacher = torch.empty(tokens, teacher_hidden, **options), torch.empty(VOCABULARY, teacher_hidden, **options)
        labels, weights = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens)
        states.requires_grad_(), head.requires_grad_()
        with LiveBytes() as memory, FlopCounterMode(display=False) as flops:
            if resources is None:
                released(states, head, *teacher, labels).backward()
            else:
                found = objective_from_states(states, head, *teacher, labels, weights, some_objective(), resources)
                found.loss.backward()
                del found
    return memory.peak / GIB, flops.get_total_flops()


def released(states: Tensor, head: Tensor, teacher_states: Tensor, teacher_head: Tensor, labels: Tensor) -> Tensor:
    """The released objective by its formula: full logits, float32 copies, log of softmax."""
    logits = states @ head.T
    with torch.no_grad():
        teacher_logits = teacher_states @ teacher_head.T
    ce = torch.nn.functional.cross_entropy(logits.float(), labels)
    p, q = torch.softmax(teacher_logits.float(), dim=-1), torch.softmax(logits.float(), dim=-1)
    return 0.5 * ce + 0.5 * -(p * torch.log(q)).sum(-1).mean()


@pytest.mark.slow
@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize(
    ("tokens", "hidden", "teacher_hidden"),
    [(2048, 1024, 1024), (4096, 2560, 4096), (4096, 1024, 4096), (8192, 4096, 5120), (16384, 4096, 5120)],
)
def test_peak_memory_at_full_size(tokens: int, hidden: int, teacher_hidden: int) -> None:
    """Six times below the released form."""
    default = load("bespoke").experiment.resources.loss
    reference, four_products = counted(tokens, hidden, teacher_hidden, None)
    exact, products = counted(tokens, hidden, teacher_hidden, default)
    assert reference / exact >= 6.0, f"{reference:.2f} GiB against {exact:.2f}"
    assert products == four_products == 2 * tokens * VOCABULARY * (3 * hidden + teacher_hidden)


@pytest.mark.slow
@pytest.mark.usefixtures("few_blocks")
def test_peak_memory_stops_growing_with_the_store() -> None:
    resources = LossResources(form="chunked", chunk_rows=512, gradient_rows=4096, compiled=False, fallback=False)
    peaks = [counted(tokens, 2560, 4096, resources)[0] for tokens in (2048, 4096, 6144, 8192)]
    states = 2048 * 2 * (3 * 2560 + 4096)
    assert (peaks[1] - peaks[0]) * GIB <= 2048 * VOCABULARY * 2 + 1.1 * states
    assert (peaks[3] - peaks[2]) * GIB <= 1.1 * states
