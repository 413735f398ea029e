"""Answers of a certain form: response_format, structured_outputs, and the older guided fields."""

import json
from typing import Any

from tests.unit.serving.behaviours.case import TEXT, Case, Check, Reply, ok, refused

SCHEMA = {
    "type": "object",
    "properties": {"cost": {"enum": [18, 19]}},
    "required": ["cost"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "fee", "schema": SCHEMA, "strict": True}}
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<fee>", "schema": SCHEMA, "end": "</fee>"}],
    "triggers": ["<fee>"],
}
TRIGGERED = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<fee"],
        "tags": [
            {
                "begin": "<fee>",
                "content": {"type": "json_schema", "json_schema": SCHEMA},
                "end": "</fee>",
            }
        ],
    },
}
COST = {"prompt": "Cost?"}
R = "400"


def fee(reply: Reply) -> bool:
    return set(json.loads(reply.text)) == {"cost"}


def one_of(*texts: str) -> Check:
    return lambda reply: ok(reply) and reply.text in texts


def asked(**value: Any) -> dict[str, Any]:
    return {"structured_outputs": value, "max_tokens": 30}


CASES = [
    Case("`json_schema`", {"response_format": FORMAT, "max_tokens": 30}, fee, nim="yes"),
    Case("`json_schema` in a stream", {"response_format": FORMAT, "stream": True,
         "max_tokens": 30}, fee, nim="yes"),
    Case("`json_schema` of completions", {**COST, "response_format": FORMAT, "max_tokens": 30}, fee,
         path=TEXT),
    Case("`json_schema` without a name", {"response_format": {"type": "json_schema",
         "json_schema": {"schema": SCHEMA}}, "max_tokens": 30}, fee, vllm=R,
         why="the name has no effect"),
    Case("`json_schema` without a schema", {"response_format": {"type": "json_schema"}},
         refused("response_format"), R, R, R),
    Case("`json_object`", {"response_format": {"type": "json_object"}, "max_tokens": 3}, ok,
         nim="yes"),
    Case("`response_format: text`", {"response_format": {"type": "text"}}, ok, nim="yes"),
    Case("an unknown format", {"response_format": {"type": "xml"}}, refused("response_format"),
         R, R, R),
    Case("`structural_tag` with structures", {"response_format": TAG, "max_tokens": 9}, ok),
    Case("`structural_tag` with triggered tags", {"response_format": TRIGGERED, "max_tokens": 9},
         ok),
    Case("`structural_tag` of completions", {**COST, "response_format": TAG, "max_tokens": 9}, ok,
         path=TEXT),
    Case("a tag that no trigger begins", {"response_format": {**TAG, "triggers": ["<b>"]}},
         refused("response_format", "no trigger"), R, R),
    Case("`structured_outputs.json`", asked(json=SCHEMA), fee),
    Case("`structured_outputs.json` as text", asked(json=json.dumps(SCHEMA)), fee),
    Case("`structured_outputs.json_object`", asked(json_object=True), ok),
    Case("`structured_outputs.regex`", asked(regex="[ab]{3}"), lambda r: set(r.text) <= set("ab")),
    Case("`structured_outputs.choice`", asked(choice=["yes", "no"]), one_of("yes", "no")),
    Case("`structured_outputs.grammar`", asked(grammar='root ::= "yes" | "no"'),
         one_of("yes", "no")),
    Case("`structured_outputs.structural_tag`", {"max_tokens": 9, "structured_outputs":
         {"structural_tag": json.dumps(TAG)}}, ok),
    Case("`structured_outputs` of completions", {**COST, **asked(choice=["yes", "no"])},
         one_of("yes", "no"), path=TEXT),
    Case("`structured_outputs` in a stream", {**asked(choice=["yes", "no"]), "stream": True},
         one_of("yes", "no")),
    Case("two kinds at once", asked(json=SCHEMA, regex="a"), refused("structured_outputs"), R, R),
    Case("no kind", asked(), refused("structured_outputs"), R, R),
    Case("`choice: []`", asked(choice=[]), refused("structured_outputs"), R, R),
    Case("an unknown kind", asked(xml="a"), refused("structured_outputs"), R, R),
    Case("a regex that is none", asked(regex="("), refused("structured_outputs"), R, R),
    Case("a grammar that is none", asked(grammar="a ::= ("), refused("structured_outputs"), R, R),
    Case("a schema that is none", asked(json={"type": "nothing"}), refused("structured_outputs"),
         R, R),
    Case("`disable_any_whitespace`", asked(json=SCHEMA, disable_any_whitespace=True), fee),
    Case("`whitespace_pattern`", asked(json=SCHEMA, whitespace_pattern=" ?"), fee),
    Case("`disable_additional_properties`",
         asked(json={k: v for k, v in SCHEMA.items() if k != "additionalProperties"},
               disable_additional_properties=True), fee),
    Case("`guided_json`", {"guided_json": SCHEMA, "max_tokens": 30}, fee,
         vllm="removed in 0.12", nim="yes"),
    Case("`guided_regex`", {"guided_regex": "[ab]{3}", "max_tokens": 9},
         lambda r: set(r.text) <= set("ab"), vllm="removed in 0.12", nim="yes"),
    Case("`guided_choice`", {"guided_choice": ["yes", "no"]}, one_of("yes", "no"),
         vllm="removed in 0.12", nim="yes"),
    Case("`guided_grammar`", {"guided_grammar": 'root ::= "yes"', "max_tokens": 9}, one_of("yes"),
         vllm="removed in 0.12", nim="yes"),
    Case("`nvext.guided_choice`", {"nvext": {"guided_choice": ["yes", "no"]}}, one_of("yes", "no"),
         vllm="ignored", nim="yes"),
    Case("an unknown field of `nvext`", {"nvext": {"guided_xml": ""}}, refused("nvext.guided_xml"),
         R, "ignored", R),
    Case("`response_format` beside `structured_outputs`",
         {"response_format": FORMAT, "structured_outputs": {"regex": "a"}},
         refused("structured_outputs", "only one"), R, R),
    Case("`ignore_eos` with a form", {"ignore_eos": True, "guided_choice": ["a"]},
         refused("ignore_eos"), R, "yes", why="the form says where the answer ends"),
]  # fmt: skip
