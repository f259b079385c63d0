"""Sampling: what a model of transformers gives, whatever attempt, batch neighbour or kill it went through."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from transformers import AutoModelForCausalLM

from essence.errors import InputError, StageError
from essence.evaluation.benchmarks import Problem
from essence.evaluation.decoders import DecodeSettings
from essence.evaluation.decoders.transformers import TransformersDecoder, choose_tokens
from essence.evaluation.loops import LoopRule
from essence.evaluation.requests import (
    Completion,
    Prompt,
    Request,
    plan_requests,
    render_prompts,
    sample_seed,
    stop_token_ids,
)
from essence.evaluation.sampling import Recorder
from essence.models.loading import load_tokenizer
from essence.progress import Stopped, StopRequest
from essence.stages import generate
from support.sampling import PROBLEMS, byte_tokenizer, context, make_inputs, samples, settings
from support.some_resources import some_resources


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


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
    assert sum(outcome.results.finish_reasons.values()) == outcome.results.samples == 20
    assert outcome.executed.samples_per_problem == 4
    assert outcome.executed.max_new_tokens == 24
    assert outcome.executed.stop_token_ids == [256, 258]


@pytest.mark.parametrize("attempt", range(4))
def test_killed_at_any_byte(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path, attempt: int) -> None:
    whole = (undisturbed / "partial" / "samples.jsonl").read_bytes()
    cut = random.Random(attempt).randrange(len(whole))
    surroundings = context(tmp_path, inputs)
    (surroundings.partial / "samples.jsonl").write_bytes(whole[:cut])
    generate.run(settings(), surroundings)
    assert samples(tmp_path) == samples(undisturbed)


class StopWith(StopRequest):
    """Send a signal after a number of written samples, in the middle of the next batch."""

    def __init__(self, file: Path, lines: int) -> None:
        super().__init__()
        self.file, self.lines = file, lines

    def check(self) -> None:
        if self.file.read_bytes().count(b"\n") >= self.lines:
            self.signal_name = "SIGUSR1"
        super().check()


def test_stop_in_a_batch_keeps_the_batches_before_it(
    inputs: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    surroundings = context(tmp_path, inputs)
    for finished in (0, 6, 12):
        stop = StopWith(surroundings.partial / "samples.jsonl", finished)
        with pytest.raises(Stopped):
            generate.run(settings(), replace(surroundings, stop=stop))
        assert samples(tmp_path) == samples(undisturbed)[:finished]
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
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    problems = [Problem(str(i), text, "0") for i, text in enumerate(PROBLEMS)]
    prompts = render_prompts(tokenizer, problems, "{problem}")
    asked = settings(samples=1, temperature=0.0)
    requests = plan_requests(prompts, asked)
    stop_ids = stop_token_ids(folder, tokenizer, True)
    told = DecodeSettings(folder, tuple(stop_ids), asked, some_resources())
    batches = TransformersDecoder(told).complete(requests, ())
    ours = [completion for batch in batches for _, completion in batch]
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
    assert stop_token_ids(folder, byte_tokenizer(), False) == [256]
    assert stop_token_ids(folder, byte_tokenizer(), True) == [256, 258]
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == 256


def test_refusals(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves no room for a completion: max_model_tokens is 16"):
        generate.run(settings(max_model_tokens=16), context(tmp_path, inputs))
    with pytest.raises(InputError, match=r"best: no such folder, so no model"):
        generate.run(settings(model_folder="best"), context(tmp_path, inputs))


def test_samples_of_another_declaration_fail(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    surroundings = context(tmp_path, inputs)
    whole = (undisturbed / "partial" / "samples.jsonl").read_bytes()
    (surroundings.partial / "samples.jsonl").write_bytes(whole)
    with pytest.raises(StageError, match="declared: 15"):
        generate.run(settings(samples=3), surroundings)


def test_a_model_with_fewer_positions_than_asked_for_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_model_tokens is 40000, but .* has 32768 positions"):
        generate.run(settings(max_model_tokens=40_000), context(tmp_path, inputs))


def test_what_is_complete_loads_no_model(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    surroundings = context(tmp_path, inputs)
    whole = (undisturbed / "partial" / "samples.jsonl").read_bytes()
    (surroundings.partial / "samples.jsonl").write_bytes(whole)
    folder = tmp_path / "model" / "model"
    shutil.copytree(inputs["model"] / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    surroundings.inputs["model"] = folder.parent
    assert generate.run(settings(), surroundings).results.samples == 20


def test_lines_end_up_in_the_order_of_the_requests(inputs: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    """A decoder that finishes the short ones first writes them first."""
    surroundings = context(tmp_path, inputs)
    lines = (undisturbed / "partial" / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (surroundings.partial / "samples.jsonl").write_bytes(b"".join(reversed(lines)))
    generate.run(settings(), surroundings)
    assert samples(tmp_path) == samples(undisturbed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 25}, ["25 tokens", "at most 24 tokens"]),
        ({"stop_token": 7}, ["stop token 7", r"stop tokens [256, 258]"]),
        ({"seed": 1}, ["'seed': 1"]),
        ({"prompt_sha256": "0" * 64}, ["'prompt_sha256': '0000"]),
    ],
)
def test_a_sample_that_is_not_as_declared_fails_the_stage(
    inputs: dict[str, Path], undisturbed: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    surroundings = context(tmp_path, inputs)
    lines = (undisturbed / "partial" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), **changes})
    (surroundings.partial / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(StageError) as raised:
        generate.run(settings(), surroundings)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_a_completion_that_ended_for_another_reason_is_not_written(inputs: dict[str, Path]) -> None:
    record = Recorder(byte_tokenizer(), [256], LoopRule(tokens=12, repeats=4, cut=False))
    request = Request(Prompt("p", "text", (1, 2)), sample=0, seed=1, max_new_tokens=3)
    assert record(request, Completion([5, 256], "stop", 0.1)).completion == byte_tokenizer().decode([5])
    for ids, reason in (([5, 6], "stop"), ([5, 6], "length"), ([5, 6, 7, 8], "length"), ([5, 5], "loop")):
        with pytest.raises(StageError, match=f"Sample 0 of problem p ended with reason {reason}"):
            record(request, Completion(ids, reason, 0.1))
