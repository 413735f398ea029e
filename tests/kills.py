"""Kills every stage at random moments and at every rename of its commit, then runs it again.

    python -m tests.kills                     # 30 random kills, and every rename of every stage
    python -m tests.kills --random 3 --stages prepare finetune
    python -m tests.kills --chain OTHER/artifacts      # 30 kills of the chain itself, in this clone

After each kill a plain run must end with the same artifact, keep the older one among the variants,
and leave nothing half-made. Prints the counts as it goes, and what went wrong; the exit code is 1
if anything did. The stages' work is replayed (tests/replayed_stage.py).

With --chain nothing is replayed: `stage=all` runs in this clone, which must have no artifacts yet,
and the command, or a process that it started, is killed at random moments. In the end a plain run
must give the same files as the undisturbed run in OTHER, of the same commit.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.killed_chain import kill_chain
from tests.replayed_chain import Counts, ReplayedChain
from tests.replayed_stage import SECONDS

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def kill_at_renames(
    chain: ReplayedChain, stage: str, folder: Path, counts: Counts, every: int
) -> None:
    chain.prepare(stage, folder / "count")
    counted = chain.run(stage, folder / "count", "count")
    assert counted.code == 0, counted.said
    for at in range(1, int(counted.said.splitlines()[-1]) + 1, every):
        for when in ("before", "after"):
            what, place = f"{stage} killed {when} rename {at}", folder / f"{when}-{at}"
            chain.prepare(stage, place)
            done = chain.run(stage, place, f"{when} {at}")
            assert done.code == -signal.SIGKILL, done.said
            counts.see(what, done)
            chain.check(what, stage, place, counts)


def kill_at_random(
    chain: ReplayedChain, stage: str, folder: Path, counts: Counts, chance: random.Random
) -> None:
    number, after = chance.choice(SIGNALS), chance.uniform(0, 1.3 * SECONDS)
    chain.prepare(stage, folder)
    pid, said = chain.start(stage, folder, "slow")
    while chance.random() < 0.9 and not (folder / ".lock").exists():  # else before it has the lock
        time.sleep(0.005)
    time.sleep(after)
    os.kill(pid, number)
    what = f"{stage}, {after:.2f} s after it had the lock, got {number.name}"
    counts.see(what, chain.wait(pid, said))
    chain.check(what, stage, folder, counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="kill at every Nth rename")
    parser.add_argument("--stages", nargs="*")
    parser.add_argument("--chain", type=Path, metavar="OTHER", help="artifacts to end with")
    given = parser.parse_args()
    chance, at_random, at_renames = random.Random(given.seed), Counts(), Counts()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if given.chain:
        kill_chain(given.chain, given.random, at_random, chance)
        print(f"kills of the chain: {at_random}")
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            chain = ReplayedChain(folder)
            stages = given.stages or chain.stages
            for number in range(given.random):
                stage = stages[number % len(stages)]
                kill_at_random(chain, stage, folder / f"random-{number}", at_random, chance)
                at_random.tell(f"random kill {number + 1} of {given.random}")
            print(f"at random moments: {at_random}", flush=True)
            for stage in stages:
                kill_at_renames(chain, stage, folder / f"renames-{stage}", at_renames, given.every)
                at_renames.tell(f"renames of {stage}")
            print(f"at every rename of {len(stages)} stages: {at_renames}")
    for line in [*at_random.bad, *at_renames.bad]:
        print(line, file=sys.stderr)
    return int(bool(at_random.bad or at_renames.bad))


if __name__ == "__main__":
    sys.exit(main())
