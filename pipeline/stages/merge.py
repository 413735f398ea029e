"""Base and adapter → HF checkpoint, and the adapter in PEFT's form, proven by their logits.

A LoRA or DoRA is folded into the base; a fully fine-tuned model is written as it is. Either way
the proof is a chain of logits on fixed prompts, in float32: NeMo as trained = HF base with the
PEFT adapter = NeMo folded = HF folded. The files are read back and must hold exactly those weights,
rounded to the written precision. The effect of the rounding is measured from them as well.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.errors import ProofFailed
from pipeline.core.stage import NEMO, Stage
from pipeline.models.architecture import Shape, read_shape
from pipeline.models.files import clear, copy_assets, read_json
from pipeline.models.sources.fetching import provenance

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from pipeline.training.nemo.lora import AdapterLayer

    Tensors = Iterable[tuple[str, torch.Tensor]]

STAGE = Stage(
    version=2,
    libraries=NEMO,
    less_memory="put CUDA_VISIBLE_DEVICES= before the command, on a host with enough memory",
)


# Share of the unrounded model's information that the written one may lose. Rounding to bfloat16
# changes a weight by one part in 512 at most, which costs under 0.001 on random models and on real
# ones; that the written weights are the rounded ones is compared bit for bit. More means that
# config.json is wrong.
MOST_WRITTEN_LOSS = 0.01


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Write the tuned model as an HF folder into `out`, in config.model.dtype.

    Raises:
        ArtifactError: an input is of the wrong kind.
        ProofFailed: the logits of the written model differ from those of the trained one.
    """
    base = inputs["import"].require("nemo_checkpoint").path
    tuned = inputs["finetune"].require("nemo_adapter", "nemo_checkpoint")
    has_adapter = tuned.kind == "nemo_adapter"
    clear(out)

    from pipeline.models import hf_model
    from pipeline.models.logit_proof import ProofChain
    from pipeline.training.nemo import lora as nemo_adapters
    from pipeline.training.nemo import models as nemo
    from pipeline.training.nemo.session import nemo_session, on_gpu

    assets = (base if has_adapter else tuned.path) / nemo.ASSETS
    shape = read_shape(assets)
    with nemo_session():
        if has_adapter:
            model = nemo.open_checkpoint(base, adapter=tuned.path)
        else:
            model = nemo.open_checkpoint(tuned.path)
        chain = ProofChain(shape, gpu=on_gpu(), reference=partial(nemo.logits, model))
        if has_adapter:
            _write_adapter(
                config, shape, tuned.path, nemo_adapters.adapter_layers(model), out / "adapter",
                nemo.hf_tensors(model, shape),
            )  # fmt: skip
            hf_base = hf_model.model_of(assets, nemo.hf_tensors(model, shape, base=True))
            hf_base = hf_model.with_adapter(hf_base, out / "adapter")
            chain.require("hf_base_with_peft_adapter", partial(hf_model.logits, hf_base))
            del hf_base
            nemo_adapters.fold_adapter(model)
            chain.require("nemo_folded", partial(nemo.logits, model))
        merged = hf_model.model_of(assets, nemo.hf_tensors(model, shape))
        chain.require("hf_folded", partial(hf_model.logits, merged))
        del merged
        hf_model.write_weights(out, nemo.hf_tensors(model, shape), dtype=config.model.dtype)
        _require_written(out, nemo.hf_tensors(model, shape), config.model.dtype)
    _write_assets(config, assets, out)
    written = hf_model.load_model(out, dtype="float32")
    rounding = chain.require_near(
        "hf_written", partial(hf_model.logits, written), MOST_WRITTEN_LOSS
    )
    metrics = {
        "max_abs_logit_difference": chain.max_abs_difference,
        "rounding_max_abs_logit_difference": rounding.max_abs_difference,
        "rounding_loss": rounding.loss,
    }
    return Outcome("hf_checkpoint", metrics, {"as_trained_vs": chain.proof})


def _require_written(folder: Path, tensors: "Tensors", dtype: str) -> None:
    from pipeline.models import hf_model

    wrong = next(hf_model.unlike(folder, tensors, dtype=dtype), None)
    if wrong:
        raise ProofFailed(
            f"{folder}: {wrong} differs from the merged weight after writing; nothing was kept: "
            "run the same command again, and check the disk if it happens again"
        )


def _write_adapter(
    config: Config,
    shape: Shape,
    tuned: Path,
    layers: "list[AdapterLayer]",
    folder: Path,
    weights: "Tensors",
) -> None:
    from pipeline.models import hf_model
    from pipeline.training.nemo import lora as nemo_adapters

    method, settings = nemo_adapters.read_adapter(tuned)
    tensors = nemo_adapters.peft_tensors(shape, settings, layers)
    for name, tensor in weights:
        if name.removesuffix(".weight").rpartition(".")[2] in settings.modules_to_save:
            tensors[f"base_model.model.{name}"] = tensor
            if shape.tied:  # PEFT asks for both, and ties them
                tensors["base_model.model.lm_head.weight"] = tensor
    hf_model.write_adapter(
        folder,
        tensors,
        saved=settings.modules_to_save,
        tied=shape.tied,
        base=_base_name(config),
        rank=settings.rank,
        alpha=settings.alpha,
        rslora=settings.rslora,
        dora=method == "dora",
    )


def _base_name(config: Config) -> str:
    """The base model as others find it: its name on the hub, else its folder."""
    found = provenance(config.model.path, config.artifacts)
    if found and (source := str(found["source"])).startswith("hf://"):
        return source.removeprefix("hf://").partition("@")[0]
    return config.model.path.as_posix()


def _write_assets(config: Config, assets: Path, out: Path) -> None:
    """Write the configuration and tokenizer files, with the precision of the written weights."""
    copy_assets(assets, out)
    file = out / "config.json"
    content = read_json(file, "run `python -m pipeline stage=import` again")
    # Its name since transformers 4.56, and the earlier one that older runtimes read.
    content["dtype"] = content["torch_dtype"] = config.model.dtype
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
