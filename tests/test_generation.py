"""Sampling: what a model of transformers gives, whatever attempt, batch neighbour or kill it went through."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from some_resources import some_resources
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from essence.errors import InputError, StageError
from essence.scoring.benchmarks import Problem
from essence.scoring.generation import (
    TransformersDecoder,
    choose_tokens,
    plan_requests,
    render_prompts,
    sample_seed,
    stop_token_ids,
)
from essence.settings import BenchmarkSettings, GenerateSettings
from essence.stages import generate
from essence.stages.context import Progress, StageContext, Stopped, StopRequest

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<think>", "</think>"]
PROBLEMS = [f"{'What is ' * (1 + i % 3)}{i} + {i}?" for i in range(5)]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(MARKERS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Outputs of a download of a random model and of one of a benchmark."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "model" / "model")
    tokenizer.save_pretrained(folder / "model" / "model")
    (folder / "problems" / "problems").mkdir(parents=True)
    rows = [{"problem": text, "answer": 2 * i} for i, text in enumerate(PROBLEMS)]
    (folder / "problems" / "problems" / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"model": folder / "model", "problems": folder / "problems"}


def settings(**changes: Any) -> GenerateSettings:
    values: dict[str, Any] = {
        "benchmark": BenchmarkSettings(
            name="sums",
            problem_field="problem",
            answer_field="answer",
            answer_type="integer",
            prompt="Solve: {problem}",
            problems=None,
        ),
        "model_folder": "model",
        "samples": 4,
        "temperature": 1.0,
        "top_p": 0.95,
        "max_new_tokens": 24,
        "max_model_tokens": 256,
        "stop_at_turn_end": True,
        "dtype": "float32",
        "seed": 7,
        "batch_sequences": 6,
    }
    return GenerateSettings(**(values | changes))


def context(folder: Path, inputs: dict[str, Path]) -> StageContext:
    partial = folder / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    resources = some_resources(threads=1, micro_batch_rows=1, micro_batch_tokens=64, checkpoint_every_s=0)
    return StageContext(partial, inputs, resources, Progress(folder / "progress.json"), StopRequest())


def samples(folder: Path) -> list[dict[str, Any]]:
    """Lines of samples.jsonl without the time they took."""
    lines = (folder / "partial" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    generate.run(settings(), context(folder, inputs))
    return folder


def test_records_and_outcome(inputs: dict[str, Path], tmp_path: Path) -> None:
    outcome = generate.run(settings(), context(tmp_path, inputs))
    records = samples(tmp_path)
    assert [(r["problem"], r["sample"]) for r in records] == [(str(p), s) for p in range(5) for s in range(4)]
    assert {r["seed"] for r in records} == {sample_seed(7, str(p), s) for p in range(5) for s in range(4)}
    assert len({r["completion"] for r in records}) == 20
    reasons = {r["finish_reason"] for r in records}
    assert reasons == {"stop", "length"}
    assert all(r["tokens"] == 24 for r in records if r["finish_reason"] == "length")
    assert not any("<|im_end|>" in r["completion"] or "<|endoftext|>" in r["completion"] for r in records)
    assert sum(outcome.results["finish_reasons"].values()) == outcome.results["samples"] == 20
    assert outcome.executed["samples_per_problem"] == 4
    assert outcome.executed["max_new_tokens"] == 24
    assert outcome.executed["stop_token_ids"] == [256, 258]


@pytest.mark.parametrize("attempt", range(4))
def test_killed_at_any_byte(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path, attempt: int) -> None:
    whole = (undisturbed / "partial" / "samples.jsonl").read_bytes()
    cut = random.Random(attempt).randrange(len(whole))
    surroundings = context(tmp_path, inputs)
    (surroundings.partial / "samples.jsonl").write_bytes(whole[:cut])
    generate.run(settings(), surroundings)
    assert samples(tmp_path) == samples(undisturbed)


def test_stop_between_batches(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    surroundings = context(tmp_path, inputs)
    surroundings.stop.signal_name = "SIGUSR1"
    for finished in (6, 12):
        with pytest.raises(Stopped):
            generate.run(settings(), surroundings)
        if finished == 6:
            assert len(samples(tmp_path)) == 6
    surroundings.stop.signal_name = None
    generate.run(settings(), surroundings)
    assert samples(tmp_path) == samples(undisturbed)


def test_a_sample_does_not_depend_on_the_other_requests(
    inputs: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    generate.run(settings(samples=2, batch_sequences=1), context(tmp_path, inputs))
    alone = {(r["problem"], r["sample"]): r["completion"] for r in samples(tmp_path)}
    together = {(r["problem"], r["sample"]): r["completion"] for r in samples(undisturbed)}
    assert alone == {key: together[key] for key in alone}


def test_greedy_is_that_of_transformers(inputs: dict[str, Path]) -> None:
    folder = inputs["model"] / "model"
    tokenizer, model = generate.load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    problems = [Problem(str(i), text, "0") for i, text in enumerate(PROBLEMS)]
    prompts = render_prompts(tokenizer, problems, "{problem}")
    requests = plan_requests(prompts, settings(samples=1, temperature=0.0))
    stop_ids = stop_token_ids(model, tokenizer, True)
    ours = TransformersDecoder(model, stop_ids, temperature=0.0, top_p=1.0)(requests)
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt.token_ids])
        theirs = model.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=stop_ids, pad_token_id=0)
        assert completion.token_ids == theirs[0, ids.shape[1] :].tolist()


def test_nucleus_and_temperature() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64)).repeat(1000, 1)
    uniforms = torch.from_numpy(np.linspace(0.0, 1.0, 1000, endpoint=False))
    everything = choose_tokens(logits, uniforms, 1.0, 1.0).bincount(minlength=4)
    assert everything.tolist() == pytest.approx([100, 500, 150, 250], abs=2)
    nucleus = choose_tokens(logits, uniforms, 1.0, 0.7).bincount(minlength=4)
    assert nucleus.tolist() == pytest.approx([0, 667, 0, 333], abs=2)
    assert choose_tokens(logits, uniforms, 1.0, 0.4).unique().tolist() == [1]
    assert choose_tokens(logits, uniforms, 0.0, 1.0).unique().tolist() == [1]
    cold = choose_tokens(logits, uniforms, 0.5, 1.0).bincount(minlength=4)
    assert cold.tolist() == pytest.approx([29, 725, 65, 181], abs=2)


def test_think_markers_are_kept_and_the_template_is_used() -> None:
    tokenizer = byte_tokenizer()
    prompt = render_prompts(tokenizer, [Problem("a", "2+2?", "4")], "Solve: {problem}")[0]
    assert prompt.text == "<|im_start|>user\nSolve: 2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompt.token_ids) == prompt.text


def test_stop_ids_as_released(inputs: dict[str, Path]) -> None:
    folder = inputs["model"] / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert stop_token_ids(model, byte_tokenizer(), False) == [256]


def test_refusals(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves no room for a completion: max_model_tokens is 16"):
        generate.run(settings(max_model_tokens=16), context(tmp_path, inputs))
    with pytest.raises(InputError, match=r"best holds no model: config\.json is missing"):
        generate.run(settings(model_folder="best"), context(tmp_path, inputs))


def test_samples_of_another_declaration_fail(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    surroundings = context(tmp_path, inputs)
    whole = (undisturbed / "partial" / "samples.jsonl").read_bytes()
    (surroundings.partial / "samples.jsonl").write_bytes(whole)
    with pytest.raises(StageError, match="declared: 15"):
        generate.run(settings(samples=3), surroundings)
