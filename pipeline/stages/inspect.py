"""Show what is in a data set before training, in the terminal and as one HTML page.

It reads the files as stage=prepare does, with the same settings and the same checks, and shows
lengths, languages, duplicates, leaks, tags, rejected rows with reasons, and samples with the tokens
that the model is trained on. It needs the model's folder, makes no artifact, and writes its page
alone.
"""

import json
from contextlib import suppress
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import ResourceError


def run(config: Config) -> None:
    """Print what is found to standard output, as inspect.format says, and write inspect.page.

    Rows that stage=prepare would refuse are shown, and are no error.

    Raises:
        ConfigError: prepare.max_length is over the model's context, or a glob is not valid.
        DataError: a file or the model folder cannot be used. ResourceError: the page cannot be
            written.
    """
    from pipeline.data.inspection import terminal
    from pipeline.data.inspection.page import page
    from pipeline.data.inspection.profile import profile
    from pipeline.data.preparation import remote
    from pipeline.data.preparation.decisions import decide
    from pipeline.data.preparation.statistics import choose_samples
    from pipeline.data.settings_checks import check_prepare
    from pipeline.models.chat.renderer import Chat
    from pipeline.models.checks import check_folder
    from pipeline.models.sources.fetching import fetch
    from pipeline.serving.parsers.detection import serves_tools

    fetch(config.model.path, config.artifacts)
    remote.fetch(config.data, config.artifacts)
    shape = check_folder(config.model.path)
    check_prepare(config, shape)
    chat = Chat.load(config.model.path)
    decided = decide(config, chat, lambda: serves_tools(chat))
    found = profile(config, decided, chat, shape)
    settings = config.inspect
    shown = choose_samples(decided.rows.kept, settings.samples)
    _write(settings.page, page(found, chat, shown))
    if settings.format == "json":
        print(json.dumps(found, indent=1))
    else:
        terminal.show(found, chat, choose_samples(decided.rows.kept, config.prepare.samples))
    get_console().print(f"The page: {settings.page}", soft_wrap=True, markup=False)


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ResourceError(
            f"inspect.page={file} cannot be written ({error.strerror}): name another file"
        ) from error
