"""Every stage and command that takes a model: exactly the weights of the files compute, or one sentence and nothing.

The folders are changed at random; the code is that which the commands run, and torch itself says what computes.
"""

import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import torch

from essence.errors import KitError, MachineError
from essence.progress import StageContext
from essence.record.content import content_of
from essence.settings import DownloadSettings, Source, TeacherSettings
from essence.stages import download, generate, teacher, train
from support.model_folders import make_folder, rewrite, weights
from support.project import invoke
from support.random_folders import KNOWN_DAMAGE, MOVES, decoders_that_run, disturb, stored
from support.sampling import context as sampling_context
from support.sampling import make_problems
from support.sampling import settings as generate_settings
from support.stage_inputs import context, make_rows, tokenise, train_settings

FOLDERS_EACH = int(os.environ.get("ESSENCE_RANDOM_FOLDERS", "14"))
"""Random folders for each command; more of them are changed in other ways."""
LORA = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "down_proj"]}
SHORT = {
    "rows": {"max_row_tokens": 400, "train_rows": 4, "validation_rows": 4, "split_seed": 42},
    "validations_per_epoch": 1,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with a model that has nothing wrong, the rows' tokens and some problems; not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    make_folder(root / "model")
    tokenise(root / "tokens", make_rows(root / "made"), root)
    make_problems(root / "problems")
    return root


def training(changed: str, **settings: Any) -> Callable[[Path, Path, Path], StageContext]:
    """The train stage with this one of its two models changed."""

    def run(model: Path, whole: Path, work: Path) -> StageContext:
        models = {"student": whole, "teacher": whole, changed: model}
        around = context(work, tokens=whole / "tokens" / "partial", **models)
        train.run(train_settings(**SHORT, **settings), around)
        return around

    return run


def reading(model: Path, whole: Path, work: Path) -> StageContext:
    around = context(work, tokens=whole / "tokens" / "partial", tokenizer=whole, teacher=model)
    rows = train_settings(**SHORT).rows
    asked = TeacherSettings(rows=rows, compute_dtype="float32", packing=True, pad_to_multiple=16)
    teacher.run(asked, around)
    return around


def sampling(model: Path, whole: Path, work: Path) -> StageContext:
    around = sampling_context(work, {"model": model, "problems": whole / "problems"})
    generate.run(generate_settings(samples=1, max_new_tokens=3), around)
    return around


COMPUTING: dict[str, Callable[[Path, Path, Path], StageContext]] = {
    "train, its student": training("student"),
    "train, its student with adapters": training("student", lora=LORA),
    "train, its teacher": training("teacher"),
    "teacher": reading,
    "generate": sampling,
}


def folders(whole: Path, place: Path, seed: str, moves: Sequence[str] = MOVES) -> list[Path]:
    """Outputs of a download, each with a model folder that was changed once or twice."""
    chosen = random.Random(seed)
    made = []
    for number in range(FOLDERS_EACH):
        shutil.copytree(whole / "model", place / str(number) / "model")
        picked = [(chosen.choice(moves), chosen.randrange(10**6)) for _ in range(chosen.choice((1, 1, 2)))]
        disturb(place / str(number) / "model", picked)
        made.append(place / str(number))
    return made


def one_sentence(refused: KitError) -> None:
    assert "\n" not in str(refused) and len(str(refused)) < 1000


@pytest.mark.parametrize("command", COMPUTING)
def test_what_computes_is_what_the_files_hold_or_nothing_computes(command: str, whole: Path, tmp_path: Path) -> None:
    used = 0
    for model in folders(whole, tmp_path, command):
        work = model / "work"
        with decoders_that_run() as ran:
            try:
                COMPUTING[command](model, whole, work)
            except KitError as refused:
                one_sentence(refused)
                assert ran == [] and not list(work.rglob("*.jsonl")), refused
                continue
        used += 1
        expected = {name: tensor.float() for name, tensor in stored(model / "model").items()}
        expected.pop("lm_head.weight", None)
        assert any(same(found, expected) for found in ran), model
        assert all(same(found, expected) or same(found, stored(whole / "model")) for found in ran)
    assert 0 < used < FOLDERS_EACH


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """By names, by sums, and number by number."""
    return (
        found.keys() == expected.keys()
        and sum(t.double().sum() for t in found.values()) == sum(t.double().sum() for t in expected.values())
        and all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    )


def test_vllm_is_given_no_folder_that_was_not_looked_through(whole: Path, tmp_path: Path) -> None:
    """A stage that asks for more GPUs than it has ends behind the last look at the folder, before vLLM is started."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    refused_by_the_door = 0
    for model in folders(whole, tmp_path, "vllm"):
        around = sampling_context(model / "work", {"model": model, "problems": whole / "problems"})
        resources = around.resources.model_copy(update={"gpus": 1, "tensor_parallel": 2})
        around = StageContext(around.partial, around.inputs, resources, around.progress, around.stop)
        with pytest.raises(KitError) as refused:
            generate.run(generate_settings(decoder="vllm"), around)
        one_sentence(refused.value)
        behind = isinstance(refused.value, MachineError)
        refused_by_the_door += not behind
        if behind:
            assert all(bool(torch.isfinite(tensor).all()) for tensor in stored(model / "model").values())
            with decoders_that_run() as ran:  # what vLLM would load is what the library loads
                sampling(model, whole, model / "again")
            assert len(ran) == 1
        else:
            with pytest.raises(KitError):
                sampling(model, whole, model / "again")
    assert 0 < refused_by_the_door < FOLDERS_EACH


def test_a_download_takes_a_folder_as_it_is_or_not_at_all(whole: Path, tmp_path: Path) -> None:
    taken = 0
    for model in folders(whole, tmp_path, "download"):
        path = model / "model"
        source = Source(kind="model", name="mine", path=str(path), path_state=content_of(path))
        around = context(model / "work")
        try:
            download.run(DownloadSettings(source=source), around)
        except KitError as refused:
            one_sentence(refused)
            assert str(path) in str(refused) and not (around.partial / "model").exists()
            continue
        taken += 1
        found, expected = stored(around.partial / "model"), stored(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in expected.items())
    assert 0 < taken < FOLDERS_EACH


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def test_tokens_are_those_of_the_folder_or_there_are_none(whole: Path, tmp_path: Path) -> None:
    made = 0
    for model in folders(whole, tmp_path, "tokenize", ("known", "value", "cut text")):
        try:
            outcome = tokenise(model / "work", whole / "made", model)
        except KitError as refused:
            one_sentence(refused)
            assert not (model / "work" / "partial" / "statistics.json").exists()
            continue
        made += 1
        if all((model / "model" / f).read_bytes() == (whole / "model" / f).read_bytes() for f in TOKENIZER_FILES):
            assert outcome.data == tokenise(model / "again", whole / "made", whole).data
    assert 0 < made < FOLDERS_EACH


OWN = """
extends = "tiny"
title = "One model of one's own"
[benchmarks.sums]
path = "problems.jsonl"
problem_field = "problem"
answer_field = "answer"
answer_type = "integer"
prompt = "{problem}"
[data.tiny]
train_rows = 4
validation_rows = 4
[datasets.tiny.options]
rows = 20
[[matrix]]
dataset = ["tiny"]
pair = ["sound_mine"]
lsp = [0.5]
seed = [1]
[models.mine]
path = "mine/model"
[models.sound]
path = "sound/model"
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unknown kind", pytest.param("not finite", marks=pytest.mark.nightly)])
def test_what_only_a_stage_can_see_is_one_sentence_of_the_command(name: str, whole: Path, tmp_path: Path) -> None:
    for folder in ("mine", "sound"):
        shutil.copytree(whole / "model", tmp_path / folder / "model")
    if name == "not finite":
        found = weights(tmp_path / "mine" / "model")
        found["model.norm.weight"][0] = float("nan")
        rewrite(tmp_path / "mine" / "model", found)
        said = "model.norm.weight holds numbers that are not finite"
    else:
        damage, said = KNOWN_DAMAGE[name]
        damage(tmp_path / "mine" / "model")
    (tmp_path / "problems.jsonl").write_text('{"problem": "1+1?", "answer": 2}\n')
    (tmp_path / "own.toml").write_text(OWN)
    runs = ("--experiment", str(tmp_path / "own.toml"), "--runs", str(tmp_path / "runs"))
    model = ("--model", str(tmp_path / "mine" / "model"), "--benchmark", "sums", "--decoder", "transformers")
    for words in (("evaluate", *model), ("run", "--only", "train")):
        done = invoke(*words, *runs)
        assert done.returncode == 2, done.stdout + done.stderr
        assert re.search(said, done.stdout) and "Traceback" not in done.stdout + done.stderr
        assert not [*tmp_path.rglob("samples.jsonl"), *tmp_path.rglob("metrics.jsonl")]
