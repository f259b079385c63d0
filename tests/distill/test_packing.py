"""Sharing rows out among forward passes, and that a row in company is the row alone: states, loss, every gradient."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence.settings import Resources
from essence.sizes import step_rows
from support.some_resources import some_resources

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def resources(rows: int, tokens: int) -> Resources:
    return some_resources(threads=1, micro_batch_rows=rows, micro_batch_tokens=tokens, checkpoint_every_s=0.0)


@given(lengths=LENGTHS, packed=st.booleans(), rows=st.integers(1, 9), tokens=st.integers(1, 600))
def test_every_row_is_in_one_batch_that_keeps_its_bounds(
    lengths: list[int], packed: bool, rows: int, tokens: int
) -> None:
    batches = step_rows.micro_batches(lengths, packed, 16, resources(rows, tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        shape = step_rows.shape(lengths, batch, packed, 16)
        assert shape.tokens == sum(lengths[index] for index in batch) <= shape.positions
        assert len(batch) == 1 or (shape.tokens if packed else shape.positions) <= tokens
        assert packed or len(batch) <= rows


@given(lengths=LENGTHS, capacity=st.integers(300, 900))
def test_first_fit_leaves_no_two_sequences_that_fit_into_one(lengths: list[int], capacity: int) -> None:
    sizes = [sum(lengths[i] for i in one) for one in step_rows.first_fit_decreasing(lengths, capacity)]
    assert sum(size * 2 <= capacity for size in sizes) <= 1


@given(lengths=LENGTHS, tokens=st.integers(1, 900))
def test_steps_of_tokens_are_consecutive_and_as_full_as_they_can_be(lengths: list[int], tokens: int) -> None:
    steps = step_rows.steps_of_tokens(lengths, tokens)
    assert [index for step in steps for index in step] == list(range(len(lengths)))
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        size = sum(lengths[index] for index in step)
        assert size <= tokens or len(step) == 1
        if following is not None:
            assert size + lengths[following[0]] > tokens


def test_equal_lengths_keep_their_order_and_fill_is_counted() -> None:
    assert step_rows.first_fit_decreasing([5, 9, 5, 5], 10) == [[1], [0, 2], [3]]
    assert step_rows.length_grouped([5, 9, 5, 5], 2, 100, 8) == [[1, 0], [2, 3]]
    shapes = [step_rows.shape([5, 9, 5, 5], batch, True, 8) for batch in ([1], [0, 2], [3])]
    assert [shape.positions for shape in shapes] == [16, 16, 8]
    assert step_rows.fill(shapes) == 24 / 40
    assert step_rows.fill([]) == 0.0
    assert step_rows.steps_of_tokens([], 10) == []


torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from essence.data.truncation import Example  # noqa: E402
from essence.distill import attention  # noqa: E402
from essence.distill.attention import as_computed, use_row_attention  # noqa: E402
from essence.distill.batches import Batch  # noqa: E402

VOCABULARY = 31


def decoder(kind: str = "qwen3", **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        **({"head_dim": 8} if kind == "qwen3" else {}),
        **changes,
    }
    config = transformers.AutoConfig.for_model(kind, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config).double()


def rows_of(lengths: list[int]) -> list[Example]:
    random = np.random.default_rng(3)
    rows = []
    for number, length in enumerate(lengths):
        supervised = random.random(length) < 0.6
        supervised[0], supervised[-1] = False, length > 1
        rows.append(Example(number, random.integers(0, VOCABULARY, length, dtype=np.int32), supervised))
    return rows


def loss_and_gradients(model: Any, batches: list[Batch]) -> tuple[Any, dict[str, Any]]:
    """Weighted cross entropy of all batches, in the order of the rows' labels."""
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        states = model.base_model(**batch.model_inputs()).last_hidden_state.flatten(0, 1)[batch.predictors]
        losses = torch.nn.functional.cross_entropy(model.lm_head(states), batch.labels, reduction="none")
        total = total + (losses * batch.weights.double()).sum()
    total.backward()
    return total.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("lengths", [[13, 2, 40, 1, 7], [16], [3, 3, 3]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_is_unpacked_in_float64(kind: str, lengths: list[int], checkpointing: bool) -> None:
    alone, together = decoder(kind), decoder(kind)
    assert use_row_attention(together)
    if checkpointing:
        together.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows, cpu = rows_of(lengths), torch.device("cpu")
    expected = loss_and_gradients(alone, [Batch.of([row], 1, cpu) for row in rows])
    found = loss_and_gradients(together, [Batch.of(rows, 16, cpu, packed=True)])
    assert abs(found[0] - expected[0]) <= 1e-12 * abs(expected[0])
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-12 * gradient.abs().max().clamp(min=1e-3), name


def test_a_row_does_not_see_its_neighbours() -> None:
    """Other tokens in the other rows change no bit of a row's states."""
    model, cpu = decoder(), torch.device("cpu")
    use_row_attention(model)
    first, second, third = rows_of([9, 20, 11])
    states = []
    for change in (0, 1):
        others = [Example(row.row, (row.input_ids + change) % VOCABULARY, row.supervised) for row in (first, third)]
        batch = Batch.of([others[0], second, others[1]], 16, cpu, packed=True)
        states.append(model.base_model(**batch.model_inputs()).last_hidden_state[0, 9:29])
    assert torch.equal(states[0], states[1])


def test_the_library_s_own_detection_agrees() -> None:
    """transformers finds the rows where positions restart, and masks everything before."""
    ours, theirs, cpu = decoder(), decoder(), torch.device("cpu")
    use_row_attention(ours)
    inputs = Batch.of(rows_of([9, 20, 11]), 16, cpu, packed=True).model_inputs()
    known = {name: inputs[name] for name in ("input_ids", "position_ids", "use_cache")}
    torch.testing.assert_close(
        ours.base_model(**inputs).last_hidden_state, theirs.base_model(**known).last_hidden_state, rtol=0, atol=1e-12
    )


def test_row_attention_changes_nothing_in_unpacked_batches() -> None:
    plain, ours = decoder(), decoder()
    use_row_attention(ours)
    inputs = Batch.of(rows_of([9, 20]), 16, torch.device("cpu")).model_inputs()
    assert torch.equal(plain.base_model(**inputs).last_hidden_state, ours.base_model(**inputs).last_hidden_state)


def test_sliding_windows_are_not_packed() -> None:
    model = decoder(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    before = model.config._attn_implementation
    assert not use_row_attention(model)
    assert model.config._attn_implementation == before


def test_saved_config_does_not_speak_of_row_attention() -> None:
    model = decoder()
    use_row_attention(model)
    assert "essence" not in model.config.to_json_string(use_diff=False)


def test_attention_is_in_the_dtype_of_autocast() -> None:
    """Norms with float32 weights give float32 queries and keys, for which the kernel of a GPU has no form."""
    states = torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.bfloat16)
    assert as_computed(*states) == states
    with torch.autocast("cpu", torch.bfloat16):
        assert {one.dtype for one in as_computed(*states)} == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_of_the_gpu_is_taken_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a student is trained: float32 weights, computed in bfloat16."""
    rows, gpu, calls = rows_of([9, 20, 11]), torch.device("cuda"), []
    model = decoder(hidden_size=64, head_dim=32).float().to(gpu)
    use_row_attention(model)
    kernel = attention._flash_rows
    monkeypatch.setattr(attention, "_flash_rows", lambda *args: calls.append(args) or kernel(*args))
    with torch.autocast("cuda", torch.bfloat16):
        model.base_model(**Batch.of(rows, 8, gpu, packed=True).model_inputs())
    assert calls


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_of_the_gpu_gives_the_same_rows() -> None:
    rows, gpu = rows_of([9, 20, 11]), torch.device("cuda")
    model = decoder(hidden_size=64, head_dim=32).to(gpu)
    expected = torch.cat(
        [model.base_model(**Batch.of([row], 1, gpu).model_inputs()).last_hidden_state[0] for row in rows]
    )
    fast = copy.deepcopy(model).bfloat16()
    use_row_attention(fast)
    found = fast.base_model(**Batch.of(rows, 8, gpu, packed=True).model_inputs()).last_hidden_state[0]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.1)
