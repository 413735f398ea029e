"""Runs tests/gpu on this machine's GPUs and records the outcome of each test.

    python bench/gpu_tests.py --output bench/results/gpu_tests.json [-- -n 12 --maxschedchunk 1]

Arguments after `--` go to pytest (the example uses pytest-xdist). Paths among them are run in
addition.
"""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.origin import origin, parser_of  # noqa: E402

LONGEST_REASON = 600  # characters of the reason why a test failed
PACKAGES = ("torch", "nemo_toolkit", "megatron-core", "transformer_engine", "nvidia-modelopt")


class Outcomes:
    """A pytest plugin that records each test's outcome as soon as it is known."""

    def __init__(self, output: Path, document: dict[str, object]) -> None:
        self._output, self._document = output, document
        self._tests: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:  # its fixtures
            return
        name = report.nodeid.removeprefix("tests/gpu/")
        skipped = report.longrepr  # (file, line, reason) of a skipped one
        reason = (
            f": {skipped[2].removeprefix('Skipped: ')}" if isinstance(skipped, tuple | list) else ""
        )
        if report.failed:
            lines = [x[1:].strip() for x in report.longreprtext.splitlines() if x.startswith("E ")]
            reason = ": " + " ".join(lines)[:LONGEST_REASON]
        self._tests[name] = report.outcome + reason
        self._document["outcomes"] = dict(sorted(self._tests.items()))
        self._output.write_text(json.dumps(self._document, indent=1) + "\n")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("options", nargs="*", help="of pytest, after --")
    given = parser.parse_args()
    command = " ".join(["python -m pytest tests/gpu", *given.options])
    plugin = Outcomes(given.output, origin(command, PACKAGES, given.commit))
    return int(pytest.main([str(ROOT / "tests/gpu"), *given.options], plugins=[plugin]))


if __name__ == "__main__":
    sys.exit(main())
