"""Asks a running Triton with NVIDIA's own clients, in the environment of the extra `triton`.

    .venv-triton/bin/python tests/triton_clients.py SITE_PACKAGES COMMAND ARGUMENTS…

SITE_PACKAGES: of the environment with torch, which NeMo's clients import. Prints JSON.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any


def nemo(http: str, grpc: str, model: str) -> dict[str, Any]:
    """What each of NeMo's query clients gets, over HTTP and gRPC."""
    from nemo_deploy.llm import query_llm

    found: dict[str, Any] = {}
    question = [json.dumps([{"role": "user", "content": "How do I order checks?"}])]
    for name, url in (("http", http), ("grpc", grpc)):
        plain = query_llm.NemoQueryLLM(url, model)
        torch = query_llm.NemoQueryLLMPyTorch(url, model)
        found[name] = {
            "NemoQueryLLM": plain.query_llm(
                ["The bank", "Hello"],
                max_output_len=8,
                min_output_len=1,
                top_k=1,
                top_p=0.0,
                temperature=1.0,
                random_seed=3,
            ).tolist(),
            "NemoQueryLLMPyTorch": torch.query_llm(
                question,
                max_length=8,
                top_k=1,
                apply_chat_template=True,
                compute_logprob=True,
                n_top_logprobs=2,
            ),
            "echo": torch.query_llm(["The bank"], max_length=4, compute_logprob=True, echo=True),
            "NemoQueryLLMHF": query_llm.NemoQueryLLMHF(url, model).query_llm(
                ["The bank"], max_length=8
            ),
            "NemoQueryvLLM": query_llm.NemoQueryvLLM(url, model).query_llm(
                ["The bank"], max_tokens=8, seed=4
            ),
            "NemoQueryTRTLLMAPI": query_llm.NemoQueryTRTLLMAPI(url, model)
            .query_llm(["The bank"], max_length=8)
            .tolist(),
        }
        try:
            plain.query_llm(["The bank"], max_output_len=8, no_repeat_ngram_size=3)
        except Exception as error:
            found[name]["refused"] = str(error)
    return found


def tensorrt_llm(grpc: str, model: str) -> dict[str, Any]:
    """The tokens of a stream, asked for as TensorRT-LLM's clients ask."""
    import queue

    import numpy as np
    from tritonclient.grpc import InferenceServerClient, InferInput

    def tensor(name: str, values: Any, kind: str) -> InferInput:
        array = np.array([values])
        made = InferInput(name, array.shape, kind)
        numpy = {"INT32": np.int32, "BOOL": np.bool_, "FP32": np.float32}[kind]
        made.set_data_from_numpy(array.astype(numpy))
        return made

    answers: queue.Queue[Any] = queue.Queue()
    client = InferenceServerClient(grpc.removeprefix("grpc://"))
    client.start_stream(lambda result, error: answers.put((result, error)))
    inputs = [
        tensor("input_ids", [5, 6, 7], "INT32"),
        tensor("input_lengths", [3], "INT32"),
        tensor("request_output_len", [6], "INT32"),
        tensor("end_id", [0], "INT32"),
        tensor("streaming", [True], "BOOL"),
    ]
    client.async_stream_infer(model, inputs, enable_empty_final_response=True)
    found: list[int] = []
    while True:
        result, error = answers.get(timeout=60)
        if error:
            raise error
        if (ids := result.as_numpy("output_ids")) is not None:
            found += ids.reshape(-1).tolist()
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    client.async_stream_infer(
        model, [tensor("input_ids", [5, 6, 7], "INT32")], enable_empty_final_response=True
    )
    _, error = answers.get(timeout=60)
    client.stop_stream()
    return {"ids": found, "refused": str(error)}


def described() -> dict[str, Any]:
    """The fields of the protocol's messages, as tritonclient has them."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    found = {}
    for module in (service_pb2, model_config_pb2):
        for name, message in module.DESCRIPTOR.message_types_by_name.items():
            found[name] = {field.name: field.number for field in message.fields}
    request = service_pb2.DESCRIPTOR.message_types_by_name["ModelInferRequest"]
    for ours, theirs in (("InferTensor", "InferInputTensor"), ("RequestedOutput", None)):
        nested = request.nested_types_by_name[theirs or "InferRequestedOutputTensor"]
        found[ours] = {field.name: field.number for field in nested.fields}
    return found


def configs(*files: str) -> dict[str, Any]:
    """Each config.pbtxt as Triton's own message reads it, strictly."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    return {
        file: json_format.MessageToDict(
            text_format.Parse(Path(file).read_text(), model_config_pb2.ModelConfig()),
            preserving_proto_field_name=True,
        )
        for file in files
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.path.append(sys.argv[1])
    result = globals()[sys.argv[2]](*sys.argv[3:])
    json.dump(result, sys.stdout, default=lambda value: value.tolist())
