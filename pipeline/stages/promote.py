"""Make a registered version champion, and record who did so, when and why.

    python -m pipeline stage=promote register.version=3 register.reason="asked for by support"

A version that did not pass the gate becomes champion only with a reason in register.overrule.
Servers that follow champion (serve.follow) change over.
"""

from pipeline.config.schema import Config
from pipeline.core.console import get_console


def run(config: Config) -> None:
    """
    Raises:
        GateFailed: the version did not pass the gate. ArtifactError: there is no such version.
        PipelineError: the registry does not answer.
    """
    from pipeline.deployment.promotion import promote, words

    version, change = promote(config)
    text = f"{version.title} of {version.name} is champion already"
    if change:
        text = words(version.name, change)
    get_console().print(f"✓ {text}", soft_wrap=True, markup=False)
