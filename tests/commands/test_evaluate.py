"""`invoke evaluate`: a finished model through the same stages, and one sentence for words that cannot be meant."""

import json
from pathlib import Path
from typing import Any

import pytest

from essence.commands.evaluate import ModelOptions, model_pin, select_model
from essence.engines.selected_run import Options
from essence.errors import KitError
from essence.plan.experiment import load
from essence.record.local_sources import LocalSources
from essence.settings import GenerateSettings
from support.project import MICRO, invoke

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NONE = {"samples": None, "problems": None, "max_new_tokens": None, "max_model_tokens": None}


def asked(
    model: str = f"Qwen/Qwen3-8B@{COMMIT}", benchmark: str = "aime25", decoder: str | None = None, **numbers: int
) -> ModelOptions:
    return ModelOptions(model, benchmark, decoder, {**NONE, **numbers})


def words(tmp_path: Path, **more: Any) -> Options:
    return Options(**{"protocol": "released", "runs": str(tmp_path / "runs"), **more})


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"model": "/no/such/folder"}, ["--model /no/such/folder: no such folder", "owner/name@COMMIT"]),
        ({"model": "Qwen/Qwen3-8B"}, ["full commit of 40 hexadecimal digits", "found: none"]),
        ({"model": "Qwen/Qwen3-8B@main"}, ["full commit of 40 hexadecimal digits", "found: 'main'"]),
        ({"model": "."}, ["--model .: the folder holds no model, config.json is missing"]),
        ({"benchmark": "aime26"}, ["unknown benchmark 'aime26'; did you mean 'aime2"]),
        ({"samples": 0}, ["--samples 0: must be an integer of at least 1"]),
        ({"max_new_tokens": -5}, ["--max-new-tokens -5: must be an integer of at least 1"]),
        ({"decoder": "vlm"}, ["decoder = 'vlm'", "'transformers' or 'vllm'"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, typed: dict[str, str], sentence: list[str]) -> None:
    with pytest.raises(KitError) as raised:
        select_model(words(tmp_path), asked(**typed))
    assert "\n" not in str(raised.value)
    for part in sentence:
        assert part in str(raised.value)


def test_what_is_typed_reaches_the_stages_and_the_rest_comes_from_the_experiment(tmp_path: Path) -> None:
    typed = asked(samples=8, decoder="transformers", problems=5, max_new_tokens=100)
    plan = select_model(words(tmp_path, protocol="corrected"), typed).plan
    assert [s.stage for s in plan.stages.values()] == ["download", "download", "generate", "grade"]
    settings = next(s.settings for s in plan.stages.values() if s.stage == "generate")
    assert isinstance(settings, GenerateSettings)
    assert (settings.samples, settings.decoder, settings.benchmark.problems, settings.max_new_tokens) == (
        *(8, "transformers", 5, 100),
    )
    assert (settings.temperature, settings.top_p, settings.seed, settings.stop_at_turn_end) == (0.6, 0.95, 1234, True)
    download = next(iter(plan.stages.values())).settings
    assert download.model_dump()["source"]["commit"] == COMMIT


def test_released_asks_as_lighteval_0_10_did(tmp_path: Path) -> None:
    """Prompt, sampling and cap of the published scores: its AIME task, the engine settings of the released script."""
    plan = select_model(words(tmp_path), asked()).plan
    stage = next(s for s in plan.stages.values() if s.stage == "generate")
    found = stage.settings.model_dump()
    expected = {"samples": 64, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32_768, "max_model_tokens": 32_768}
    expected |= {"dtype": "bfloat16", "seed": 1234, "decoder": "vllm", "stop_at_turn_end": False, "stop_loops": False}
    assert {name: found[name] for name in expected} == expected
    resources = load("bespoke").experiment.resources
    assert (resources.decoder_memory_share, resources.tensor_parallel) == (0.9, 1)
    grade = next(s for s in plan.stages.values() if s.stage == "grade")
    assert grade.settings.model_dump()["grader"] == "lighteval-0.10"
    prompt = found["benchmark"]["prompt"]
    told, blank, problem = prompt.split("\n")
    assert (blank, problem) == ("", "{problem}")
    assert told.startswith("Solve the following math problem efficiently and clearly.  The last line of your response")
    assert r"'Therefore, the final answer is: $\boxed{ANSWER}$. I hope it is correct'" in told
    assert told.endswith("Think step by step before answering.")
    assert load("bespoke").catalogue.benchmarks["aime24"].prompt == prompt


OWN_BENCHMARK = """
extends = "tiny"
title = "A benchmark of one's own"

[benchmarks.sums]
{place}
problem_field = "question"
answer_field = "solution"
answer_type = "gsm8k"
prompt = "Put the answer in \\\\boxed{{}}. {{problem}}"
"""


def test_a_benchmark_of_the_hub_is_a_table_in_a_toml(tmp_path: Path) -> None:
    place = f'repository = "someone/sums"\ncommit = "{COMMIT}"\nfiles = ["test.jsonl"]'
    (tmp_path / "own.toml").write_text(OWN_BENCHMARK.format(place=place))
    plan = select_model(words(tmp_path, experiment=str(tmp_path / "own.toml")), asked(benchmark="sums")).plan
    sources = [s.settings.model_dump()["source"] for s in plan.stages.values() if s.stage == "download"]
    (source,) = (source for source in sources if source["kind"] == "benchmark")
    assert (source["repository"], source["commit"], source["files"]) == ("someone/sums", COMMIT, ["test.jsonl"])
    generate = next(s for s in plan.stages.values() if s.stage == "generate").settings.model_dump()
    assert generate["benchmark"]["answer_type"] == "gsm8k"


def test_a_folder_is_named_by_its_last_part(tmp_path: Path) -> None:
    folder = tmp_path / "My Model (best)"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    name, pin = model_pin(str(folder), LocalSources())
    assert (name, pin.path) == ("my-model-best", str(folder))


def test_two_models_of_one_name_are_two_evaluations_and_a_copied_one_is_the_same(tmp_path: Path) -> None:
    """Every model that the kit trains is in a folder named `best`."""
    for place, text in (("a", "{}"), ("b", '{"b": 1}'), ("copy-of-a", "{}")):
        (tmp_path / place / "best").mkdir(parents=True)
        (tmp_path / place / "best" / "config.json").write_text(text)

    def evaluation(place: str, **numbers: int) -> tuple[str, list[str]]:
        chosen = select_model(words(tmp_path), asked(str(tmp_path / place / "best"), **numbers))
        return chosen.name, list(chosen.plan.stages)

    first, second, copied = evaluation("a"), evaluation("b"), evaluation("copy-of-a")
    assert first == copied and first[0].startswith("evaluate-best-aime25-")
    assert first[0] != second[0] and not {*first[1]} & {*second[1][:1], *second[1][2:]}
    assert evaluation("a", samples=3)[0] != first[0], "the plan of the first would be lost"


@pytest.mark.slow
def test_a_model_is_evaluated_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from support.sampling import make_inputs

    model = make_inputs(tmp_path)["model"] / "model"
    (tmp_path / "own.toml").write_text(OWN_BENCHMARK.format(place='path = "own.jsonl"'))
    rows = [{"question": f"{n} + {n}?", "solution": f"It is\n#### {2 * n}"} for n in range(4)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--experiment", str(tmp_path / "own.toml"), "--benchmark", "sums", "--problems", "3", "--samples", "2"]
    command = ["evaluate", "--model", str(model), *options, "--runs", str(tmp_path / "runs")]
    own = (tmp_path / "own.toml").read_text()
    (tmp_path / "own.toml").write_text(own.replace('"question"', '"questin"'))
    misspelt = invoke(*command)
    assert misspelt.returncode == 2 and "no field 'questin'" in misspelt.stderr + misspelt.stdout
    assert not list((tmp_path / "runs" / "stages").glob("generate-*")), "told before anything is generated"
    (tmp_path / "own.toml").write_text(own)
    refused = invoke(*command, "--max-model-tokens", "10")
    assert refused.returncode == 2
    assert "leaves no room for a completion: max_model_tokens is 10" in refused.stdout
    first = invoke(*command, "--max-new-tokens", "12")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "sums avg@2: " in first.stdout and "6 completions: stop" in first.stdout
    again = invoke(*command, "--max-new-tokens", "12", "--json")
    results = json.loads(again.stdout)["results"]
    assert sum(results["finish_reasons"].values()) == 6 and results["executed"]["max_new_tokens"] == 12
    assert "generate" not in again.stderr, "it was done before"
    samples = Path(results["samples_file"]).read_text(encoding="utf-8").splitlines()
    assert len(samples) == 6


def test_without_a_network_the_cure_is_one_for_this_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`invoke download` knows nothing of a model that only this command names."""
    words = ("--model", f"owner/name@{'0' * 40}", "--benchmark", "aime25", "--decoder", "transformers")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = invoke("evaluate", *words, "--experiment", str(MICRO), "--runs", str(tmp_path))
    assert done.returncode == 2 and "model name" in done.stderr
    assert "--model FOLDER" in done.stderr and "invoke d" not in done.stderr
