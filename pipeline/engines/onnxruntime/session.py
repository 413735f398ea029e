"""ONNX Runtime: runs a decoder graph token by token, many sequences at a time.

ONNX Runtime GenAI builds the graph. We run it ourselves, because on a CPU GenAI's own engine lets a
request join only when the whole batch before it has ended, and gives no logits.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ArtifactError, ResourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRAPH = "model.onnx"
GENAI_CONFIG = "genai_config.json"
AGAIN = "run `python -m pipeline stage=build`"


class DecoderSession:
    """A decoder with a KV cache for `slots` sequences, one a row; used by one thread at a time.

    Keys and values are written in place: the graph's attention (GroupQueryAttention) uses the same
    buffer for past and present, and each row has its own length. The first rows are the ones in
    use, so that a batch is a prefix of the buffer and nothing is copied between steps.

    Args:
        folder: an engine folder.
        slots: sequences at a time. max_seq_len: tokens of each, prompt and answer.
        threads: number of CPU threads; 0 lets ONNX Runtime use every core.

    Raises:
        ArtifactError: the folder is not such an engine. ResourceError: no memory for the cache.
    """

    def __init__(self, folder: Path, slots: int, max_seq_len: int, threads: int = 0) -> None:
        import numpy as np
        import onnxruntime as ort

        self._np = np
        decoder, self.vocab_size = _decoder_of(folder)
        self.slots, self.max_seq_len = slots, max_seq_len
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # A thread that spins while it waits takes CPU time from the HTTP server.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                str(folder / GRAPH), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's errors have no common base class
            raise ArtifactError(f"{folder / GRAPH} cannot be loaded ({error}): {AGAIN}") from error
        inputs, outputs = decoder["inputs"], decoder["outputs"]
        self._names = {**inputs, "logits": outputs["logits"]}
        given = {i.name for i in self._session.get_inputs()}
        self._takes_positions = inputs.get("position_ids") in given
        shape = (slots, decoder["num_key_value_heads"], max_seq_len, decoder["head_size"])
        self._cache: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._bindings: dict[tuple[int, int], Any] = {}  # by first row and number of rows
        self._logits = np.empty((slots, 1, self.vocab_size), np.float32)
        try:
            for layer in range(decoder["num_hidden_layers"]):
                for kind in ("key", "value"):
                    past = inputs[f"past_{kind}_names"] % layer
                    present = outputs[f"present_{kind}_names"] % layer
                    # Zeroed pages use memory only once they are written.
                    self._cache[past, present] = np.zeros(shape, np.float32)
        except MemoryError as error:
            size = 8 * slots * max_seq_len * decoder["head_size"] * decoder["num_key_value_heads"]
            size *= decoder["num_hidden_layers"]
            raise ResourceError(
                f"the KV cache needs {size / 2**30:.1f} GiB, which this machine does not have: "
                "lower engine.max_batch_size or engine.max_seq_len and build again"
            ) from error

    def prefill(self, row: int, ids: Sequence[int], start: int) -> "NDArray[np.float32]":
        """Read `ids` as the tokens of a row's sequence from `start` on.

        Returns:
            Logits [len(ids), vocabulary]: for each token, those of the next one.
        """
        np, end = self._np, start + len(ids)
        logits = np.empty((1, len(ids), self.vocab_size), np.float32)
        return self._run(row, np.array([ids]), np.array([end]), logits)[0]

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> "NDArray[np.float32]":
        """Add one token to each of the first len(ids) rows.

        Args:
            lengths: tokens in each row, the new one included.

        Returns:
            Logits [len(ids), vocabulary], valid until the next call, which reuses the buffer.
        """
        np, logits = self._np, self._logits[: len(ids)]
        return self._run(0, np.array(ids)[:, None], np.array(lengths), logits)[:, 0]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens to another row."""
        for buffer in self._cache.values():
            buffer[target, :, :length] = buffer[source, :, :length]

    def _run(
        self,
        first: int,
        ids: "NDArray[np.int64]",
        lengths: "NDArray[np.int64]",
        logits: "NDArray[np.float32]",
    ) -> "NDArray[np.float32]":
        """Read ids [rows, tokens] as the last tokens of rows `first` … of these lengths."""
        np, names = self._np, self._names
        rows, width = ids.shape
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        feeds = {names["input_ids"]: ids, names["attention_mask"]: mask}
        if self._takes_positions:
            feeds[names["position_ids"]] = lengths[:, None] + np.arange(-width, 0)
        binding = self._bindings.get((first, rows)) or self._bind_cache(first, rows)
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, _address(array))
        shape = logits.shape
        binding.bind_output(names["logits"], "cpu", 0, np.float32, shape, _address(logits))
        self._session.run_with_iobinding(binding)
        return logits

    def _bind_cache(self, first: int, rows: int) -> Any:
        """Bind the cache of some rows and keep the binding, a fifth of a small model's step."""
        binding = self._bindings[first, rows] = self._session.io_binding()
        for (past, present), buffer in self._cache.items():
            part = buffer[first : first + rows]
            for bind, name in ((binding.bind_input, past), (binding.bind_output, present)):
                bind(name, "cpu", 0, self._np.float32, part.shape, _address(part))
        return binding


def _address(array: "NDArray[Any]") -> int:
    return array.__array_interface__["data"][0]


def _decoder_of(folder: Path) -> tuple[Mapping[str, Any], int]:
    """The decoder section of genai_config.json, and the size of the vocabulary."""
    file = folder / GENAI_CONFIG
    try:
        model = json.loads(file.read_text())["model"]
        return model["decoder"], int(model["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{file} does not describe an ONNX Runtime GenAI engine ({error}): {AGAIN}"
        ) from error
