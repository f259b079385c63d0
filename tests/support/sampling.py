"""A random model, a benchmark and settings for tests of sampling."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from essence.progress import Progress, StageContext, StopRequest
from essence.settings import BenchmarkSettings, GenerateSettings
from support.some_resources import some_resources

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


def make_inputs(folder: Path) -> dict[str, Path]:
    """Outputs of a download of a random model and of one of a benchmark."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "model" / "model")
    tokenizer.save_pretrained(folder / "model" / "model")
    return {"model": folder / "model", "problems": make_problems(folder / "problems")}


def make_problems(folder: Path) -> Path:
    """Output of a download of a benchmark."""
    (folder / "problems").mkdir(parents=True)
    rows = [{"problem": text, "answer": 2 * i} for i, text in enumerate(PROBLEMS)]
    (folder / "problems" / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


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
        "decoder": "transformers",
        "loop_tokens": 12,
        "loop_repeats": 4,
        "stop_loops": False,
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
