"""The tokenize and train stages on generated rows with a tokenizer made here, and on real ones where there are any."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from essence.data.token_table import TokenTable  # noqa: E402
from essence.data.truncation import Example, fingerprint  # noqa: E402
from essence.distill import chunked, preflight  # noqa: E402
from essence.distill.checkpoint_choice import choose  # noqa: E402
from essence.distill.ranks import ALONE  # noqa: E402
from essence.errors import InputError, MachineError  # noqa: E402
from essence.models.loading import load_model, load_tokenizer  # noqa: E402
from essence.models.saving import with_rope_theta  # noqa: E402
from essence.progress import Stopped  # noqa: E402
from essence.record.training_records import TrainMore, VocabularySizes  # noqa: E402
from essence.settings import TrainSettings  # noqa: E402
from essence.sizes.memory import USABLE_SHARE  # noqa: E402
from essence.stages import tokenize, train  # noqa: E402
from essence.stages.launch import check_devices  # noqa: E402
from support.some_resources import some_objective  # noqa: E402
from support.stage_inputs import (  # noqa: E402
    RESOURCES,
    SPECIAL,
    TEMPLATE,
    context,
    inputs,
    make_model,
    make_tokenizer,
    tokenise,
    train_settings,
    view,
)
from support.tokenize_settings import tokenize_settings  # noqa: E402


def test_tokens_are_the_rendered_rows(prepared: dict[str, Path], tmp_path: Path) -> None:
    outcome = tokenise(tmp_path, prepared["rows"], prepared["student"])
    table = TokenTable(tmp_path / "partial" / "tokens.arrow")
    tokenizer = load_tokenizer(prepared["student"] / "model")
    assert table.positions.tolist() == [i for i in range(40) if i % 10 != 9]
    text = tokenizer.decode(table.input_ids(0))
    assert text.startswith("<|im_start|>user\nWhat is ")
    assert text.endswith(".<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(table.input_ids(0)[table.bounds.think_start[0]]) == "<think>"
    assert tokenizer.decode(table.input_ids(0)[table.bounds.think_end[0]]) == "</think>"
    assert outcome.results.rows_read == 40
    assert outcome.results.rows_kept == len(table) == 36
    assert outcome.results.tokens == table.lengths.sum()
    assert outcome.results.rejections["no thought markers"].count == 4
    assert outcome.executed.rows_without_think_end == 0


def test_corrected_rows_end_with_the_turn(prepared: dict[str, Path], tmp_path: Path) -> None:
    tokenise(tmp_path, prepared["rows"], prepared["student"], header=False)
    table = TokenTable(tmp_path / "partial" / "tokens.arrow")
    assert load_tokenizer(prepared["student"] / "model").decode(table.input_ids(35)).endswith(".<|im_end|>\n")


def test_same_fingerprint_whatever_the_batches_and_after_a_stop(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokenise(tmp_path / "a", prepared["rows"], prepared["student"])
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 7)
    stopped = context(tmp_path / "b", rows=prepared["rows"], tokenizer=prepared["student"])
    stopped.stop.signal_name = "SIGTERM"
    with pytest.raises(Stopped):
        tokenize.run(tokenize_settings(), stopped)
    assert not (stopped.partial / "tokens.arrow").exists()
    second = tokenise(tmp_path / "b", prepared["rows"], prepared["student"])
    assert first.data == second.data
    tables = [TokenTable(tmp_path / name / "partial" / "tokens.arrow") for name in "ab"]
    assert all(np.array_equal(tables[0].input_ids(i), tables[1].input_ids(i)) for i in range(36))


def test_unusable_inputs_get_one_sentence(prepared: dict[str, Path], tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "no-think" / "model", special=SPECIAL[:2])
    with pytest.raises(InputError, match="no token <think> and </think>"):
        tokenise(tmp_path / "a", prepared["rows"], tmp_path / "no-think")
    make_tokenizer(tmp_path / "no-template" / "model", template=None)
    with pytest.raises(InputError, match="no chat template"):
        tokenise(tmp_path / "b", prepared["rows"], tmp_path / "no-template")
    with pytest.raises(InputError, match="no usable tokenizer"):
        tokenise(tmp_path / "c", prepared["rows"], tmp_path / "nothing")
    (tmp_path / "bad" / "rows").mkdir(parents=True)
    (tmp_path / "bad" / "rows" / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="none of 1 rows can be used"):
        tokenise(tmp_path / "d", tmp_path / "bad", prepared["student"])


def test_training_writes_models_and_a_record(prepared: dict[str, Path], tmp_path: Path) -> None:
    surroundings = context(tmp_path, **inputs(prepared))
    outcome = train.run(train_settings(), surroundings)
    partial = surroundings.partial
    assert {path.name for path in partial.iterdir()} == {"best", "last", "metrics.jsonl", "tensorboard"}
    for name in ("best", "last"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(partial / name)
        assert loaded.config.rope_parameters["rope_theta"] == 1e6
        assert json.loads((partial / name / "config.json").read_text())["rope_theta"] == 1e6
        tokenizer = load_tokenizer(partial / name)
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer.get_vocab() == load_tokenizer(prepared["student"] / "model").get_vocab()
    assert outcome.results.steps == outcome.executed.optimizer_steps == 10
    assert [record.step for record in outcome.results.validations] == [2, 5, 7, 10]
    validations = outcome.results.validations
    kept = validations[choose([record.parts for record in validations]) or 0]
    assert (outcome.results.best_step, outcome.results.best_validation_ce) == (kept.step, kept.ce)
    assert outcome.results.lowest_validation_ce == min(record.ce for record in validations)
    assert [len(record.parts) for record in validations] == [4] * 4
    assert outcome.seeds == {"train": 3, "split": 42, "order": 42}
    order = outcome.data.positions.order
    assert order.published == "not published" and [epoch.rows for epoch in order.epochs] == [20, 20]
    assert order.epochs[0].sum == order.epochs[1].sum == outcome.data.positions.train.sum
    assert order.epochs[0].sha256 != order.epochs[1].sha256
    assert outcome.data.train.rows == 20
    assert outcome.data.validation.rows == 6
    assert outcome.executed.vocabulary == VocabularySizes(tokenizer=52, student=64, teacher=80)
    assert outcome.executed.preflight.objective.parity.passed
    assert outcome.executed.model_dump()["preflight"]["layers"]["fell_back"] == []
    assert outcome.cost.tokens == 2 * outcome.data.train.tokens
    assert outcome.cost.flops > 0
    assert isinstance(outcome.cost.more, TrainMore)
    assert outcome.cost.more.tokens_per_s is not None and outcome.cost.more.tokens_per_s > 0
    assert (outcome.cost.more.mfu, outcome.cost.energy_j) == (None, None)
    assert [path.name for path in (partial / "tensorboard").iterdir()] == ["events.out.tfevents.0000"]
    executed = outcome.executed.micro_batches
    chosen = outcome.executed.activations
    assert (chosen.asked, chosen.recomputed, chosen.micro_batch_tokens) == ("auto", False, RESOURCES.micro_batch_tokens)
    assert chosen.kept_bytes > chosen.recomputed_bytes and chosen.because == "they fit"
    assert executed.packed and executed.tokens == outcome.cost.tokens and 0.5 < executed.fill <= 1.0
    json.dumps(outcome.model_dump(mode="json"), allow_nan=False)


def test_activations_are_recomputed_where_memory_asks_for_it(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that is too small to keep them: said in the log, counted, and the same bits."""

    def trained(name: str) -> tuple[Any, bytes]:
        around = context(tmp_path / name, **inputs(prepared))
        outcome = train.run(train_settings(), around)
        return outcome, (around.partial / "last" / "model.safetensors").read_bytes()

    kept, weights = trained("kept")
    sizes = kept.executed.activations
    between = (sizes.kept_bytes + sizes.recomputed_bytes) // 2
    monkeypatch.setattr(preflight, "memory_bytes", lambda _: int(between / USABLE_SHARE["cpu"]))
    capsys.readouterr()
    recomputed, same = trained("recomputed")
    assert same == weights and recomputed.results == kept.results
    chosen = recomputed.executed.activations
    assert chosen.recomputed and chosen.because == "they do not fit" and chosen.kept_bytes == sizes.kept_bytes
    assert capsys.readouterr().out.startswith("activations are recomputed: they do not fit (a device needs")
    assert recomputed.cost.more.training_flops > kept.cost.more.training_flops


def test_recorded_fingerprint_is_of_the_view(prepared: dict[str, Path], tmp_path: Path) -> None:
    outcome = train.run(train_settings(), context(tmp_path, **inputs(prepared)))
    table, expected = TokenTable(prepared["tokens"] / "tokens.arrow"), []
    permutation = np.random.default_rng(42).permutation(36)
    for index in permutation[6:26]:
        ids = table.input_ids(int(index))
        ids = ids[: int(ids.size * 0.5)]
        expected.append(Example(0, ids, np.r_[False, ids[1:] != 1]))
    assert outcome.data.train.sha256 == fingerprint(expected)


def test_fine_tuning_needs_no_teacher(prepared: dict[str, Path], tmp_path: Path) -> None:
    chosen = {name: path for name, path in inputs(prepared).items() if name != "teacher"}
    settings = train_settings(objective=some_objective(kd_weight=0.0))
    outcome = train.run(settings, context(tmp_path, **chosen))
    assert outcome.executed.vocabulary.teacher is None


def test_a_loss_that_is_not_the_plain_one_stops_before_the_first_step_or_gives_way(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = chunked.block_gradient

    def wrong(logits: Any, *rest: Any) -> Any:
        sums = right(logits, *rest)
        logits.mul_(1.2)
        return sums

    monkeypatch.setattr(chunked, "block_gradient", wrong)
    surroundings = context(tmp_path, **inputs(prepared))
    with pytest.raises(MachineError, match=r"not the plain one on cpu: .*2\.0e-01"):
        train.run(train_settings(), surroundings)
    assert not (surroundings.scratch / "training").exists()
    loss = RESOURCES.loss.model_copy(update={"fallback": True})
    allowed = replace(surroundings, resources=RESOURCES.model_copy(update={"loss": loss}))
    told = train.run(train_settings(), allowed).executed.preflight.objective
    assert told.form == "plain" and "not the plain one" in told.fell_back[0]


@pytest.mark.parametrize(("loader", "loaded"), [("load_head", 0), ("load_once", 0), ("load_once", 1)])
def test_a_device_that_others_fill_is_one_sentence(
    loader: str, loaded: int, prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the heads, at the teacher, and at the student after it."""
    right, calls = getattr(train, loader), iter(range(3))

    def full(*given: Any) -> Any:
        if next(calls) == loaded:
            raise torch.OutOfMemoryError("CUDA out of memory. Process 7 has 70 GiB memory in use.")
        return right(*given)

    monkeypatch.setattr(train, loader, full)
    with pytest.raises(
        MachineError, match=r"^a device ran out of memory before the first step \(CUDA.*Process 7 .*\);"
    ):
        train.run(train_settings(), context(tmp_path, **inputs(prepared)))


def test_what_does_not_fit_gets_one_sentence(prepared: dict[str, Path], tmp_path: Path) -> None:
    def refused(message: str, settings: TrainSettings | None = None, **changes: Path) -> None:
        with pytest.raises(InputError, match=message):
            train.run(settings or train_settings(), context(tmp_path / "work", **inputs(prepared, **changes)))

    other = make_model(tmp_path / "other", 2)
    make_tokenizer(other / "model", special=[SPECIAL[1], SPECIAL[0], *SPECIAL[2:]])
    refused("different tokenizers: 2 tokens differ, the first is '<|im_end|>'", teacher=other)
    larger = make_model(tmp_path / "larger", 2, vocabulary=70)
    narrow = make_model(tmp_path / "narrow", 2, vocabulary=64)
    refused(r"vocabulary \(64\) is smaller than the student's \(70\)", student=larger, teacher=narrow)
    short = make_model(tmp_path / "small", 2, vocabulary=16)
    refused(r"has a token with id \d+, but the embedding of the model has 16 rows", teacher=short)

    torn = tmp_path / "torn"
    shutil.copytree(prepared["teacher"], torn)
    weights = torn / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("damaged weights", teacher=torn)
    weights.unlink()
    refused(r"no \.safetensors file", teacher=torn)

    lacking = make_model(tmp_path / "lacking", 2)
    config = json.loads((lacking / "model" / "config.json").read_text())
    (lacking / "model" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    refused("11 weights that config.json promises are missing", student=lacking)

    make_tokenizer(make_model(tmp_path / "plain", 2) / "model", special=SPECIAL[:2])
    refused("no token <think>", student=tmp_path / "plain")
    rows = {"max_row_tokens": 200, "train_rows": 31, "validation_rows": 6, "split_seed": 42}
    refused("36 rows .* need 37", train_settings(rows=rows))
    refused("no training row has a supervised token", train_settings(view=view(lsp=0.05, sections="a")))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokens.arrow").write_bytes((prepared["tokens"] / "tokens.arrow").read_bytes()[:-9])
    refused("missing or damaged", tokens=tmp_path / "bad")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(MachineError, match=r"processes = 1 need 1 GPUs on this machine, but PyTorch .* sees 0"):
        check_devices(train_settings(), RESOURCES.model_copy(update={"gpus": 1}))


def test_fewer_gpus_than_processes_or_another_number_of_ranks(prepared: dict[str, Path], tmp_path: Path) -> None:
    four = train_settings(parallel="ddp", processes=4)
    with pytest.raises(MachineError, match=r"processes = 4 on 2 machines need 2 GPUs each, but resources.gpus = 1"):
        check_devices(four, RESOURCES.model_copy(update={"gpus": 1, "nodes": 2}))
    with pytest.raises(MachineError, match=r"processes = 4, but 1 were started"):
        train.train_as(ALONE, four, context(tmp_path, **inputs(prepared)))


def test_rope_theta_is_where_transformers_4_reads_it() -> None:
    assert with_rope_theta({"rope_parameters": {"rope_theta": 5.0}})["rope_theta"] == 5.0
    assert with_rope_theta({"model_type": "x"}) == {"model_type": "x"}


def test_master_weights_are_float32(tmp_path: Path) -> None:
    folder = make_model(tmp_path, 0) / "model"
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    loaded = load_model(folder, torch.float32, torch.device("cpu"))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
