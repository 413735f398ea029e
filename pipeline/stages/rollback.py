"""Make the version champion again that was so before the present one.

    python -m pipeline stage=rollback register.reason="wrong answers about loans"

A second rollback goes back by one more. Servers that follow champion (serve.follow) change
over.
"""

from pipeline.config.schema import Config
from pipeline.core.console import get_console


def run(config: Config) -> None:
    """
    Raises:
        ArtifactError: no earlier champion is recorded. PipelineError: the registry does not answer.
    """
    from pipeline.deployment.promotion import roll_back, words

    change = roll_back(config)
    get_console().print(f"✓ {words(config.register_.name, change)}", soft_wrap=True, markup=False)
