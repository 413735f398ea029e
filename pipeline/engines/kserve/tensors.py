"""Tensors as the protocol writes them: a name, a type, a shape and little-endian bytes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# The protocol's types, numpy's, and those of config.pbtxt.
DTYPES = {
    "BOOL": np.dtype("?"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT64": np.dtype("<u8"),
    "FP32": np.dtype("<f4"),
}
BYTES = "BYTES"


@dataclass(frozen=True)
class Tensor:
    """One input. shape: with the batch, which is 1. values: row by row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]

    def raw(self) -> bytes:
        if self.datatype == BYTES:
            parts = (v.encode() if isinstance(v, str) else v for v in self.values)
            return b"".join(struct.pack("<I", len(part)) + part for part in parts)
        return np.asarray(self.values, DTYPES[self.datatype]).tobytes()


def values_of(datatype: str, raw: bytes) -> list[Any]:
    """The values of a tensor, row by row; texts as bytes.

    Raises:
        ValueError: the type is unknown, or the bytes end early.
    """
    if datatype == BYTES:
        found, at = [], 0
        while at < len(raw):
            try:
                (size,) = struct.unpack_from("<I", raw, at)
            except struct.error as error:
                raise ValueError(f"a tensor of texts ends early: {error}") from error
            at += 4 + size
            if at > len(raw):
                raise ValueError("a tensor of texts ends early")
            found.append(raw[at - size : at])
        return found
    if datatype not in DTYPES:
        raise ValueError(f"a tensor of the type {datatype}, which is not known here")
    return np.frombuffer(raw, DTYPES[datatype]).tolist()
