"""Every model goes through one door: exactly the weights of the files are used, or one sentence says why not."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from support.project import PROJECT, invoke

pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from essence.errors import ExperimentError, InputError
from essence.models.decoder import wanted_weights
from essence.models.folder import check_folder
from essence.models.loading import check_model, check_values, load_model, load_tokenizer
from essence.models.saving import save_model
from essence.models.unchanged import State
from essence.plan.experiment import load, split_pair
from essence.stages import generate
from support.model_folders import DAMAGE, LATER, configure, make_folder, rewrite, shard, weights
from support.random_folders import MOVES, disturb, stored
from support.sampling import context as stage_context
from support.sampling import make_inputs
from support.sampling import settings as generate_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with nothing wrong; not to be changed."""
    return make_folder(tmp_path_factory.mktemp("whole") / "model")


def copy_of(whole: Path, folder: Path) -> Path:
    shutil.copytree(whole, folder)
    return folder


def test_a_whole_folder_passes_and_its_weights_are_those_of_its_files(whole: Path, tmp_path: Path) -> None:
    check_model(whole, tmp_path)
    check_values(whole)
    loaded = load_model(whole, torch.float32, CPU).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in weights(whole).items())
    assert list(tmp_path.iterdir()) == []  # what was tried is gone


@pytest.mark.parametrize("name", DAMAGE)
def test_what_the_host_refuses_it_refuses_in_one_sentence_that_names_the_users_file(
    name: str, whole: Path, tmp_path: Path
) -> None:
    folder = copy_of(whole, tmp_path / "copy")
    damage, said = DAMAGE[name]
    damage(folder)
    with pytest.raises(InputError, match=said) as raised:
        check_folder(folder, named=Path("/models/mine"))
    sentence = str(raised.value)
    assert sentence.startswith("/models/mine") and str(folder) not in sentence
    assert "\n" not in sentence and "; " in sentence
    for open_it in (lambda: check_model(folder, tmp_path), lambda: load_model(folder, torch.float32, CPU)):
        with pytest.raises(InputError):
            open_it()


@pytest.mark.parametrize("name", LATER)
def test_what_takes_the_library_is_refused_at_the_start_of_a_stage(name: str, whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path / "copy")
    damage, said = LATER[name]
    damage(folder)
    with pytest.raises(InputError, match=said) as raised:
        check_model(folder, tmp_path)
    assert "\n" not in str(raised.value)


WITHOUT_ACCELERATE = """
import importlib.util, sys
from pathlib import Path
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] == "accelerate" else find(name, *more)
from essence.errors import InputError
from essence.models.loading import check_model
for folder in sys.argv[2:]:
    try:
        print("passed", check_model(Path(folder), Path(sys.argv[1]))["model_type"])
    except InputError as refused:
        print("refused", refused)
"""
"""The environment of evaluation has no accelerate; the library asks for it in the same way."""


def test_the_door_holds_where_accelerate_is_not_installed(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    other = copy_of(whole, tmp_path / "other")  # a kind that the host does not know by heart
    shape = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    configure(other, **shape)
    rewrite(other, {name: tensor for name, tensor in weights(other).items() if not re.search(r"[qk]_norm", name)})
    lacking, renamed = copy_of(whole, tmp_path / "lacking"), copy_of(other, tmp_path / "renamed")
    for folder in (lacking, renamed):
        rewrite(folder, {name: tensor for name, tensor in weights(folder).items() if name != "model.norm.weight"})
    folders = [str(folder) for folder in (whole, other, lacking, renamed)]
    command = [sys.executable, "-c", WITHOUT_ACCELERATE, str(tmp_path / "scratch"), *folders]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert done.returncode == 0 and said[:2] == ["passed qwen3", "passed mistral"], done.stdout + done.stderr
    assert all(line.startswith("refused") and "model.norm.weight" in line for line in said[2:]) and len(said) == 4, said


def test_numbers_that_are_not_finite_are_refused_by_both_ways_to_decode(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path / "copy")
    found = weights(folder)
    found["model.norm.weight"][3] = float("inf")
    rewrite(folder, found)
    for read in (lambda: check_values(folder), lambda: load_model(folder, torch.bfloat16, CPU)):
        with pytest.raises(InputError, match=r"model.norm.weight holds numbers that are not finite"):
            read()


def test_what_may_lie_in_a_folder_beside_the_weights(whole: Path, tmp_path: Path) -> None:
    """A tied head that was stored too, buffers of older versions, shards, and the same template twice."""
    folder = copy_of(whole, tmp_path / "copy")
    embedding = weights(folder)["model.embed_tokens.weight"]
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in (0, 1)}
    rewrite(folder, {**weights(folder), "lm_head.weight": embedding.clone(), **buffers})
    configure(folder, "tokenizer_config.json", chat_template=(folder / "chat_template.jinja").read_text())
    check_model(folder, tmp_path)
    loaded = load_model(folder, torch.float32, CPU).state_dict()
    assert torch.equal(loaded["lm_head.weight"], embedding)
    parted = copy_of(whole, tmp_path / "parted")
    shard(parted)
    check_model(parted, tmp_path)
    assert total(load_model(parted, torch.float32, CPU)) == total(load_model(whole, torch.float32, CPU))


def total(model: Any) -> float:
    return float(sum(parameter.detach().double().sum() for parameter in model.parameters()))


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 10**6)), min_size=1, max_size=2))
def test_a_random_folder_gives_exactly_its_weights_or_is_refused(whole: Path, moves: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = copy_of(whole, Path(place) / "model")
        disturb(folder, moves)
        try:
            check_model(folder, Path(place))
            loaded = dict(load_model(folder, torch.float32, CPU).named_parameters())
        except InputError as refused:
            assert "\n" not in str(refused)
            return
        found = stored(folder)
        assert loaded.keys() == found.keys()
        assert sum(t.double().sum() for t in loaded.values()) == sum(t.double().sum() for t in found.values())
        assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in found.items())


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
@given(st.data())
@settings(max_examples=20)
def test_the_host_knows_the_weights_of_these_kinds_as_the_library_does(kind: str, data: st.DataObject) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config: dict[str, Any] = {**sizes, "num_attention_heads": data.draw(st.sampled_from([2, 4]))}
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        if (value := data.draw(st.sampled_from([None, False, True]))) is not None:
            config[key] = value
    for key, value in (("head_dim", 8), ("num_key_value_heads", 2)):
        if data.draw(st.booleans()):
            config[key] = value
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert wanted_weights({"model_type": kind, **config}, "config.json") == expected


@pytest.mark.parametrize("decoder", ["transformers", "vllm"])
def test_generation_starts_with_no_folder_that_has_not_passed(decoder: str, tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    configure(inputs["model"] / "model", intermediate_size=96)
    with pytest.raises(InputError, match=r"has shape \[64, 32\], config.json says \[96, 32\]"):
        generate.run(generate_settings(decoder=decoder), stage_context(tmp_path / "work", inputs))
    assert not (tmp_path / "work" / "partial" / "samples.jsonl").exists()


def test_a_saved_model_is_read_again_as_it_was(whole: Path, tmp_path: Path) -> None:
    model: Any = load_model(whole, torch.float32, CPU)
    save_model(model, tmp_path / "saved", tokenizer_from=whole)
    assert total(load_model(tmp_path / "saved", torch.float32, CPU)) == total(model)


BENCHMARK = """
extends = "tiny"
title = "One model of one's own"
[benchmarks.sums]
path = "problems.jsonl"
problem_field = "problem"
answer_field = "answer"
answer_type = "integer"
prompt = "{problem}"
"""

OWN = (
    BENCHMARK
    + """
[[matrix]]
dataset = ["tiny"]
pair = ["my_teacher_mystudent"]
lsp = [0.5]
seed = [1]
[models.mystudent]
path = "model"
[models.my_teacher]
path = "model"
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes", "template raises"])
def test_no_command_spends_anything_on_a_damaged_model(name: str, whole: Path, tmp_path: Path) -> None:
    damage, said = DAMAGE[name]
    damage(copy_of(whole, tmp_path / "model"))
    (tmp_path / "problems.jsonl").write_text('{"problem": "1+1?", "answer": 2}\n')
    (tmp_path / "own.toml").write_text(OWN)
    runs = ("--experiment", str(tmp_path / "own.toml"), "--runs", str(tmp_path / "runs"))
    for words in (("evaluate", "--model", str(tmp_path / "model"), "--benchmark", "sums"), ("run",)):
        done = invoke(*words, *runs)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
        assert re.search(said, done.stderr) and str(tmp_path / "model") in done.stderr
        assert not (tmp_path / "runs" / "stages").exists()
    assert invoke("plan", *runs).returncode == 0


def test_names_of_models_may_have_underscores(tmp_path: Path) -> None:
    models = {"my_teacher", "mystudent", "a", "a_b", "b_c", "c"}
    assert split_pair("my_teacher_mystudent", models, "own.toml") == ("my_teacher", "mystudent")
    assert split_pair("a_c", models, "own.toml") == ("a", "c")
    with pytest.raises(ExperimentError, match="may mean 'a' and 'b_c' or 'a_b' and 'c': give one of these models"):
        split_pair("a_b_c", models, "own.toml")
    assert split_pair("my_teacher_nobody", models, "own.toml") == ("my_teacher", "nobody")
    with pytest.raises(ExperimentError, match="must read teacher_student"):
        split_pair("_a", models, "own.toml")
    (tmp_path / "own.toml").write_text(OWN)
    (cell,) = load(str(tmp_path / "own.toml")).cells()
    assert (cell.teacher, cell.student) == ("my_teacher", "mystudent")


def test_what_was_read_counts_until_a_file_changes(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(whole, folder)
    assert check_folder(folder) is check_folder(folder) and load_tokenizer(folder) is load_tokenizer(folder)
    before = load_tokenizer(folder)
    file = folder / "tokenizer.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    moment = file.stat().st_mtime_ns
    ids = described["model"]["vocab"]
    ids["$"], ids["K"] = ids["K"], ids["$"]
    file.write_text(json.dumps(described), encoding="utf-8")
    os.utime(file, ns=(moment, moment))
    assert load_tokenizer(folder).get_vocab()["$"] == before.get_vocab()["K"]
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json"):
        check_folder(folder)


def test_a_folder_without_a_configuration_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the top of a disk with millions of files."""

    def looked_through(path: Path) -> State:
        raise AssertionError(f"{path} was looked through")

    monkeypatch.setattr("essence.models.folder.state_of", looked_through)
    with pytest.raises(InputError, match=r"no config\.json, so no model"):
        check_folder(tmp_path)


@pytest.mark.parametrize("folder", ["/proc/self", "/proc/self/fd", "/proc/self/mem", "/dev", "x" * 5000, "a\0b"])
def test_what_is_no_folder_of_files_is_one_sentence(folder: str) -> None:
    """Files go while they are looked at, or a name is none."""
    for look in (check_folder, load_tokenizer):
        with pytest.raises(InputError) as refused:
            look(Path(folder))
        assert "\n" not in str(refused.value)
