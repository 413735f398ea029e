"""NeMo Guardrails, set up so that it reports to nobody and logs nothing of what users write.

Import the library only through `load`: it reads its environment when it is imported.
"""

import logging
import os
from types import ModuleType

from pipeline.core import extras

EXTRA = "guardrails"
# The library sends the names of a configuration's rails to NVIDIA; this switches that off.
NO_REPORTS = "NEMO_GUARDRAILS_NO_USAGE_STATS"


def load() -> ModuleType:
    """The library's top module.

    Raises:
        MissingRuntime: the extra is not installed; says how to get it.
    """
    extras.require(EXTRA, "serve.guardrails", "serve without it")
    os.environ[NO_REPORTS] = "1"
    # Where an action fails it logs the action's parameters: the whole configuration with its keys,
    # and the user's text. Our own log says which rail failed, and why.
    logging.getLogger("nemoguardrails").setLevel(logging.CRITICAL + 1)
    import nemoguardrails

    # Importing it lets the log's level follow an environment variable.
    logging.getLogger("nemoguardrails").setLevel(logging.CRITICAL + 1)
    return nemoguardrails
