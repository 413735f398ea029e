"""Output rows that look untrained: tokens that a model can hardly produce.

The output row of a token that never occurred in a model's training only ever got one gradient, the
same as the rows of all other such tokens: away from every text. So they point the same way. A
model that is to say one of these tokens finds the others as likely, and an adapter does not change
that, because it leaves the output layer frozen. Reads the matrix in parts, without torch.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.models.architecture import EMBEDDING, LM_HEAD, Shape
from pipeline.models.files import stored_tensors, tensor_place, weight_files

ALIKE = 0.99  # cosine of two rows that point the same way
# A row that a short training moved is still near the others, though farther from their middle than
# they are: <|im_end|> of SmolLM2-135M-Instruct is 10 times as far, in 1 - cosine, as their median.
FARTHEST = 4  # times the median
LEAST = 1e-4  # in 1 - cosine, for rows that rounding alone tells apart
FEWEST = 4  # rows that are alike, and so look untrained
_PART = 4096  # rows in memory at once
_AXES = 8  # of the space in which rows that are alike are found
_CELL = 0.5  # width of a cell there; rows of random direction have a deviation of 1

Rows = Any  # float32 [rows, hidden]


def untrained_tokens(folder: Path, shape: Shape, counts: Mapping[int, int]) -> list[int]:
    """Those of the tokens that have an output row which looks untrained, the most frequent first.

    counts: how often a text that is to be learned holds each token id. A model whose output layer
    is stored in fewer than 16 bits has no answer, and gives none.

    Raises:
        DataError: a weight file's header is damaged.
    """
    matrix = _output_matrix(folder, shape)
    if matrix is None or not counts:
        return []
    directions = list(_common_directions(matrix))
    tokens = sorted((t for t in counts if t < len(matrix)), key=lambda t: (-counts[t], t))
    found = []
    for start in range(0, len(tokens), _PART):
        part = tokens[start : start + _PART]
        rows, lengths = _unit(_float(matrix[part]))
        alike = lengths == 0
        for direction, least in directions:
            alike |= rows @ direction > least
        found += [token for token, is_alike in zip(part, alike, strict=True) if is_alike]
    return found


def _output_matrix(folder: Path, shape: Shape) -> Any:
    """The rows of the output layer, mapped from its file; None if no type of NumPy holds them."""
    for name in (LM_HEAD, EMBEDDING) if not shape.tied else (EMBEDDING,):
        for file in weight_files(folder):
            stored = stored_tensors(file).get(name)
            if stored is None:
                continue
            kind = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
            if stored.dtype not in kind:
                return None
            return np.memmap(
                file,
                kind[stored.dtype],
                "r",
                offset=tensor_place(file, name)[0],
                shape=stored.shape,
            )
    return None


def _float(rows: Any) -> Rows:
    if rows.dtype == np.uint16:  # bfloat16 is the upper half of float32
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def _unit(rows: Rows) -> tuple[Rows, Any]:
    """Rows of length 1, and their lengths before."""
    lengths = np.sqrt(np.einsum("rh,rh->r", rows, rows))
    return rows / np.where(lengths, lengths, 1)[:, None], lengths


def _common_directions(matrix: Any) -> Iterator[tuple[Any, float]]:
    """Directions that several rows share, of length 1, each with the least cosine of its rows.

    Each row is placed in a space of a few axes. Rows that are alike share a cell there, or two
    where a border is between them; rows of different directions hardly ever do.
    """
    hidden = matrix.shape[1]
    axes = np.random.default_rng(0).standard_normal((hidden, _AXES)).astype(np.float32)
    cells = []
    for start in range(0, len(matrix), _PART):
        rows, lengths = _unit(_float(np.asarray(matrix[start : start + _PART])))
        places = np.floor(rows @ axes / _CELL).astype(np.int16)
        places[lengths == 0] = np.iinfo(np.int16).max  # no direction
        cells.append(places)
    places = np.concatenate(cells)
    _, which, sizes = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    for cell in np.argsort(-sizes):
        if sizes[cell] < FEWEST:
            return
        members = np.flatnonzero(which == cell)[:_PART]
        rows, lengths = _unit(_float(matrix[members]))
        direction, length = _unit(rows.mean(axis=0, keepdims=True))
        # Several that are alike, not by chance in one cell.
        cosines = rows @ direction[0]
        if length[0] and np.count_nonzero(cosines > ALIKE) >= FEWEST:
            spread = FARTHEST * float(np.median(1 - cosines[cosines > ALIKE]))
            yield direction[0], max(ALIKE, 1 - max(spread, LEAST))
