"""The train stage with a student that learns from its own words: its prompts, its record, and after kills."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from essence.data.token_table import TokenTable  # noqa: E402
from essence.distill.prompts import load_rows  # noqa: E402
from essence.distill.rollouts import ends_of_turn  # noqa: E402
from essence.errors import InputError  # noqa: E402
from essence.evaluation.requests import stop_token_ids  # noqa: E402
from essence.models.folder import read_config  # noqa: E402
from essence.models.loading import load_tokenizer  # noqa: E402
from essence.record.outcomes import TrainOutcome  # noqa: E402
from essence.record.recount import _rollouts, read_metrics  # noqa: E402
from essence.sizes.architecture import Architecture, distillation_flops  # noqa: E402
from essence.stages import train  # noqa: E402
from support.project import PROJECT  # noqa: E402
from support.some_resources import some_objective, some_view  # noqa: E402
from support.stage_inputs import context, inputs, make_model, make_rows, tokenise, train_settings  # noqa: E402
from support.train_stage import make_spec, make_stage  # noqa: E402

MOST = 12


def asked(most: int = MOST) -> Any:
    return train_settings(
        view=some_view(span=f"rollout-{most}", sections="cot+a", draw_seed=3, keep_context=True),
        objective=some_objective(kd_weight=1.0, divergence="reverse_kl"),
        order={"seed": 3, "multiple": 1},
        checkpoint_ranks=1,
        packing=False,
        rollouts={"every_steps": 2, "temperature": 1.0},
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("prepared")
    rows, student = make_rows(root / "rows"), make_model(root / "student", 0)
    teacher = make_model(root / "teacher", 1, hidden=24, vocabulary=80)
    tokenise(root / "tokens", rows, student, header=False)
    return {"tokens": root / "tokens" / "partial", "student": student, "teacher": teacher, "rows": rows}


@pytest.fixture(scope="module")
def trained(prepared: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainOutcome, Path]:
    folder = tmp_path_factory.mktemp("trained")
    return train.run(asked(), context(folder, **inputs(prepared))), folder / "partial"


def test_prompts_are_those_of_an_evaluation(prepared: dict[str, Path]) -> None:
    """Of each row what the template puts before an answer, and nothing behind it."""
    tokenizer = load_tokenizer(prepared["student"] / "model")
    rows = load_rows(prepared["tokens"] / "tokens.arrow", asked(), 1, prepared["student"] / "model")
    lines = (prepared["rows"] / "rows" / "rows.jsonl").read_text().splitlines()
    assert len(rows.training.examples) >= 18
    for prompt in rows.training.examples:
        question = json.loads(lines[prompt.row])["conversations"][0]["value"]
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        assert prompt.input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = TokenTable(prepared["tokens"] / "tokens.arrow")
    lengths = dict(zip(whole.positions.tolist(), whole.lengths.tolist(), strict=True))
    for row in rows.validation.examples:  # whole rows
        assert row.input_ids.size == lengths[row.row]


def test_a_rollout_stops_where_an_evaluation_does(prepared: dict[str, Path]) -> None:
    folder = prepared["student"] / "model"
    tokenizer = load_tokenizer(folder)
    assert sorted(ends_of_turn(folder, tokenizer)) == stop_token_ids(folder, tokenizer, stop_at_turn_end=True)


def test_the_record_counts_what_was_said(trained: tuple[TrainOutcome, Path], prepared: dict[str, Path]) -> None:
    outcome, output = trained
    facts, lines = outcome.executed.rollouts, (output / "metrics.jsonl").read_text().splitlines()
    said = [line for line in map(json.loads, lines) if line["kind"] == "rollouts"]
    steps = [line for line in map(json.loads, lines) if line["kind"] == "step"]
    prompts, tokens = ([n for line in said for n in line[name]] for name in ("prompt_tokens", "tokens"))
    assert facts and (facts.most_tokens, facts.every_steps, facts.rollouts) == (MOST, 2, len(tokens))
    assert (facts.prompt_tokens, facts.tokens) == (sum(prompts), sum(tokens))
    assert facts.ended + facts.at_cap == facts.rollouts and max(tokens) <= MOST
    assert [line["tokens"] for line in steps] == [sum(line["prompt_tokens"]) + sum(line["tokens"]) for line in said]
    assert outcome.data.train and outcome.data.train.supervised_tokens == round(sum(tokens) / 2)
    assert outcome.data.train.tokens == round((sum(prompts) + sum(tokens)) / 2)
    student, teacher = (
        Architecture.from_config(read_config(prepared[name] / "model")) for name in ("student", "teacher")
    )
    read = [prompt + own for prompt, own in zip(prompts, tokens, strict=True)]
    more = outcome.cost.more.model_dump()
    assert more["training_flops"] == distillation_flops(student, teacher, read, activation_checkpointing=False)
    layers = sum(
        2 * student.linear_parameters * (length - 1) + 2 * (length - 1) ** 2 * student.attention_width * student.layers
        for length in read
    )
    assert more["rollout_flops"] == layers + 2 * student.head_parameters * sum(tokens)
    assert outcome.cost.flops == more["training_flops"] + more["validation_flops"] + more["rollout_flops"]
    assert more["rollout_s"] > 0.0 and more["rollout_gpu_hours"] is None
    assert (output / "best" / "model.safetensors").is_file()


def test_a_record_that_says_otherwise_is_found(trained: tuple[TrainOutcome, Path]) -> None:
    outcome, output = trained
    facts, lines = outcome.executed.rollouts, read_metrics(output / "metrics.jsonl")
    assert facts and list(_rollouts(facts, lines)) == []
    wrong = facts.plus(tokens=facts.tokens + 1, ended=facts.ended + 1)
    found = list(_rollouts(wrong, lines))
    assert len(found) == 2 and found[0].startswith("tokens of rollouts") and found[1].startswith("rollouts that ended")
    assert "none recorded" in next(_rollouts(None, lines))


def test_what_does_not_fit_the_student_s_positions_is_refused(prepared: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"do not fit its \d+ positions.*rollout-"):
        train.run(asked(1_000_000), context(tmp_path, **inputs(prepared)))
    assert not any((tmp_path / "partial").iterdir())


def told(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what is measured."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    measured = ("seconds", "peak_memory_gib", "sampling_seconds")
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


@pytest.mark.nightly
@pytest.mark.slow
def test_the_process_of_a_stage_killed_at_three_random_moments_ends_with_the_same_bits(
    prepared: dict[str, Path], trained: tuple[TrainOutcome, Path], tmp_path: Path
) -> None:
    """By SIGKILL, in a rollout, in what student or teacher reads, in a validation, or while a file is written."""
    folder = make_stage(tmp_path, prepared, make_spec(asked()))
    moments = [str(Random(place).randint(20, 150)) for place in range(3)]
    command = [sys.executable, "-m", "support.killed_stage", "train", str(folder / "spec.json"), *moments, "0"]
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [-signal.SIGKILL] * 3 + [0], ended.stderr

    outcome, undisturbed = trained
    weights = [path.relative_to(undisturbed) for path in sorted(undisturbed.rglob("*.safetensors"))]
    assert {path.parent.name for path in weights} == {"best", "last"}
    for path in weights:
        assert (folder / "output" / path).read_bytes() == (undisturbed / path).read_bytes(), path
    assert told(folder / "output") == told(undisturbed)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [one["outcome"] for one in manifest["identity"]["attempts"]] == ["killed"] * 3 + ["finished"]
    assert outcome.executed.rollouts
    assert manifest["settings"]["executed"]["rollouts"] == outcome.executed.rollouts.model_dump(mode="json")
