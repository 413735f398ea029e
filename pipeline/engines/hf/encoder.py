"""What embedding models and cross-encoders in PyTorch have in common: whole texts in batches."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.core.errors import DataError
from pipeline.engines.base import EngineFailed, Load, QueueFull, Sampling, require_known_tokens

TOKENIZER = "tokenizer.json"
LIMITS = "sentence_bert_config.json"
# Their positions start after the id of the padding token (transformers, modeling_*.py).
AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
BATCH_TOKENS = 16_384  # of one forward pass, padding included


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer, which adds its special tokens to texts; it neither truncates nor pads.

    Raises:
        DataError: there is no tokenizer, or it cannot be read.
    """
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(
            f"{folder / TOKENIZER} cannot be read ({error}): create it with transformers' "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class HfEncoder:
    """An engine (base.Engine) around a model that reads whole texts and generates none.

    Args:
        auto_class: transformers' class that loads the folder. max_queue: calls that may wait.

    Raises:
        DataError: transformers cannot load the folder.
    """

    features: frozenset[str]

    def __init__(self, folder: Path, auto_class: Any, *, max_queue: int) -> None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = auto_class.from_pretrained(
                folder,
                dtype=torch.float32 if device == "cpu" else "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be served by transformers: {error}") from error
        self._model = model.to(device).eval()
        self.max_seq_len = self.max_input_len = _longest(folder, self._model.config)
        self.vocab_size: int = self._model.get_input_embeddings().weight.shape[0]
        self._max_queue, self._calls = max_queue, 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    async def _run(self, texts: Sequence[Sequence[int]], *more: Any) -> list[Any]:
        """What `_pass` gives for each text, in their order. more: lists beside `texts`.

        Raises:
            QueueFull: the queue is full. EngineFailed: a result is not finite.
            ValueError: a token is not in the model's vocabulary.
        """
        for text in texts:
            require_known_tokens(text, Sampling(max_tokens=1), self.vocab_size)
        if self._calls > self._max_queue:
            raise QueueFull
        self._calls += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, self._batches, texts, *more)
        finally:
            self._calls -= 1

    def generate(self, prompt: Sequence[int], sampling: Any) -> Any:
        raise EngineFailed("this model cannot generate text")

    def load(self) -> Load:
        return Load(min(self._calls, 1), max(0, self._calls - 1))

    def down(self) -> str | None:
        return None

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _batches(self, texts: Sequence[Sequence[int]], *more: Sequence[Any]) -> list[Any]:
        """What `_pass` gives; texts of similar length share a pass, to pad little. One thread at a
        time."""
        import torch

        results: dict[int, Any] = {}
        left = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        while left:
            count = max(1, BATCH_TOKENS // len(texts[left[0]]))
            batch, left = left[:count], left[count:]
            with torch.inference_mode():
                found = self._pass(*([list(column[i]) for i in batch] for column in (texts, *more)))
            if not torch.isfinite(found).all():
                raise EngineFailed("the model's results are not finite")
            results |= dict(zip(batch, found.tolist(), strict=True))
        return [results[i] for i in range(len(texts))]

    def _pass(self, *columns: list[list[int]]) -> Any:
        """The result for each row: a tensor [rows, …]. The first row is the longest."""
        raise NotImplementedError

    def _padded(self, rows: list[list[int]], padding: int = 0) -> Any:
        """Rows as a tensor [rows, tokens]."""
        import torch

        width = len(rows[0])
        filled = [row + [padding] * (width - len(row)) for row in rows]
        return torch.tensor(filled, device=self._model.device)


def _longest(folder: Path, config: Any) -> int:
    """Tokens of the longest text: the model's positions, or fewer if the folder says so."""
    positions = int(config.max_position_embeddings)
    if config.model_type in AFTER_PADDING:
        positions -= config.pad_token_id + 1
    if (folder / LIMITS).is_file():
        said = json.loads((folder / LIMITS).read_text()).get("max_seq_length")
        return min(positions, said or positions)
    return positions
