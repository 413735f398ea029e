"""Write questions and answers from documents with a language model, as rows to train on.

It asks an OpenAI endpoint about each part of each document, and keeps the pairs that are grounded
in their part and new. Each row records where it is from and how it was made. A run into the same
folder resumes, and asks only for what is missing. The budget is never exceeded.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.config.outside.synthesize import SynthesizeConfig
from pipeline.config.schema import Config
from pipeline.core.console import get_console, progress
from pipeline.core.errors import ConfigError, DataError, PipelineError

if TYPE_CHECKING:
    from pipeline.client.endpoint import Answer, Endpoint, Request
    from pipeline.data.synthesis.chunks import Chunk
    from pipeline.data.synthesis.selection import Selection

SECTION = "synthesize.endpoint"


@dataclass
class _Found:
    """What came of the chunks: rows for the files of the folder, and counts."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    unused: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    answered: int = 0
    empty: int = 0  # answers without a pair
    cut: int = 0  # answers that reached endpoint.max_tokens
    models: set[str] = field(default_factory=set)


def run(config: Config) -> None:
    """Ask about all documents, and write the folder synthesize.to.

    Raises:
        ConfigError: the folder holds something else, or the prompt cannot be used.
        DataError: a document cannot be used, or no pair could be kept.
        PipelineError: the endpoint does not answer, or the budget is spent; the rows that are there
            are written.
    """
    from pipeline.client.endpoint import Endpoint
    from pipeline.client.ledger import Ledger
    from pipeline.data.preparation import remote
    from pipeline.data.synthesis import output
    from pipeline.data.synthesis.chunks import chunks_of, find_documents
    from pipeline.data.synthesis.selection import Selection

    settings = config.synthesize
    prompt = _prompt(settings)
    if settings.folder == config.data.folder:
        remote.fetch(config.data, config.artifacts)
    documents = find_documents(settings.folder, settings.documents)
    names = {file: str(file).encode(errors="replace").decode() for file in documents}
    output.check_folder(settings.to)
    chunks = {file: chunks_of(file, names[file], settings.chunk) for file in documents}
    asked = [chunk for of_file in chunks.values() for chunk in of_file]
    if not asked:
        raise DataError(f"{len(documents)} documents of synthesize.documents have no text")
    found, error = _Found(), None
    selection = Selection(settings.support, config.prepare.near_duplicate_threshold)
    with Ledger(settings.to / output.LEDGER) as ledger:
        endpoint = Endpoint(settings.endpoint, ledger, SECTION)
        requests = _requests(settings, prompt, asked, config.seed)
        try:
            _ask(endpoint, requests, len(asked), found, selection, config.seed, _digest(prompt))
        except PipelineError as raised:
            error = raised
    if error and not (found.answered or found.failures):
        raise error
    manifest = {
        "kind": output.KIND,
        "complete": error is None and not found.failures,
        "documents": {
            names[file]: {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "chunks": len(of_file),
            }
            for file, of_file in chunks.items()
        },
        "endpoint": endpoint.place,
        "models": sorted(found.models),
        "seed": config.seed,
        "prompt": prompt,
        "prompt_sha256": _digest(prompt),
        "settings": settings.model_dump(mode="json", exclude={"endpoint": {"budget", "price"}}),
        "counts": _counts(len(asked), found, selection),
        "used": {
            "tokens": endpoint.budget.used.tokens,
            "cost": str(endpoint.budget.used.cost),
        },
    }
    files = {output.PAIRS: found.unused, output.FAILURES: found.failures, output.ROWS: found.rows}
    output.write(settings.to, files, manifest)
    _show(settings, manifest)
    if error:
        raise error
    if not found.rows:
        raise DataError(
            f"no pair could be kept of {len(asked)} chunks: see {settings.to / output.PAIRS} and "
            f"{settings.to / output.FAILURES}, then choose another model, or lower "
            "synthesize.support"
        )


def _prompt(settings: SynthesizeConfig) -> str:
    from pipeline.data.synthesis.pairs import PROMPT

    if settings.prompt is None:
        return PROMPT
    try:
        text = settings.prompt.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"synthesize.prompt={settings.prompt} cannot be read ({error})"
        ) from error
    if "{text}" not in text:
        raise ConfigError(
            f"synthesize.prompt={settings.prompt} has no {{text}}, where the chunk is to stand: "
            "add it"
        )
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _requests(
    settings: SynthesizeConfig, prompt: str, chunks: "Sequence[Chunk]", seed: int
) -> "Iterator[Request]":
    from pipeline.client.endpoint import Request
    from pipeline.data.synthesis.pairs import SCHEMA, prompt_for

    more = {"response_format": SCHEMA} if settings.guided else {}
    for chunk in chunks:
        message = {"role": "user", "content": prompt_for(prompt, chunk, settings.questions)}
        yield Request([message], seed=seed, more=more, about=chunk)


def _ask(
    endpoint: "Endpoint",
    requests: "Iterator[Request]",
    total: int,
    found: _Found,
    selection: "Selection",
    seed: int,
    prompt: str,
) -> None:
    """Fill `found` with what comes, in the order of the chunks.

    prompt: its digest.

    Raises:
        PipelineError: the endpoint does not answer, or the budget is spent.
    """
    with progress() as bar:
        task = bar.add_task("chunks", total=total)
        for answer in endpoint.ask(requests):
            _take(answer, found, selection, {"seed": seed, "prompt_sha256": prompt})
            bar.advance(task)


def _take(answer: "Answer", found: _Found, selection: "Selection", made: dict[str, Any]) -> None:
    from pipeline.data.synthesis import output
    from pipeline.data.synthesis.pairs import pairs_in

    chunk: Chunk = answer.request.about
    place = f"{chunk.file}:{chunk.paragraphs[0].line}"
    if answer.failure:
        found.failures.append({"source": place, "reason": answer.failure})
        return
    found.answered += 1
    found.models.add(answer.model)
    cut = answer.finish_reason == "length"
    found.cut += cut
    pairs = pairs_in(answer.text)
    if not pairs:
        found.empty += 1
        reason = "cut off before a pair: raise synthesize.endpoint.max_tokens" if cut else "no pair"
        found.failures.append({"source": place, "reason": reason, "answer": answer.text[:500]})
    made = {"model": answer.model, **made}
    for pair in pairs:
        judged = selection.judge(pair, chunk)
        if judged.reason is None:
            found.rows.append(output.row_of(judged, made))
        else:
            found.unused.append(output.unused(judged, made))


def _counts(chunks: int, found: _Found, selection: "Selection") -> dict[str, Any]:
    reasons = {str(reason): n for reason, n in selection.counts.most_common() if reason}
    return {
        "chunks": chunks,
        "answered": found.answered,
        "cut_off": found.cut,
        "without_a_pair": found.empty,
        "pairs": selection.counts.total(),
        "rows": len(found.rows),
        "unused": reasons,
    }


def _show(settings: SynthesizeConfig, manifest: dict[str, Any]) -> None:
    from pipeline.data.synthesis import output

    counts, used, console = manifest["counts"], manifest["used"], get_console()
    lines = [
        f"{counts['answered']:,} of {counts['chunks']:,} chunks are answered, with "
        f"{counts['pairs']:,} pairs: {counts['rows']:,} are rows in {settings.to / output.ROWS}"
    ]
    lines += [f"  {n:,} not used: {reason}" for reason, n in counts["unused"].items()]
    if counts["without_a_pair"]:
        lines.append(f"  {counts['without_a_pair']:,} answers hold no pair")
    lines.append(f"used so far: {used['tokens']:,} tokens, cost {used['cost']}")
    lines.append(
        f"To train on them: data=files data.folder={settings.to} 'data.train=[{output.ROWS}]'"
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
