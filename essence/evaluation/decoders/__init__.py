"""Engines that turn requests into completions: transformers, and vLLM where there is one.

They give the same records: which one made them is a setting, and part of the stage's key.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

from essence.evaluation.loops import LoopRule
from essence.evaluation.requests import Completion, Request, RequestKey
from essence.settings import GenerateSettings, Resources

Finished = tuple[Request, Completion]


class DecoderFacts(TypedDict):
    """Name, version and how it ran, for the manifest."""

    decoder: str
    decoder_version: NotRequired[str]
    """As all others, absent where no decoder had to be started."""
    replicas: NotRequired[int]
    """Of vLLM, as what follows: copies of the model, and the engine's own options."""
    enforce_eager: NotRequired[bool]
    tensor_parallel_size: NotRequired[int]
    seed: NotRequired[int]


@dataclass(frozen=True)
class DecoderLoad:
    """What a decoder took of the machine, all its copies together; None = not known."""

    start_s: float | None = None
    """Seconds until the last copy could take requests."""
    key_value_tokens: int | None = None
    """Tokens whose keys and values there is room for."""
    preemptions: int | None = None
    """How often a sequence lost its keys and values to others, and was read again."""
    peak_memory_gib: float | None = None
    """Main memory: largest of each process, added up."""
    peak_gpu_memory_gib: float | None = None
    """The same of what PyTorch allocated on GPUs. Unknown where several processes share a copy."""


class Decoder(Protocol):
    """Requests in, completions out."""

    facts: DecoderFacts

    def load(self) -> DecoderLoad:
        """What it took up to now."""
        ...

    def complete(self, requests: Sequence[Request], present: Collection[RequestKey]) -> Iterator[list[Finished]]:
        """Decode what is not `present`; yield what has finished since the last time, often nothing."""
        ...

    def close(self) -> None:
        """Let go of the model, the memory and the processes."""
        ...


@dataclass(frozen=True)
class DecodeSettings:
    """All that a decoder is given; can be sent to another process."""

    model: Path
    stop_ids: tuple[int, ...]
    generate: GenerateSettings
    resources: Resources
    key_value_bytes: int | None = None
    """Room for keys and values of each GPU, or in main memory; None = what the machine has, by `resources`."""

    @property
    def loops(self) -> LoopRule:
        asked = self.generate
        return LoopRule(asked.loop_tokens, asked.loop_repeats, asked.stop_loops)


def open_decoder(settings: DecodeSettings) -> Decoder:
    """The decoder that the settings name, with its model loaded. MachineError when this machine cannot run it."""
    if settings.generate.decoder == "vllm":
        from essence.evaluation.decoders.vllm import open_vllm

        return open_vllm(settings)
    from essence.evaluation.decoders.transformers import TransformersDecoder

    return TransformersDecoder(settings)
