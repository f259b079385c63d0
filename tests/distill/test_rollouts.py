"""A student that learns from its own words, against plain loops written here, and after kills."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from essence.data.draws import mixed
from essence.data.truncation import Example
from essence.distill.checkpoint import Sampled
from essence.distill.module import Distiller
from essence.distill.prompts import prompts_of
from essence.distill.rollouts import (
    OnPolicy,
    Rollout,
    choose_tokens,
    continue_prompts,
    largest_rollouts,
    rollouts_together,
    uniforms,
)
from essence.distill.storage import TrainResult
from essence.distill.teachers import LiveTeacher
from essence.distill.trainer import train
from essence.errors import InputError
from essence.progress import Progress, Stopped, StopRequest
from essence.settings import RolloutSettings
from support.small_training import RESOURCES, TRAIN, VALIDATION, VOCABULARY, ActAfter, model, settings
from support.some_resources import some_objective, some_view

CPU = torch.device("cpu")
MOST, ENDS, SEED = 9, frozenset({3, 11}), 5
PROMPTS = [Example(row.row, row.input_ids[: 2 + row.row % 5], np.zeros(2 + row.row % 5, np.bool_)) for row in TRAIN]
EVERY_STEP = RESOURCES.model_copy(update={"checkpoint_every_s": 0.0})


def on_policy_settings(every_steps: int = 2, temperature: float = 0.8, **changes: Any) -> Any:
    return settings(
        view=some_view(span=f"rollout-{MOST}", sections="cot+a", draw_seed=SEED),
        objective=some_objective(kd_weight=1.0, divergence="reverse_kl"),
        rollouts={"every_steps": every_steps, "temperature": temperature},
        **changes,
    )


def run(
    work: Path,
    student: Any,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    resources: Any = EVERY_STEP,
    asked: Any = None,
) -> TrainResult:
    return train(
        student,
        LiveTeacher(model(1, hidden=24)),
        PROMPTS,
        VALIDATION,
        asked or on_policy_settings(),
        resources,
        work,
        progress or Progress(work.parent / "progress.json"),
        StopRequest() if stop is None else stop,
        ends=ENDS,
    )


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def metrics(result: TrainResult) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    measured = ("seconds", "peak_memory_gib", "sampling_seconds")
    return [{key: value for key, value in line.items() if key not in measured} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], TrainResult]:
    student = model(0)
    result = run(tmp_path_factory.mktemp("undisturbed") / "work", student)
    return weights(student), result


def plain_number(seed: int, step: int, row: int, place: int) -> float:
    """The draws' formula, one number at a time in Python's own integers."""
    largest = (1 << 64) - 1

    def mix(number: int) -> int:
        z = (number + 0x9E3779B97F4A7C15) & largest
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & largest
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & largest
        return z ^ (z >> 31)

    of_row = mix(mix(mix(seed) ^ row) ^ mix(step))
    return (mix((of_row + place + 1) & largest) >> 11) / 2**53


def plain_rollout(student: Any, prompt: Sequence[int], step: int, row: int, temperature: float) -> list[int]:
    """One rollout, which reads all that was said so far for every token."""
    said: list[int] = []
    while len(said) < MOST and not (said and said[-1] in ENDS):
        with torch.no_grad():
            logits = student(input_ids=torch.tensor([[*prompt, *said]]), use_cache=False).logits[0, -1]
        borders = np.cumsum((logits / temperature).softmax(-1).numpy())
        said.append(int(np.searchsorted(borders, plain_number(SEED, step, row, len(said)), side="right")))
    return said


def test_rollouts_equal_a_plain_loop_without_a_cache() -> None:
    """In float64, where no rounding lies between a number and the border of a token."""
    student = model(0).double().eval()
    steps = [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    policy, sampled = OnPolicy(on_policy_settings(), steps, PROMPTS, ENDS), Sampled()
    found = [policy.of_step(step, sampled, student, CPU) for step in range(3)]
    for step, rollouts in enumerate(found):
        assert [one.row for one in rollouts] == [PROMPTS[index].row for index in steps[step]]
        for one in rollouts:
            assert one.tokens == plain_rollout(student, one.prompt.tolist(), step, one.row, 0.8)
    lengths = [len(one.tokens) for rollouts in found for one in rollouts]
    assert {MOST} < set(lengths)  # some are stopped, some end
    assert (sampled.rollouts, sampled.tokens, sampled.waiting) == (10, sum(lengths), [])
    assert sampled.ended == sum(one.tokens[-1] in ENDS for rollouts in found for one in rollouts)


def test_a_rollout_depends_on_no_other_and_on_no_window() -> None:
    student = model(0).double().eval()
    steps = [[0, 1, 2], [3, 4]]
    together = OnPolicy(on_policy_settings(), steps, PROMPTS, ENDS)
    apart = OnPolicy(on_policy_settings(every_steps=1), steps, PROMPTS, ENDS)
    sampled = Sampled(), Sampled()
    for step in range(2):
        found = [
            one.of_step(step, counts, student, CPU) for one, counts in zip((together, apart), sampled, strict=True)
        ]
        assert [one.tokens for one in found[0]] == [one.tokens for one in found[1]]


def test_numbers_are_those_of_the_formula_and_even() -> None:
    rows = [0, 7, 12345678901]
    found = uniforms(5, 2, rows, 4)
    assert found.tolist() == [[plain_number(5, 2, row, place) for place in range(4)] for row in rows]
    many = uniforms(1, 0, range(200), 200)
    assert many.min() >= 0.0 and many.max() < 1.0 and abs(many.mean() - 0.5) < 0.005
    assert np.unique(many).size == many.size and mixed(np.array([1], np.uint64)).dtype == np.uint64


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5])
    numbers = torch.from_numpy(uniforms(3, 0, range(100), 400).reshape(-1))
    chosen = choose_tokens(logits.expand(len(numbers), 4), numbers, 0.7)
    shares = torch.bincount(chosen, minlength=4) / len(numbers)
    torch.testing.assert_close(shares, (logits / 0.7).softmax(-1), atol=0.008, rtol=0.0)
    edges = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    ends = choose_tokens(torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2), edges, 1.0)
    assert ends.tolist() == [1, 2]  # what has no probability is never drawn


def plain_step(student: Any, teacher: Any, rows: Sequence[Rollout]) -> float:
    """Reverse divergence of each row on its own, float64: the mean over its tokens, then over rows; adds gradients."""
    total = 0.0
    for row in rows:
        ids = torch.tensor([[*row.prompt.tolist(), *row.tokens]])
        at = slice(row.prompt.size - 1, ids.shape[1] - 1)
        log_q = student(input_ids=ids).logits[0, at].log_softmax(-1)
        with torch.no_grad():
            log_p = teacher(input_ids=ids).logits[0, at].log_softmax(-1)
        loss = (log_q.exp() * (log_q - log_p)).sum(-1).mean() / len(rows)
        loss.backward()
        total += loss.item()
    return total


def test_first_steps_equal_a_plain_loop(tmp_path: Path, undisturbed: tuple[Any, TrainResult]) -> None:
    """Rollouts, losses, gradient norms and weights of all six steps, against float64 from the first rollout on."""
    student, teacher = model(0).double(), model(1, hidden=24).double()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.05, betas=(0.95, 0.999))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=6, pct_start=0.3)
    lines = metrics(undisturbed[1])
    said = {line["step"]: line for line in lines if line["kind"] == "rollouts"}
    losses = {line["step"]: line for line in lines if line["kind"] == "step"}
    steps: list[list[Example]] = []
    for epoch in range(2):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(7 + epoch)).tolist()
        steps += [[PROMPTS[i] for i in order[first : first + 4]] for first in (0, 4, 8)]
    for step, rows in enumerate(steps):
        if step % 2 == 0:  # every second step the student speaks for two
            student.eval()
            spoken = [
                [Rollout(r.row, r.input_ids, plain_rollout(student, r.input_ids.tolist(), s, r.row, 0.8)) for r in each]
                for s, each in enumerate(steps[step : step + 2], step)
            ]
            student.train()
        optimizer.zero_grad()
        rollouts = spoken[step % 2]
        assert said[step + 1]["rows"] == [row.row for row in rows]
        assert said[step + 1]["tokens"] == [len(one.tokens) for one in rollouts]
        assert said[step + 1]["drawn_before_step"] == step - step % 2 + 1
        loss = plain_step(student, teacher, rollouts)
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0).item()
        assert losses[step + 1]["loss"] == losses[step + 1]["kd"] == pytest.approx(loss, rel=2e-4)
        assert losses[step + 1]["gradient_norm"] == pytest.approx(norm, rel=2e-3)
        optimizer.step()
        scheduler.step()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(undisturbed[0][name].double(), parameter.detach(), rtol=1e-3, atol=5e-5)


def test_loss_and_gradient_of_given_rollouts_in_float64() -> None:
    """The loss of the kit itself, in float64 and in chunks, on rollouts that are given."""
    from essence.distill.batches import Batch

    student, teacher = model(0).double(), model(1, hidden=24, vocabulary=VOCABULARY).double()
    rollouts = [
        Rollout(row.row, row.input_ids, [4 + place, 7, 3][: 1 + place % 3]) for place, row in enumerate(PROMPTS)
    ]
    plain, ours = model(0).double(), student
    expected = plain_step(plain, teacher, rollouts)
    rows = [one.example for one in rollouts]
    asked = on_policy_settings()
    batch = Batch.of(rows, 16, CPU)
    distiller = Distiller(ours, asked.objective, RESOURCES.loss, torch.float64, autocast=False)
    share = batch.step_weights("row", rows).double()
    taught = LiveTeacher(teacher)
    loss = distiller(batch, share, taught.states(batch), taught.head)[0]
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    for (name, one), (_, other) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-9, msg=name)


def assert_same(student: nn.Module, result: TrainResult, undisturbed: tuple[Any, TrainResult]) -> None:
    found = weights(student)
    assert [name for name in found if not torch.equal(found[name], undisturbed[0][name])] == []
    assert metrics(result) == metrics(undisturbed[1])
    assert result.sampled is not None and undisturbed[1].sampled is not None
    assert replace(result.sampled, seconds=0.0) == replace(undisturbed[1].sampled, seconds=0.0)
    assert result.best_weights is not None and undisturbed[1].best_weights is not None
    assert result.best_weights.read_bytes() == undisturbed[1].best_weights.read_bytes()


def test_killed_at_three_random_moments_it_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: tuple[Any, TrainResult]
) -> None:
    """In the middle of a rollout, of what the teacher or the student reads, or of a validation."""
    random = Random(17)
    work = tmp_path / "work"
    for _ in range(3):
        with Killed(after=random.randint(3, 16)) as killed, pytest.raises(KeyboardInterrupt):
            run(work, model(0))
        assert killed.done
    student = model(0)
    assert_same(student, run(work, student), undisturbed)


class Killed:
    """Raises in the forward pass of a student after so many of them, wherever that is."""

    def __init__(self, after: int) -> None:
        self.left, self.done = after, False

    def __enter__(self) -> "Killed":
        self.handle = nn.modules.module.register_module_forward_hook(self.count)
        return self

    def count(self, module: nn.Module, *_: Any) -> None:
        if type(module).__name__ != "Qwen3Model" or self.done:
            return
        self.left -= 1
        if self.left == 0:
            self.done = True
            raise KeyboardInterrupt

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stopped_between_steps_that_share_their_rollouts(
    step: int, tmp_path: Path, undisturbed: tuple[Any, TrainResult]
) -> None:
    stop, work = StopRequest(), tmp_path / "work"
    progress = ActAfter(tmp_path / "progress.json", step, lambda: setattr(stop, "signal_name", "SIGTERM"))
    with pytest.raises(Stopped):
        run(work, model(0), progress, stop, RESOURCES)
    student = model(9)  # its weights come from the checkpoint, and with them what it said before
    assert_same(student, run(work, student, resources=RESOURCES), undisturbed)


def test_activation_checkpointing_changes_no_bit(tmp_path: Path, undisturbed: tuple[Any, TrainResult]) -> None:
    student = model(0)
    recomputing = EVERY_STEP.model_copy(update={"activation_checkpointing": "on"})
    result = run(tmp_path / "work", student, resources=recomputing)
    assert_same(student, result, undisturbed)


def test_what_is_drawn_shows_in_the_progress(tmp_path: Path) -> None:
    class Noting(Progress):
        def update(self, phase: str, done: int, total: int, unit: str, note: str = "") -> None:
            super().update(phase, done, total, unit, note)
            if note.startswith("drawing rollouts: "):
                notes.append((done, *(int(word) for word in note.replace(",", "").split() if word.isdigit())))

    notes: list[tuple[int, ...]] = []
    result = run(tmp_path / "work", model(0), Noting(tmp_path / "progress.json"))
    drawn = [line for line in metrics(result) if line["kind"] == "rollouts"]
    last = {done: (tokens, ended, rollouts) for done, tokens, ended, rollouts in notes}
    assert list(last) == [line["step"] - 1 for line in drawn[::2]], "drawn for two steps at a time"
    both = list(zip(drawn[::2], drawn[1::2], strict=False))
    assert [last[one["step"] - 1][0] for one, _ in both] == [sum(a["tokens"]) + sum(b["tokens"]) for a, b in both]
    assert all(ended <= rollouts for _, ended, rollouts in last.values()) and len(notes) > len(last)


def test_in_bfloat16_the_student_speaks_and_learns(tmp_path: Path) -> None:
    asked = on_policy_settings(compute_dtype="bfloat16")
    teacher = LiveTeacher(model(1, hidden=24).bfloat16(), torch.bfloat16)
    found = train(
        model(0), teacher, PROMPTS, [], asked, RESOURCES, tmp_path / "work", Progress(tmp_path / "p"), StopRequest(),
        ends=ENDS,
    )  # fmt: skip
    assert np.isfinite(found.last_loss) and found.sampled is not None and found.sampled.rollouts == 20


def test_prompts_end_where_the_thought_begins_and_leave_room(tmp_path: Path) -> None:
    from essence.data.truncation import collect

    whole = [Example(7, np.arange(9, dtype=np.int32), np.arange(9) >= 4)]
    found = prompts_of(collect(whole), 5, 9)
    assert found.examples[0].input_ids.tolist() == [0, 1, 2, 3] and not found.examples[0].supervised.any()
    with pytest.raises(InputError, match=r"row 7 .* 4 tokens, after which 6 .* 9 positions.*rollout-5"):
        prompts_of(collect(whole), 6, 9)


def test_what_is_drawn_together_is_the_largest_window() -> None:
    found = rollouts_together(PROMPTS, [[0, 1], [2, 3, 4], [5], [6]], 2, MOST)
    assert (found.rows, found.prompt, found.tokens) == (5, max(row.input_ids.size for row in PROMPTS), MOST)


def test_the_largest_rollouts_have_the_most_tokens_behind_each_prompt() -> None:
    found = largest_rollouts(PROMPTS, MOST)
    assert [(one.row, one.input_ids.size) for one in found] == [(p.row, p.input_ids.size + MOST) for p in PROMPTS]
    assert all(one.supervised[-MOST:].all() and not one.supervised[:-MOST].any() for one in found)


def test_rollouts_and_their_span_need_each_other() -> None:
    asked = settings(rollouts=RolloutSettings(every_steps=1, temperature=1.0))
    with pytest.raises(ValueError, match="one needs the other"):
        OnPolicy(asked, [[0]], PROMPTS, ENDS)


def test_a_model_that_ends_at_once_says_one_token() -> None:
    student = model(0).double().eval()
    everything = frozenset(range(VOCABULARY))
    said = continue_prompts(
        student, [row.input_ids for row in PROMPTS], uniforms(1, 0, range(10), 4), 1.0, everything, CPU
    )
    assert [len(one) for one in said] == [1] * 10
