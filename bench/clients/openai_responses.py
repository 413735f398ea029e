"""OpenAI's Python client, Responses API: python openai_responses.py http://…/v1 demo"""

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
ASKED = "What does a domestic wire cost?"


class Fee(BaseModel):
    currency: Literal["USD", "EUR"]


answer = client.responses.create(model=model, input=ASKED, temperature=0, max_output_tokens=60)
assert answer.output
with client.responses.stream(
    model=model, input=ASKED, temperature=0, max_output_tokens=60
) as stream:
    events = list(stream)
    whole = stream.get_final_response()
assert whole.output_text == answer.output_text
assert whole.usage.output_tokens == answer.usage.output_tokens
assert events[-1].type in ("response.completed", "response.incomplete")

parsed = client.responses.parse(model=model, input=ASKED, text_format=Fee)
assert parsed.output_parsed.currency in ("USD", "EUR")

counted = client.responses.input_tokens.count(model=model, input=ASKED)
assert counted.input_tokens == answer.usage.input_tokens
try:
    client.responses.create(model=model, input=ASKED, background=True)
    refused = None
except openai.BadRequestError as error:
    refused = error.body["param"]
assert refused == "background"
print(json.dumps({"version": openai.__version__, "answer": answer.output_text}))
