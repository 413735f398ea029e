"""ONNX Runtime: runs a decoder graph token by token, many sequences at once.

The graph is one of ONNX Runtime GenAI. We step it ourselves, because on a CPU GenAI's own engine
lets a request join only when the whole batch before it has ended, and shows no logits.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ArtifactError, ResourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRAPH = "model.onnx"
GENAI_CONFIG = "genai_config.json"
AGAIN = "run `python -m pipeline stage=build`"


def runtime_version() -> str:
    return metadata.version("onnxruntime")


def hardware() -> dict[str, str]:
    """What an engine is bound to: the processor's architecture."""
    return {"device": "cpu", "architecture": platform.machine()}


class DecoderSession:
    """A decoder with a KV cache for `slots` sequences, one a row; used by one thread at a time.

    Keys and values are written in place: the graph's attention (GroupQueryAttention) takes the same
    buffer as past and present, and each row its own length. Rows in use are the first ones, so that
    a batch is a prefix of the buffer and nothing is copied between steps.

    Args:
        folder: an engine folder.
        slots: sequences at once. max_seq_len: tokens of each, prompt and answer.
        threads: of the processor; 0 leaves it to ONNX Runtime, which takes every core.

    Raises:
        ArtifactError: the folder is no such engine. ResourceError: no memory for the cache.
    """

    def __init__(self, folder: Path, slots: int, max_seq_len: int, threads: int = 0) -> None:
        import numpy as np
        import onnxruntime as ort

        self._np = np
        decoder, self.vocab_size = _decoder_of(folder)
        self.slots, self.max_seq_len = slots, max_seq_len
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # A thread that spins while it waits takes the processor from the HTTP server.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                str(folder / GRAPH), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's errors have no common base
            raise ArtifactError(f"{folder / GRAPH} cannot be loaded ({error}): {AGAIN}") from error
        inputs, outputs = decoder["inputs"], decoder["outputs"]
        self._names = {**inputs, "logits": outputs["logits"]}
        given = {i.name for i in self._session.get_inputs()}
        self._takes_positions = inputs.get("position_ids") in given
        shape = (slots, decoder["num_key_value_heads"], max_seq_len, decoder["head_size"])
        self._cache: dict[tuple[str, str], NDArray[np.float32]] = {}
        try:
            for layer in range(decoder["num_hidden_layers"]):
                for kind in ("key", "value"):
                    past = inputs[f"past_{kind}_names"] % layer
                    present = outputs[f"present_{kind}_names"] % layer
                    # Zeroed pages are taken only once they are written.
                    self._cache[past, present] = np.zeros(shape, np.float32)
        except MemoryError as error:
            size = 8 * slots * max_seq_len * decoder["head_size"] * decoder["num_key_value_heads"]
            size *= decoder["num_hidden_layers"]
            raise ResourceError(
                f"the KV cache needs {size / 2**30:.1f} GiB, which this machine does not have: "
                "lower engine.max_batch_size or engine.max_seq_len and build again"
            ) from error

    def prefill(self, row: int, ids: Sequence[int], start: int) -> "NDArray[np.float32]":
        """Read `ids` as tokens start … of a row's sequence.

        Returns:
            Logits [len(ids), vocabulary]: behind each of them, what may come next.
        """
        end = start + len(ids)
        return self._run(row, [ids], [end], positions=[range(start, end)])[0]

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> "NDArray[np.float32]":
        """One more token for each of the first len(ids) rows.

        Args:
            lengths: tokens in each row, the new one included.

        Returns:
            Logits [len(ids), vocabulary].
        """
        rows = [[i] for i in ids]
        return self._run(0, rows, lengths, positions=[[n - 1] for n in lengths])[:, 0]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens to another row."""
        for buffer in self._cache.values():
            buffer[target, :, :length] = buffer[source, :, :length]

    def _run(
        self,
        first: int,
        ids: Sequence[Sequence[int]],
        lengths: Sequence[int],
        positions: Sequence[Sequence[int]],
    ) -> "NDArray[np.float32]":
        np, names = self._np, self._names
        rows, width = len(ids), len(ids[0])
        mask = np.arange(max(lengths))[None, :] < np.asarray(lengths)[:, None]
        feeds = {
            names["input_ids"]: np.asarray(ids, np.int64),
            names["attention_mask"]: mask.astype(np.int64),
        }
        if self._takes_positions:
            feeds[names["position_ids"]] = np.asarray(positions, np.int64)
        logits = np.empty((rows, width, self.vocab_size), np.float32)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        for (past, present), buffer in self._cache.items():
            part = buffer[first : first + rows]
            for bind, name in ((binding.bind_input, past), (binding.bind_output, present)):
                bind(name, "cpu", 0, np.float32, part.shape, part.ctypes.data)
        binding.bind_output(names["logits"], "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits


def _decoder_of(folder: Path) -> tuple[Mapping[str, Any], int]:
    """The decoder's section of genai_config.json, and the size of the vocabulary."""
    file = folder / GENAI_CONFIG
    try:
        model = json.loads(file.read_text())["model"]
        return model["decoder"], int(model["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{file} is not of an ONNX Runtime GenAI engine ({error}): {AGAIN}"
        ) from error
