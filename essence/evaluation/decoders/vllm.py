"""Decode with vLLM's offline engine, step by step, so that a completion is written down when it finishes.

The engine runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0): which requests share a step then depends on the
requests alone, and not on how two processes happened to run. All requests are handed over at once; vLLM shares the
keys and values of a problem's prompt among its samples. Where there are GPUs for several copies of the model, each copy
has a process and takes requests from what is left (essence/evaluation/decoders/replicas.py).
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NotRequired, TypedDict

import psutil
import torch

from essence.errors import InputError, MachineError
from essence.evaluation.decoders import Decoder, DecoderFacts, DecoderLoad, DecodeSettings, Finished
from essence.evaluation.decoders.installed import vllm_version
from essence.evaluation.decoders.kept_compilations import kept_compilations
from essence.evaluation.decoders.sharing import ROUND_STEPS, Handed
from essence.evaluation.loops import LOOK_EVERY_TOKENS, ends_in_loop
from essence.evaluation.requests import Completion, FinishReason, Request, RequestKey
from essence.files import GIB, read_json
from essence.models.loading import check_values
from essence.progress import peak_memory_gib
from essence.sizes.architecture import Architecture

CPU_BLOCK_TOKENS = 128
"""vLLM's unit of key-value memory on a CPU."""
CPU_STEP_TOKENS = 4096
"""Tokens that one step reads and writes on a CPU, all sequences together; more where one sequence may be longer."""
BYTES = {"float32": 4, "bfloat16": 2}
PREEMPTIONS = "vllm:num_preemptions"
VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the stage's number of threads, on whatever cores it was given
    "HF_HUB_OFFLINE": "1",
}


def replicas(settings: DecodeSettings) -> int:
    """Copies of the model that the stage's GPUs hold; one on a CPU. MachineError when a copy has too few GPUs."""
    gpus, each = settings.resources.gpus, settings.resources.tensor_parallel
    if gpus and each > gpus:
        raise MachineError(f"tensor_parallel is {each}, but the stage has {gpus} GPUs; wanted: at most that.")
    return max(1, gpus // each)


def open_vllm(settings: DecodeSettings) -> Decoder:
    """One engine in this process, or one a process where the GPUs hold several copies of the model."""
    vllm_version()
    check_values(settings.model)
    copies = replicas(settings)
    if copies == 1:
        return VllmDecoder(settings)
    from essence.evaluation.decoders.replicas import Replicas

    return Replicas(settings, copies)


class VllmDecoder:
    """One engine with one copy of the model."""

    def __init__(self, settings: DecodeSettings) -> None:
        """Load the model."""
        began = time.perf_counter()
        os.environ.update(VARIABLES)
        version = vllm_version()
        # Before vLLM is imported: it lets no one change the number afterwards.
        torch.set_num_threads(settings.resources.threads)
        from vllm import LLM

        options = _engine_options(settings)
        try:
            with kept_compilations():
                self.llm = LLM(**options)
        except ValueError as error:
            raise InputError(f"vLLM cannot run {settings.model}: {str(error).splitlines()[0]}") from error
        self.start_s = time.perf_counter() - began
        self.preempted_before = self._preempted()
        self.loops = settings.loops
        self.sampling = settings.generate
        self.stop_ids = list(settings.stop_ids)
        self.facts: DecoderFacts = {
            "decoder": "vllm",
            "decoder_version": version,
            "replicas": 1,
            "enforce_eager": options["enforce_eager"],
            "tensor_parallel_size": options["tensor_parallel_size"],
            "seed": options["seed"],
        }

    def complete(
        self,
        requests: Sequence[Request],
        present: Collection[RequestKey],
        more: Callable[[int], Handed] | None = None,
    ) -> Iterator[list[Finished]]:
        """Hand over all that is missing; after every step of the engine yield what it has finished.

        more: asked for further requests after every `ROUND_STEPS` steps, or when there is nothing to do; it is given
        the number of requests that wait.
        """
        asked: dict[str, Request] = {}
        growing: dict[str, list[int]] = {}
        try:
            self._add([request for request in requests if request.key not in present], asked, growing)
            steps = 0
            while growing or more:
                if more and (steps == ROUND_STEPS or not growing):
                    handed, steps = more(self._waiting()), 0
                    self._add(handed.requests, asked, growing)
                    more = None if handed.last else more
                else:
                    yield [(asked[name], completion) for name, completion in self._step(growing)]
                    steps += 1
        finally:
            if growing:
                self.llm.llm_engine.abort_request(list(growing))

    def load(self) -> DecoderLoad:
        """Of this process; where others share its copy, what they allocate on their GPUs is not known here."""
        alone = self.facts["tensor_parallel_size"] == 1 and torch.cuda.is_available()
        return DecoderLoad(
            start_s=self.start_s,
            key_value_tokens=self.llm.llm_engine.vllm_config.cache_config.kv_cache_size_tokens,
            preemptions=self._preempted() - self.preempted_before,
            peak_memory_gib=peak_memory_gib(),
            peak_gpu_memory_gib=torch.cuda.max_memory_allocated() / GIB if alone else None,
        )

    def close(self) -> None:
        """Give the memory back to this process."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm

    def _add(self, requests: Sequence[Request], asked: dict[str, Request], growing: dict[str, list[int]]) -> None:
        for request in requests:
            name = str(len(asked))
            asked[name], growing[name] = request, []
            self.llm.llm_engine.add_request(name, self._prompt(request), self._parameters(request))

    def _waiting(self) -> int:
        """Requests that the engine has not begun, or has put back."""
        return int(self.llm.llm_engine.engine_core.engine_core.scheduler.get_request_counts()[1])

    def _preempted(self) -> int:
        """Of all engines that this process has had."""
        return sum(int(metric.value) for metric in self.llm.get_metrics() if metric.name == PREEMPTIONS)

    def _step(self, growing: dict[str, list[int]]) -> Iterator[tuple[str, Completion]]:
        """One step of the engine; `growing` loses what has finished."""
        engine = self.llm.llm_engine
        for output in engine.step():
            token_ids = growing[output.request_id]
            token_ids.extend(output.outputs[0].token_ids)
            reason: FinishReason | None = output.outputs[0].finish_reason if output.finished else None
            if reason is None and self.loops.cut and ends_in_loop(token_ids, self.loops):
                engine.abort_request([output.request_id])
                reason = "loop"
            if reason is not None:
                del growing[output.request_id]
                yield output.request_id, Completion(token_ids, reason, _seconds(output.metrics))

    def _prompt(self, request: Request) -> Any:
        prompt = {"prompt_token_ids": list(request.prompt.token_ids)}
        return self.llm.llm_engine.renderer.render_cmpl([prompt])[0]

    def _parameters(self, request: Request) -> Any:
        """As asked and nothing else: neither the model's own generation config nor its eos has a say."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=request.max_new_tokens,
            seed=request.seed,
            stop_token_ids=self.stop_ids,
            ignore_eos=True,
            detokenize=False,
            # Without cutting, tokens come when a completion ends; otherwise in pieces that can be looked at.
            output_kind=RequestOutputKind.DELTA if self.loops.cut else RequestOutputKind.FINAL_ONLY,
            stream_interval=LOOK_EVERY_TOKENS,
        )


def _seconds(metrics: Any) -> float:
    """From when the engine took the request up to its last token."""
    return float(metrics.last_token_ts - metrics.scheduled_ts)


class EngineOptions(TypedDict):
    """Arguments of vLLM's engine, in its words."""

    model: str
    trust_remote_code: bool
    load_format: str
    generation_config: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    enable_prefix_caching: bool
    seed: int
    tensor_parallel_size: int
    enforce_eager: bool
    disable_log_stats: bool
    gpu_memory_utilization: NotRequired[float]
    """On GPUs."""
    kv_cache_memory_bytes: NotRequired[int]
    """On a CPU, and where the room is named."""
    enable_chunked_prefill: NotRequired[bool]
    """On a CPU, as what follows."""
    max_num_batched_tokens: NotRequired[int]


def _engine_options(settings: DecodeSettings) -> EngineOptions:
    asked, resources = settings.generate, settings.resources
    options: EngineOptions = {
        "model": str(settings.model),
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "dtype": asked.dtype,
        "max_model_len": asked.max_model_tokens,
        "max_num_seqs": asked.batch_sequences,
        "enable_prefix_caching": True,
        "seed": asked.seed % (1 << 31),
        "tensor_parallel_size": resources.tensor_parallel if resources.gpus else 1,
        # Compiling for a CPU takes longer than a miniature runs.
        "enforce_eager": not resources.gpus,
        "disable_log_stats": False,  # the times of each request
    }
    if resources.gpus:
        # Also where the room is named: vLLM 0.32 asks at its start whether so much of the GPU is free, by default 0.92.
        options["gpu_memory_utilization"] = resources.decoder_memory_share
        return {**options, "kv_cache_memory_bytes": settings.key_value_bytes} if settings.key_value_bytes else options
    return {
        **options,
        "kv_cache_memory_bytes": settings.key_value_bytes or _cpu_cache_bytes(settings),
        # On a CPU vLLM 0.32 cannot set back the generator of a seeded request whose prompt was read in pieces.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(asked.max_model_tokens, CPU_STEP_TOKENS),
    }


def _cpu_cache_bytes(settings: DecodeSettings) -> int:
    """Room for all sequences at their longest, within the share of the memory that is free beside the weights."""
    asked, model = settings.generate, Architecture.from_config(read_json(settings.model / "config.json"))
    blocks = asked.batch_sequences * (-(-asked.max_model_tokens // CPU_BLOCK_TOKENS) + 1)
    block = CPU_BLOCK_TOKENS * 2 * model.layers * model.kv_heads * model.head_dim * BYTES[asked.dtype]
    free = psutil.virtual_memory().available - BYTES[asked.dtype] * model.parameters
    return min(blocks * block, max(block, int(free * settings.resources.decoder_memory_share)))
