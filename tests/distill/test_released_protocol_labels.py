"""Labels, loss and gradients of protocol `released` against the released rules written out plainly.

The plain side pads on the left with a mask, as the released collator does, and runs the transformers model of this
environment over the padded row. The kit pads nowhere in that sense; both must give the same float64 numbers.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.some_resources import some_objective, some_resources

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from safetensors.torch import save_file  # noqa: E402
from torch.nn.functional import pad as pad_with_zeros  # noqa: E402

from essence.data.selection import SectionBounds  # noqa: E402
from essence.data.truncation import Example, SkipReason, make_examples  # noqa: E402
from essence.distill.attention import use_row_attention  # noqa: E402
from essence.distill.batches import Batch, states_at, states_of_pads, states_of_rows  # noqa: E402
from essence.distill.module import objective_from_states  # noqa: E402
from essence.distill.stored_states import HEAD, MODEL, ROWS, RowWriter, StoredRow, write_pads  # noqa: E402
from essence.distill.teachers import (  # noqa: E402
    CachedTeacher,
    LiveTeacher,
    TeacherStates,
)
from essence.errors import InputError  # noqa: E402
from essence.settings import ObjectiveSettings, ViewSettings  # noqa: E402
from essence.settings.protocol import PROTOCOLS  # noqa: E402
from essence.sizes import step_rows  # noqa: E402

EOS, THINK, END_THINK, FIRST_WORD, VOCABULARY = 0, 1, 2, 3, 41
IGNORED, MULTIPLE, KEPT_LENGTHS = -100, 16, range(1, 65)
SECTIONS = ("a", "p+a", "cot", "cot+a", "p+cot", "p+cot+a")
SPANS = (("left", 1.0), ("left", 0.3), ("left", 0.5), ("middle", 0.5), ("right", 0.5))
OBJECTIVE = ObjectiveSettings.model_validate(some_objective(kd_weight=0.5))
LOSS = some_resources(threads=1).loss
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Padded:
    """One row as the released collator hands it to the model."""

    input_ids: list[int]
    mask: list[int]
    labels: list[int]


def view(lsp: float, span: str, sections: str, protocol: str = "released") -> ViewSettings:
    table = vars(PROTOCOLS[protocol])  # type: ignore[index]
    named = {name: table[name] for name in ViewSettings.model_fields if name in table}
    return ViewSettings.model_validate({"lsp": lsp, "span": span, "sections": sections, **named})


def row_of(kept: int, lsp: float, drawn: np.random.Generator) -> list[int] | None:
    """A row of which a proportion keeps this number of tokens; None if too short for a prompt and both markers."""
    length = max(n for n in range(1, 4 * kept + 8) if max(1, int(n * lsp)) == kept)
    if length < 3:
        return None
    ids = drawn.integers(FIRST_WORD, VOCABULARY, length).tolist()
    start, end = sorted(drawn.choice(np.arange(1, length), 2, replace=False).tolist())
    ids[start], ids[end] = THINK, END_THINK
    if end + 2 < length:
        ids[length - 2] = EOS
    return ids


def plain_row(ids: list[int], lsp: float, span: str, sections: str) -> Padded | None:
    """The released rules: cut, label by sections, mask eos, pad on the left; None where nothing is supervised."""
    kept = max(1, int(len(ids) * lsp))
    first = {"left": 0, "middle": (len(ids) - kept) // 2, "right": len(ids) - kept}[span]
    start, end = ids.index(THINK), ids.index(END_THINK)
    labels = []
    for place in range(first, first + kept):
        section = "p" if place < start else "cot" if place <= end else "a"
        next_token = sections in ("cot", "p+cot") and place == end + 1
        wanted = section in sections.split("+") or next_token
        labels.append(ids[place] if wanted and ids[place] != EOS else IGNORED)
    pads = -kept % MULTIPLE
    if not pads:
        labels[0] = IGNORED  # the shift of labels drops it: no position stands before
    if all(label == IGNORED for label in labels):
        return None
    return Padded([EOS] * pads + ids[first : first + kept], [0] * pads + [1] * kept, [IGNORED] * pads + labels)


def kit_row(ids: list[int], settings: ViewSettings, position: int = 0) -> Example | SkipReason:
    bounds = SectionBounds.of(len(ids), ids.index(THINK), ids.index(END_THINK))
    return next(make_examples(np.array([position]), [np.array(ids, np.int32)], bounds, settings, EOS))


def decoder(seed: int, hidden: int, vocabulary: int) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=24,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()


def student() -> Any:
    return decoder(0, 16, VOCABULARY)


def teacher() -> Any:
    return decoder(1, 24, VOCABULARY + 5).requires_grad_(False)


def plain_inputs(*rows: Padded) -> dict[str, Any]:
    """Rows of one padded length. Positions count from the first real token: transformers computes angles in float32,
    whatever the model's dtype, so the shift by the pads alone is 1e-7 (`test_the_shift_of_positions_is_rounding`)."""
    mask = torch.tensor([row.mask for row in rows])
    return {
        "input_ids": torch.tensor([row.input_ids for row in rows]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def plain_loss(model: Any, teaching: Any, rows: list[Padded], inputs: dict[str, Any]) -> tuple[Any, Any]:
    """CE and KD of each row, each a mean over its labels, shape (rows,); all logits in float64."""
    labels = torch.tensor([row.labels[1:] for row in rows])
    is_label = (labels != IGNORED).double()
    scores = model(**inputs).logits[:, :-1]
    with torch.no_grad():
        p_teacher = teaching(**inputs).logits[:, :-1].softmax(-1)
    ce = -scores.log_softmax(-1).gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    widened = pad_with_zeros(scores, (0, p_teacher.shape[2] - scores.shape[2])).log_softmax(-1)
    kd = -(p_teacher * widened).sum(-1)
    return tuple((terms * is_label).sum(1) / is_label.sum(1) for terms in (ce, kd))  # type: ignore[return-value]


def plain_step(model: Any, teaching: Any, rows: list[Padded]) -> tuple[float, float, dict[str, Any]]:
    """CE, KD and gradient of the mean over rows; rows that are padded to the same length go together."""
    model.zero_grad()
    sums = torch.zeros(2, dtype=torch.float64)
    for width in sorted({len(row.mask) for row in rows}):
        alike = [row for row in rows if len(row.mask) == width]
        ce, kd = plain_loss(model, teaching, alike, plain_inputs(*alike))
        ((0.5 * ce + 0.5 * kd).sum() / len(rows)).backward()
        sums += torch.stack([ce.sum(), kd.sum()]).detach() / len(rows)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return sums[0].item(), sums[1].item(), found


def kit_loss(model: Any, teaching: TeacherStates | None, batches: list[Batch], rows: int) -> tuple[Any, Any]:
    """The sum over forward passes of a step with this number of rows, and its CE and KD."""
    total, ce, kd = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    settings = OBJECTIVE if teaching else OBJECTIVE.model_copy(update={"kd_weight": 0.0})
    for batch in batches:
        weights = 1.0 / torch.tensor([int(row.supervised.sum()) for row in batch.examples], dtype=torch.float64)
        weights = weights.repeat_interleave(torch.tensor([int(row.supervised.sum()) for row in batch.examples])) / rows
        states, head = states_at(model, batch), model.get_output_embeddings().weight
        found = objective_from_states(
            states,
            head,
            teaching.states(batch) if teaching else None,
            teaching.head if teaching else None,
            batch.labels,
            weights,
            settings,
            LOSS,
        )
        total, ce, kd = total + found.loss, ce + found.ce, kd + found.kd
    return total, (ce, kd)


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert difference <= TOLERANCE, (name, float(difference))


def pairs(lsp: float, span: str, sections: str) -> list[tuple[Padded, Example]]:
    """Each kept length, by the plain rules and by the kit; both leave out the same rows and see the same labels."""
    drawn, found = np.random.default_rng(7), []
    for kept in KEPT_LENGTHS:
        ids = row_of(kept, lsp, drawn)
        if ids is None:
            continue
        plain, ours = plain_row(ids, lsp, span, sections), kit_row(ids, view(lsp, span, sections), kept)
        if plain is None:
            assert ours is SkipReason.NOTHING_SUPERVISED
            continue
        assert isinstance(ours, Example)
        pads = -kept % MULTIPLE
        assert ours.input_ids.tolist() == plain.input_ids[pads:]
        assert np.where(ours.supervised, ours.input_ids, IGNORED).tolist() == plain.labels[pads:]
        assert ours.pad == (EOS if pads and plain.labels[pads] != IGNORED else None)
        found.append((plain, ours))
    return found


def test_loss_and_gradients_of_each_kept_length() -> None:
    """The default supervision, a row at a time."""
    model, teaching, cpu = student(), teacher(), torch.device("cpu")
    live, both = LiveTeacher(teaching), pairs(0.5, "left", "p+cot+a")
    assert [ours.input_ids.size for _, ours in both] == [*KEPT_LENGTHS]
    for plain, ours in both:
        ce, kd, expected = plain_step(model, teaching, [plain])
        loss, (our_ce, our_kd) = kit_loss(model, live, [Batch.of([ours], MULTIPLE, cpu)], 1)
        assert (our_ce.item(), our_kd.item()) == pytest.approx((ce, kd), rel=TOLERANCE)
        assert_same(gradients(model, loss), expected)


@pytest.mark.parametrize(("span", "lsp"), SPANS)
@pytest.mark.parametrize("sections", SECTIONS)
def test_loss_and_gradients_of_all_kept_lengths(span: str, lsp: float, sections: str) -> None:
    model, teaching, cpu = student(), teacher(), torch.device("cpu")
    both = pairs(lsp, span, sections)
    ce, kd, expected = plain_step(model, teaching, [plain for plain, _ in both])
    batches = [Batch.of([ours for _, ours in both], MULTIPLE, cpu)]
    loss, (our_ce, our_kd) = kit_loss(model, LiveTeacher(teaching), batches, len(both))
    assert (our_ce.item(), our_kd.item()) == pytest.approx((ce, kd), rel=TOLERANCE)
    assert_same(gradients(model, loss), expected)


def cached(folder: Path, model: Any, rows: list[tuple[int, list[int]]]) -> CachedTeacher:
    """The whole rows read once, and the pad."""
    cpu, writer = torch.device("cpu"), RowWriter(folder / ROWS, "float32", VOCABULARY)
    whole = [Example(position, np.array(ids, np.int32), np.zeros(len(ids), np.bool_)) for position, ids in rows]
    with torch.no_grad():
        states = states_of_rows(model, Batch.of(whole, MULTIPLE, cpu))
        stored = [
            StoredRow(row.row, torch.from_numpy(row.input_ids.copy()), of_row, torch.zeros(len(of_row)))
            for row, of_row in zip(whole, states, strict=True)
        ]
        writer.add(stored)
        (folder / MODEL).mkdir()
        save_file({"head": model.get_output_embeddings().weight.detach().clone()}, folder / MODEL / HEAD)
        write_pads(folder / MODEL, [EOS, THINK], states_of_pads(model, [EOS, THINK], cpu))
    return CachedTeacher(folder, cpu)


@pytest.mark.parametrize("sections", SECTIONS)
@pytest.mark.parametrize("form", ["micro-batched", "packed", "packed and checkpointed"])
def test_a_step_of_all_lengths_live_and_cached(sections: str, form: str, tmp_path: Path) -> None:
    """The mean over the rows of one step, in several forward passes; each kept length is in it once."""
    model, teaching, cpu, lsp = student(), teacher(), torch.device("cpu"), 0.5
    both, drawn = pairs(lsp, "left", sections), np.random.default_rng(7)
    whole = [(kept, ids) for kept in KEPT_LENGTHS if (ids := row_of(kept, lsp, drawn)) is not None]
    _, _, expected = plain_step(model, teaching, [plain for plain, _ in both])
    stored = cached(tmp_path, teaching, whole)
    packed = form != "micro-batched"
    if packed:
        assert use_row_attention(model) and use_row_attention(teaching)
    if form == "packed and checkpointed":
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = [ours for _, ours in both]
    resources = some_resources(threads=1, micro_batch_rows=5, micro_batch_tokens=200)
    parts = step_rows.micro_batches([row.positions for row in rows], packed, MULTIPLE, resources)
    assert len(parts) > 1
    batches = [Batch.of([rows[i] for i in part], MULTIPLE, cpu, packed) for part in parts]
    for teaching_with in (LiveTeacher(teaching), stored):
        assert_same(gradients(model, kit_loss(model, teaching_with, batches, len(rows))[0]), expected)


def test_fine_tuning_and_validation_count_the_first_token_too() -> None:
    model, cpu = student(), torch.device("cpu")
    for plain, ours in pairs(0.3, "left", "p+cot+a")[:20]:
        ce, _ = plain_loss(model, teacher(), [plain], plain_inputs(plain))
        expected = gradients(model, ce.sum())
        loss, (our_ce, _) = kit_loss(model, None, [Batch.of([ours], MULTIPLE, cpu)], 1)
        assert our_ce.item() == pytest.approx(ce.item(), rel=TOLERANCE)
        assert_same(gradients(model, loss), expected)


def test_a_pad_sees_nothing() -> None:
    """Its state is that without any attention, for any number of pads before it; a lone token would see itself."""
    model = student()
    (alone,) = states_of_pads(model, [EOS], torch.device("cpu"))
    with torch.no_grad():
        state = model.model.embed_tokens(torch.tensor([EOS]))
        for layer in model.model.layers:
            state = state + layer.mlp(layer.post_attention_layernorm(state))
        torch.testing.assert_close(alone, model.model.norm(state)[0], rtol=0, atol=1e-14)
        sees_itself = model.model(input_ids=torch.tensor([[EOS]])).last_hidden_state[0, 0]
        assert (sees_itself - alone).abs().max() > 0.1
        for pads in (1, 2, 15):
            inputs = {"input_ids": torch.tensor([[EOS] * pads + [7, 8, 9]])}
            mask = torch.tensor([[0] * pads + [1] * 3])
            states = model.model(**inputs, attention_mask=mask).last_hidden_state[0]
            for pad_state in states[:pads]:
                torch.testing.assert_close(pad_state, alone, rtol=0, atol=1e-14)


def test_the_shift_of_positions_is_rounding() -> None:
    model, teaching = student(), teacher()
    for plain, _ in pairs(0.5, "left", "p+cot+a")[::5]:
        inputs = plain_inputs(plain)
        shifted = {name: value for name, value in inputs.items() if name != "position_ids"}
        ce, kd = plain_loss(model, teaching, [plain], inputs)
        other = plain_loss(model, teaching, [plain], shifted)
        assert (ce.item(), kd.item()) == pytest.approx([one.item() for one in other], rel=1e-5)


def test_corrected_has_no_first_label_and_no_row_of_one_token() -> None:
    drawn = np.random.default_rng(7)
    for kept in KEPT_LENGTHS:
        ids = row_of(kept, 0.5, drawn)
        assert ids is not None
        ours = kit_row(ids, view(0.5, "left", "p+cot+a", "corrected"))
        if kept == 1:
            assert ours is SkipReason.NOTHING_SUPERVISED
        else:
            assert isinstance(ours, Example) and not ours.supervised[0] and ours.pad is None
    one_token = kit_row([9, THINK, 8, END_THINK], view(0.3, "left", "p+cot+a"))
    assert isinstance(one_token, Example)
    assert (one_token.input_ids.tolist(), one_token.supervised.tolist(), one_token.pad) == ([9], [True], EOS)


def released_sections(read: list[int], sections: str) -> list[int] | None:
    """Places of the labels by the first markers in what is read; None where the released code cannot say."""
    start = read.index(THINK) if THINK in read else None
    end = read.index(END_THINK) if END_THINK in read else None
    ignored: list[int]
    places = list(range(len(read)))
    if sections == "p+cot+a":
        return places
    if sections == "cot+a":
        return None if start is None else places[start:]
    if end is None or (sections == "cot" and start is None):
        return None
    if sections == "p+a":
        ignored = places[start : end + 1]
        return [place for place in places if place not in ignored]
    return {"a": places[end + 1 :], "p+cot": places[: end + 2], "cot": places[start : end + 2]}[sections]


@pytest.mark.parametrize("sections", SECTIONS)
@pytest.mark.parametrize(("span", "lsp"), SPANS)
def test_rows_with_markers_out_of_order_are_trained_on(sections: str, span: str, lsp: float) -> None:
    """Also where a second `</think>` follows, as in a question that quotes the marker."""
    drawn, compared = np.random.default_rng(3), 0
    for length, again in itertools.product(range(4, 60), (False, True)):
        ids = drawn.integers(FIRST_WORD, VOCABULARY, length).tolist()
        end, start = sorted(drawn.choice(np.arange(length - 1), 2, replace=False).tolist())
        ids[end], ids[start] = END_THINK, THINK
        if again:
            ids[-1] = END_THINK
        ours = kit_row(ids, view(lsp, span, sections))
        assert ours is not SkipReason.MARKERS_OUT_OF_ORDER
        corrected = kit_row(ids, view(lsp, span, sections, "corrected"))
        assert corrected is SkipReason.MARKERS_OUT_OF_ORDER
        kept = max(1, int(length * lsp))
        first = {"left": 0, "middle": (length - kept) // 2, "right": length - kept}[span]
        read = ids[first : first + kept]
        expected = released_sections(read, sections)
        if expected is None:
            continue
        if kept % MULTIPLE == 0:
            expected = [place for place in expected if place]
        found = [] if isinstance(ours, SkipReason) else np.flatnonzero(ours.supervised).tolist()
        assert found == expected, (ids, read)
        compared += bool(expected)
    assert compared > 5 or sections in ("cot", "cot+a")


def test_a_model_of_another_make_is_refused() -> None:
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(InputError, match=r"GPT2LMHeadModel has no attention layer with o_proj, .* or protocol"):
        states_of_pads(model, [EOS], torch.device("cpu"))


def test_other_families_take_blind_tokens_too() -> None:
    """Qwen2 and Llama, one with a bias behind its attention, against their own masked left padding."""
    for kind, more in (("qwen2", {}), ("llama", {}), ("llama", {"attention_bias": True})):
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, num_key_value_heads=1, **sizes, **more)
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        inputs = {"input_ids": torch.tensor([[EOS, EOS, 7, 8]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
        with torch.no_grad():
            expected = model.model(**inputs).last_hidden_state[0, 1]
            (found,) = states_of_pads(model, [EOS], torch.device("cpu"))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
