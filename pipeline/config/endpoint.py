"""Settings of an OpenAI endpoint that a stage asks (pipeline/client)."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.config.section import Form, Seconds, Section, Tokens

Url = Annotated[str, Form(r"https?://[^\s/?#]+[^\s?#]*", "a URL as http://127.0.0.1:8000/v1")]
Variable = Annotated[str, Form(r"[A-Za-z_]\w{0,254}", "the name of an environment variable")]
Money = Annotated[float, Field(ge=0, le=10**9)]


class PriceConfig(Section):
    """What a million tokens cost, in the currency of the budget."""

    prompt: Money = Field(description="Price of a million tokens of prompts; 0 is free")
    completion: Money = Field(description="Price of a million tokens of answers; 0 is free")


class BudgetConfig(Section):
    """What all requests together may use; a request that could exceed it is not sent."""

    tokens: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        description="Most tokens of prompts and answers; null: no limit"
    )
    cost: Money | None = Field(
        description="Most money, in the currency of the prices; null: no limit"
    )


class EndpointConfig(Section):
    """A server with OpenAI's API, and how it is asked."""

    base_url: Url = Field(description="URL of its API, with /v1")
    model: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        description="The model's name there; null takes the only one that the server has"
    )
    key_variable: Variable | None = Field(
        description="Environment variable that holds the API key; null sends none"
    )
    concurrency: int = Field(ge=1, le=1_024, description="Requests in flight")
    timeout: Seconds = Field(description="Seconds until an answer is complete")
    retries: int = Field(
        ge=0, le=100, description="Further attempts after a busy or failing server's answer"
    )
    max_tokens: Tokens = Field(description="Most tokens of an answer")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        description="Temperature; null leaves it to the server"
    )
    price: PriceConfig
    budget: BudgetConfig

    @model_validator(mode="after")
    def _has_prices(self) -> Self:
        if self.budget.cost is not None and not (self.price.prompt or self.price.completion):
            raise ValueError(
                "budget.cost has no effect without prices: set price.prompt and price.completion, "
                "per million tokens"
            )
        return self
