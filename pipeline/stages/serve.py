"""Serve the built engine as an OpenAI endpoint; runs until it is stopped, outside of the graph."""

import os

from pipeline.config import Config
from pipeline.console import get_console


def run(config: Config) -> None:
    """Serve artifacts/build on config.serve's address until Ctrl-C or SIGTERM.

    Raises:
        ArtifactError: there is no engine, or none for this machine. Busy: the port is in use.
    """
    from pipeline.serving import server

    console, model = get_console(), config.model.name
    # Before the engine loads: a port in use is known at once.
    listening = server.listen(config.serve.host, config.serve.port)
    url = server.base_url(listening)
    server.warn_if_open(listening)
    console.print(f"[bold]serving {model}[/] on {url} (Ctrl-C ends it)\n")
    with_key = bool(os.environ.get(server.API_KEY))
    console.print(server.how_to_call(url, model, with_key), markup=False, soft_wrap=True)
    server.serve(
        config.artifacts / "build", listening, model=model, max_queue=config.serve.max_queue
    )
    console.print("stopped: every answer in progress was finished")
