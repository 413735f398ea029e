"""Text to token ids, for the ensemble around TensorRT-LLM's backend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    """The parameter stop_ids of config.pbtxt has the tokens that end an answer."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"], "tokenizer")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        parameters = json.loads(args["model_config"])["parameters"]
        self._stop_ids = json.loads(parameters["stop_ids"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        texts = _texts(request, "QUERY")
        if len(texts) != 1:
            error = pb_utils.TritonError(
                "send one text_input a request", pb_utils.TritonError.INVALID_ARG
            )
            return pb_utils.InferenceResponse(error=error)
        ids = self._encode(texts[0])
        length = pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy()
        stop_words = [[token] for token in self._stop_ids[1:]]
        stop_words += [self._encode(word) for word in _texts(request, "STOP_WORDS_DICT")]
        bad_words = [self._encode(word) for word in _texts(request, "BAD_WORDS_DICT")]
        end = np.array([[self._stop_ids[0]]], np.int32)
        outputs = {
            "INPUT_ID": np.array([ids], np.int32),
            "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32),
            "OUTPUT_LEN": length.astype(np.int32),
            "STOP_WORDS_IDS": _word_list(stop_words),
            "BAD_WORDS_IDS": _word_list(bad_words),
            "END_ID": end,
            "PAD_ID": end,
        }
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        return pb_utils.InferenceResponse(tensors)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _texts(request: Any, name: str) -> list[str]:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return []
    texts = [value.decode() for value in tensor.as_numpy().reshape(-1)]
    return [text for text in texts if text]


def _word_list(words: list[list[int]]) -> Any:
    """All ids in a row, and below where each word ends; one column of padding without words."""
    ids = [token for word in words for token in word]
    ends = [int(end) for end in np.cumsum([len(word) for word in words])]
    if not ids:
        return np.array([[[0], [-1]]], np.int32)
    return np.array([[ids, ends + [-1] * (len(ids) - len(ends))]], np.int32)
