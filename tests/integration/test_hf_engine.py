"""An HF folder served as it is, by PyTorch in a process of its own: answers, adapters, vectors."""

import asyncio
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from pipeline.config.engine import EngineConfig
from pipeline.engines.base import Sampling
from pipeline.engines.opening import describe, open_engine
from pipeline.models import hf_model
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from pipeline.serving.app import create_app
from tests.unit.engines.hf.test_session import make_adapter, make_model
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask

SPECULATIVE = "engine.speculative=prompt_lookup"


@pytest.fixture(scope="module")
def settings() -> EngineConfig:
    engine = compose(["engine=hf", "engine.lora_rank=4", "engine.max_batch_size=3", SPECULATIVE])
    engine = engine["engine"]
    return EngineConfig.model_validate(engine)


def test_answers_and_adapters_are_those_of_transformers(
    tmp_path: Path, settings: EngineConfig
) -> None:
    folder = make_model(tmp_path / "model")
    adapter = make_adapter(tmp_path / "adapter", folder, 1)
    served = open_engine(folder, max_queue=9, description=describe(folder, settings))
    engine, chat = served.engine, served.chat
    assert isinstance(chat, Chat)
    prompt = chat.prompt([{"role": "user", "content": "What does it cost?"}])

    async def read(name: str | None) -> list[int]:
        how = Sampling(16, temperature=0, stop_ids=frozenset(chat.stop_ids), adapter=name)
        return [token.id async for tokens in engine.generate(prompt, how) for token in tokens]

    async def scenario() -> list[list[int]]:
        await engine.add_adapter("tuned", adapter)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="is not an adapter in the PEFT library's format"):
            await engine.add_adapter("other", tmp_path)  # type: ignore[attr-defined]
        found = await asyncio.gather(read(None), read("tuned"), read(None), read("tuned"))
        # It repeats one token, which is drafted.
        stream = engine.generate(prompt, Sampling(40, temperature=0, logit_bias={7: 100}))
        assert sum([len(tokens) async for tokens in stream]) == 40
        drafted, right = stream.drafts  # type: ignore[attr-defined]
        assert 30 < right <= drafted
        return found

    try:
        found = asyncio.run(scenario())
    finally:
        engine.close()
    model = hf_model.load_model(folder, dtype="float32")
    plain = hf_model.greedy(model, prompt, max_new_tokens=16, stop_ids=chat.stop_ids)
    model = hf_model.with_adapter(model, adapter)
    tuned = hf_model.greedy(model, prompt, max_new_tokens=16, stop_ids=chat.stop_ids)
    assert plain != tuned
    assert found == [plain, tuned, plain, tuned]


def test_embeddings_are_those_of_the_model(tmp_path: Path, settings: EngineConfig) -> None:
    folder = make_model_folder(tmp_path / "model", "demo")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), intermediate_size=48, **sizes)
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    plain = settings.model_copy(update={"speculative": "none"})
    served = open_engine(folder, max_queue=9, description=describe(folder, plain))
    app = create_app(served.engine, served.chat, model="vectors", slots=1)
    texts = ["What does it cost?", "Open an account"]
    try:
        answer = ask(app, "POST", "/v1/embeddings", json={"model": "vectors", "input": texts})
    finally:
        served.engine.close()
    assert answer.status_code == 200, answer.text
    for text, entry in zip(texts, answer.json()["data"], strict=True):
        ids = tokenizer.encode(text).ids
        assert ids[0] == tokenizer.token_to_id("<|bos|>"), "the tokenizer's own special tokens"
        with torch.inference_mode():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        wanted = torch.nn.functional.normalize(mean, dim=0)
        assert torch.allclose(torch.tensor(entry["embedding"]), wanted, atol=1e-5)
