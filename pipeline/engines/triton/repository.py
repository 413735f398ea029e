"""Model repositories for Triton: the folders, and a config.pbtxt for each model.

Of a model `support` in the Python backend:

    support/          texts: NeMo's query clients, and `text_input` as TensorRT-LLM and vLLM have it
    support_stream/   the same, piece by piece
    support_tokens/   token ids: one engine, which the two above ask

The tokens' model has the names of TensorRT-LLM's backend, whose repository takes its place in the
same way: there `support` is an ensemble.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engines.kserve import contract
from pipeline.engines.triton import pbtxt
from pipeline.engines.triton.arguments import PARTS, POST, PRE, TOKENS, Settings

REPOSITORY = "repository"  # below the artifact of stage=build
VERSION = "1"  # of the models, as Triton numbers them
SOURCE = "PIPELINE_SOURCE"  # variable: where this package is, for a Python that does not have it
CONFIG = "config.pbtxt"
MOST_PROMPTS = 256  # of one request to a model of texts

_MODEL = '''"""{title}"""

import os
import sys

import triton_python_backend_utils as pb_utils

# The backend's interpreter ignores PYTHONPATH.
if os.environ.get("{source}"):
    sys.path.append(os.environ["{source}"])

from {module} import {name}  # noqa: E402


class TritonPythonModel({name}):
    utils = pb_utils
'''
TITLES = {
    "token_model": "Token ids in, token ids out.",
    "text_model": "Texts in, texts out; the tokens' model beside it has the engine.",
}
# Inputs of Export-Deploy's servers and clients: NemoQueryLLM's, its PyTorch and Hugging Face
# counterparts' and NemoQueryvLLM's. All of them (batch, -1), and only prompts is required.
NEMO_INPUTS: Mapping[str, str] = {
    "prompts": "STRING",
    "max_output_len": "INT64",
    "min_output_len": "INT64",
    "max_length": "INT64",
    "min_length": "INT64",
    "max_tokens": "INT64",
    "min_tokens": "INT64",
    "max_batch_size": "INT64",
    "top_k": "INT64",
    "top_p": "FP32",
    "temperature": "FP32",
    "random_seed": "INT64",
    "seed": "INT64",
    "use_greedy": "BOOL",
    "repetition_penalty": "FP32",
    "no_repeat_ngram_size": "FP32",
    "stop_words_list": "STRING",
    "bad_words_list": "STRING",
    "end_strings": "STRING",
    "lora_uids": "STRING",
    "add_BOS": "BOOL",
    "all_probs": "BOOL",
    "compute_logprob": "BOOL",
    "n_top_logprobs": "INT64",
    "n_log_probs": "INT64",
    "n_prompt_log_probs": "INT64",
    "echo": "BOOL",
    "apply_chat_template": "BOOL",
    "output_context_logits": "BOOL",
    "output_generation_logits": "BOOL",
    "output_logits": "BOOL",
    "output_scores": "BOOL",
}
# `sentences` first: the clients read the type of the first output.
NEMO_OUTPUTS = {"sentences": "STRING", "log_probs": "FP32", "top_logprobs": "STRING"}
# As the ensemble of TensorRT-LLM's backend and vLLM's backend have them.
TEXT_INPUTS: Mapping[str, str] = {
    "text_input": "STRING",
    "max_tokens": "INT32",
    "min_tokens": "INT32",
    "stop_words": "STRING",
    "bad_words": "STRING",
    "top_k": "INT32",
    "top_p": "FP32",
    "temperature": "FP32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "seed": "UINT64",
    "stream": "BOOL",
    "exclude_input_in_output": "BOOL",
    "sampling_parameters": "STRING",
}


def write_python(out: Path, settings: Settings, facts: contract.Facts, slots: int) -> Path:
    """The repository for an engine of this pipeline.

    Returns:
        The folder for the engine.
    """
    name = settings.model
    _write(out, settings, "tokens", tokens_config(name, facts, slots))
    _python(out / (name + TOKENS), "pipeline.serving.triton.token_model", "TokenModel")
    for part in ("text", "stream"):
        _write(out, settings, part, text_config(name, part))
        _python(out / (name + PARTS[part]), "pipeline.serving.triton.text_model", "TextModel")
    return out / (name + TOKENS) / VERSION


def tokens_config(name: str, facts: contract.Facts | None, slots: int) -> dict[str, Any]:
    """The tokens' model in the Python backend."""
    inputs = [
        tensor(contract.SAMPLING, "STRING"),
        tensor("input_ids", "INT32", [-1]),
        tensor("input_lengths", "INT32"),
        *(tensor(key, datatype) for key, (datatype, _) in contract.SCALARS.items()),
        tensor("end_id", "INT32"),
        tensor("pad_id", "INT32"),
        tensor("stop_words_list", "INT32", [2, -1]),
        tensor("bad_words_list", "INT32", [2, -1]),
        tensor("streaming", "BOOL"),
    ]
    outputs = [
        tensor(contract.OUTPUT_IDS, "INT32", [-1, -1], optional=False),
        tensor(contract.LENGTHS, "INT32", [-1], optional=False),
        tensor(contract.DETAILS, "STRING", [-1], optional=False),
    ]
    return {
        "name": name + TOKENS,
        "backend": "python",
        "max_batch_size": slots,
        "model_transaction_policy": {"decoupled": True},
        "input": inputs,
        "output": outputs,
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        **({"parameters": {contract.FACTS: facts.text()}} if facts else {}),
    }


def text_config(name: str, part: str) -> dict[str, Any]:
    """A model of texts in the Python backend: `text`, or `stream`, which is decoupled."""
    decoupled = part == "stream"
    if decoupled:
        inputs = [tensor(key, datatype, [-1]) for key, datatype in TEXT_INPUTS.items()]
    else:
        both = {**TEXT_INPUTS, **NEMO_INPUTS}
        # NeMo's max_tokens are 64 bits wide; the model reads either.
        inputs = [tensor(key, datatype, [-1]) for key, datatype in both.items()]
    outputs = {"text_output": "STRING"} if decoupled else {**NEMO_OUTPUTS, "text_output": "STRING"}
    return {
        "name": name + PARTS[part],
        "backend": "python",
        # The engine joins requests itself; a batch is what one client sends at once.
        "max_batch_size": MOST_PROMPTS,
        "model_transaction_policy": {"decoupled": decoupled},
        "input": inputs,
        "output": [tensor(key, kind, [-1], optional=False) for key, kind in outputs.items()],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "parameters": {"tokens_model": name + TOKENS},
    }


def write_vllm(out: Path, settings: Settings, checkpoint: Path, arguments: Any) -> None:
    """The repository for vLLM's backend, which adds its inputs and outputs itself."""
    name = settings.model
    _write(
        out,
        settings,
        "text",
        {
            "name": name,
            "backend": "vllm",
            "instance_group": [{"count": 1, "kind": "KIND_MODEL"}],
        },
    )
    folder = out / name / VERSION
    link_files(checkpoint, folder / "checkpoint")
    path = f"{settings.mount}/{name}/{VERSION}/checkpoint"
    content = {"model": path, "served_model_name": name, **arguments}
    (folder / "model.json").write_text(json.dumps(content, indent=1) + "\n")


def write_onnxruntime(out: Path, settings: Settings) -> None:
    """The config for ONNX Runtime's backend, of the graph that is in the folder already."""
    import onnx

    folder = out / settings.model / VERSION
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    given = {tensor.name for tensor in graph.initializer}
    _write(
        out,
        settings,
        "text",
        {
            "name": settings.model,
            "backend": "onnxruntime",
            "max_batch_size": 0,
            "input": [_of_graph(value) for value in graph.input if value.name not in given],
            "output": [_of_graph(value) for value in graph.output],
            "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        },
    )


def write_tensorrtllm(out: Path, settings: Settings, slots: int, stop_ids: Sequence[int]) -> Path:
    """The repository for TensorRT-LLM's backend: an ensemble around its engine.

    stop_ids: tokens that end an answer.

    Returns:
        The folder for the engine.
    """
    name = settings.model
    engine = f"{settings.mount}/{name}{TOKENS}/{VERSION}/engine"
    core = tokens_config(name, None, slots)
    core["input"] = [
        {**entry, "allow_ragged_batch": True} if entry["dims"] != [1] else entry
        for entry in core["input"]
        if entry["name"] != contract.SAMPLING
    ]
    core["output"] = [entry for entry in core["output"] if entry["name"] != contract.DETAILS]
    core |= {
        "backend": "tensorrtllm",
        "dynamic_batching": {"preferred_batch_size": [slots]},
        "parameters": {
            "gpt_model_type": "inflight_fused_batching",
            "gpt_model_path": engine,
            "batch_scheduler_policy": "guaranteed_no_evict",
            "kv_cache_free_gpu_mem_fraction": "0.9",
            "enable_kv_cache_reuse": "true",
            "exclude_input_in_output": "true",
            "max_beam_width": "1",
            "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        },
    }
    _write(out, settings, "tokens", core)
    (out / (name + TOKENS) / VERSION).mkdir(parents=True, exist_ok=True)
    for part, config in (
        ("preprocessing", preprocessing_config(name, slots, stop_ids)),
        ("postprocessing", postprocessing_config(name, slots)),
    ):
        _write(out, settings, part, config)
        source = Path(__file__).parent / "standalone" / f"{part}.py"
        target = out / (name + PARTS[part]) / VERSION
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / "model.py")
    _write(out, settings, "text", ensemble_config(name, slots))
    (out / name / VERSION).mkdir(parents=True, exist_ok=True)
    # Triton wants the folder, and neither git nor archives keep one without a file.
    (out / name / VERSION / "README").write_text("An ensemble has no files of its own.\n")
    return out / (name + TOKENS) / VERSION / "engine"


# What the ensemble passes from its inputs to the tokens' model as they are.
_PASSED = {
    "temperature": "temperature",
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_tokens": "min_tokens",
    "seed": "seed",
    "stream": "streaming",
}


def preprocessing_config(name: str, slots: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    return {
        "name": name + PRE,
        "backend": "python",
        "max_batch_size": slots,
        "input": [
            tensor("QUERY", "STRING", optional=False),
            tensor("REQUEST_OUTPUT_LEN", "INT32", optional=False),
            tensor("STOP_WORDS_DICT", "STRING", [-1]),
            tensor("BAD_WORDS_DICT", "STRING", [-1]),
        ],
        "output": [
            tensor("INPUT_ID", "INT32", [-1], optional=False),
            tensor("REQUEST_INPUT_LEN", "INT32", optional=False),
            tensor("OUTPUT_LEN", "INT32", optional=False),
            tensor("STOP_WORDS_IDS", "INT32", [2, -1], optional=False),
            tensor("BAD_WORDS_IDS", "INT32", [2, -1], optional=False),
            tensor("END_ID", "INT32", optional=False),
            tensor("PAD_ID", "INT32", optional=False),
        ],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "parameters": {"stop_ids": json.dumps(list(stop_ids))},
    }


def postprocessing_config(name: str, slots: int) -> dict[str, Any]:
    return {
        "name": name + POST,
        "backend": "python",
        "max_batch_size": slots,
        "input": [
            tensor("TOKENS_BATCH", "INT32", [-1, -1], optional=False),
            tensor("SEQUENCE_LENGTH", "INT32", [-1], optional=False),
        ],
        "output": [tensor("OUTPUT", "STRING", [-1], optional=False)],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
    }


def ensemble_config(name: str, slots: int) -> dict[str, Any]:
    """Text in, text out, with the names of TensorRT-LLM's own ensemble."""
    required = {"text_input": "STRING", "max_tokens": "INT32"}
    optional = {key: TEXT_INPUTS[key] for key in _PASSED}
    lists = {"stop_words": "STRING", "bad_words": "STRING"}
    step = [
        {
            "model_name": name + PRE,
            "model_version": -1,
            "input_map": {
                "QUERY": "text_input",
                "REQUEST_OUTPUT_LEN": "max_tokens",
                "STOP_WORDS_DICT": "stop_words",
                "BAD_WORDS_DICT": "bad_words",
            },
            "output_map": {
                "INPUT_ID": "_input_ids",
                "REQUEST_INPUT_LEN": "_input_lengths",
                "OUTPUT_LEN": "_output_len",
                "STOP_WORDS_IDS": "_stop_words",
                "BAD_WORDS_IDS": "_bad_words",
                "END_ID": "_end_id",
                "PAD_ID": "_pad_id",
            },
        },
        {
            "model_name": name + TOKENS,
            "model_version": -1,
            "input_map": {
                "input_ids": "_input_ids",
                "input_lengths": "_input_lengths",
                "request_output_len": "_output_len",
                "end_id": "_end_id",
                "pad_id": "_pad_id",
                "stop_words_list": "_stop_words",
                "bad_words_list": "_bad_words",
                **{inner: outer for outer, inner in _PASSED.items()},
            },
            "output_map": {"output_ids": "_tokens", "sequence_length": "_lengths"},
        },
        {
            "model_name": name + POST,
            "model_version": -1,
            "input_map": {"TOKENS_BATCH": "_tokens", "SEQUENCE_LENGTH": "_lengths"},
            "output_map": {"OUTPUT": "text_output"},
        },
    ]
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": slots,
        "input": [
            *(tensor(key, kind, optional=False) for key, kind in required.items()),
            *(tensor(key, kind) for key, kind in optional.items()),
            *(tensor(key, kind, [-1]) for key, kind in lists.items()),
        ],
        "output": [tensor("text_output", "STRING", [-1], optional=False)],
        "ensemble_scheduling": {"step": step},
    }


def tensor(
    name: str, datatype: str, dims: Iterable[int] = (1,), *, optional: bool = True
) -> dict[str, Any]:
    """An input or an output of a model."""
    found: dict[str, Any] = {"name": name, "data_type": f"TYPE_{datatype}", "dims": list(dims)}
    return {**found, "optional": True} if optional else found


def link_files(source: Path, target: Path) -> None:
    """Second names for a folder's files on the same disk, else copies; no manifest."""
    from pipeline.core.paths import MANIFEST

    for file in sorted(p for p in source.rglob("*") if p.is_file() and p.name != MANIFEST):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)


def _write(out: Path, settings: Settings, part: str, config: Mapping[str, Any]) -> None:
    """A model's config.pbtxt, with the user's changes."""
    changed = pbtxt.merged(config, settings.config.get(part, {}))
    folder = out / (settings.model + PARTS[part])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(pbtxt.text(changed))


def _python(folder: Path, module: str, name: str) -> None:
    place = folder / VERSION
    place.mkdir(parents=True, exist_ok=True)
    title = TITLES[module.rpartition(".")[2]]
    text = _MODEL.format(title=title, source=SOURCE, module=module, name=name)
    (place / "model.py").write_text(text)


_ONNX_TYPES = {1: "FP32", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FP16", 16: "BF16"}


def _of_graph(value: Any) -> dict[str, Any]:
    kind = value.type.tensor_type
    dims = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim]
    return tensor(value.name, _ONNX_TYPES[kind.elem_type], dims, optional=False)
