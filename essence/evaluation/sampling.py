"""Samples as they finish: a line each in samples.jsonl, resumable at the sample, checked against the declaration.

What finished before a kill is kept and not generated again; when all is there, the lines are put in the order of the
requests, so that the file does not show who finished first.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from essence.errors import StageError
from essence.evaluation.decoders import Decoder
from essence.evaluation.loops import LoopRule, loop_end
from essence.evaluation.requests import Completion, Request
from essence.evaluation.sample_lines import SampleLine, recover_lines, text_of
from essence.files import sha256_text, sync, write_atomically

SYNC_EVERY_S = 5.0
"""A killed process loses no finished sample; a machine that loses its power, at most those of this long."""


def present_samples(path: Path) -> list[SampleLine]:
    """The intact lines that earlier attempts left."""
    return recover_lines(path, SampleLine)


def generate_samples(
    requests: Sequence[Request],
    present: Sequence[SampleLine],
    decoder: Decoder,
    record: "Recorder",
    path: Path,
) -> Iterator[int]:
    """Append the record of every request that is not `present`; yield now and then how many are there."""
    keys = {(line.problem, line.sample) for line in present}
    with _SampleFile(path) as file:
        for finished in decoder.complete(requests, frozenset(keys)):
            new = [(request, completion) for request, completion in finished if request.key not in keys]
            if new:
                file.append([record(request, completion) for request, completion in new])
                keys.update(request.key for request, _ in new)
            yield len(keys)


class Recorder:
    """Makes the line of samples.jsonl out of a completion; cuts a loop where the rule says so."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], loops: LoopRule) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.loops = loops

    def __call__(self, request: Request, completion: Completion) -> SampleLine:
        """The text is without the stop token, and keeps the think markers."""
        ids, reason = completion.token_ids, completion.finish_reason
        loop_at = loop_end(ids, self.loops)
        if loop_at is not None and self.loops.cut:
            ids, reason = ids[:loop_at], "loop"
        stop_token = ids[-1] if reason == "stop" else None
        shown = ids if stop_token is None else ids[:-1]
        self._check(request, ids, reason)
        return SampleLine(
            problem=request.prompt.problem,
            sample=request.sample,
            seed=request.seed,
            prompt_sha256=sha256_text(request.prompt.text),
            completion=self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            tokens=len(ids),
            finish_reason=reason,
            stop_token=stop_token,
            loop_at=loop_at,
            seconds=round(completion.seconds, 3),
        )

    def _check(self, request: Request, ids: list[int], reason: str) -> None:
        """A completion that ended for another reason than it says is not written down."""
        wrong = {
            "stop": not ids or ids[-1] not in self.stop_ids,
            "length": len(ids) != request.max_new_tokens,
            "loop": not self.loops.cut or loop_end(ids, self.loops) is None,
        }
        if wrong[reason] or len(ids) > request.max_new_tokens:
            raise StageError(
                f"Sample {request.sample} of problem {request.prompt.problem} ended with reason {reason} after "
                f"{len(ids)} tokens (last: {ids[-1:]}); declared: stop tokens {sorted(self.stop_ids)}, "
                f"cap {request.max_new_tokens}."
            )


class _SampleFile:
    """samples.jsonl while it grows: whole lines, handed to the system at once, on disk every few seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_SampleFile":
        self.file: IO[bytes] = self.path.open("ab")
        self.synced = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self.file.close()

    def append(self, lines: list[SampleLine]) -> None:
        self.file.write(text_of(lines).encode("utf-8"))
        self.file.flush()
        if time.monotonic() - self.synced > SYNC_EVERY_S:
            self._sync()

    def _sync(self) -> None:
        sync(self.file)
        self.synced = time.monotonic()


def put_in_order(path: Path, samples: list[SampleLine], requests: Sequence[Request]) -> list[SampleLine]:
    """The lines in the order of the requests, in the file too. What no request asked for stays at the end."""
    place = {request.key: number for number, request in enumerate(requests)}
    ordered = sorted(samples, key=lambda s: place.get((s.problem, s.sample), len(place)))
    if ordered != samples:
        write_atomically(path, text_of(ordered))
    return ordered


def check_as_declared(samples: Sequence[SampleLine], requests: Sequence[Request], stop_ids: Sequence[int]) -> None:
    """Every request once: its prompt and seed, within its cap, with a declared stop token; StageError if not."""
    if len(samples) != len(requests):
        raise StageError(f"{len(samples)} samples were generated, declared: {len(requests)}.")
    for request, sample in zip(requests, samples, strict=True):
        declared = {
            "problem": request.prompt.problem,
            "sample": request.sample,
            "seed": request.seed,
            "prompt_sha256": sha256_text(request.prompt.text),
        }
        found = {key: getattr(sample, key) for key in declared}
        stopped = sample.stop_token is None or sample.stop_token in stop_ids
        if found != declared or not 0 < sample.tokens <= request.max_new_tokens or not stopped:
            raise StageError(
                f"A sample of problem {request.prompt.problem} is not as declared: found {found} with "
                f"{sample.tokens} tokens and stop token {sample.stop_token}, declared: {declared} with at most "
                f"{request.max_new_tokens} tokens and stop tokens {list(stop_ids)}."
            )
