"""A tiny judge: a Llama whose weights know one answer by heart, with both kinds of verdicts.

with served_judge(tmp_path / "judge") as server:
    ...  # evaluate.judge.endpoint.base_url=server.url
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer

from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import Chat
from pipeline.serving.server_process import RunningServer, running_server
from tests.integration.test_served_accuracy import MODEL, built
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import make_model_folder

VERDICTS = ("[[7]]", "[[C]]")  # a score, and a tie of two answers
NAME = "judge"


@contextmanager
def served_judge(folder: Path) -> Iterator[RunningServer]:
    """The judge on a server of ours, by PyTorch. folder: for its artifacts."""
    write_judge(folder / "merge")
    merged = make_artifact(folder, "merge", "hf_checkpoint")
    lengths = ("engine.max_input_len=1000", "engine.max_seq_len=1024")
    _, engine = built(folder, merged, *lengths, engine="hf")
    with running_server(engine.path, model=NAME, log=folder / "server.log") as server:
        yield server


def write_judge(folder: Path) -> Path:
    """A model folder. Each token has an axis of its own in the embedding, its attention and its MLP
    add nothing, and the output layer maps a token to the one that follows it in the answer."""
    make_model_folder(folder, "demo")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(verdict, special=False) for verdict in VERDICTS])
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = Chat.load(folder).vocab_size
    config = MODEL | {"vocab_size": vocabulary, "num_hidden_layers": 1,
                      "max_position_embeddings": 1024}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    chat = Chat.load(folder)
    begin = chat.prompt([{"role": "user", "content": "a"}])[-1]
    answer = [begin, *(chat.tokenizer.token_to_id(v) for v in VERDICTS), chat.stop_ids[0]]
    tensors = {
        name: np.full(shape, 1.0 if "norm" in name else 0.0, np.float32)
        for name, shape in read_shape(folder).tensors()
    }
    tensors["model.embed_tokens.weight"][:, -1] = 1.0  # of a token that is not in the answer
    for axis, (token, following) in enumerate(pairwise(answer)):
        tensors["model.embed_tokens.weight"][token] = np.eye(64, dtype=np.float32)[axis]
        tensors["lm_head.weight"][following, axis] = 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
