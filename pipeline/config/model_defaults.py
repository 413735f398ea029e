"""Defaults that follow from the model: lengths from its positions, learning rates from its size.
Steps follow from the settings: they are given, or epochs are, or there are 500; a preference
objective has two epochs.

In conf/ they are null. They are filled in when a configuration is composed or read, from the
model's config.json, so that `stage=config` prints them and a manifest records them.

Sources of the learning rates. LoRA: NeMo's recipes (1e-4 for Llama 3 8B and 70B), QLoRA
(arXiv:2305.14314, table 9: 2e-4 to 13 B, 1e-4 above), and LoRA without Regret (Schulman et al.,
2025: about ten times the rate of a full fine-tune, larger for smaller models). Full fine-tuning:
SmolLM2 (arXiv:2502.02737 and the alignment handbook: 1e-3 for 135 M and 360 M, 3e-4 for 1.7 B),
Alpaca and Llama 2 (arXiv:2307.09288: 2e-5), Tülu 3 (arXiv:2411.15124: 5e-6 for 8 B, 2e-6 for 70 B).
Preference objectives take a share of these (pipeline/config/finetune.py).
Where they differ the lower ones are taken: a run learns somewhat more slowly, and none diverges.
No recipe has models of a few million parameters: their rates are those of the bundled model.

Preference tuning has one epoch in Tülu 3's, SimPO's and KTO's recipes and three in Zephyr's
(arXiv:2310.16944). More passes over few pairs push both answers away.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.finetune import OBJECTIVES

LONGEST = 4096  # tokens of a row and of a served sequence, where the model has as many
ANSWER = 256  # tokens of an answer
PROMPT_SHARE = 4  # a quarter of a served sequence is left for the answer


class Rates(NamedTuple):
    """Peak learning rates of models up to a hidden size.

    adapter, full: of LoRA and DoRA, and of a full fine-tune. fall: the peak is so many times the
    rate at the end; ten as in SmolLM2's and Llama 3's recipes.
    """

    hidden: int
    adapter: float
    full: float
    fall: int = 10


RATES = (
    Rates(256, 5e-3, 2e-3, fall=20),  # a few million parameters
    Rates(1024, 5e-4, 1e-4),  # to about 0.5 B
    Rates(2560, 2e-4, 2e-5),  # 1 to 3 B
    Rates(6144, 1e-4, 1e-5),  # 7 to 34 B
    Rates(2**31, 1e-4, 5e-6),  # 70 B and more
)
STEPS = 500  # where neither steps nor epochs are given
EPOCHS = 2.0  # the same of preference objectives

Tree = dict[str, Any]


def fill(tree: Tree) -> Tree:
    """The tree with values in place of the nulls that the model decides."""
    sections = ("model", "prepare", "finetune", "evaluate", "engine", "benchmark")
    if not all(isinstance(tree.get(name), Mapping) for name in sections):
        return tree  # which is refused when it is validated
    tree = {**tree, **{name: dict(tree[name]) for name in sections}}
    sizes = _sizes(tree["model"].get("path"))
    engine, training = tree["engine"], tree["finetune"]
    _default(tree["prepare"], "max_length", _longest(sizes))
    answer = _fill_lengths(engine, sizes)
    _default(tree["evaluate"], "max_new_tokens", max(1, min(ANSWER, answer)))
    _default(tree["benchmark"], "max_tokens", tree["evaluate"]["max_new_tokens"])
    objective = OBJECTIVES.get(str(training.get("objective")), OBJECTIVES["sft"])
    supervised = rate(training.get("method"), sizes.get("hidden_size"))
    _default(training, "learning_rate", supervised * objective.rate)
    if isinstance(preference := training.get("preference"), Mapping):
        training["preference"] = {**preference}
        _default(training["preference"], "beta", objective.beta)
    fall = _rates(sizes.get("hidden_size")).fall
    _default(training, "min_learning_rate", _number(training["learning_rate"], 0.0) / fall)
    if training.get("epochs") is None and training.get("max_steps") is None:
        supervises = objective.rows == "answers"
        training |= {"max_steps": STEPS} if supervises else {"epochs": EPOCHS}
    return tree


def register_functions() -> None:
    """Make known what files of conf/ may call beside OmegaConf's own functions:

    max_steps: ${supervised:170}            # null with a preference objective
    global_batch_size: ${supervised:32,8}   # 8 with one
    """
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("supervised"):
        OmegaConf.register_new_resolver("supervised", _supervised)


def _supervised(value: Any, otherwise: Any = None, *, _root_: Any) -> Any:
    return value if _root_.finetune.objective == "sft" else otherwise


def fill_engine(engine: Tree, folder: str) -> None:
    """Fill in the lengths of an engine section, in place, from a model's folder."""
    _fill_lengths(engine, _sizes(folder))


def _fill_lengths(engine: Tree, sizes: Mapping[str, int]) -> int:
    """The tokens of a served sequence that are left for the answer."""
    longest = _longest(sizes)
    _default(engine, "max_seq_len", longest)
    served = int(_number(engine["max_seq_len"], longest))
    answer = served // PROMPT_SHARE
    _default(engine, "max_input_len", served - answer)
    return answer


def _longest(sizes: Mapping[str, int]) -> int:
    return min(LONGEST, sizes.get("max_position_embeddings", LONGEST))


def rate(method: object, hidden: int | None) -> float:
    """The peak learning rate for a method and a hidden size; None: as for 7 B parameters."""
    found = _rates(hidden)
    return found.full if method == "sft" else found.adapter


def _rates(hidden: int | None) -> Rates:
    return next(rates for rates in RATES if (hidden or 4096) <= rates.hidden)


def _number(given: Any, instead: float) -> float:
    """A value as a number within reason; what is no number is refused later."""
    try:
        number = float(given)
    except (TypeError, ValueError, OverflowError):
        return instead
    return number if 0 < number < 2**31 else instead


def _default(section: Tree, key: str, value: Any) -> None:
    if section.get(key) is None:
        section[key] = value


def _sizes(folder: object) -> dict[str, int]:
    """Sizes in a model's config.json; {} where it cannot be read, which a stage will say."""
    if not isinstance(folder, str) or not folder or "\0" in folder:
        return {}
    try:
        found = json.loads((Path(folder) / "config.json").read_text())
        names = ("max_position_embeddings", "hidden_size")
        return {n: found[n] for n in names if type(found.get(n)) is int and 8 <= found[n] < 2**31}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
