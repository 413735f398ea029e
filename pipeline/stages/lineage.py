"""What anything here came from and what was made from it; which versions saw a conversation.

    python -m pipeline stage=lineage lineage.of=champion
    python -m pipeline stage=lineage lineage.conversation="My account number is"
    python -m pipeline stage=lineage lineage.conversation=row.jsonl lineage.forget=true

It follows artifacts, versions in the registry, and files, by the digests that manifests record. A
conversation is looked for in every dataset and data file. With lineage.forget its rows are removed
from snapshots, recordings and feedback, later datasets refuse it, versions that were trained on it
are marked in the registry, and what to retrain is said.
"""

import json
from typing import TYPE_CHECKING

from pipeline.config.schema import Config
from pipeline.core.console import confirm, get_console
from pipeline.core.errors import DataError, short

if TYPE_CHECKING:
    from pipeline.orchestration.audit.lineage import Lineage


def run(config: Config) -> None:
    """Print the answer to standard output, as lineage.format says.

    Raises:
        ArtifactError: nothing is called so. ConfigError: it is not clear what is meant, or nobody
            can be asked whether to forget. DataError: a data file cannot be read, or there is
            nothing to forget. Busy: a run is going on, which reads what would be removed.
            ResourceError: a file cannot be written.
    """
    from pipeline.orchestration.audit import lineage_words
    from pipeline.orchestration.audit.lineage import read_lineage
    from pipeline.orchestration.audit.versions import versions_of

    settings = config.lineage
    versions, note = versions_of(config)
    lineage = read_lineage(config.artifacts, versions)
    if settings.conversation is not None:
        _follow_conversation(settings.conversation, config, lineage)
    elif settings.format == "json":
        print(json.dumps(lineage_words.as_json(lineage, settings.of), indent=1))
    else:
        lineage_words.show(lineage, settings.of)
    if note:
        get_console().print(note, soft_wrap=True, markup=False)


def _follow_conversation(given: str, config: Config, lineage: "Lineage") -> None:
    from pipeline.orchestration.audit import conversations, forgetting
    from pipeline.orchestration.runner import GRAPH_LOCK, hold

    settings = config.lineage
    wanted = conversations.read_wanted(given, config)
    found = conversations.search(wanted, config, lineage, config.artifacts)
    if settings.format == "table":
        forgetting.show(found)
    elif not settings.forget:
        print(json.dumps(forgetting.as_json(found), indent=1))
    if not settings.forget:
        return
    if not (found.places or found.datasets or wanted.rows):
        raise DataError(f"nothing here holds {short(given)}, so there is nothing to forget")
    question = forgetting.question(found)
    if not confirm(question, given=settings.confirm, setting="lineage.confirm"):
        get_console().print("nothing was changed")
        return
    with hold(config.artifacts, GRAPH_LOCK), hold(config.artifacts):
        done = forgetting.forget(found, config, lineage)
    if settings.format == "json":
        print(json.dumps(forgetting.as_json(found) | done.as_json(), indent=1))
    else:
        forgetting.show_done(done)
