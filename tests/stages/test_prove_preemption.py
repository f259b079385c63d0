"""Seeds where sequences have to give way: what fills a room, what is said of what comes out, and vLLM itself."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence.evaluation.decoders import DecoderLoad
from essence.evaluation.requests import Completion, Request
from support.paper_sizes import QWEN3
from support.project import required
from support.proof_settings import asked, staged
from support.sampling import make_inputs

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from essence.stages import prove_decoding  # noqa: E402
from essence.stages.prove_preemption import BLOCK_TOKENS, SEED, filling, little_room, preemption_checks  # noqa: E402

HAS_VLLM = importlib.util.find_spec("vllm") is not None or required("vllm")


@given(st.integers(256, 40_000), st.integers(1, 512), st.integers(2, 9))
def test_what_fills_a_room_fits_it_and_has_no_room_to_grow(longest: int, batch: int, blocks: int) -> None:
    """Prompts alone fit, all of them grown do not, and none is longer than a sequence may be."""
    decoding = asked(Path("x"))[1].model_copy(update={"max_model_tokens": longest, "batch_sequences": batch})
    room = blocks * longest
    fill = filling(decoding, room)
    if fill is None:
        return
    assert fill.sequences * fill.prompt_tokens <= room < fill.sequences * (fill.prompt_tokens + fill.new_tokens)
    assert fill.prompt_tokens + fill.new_tokens <= longest and 2 <= fill.sequences <= max(2, batch)


def test_experiments_have_a_filling(tmp_path: Path) -> None:
    """Of a room as it is made, for the miniature and for what the paper evaluates with."""
    tiny = asked(tmp_path)[1]
    paper = tiny.model_copy(update={"max_model_tokens": 32_768, "batch_sequences": 256, "dtype": "bfloat16"})
    for decoding, sequences in ((tiny, 4), (paper, 64)):
        sizes = QWEN3["0.6b"]
        size = 4 if decoding.dtype == "float32" else 2
        tokens = little_room(decoding, sizes, 1) // (2 * size * sizes.layers * sizes.kv_heads * sizes.head_dim)
        assert tokens == 2 * decoding.max_model_tokens and tokens % BLOCK_TOKENS == 0
        fill = filling(decoding, tokens)
        assert fill and fill.sequences == sequences


ROOM = 2048


class Forgetful:
    """A decoder that gives the right completions, but for those that had to give way, and for so many by rounding."""

    def __init__(self, forgets: bool, rounds: int) -> None:
        self.forgets, self.rounds, self.preemptions = forgets, rounds, 0

    def load(self) -> DecoderLoad:
        return DecoderLoad(key_value_tokens=ROOM, preemptions=self.preemptions)

    def complete(self, requests: Sequence[Request], _: object) -> Iterator[list[tuple[Request, Completion]]]:
        grown = sum(len(request.prompt.token_ids) + request.max_new_tokens for request in requests)
        crowded = grown > ROOM
        self.preemptions += crowded
        lost = int(self.forgets and crowded)
        for request in requests:
            rounded = len(requests) if request.seed < SEED + self.rounds else 0
            yield [(request, Completion([request.seed, lost, rounded], "length", 0.0))]


@pytest.mark.parametrize(
    ("forgets", "rounds", "passed", "told"),
    [
        (False, 0, True, "0 of 16 completions differ where 1 times a sequence had to give way"),
        (True, 0, False, "lower batch_sequences in [evaluation]"),
        (False, 2, True, "and 2 where other ones are decoded beside them: rounding depends on the batch here"),
        (True, 2, False, "16 of 16 completions differ"),
        (True, 16, True, "rounding depends on the batch here, so much that nothing is shown of preemption"),
    ],
)
def test_a_seed_that_is_lost_with_its_sequence_is_caught(
    tmp_path: Path, forgets: bool, rounds: int, passed: bool, told: str
) -> None:
    decoder: Any = Forgetful(forgets, rounds)
    (found,) = preemption_checks(decoder, asked(tmp_path)[1], QWEN3["0.6b"])
    assert found.passed is passed and told in found.sentence


@pytest.fixture
def own_variables() -> Iterator[None]:
    """vLLM's variables are the stage's own, whose process ends with it; here other tests come after."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.nightly
@pytest.mark.vllm
@pytest.mark.usefixtures("own_variables")
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: locks/install.sh cpu dev vllm")
def test_vllm_gives_the_same_completions_where_sequences_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole decoding side with a random model: started thrice, sequences preempted, and nothing left behind."""
    monkeypatch.setenv("ESSENCE_COMPILED", str(tmp_path / "kept"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "kept" / "vllm"))
    decoding = asked(tmp_path)[1].model_copy(update={"decoder": "vllm", "batch_sequences": 4})
    made = make_inputs(tmp_path / "inputs")["model"]
    made.rename(tmp_path / "output")
    stage = staged(tmp_path / "decoding", "prove_decoding", decoding, training=tmp_path)
    found = prove_decoding.run(decoding, stage).results
    assert [check.name for check in found.checks] == ["seeds", "preemption"]
    assert all(check.passed for check in found.checks), found.checks
    assert "0 of 4 completions differ where" in found.checks[1].sentence
    assert found.key_value_tokens and found.key_value_tokens >= 4 * 256 and found.warm_start_s
    assert os.environ["VLLM_CACHE_ROOT"] == str(stage.scratch / "compiled" / "vllm")
    assert not (stage.scratch / "compiled").exists() and not (tmp_path / "kept").exists()
