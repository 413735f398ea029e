"""The digest of a file that is being written."""

import hashlib
import time
from pathlib import Path

from pipeline.models.sources.files import GrowingDigest


def test_a_file_is_hashed_while_it_grows(tmp_path: Path) -> None:
    """It appears late, grows in pieces, and is renamed before the last look at it."""
    content = bytes(range(256)) * 20_000  # more than is read at once
    growing = GrowingDigest(tmp_path / "a.partial")
    time.sleep(0.05)
    with (tmp_path / "a.partial").open("wb", buffering=0) as stream:
        for begin in range(0, len(content), 700_001):
            stream.write(content[begin : begin + 700_001])
            time.sleep(0.01)
    (tmp_path / "a.partial").rename(tmp_path / "a")
    assert growing.finish() == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_file_that_never_comes_has_no_bytes(tmp_path: Path) -> None:
    assert GrowingDigest(tmp_path / "a").finish()[1] == 0
