"""Serve the built engine as an OpenAI endpoint, until it is stopped."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config
from pipeline.core.artifact import open_artifact
from pipeline.core.console import get_console

if TYPE_CHECKING:
    from pipeline.serving.versions import Followed, ServedVersion


def run(config: Config) -> None:
    """Serve artifacts/build, or the engine of a registered version, on config.serve's address,
    until Ctrl-C or SIGTERM.

    Raises:
        ArtifactError: there is no engine, or none for this machine, or no such version. Busy: the
        port is in use. PipelineError: the registry does not answer.
    """
    from pipeline.serving import address

    console, model = get_console(), config.model.name
    folder, title, version, followed = _chosen(config)
    if config.verify:
        open_artifact(folder, stage="build", reread=True)
    # Before the engine is loaded, so that a port in use is an error at once.
    listening = address.listen(config.serve.host, config.serve.port)
    from pipeline.serving.server import serve

    url = address.base_url(listening, secure=config.serve.tls_cert is not None)
    address.warn_if_open(listening, config.serve.keys_file)
    with_key = bool(config.serve.keys_file or os.environ.get(address.API_KEY))

    def announce() -> None:
        page = url.removesuffix("v1")
        line = f"\n[bold]serving {title}[/]; the chat page is at {page} (Ctrl-C to stop)\n"
        console.print(line, soft_wrap=True)
        if with_key:
            console.print(f"with your key in {address.API_KEY}:")
        console.print(address.how_to_call(url, model, with_key), markup=False, soft_wrap=True)
        console.print()

    with listening:
        finished = serve(
            folder,
            listening,
            model=model,
            settings=config.serve,
            version=version,
            followed=followed,
            announce=announce,
        )
    console.print(
        "stopped: all answers in progress were finished"
        if finished
        else "stopped: answers in progress were aborted; the log has a line for each"
    )


def _chosen(
    config: Config,
) -> "tuple[Path, str, ServedVersion | None, Followed | None]":
    """The engine's folder, what users are told of it, its version, and the alias to follow."""
    model, wanted, alias = config.model.name, config.serve.version, config.serve.follow
    if wanted is None and alias is None:
        return config.artifacts / "build", model, None, None
    from pipeline.deployment import pull
    from pipeline.deployment.following import FollowedAlias, release_of

    if alias is not None:
        followed = FollowedAlias(config, alias)
        found = followed.first()
        title = f"{model}, {found.version.title}, following {alias}"
        return found.artifact.path, title, release_of(found).version, followed
    assert wanted is not None
    found = pull.engine_of(wanted, config)
    pull.tell_if_moved(wanted, found.version, config)
    title = f"{model}, {found.version.title}"
    return found.artifact.path, title, release_of(found).version, None
