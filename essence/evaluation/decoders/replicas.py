"""Several copies of a model, each in a process of its own with its GPUs and its share of the requests.

What a copy decodes together depends on the requests alone (essence/evaluation/decoders/sharing.py). A copy sends back
what it has finished; it ends when its parent does.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from essence.errors import KitError, StageError
from essence.evaluation.decoders import DecoderFacts, DecoderLoad, DecodeSettings, Finished
from essence.evaluation.decoders.sharing import Handed, SharedRequests
from essence.evaluation.decoders.vllm import VllmDecoder
from essence.evaluation.requests import Request, RequestKey
from essence.progress import peak_memory_gib, visible_gpus
from essence.signals import die_with_parent

WAIT_S = 0.5
"""How often the parent looks up where nothing finishes, to see whether it was asked to stop."""


class Replicas:
    """A `Decoder` that shares its requests out among processes."""

    def __init__(self, settings: DecodeSettings, copies: int) -> None:
        """Start the copies, which load the model; the first call of `complete` waits for them."""
        self.settings = _of_one_copy(settings, copies)
        self.copies = copies
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []
        self.loads: dict[int, DecoderLoad] = {}
        self.facts: DecoderFacts = {"decoder": "vllm"}
        self.began, self.start_s = time.perf_counter(), 0.0
        """`start_s`: 0.0 until all are ready."""
        context = multiprocessing.get_context("spawn")
        for copy in range(copies):
            own, others = context.Pipe()
            process = context.Process(target=_serve, args=(self.settings, copy, others, os.getpid()))
            process.start()
            others.close()
            self.processes.append(process)
            self.pipes.append(own)

    def complete(self, requests: Sequence[Request], present: Collection[RequestKey]) -> Iterator[list[Finished]]:
        """Share the requests out, and pass on what the copies finish in the order in which it arrives."""
        yield from self._until_ready()
        numbered = {request.key: number for number, request in enumerate(requests)}
        missing = [request for request in requests if request.key not in present]
        shared = SharedRequests(missing, self.copies, self.settings.generate.batch_sequences)
        for copy in range(self.copies):
            self._send(copy, shared.opening(copy))
        working = {pipe: copy for copy, pipe in enumerate(self.pipes)}
        while working:
            yield []
            for pipe in wait(list(working), timeout=WAIT_S):
                assert isinstance(pipe, Connection)
                kind, value = self._receive(working[pipe])
                if kind == "finished":
                    yield sorted(value, key=lambda finished: numbered[finished[0].key])
                elif kind == "round":
                    # Who is answered waits for it: no copy is sent to while it sends.
                    for copy, handed in shared.report(working[pipe], value):
                        self._send(copy, handed)
                else:
                    self.loads[working.pop(pipe)] = value

    def load(self) -> DecoderLoad:
        """Of all copies and this process, as they were when they had last finished."""
        loads = list(self.loads.values())
        own = peak_memory_gib()
        return DecoderLoad(
            start_s=self.start_s or None,
            key_value_tokens=total([load.key_value_tokens for load in loads]),
            preemptions=total([load.preemptions for load in loads]),
            peak_memory_gib=total([own, *(load.peak_memory_gib for load in loads)]) if loads else None,
            peak_gpu_memory_gib=total([load.peak_gpu_memory_gib for load in loads]),
        )

    def close(self) -> None:
        """End the copies, whether they are done or not."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.processes.clear()
        self.pipes.clear()

    def _until_ready(self) -> Iterator[list[Finished]]:
        """Yield nothing now and then until all copies have loaded the model, so that a stop is seen meanwhile."""
        starting = {} if self.start_s else {pipe: copy for copy, pipe in enumerate(self.pipes)}
        while starting:
            yield []
            for pipe in wait(list(starting), timeout=WAIT_S):
                assert isinstance(pipe, Connection)
                facts: DecoderFacts = self._receive(starting.pop(pipe))[1]
                self.facts = {**facts, "replicas": self.copies}
        self.start_s = self.start_s or time.perf_counter() - self.began

    def _send(self, copy: int, handed: Handed) -> None:
        try:
            self.pipes[copy].send(handed)
        except OSError:
            self._receive(copy)  # it may have said why it ended
            raise

    def _receive(self, copy: int) -> tuple[str, Any]:
        """What a copy says next; what ended one early is raised here."""
        try:
            kind, value = self.pipes[copy].recv()
        except (EOFError, ConnectionResetError):
            raise StageError(
                f"Copy {copy + 1} of {self.copies} of the model ended without a word (out of memory?)",
                "the stage's log may say more.",
            ) from None
        if kind == "error":
            raise value
        return kind, value


AnyNumber = TypeVar("AnyNumber", int, float)


def total(numbers: Sequence[AnyNumber | None]) -> AnyNumber | None:
    """The sum; None where one is not known, or there is none."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def _of_one_copy(settings: DecodeSettings, copies: int) -> DecodeSettings:
    """What one process is given: its part of the threads and, on a CPU, of the memory."""
    resources = settings.resources
    own: dict[str, int | float] = {
        "threads": max(1, resources.threads // copies),
        "gpus": resources.tensor_parallel if resources.gpus else 0,
    }
    if not resources.gpus:
        own["decoder_memory_share"] = resources.decoder_memory_share / copies
    return DecodeSettings(settings.model, settings.stop_ids, settings.generate, resources.model_copy(update=own))


def _serve(settings: DecodeSettings, copy: int, pipe: Connection, parent: int) -> None:
    """What a copy's process does: load the model, then decode what it is handed until its parent is gone."""
    die_with_parent(parent)
    # Whoever asks the stage to stop may ask all of its processes; the parent then ends its copies.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if settings.resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_of_copy(copy, settings.resources.gpus))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        try:
            decoder = VllmDecoder(settings)
            pipe.send(("ready", decoder.facts))
            while True:
                _decode(decoder, pipe)
        except KitError as error:
            pipe.send(("error", error))
        except (BrokenPipeError, ConnectionResetError, EOFError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it with its traceback
            text = "".join(traceback.format_exception(error))
            pipe.send(("error", RuntimeError(f"copy {copy + 1} of the model failed:\n{text}")))


def _decode(decoder: VllmDecoder, pipe: Connection) -> None:
    """Decode what is handed over, and ask for more as long as there may be."""

    def more(waiting: int) -> Handed:
        pipe.send(("round", waiting))
        return Handed(*pipe.recv())

    opening = Handed(*pipe.recv())
    for finished in decoder.complete(opening.requests, frozenset(), None if opening.last else more):
        if finished:
            pipe.send(("finished", finished))
    pipe.send(("end", decoder.load()))


def gpus_of_copy(copy: int, each: int) -> list[str]:
    """The devices of one copy, among those that the stage was given."""
    names = visible_gpus() or [str(number) for number in range((copy + 1) * each)]
    return names[copy * each : (copy + 1) * each]
