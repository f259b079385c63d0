"""The objective against a naive float64 one, and where naive ones fail."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from essence.distill.objective import cross_entropy_of_rows, objective
from essence.errors import InputError
from essence.settings import ObjectiveSettings
from support.some_resources import some_objective


def settings(kd_weight: float = 0.5, temperature: float = 1.0) -> ObjectiveSettings:
    return some_objective(kd_weight=kd_weight, temperature=temperature)


def naive(student: Tensor, teacher: Tensor, rows: list[list[int]], objective: ObjectiveSettings) -> tuple[float, float]:
    """CE and KD by the formula, row by row; `rows` holds the labels of each row."""
    at, ce, kd = 0, 0.0, 0.0
    for labels in rows:
        row_ce = row_kd = 0.0
        for label in labels:
            s, t = student[at].double(), teacher[at].double()
            row_ce -= math.log(float(torch.exp(s[label]) / torch.exp(s).sum()))
            s = torch.cat([s, torch.zeros(len(t) - len(s), dtype=torch.float64)]) / objective.temperature
            t = t / objective.temperature
            p, q = torch.exp(t) / torch.exp(t).sum(), torch.exp(s) / torch.exp(s).sum()
            row_kd -= float((p * torch.log(q)).sum())
            at += 1
        ce += row_ce / len(labels) / len(rows)
        kd += row_kd / len(labels) / len(rows)
    return ce, kd


def weights_of(rows: list[list[int]]) -> Tensor:
    return torch.tensor([1.0 / len(row) / len(rows) for row in rows for _ in row])


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    kd_weight=st.floats(0.1, 1.0),
    temperature=st.sampled_from([1.0, 0.5, 2.0]),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_naive(
    counts: list[int], padding: int, kd_weight: float, temperature: float, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    total, vocabulary = sum(counts), 11
    student = (3 * torch.randn(total, vocabulary, generator=generator)).to(dtype)
    teacher = (3 * torch.randn(total, vocabulary + padding, generator=generator)).to(dtype)
    labels = torch.randint(vocabulary, (total,), generator=generator)
    rows = [part.tolist() for part in labels.split(counts)]
    chosen = settings(kd_weight, temperature)
    ce, kd = naive(student, teacher, rows, chosen)
    found = objective(student, teacher, labels, weights_of(rows).to(dtype), chosen)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-7  # the weights of the test are rounded to float32
    assert found.ce.item() == pytest.approx(ce, rel=tolerance)
    assert found.kd.item() == pytest.approx(kd, rel=tolerance)
    assert found.loss.item() == pytest.approx((1 - kd_weight) * ce + kd_weight * kd, rel=tolerance)


def test_gradient_is_that_of_the_formula() -> None:
    """d loss / d logits = softmax(s) - (1 - w) onehot - w softmax(t), at temperature 1."""
    student = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(4, 9, dtype=torch.float64), torch.tensor([0, 8, 3, 3])
    objective(student, teacher, labels, torch.full((4,), 0.25, dtype=torch.float64), settings(0.3)).loss.backward()
    onehot = torch.nn.functional.one_hot(labels, 9)
    expected = (student.softmax(-1) - 0.7 * onehot.double() - 0.3 * teacher.softmax(-1)) / 4
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-12, atol=1e-15)


def test_finite_where_probabilities_underflow() -> None:
    """The released `log(softmax(x))` gives NaN here (trap 12)."""
    student = torch.zeros(2, 5, requires_grad=True)
    with torch.no_grad():
        student[:, 0] = 200.0
    teacher = torch.zeros(2, 5)
    teacher[:, 1] = 300.0
    found = objective(student, teacher, torch.tensor([1, 1]), torch.tensor([0.5, 0.5]), settings())
    found.loss.backward()
    assert found.loss.item() == pytest.approx(200.0)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_larger_teacher_vocabulary_pads_the_student_for_kd_only() -> None:
    student, labels, weights = torch.zeros(1, 4), torch.tensor([2]), torch.ones(1)
    found = objective(student, torch.zeros(1, 6), labels, weights, settings())
    assert found.ce.item() == pytest.approx(math.log(4))
    assert found.kd.item() == pytest.approx(math.log(6))


def test_smaller_teacher_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match=r"teacher's vocabulary \(3\) is smaller than the student's \(4\)"):
        objective(torch.zeros(1, 4), torch.zeros(1, 3), torch.tensor([0]), torch.ones(1), settings())


def test_without_teacher() -> None:
    student, labels, weights = torch.randn(3, 7), torch.tensor([1, 2, 3]), torch.full((3,), 1 / 3)
    found = objective(student, None, labels, weights, settings(kd_weight=0.0))
    assert found.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(student, labels).item())
    assert found.kd.item() == 0.0
    assert found.loss.item() == cross_entropy_of_rows(student, labels, weights).item()
    with pytest.raises(ValueError, match="teacher"):
        objective(student, None, labels, weights, settings())


def test_bfloat16_logits_are_summed_in_float32() -> None:
    student, labels = torch.randn(2, 1000).bfloat16(), torch.tensor([1, 2])
    found = objective(student, student, labels, torch.tensor([0.5, 0.5]), settings())
    assert found.loss.dtype == torch.float32
    exact = objective(student.double(), student.double(), labels, torch.tensor([0.5, 0.5]).double(), settings())
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=1e-6)


def test_parts_of_a_batch_add_up() -> None:
    student, teacher, labels = torch.randn(5, 7).double(), torch.randn(5, 7).double(), torch.arange(5)
    weights = torch.tensor([0.25, 0.25, 1 / 6, 1 / 6, 1 / 6], dtype=torch.float64)
    whole = objective(student, teacher, labels, weights, settings()).loss
    parts = [objective(student[r], teacher[r], labels[r], weights[r], settings()).loss for r in (slice(2), slice(2, 5))]
    assert (parts[0] + parts[1]).item() == pytest.approx(whole.item(), rel=1e-14)
