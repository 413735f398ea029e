"""What the GPU tests share."""

import pytest

from pipeline.adapters.nemo_session import nemo_session


@pytest.fixture(scope="session", autouse=True)
def nemo_first() -> None:
    """ModelOpt as NeMo imports it. A stage, which has a process of its own, imports ModelOpt
    without its parts for Megatron; NeMo would miss them in a process that goes on to train."""
    with nemo_session():
        import nemo.collections.llm.modelopt  # noqa: F401
