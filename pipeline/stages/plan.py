"""What a run will take, before it starts: memory, time, disk; what would make it fit.

Outside the graph: it reads settings and the model's config.json, makes nothing, and ends with an
error if the run could not be done. Needs no GPU; plans for this machine or, with plan.gpu, another.
"""

import json

from pipeline.config.schema import Config
from pipeline.core.errors import ResourceError
from pipeline.planner.plan import make_plan
from pipeline.planner.table import show


def run(config: Config) -> None:
    """Print the plan of this configuration to standard output, as config.plan.format says.

    Raises:
        ConfigError, DataError, MissingRuntime: what a stage of the run would refuse.
        ResourceError: the run does not fit; says which setting would make it fit.
    """
    plan = make_plan(config)
    if config.plan.format == "json":
        print(json.dumps(plan.to_json(), indent=1))
    else:
        show(plan)
    if plan.problems:
        raise ResourceError("; ".join(plan.problems))
