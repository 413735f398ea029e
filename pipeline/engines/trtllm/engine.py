"""TensorRT-LLM's LLM API as an engine: token ids in, token ids out.

Two backends: `tensorrt` runs the engines of trtllm-build (1.0 to 1.2), `pytorch` loads HF folders,
including quantized ones. Written from the documentation of 1.2; it has not run yet.
https://nvidia.github.io/TensorRT-LLM/llm-api/reference.html
"""

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.engines.base import EngineFailed, Load, QueueFull, Sampling
from pipeline.engines.gpu_requests import adapter_of, guide_arguments, tokens_of
from pipeline.engines.lora_settings import read_settings, refuse_patterns
from pipeline.engines.token_stream import PushedStream
from pipeline.engines.trtllm.build import ENGINE_FOLDER, FEATURES

GUIDANCE = "llguidance"
# What a LoRA adapter may adapt, in TensorRT-LLM's names: every linear layer.
LORA_MODULES = "attn_q attn_k attn_v attn_dense mlp_h_to_4h mlp_4h_to_h mlp_gate".split()


class TrtllmEngine:
    """An engine (base.Engine) around tensorrt_llm.LLM.

    Args:
        folder: an HF folder, or one with `engine/` in it.
        backend: pytorch or tensorrt. arguments: of the LLM class, by their names.
        lora_rank: the largest rank of adapters; 0 for none.

    Raises:
        DataError: TensorRT-LLM does not accept the model or the arguments.
    """

    def __init__(
        self,
        folder: Path,
        backend: str,
        arguments: Mapping[str, Any],
        *,
        max_input_len: int,
        max_seq_len: int,
        max_queue: int,
        lora_rank: int = 0,
    ) -> None:
        self.max_input_len, self.max_seq_len = max_input_len, max_seq_len
        self._backend, self._lora_rank = backend, lora_rank
        self._slots, self._max_queue = int(arguments["max_batch_size"]), max_queue
        self.features = FEATURES[backend] | ({"adapters"} if lora_rank else set())
        self._streams: set[PushedStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._adapters: dict[str, Any] = {}
        self._adapter_ids = itertools.count(1)
        self._down: str | None = None
        try:
            self._llm = _open(folder, backend, arguments, lora_rank)
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            raise DataError(
                f"TensorRT-LLM cannot serve {folder} ({error}): its log above says why; a model "
                "that is too large may fit with a shorter engine.max_seq_len"
            ) from error

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> PushedStream:
        """See base.Engine.generate."""
        from tensorrt_llm import SamplingParams
        from tensorrt_llm.sampling_params import GuidedDecodingParams

        if self._down:
            raise EngineFailed(self._down)
        if len(self._streams) >= self._slots + self._max_queue:
            raise QueueFull
        how = sampling_arguments(sampling, self._backend)
        if sampling.guide:
            how["guided_decoding"] = GuidedDecodingParams(**guide_arguments(sampling.guide))
        result = self._llm.generate_async(
            list(prompt),
            SamplingParams(**how),
            lora_request=adapter_of(self._adapters, sampling.adapter),
            streaming=True,
        )
        stream = PushedStream(result.abort)
        self._streams.add(stream)
        task = asyncio.get_running_loop().create_task(
            self._follow(result, stream, sampling.logprobs)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    def load(self) -> Load:
        running = min(self._slots, len(self._streams))
        return Load(running, len(self._streams) - running)

    def down(self) -> str | None:
        return self._down

    def adapters(self) -> list[str]:
        return list(self._adapters)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Register a LoRA adapter in the PEFT library's format; its first request loads it.

        Raises:
            ValueError: it is not a LoRA adapter, or its rank is too high.
        """
        from tensorrt_llm.executor.request import LoRARequest

        check_adapter(folder, self._lora_rank)
        self._adapters[name] = LoRARequest(name, next(self._adapter_ids), str(folder))

    async def remove_adapter(self, name: str) -> None:
        """Accept no more requests with it; TensorRT-LLM's cache reuses its place."""
        del self._adapters[name]

    def close(self) -> None:
        for stream in self._streams:
            stream.end(EngineFailed("the server is shutting down"))
        self._llm.shutdown()

    async def _follow(self, result: Any, stream: PushedStream, tops: int | None) -> None:
        """Pass on the tokens of an answer as they are generated."""
        from tensorrt_llm.executor.utils import RequestError

        try:
            async for output in result:
                completion = output.outputs[0]
                logprobs = completion.logprobs_diff if tops is not None else None
                stream.put(tokens_of(completion.token_ids_diff, logprobs, tops or 0))
            stream.end()
        except (ValueError, RequestError) as error:  # of this request only
            stream.end(ValueError(str(error)))
        except Exception as error:  # of its worker processes, possibly wrapped
            self._down = f"TensorRT-LLM failed: {error}"
            stream.end(EngineFailed(self._down))
        finally:
            self._streams.discard(stream)


def _open(folder: Path, backend: str, arguments: Mapping[str, Any], lora_rank: int) -> Any:
    if backend == "tensorrt":
        from tensorrt_llm._tensorrt_engine import LLM

        return LLM(str(folder / ENGINE_FOLDER), tokenizer=str(folder), **arguments)
    from tensorrt_llm import LLM

    more: dict[str, Any] = {}
    if lora_rank:
        from tensorrt_llm.lora_manager import LoraConfig

        more["lora_config"] = LoraConfig(
            lora_target_modules=LORA_MODULES, max_lora_rank=lora_rank, max_loras=8, max_cpu_loras=8
        )
    return LLM(
        str(folder),
        trust_remote_code=False,
        guided_decoding_backend=GUIDANCE,
        **more,
        **arguments,
    )


def sampling_arguments(sampling: Sampling, backend: str) -> dict[str, Any]:
    """The arguments of TensorRT-LLM's SamplingParams, except those of guided decoding.

    Raises:
        ValueError: the backend does not support the request.
    """
    arguments: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        # The request says where an answer ends, and the last token is returned.
        "end_id": -1,
        "pad_id": 0,
        "stop_token_ids": sorted(sampling.stop_ids) or None,
        "include_stop_str_in_output": True,
        "detokenize": False,
    }
    if sampling.temperature == 0:
        arguments["top_k"] = 1  # its temperature must be above 0
    else:
        arguments |= {
            "temperature": sampling.temperature,
            # Without these it would be greedy, with one seed for all requests.
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": random.getrandbits(63) if sampling.seed is None else sampling.seed,
        }
    if sampling.logprobs is not None:
        arguments["logprobs"] = max(1, sampling.logprobs)  # 0 would switch them off
    if sampling.min_p and backend == "pytorch":
        raise ValueError("min_p: TensorRT-LLM's PyTorch backend does not support it")
    if sampling.min_p:
        arguments["min_p"] = sampling.min_p
    for name in ("frequency_penalty", "presence_penalty"):
        if value := getattr(sampling, name):
            arguments[name] = value
    if sampling.repetition_penalty != 1:
        arguments["repetition_penalty"] = sampling.repetition_penalty
    return arguments


def check_adapter(folder: Path, highest: int) -> None:
    """Refuse an adapter that TensorRT-LLM would only refuse at the first request.

    Raises:
        ValueError: names what is wrong.
    """
    settings = read_settings(folder)
    refuse_patterns(folder, settings, "TensorRT-LLM")
    rank = settings["r"]
    if rank > highest:
        raise ValueError(
            f"{folder} has rank {rank}, and engine.lora_rank is {highest}: raise engine.lora_rank"
        )
