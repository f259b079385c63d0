"""The tiny experiment's problems, traces, tokenizer and built-in sources."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from essence.data.markers import Trace, split_trace
from essence.data.readers import read_conversation
from essence.data.reasons import Exchange
from essence.distill.pair_checks import check_pair
from essence.errors import InputError
from essence.models.loading import load_tokenizer
from essence.progress import Progress, StageContext, Stopped, StopRequest
from essence.stages.tiny.problems import (
    LARGEST_TOTAL,
    Problem,
    add_columns,
    benchmark_rows,
    draw_problems,
    stated_result,
    training_rows,
)
from essence.stages.tiny.source_options import OPTIONS as RECORDS
from essence.stages.tiny.sources import BUILTIN
from essence.stages.tiny.toy_tokenizer import CHAT_TEMPLATE, write_tokenizer
from support.project import PROJECT
from support.some_resources import some_resources

DIGITS = {"smallest_digits": 2, "largest_digits": 3}
MODEL: dict[str, Any] = {
    **DIGITS,
    "documents": 12,
    "validation_documents": 4,
    "seed": 3,
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 8,
    "intermediate": 32,
    "max_positions": 256,
    "rope_theta": 10000.0,
    "initializer_range": 0.05,
    "epochs": 1,
    "batch_rows": 4,
    "batch_tokens": 0,
    "max_lr": 3e-3,
    "weight_decay": 0.05,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "gradient_clip_norm": 1.0,
    "warmup_share": 0.1,
    "start_divisor": 25.0,
    "end_divisor": 1e4,
    "beta1_low": 0.85,
    "beta1_high": 0.95,
    "pad_to_multiple": 16,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "tiny-problems": {**DIGITS, "rows": 5, "seed": 1},
    "tiny-benchmark": {**DIGITS, "problems": 5, "seed": 2},
    "tiny-teacher": MODEL,
    "tiny-student": {**MODEL, "slip": 2},
}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, "<|endoftext|>")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return load_tokenizer(tokenizer_folder)


def context(folder: Path) -> StageContext:
    partial = folder / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    resources = some_resources(threads=1, micro_batch_rows=4, micro_batch_tokens=512, checkpoint_every_s=0.0)
    return StageContext(partial, {}, resources, Progress(folder / "progress.json"), StopRequest())


def answer_of(row: dict[str, Any]) -> str:
    return str(row["conversations"][1]["value"])


def numbers_of(row: dict[str, Any]) -> tuple[int, int]:
    first, second = re.findall(r"\d+", row["conversations"][0]["value"])
    return int(first), int(second)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_problems_depend_on_the_seed_alone() -> None:
    assert training_rows(50, (2, 3), 7, 0) == training_rows(50, (2, 3), 7, 0)
    assert training_rows(50, (2, 3), 7, 0)[:20] == training_rows(20, (2, 3), 7, 0)
    assert training_rows(50, (2, 3), 7, 0) != training_rows(50, (2, 3), 8, 0)


def test_a_slip_changes_traces_and_not_problems() -> None:
    right, wrong = training_rows(50, (2, 3), 7, 0), training_rows(50, (2, 3), 7, 2)
    assert [row["conversations"][0] for row in right] == [row["conversations"][0] for row in wrong]
    assert [row["conversations"][1] for row in right] != [row["conversations"][1] for row in wrong]


def test_no_benchmark_problem_is_in_a_training_row_in_either_order() -> None:
    trained = set(map(numbers_of, training_rows(4000, (1, 2), 1, 0)))
    asked = [tuple(map(int, re.findall(r"\d+", row["problem"]))) for row in benchmark_rows(500, (1, 2), 2)]
    assert len(set(asked)) == len(asked) == 500
    assert not trained & {pair for first, second in asked for pair in ((first, second), (second, first))}


def test_every_number_of_digits_is_drawn() -> None:
    sizes = [len(str(problem.first)) for problem in draw_problems(300, (2, 3, 4), 1, "train")]
    assert all(70 < sizes.count(size) < 130 for size in (2, 3, 4))


def test_used_up_problems_are_told() -> None:
    with pytest.raises(InputError, match=r"different benchmark problems with 1 to 1 digits, wanted: 99"):
        draw_problems(99, (1,), 0, "benchmark")
    mixed = draw_problems(200, (1, 2), 0, "benchmark")  # few have one digit: the rest have two
    assert len(set(mixed)) == 200 and {len(str(problem.first)) for problem in mixed} == {1, 2}


def test_every_trace_and_box_is_right() -> None:
    for row in training_rows(300, (1, 2, 3, 4), 11, 0):
        first, second = numbers_of(row)
        answer, size = answer_of(row), len(str(first))
        assert re.findall(r"\\boxed\{(\d+)\}", answer) == [str(first + second)]
        assert re.findall(r"gives (\d+)\.", answer) == [str(first + second)]
        assert re.findall(r"is (\d+)[ .]", answer) == [str(first + second)] * 2
        lines = [tuple(map(int, found)) for found in re.findall(r"(\d)\+(\d)\+(\d)=(\d\d)", answer)]
        assert len(lines) == 2 * size
        assert [(b, a, carry, total) for a, b, carry, total in lines[:size]] == lines[size:]
        carry = 0
        for place, (a, b, carried, total) in enumerate(lines[:size]):
            assert (a, b, carried) == (first // 10**place % 10, second // 10**place % 10, carry)
            assert total == a + b + carry
            carry = total // 10


def test_slips_stay_in_bounds_and_the_result_follows_from_them() -> None:
    rng, off = Random(1), set()
    for problem in draw_problems(300, (3,), 5, "train"):
        columns = add_columns(problem, rng, slip=2)
        for before, after in itertools.pairwise(columns):
            assert after.carry == before.total // 10
        for column in columns:
            assert 0 <= column.total <= LARGEST_TOTAL
            off.add(column.total - column.first - column.second - column.carry)
        assert int("".join(f"{c.total:02d}"[-1] for c in reversed(columns))) == stated_result(columns) % 1000
    assert off == {-2, -1, 0, 1, 2}


def test_rows_are_read_like_bespoke_rows() -> None:
    row = training_rows(1, (3,), 0, 0)[0]
    assert set(row) == {"system", "conversations"}
    assert [turn["from"] for turn in row["conversations"]] == ["user", "assistant"]
    for marker in ("thought", "solution"):
        assert answer_of(row).count(f"<|begin_of_{marker}|>\n\n") == answer_of(row).count(f"<|end_of_{marker}|>") == 1
    trace = trace_of(row)
    assert "<|" not in trace.thought + trace.answer


def trace_of(row: dict[str, Any]) -> Trace:
    exchange = read_conversation(row)
    assert isinstance(exchange, Exchange)
    trace = split_trace(exchange)
    assert isinstance(trace, Trace)
    return trace


def test_the_first_derivation_ends_near_the_middle(tokenizer: Any) -> None:
    for row in training_rows(100, (2, 3), 0, 0):
        exchange = trace_of(row).exchange
        turns = [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": exchange.assistant}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        until_result = text[: text.index("Wait")]
        share = len(tokenizer(until_result)["input_ids"]) / len(tokenizer(text)["input_ids"])
        assert 0.4 < share < 0.6


def test_the_tokenizer_is_the_same_bytes_in_every_process(tmp_path: Path, tokenizer_folder: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from essence.stages.tiny.toy_tokenizer import write_tokenizer\n"
        "write_tokenizer(pathlib.Path(sys.argv[1]), '<|endoftext|>')"
    )
    for number, parallel in enumerate(("false", "true")):
        folder = tmp_path / parallel
        environment = {"PYTHONHASHSEED": str(number), "TOKENIZERS_PARALLELISM": parallel, "RAYON_NUM_THREADS": "2"}
        command = [sys.executable, "-c", script, str(folder)]
        subprocess.run(command, check=True, cwd=PROJECT, env={**os.environ, **environment})
        assert bytes_of(folder) == bytes_of(tokenizer_folder)


def test_the_tokenizer_looks_like_qwens(tokenizer: Any) -> None:
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert 300 <= len(tokenizer) <= 600
    assert tokenizer.convert_ids_to_tokens(tokenizer("12345")["input_ids"]) == list("12345")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = tokenizer("".join(special) + "<think></think>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [*special, "<think>", "</think>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think></think>"
    words = tokenizer.tokenize("Wait, let me check the other way round.")
    assert words == ["Wait", ",", "Ġlet", "Ġme", "Ġcheck", "Ġthe", "Ġother", "Ġway", "Ġround", "."]


@pytest.mark.parametrize(
    "text", ["It is 1363 again.\n\n", "  \t\n x", "héllo wörld ∑ 12", "日本語 🙂", "a<|im_end|>\nb"]
)
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False) == text


def test_the_template_lays_out_a_row(tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "<think>\n\n2+2=4\n\n</think>\n\nIt is 4."},
    ]
    text = (
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n2+2=4\n</think>\n\nIt is 4.<|im_end|>\n"
    )

    def render(count: int, **options: bool) -> str:
        return str(tokenizer.apply_chat_template(turns[:count], tokenize=False, **options))

    assert render(2) == text
    assert render(2, add_generation_prompt=True, enable_thinking=True) == text + "<|im_start|>assistant\n"
    question = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert render(1, add_generation_prompt=True, enable_thinking=True) == question
    assert render(1, add_generation_prompt=True, enable_thinking=False) == question + "<think>\n\n</think>\n\n"
    assert render(1, enable_thinking=False) == question.removesuffix("<|im_start|>assistant\n")


CONVERSATIONS = [
    [("user", "q"), ("assistant", "<think>\n\n t \n\n</think>\n\n\na\n")],
    [("user", "q"), ("assistant", "no thought")],
    [("user", "q"), ("assistant", "<think>never closed")],
    [("user", "q"), ("assistant", "<think>a</think>b</think>c")],
    [("system", "s"), ("user", "q"), ("assistant", "<think>t</think>a"), ("user", "q2")],
    [("user", "q"), ("assistant", "<think>t</think>a"), ("user", "q2"), ("assistant", "<think>u</think>b")],
]


@pytest.mark.assets
@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("generation_prompt", [False, True])
def test_the_template_renders_as_qwens(
    assets: Path, tokenizer: Any, turns: list[tuple[str, str]], generation_prompt: bool
) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    theirs = (assets / "tokenizer" / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
    rendered = [
        tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=template, add_generation_prompt=generation_prompt
        )
        for template in (CHAT_TEMPLATE, theirs)
    ]
    assert rendered[0] == rendered[1]


FILES = {"tiny-problems": {"rows": 5}, "tiny-benchmark": {"problems": 5}}
"""Built-in sources that are files, and what is recorded of them."""


def test_rows_and_benchmark_as_files(tmp_path: Path) -> None:
    surroundings = context(tmp_path)
    made = {name: BUILTIN[name](surroundings.partial, OPTIONS[name], surroundings) for name in FILES}
    assert {name: results.model_dump() for name, results in made.items()} == FILES
    rows = (surroundings.partial / "rows" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row) for row in rows] == training_rows(5, (2, 3), 1, 0)
    problems = (surroundings.partial / "problems" / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    for problem in map(json.loads, problems):
        assert set(problem) == {"id", "problem", "answer"}
        first, second = map(int, re.findall(r"\d+", problem["problem"]))
        assert problem["problem"] == Problem(first, second).question and problem["answer"] == str(first + second)


def test_teacher_and_student_are_a_pair(tmp_path: Path) -> None:
    ends = {}
    for name, end in (("tiny-teacher", "<|im_end|>"), ("tiny-student", "<|endoftext|>")):
        surroundings = context(tmp_path / name)
        results = BUILTIN[name](surroundings.partial, OPTIONS[name], surroundings)
        folder = surroundings.partial / "model"
        assert results.steps == 3 and results.parameters > 0 and results.validation_ce > 0
        config = json.loads((folder / "config.json").read_text())
        generation = json.loads((folder / "generation_config.json").read_text())
        loaded = load_tokenizer(folder)
        assert (config["model_type"], config["vocab_size"], config["rope_theta"]) == ("qwen3", 384, 10000.0)
        assert loaded.eos_token == end and config["eos_token_id"] == loaded.eos_token_id
        ends[name] = loaded.convert_ids_to_tokens(
            [generation["eos_token_id"]] if name == "tiny-student" else generation["eos_token_id"]
        )
    assert ends == {"tiny-teacher": ["<|im_end|>", "<|endoftext|>"], "tiny-student": ["<|endoftext|>"]}
    check_pair(tmp_path / "tiny-student" / "partial" / "model", tmp_path / "tiny-teacher" / "partial" / "model")


def test_a_stopped_pre_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, parts = context(tmp_path / "whole"), context(tmp_path / "parts")
    BUILTIN["tiny-student"](whole.partial, OPTIONS["tiny-student"], whole)
    parts.stop.signal_name = "SIGTERM"
    for _ in range(3):
        with pytest.raises(Stopped):
            BUILTIN["tiny-student"](parts.partial, OPTIONS["tiny-student"], parts)
    parts.stop.signal_name = None
    BUILTIN["tiny-student"](parts.partial, OPTIONS["tiny-student"], parts)
    assert bytes_of(whole.partial / "model") == bytes_of(parts.partial / "model")


@pytest.mark.parametrize("name", list(BUILTIN))
def test_every_option_is_needed_and_no_other_is_known(tmp_path: Path, name: str) -> None:
    surroundings = context(tmp_path)
    for option in OPTIONS[name]:
        if not RECORDS[name].model_fields[option].is_required():
            continue  # a neutral value, as no adapters, is the field's own
        with pytest.raises(InputError, match=rf"built-in source '{name}': key '{option}' is missing"):
            lacking = {key: value for key, value in OPTIONS[name].items() if key != option}
            BUILTIN[name](surroundings.partial, lacking, surroundings)
    with pytest.raises(InputError, match=r"unknown key 'sead'; did you mean 'seed'\?"):
        BUILTIN[name](surroundings.partial, {**OPTIONS[name], "sead": 1}, surroundings)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("rows", 0, "rows = 0: input should be greater than 0"),
        ("seed", "x", "seed = 'x': input should be a valid integer"),
        ("smallest_digits", 4, "smallest_digits = 4 is above largest_digits = 3"),
    ],
)
def test_bad_options_get_one_sentence(tmp_path: Path, option: str, value: object, sentence: str) -> None:
    surroundings = context(tmp_path)
    with pytest.raises(InputError, match=re.escape(sentence)):
        options = {**OPTIONS["tiny-problems"], option: value}
        BUILTIN["tiny-problems"](surroundings.partial, options, surroundings)


def test_importing_the_sources_does_not_import_torch() -> None:
    script = "import sys, essence.stages.tiny; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PROJECT)
