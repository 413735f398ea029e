"""A large body costs the event loop little, whatever field it fills: others are served meanwhile.

bench/serving_refusals.py walks every field with every shape.
"""

import asyncio
import gc
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from bench.serving_refusals import MODEL, MOST_MS, ROUTES, SIZE, bodies, hold, shapes
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.openai.bodies import (
    MAX_STRINGS,
    SMALL_BYTES,
    BodyRefused,
    require_few_values,
    size_of,
)
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_encoders import by_path
from tests.unit.serving.fake_models import ListModel, say

# Each of these took seconds, or has the most values that are let through.
SHAPES = {
    "/v1/chat/completions": {
        "stop": ("few texts", "many texts"),
        "stop: [@]": ("text",),
        "logit_bias": ("few token names", "many token names", "few names"),
        "guided_grammar": ("words",),
        "guided_regex": ("text",),
        "guided_choice": ("few texts",),
        "guided_json": ("text", "few names"),
        "messages": ("few objects", "few texts"),
        'messages: [{"role": "user", "content": @}]': ("text", "words", "escapes"),
        "tools": ("few objects",),
        "model": ("text",),
        "odd": ("text",),
        "the body": ("few names", "many names", "few levels", "many lists", "long number"),
    },
    "/v1/completions": {"prompt": ("text", "few texts", "few numbers", "few fractions")},
    "/v1/embeddings": {"input": ("text", "few texts", "few numbers")},
    "/v1/score": {"text_1": ("text",), "text_2": ("text", "few texts", "many texts")},
    "/v1/rerank": {"query": ("text",), "documents": ("text", "few texts", "few objects")},
    "/v1/ranking": {"passages": ("few texts", "few objects", "many objects")},
    "/v1/messages": {"stop_sequences": ("few numbers", "few fractions")},
    "/v1/responses": {
        "stop": ("few numbers",),
        'input: [{"type": "reasoning", "summary": @}]': ("text", "words"),
    },
    "/tokenize": {"tools": ("few texts", "few numbers", "few objects"), "prompt": ("text",)},
    "/detokenize": {"tokens": ("few numbers", "few texts")},
    "/v1/load_lora_adapter": {"lora_name": ("text",), "lora_path": ("text",)},
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chat = Chat.load(make_model_folder(tmp_path_factory.mktemp("bodies"), "demo"))
    model = ListModel(say(chat, "Hello."), vocab_size=chat.vocab_size, max_seq_len=256)
    engine = BatchingEngine(model, max_input_len=192, max_queue=64, guides=Guides(chat))
    gc.collect()
    gc.freeze()  # as the server does when it is ready
    yield by_path(create_app(engine, chat, model=MODEL, slots=4), model=MODEL)
    gc.unfreeze()
    engine.close()


@pytest.mark.parametrize("path", SHAPES)
def test_a_large_body_does_not_hold_the_loop(app: Any, path: str) -> None:
    chosen = SHAPES[path]
    tried = set()

    def is_chosen(of: str, field: str, shape: str) -> bool:
        return of == path and shape in chosen.get(field, ())

    async def run() -> None:
        for body in bodies(SIZE, is_chosen):
            held = await hold(app, body)
            assert held.status < 500, (body.field, body.shape)
            assert held.milliseconds < 2 * MOST_MS, (body.field, body.shape)
            tried.add((body.field, body.shape))

    asyncio.run(run())
    assert len(tried) == sum(map(len, chosen.values()))


def test_every_field_is_walked_with_every_shape() -> None:
    small = list(bodies(4096))
    walked = {(body.path, body.field) for body in small}
    for path, (model, _) in ROUTES.items():
        assert walked >= {(path, field) for field in model.model_fields}
    assert len(small) == len(walked) * len(list(shapes(4096)))
    assert len({body.shape for body in small}) == len(list(shapes(4096)))


def test_small_values_in_each_shape_are_answered_or_refused(app: Any) -> None:
    """No shape is an error of the server."""

    async def run() -> None:
        for body in itertools.islice(bodies(256), 0, None, 11):
            held = await hold(app, body)
            assert held.status < 500, body

    asyncio.run(run())


def counted(text: str, most: int = 1000) -> None:
    require_few_values(text.encode().ljust(SMALL_BYTES + 1), most)


def test_values_are_counted_outside_of_texts() -> None:
    counted('{"a": "' + "[{," * 90_000 + r"\" \\" + '"}')
    counted("[" + ",".join(["1"] * 999) + "]")
    for text in ("[" + ",".join(["1"] * 1001) + "]", '"\\\\"' + "[" * 1001, '"\\"a"' + "{" * 1001):
        with pytest.raises(BodyRefused, match="more than 1000 values"):
            counted(text)
    with pytest.raises(BodyRefused, match=f"more than {MAX_STRINGS} strings"):
        counted('"",' * (MAX_STRINGS + 1), 10**9)
    require_few_values(b"[" * SMALL_BYTES, 0)  # small ones are parsed


def test_the_size_of_a_value_is_counted_up_to_a_limit() -> None:
    assert size_of({"a": ["bc", 1, None]}, 100) == (1 + 1) + (1 + 1) + (1 + 3) + (1 + 2)
    assert size_of(["x"] * 10**6, 10) > 10
    assert size_of({str(i): i for i in range(10**5)}, 10) > 10
    nested: Any = []
    for _ in range(10**5):
        nested = [nested]
    assert size_of(nested, 100) > 100
