"""Several downloads at once, with one bar of the bytes that have arrived."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from pipeline.core.console import progress

AT_ONCE = 4  # files
MIB = 2**20
_LOOK = 0.25  # seconds from one look at the bytes that have arrived to the next


def run_all(
    jobs: Sequence[Callable[[], object]], title: str, total: int, arrived: Callable[[], int]
) -> None:
    """Run jobs in threads, which end with the process: Ctrl-C ends it at once.

    total, arrived: bytes to come, and those that have. Raises what the first job that fails raises,
    when the others that had begun are done.
    """
    queue, failures = list(jobs), list[BaseException]()

    def work() -> None:
        while not failures:
            try:
                job = queue.pop(0)
            except IndexError:
                return
            try:
                job()
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(jobs)))]
    for thread in threads:
        thread.start()
    if total >= MIB:
        with progress() as bar:
            task = bar.add_task(title, total=total // MIB)
            while any(thread.is_alive() for thread in threads):
                next(t for t in threads if t.is_alive() or t is threads[-1]).join(_LOOK)
                bar.update(task, completed=min(arrived(), total) // MIB)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
