"""Settings and inputs of the tokenize and train stages: generated rows, a tokenizer and models made here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from essence.progress import Progress, StageContext, StopRequest
from essence.settings import TrainSettings, ViewSettings
from essence.stages import tokenize
from support.some_resources import some_objective, some_optimizer, some_resources, some_view
from support.tokenize_settings import tokenize_settings

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
RESOURCES = some_resources(threads=1, micro_batch_rows=4, micro_batch_tokens=64, checkpoint_every_s=600.0)


def make_tokenizer(folder: Path, special: list[str] = SPECIAL, template: str | None = TEMPLATE) -> None:
    """One token a character, and the markup of the Qwen chat format."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = sorted(set("0123456789+-*/= ?.\nabcdefghijklmnopqrstuvwxyzAWI"))
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(special[:2])
    inner.add_tokens(special[2:])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    made.chat_template = template
    made.save_pretrained(folder)


def make_model(folder: Path, seed: int, hidden: int = 16, vocabulary: int = 64) -> Path:
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    make_tokenizer(folder / "model")
    return folder


def make_rows(folder: Path, count: int = 40) -> Path:
    random = np.random.default_rng(0)
    (folder / "rows").mkdir(parents=True)
    with (folder / "rows" / "rows.jsonl").open("w") as file:
        for i in range(count):
            a, b = random.integers(0, 10 ** random.integers(1, 5, 2))
            thought = f"<|begin_of_thought|>\n\nadd {a} and {b} to get {a + b}\n\n<|end_of_thought|>\n\n"
            answer = f"<|begin_of_solution|>\n\nIt is {a + b}.\n\n<|end_of_solution|>"
            turns = [{"from": "user", "value": f"What is {a}+{b}?"}, {"from": "assistant", "value": thought + answer}]
            if i % 10 == 9:
                turns[1]["value"] = answer  # no thought
            file.write(json.dumps({"system": "x", "conversations": turns}) + "\n")
    return folder


def context(folder: Path, **inputs: Path) -> StageContext:
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    progress, stop = Progress(folder / "progress.json"), StopRequest()
    return StageContext(folder / "partial", inputs, RESOURCES, progress, stop)


def tokenise(folder: Path, rows: Path, tokenizer: Path, header: bool = True) -> Any:
    return tokenize.run(
        tokenize_settings(keep_generation_header=header), context(folder, rows=rows, tokenizer=tokenizer)
    )


def view(**changes: Any) -> ViewSettings:
    """The first half, labels as the released code has them."""
    return some_view(**{"lsp": 0.5, "cot_includes_next_token": True, "supervise_end_of_sequence": False, **changes})


def train_settings(**changes: Any) -> TrainSettings:
    record = {
        "rows": {"max_row_tokens": 200, "train_rows": 20, "validation_rows": 6, "split_seed": 42},
        "view": view(),
        "validation_view": "full",
        "objective": some_objective(kd_weight=0.5),
        "optimizer": some_optimizer(),
        "order": {"seed": 42, "multiple": 4},
        "checkpoint_ranks": 4,
        "validations_per_epoch": 2,
        "compute_dtype": "float32",
        "pad_to_multiple": 16,
        "packing": True,
        "seed": 3,
    }
    return TrainSettings.model_validate({**record, **changes})


def prepare(root: Path) -> dict[str, Path]:
    """Inputs of the train stage: tokens, student, teacher; and the rows that the tokens are of."""
    rows, student = make_rows(root / "rows"), make_model(root / "student", 0)
    teacher = make_model(root / "teacher", 1, hidden=24, vocabulary=80)
    tokenise(root / "tokens", rows, student)
    return {"tokens": root / "tokens" / "partial", "student": student, "teacher": teacher, "rows": rows}


def inputs(prepared: dict[str, Path], **changes: Path) -> dict[str, Path]:
    return {name: prepared[name] for name in ("tokens", "student", "teacher")} | changes
