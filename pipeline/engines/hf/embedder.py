"""An embedding model in PyTorch: token ids in, one vector for each text out.

The folder's sentence-transformers files (modules.json, 1_Pooling/config.json) say how the tokens'
vectors are pooled. Without them the mean is used, normalized to length 1 as OpenAI's embeddings
are.
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.core.errors import DataError
from pipeline.engines.base import EngineFailed, Load, QueueFull, Sampling, require_known_tokens

TOKENIZER = "tokenizer.json"
MODULES = "modules.json"
LIMITS = "sentence_bert_config.json"
# Kinds of pooling in sentence-transformers, by the name of their switch.
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
# Their positions start after the id of the padding token (transformers, modeling_*.py).
AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
# Ends of the names of architectures that generate text, including vision-language models.
WRITING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
BATCH_TOKENS = 16_384  # of one forward pass, padding included


@dataclass(frozen=True)
class Pooling:
    """kind: mean, cls or last. normalized: whether vectors have length 1."""

    kind: str
    normalized: bool


def read_pooling(folder: Path) -> Pooling:
    """The pooling from the folder's sentence-transformers files.

    Raises:
        DataError: they ask for a module or a pooling that is not supported.
    """
    if not (folder / MODULES).is_file():
        return Pooling("mean", normalized=True)
    modules = json.loads((folder / MODULES).read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise DataError(
            f"{folder / MODULES} asks for {', '.join(sorted(unknown))}, which is not supported: "
            "choose an embedding model that has only Transformer, Pooling and Normalize"
        )
    place = next((m["path"] for m in modules if m["type"].endswith("Pooling")), None)
    if place is None:
        raise DataError(f"{folder / MODULES} names no Pooling: the folder is not complete")
    settings = json.loads((folder / place / "config.json").read_text())
    asked = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on]
    if len(asked) != 1 or asked[0] not in POOLINGS:
        raise DataError(
            f"{folder / place / 'config.json'} asks for {' and '.join(asked) or 'no pooling'}: "
            f"choose a model with one of {', '.join(POOLINGS)}"
        )
    return Pooling(POOLINGS[asked[0]], normalized="Normalize" in kinds)


def embeds(folder: Path) -> bool:
    """Whether a folder holds an embedding model: it is not a decoder, or its files define pooling.

    Raises:
        DataError: there is no config.json.
    """
    if (folder / MODULES).is_file():
        return True
    file = folder / "config.json"
    try:
        names = json.loads(file.read_text()).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file} cannot be read ({error}): give the folder of an HF model"
        ) from error
    return bool(names) and not any(name.endswith(WRITING) for name in names)


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


class HfEmbedder:
    """An engine (base.Engine) that only computes embeddings.

    Args:
        max_queue: calls that may wait.

    Raises:
        DataError: transformers cannot load the folder, or its pooling is not supported.
    """

    features = frozenset({"embeddings"})

    def __init__(self, folder: Path, *, max_queue: int) -> None:
        import torch
        from transformers import AutoModel

        self._pooling = read_pooling(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._model = AutoModel.from_pretrained(
                folder,
                dtype=torch.float32 if device == "cpu" else "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be served by transformers: {error}") from error
        self._model = self._model.to(device).eval()
        self.max_seq_len = self.max_input_len = _longest(folder, self._model.config)
        self.vocab_size: int = self._model.get_input_embeddings().weight.shape[0]
        self._max_queue, self._calls = max_queue, 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="embedder")

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector for each text, given as token ids.

        Raises:
            QueueFull: the queue is full. EngineFailed: the vectors are not finite.
            ValueError: a token is not in the model's vocabulary.
        """
        for prompt in prompts:
            require_known_tokens(prompt, Sampling(max_tokens=1), self.vocab_size)
        if self._calls > self._max_queue:
            raise QueueFull
        self._calls += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, self.compute, prompts)
        finally:
            self._calls -= 1

    def generate(self, prompt: Sequence[int], sampling: Any) -> Any:
        raise EngineFailed("this model makes embeddings and cannot generate text")

    def load(self) -> Load:
        return Load(min(self._calls, 1), max(0, self._calls - 1))

    def down(self) -> str | None:
        return None

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def compute(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The vectors, in the thread that calls; not from several threads at a time.

        Texts of similar length share a pass, to pad little.

        Raises:
            EngineFailed: the vectors are not finite.
        """
        import torch

        vectors: dict[int, list[float]] = {}
        left = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while left:
            count = max(1, BATCH_TOKENS // len(prompts[left[0]]))
            batch, left = left[:count], left[count:]
            found = self._pass([list(prompts[i]) for i in batch])
            if not torch.isfinite(found).all():
                raise EngineFailed("the model's vectors are not finite")
            vectors |= dict(zip(batch, found.tolist(), strict=True))
        return [vectors[i] for i in range(len(prompts))]

    def _pass(self, rows: list[list[int]]) -> Any:
        import torch

        width, device = len(rows[0]), self._model.device
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            states = states.float()
            if self._pooling.kind == "mean":
                vectors = (states * mask[..., None]).sum(1) / lengths[:, None]
            elif self._pooling.kind == "cls":
                vectors = states[:, 0]
            else:
                vectors = states[torch.arange(len(rows)), lengths - 1]
            if self._pooling.normalized:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return vectors.cpu()


def _longest(folder: Path, config: Any) -> int:
    """Tokens of the longest text: the model's positions, or fewer if the folder says so."""
    positions = int(config.max_position_embeddings)
    if config.model_type in AFTER_PADDING:
        positions -= config.pad_token_id + 1
    if (folder / LIMITS).is_file():
        said = json.loads((folder / LIMITS).read_text()).get("max_seq_length")
        return min(positions, said or positions)
    return positions
