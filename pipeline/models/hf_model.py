"""HF causal language models: open, read and write them, without running code from their folder.

model = load_model(folder, dtype="float32")    # evaluation mode, on the GPU if there is one
model_of(folder, tensors)                       # the same from weights in memory
with_adapter(model, adapter_folder)             # with a PEFT adapter on it
logits(model, ids)                              # [tokens, vocabulary], float32, on the CPU
greedy(model, ids, max_new_tokens=32, stop_ids=chat.stop_ids)
WeightReader(folder).tensor(name)               # one tensor of a safetensors checkpoint
write_weights(folder, tensors, dtype=...)       # safetensors, in shards where large
write_adapter(folder, tensors, ...)             # LoRA or DoRA in the PEFT library's form
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.config_forms import plain_config
from pipeline.models.files import (
    WEIGHTS,
    WEIGHTS_INDEX,
    check_no_state,
    read_json,
    tensor_shapes,
    weight_files,
)
from pipeline.models.pickles import only_plain_pickles

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Several threads write shards, one each, since a single thread does not keep a disk busy.
_SHARD_BYTES = 1_500_000_000
_WRITERS = 4


def load_model(folder: Path, *, dtype: str, quantized: bool = False) -> PreTrainedModel:
    """An HF causal language model in evaluation mode, on the GPU if there is one.

    dtype: of the weights in memory: "float32", "bfloat16" or "float16". quantized: whether it has
    the state of ModelOpt, which reads it wherever it finds it once it is imported.
    Reads safetensors only, runs no code from the folder and never uses the network.

    Raises:
        DataError: there is such a state in the folder of another model.
        pickle.UnpicklingError: the state holds more than tensors and plain values.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not quantized:
        check_no_state(folder)
    with only_plain_pickles():
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=_config(folder),
            dtype=getattr(torch, dtype),
            # Straight to the GPU: the host never holds the model.
            device_map={"": "cuda"} if torch.cuda.is_available() else None,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    return _with_caps(model).eval()


def _config(folder: Path) -> Any:
    """transformers' configuration of a folder, in whichever form config.json is."""
    from transformers import AutoConfig

    file = folder / "config.json"
    content = plain_config(file, read_json(file, "use the folder of an HF model"))
    return AutoConfig.for_model(**content)


def model_of(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> PreTrainedModel:
    """The model that `folder`/config.json describes with these weights, in float32.

    tensors: HF names and weights, all of them; a tied output layer follows its embedding.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    parameters = dict(model.named_parameters())
    for name, tensor in tensors:
        parameters.pop(name).detach().copy_(tensor)
    if parameters:
        raise KeyError(f"no weights were given for {', '.join(parameters)}")
    return _with_caps(model).eval()


def _with_caps(model: Any) -> Any:
    """The model, with an attention that caps scores if its family does: transformers' default one
    leaves the cap out without a word."""
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def with_adapter(model: PreTrainedModel, folder: Path) -> Any:
    """The model with the PEFT adapter in `folder` applied, in evaluation mode."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder, local_files_only=True).eval()


def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits after each of the token ids: [tokens, vocabulary], float32, on the CPU."""
    import torch

    with torch.inference_mode():
        output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return output.logits[0].float().cpu()


def greedy(
    model: Any, ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]
) -> list[int]:
    """The likeliest continuation, token by token, up to and with a stop token."""
    import torch
    from transformers import GenerationConfig

    tokens = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            # A configuration of its own: the model's may ask for sampling or for penalties.
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=list(stop_ids),
                pad_token_id=stop_ids[0],
            ),
            use_model_defaults=False,
        )
    return output[0, len(ids) :].tolist()


class WeightReader:
    """The tensors of a safetensors checkpoint, read when asked for, from mapped files.

    >>> with WeightReader(folder) as source:
    ...     source.tensor("model.norm.weight")
    """

    def __init__(self, folder: Path) -> None:
        self._files = {name: file for file in weight_files(folder) for name in tensor_shapes(file)}
        self._stack = ExitStack()

    def __enter__(self) -> WeightReader:
        from safetensors import safe_open

        opened = {
            file: self._stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            for file in set(self._files.values())
        }
        self._open = {name: opened[file] for name, file in self._files.items()}
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def tensor(self, name: str) -> torch.Tensor:
        return self._open[name].get_tensor(name)


def unlike(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], *, dtype: str
) -> Iterator[str]:
    """Names of tensors that differ in any bit from what `write_weights` was given, that are missing
    or that were never given."""
    import torch

    with WeightReader(folder) as written:
        left = set(written.names)
        for name, tensor in tensors:
            if name not in left:
                yield name
                continue
            left.remove(name)
            stored = written.tensor(name).to(tensor.device)
            if not torch.equal(stored, tensor.detach().to(getattr(torch, dtype))):
                yield name
        yield from sorted(left)


def write_adapter(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    base: str,
    rank: int,
    alpha: int,
    rslora: bool,
    dora: bool,
    saved: Sequence[str] = (),
    tied: bool = False,
) -> None:
    """Write a LoRA or DoRA adapter in the PEFT library's form.

    tensors: by PEFT's names (base_model.model.<module>.lora_A.weight ...), each module's A, B and
    what belongs to them, and the weights of the modules that were trained whole. base: the name of
    the base model, for the record. saved: names of those modules. tied: the output layer is the
    embedding.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    suffix = ".lora_A.weight"
    modules = {n.removesuffix(suffix).rpartition(".")[2] for n in tensors if n.endswith(suffix)}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        lora_dropout=0.0,
        use_dora=dora,
        # Trained biases are loaded only when the configuration says that there are some.
        bias="all" if any(name.endswith(".bias") for name in tensors) else "none",
        # The same in every layer, as NeMo's checkpoints have them.
        target_modules=sorted(modules),
        modules_to_save=list(saved) or None,
        # Else an embedding that was trained would leave the output layer as it was.
        ensure_weight_tying=tied and bool(saved),
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    _sort_sets(folder / "adapter_config.json")
    # Fused layers share their A; safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(copies, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _sort_sets(file: Path) -> None:
    """Write a JSON file of PEFT again: it writes sets, in an order that each process chooses."""
    content = json.loads(file.read_text())
    ordered = {k: sorted(v) if isinstance(v, list) else v for k, v in content.items()}
    file.write_text(json.dumps(ordered, indent=2, sort_keys=True) + "\n")


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], *, dtype: str | None
) -> None:
    """Write model.safetensors, or shards of 1.5 GB and their index, a few of them at a time.

    tensors: those on a GPU are copied shard by shard, so that the host never holds the model.
    dtype: the type that all are written in; None keeps the type of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[Path, list[str]]] = []
    writing: deque[Future[None]] = deque()
    total = 0

    with ThreadPoolExecutor(_WRITERS) as pool:
        for shard, size in _shards(tensors, dtype):
            if len(writing) == _WRITERS:
                writing.popleft().result()
            file = folder / f"shard-{len(parts):05d}.tmp"
            parts.append((file, list(shard)))
            total += size
            writing.append(pool.submit(_write_shard, file, shard, dtype))
            del shard  # only the thread holds it now
        for written in writing:
            written.result()
    if len(parts) == 1:
        parts[0][0].replace(folder / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, (file, names) in enumerate(parts, start=1):
        final = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        file.replace(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _shards(
    tensors: Iterable[tuple[str, torch.Tensor]], dtype: str | None
) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """Tensors by name, and their bytes, as full as a shard may be."""
    shard: dict[str, torch.Tensor] = {}
    held = 0
    for name, tensor in tensors:
        size = tensor.numel() * (bytes_of(dtype) if dtype else tensor.element_size())
        if shard and held + size > _SHARD_BYTES:
            yield shard, held
            shard, held = {}, 0
        shard[name] = tensor
        held += size
    yield shard, held


def _write_shard(file: Path, shard: dict[str, torch.Tensor], dtype: str | None) -> None:
    import torch
    from safetensors.torch import save_file

    written = {}
    for name, tensor in shard.items():
        wanted = getattr(torch, dtype) if dtype else tensor.dtype
        # Round before the copy to the host: torch copies first when asked for both at once.
        copy = tensor.detach().to(wanted).cpu().contiguous()
        # A copy, as safetensors refuses tensors that share memory.
        written[name] = copy.clone() if copy.data_ptr() == tensor.data_ptr() else copy
    shard.clear()
    save_file(written, file, metadata={"format": "pt"})


def bytes_of(dtype: str) -> int:
    """Bytes of an element of a torch type, by its name."""
    import torch

    return int(getattr(torch, dtype).itemsize)
