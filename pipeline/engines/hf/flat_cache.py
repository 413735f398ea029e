"""A KV cache in which the place of every token is a number in a tensor, so that no step has shapes
or Python values of its own: what a CUDA graph needs.

Each layer's keys and values are [places, heads, head size]. Row r of `length` tokens has the places
r * length to (r + 1) * length - 1. After the last row come places that nobody reads: padding of
a step is written there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

LONGEST_PART = 2048  # tokens of a prompt that one step reads at most


@dataclass(frozen=True)
class Step:
    """The tokens of one forward pass: `width` of each of its rows.

    ids, positions: [rows, width], int64. places: [rows * width], int64, where their keys and values
    are written. query_starts, key_starts: [rows + 1], int32, where each row begins among the step's
    tokens, and in the cache. lengths: [rows], int32, tokens that each row then has. kept: int64,
    the tokens of each row whose logits are computed.
    longest: tokens of the longest row at most, in all steps that share a graph.
    """

    ids: "torch.Tensor"
    positions: "torch.Tensor"
    places: "torch.Tensor"
    query_starts: "torch.Tensor"
    key_starts: "torch.Tensor"
    lengths: "torch.Tensor"
    kept: "torch.Tensor"
    longest: int

    @property
    def width(self) -> int:
        return self.ids.shape[1]

    def copy_from(self, other: "Step") -> None:
        """Take the values of another step, which has the same shapes."""
        for name in self._tensors():
            getattr(self, name).copy_(getattr(other, name), non_blocking=True)

    def on(self, device: "torch.device", longest: int | None = None) -> "Step":
        """The same step on a device; longest: another one."""
        sent = {name: getattr(self, name).to(device) for name in self._tensors()}
        return Step(**sent, longest=longest or self.longest)

    def _tensors(self) -> list[str]:
        return [field.name for field in fields(self) if field.name != "longest"]


class Attention(Protocol):
    """Causal attention over the cache."""

    def __call__(
        self,
        query: "torch.Tensor",
        keys: "torch.Tensor",
        values: "torch.Tensor",
        step: Step,
        *,
        scale: float,
        window: int | None,
    ) -> "torch.Tensor":
        """
        Args:
            query: [tokens of the step, heads, head size]. keys, values: a layer's, as FlatCache
                has them. window: tokens that each token attends to, itself included; None for all.

        Returns:
            The same shape as the query.
        """


class Write(Protocol):
    """Puts new keys and values into the cache."""

    def __call__(
        self,
        key: "torch.Tensor",
        value: "torch.Tensor",
        keys: "torch.Tensor",
        values: "torch.Tensor",
        places: "torch.Tensor",
    ) -> None:
        """
        Args:
            key, value: [rows, heads, width, head size]. keys, values: a layer's. places: of a step.
        """


def copied(
    key: "torch.Tensor",
    value: "torch.Tensor",
    keys: "torch.Tensor",
    values: "torch.Tensor",
    places: "torch.Tensor",
) -> None:
    """Write, by torch."""
    for buffer, new in ((keys, key), (values, value)):
        buffer.index_copy_(0, places, new.transpose(1, 2).flatten(0, 1))


class FlatCache:
    """Keys and values of every layer. Has the part of transformers' Cache that a forward pass with
    an attention of our own uses.

    Args:
        slots: rows. length: tokens of each.
    """

    is_compileable = False

    def __init__(
        self, model: Any, slots: int, length: int, attention: Attention, write: Write = copied
    ) -> None:
        import torch

        self._torch = torch
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.slots, self.length = slots, length
        self._attention, self._write = attention, write
        # Padding of a prompt's part may be read, and masked, past the end of the last row.
        shape = (slots * length + min(length, LONGEST_PART), heads, size)

        def buffers() -> list[Any]:
            return [
                torch.zeros(shape, dtype=model.dtype, device=model.device)
                for _ in range(config.num_hidden_layers)
            ]

        self.keys, self.values = buffers(), buffers()
        self._step: Step | None = None

    def prompt_step(
        self, row: int, ids: Sequence[int], start: int, *, width: int | None = None, every: bool
    ) -> Step:
        """Tokens of one row from `start` on, on the CPU, as every step.

        width: with so many tokens; those beyond `ids` are padding. every: keep the logits of each
        token, not of the last one alone.
        """
        torch, count = self._torch, len(ids)
        width = width or count
        first = row * self.length + start
        places = [first + i for i in range(count)] + [self._unread] * (width - count)
        positions = [min(start + i, self.length - 1) for i in range(width)]
        return self._made(
            torch.tensor([[*ids, *[0] * (width - count)]]),
            torch.tensor([positions]),
            torch.tensor(places),
            torch.tensor([row * self.length, 0], dtype=torch.int32),
            torch.tensor([start + width], dtype=torch.int32),
            torch.arange(count) if every else torch.tensor([count - 1]),
            start + width,
        )

    def answer_step(
        self, ids: Sequence[int], lengths: Sequence[int], *, rows: int | None = None
    ) -> Step:
        """One token more of each of the first rows.

        lengths: tokens in each row, the new one included. rows: with so many rows; those beyond
        `ids` are padding.
        """
        torch, count = self._torch, len(ids)
        rows = rows or count
        padding = rows - count
        held = torch.tensor([*lengths, *[1] * padding], dtype=torch.int32)
        places = torch.arange(rows) * self.length + held - 1
        starts = torch.arange(rows + 1, dtype=torch.int32) * self.length
        if padding:
            places[count:] = self._unread
            starts[count:] = self._unread
        return self._made(
            torch.tensor([*ids, *[0] * padding])[:, None],
            held[:, None].long() - 1,
            places,
            starts,
            held,
            torch.tensor([0]),
            max(lengths, default=1),
        )

    def aim(self, step: Step) -> None:
        """The step whose keys and values are written next."""
        self._step = step

    def update(
        self, key: "torch.Tensor", value: "torch.Tensor", layer: int, *_: Any, **__: Any
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Write a layer's keys and values [rows, heads, width, head size]; returns all of them."""
        assert self._step
        self._write(key, value, self.keys[layer], self.values[layer], self._step.places)
        return self.keys[layer], self.values[layer]

    def attend(
        self,
        module: Any,
        query: "torch.Tensor",
        keys: "torch.Tensor",
        values: "torch.Tensor",
        mask: object,
        scaling: float,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple["torch.Tensor", None]:
        """An attention function of transformers: query [rows, heads, width, head size] in, and
        [rows, width, heads, head size] out."""
        assert self._step
        rows, heads, width, size = query.shape
        window = sliding_window if sliding_window and sliding_window < self.length else None
        flat = query.transpose(1, 2).reshape(rows * width, heads, size)
        found = self._attention(flat, keys, values, self._step, scale=scaling, window=window)
        return found.view(rows, width, heads, size), None

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's first tokens to another row."""
        here, there = source * self.length, target * self.length
        for buffer in (*self.keys, *self.values):
            buffer[there : there + length] = buffer[here : here + length]

    def get_seq_length(self, layer: int = 0) -> int:
        return self._step.longest if self._step else 0

    @property
    def _unread(self) -> int:
        return self.slots * self.length

    def _made(
        self,
        ids: "torch.Tensor",
        positions: "torch.Tensor",
        places: "torch.Tensor",
        key_starts: "torch.Tensor",
        lengths: "torch.Tensor",
        kept: "torch.Tensor",
        longest: int,
    ) -> Step:
        torch = self._torch
        rows, width = ids.shape
        starts = torch.arange(rows + 1, dtype=torch.int32) * width
        return Step(ids, positions, places, starts, key_starts, lengths, kept, longest)
