"""Whether completions are the same where sequences lose their keys and values to others, and are read again.

A decoder with little room is given more sequences than it can hold once they grow. Their completions are compared with
those of the same requests a few at a time, which all have room. A step of other sequences may round otherwise, and then
a token that was nearly as likely is drawn: where that is so without any preemption, the sentence says it, since no
decoder of this kind gives the same completions for other batches then.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from essence.evaluation.decoders import Decoder
from essence.evaluation.requests import Prompt, Request
from essence.record.proof_records import CheckRecord
from essence.settings.proving import ProveDecodingSettings
from essence.sizes.architecture import Architecture
from essence.sizes.speeds import cache_bytes

SEED = 11
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
LONGEST_SEQUENCES = 2
"""Of the greatest length, that there is room for."""
MOST_TIMES = 3
"""As many completions as other batches change, the most that are laid to rounding where sequences give way."""
MOST_SEQUENCES, BLOCK_TOKENS = 64, 128
"""Of the filled room; and the largest unit of keys and values of any device (16 on a GPU)."""
GROWTH_TOKENS, SPARE_TOKENS = 256, 8


class Filling(NamedTuple):
    """Requests that fill a decoder's room, and have none to grow."""

    sequences: int
    prompt_tokens: int
    new_tokens: int


def little_room(asked: ProveDecodingSettings, sizes: Architecture, width: int) -> int:
    """Bytes of keys and values of each of the `width` GPUs of a copy, for few sequences of the greatest length."""
    blocks = LONGEST_SEQUENCES * -(-asked.max_model_tokens // BLOCK_TOKENS)
    return int(cache_bytes(sizes, blocks * BLOCK_TOKENS, ELEMENT_BYTES[asked.dtype])) // width


def filling(asked: ProveDecodingSettings, room: int) -> Filling | None:
    """What fills a room of so many tokens; None where no sequences do whose growth would not fit."""
    new_tokens = min(GROWTH_TOKENS, asked.max_model_tokens // 4)
    sequences = max(2, min(asked.batch_sequences, MOST_SEQUENCES, room // BLOCK_TOKENS))
    prompt_tokens = min(room // sequences - SPARE_TOKENS, asked.max_model_tokens - new_tokens)
    if prompt_tokens < 1 or sequences * (prompt_tokens + new_tokens) <= room:
        return None
    return Filling(sequences, prompt_tokens, new_tokens)


def preemption_checks(decoder: Decoder, asked: ProveDecodingSettings, sizes: Architecture) -> list[CheckRecord]:
    """One check, or none of a decoder that has no fixed room."""
    room = decoder.load().key_value_tokens
    fill = None if room is None else filling(asked, room)
    if room is None or fill is None:
        return []
    requests = random_requests(sizes, fill.sequences, fill.prompt_tokens, fill.new_tokens)
    together = max(1, room // (fill.prompt_tokens + fill.new_tokens + BLOCK_TOKENS))
    before = decoder.load().preemptions or 0
    few = _in_parts(decoder, requests, together)
    fewer = _in_parts(decoder, requests, max(1, together // 2))
    without = (decoder.load().preemptions or 0) - before
    crowded = completed(decoder, requests)
    forced = (decoder.load().preemptions or 0) - before - without
    return [_preemption_check(fill, forced, _differing(crowded, few), _differing(fewer, few))]


def _preemption_check(fill: Filling, forced: int, differing: int, by_batch: int) -> CheckRecord:
    """forced: preemptions. differing: completions that are others with them. by_batch: others in smaller batches."""
    told = f"{differing} of {fill.sequences} completions differ where {forced} times a sequence had to give way"
    if not forced:
        return CheckRecord(name="preemption", passed=True, sentence="no sequence had to give way, so nothing is shown")
    if differing and by_batch:
        told += f", and {by_batch} where other ones are decoded beside them: rounding depends on the batch here"
        told += ", so much that nothing is shown of preemption" if MOST_TIMES * by_batch >= fill.sequences else ""
    passed = differing <= MOST_TIMES * by_batch
    cure = "" if passed else ": lower batch_sequences in [evaluation] until no record counts preemptions"
    return CheckRecord(name="preemption", passed=passed, sentence=told + cure)


def _in_parts(decoder: Decoder, requests: Sequence[Request], count: int) -> dict[str, list[int]]:
    """Completions of so many requests at a time."""
    found: dict[str, list[int]] = {}
    for start in range(0, len(requests), count):
        found |= completed(decoder, requests[start : start + count])
    return found


def _differing(found: dict[str, list[int]], expected: dict[str, list[int]]) -> int:
    return sum(found[name] != tokens for name, tokens in expected.items())


def random_requests(sizes: Architecture, sequences: int, tokens: int, new_tokens: int) -> list[Request]:
    """So many prompts of random ids, which differ from their first token on; the same for the same numbers."""
    ids = np.random.default_rng((SEED, sequences, tokens)).integers(0, sizes.vocabulary, (sequences, tokens))
    prompts = [Prompt(str(number), "", tuple(line)) for number, line in enumerate(ids.tolist())]
    return [Request(prompt, 0, SEED + number, new_tokens) for number, prompt in enumerate(prompts)]


def completed(decoder: Decoder, requests: Sequence[Request]) -> dict[str, list[int]]:
    found = {}
    for finished in decoder.complete(requests, frozenset()):
        found.update({request.prompt.problem: completion.token_ids for request, completion in finished})
    return found
