"""What a store must do."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.retrieval.index import Index


class Store(Protocol):
    """Finds the passages whose vectors are nearest to a question's.

    It may be behind or ahead of the index that is served, while a new one replaces it: ids that
    the index does not have are ignored.
    """

    def sync(self, index: Index) -> tuple[int, int]:
        """Bring the store to what an index says; how many passages were added and removed.

        Raises:
            RetrievalFailed: the store does not answer.
        """

    def nearest(
        self, vector: npt.NDArray[np.float32], count: int, visible: npt.NDArray[np.bool_]
    ) -> Sequence[int]:
        """Rows of the index, the nearest first.

        Args:
            visible: [groups] which of the index's groups may be found.

        Raises:
            RetrievalFailed: the store does not answer.
        """

    def close(self) -> None: ...


def top(scores: npt.NDArray[np.float32], count: int) -> list[int]:
    """Places of the highest scores, the highest first; of equal ones, the first."""
    count = min(count, len(scores))
    if not count:
        return []
    best = np.argpartition(-scores, count - 1)[:count]
    return [int(place) for place in sorted(best, key=lambda place: (-scores[place], place))]
