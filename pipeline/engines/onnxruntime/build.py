"""ONNX Runtime: a CPU engine from an HF folder, and its comparison with PyTorch.

The engine is a folder of ONNX Runtime GenAI (genai_config.json, model.onnx), built by its model
builder, so that `onnxruntime_genai.Model` can open it too; session.py runs it here.
"""

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.core.import_blocking import absent
from pipeline.engines.onnxruntime.session import GENAI_CONFIG, GRAPH, DecoderSession

# Weights in blocks of 32 with one scale each; activations as 8-bit integers in matrix products.
BLOCK_SIZE = 32
INT8_ACCURACY = 4


def build(model: Path, out: Path, precision: str, scratch: Path) -> None:
    """Write the engine of an HF folder into `out`.

    Args:
        precision: fp32; int8 (every linear layer, weight-only blocks); int4 (k-quant, with the most
            sensitive layers in int8, as llama.cpp chooses them).
        scratch: a folder for the builder's temporary files.

    Raises:
        DataError: the builder does not support the architecture or cannot read the weights.
    """
    # transformers uses sklearn only for assisted generation. With pandas and scipy it is half of
    # the builder's import time.
    with _quiet() as said, absent("sklearn"):
        from onnxruntime_genai.models.builder import create_model

        # fp32 first for int8: the builder itself quantizes to int4 only.
        base = "int4" if precision == "int4" else "fp32"
        options: dict[str, Any] = {"hf_remote": False, "hf_token": "false"}
        if base == "int4":
            options |= {"int4_algo_config": "k_quant_mixed", "int4_block_size": BLOCK_SIZE}
        target = scratch / "fp32" if precision == "int8" else out
        source = _with_original_context(model, scratch)
        try:
            create_model(
                None, str(source), str(target), base, "cpu", str(scratch / "cache"), **options
            )
            if precision == "int8":
                _quantize_to_int8(target, out)
        except (NotImplementedError, KeyError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a full disk is not the model's fault
            tail = " ".join(said.getvalue().split()[-30:])
            raise DataError(
                f"{model} cannot become an ONNX Runtime engine ({error}; {tail}): use a Llama, "
                "Qwen2 or Mistral model in HF safetensors, or engine=trtllm or engine=vllm"
            ) from error


def _with_original_context(model: Path, scratch: Path) -> Path:
    """The folder for the builder, with Llama 3's original context where the builder looks.

    The builder looks for `original_max_position_embeddings` in rope_scaling with hasattr, which
    fails for a dict. It then uses the extended context as the original one, and every frequency is
    wrong. At the top level of config.json it finds the value.
    """
    config = json.loads((model / "config.json").read_text())
    original = (config.get("rope_scaling") or {}).get("original_max_position_embeddings")
    if original is None:
        return model
    folder = scratch / "source"
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config["original_max_position_embeddings"] = original
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _quantize_to_int8(source: Path, out: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    settings = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=INT8_ACCURACY, bits=8
    )
    quantizer = MatMulNBitsQuantizer(onnx.load(str(source / GRAPH)), algo_config=settings)
    quantizer.process()
    # The library appends to an existing file of weights.
    (out / f"{GRAPH}.data").unlink(missing_ok=True)
    quantizer.model.save_model_to_file(str(out / GRAPH), True)
    (out / GENAI_CONFIG).write_bytes((source / GENAI_CONFIG).read_bytes())


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keep the builder's output and logs off the terminal; yields the output, for errors."""
    said = io.StringIO()
    names = ["onnxruntime.quantization.matmul_nbits_quantizer", "neural_compressor"]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def compare_with_torch(
    model: Path,
    session: DecoderSession,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    stop_ids: Sequence[int],
) -> dict[str, float]:
    """Compare an engine with the HF model in PyTorch, float32.

    PyTorch answers each prompt greedily. The engine reads prompt and answer for its logits, and
    also answers by itself, with its cache.

    Returns:
        token_agreement: share of the answers' positions at which both have the same most likely
        token.
        same_answers: share of prompts with the same answer, token for token.
        min_cosine, max_difference: of the logits at those positions.
    """
    import numpy as np

    from pipeline.models import hf_model

    reference = hf_model.load_model(model, dtype="float32")
    agreed, same, cosines, differences = [], [], [], []
    for prompt in prompts:
        answer = hf_model.greedy(reference, prompt, max_new_tokens=new_tokens, stop_ids=stop_ids)
        read = [*prompt, *answer[:-1]]
        wanted = hf_model.logits(reference, read)[len(prompt) - 1 :].double().numpy()
        got = session.prefill(0, read, 0)[len(prompt) - 1 :].astype(np.float64)
        norms = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(got, axis=-1)
        cosines += list((wanted * got).sum(-1) / norms)
        differences.append(np.abs(wanted - got).max())
        agreed += list(wanted.argmax(-1) == got.argmax(-1))
        same.append(_answer_greedily(session, prompt, len(answer)) == answer)
    return {
        "token_agreement": float(np.mean(agreed)),
        "same_answers": float(np.mean(same)),
        "min_cosine": float(np.min(cosines)),
        "max_difference": float(np.max(differences)),
    }


def _answer_greedily(session: DecoderSession, prompt: Sequence[int], count: int) -> list[int]:
    tokens = [int(session.prefill(0, prompt, 0)[-1].argmax())]
    while len(tokens) < count:
        logits = session.decode(tokens[-1:], [len(prompt) + len(tokens)])
        tokens.append(int(logits[0].argmax()))
    return tokens
