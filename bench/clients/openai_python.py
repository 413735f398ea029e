"""OpenAI's Python client: python openai_python.py http://127.0.0.1:8000/v1 demo"""

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
ASKED = [{"role": "user", "content": "What does a domestic wire cost?"}]


class Fee(BaseModel):
    amount: int
    currency: Literal["USD", "EUR"]


answer = client.chat.completions.create(model=model, messages=ASKED, temperature=0, logprobs=True)
text = answer.choices[0].message.content
assert text
assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens - 1

with client.chat.completions.stream(
    model=model, messages=ASKED, temperature=0, stream_options={"include_usage": True}
) as stream:
    whole = stream.get_final_completion()
assert whole.choices[0].message.content == text
assert whole.usage == answer.usage

parsed = client.chat.completions.parse(model=model, messages=ASKED, response_format=Fee, seed=1)
assert isinstance(parsed.choices[0].message.parsed, Fee)

drawn = client.chat.completions.create(model=model, messages=ASKED, n=3, seed=1, max_tokens=8)
assert len({choice.index for choice in drawn.choices}) == 3

completion = client.completions.create(
    model=model, prompt="A wire costs", max_tokens=0, echo=True, logprobs=2
)
assert completion.choices[0].logprobs.token_logprobs[0] is None

chosen = client.chat.completions.create(
    model=model, messages=ASKED, extra_body={"nvext": {"guided_choice": ["yes", "no"]}}
)
assert chosen.choices[0].message.content in ("yes", "no")


def refusal(kind: type[openai.APIStatusError], **body: object) -> str:
    """The exception that OpenAI's client raises for the server's error."""
    try:
        client.chat.completions.create(**body)
    except kind as error:
        return error.body["message"]
    raise AssertionError(f"accepted, but should be refused: {body}")


assert "gpt-5" in refusal(openai.NotFoundError, model="gpt-5", messages=ASKED)
assert "temperature" in refusal(openai.BadRequestError, model=model, messages=ASKED, temperature=3)
assert "context length" in refusal(
    openai.BadRequestError, model=model, messages=ASKED, max_tokens=10**6
)
assert model in [listed.id for listed in client.models.list()]
print(json.dumps({"version": openai.__version__, "answer": text}))
