"""Anthropic's Python client: python anthropic_messages.py http://127.0.0.1:8000/v1 demo"""

import json
import sys

import anthropic

url, model = sys.argv[1:]
client = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0)
ASKED = [{"role": "user", "content": "What does a domestic wire cost?"}]
FEE = {
    "name": "fee",
    "description": "The fee of a transfer",
    "input_schema": {
        "type": "object",
        "properties": {"wire": {"enum": ["domestic", "foreign"]}},
        "required": ["wire"],
        "additionalProperties": False,
    },
}


def text_of(blocks: list) -> str:
    return "".join(block.text for block in blocks if block.type == "text")


answer = client.messages.create(model=model, max_tokens=60, messages=ASKED, system="Be brief.")
assert answer.content
assert answer.usage.output_tokens > 0
with client.messages.stream(
    model=model, max_tokens=60, messages=ASKED, system="Be brief."
) as stream:
    text = "".join(stream.text_stream)
    whole = stream.get_final_message()
assert text_of(whole.content) == text_of(answer.content)
assert whole.usage.output_tokens == answer.usage.output_tokens
assert text == text_of(answer.content)

counted = client.messages.count_tokens(model=model, messages=ASKED, system="Be brief.")
assert counted.input_tokens == answer.usage.input_tokens

try:
    called = client.messages.create(
        model=model, max_tokens=100, messages=ASKED, tools=[FEE], tool_choice={"type": "any"}
    )
    (call,) = called.content
    assert call.input["wire"] in ("domestic", "foreign")
    assert called.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "18 USD"}
    turns = [
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(
        model=model, max_tokens=60, messages=[*ASKED, *turns], tools=[FEE]
    ).content
    tools = True
except anthropic.BadRequestError as error:  # of a model whose template has no tools
    if "does not support tools" not in error.body["error"]["message"]:
        raise
    tools = False

try:
    client.messages.create(model="claude", max_tokens=5, messages=ASKED)
    refused = None
except anthropic.NotFoundError as error:
    refused = error.body["error"]["type"]
assert refused == "not_found_error"
print(json.dumps({"version": anthropic.__version__, "tools": tools}))
