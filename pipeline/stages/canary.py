"""Give a candidate a share of the traffic, compare it, and promote it or roll it back.

    python -m pipeline stage=canary register.version=4 canary.haproxy.socket=/run/haproxy.sock

Both versions are asked the labelled questions first, then users' requests are split. The decision
is made at the first look that allows it, within a sample size that is printed beforehand; a page in
artifacts/canary says why. docs/registry.md explains the statistics.
"""

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import GateFailed


def run(config: Config) -> None:
    """
    Raises:
        GateFailed: the candidate was rolled back, or may not become champion. ConfigError: the
        settings name no candidate, or no way to it. ArtifactError: there is no such version.
        PipelineError: a server, the proxy or the registry does not answer.
    """
    from pipeline.deployment.canary.report import write_report
    from pipeline.deployment.canary.run import run_canary

    record, out = run_canary(config)
    page = write_report(record, out)
    text = f"{record.title.removeprefix('Canary: ')} was {record.decision}: {record.why}"
    if record.decision != "promoted":
        raise GateFailed(f"{text} (report: {page})")
    get_console().print(f"✓ {text} (report: {page})", soft_wrap=True, markup=False)
