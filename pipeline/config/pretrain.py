"""Settings of stage=pretrain: a tiny base model from nothing, with its tokenizer."""

from pydantic import Field

from pipeline.config.section import Place, Positive, Rate, Section, Share


class PretrainConfig(Section):
    """A tiny base model from nothing, with its tokenizer."""

    generator: Place = Field(description="Script that generates the pretraining text")
    vocabulary: int = Field(ge=300, description="Entries of the tokenizer")
    hidden_size: Positive = Field(description="Width of the model")
    layers: Positive = Field(description="Transformer layers")
    heads: Positive = Field(description="Attention heads")
    key_value_heads: Positive = Field(description="Key-value heads")
    ffn_size: Positive = Field(description="Width of the feed-forward layers")
    max_positions: Positive = Field(description="Tokens that the model can attend to")
    steps: Positive = Field(description="Optimizer steps")
    batch_size: Positive = Field(description="Rows of a step")
    micro_batch_size: Positive = Field(description="Rows that are computed at once")
    sequence_length: Positive = Field(description="Tokens of a row")
    learning_rate: Rate = Field(description="Peak learning rate")
    warmup_steps: int = Field(ge=0, description="Steps until the peak learning rate")
    weight_decay: float = Field(ge=0, le=1, description="Weight decay of AdamW")
    conversation_share: Share = Field(description="Share of the text that is conversations")
    corpus_tokens: Positive = Field(
        description="Different tokens to generate; steps beyond them repeat the text"
    )
    checkpoint_every: Positive = Field(description="Steps between checkpoints")
