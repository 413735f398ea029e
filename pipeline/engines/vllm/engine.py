"""vLLM's asynchronous engine as an engine: token ids in, token ids out.

vLLM batches by itself, in a process of its own. It returns token ids only: the server detokenizes,
so that every engine's tokens become text in the same way. Written for vLLM 0.24.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError
from pipeline.engines.base import EngineFailed, Load, QueueFull, Sampling, Token
from pipeline.engines.gpu_requests import adapter_of, guide_arguments, tokens_of
from pipeline.engines.lora_settings import read_settings, refuse_patterns
from pipeline.engines.vllm.arguments import FEATURES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# vLLM supports several libraries; this one is what our own engines use.
GUIDANCE = "guidance"


class VllmEngine:
    """An engine (base.Engine) around vLLM's AsyncLLM.

    Args:
        folder: an HF model, its tokenizer beside it.
        arguments: vLLM's engine arguments, by their Python names.
        max_input_len: tokens of a prompt at most.
        max_queue: requests that may wait for a slot.

    Raises:
        DataError: vLLM does not accept the model or the arguments.
    """

    def __init__(
        self, folder: Path, arguments: Mapping[str, Any], *, max_input_len: int, max_queue: int
    ) -> None:
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        self._seen = _Seen()
        try:
            settings = AsyncEngineArgs(
                model=str(folder),
                generation_config="vllm",  # each request has its own defaults and stop tokens
                structured_outputs_config=StructuredOutputsConfig(backend=GUIDANCE),
                disable_log_stats=True,
                **arguments,
            )
            self._llm: Any = AsyncLLM.from_engine_args(
                settings,
                # As in `vllm serve`: it decides the sizes of batches.
                usage_context=UsageContext.OPENAI_API_SERVER,
                stat_loggers=[self._seen.logger],
            )
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            raise DataError(
                f"vLLM cannot serve {folder} ({error}): its log above says why; a model that is "
                "too large may fit with a shorter engine.max_seq_len"
            ) from error
        config = self._llm.vllm_config
        self.max_seq_len: int = config.model_config.max_model_len
        self.max_input_len = min(max_input_len, self.max_seq_len - 1)
        self.room = config.scheduler_config.max_num_seqs + max_queue
        self._streams: set[_Stream] = set()
        self._ids = itertools.count()
        self._adapters: dict[str, Any] = {}
        self._adapter_ids = itertools.count(1)
        self.features = FEATURES if config.lora_config else FEATURES - {"adapters"}

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> "_Stream":
        """See base.Engine.generate."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if reason := self.down():
            raise EngineFailed(reason)
        if len(self._streams) >= self.room:
            raise QueueFull
        guide = {}
        if sampling.guide:
            guide["structured_outputs"] = StructuredOutputsParams(**guide_arguments(sampling.guide))
        how = SamplingParams(
            **sampling_arguments(sampling), **guide, output_kind=RequestOutputKind.DELTA
        )
        request = f"{next(self._ids)}"
        given = tokens_input(list(prompt))
        if sampling.cache_salt is not None:
            given["cache_salt"] = sampling.cache_salt
        outputs = self._llm.generate(
            given,
            how,
            request,
            lora_request=adapter_of(self._adapters, sampling.adapter),
        )
        stream = _Stream(self, request, outputs, prompt, sampling)
        self._streams.add(stream)
        return stream

    def load(self) -> Load:
        return Load(self._seen.running, self._seen.waiting, self._seen.cache_use)

    def down(self) -> str | None:
        """Why the engine cannot answer now; None if it can."""
        return "the vLLM engine has stopped" if self._llm.errored else None

    def adapters(self) -> list[str]:
        return list(self._adapters)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter in the PEFT library's format.

        Raises:
            ValueError: it does not fit the model.
        """
        from vllm.lora.request import LoRARequest

        refuse_patterns(folder, read_settings(folder), "vLLM")
        request = LoRARequest(name, next(self._adapter_ids), str(folder))
        try:
            await self._llm.add_lora(request)
        except Exception as error:  # its worker processes raise it, wrapped
            raise ValueError(f"{folder} cannot be used as an adapter: {error}") from error
        self._adapters[name] = request

    async def remove_adapter(self, name: str) -> None:
        await self._llm.remove_lora(self._adapters.pop(name).lora_int_id)

    def close(self) -> None:
        self._llm.output_processor.propagate_error(EngineFailed("the server is shutting down"))
        self._llm.shutdown()

    def abort(self, request: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._llm.abort(request))

    def forget(self, stream: "_Stream") -> None:
        self._streams.discard(stream)


class _Stream:
    """The tokens of one answer (base.TokenStream)."""

    def __init__(
        self,
        engine: VllmEngine,
        request: str,
        outputs: "AsyncGenerator[Any, None]",
        prompt: Sequence[int],
        sampling: Sampling,
    ) -> None:
        self.prompt_logprobs: list[Token] | None = None
        self._engine, self._request, self._outputs = engine, request, outputs
        self._prompt, self._tops = prompt, sampling.logprobs or 0
        self._prompt_tops = sampling.prompt_logprobs or 0
        self.cached_tokens: int | None = None
        self._aborting: asyncio.Task[None] | None = None
        self._ended = False

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> list[Token]:
        while not self._ended:
            try:
                output = await anext(self._outputs)
            except StopAsyncIteration:
                break
            except ValueError:
                self._end()
                raise
            except Exception as error:
                self._end()
                raise EngineFailed(f"vLLM failed: {error.__cause__ or error}") from error
            except asyncio.CancelledError:  # vLLM then aborts the request by itself
                self._end()
                raise
            if output.finished:
                self._end()
                async for (
                    _
                ) in self._outputs:  # read to the end: vLLM aborts a request that is left half-way
                    pass
            self.cached_tokens = getattr(output, "num_cached_tokens", None)
            if output.prompt_logprobs and self.prompt_logprobs is None:
                self.prompt_logprobs = tokens_of(
                    self._prompt, output.prompt_logprobs, self._prompt_tops
                )
            completion = output.outputs[0]
            if completion.token_ids:
                return tokens_of(completion.token_ids, completion.logprobs, self._tops)
        self._end()
        raise StopAsyncIteration

    def cancel(self) -> None:
        if not self._ended:
            self._end()
            self._aborting = self._engine.abort(self._request)

    def _end(self) -> None:
        self._ended = True
        self._engine.forget(self)


class _Seen:
    """The last statistics of vLLM's scheduler: running and waiting sequences, cache in use."""

    running = waiting = 0
    cache_use = 0.0

    def logger(self, config: Any, index: int = 0) -> Any:
        """A logger for vLLM's metrics that stores them here."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        seen = self

        class Logger(StatLoggerBase):
            def __init__(self, config: Any, index: int = 0) -> None: ...

            def log_engine_initialized(self) -> None: ...

            def record(self, scheduler_stats: Any, *rest: Any, **more: Any) -> None:
                if scheduler_stats is not None:
                    seen.running = scheduler_stats.num_running_reqs
                    seen.waiting = scheduler_stats.num_waiting_reqs
                    seen.cache_use = scheduler_stats.kv_cache_usage

        return Logger(config, index)


def sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    """The arguments of vLLM's SamplingParams, except guided decoding and the kind of output."""
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "logprobs": sampling.logprobs,
        "prompt_logprobs": sampling.prompt_logprobs,
        "min_tokens": sampling.min_tokens,
        "allowed_token_ids": sorted(sampling.allowed_ids or ()) or None,
        # The request says where an answer ends, not the folder's configuration.
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": True,
        "detokenize": False,
        "skip_clone": True,  # it is used for this request only
    }
