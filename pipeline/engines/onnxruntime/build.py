"""ONNX Runtime: a CPU engine from an HF folder, and its comparison with PyTorch.

The engine is a folder of ONNX Runtime GenAI (genai_config.json, model.onnx), built by its model
builder, so that `onnxruntime_genai.Model` can open it too; session.py runs it here.
"""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError
from pipeline.core.import_blocking import absent, unless_found
from pipeline.engines.onnxruntime.session import GENAI_CONFIG, GRAPH, DecoderSession
from pipeline.models.architecture import read_shape
from pipeline.models.families import FAMILIES

if TYPE_CHECKING:
    import torch

    from pipeline.engines.record import Probes

# Weights in blocks of 32 with one scale each; activations as 8-bit integers in matrix products.
BLOCK_SIZE = 32
INT8_ACCURACY = 4


def build(model: Path, out: Path, precision: str, scratch: Path) -> Path:
    """Write the engine of an HF folder into `out`; returns the folder of the same graph in float32.

    Args:
        precision: fp32; int8 (every linear layer, weight-only blocks); int4 (k-quant, with the most
            sensitive layers in int8, as llama.cpp chooses them).
        scratch: a folder for the builder's temporary files.

    Raises:
        DataError: the builder does not support the architecture or cannot read the weights.
    """
    # transformers uses sklearn only for assisted generation. With pandas and scipy it is half of
    # the builder's import time.
    with _quiet() as said, absent(*unless_found("sklearn")):
        from onnxruntime_genai.models.builder import create_model

        # float32 first: int8 is made of it, and it proves what the builder makes of the model.
        exact = out if precision == "fp32" else scratch / "fp32"
        options: dict[str, Any] = {"hf_remote": False, "hf_token": "false"}
        int4 = {"int4_algo_config": "k_quant_mixed", "int4_block_size": BLOCK_SIZE}
        source, cache = _as_the_builder_reads(model, scratch), scratch / "cache"
        try:
            create_model(None, str(source), str(exact), "fp32", "cpu", str(cache), **options)
            if precision == "int8":
                _quantize_to_int8(exact, out)
            elif precision == "int4":
                options |= int4
                create_model(None, str(source), str(out), "int4", "cpu", str(cache), **options)
        except (NotImplementedError, KeyError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a full disk is not the model's fault
            tail = " ".join(said.getvalue().split()[-30:])
            raise DataError(
                f"{model} cannot become an ONNX Runtime engine ({error}; {tail}): use a Llama, "
                "Qwen2 or Mistral model in HF safetensors, or engine=trtllm or engine=vllm"
            ) from error
    return exact


def _as_the_builder_reads(model: Path, scratch: Path) -> Path:
    """The folder for the builder, with settings where the builder looks for them.

    It looks for `original_max_position_embeddings` in rope_scaling with hasattr, which fails for a
    dict. It then uses the extended context as the original one, and every frequency is wrong. At
    the top level of config.json it finds the value. Of the names that families have for the
    epsilon of their norms it knows `rms_norm_eps` alone, and takes 1e-6 for the others.
    """
    config = json.loads((model / "config.json").read_text())
    changes = {}
    if original := (config.get("rope_scaling") or {}).get("original_max_position_embeddings"):
        changes["original_max_position_embeddings"] = original
    if (epsilon := _other_epsilon(model)) is not None:
        changes["rms_norm_eps"] = epsilon
    if not changes:
        return model
    folder = scratch / "source"
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def _other_epsilon(model: Path) -> float | None:
    """The epsilon of a family that has another name for it."""
    try:
        shape = read_shape(model)
    except DataError:  # of no family of the chain
        return None
    return None if FAMILIES[shape.family].keys.norm_eps == "rms_norm_eps" else shape.norm_eps


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
    reference: "torch.Tensor", session: DecoderSession, probes: "Probes"
) -> dict[str, float]:
    """Compare an engine's predictions with PyTorch's, float32.

    reference: PyTorch's logits at the probes' positions, one below the other. probes: rows of
    token ids, and the positions in each that predict the tokens of answers.

    Returns:
        loss, kl, information, agreement: see models/divergence.py.
        same_answers: share of the rows at whose every position both prefer the same token.
        cache_loss: of the last row's predictions, token by token with the cache, against those of
        the engine itself that read the row at once.
    """
    import torch

    from pipeline.models.divergence import divergence

    logits = torch.cat([torch.from_numpy(session.prefill(0, ids, 0)[at]) for ids, at in probes])
    found = divergence(reference, logits)
    same = (reference.argmax(-1) == logits.argmax(-1)).split([len(at) for _, at in probes])
    ids, _ = probes[-1]
    whole = torch.from_numpy(session.prefill(0, ids, 0))
    steps = [session.prefill(0, ids[:1], 0)[-1].copy()]
    steps += [session.decode([ids[n]], [n + 1])[0].copy() for n in range(1, len(ids))]
    stepwise = divergence(whole, torch.stack([torch.from_numpy(step) for step in steps]))
    return {
        "loss": found.loss,
        "kl": found.kl,
        "information": found.information,
        "agreement": found.agreement,
        "positions": float(found.positions),
        "same_answers": sum(bool(row.all()) for row in same) / len(probes),
        "cache_loss": stepwise.loss,
    }
