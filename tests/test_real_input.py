"""Real Bespoke-Stratos rows, the real Qwen3 tokenizer, template and vocabulary, and real AIME problems, end to end.

The Bespoke experiment itself runs, but for its sizes and for the download: a --pins file points at local folders.
"""

import json
import shutil
from pathlib import Path

import pytest

from support.project import invoke

VOCABULARY = 151_936
EXPERIMENT = """
extends = "bespoke"
title = "Bespoke at LSP 0.5 on a handful of rows"

[[matrix]]
dataset = ["bespoke"]
pair = ["qwen3-8b_qwen3-4b-base"]
lsp = [0.5]

[data.bespoke]
max_row_tokens = 100000
max_rejected_share = 0.5  # two of the four rows are of another shape
train_rows = 1
validation_rows = 1

[training]
parallel = "single"  # several processes: test_parallel.py
processes = 1
validations_per_epoch = 1
compute_dtype = "float32"
compile_layers = false  # test_compiled_layers.py

[decontamination]
benchmarks = ["aime24"]

[evaluation]
benchmarks = ["aime24"]
baselines = []
samples = 2
problems = 3
max_new_tokens = 8
decoder = "transformers"
dtype = "float32"

[resources]
gpus = 0
gpu_memory_gib = 0.0
threads = 2
"""


def small_model(folder: Path, tokenizer: Path, hidden: int) -> None:
    """A random Qwen3 of the real vocabulary with the real tokenizer, as a Hugging Face folder."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(hidden)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "head_dim": 16}
    config = Qwen3Config(
        **sizes, vocab_size=VOCABULARY, num_attention_heads=2, num_key_value_heads=1, eos_token_id=151643
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    shutil.copy(tokenizer / "qwen3_chat_template.jinja", folder / "chat_template.jinja")


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.assets
def test_bespoke_runs_to_the_end_on_local_folders(assets: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    shutil.copy(assets / "traces" / "bespoke_stratos_17k.real2.jsonl", rows / "a.jsonl")
    shutil.copy(assets / "traces" / "sky_t1_format.real_traces.jsonl", rows / "b.jsonl")
    small_model(tmp_path / "student", assets / "tokenizer", 32)
    small_model(tmp_path / "teacher", assets / "tokenizer", 48)
    pins = tmp_path / "pins.toml"
    pins.write_text(
        f"""
[models.qwen3-8b]
path = "teacher"
[models.qwen3-4b-base]
path = "student"
[datasets.bespoke]
path = "rows"
[benchmarks.aime24]
path = "{assets / "benchmarks" / "aime24_hf_h4_schema.jsonl"}"
""",
        encoding="utf-8",
    )
    experiment = tmp_path / "bespoke-small.toml"
    experiment.write_text(EXPERIMENT, encoding="utf-8")
    options = ("--experiment", str(experiment), "--pins", str(pins), "--runs", str(tmp_path / "runs"))
    done = invoke("run", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    check_records(tmp_path / "runs")
    assert invoke("verify", str(tmp_path / "runs")).returncode == 0


def check_records(runs: Path) -> None:
    plan = json.loads((runs / "bespoke-small" / "plan.json").read_text())
    manifests = {i: json.loads((runs / "stages" / i / "manifest.json").read_text()) for i in plan["stages"]}
    train = manifests[plan["cells"][0]["stages"]["train"]]
    assert train["settings"]["executed"]["optimizer_steps"] == 2
    kept = [train["inputs"]["data"][part]["tokens"] for part in ("train", "validation")]
    assert sorted(kept) == [1151 // 2, 1861 // 2]
    grade = manifests[plan["cells"][0]["evaluations"][0]["grade"]]
    assert [p["samples"] for p in grade["results"]["per_problem"]] == [2, 2, 2]
    assert (runs / "bespoke-small" / "report" / "report.html").is_file()
