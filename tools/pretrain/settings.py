"""What the bundled base model is made with: the defaults are those that made it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.config.section import Count, Place, Rate, Section, Share, explain
from pipeline.core.errors import ConfigError
from tools.pretrain.corpus import PARTS

# What a model to train on from has already.
SHAPE = (
    *("vocabulary", "hidden_size", "layers", "heads", "key_value_heads"),
    *("ffn_size", "max_positions"),
)


class Settings(Section):
    """A small Llama from nothing, with its tokenizer. Each field is an option: --hidden-size 64."""

    start: Place | None = Field(
        None, description="model folder to train on from, with its tokenizer and shape"
    )
    seed: int = Field(1, ge=0, description="of tokenizer, text, first weights and order of rows")
    generator: Place = Field(
        Path("data/general/generate.py"), description="Python file that writes the text"
    )
    vocabulary: int = Field(2048, ge=300, description="tokens of the byte-level BPE")
    hidden_size: Count = Field(256, description="a multiple of heads")
    layers: Count = Field(4, description="decoder layers")
    heads: Count = Field(8, description="of queries; a multiple of key_value_heads")
    key_value_heads: Count = Field(4, description="of keys and values")
    ffn_size: Count = Field(768, description="width of the feed-forward layers")
    max_positions: Count = Field(512, description="longest sequence of the model, in tokens")
    steps: Count = Field(5000, description="of the optimizer")
    batch_size: Count = Field(128, description="rows a step")
    micro_batch_size: Count = Field(128, description="rows at once; fewer take less memory")
    sequence_length: Count = Field(256, description="tokens of a row")
    learning_rate: Rate = Field(1.5e-3, description="at its peak; it ends at a tenth")
    warmup_steps: int = Field(200, ge=0, description="steps until the peak")
    weight_decay: float = Field(0.1, ge=0, le=1, description="of AdamW")
    conversation_share: Share = Field(0.5, description="of the tokens; the rest are paragraphs")
    corpus_tokens: Count = Field(
        40_000_000, description="different tokens to make; steps beyond see them again"
    )
    least_occurrences: int = Field(
        1000, ge=0, description="of each token in the text; rare ones get documents of their own"
    )
    checkpoint_every: Count = Field(1000, description="steps between checkpoints to resume from")


def parse(arguments: Sequence[str]) -> tuple[Settings, Path]:
    """Settings and the output folder of a command line.

    Raises:
        ConfigError: what is wrong, and what is allowed. SystemExit: --help, or no such option.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain",
        description="Make a small base model from nothing: OUT/hf is its folder.",
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    for name, field in Settings.model_fields.items():
        about = f"{field.description} ({field.default})"
        parser.add_argument(_option(name), default=field.default, metavar="…", help=about)
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise ConfigError("; ".join(map(explain, error.errors()))) from None
    check(settings)
    return settings, out


def check(settings: Settings) -> None:
    """Refuse sizes that do not fit one another, before anything heavy is imported.

    Raises:
        ConfigError: names the fields and what is allowed.
    """
    if settings.start:
        fields = Settings.model_fields
        for name in SHAPE:
            if getattr(settings, name) != fields[name].default:
                raise ConfigError(
                    f"{name}={getattr(settings, name)} has no effect with start={settings.start}, "
                    "which has a shape and a tokenizer: leave one of them out"
                )
    for whole, part in (
        ("hidden_size", "heads"),
        ("heads", "key_value_heads"),
        ("batch_size", "micro_batch_size"),
    ):
        if getattr(settings, whole) % getattr(settings, part):
            raise ConfigError(
                f"{whole}={getattr(settings, whole)} must be a multiple of "
                f"{part}={getattr(settings, part)}"
            )
    if settings.sequence_length > settings.max_positions:
        raise ConfigError(
            f"sequence_length={settings.sequence_length} is over "
            f"max_positions={settings.max_positions}: lower it"
        )
    if settings.warmup_steps >= settings.steps:
        raise ConfigError(
            f"warmup_steps={settings.warmup_steps} must be below steps={settings.steps}"
        )
    needed = PARTS * (settings.sequence_length + 1)
    if settings.corpus_tokens < needed:
        raise ConfigError(f"corpus_tokens={settings.corpus_tokens} is under {needed}: raise it")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
