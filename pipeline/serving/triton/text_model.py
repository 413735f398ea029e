"""A model of texts for Triton's Python backend. The model of token ids beside it has the engine.

Runs in a process of Triton, and asks the other model through Triton (business logic scripting),
each request in a thread of its own, so that they run together.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engines.base import Sampling, Token
from pipeline.engines.kserve import contract
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.detokenizer import Detokenizer
from pipeline.serving.triton import nemo

THREADS = 64  # answers at once; more wait
TOKENIZER = "tokenizer"  # below the model's version


@dataclass(frozen=True)
class Piece:
    """New text of an answer, its tokens, and at its beginning the prompt's if they were wanted."""

    text: str
    tokens: list[Token]
    prompt: list[Token] | None = None


class TextModel:
    """What Triton calls. utils: its module triton_python_backend_utils."""

    utils: Any

    def initialize(self, args: Mapping[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"], TOKENIZER)
        self._chat = Chat.load(folder)
        config = json.loads(args["model_config"])
        self._tokens = config["parameters"]["tokens_model"]["string_value"]
        self._outputs = [output["name"] for output in config["output"]]
        self._decoupled = config["model_transaction_policy"]["decoupled"]
        self._threads = ThreadPoolExecutor(THREADS)

    def execute(self, requests: Any) -> None:
        """Start the answers; they send themselves."""
        for request in requests:
            sender = request.get_response_sender()
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            self._threads.submit(self._guarded, sender, inputs)

    def finalize(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _guarded(self, sender: Any, inputs: Mapping[str, Any]) -> None:
        final = self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        kinds = self.utils.TritonError
        try:
            prompts = nemo.read(inputs)
            if self._decoupled:
                self._stream(sender, prompts)
                sender.send(flags=final)
            else:
                sender.send(self._whole(sender, prompts), flags=final)
            return
        except _Cancelled:
            error = kinds("cancelled", kinds.CANCELLED)
        except _Failed as failed:
            error = kinds(str(failed), kinds.UNAVAILABLE)
        except ValueError as wrong:
            error = kinds(str(wrong), kinds.INVALID_ARG)
        except Exception as failed:
            error = kinds(f"{type(failed).__name__}: {failed}", kinds.INTERNAL)
        sender.send(self.utils.InferenceResponse(error=error), flags=final)

    def _stream(self, sender: Any, prompts: list[nemo.Asked]) -> None:
        import numpy as np

        if len(prompts) != 1:
            raise ValueError("send one prompt a request to the model that streams")
        (asked,) = prompts
        texts = [asked.prompt] if asked.echo else []
        if asked.echo and asked.stream:
            self._send_text(sender, np, asked.prompt)
        for piece in self._answer(sender, asked):
            if not asked.stream:
                texts.append(piece.text)
            elif piece.text:
                self._send_text(sender, np, piece.text)
        if not asked.stream:
            self._send_text(sender, np, "".join(texts))

    def _send_text(self, sender: Any, np: Any, text: str) -> None:
        array = np.array([[text.encode()]], np.object_)
        sender.send(self.utils.InferenceResponse([self.utils.Tensor("text_output", array)]))

    def _whole(self, sender: Any, prompts: list[nemo.Asked]) -> Any:
        """The response to all prompts of a request, which run together."""
        import numpy as np

        if len(prompts) == 1:
            answers = [list(self._answer(sender, prompts[0]))]
        else:
            with ThreadPoolExecutor(min(len(prompts), THREADS)) as threads:
                answers = list(
                    threads.map(lambda asked: list(self._answer(sender, asked)), prompts)
                )
        texts, probabilities, tops = [], [], []
        for asked, pieces in zip(prompts, answers, strict=True):
            text = "".join(piece.text for piece in pieces)
            texts.append([((asked.prompt if asked.echo else "") + text).encode()])
            tokens = [token for piece in pieces for token in piece.tokens]
            before = (pieces[0].prompt or [])[1:] if asked.echo and pieces else []
            found = [token.logprob or 0.0 for token in (*before, *tokens)]
            probabilities.append(found or [0.0])
            tops.append([json.dumps(self._tops(tokens, asked.tops)).encode()])
        sentences = np.array(texts, np.object_)
        outputs = {"sentences": sentences} if prompts[0].nemo else {"text_output": sentences}
        if prompts[0].nemo and prompts[0].logprobs:
            longest = max(map(len, probabilities))
            rows = [row + [0.0] * (longest - len(row)) for row in probabilities]
            outputs["log_probs"] = np.array(rows, np.float32)
            if prompts[0].tops:
                outputs["top_logprobs"] = np.array(tops, np.object_)
        make = self.utils.Tensor
        return self.utils.InferenceResponse([make(name, v) for name, v in outputs.items()])

    def _tops(self, tokens: list[Token], count: int) -> list[dict[str, float]]:
        """For each token the likeliest ones, by their texts."""
        decode = self._chat.decode
        return [
            {decode([i], control_tokens=True): p for i, p in token.top[:count]} for token in tokens
        ]

    def _answer(self, sender: Any, asked: nemo.Asked) -> Iterator[Piece]:
        """The pieces of an answer.

        Raises:
            ValueError: the request is wrong. _Failed: the engine. _Cancelled: the client left.
        """
        sampling = self._sampling(asked)
        request = contract.write_sampling(sampling, prompt=self._prompt(asked), details=True)
        shows = Detokenizer(self._chat.tokenizer, asked.stops)
        for tokens, prompt in self._ask(request):
            if sender.is_cancelled():
                raise _Cancelled
            kept = [token for token in tokens if token.id not in sampling.stop_ids]
            texts = []
            for token in kept:
                texts.append(shows.push(token.id))
                if shows.stopped:
                    break
            yield Piece("".join(texts), kept, prompt)
            if shows.stopped:
                return
        yield Piece(shows.finish(), [])

    def _prompt(self, asked: nemo.Asked) -> list[int]:
        if not asked.chat:
            return self._chat.encode(asked.prompt)
        try:
            messages = json.loads(asked.prompt)
        except ValueError as error:
            raise ValueError(
                f"apply_chat_template wants a list of messages in JSON as the prompt: {error}"
            ) from None
        return self._chat.prompt(messages)

    def _sampling(self, asked: nemo.Asked) -> Sampling:
        encode = self._chat.encode
        fields = dict(asked.fields)
        if asked.bad_words:
            fields["bad_words"] = tuple(tuple(encode(word)) for word in asked.bad_words)
        if asked.logprobs:
            fields["logprobs"] = asked.tops
            fields |= {"prompt_logprobs": asked.tops} if asked.echo else {}
        return Sampling(**fields, stop_ids=frozenset(self._chat.stop_ids))

    def _ask(self, text: str) -> Iterator[tuple[list[Token], list[Token] | None]]:
        import numpy as np

        request = self.utils.InferenceRequest(
            model_name=self._tokens,
            requested_output_names=[contract.DETAILS],
            inputs=[self.utils.Tensor(contract.SAMPLING, np.array([[text.encode()]], np.object_))],
        )
        for response in request.exec(decoupled=True):
            if response.has_error():
                said = response.error().message()
                code, _, rest = said.partition(": ")
                raise ValueError(rest) if code == "INVALID_ARG" else _Failed(said)
            for tensor in response.output_tensors():
                yield contract.read_details(tensor.as_numpy().reshape(-1)[0])


class _Failed(Exception):
    """The engine did not answer."""


class _Cancelled(Exception):
    """The client has left."""
