"""Pickles within files of torch: read for their tensors and plain values, never for code.

    with only_plain_pickles():
        ...                          # torch.load, by whatever library, reads nothing else

A pickle names functions, which reading calls. torch has a reader that makes tensors and
plain values only. Libraries switch it off by an argument, users by a variable of the environment,
and libraries add classes of their own to what it makes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# torch's variables: the first overrules a caller's argument; both at once are an error.
_PLAIN, _ANY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def only_plain_pickles() -> Iterator[None]:
    """`torch.load` reads only tensors and plain values within it, whatever its callers ask for.

    It raises pickle.UnpicklingError for others.
    """
    import torch

    before = {name: os.environ.pop(name, None) for name in (_PLAIN, _ANY)}
    os.environ[_PLAIN] = "1"
    added = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(added)
        del os.environ[_PLAIN]
        os.environ.update({name: value for name, value in before.items() if value is not None})
