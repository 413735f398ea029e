"""Forward passes over a FlatCache, as CUDA graphs of a few sizes.

A pass of a model of 8 B has some 600 kernels. To launch them one by one takes Python longer than
the GPU takes to run them. A graph launches all of them at once. It has fixed shapes, so a step is
padded to the next size that has a graph.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.engines.hf.flat_cache import (
    LONGEST_PART,
    Attention,
    FlatCache,
    Step,
    Write,
    copied,
)
from pipeline.engines.hf.fusing import fuse

if TYPE_CHECKING:
    import torch

NAME = "flat_cache"  # of our attention, for transformers
PROMPT_WIDTHS = (32, 128, 256, 512, 1024, LONGEST_PART)

# A step on the GPU whose values are replaced, and what computes its logits then.
Graph = tuple[Step, Callable[[], "torch.Tensor"]]


def row_sizes(slots: int) -> list[int]:
    """Numbers of rows that have a graph: closer to each other than powers of two."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, slots, 128)]
    return [*[size for size in sizes if size < slots], slots]


@dataclass(frozen=True)
class Pass:
    """How a forward pass is run: a model around the same layers, and further arguments of it.

    plain: the arguments make no difference for these rows, so that a graph computes the same.
    """

    model: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = True


class FlatModel:
    """A causal language model of transformers with a FlatCache.

    Args:
        model: its attention is replaced.
        graphs: capture them; without, each pass is launched kernel by kernel.
    """

    def __init__(
        self,
        model: Any,
        slots: int,
        length: int,
        attention: Attention,
        *,
        write: Write = copied,
        graphs: bool,
    ) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._model = model
        self.cache = FlatCache(model, slots, length, attention, write)
        ALL_ATTENTION_FUNCTIONS.register(NAME, self.cache.attend)
        model.config._attn_implementation = NAME
        if graphs:
            fuse(model)
        self._prompts: dict[int, Graph] = {}
        self._answers: dict[int, Graph] = {}
        if graphs:
            self._capture_all(slots, length)

    def prefill(
        self, row: int, ids: Sequence[int], start: int, *, every: bool, how: "Pass"
    ) -> "torch.Tensor":
        """Logits after `ids`, read as a row's tokens from `start` on: of each token,
        [len(ids), vocabulary], or unless `every` of the last one, [1, vocabulary]."""
        width = next((width for width in self._prompts if width >= len(ids)), None)
        if width and not every and how.plain:
            step = self.cache.prompt_step(row, ids, start, width=width, every=False)
            return self._replayed(self._prompts[width], step)[0]
        return self._run(self._here(self.cache.prompt_step(row, ids, start, every=every)), how)[0]

    def decode(
        self, ids: "Sequence[int] | torch.Tensor", lengths: Sequence[int], *, how: "Pass"
    ) -> "torch.Tensor":
        """Logits [len(ids), vocabulary], as GpuModelRunner.advance."""
        import torch

        count = len(ids)
        here = ids if isinstance(ids, torch.Tensor) else None
        known = [0] * count if isinstance(ids, torch.Tensor) else ids
        rows = next((rows for rows in self._answers if rows >= count), None)
        if rows and how.plain:
            step = self.cache.answer_step(known, lengths, rows=rows)
            return self._replayed(self._answers[rows], step, here)[:count, 0]
        step = self._here(self.cache.answer_step(known, lengths))
        if here is not None:
            step.ids[:, 0].copy_(here)
        return self._run(step, how)[:, 0]

    def _here(self, step: Step, longest: int | None = None) -> Step:
        return step.on(self._model.device, longest)

    def _run(self, step: Step, how: "Pass") -> "torch.Tensor":
        import torch

        self.cache.aim(step)
        with torch.inference_mode():
            found: torch.Tensor = how.model(
                input_ids=step.ids,
                position_ids=step.positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=step.kept,
                **how.options,
            ).logits
            return found

    def _replayed(
        self, graph: Graph, step: Step, ids: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """ids: of the first rows, in place of the step's."""
        held, replay = graph
        held.copy_from(step)
        if ids is not None:
            held.ids[: len(ids), 0].copy_(ids)
        return replay()

    def _capture_all(self, slots: int, length: int) -> None:
        import torch

        pool = torch.cuda.graph_pool_handle()
        # The largest first, so that the others find room in its memory.
        for width in reversed([width for width in PROMPT_WIDTHS if width <= length]):
            step = self.cache.prompt_step(slots, [0], 0, width=width, every=False)
            self._prompts[width] = self._captured(step, length + width, pool)
        for rows in reversed(row_sizes(slots)):
            step = self.cache.answer_step([], [], rows=rows)
            self._answers[rows] = self._captured(step, length, pool)
        self._prompts = dict(sorted(self._prompts.items()))
        self._answers = dict(sorted(self._answers.items()))

    def _captured(self, step: Step, longest: int, pool: Any) -> Graph:
        import torch

        held, how = self._here(step, longest), Pass(self._model)
        for _ in range(2):  # libraries choose their kernels, and make their buffers
            self._run(held, how)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = self._run(held, how)

        def replay() -> "torch.Tensor":
            graph.replay()
            return logits

        return held, replay
