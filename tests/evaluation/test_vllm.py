"""The vLLM decoder, really run on the CPU: one engine for all that can share it, and one that is killed three times."""

import importlib.util
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.project import required
from support.sampling import PROBLEMS, context, make_inputs, samples, settings
from support.some_resources import some_resources

if importlib.util.find_spec("vllm") is None and not required("vllm"):
    pytest.skip("vLLM is not installed: locks/install.sh cpu dev vllm", allow_module_level=True)

from essence.errors import MachineError
from essence.evaluation.benchmarks import Problem
from essence.evaluation.decoders import Decoder, DecodeSettings
from essence.evaluation.decoders.kept_compilations import KEPT
from essence.evaluation.decoders.replicas import Replicas, gpus_of_copy
from essence.evaluation.decoders.transformers import TransformersDecoder
from essence.evaluation.decoders.vllm import BYTES, VllmDecoder, _engine_options, replicas
from essence.evaluation.requests import Completion, Request, RequestKey, plan_requests, render_prompts
from essence.files import read_json
from essence.models.loading import load_tokenizer
from essence.record.evaluation_records import GenerateMore
from essence.record.outcomes import GenerateOutcome
from essence.settings import GenerateSettings
from essence.sizes.architecture import Architecture
from essence.stages import generate

pytestmark = pytest.mark.vllm
STOP_IDS = (256, 258)
GREEDY = settings(decoder="vllm", samples=1, temperature=0.0, max_new_tokens=48, batch_sequences=256)


@pytest.fixture(scope="module", autouse=True)
def own_variables() -> Iterator[None]:
    """vLLM reads variables of its process, which outside of tests is the stage's own."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def told(inputs: dict[str, Path], asked: GenerateSettings) -> DecodeSettings:
    return DecodeSettings(inputs["model"] / "model", STOP_IDS, asked, some_resources(threads=1))


def requests_of(inputs: dict[str, Path], asked: GenerateSettings) -> list[Request]:
    tokenizer = load_tokenizer(inputs["model"] / "model")
    problems = [Problem(str(i), text, "0") for i, text in enumerate(PROBLEMS)]
    return plan_requests(render_prompts(tokenizer, problems, "Solve: {problem}"), asked)


@pytest.fixture(scope="module")
def engine(inputs: dict[str, Path]) -> Iterator[VllmDecoder]:
    """The one engine of this process; what is asked of it is set by `decode`."""
    with closing(VllmDecoder(told(inputs, GREEDY))) as decoder:
        yield decoder


def decode(
    decoder: Decoder, requests: list[Request], present: set[RequestKey] = frozenset()
) -> dict[RequestKey, Completion]:
    finished = [pair for some in decoder.complete(requests, present) for pair in some]
    assert len({request.key for request, _ in finished}) == len(finished)
    return {request.key: completion for request, completion in finished}


def asked_of(decoder: VllmDecoder, asked: GenerateSettings, stop_ids: tuple[int, ...] = STOP_IDS) -> VllmDecoder:
    """The same engine, asked for something else."""
    decoder.sampling, decoder.stop_ids = asked, list(stop_ids)
    decoder.loops = DecodeSettings(Path(), (), asked, some_resources()).loops
    return decoder


def test_greedy_is_that_of_transformers(inputs: dict[str, Path], engine: VllmDecoder) -> None:
    requests = requests_of(inputs, GREEDY)
    theirs = decode(asked_of(engine, GREEDY), requests)
    with closing(TransformersDecoder(told(inputs, GREEDY))) as decoder:
        ours = decode(decoder, requests)
    assert {key: c.token_ids for key, c in theirs.items()} == {key: c.token_ids for key, c in ours.items()}
    assert {key: c.finish_reason for key, c in theirs.items()} == {key: c.finish_reason for key, c in ours.items()}


def test_seeds_caps_stops_and_times(inputs: dict[str, Path], engine: VllmDecoder) -> None:
    asked = settings(decoder="vllm", samples=8, max_new_tokens=40)
    requests = requests_of(inputs, asked)
    first = decode(asked_of(engine, asked), requests)
    again = decode(engine, requests)
    ids = {key: completion.token_ids for key, completion in first.items()}
    assert ids == {key: completion.token_ids for key, completion in again.items()}
    assert len({tuple(tokens) for tokens in ids.values()}) == len(requests) == 40
    assert engine.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching is True
    reasons = {completion.finish_reason for completion in first.values()}
    assert reasons == {"stop", "length"}
    for completion in first.values():
        stopped = completion.token_ids[-1] in STOP_IDS
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(completion.token_ids) == 40
        assert not set(completion.token_ids[:-1]) & set(STOP_IDS)
        assert 0.0 < completion.seconds < 120.0


def test_more_prompts_than_a_step_can_read(inputs: dict[str, Path], engine: VllmDecoder) -> None:
    """With its prompts read in pieces, vLLM's CPU build fails on seeded requests."""
    asked = settings(decoder="vllm", samples=50, max_new_tokens=2)
    requests = requests_of(inputs, asked)
    assert sum(len(request.prompt.token_ids) for request in requests) > 2 * 4096
    engine.llm.reset_prefix_cache()
    assert len(decode(asked_of(engine, asked), requests)) == 250


def test_what_is_present_is_not_generated_again(inputs: dict[str, Path], engine: VllmDecoder) -> None:
    asked = settings(decoder="vllm", samples=2, max_new_tokens=8)
    requests = requests_of(inputs, asked)
    whole = decode(asked_of(engine, asked), requests)
    present = {request.key for request in requests[1::2]}
    rest = decode(engine, requests, present)
    assert rest.keys() == whole.keys() - present
    assert all(rest[key].token_ids == whole[key].token_ids for key in rest)


def test_loops_end_early_and_are_cut_at_the_same_token(inputs: dict[str, Path], engine: VllmDecoder) -> None:
    changes: dict[str, Any] = {"samples": 1, "temperature": 0.0, "max_new_tokens": 200, "decoder": "vllm"}
    asked = settings(**changes, stop_loops=True)
    requests = requests_of(inputs, asked)
    cut = decode(asked_of(engine, asked, (256,)), requests)
    whole = decode(asked_of(engine, settings(**changes), (256,)), requests)
    loops = [key for key, completion in cut.items() if completion.finish_reason == "loop"]
    assert loops
    for key, completion in cut.items():
        assert completion.token_ids == whole[key].token_ids[: len(completion.token_ids)]
        assert key not in loops or len(completion.token_ids) < len(whole[key].token_ids)


def test_two_copies_give_what_one_gives(
    inputs: dict[str, Path], engine: VllmDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that take requests from each other; in float32 it does not matter who decodes what."""
    asked = settings(decoder="vllm", samples=12, max_new_tokens=40, batch_sequences=4)
    requests = requests_of(inputs, asked)
    alone = decode(asked_of(engine, asked), requests)
    monkeypatch.setenv(KEPT, str(tmp_path / "compiled"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "compiled" / "vllm"))
    with closing(Replicas(told(inputs, asked), copies=2)) as pair:
        together = decode(pair, requests)
        assert pair.facts["replicas"] == 2
        rest = decode(pair, requests, {request.key for request in requests[5:]})
        load = pair.load()
    assert {key: c.token_ids for key, c in together.items()} == {key: c.token_ids for key, c in alone.items()}
    assert {key: c.token_ids for key, c in rest.items()} == {r.key: alone[r.key].token_ids for r in requests[:5]}
    own = engine.load()
    assert own.key_value_tokens and own.peak_memory_gib and own.preemptions == 0 and own.peak_gpu_memory_gib is None
    # Four sequences of 256 tokens each in whole blocks, and one block more each.
    assert load.key_value_tokens and load.key_value_tokens >= 2 * 4 * 256 and load.preemptions == 0
    assert load.peak_memory_gib and load.peak_memory_gib > 1.5 * own.peak_memory_gib
    assert any((tmp_path / "compiled" / "vllm").rglob("*")) and not list((tmp_path / "compiled").glob(".starting-*"))


def test_sequences_that_are_put_back_are_counted(inputs: dict[str, Path], engine: VllmDecoder) -> None:
    """The scheduler puts sequences back, and says how often; no completion changes by it."""
    asked = settings(decoder="vllm", samples=4, max_new_tokens=24, temperature=0.0)
    requests = requests_of(inputs, asked)
    whole = decode(asked_of(engine, asked), requests)
    before, scheduler = engine.load().preemptions, engine.llm.llm_engine.engine_core.engine_core.scheduler
    put_back = 0
    found: dict[RequestKey, Completion] = {}
    for some in asked_of(engine, asked).complete(requests, frozenset()):
        found.update({request.key: completion for request, completion in some})
        if not put_back and not found and scheduler.running:
            put_back = scheduler.reset_prefix_cache(reset_running_requests=True)
    assert put_back and before is not None and (engine.load().preemptions or 0) > before
    assert {key: c.token_ids for key, c in found.items()} == {key: c.token_ids for key, c in whole.items()}


def test_each_copy_has_its_own_gpus(monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Path]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [gpus_of_copy(copy, 2) for copy in range(2)] == [["4", "5"], ["6", "7"]]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus_of_copy(1, 2) == ["2", "3"]
    parted = DecodeSettings(inputs["model"], STOP_IDS, GREEDY, some_resources(gpus=4, tensor_parallel=2))
    assert replicas(parted) == 2
    with pytest.raises(MachineError, match="tensor_parallel is 8, but the stage has 4 GPUs"):
        replicas(DecodeSettings(inputs["model"], STOP_IDS, GREEDY, some_resources(gpus=4, tensor_parallel=8)))


def run_stage(folder: Path, inputs: dict[str, Path], changes: dict[str, Any]) -> None:
    outcome = generate.run(settings(**changes), context(folder, inputs))
    (folder / "outcome.json").write_text(outcome.model_dump_json())


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes that have imported all that takes long."""
    ready = multiprocessing.get_context("forkserver")
    ready.set_forkserver_preload(["vllm.entrypoints.llm", "test_vllm"])
    return ready


def test_without_a_gpu_keys_and_values_leave_room_for_the_weights(
    monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Path]
) -> None:
    """They took their share of all free memory, and the weights came on top."""
    asked = told(inputs, GREEDY)
    config = read_json(asked.model / "config.json")
    weights = BYTES[GREEDY.dtype] * Architecture.from_config(config).parameters
    share = asked.resources.decoder_memory_share
    given = {}
    for free in (weights, weights + (1 << 22), 1 << 40):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free))
        given[free] = _engine_options(asked)["kv_cache_memory_bytes"]
    none, little, much = given.values()
    assert 0 < none < little == int((1 << 22) * share) < much


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["transformers", "vllm"])
def test_killed_three_times_each_sample_once(
    inputs: dict[str, Path], tmp_path: Path, processes: Any, decoder: str
) -> None:
    """SIGKILL at random moments while samples are being written; at the end each (problem, sample) is there once."""
    changes = {"decoder": decoder, "samples": 40, "max_new_tokens": 120, "batch_sequences": 8}
    file, chance, seen = tmp_path / "partial" / "samples.jsonl", random.Random(decoder), 0
    for _ in range(3):
        process = processes.Process(target=run_stage, args=(tmp_path, inputs, changes))
        process.start()
        while process.is_alive() and count_lines(file) <= seen:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.3)
        assert process.is_alive(), "it ended before it could be killed"
        process.kill()
        process.join()
        now = count_lines(file)
        assert seen < now < 200
        seen = now
    process = processes.Process(target=run_stage, args=(tmp_path, inputs, changes))
    process.start()
    process.join()
    records = samples(tmp_path)
    assert [(r["problem"], r["sample"]) for r in records] == [(str(p), s) for p in range(5) for s in range(40)]
    outcome = GenerateOutcome.model_validate_json((tmp_path / "outcome.json").read_text())
    assert outcome.results.samples == 200 and outcome.executed.decoder == decoder
    more = GenerateMore.model_validate(outcome.cost.more.model_dump())
    assert more.decoder_start_s and more.decode_tokens_per_s
    assert (more.key_value_tokens is None, more.preemptions) == ((True, None) if decoder != "vllm" else (False, 0))


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0
