"""HF folder → NeMo 2.0 checkpoint, proven by its logits.

The folder is checked before anything heavy is imported. The proof opens the new checkpoint, as a
later stage will, and compares its logits with those that transformers computes from the source.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.stage import NEMO, Stage
from pipeline.models.checks import check_folder
from pipeline.models.families import check_stage
from pipeline.models.files import clear
from pipeline.models.sources.fetching import provenance

STAGE = Stage(
    version=2,
    libraries=NEMO,
    less_memory="put CUDA_VISIBLE_DEVICES= before the command, on a host with enough memory",
)


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Write config.model.path as a NeMo 2.0 checkpoint into `out`.

    Raises:
        DataError: the folder cannot be imported, or its logits are not finite.
        ProofFailed: the checkpoint's logits differ from its source's.
    """
    source = config.model.path
    shape = check_folder(source)
    check_stage(shape.family, "import")
    clear(out)

    from pipeline.models import hf_model
    from pipeline.models.logit_proof import ProofChain
    from pipeline.training.nemo import models as nemo
    from pipeline.training.nemo.session import nemo_session, on_gpu

    with nemo_session():
        nemo.import_hf(source, out)
        # The checkpoint has this machine's precision, so the source is rounded in the same way.
        source_model = hf_model.load_model(source, dtype=nemo.checkpoint_dtype()).float()
        logits = partial(hf_model.logits, source_model)
        chain = ProofChain(shape, gpu=on_gpu(), reference=logits, name=str(source))
        del source_model, logits
        model = nemo.open_checkpoint(out)
        imported = chain.require("nemo_reopened", partial(nemo.logits, model))
    metrics = {
        "parameters": float(shape.parameters),
        "max_abs_logit_difference": imported.max_abs_difference,
        "loss": imported.loss,
    }
    proof = {"shape": asdict(shape), "source_vs": chain.proof}
    if source_of := provenance(source, config.artifacts):
        proof["source"] = source_of
    return Outcome("nemo_checkpoint", metrics, proof)
