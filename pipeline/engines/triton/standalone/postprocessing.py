"""Token ids to text, for the ensemble around TensorRT-LLM's backend.

Each response of a stream becomes text by itself, so a character of several tokens can be cut.
Clients of the tokens' model, such as this pipeline's server, do not have this limit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"], "tokenizer")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            rows = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
            lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
            texts = [
                [
                    self._tokenizer.decode(ids[:length].tolist()).encode()
                    for ids, length in zip(beams, row, strict=True)
                ]
                for beams, row in zip(rows, lengths, strict=True)
            ]
            output = pb_utils.Tensor("OUTPUT", np.array(texts, np.object_))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses
