"""Small operations of a model, compiled into one kernel each.

Between two matrix products transformers launches up to ten kernels for a norm, and as many for the
rotation of queries and keys. For few tokens each takes as long as reading its share of weights.
"""

import sys
from typing import Any

NORMS, FEED_FORWARD, ROTATION = ("Norm",), ("MLP",), "apply_rotary_pos_emb"


def fuse(model: Any) -> None:
    """Compile the norms, feed-forward layers and rotation of a model of transformers, with the
    same results up to rounding. The first pass of each size then takes some seconds."""
    import torch

    classes = {type(module) for module in model.modules()}
    for cls in classes:
        own = cls.__module__.startswith("transformers.models.")
        if own and cls.__name__.endswith((*NORMS, *FEED_FORWARD)):
            cls.forward = torch.compile(cls.forward, dynamic=True)
        source = sys.modules[cls.__module__]
        rotation = getattr(source, ROTATION, None)
        if own and rotation and not hasattr(rotation, "_torchdynamo_orig_callable"):
            setattr(source, ROTATION, torch.compile(rotation, dynamic=True))
