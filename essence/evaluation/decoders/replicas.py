"""Several copies of a model, each in a process of its own with its GPUs and its share of the requests.

Every n-th request goes to the same copy, so that what a copy decodes together depends on the requests alone. A copy
sends back what it has finished; it ends when its parent does.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from essence.errors import KitError, StageError
from essence.evaluation.decoders import DecoderFacts, DecodeSettings, Finished
from essence.evaluation.decoders.vllm import VllmDecoder
from essence.evaluation.requests import Request, RequestKey
from essence.progress import visible_gpus
from essence.signals import die_with_parent

WAIT_S = 0.5
"""How often the parent looks up where nothing finishes, to see whether it was asked to stop."""


class Replicas:
    """A `Decoder` that shares its requests out among processes."""

    def __init__(self, settings: DecodeSettings, copies: int) -> None:
        self.settings = _of_one_copy(settings, copies)
        self.copies = copies
        self.processes: list[Any] = []
        self.facts: DecoderFacts = {"decoder": "vllm"}

    def complete(self, requests: Sequence[Request], present: Collection[RequestKey]) -> Iterator[list[Finished]]:
        """Start the copies, and pass on what they finish in the order in which it arrives."""
        context = multiprocessing.get_context("spawn")
        numbered = {request.key: number for number, request in enumerate(requests)}
        working: dict[Connection, int] = {}
        for copy in range(self.copies):
            share = [request for request in requests[copy :: self.copies] if request.key not in present]
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(self.settings, copy, share, sending, os.getpid()))
            process.start()
            sending.close()
            self.processes.append(process)
            working[receiving] = copy
        while working:
            yield []
            for connection in wait(list(working), timeout=WAIT_S):
                assert isinstance(connection, Connection)
                message = self._receive(connection, working[connection])
                if message is None:
                    del working[connection]
                else:
                    yield sorted(message, key=lambda finished: numbered[finished[0].key])

    def close(self) -> None:
        """End the copies, whether they are done or not."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()
        self.processes.clear()

    def _receive(self, connection: Connection, copy: int) -> list[Finished] | None:
        """Completions, or None at the end; what ended a copy early is raised here."""
        try:
            kind, value = connection.recv()
        except EOFError:
            raise StageError(
                f"Copy {copy + 1} of {self.copies} of the model ended without a word (out of memory?)",
                "the stage's log may say more.",
            ) from None
        if kind == "error":
            raise value
        if kind == "end":
            facts: DecoderFacts = value
            self.facts = {**facts, "replicas": self.copies}
            return None
        return list(value)


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


def _serve(settings: DecodeSettings, copy: int, requests: list[Request], to_parent: Connection, parent: int) -> None:
    """What a copy's process does."""
    die_with_parent(parent)
    # Whoever asks the stage to stop may ask all of its processes; the parent then ends its copies.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if settings.resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_of_copy(copy, settings.resources.gpus))
    with contextlib.suppress(BrokenPipeError):
        try:
            decoder = VllmDecoder(settings)
            for finished in decoder.complete(requests, frozenset()):
                if finished:
                    to_parent.send(("finished", finished))
            to_parent.send(("end", decoder.facts))
        except KitError as error:
            to_parent.send(("error", error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it with its traceback
            text = "".join(traceback.format_exception(error))
            to_parent.send(("error", RuntimeError(f"copy {copy + 1} of the model failed:\n{text}")))


def gpus_of_copy(copy: int, each: int) -> list[str]:
    """The devices of one copy, among those that the stage was given."""
    names = visible_gpus() or [str(number) for number in range((copy + 1) * each)]
    return names[copy * each : (copy + 1) * each]
