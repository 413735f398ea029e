"""Fetch the files of a registered version from where register.store keeps them.

    python -m pipeline stage=pull register.version=champion pull.to=/models/bank

The folder is what stage=build made, byte for byte: `python -m pipeline.serving --engine` serves it.
With pull.artifact it is another artifact of the version. Run the same command again to resume.
"""

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import ConfigError


def run(config: Config) -> None:
    """
    Raises:
        ConfigError: no version was given, or the folder holds something else. ArtifactError: there
        is no such version, or it arrives altered. PipelineError: the registry or the store does not
        answer. ResourceError: the disk is full.
    """
    from pipeline.deployment import pull

    wanted = config.register_.version
    if wanted is None:
        raise ConfigError("give register.version: a number, champion or another alias")
    version = pull.find_version(wanted, config)
    made = pull.pull_version(version, config.pull.artifact, config, config.pull.to)
    pull.tell_if_moved(wanted, version, config)
    console = get_console()
    console.print(f"{version.name} {version.title}: {made.path}", soft_wrap=True, markup=False)
    if config.pull.artifact == "build" and config.pull.to:
        console.print(
            f"serve it: python -m pipeline.serving --engine {made.path} --model {version.name}",
            soft_wrap=True, markup=False,
        )  # fmt: skip
