"""Models and data sets on the Hugging Face Hub, by huggingface_hub, in its own cache.

HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE count as everywhere else. What another program
fetched is not fetched again, and a download that was interrupted resumes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, PipelineError, ResourceError, short
from pipeline.core.monkeypatch import Replacement, replaced
from pipeline.models.sources.address import DATASETS, Address
from pipeline.models.sources.files import GrowingDigest, Remote, digest_of, entry
from pipeline.models.sources.transfer import run_all

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_DIGEST = re.compile(r"^[0-9a-f]{40}$|^[0-9a-f]{64}$")
_AGAIN = "run the same command again to resume"
# Bytes that huggingface_hub takes from a connection at once. Its own 10 MiB are a new piece of
# memory each time, which the kernel has to clear first: half of the time of a download.
_PART = 2**20


class Hub:
    """One model or data set on the hub."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._name = address.name.removeprefix(DATASETS)
        self._kind = "dataset" if self._name != address.name else "model"
        self._listed: dict[str, dict[str, Remote]] = {}

    def resolve(self) -> str:
        """The commit that the revision means now; offline: the one that is in the cache.

        Raises:
            DataError: there is no such name or revision, it may not be read, or the hub cannot be
                reached.
        """
        from huggingface_hub import constants

        revision = self.address.revision or constants.DEFAULT_REVISION
        if _COMMIT.match(revision):
            return revision
        if constants.HF_HUB_OFFLINE:
            noted = self._cached() / "refs" / revision  # by whoever fetched it
            found = noted.read_text().strip() if noted.is_file() else ""
            if _COMMIT.match(found):
                return found
            raise self._not_cached(f"the revision {revision}")
        info = self._info(revision)
        if not info.sha or not _COMMIT.match(info.sha):
            raise DataError(f"{self.address}: the hub names no commit: check HF_ENDPOINT")
        self._listed[info.sha] = _remotes(info)
        return info.sha

    def files(self, commit: str) -> Mapping[str, Remote]:
        """The files of a commit; offline: those that are in the cache."""
        from huggingface_hub import constants

        if commit not in self._listed:
            if constants.HF_HUB_OFFLINE:
                found = self.folder(commit).rglob("*")
                self._listed[commit] = {
                    name: Remote(name, place.stat().st_size)
                    for place in found
                    if place.is_file()
                    for name in [place.relative_to(self.folder(commit)).as_posix()]
                }
            else:
                self._listed[commit] = _remotes(self._info(commit))
        return self._listed[commit]

    def folder(self, commit: str) -> Path:
        """Where the cache keeps the files of a commit."""
        return self._cached() / "snapshots" / commit

    def _cached(self) -> Path:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        name = repo_folder_name(repo_id=self._name, repo_type=self._kind)
        return Path(constants.HF_HUB_CACHE) / name

    def _info(self, revision: str) -> Any:
        from huggingface_hub import HfApi

        with self._errors():
            return HfApi().repo_info(
                self._name, revision=revision, repo_type=self._kind, files_metadata=True
            )

    def get(self, commit: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Fetch files into the cache, where they are not there yet; their digests by name.

        Raises:
            DataError: one cannot be had, or its digest is not the one that the hub names.
            ResourceError: the disk of the cache is full.
        """
        from huggingface_hub import constants
        from huggingface_hub.utils import disable_progress_bars, logging

        files, found = self.files(commit), dict[str, dict[str, Any]]()
        missing = [name for name in names if not (self.folder(commit) / name).exists()]
        blobs = self._cached() / "blobs"

        def arrived() -> int:
            whole = sum(_bytes(files, n) for n in missing if (self.folder(commit) / n).exists())
            return whole + sum(_size(part) for part in blobs.glob("*.incomplete"))

        def take(name: str) -> None:
            remote = files.get(name)
            growing = None
            if name in missing and remote and len(remote.digest) == 64:
                growing = GrowingDigest(blobs / f"{remote.digest}.incomplete")
            try:
                self._download(commit, name)
            finally:
                read = growing.finish() if growing else None
            if remote and read == (remote.digest, remote.bytes):
                found[name] = entry(*read)
            else:
                found[name] = self._checked(commit, name)

        disable_progress_bars()  # ours shows all files in one
        logging.set_verbosity_error()  # it warns of each try; the last one's error is reported
        # Its own way of several connections divides files into parts by the same number.
        part = constants.DOWNLOAD_CHUNK_SIZE
        if not constants.HF_HUB_ENABLE_HF_TRANSFER:
            part = min(part, _PART)
        total = sum(_bytes(files, name) for name in missing)
        largest_first = sorted(names, key=lambda name: -_bytes(files, name))
        with replaced([Replacement(constants, "DOWNLOAD_CHUNK_SIZE", part)]), self._errors():
            run_all([partial(take, name) for name in largest_first],
                    f"fetch {short(str(self.address), 40)} MiB", total, arrived)  # fmt: skip
        return {name: found[name] for name in names}

    def _download(self, commit: str, name: str) -> None:
        """Have a file in the cache."""
        from huggingface_hub import constants, hf_hub_download

        if (self.folder(commit) / name).is_file():
            return
        if constants.HF_HUB_OFFLINE:
            raise self._not_cached(name)
        hf_hub_download(self._name, name, revision=commit, repo_type=self._kind)

    def _checked(self, commit: str, name: str) -> dict[str, Any]:
        """A file's digest, compared with the one by which the cache and the hub name it."""
        file = self.folder(commit) / name
        place = Path(os.path.realpath(file))
        remote = self._listed.get(commit, {}).get(name)
        expected = remote.digest if remote and remote.digest else place.name
        found = digest_of(file, expected)
        if _DIGEST.match(expected) and found != expected:
            place.unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            raise DataError(
                f"{self.address}: {name} arrived with another digest than the hub names, and was "
                "removed: run the same command again to fetch it again"
            )
        sha256 = found if len(found) == 64 else digest_of(file, "")
        return entry(sha256, file.stat().st_size)

    def _not_cached(self, name: str) -> DataError:
        from huggingface_hub import constants

        return DataError(
            f"{self.address}: {name} is not in the cache ({constants.HF_HUB_CACHE}), and "
            "HF_HUB_OFFLINE is set: run once without it, or give a folder"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what huggingface_hub raises as an error of one line."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            if found := self._explained(error):
                raise found from error
            raise

    def _explained(self, error: Exception) -> PipelineError | None:
        from huggingface_hub import constants, errors
        from requests.exceptions import RequestException

        token = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "a token in HF_TOKEN"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return DataError(
                f"{self.address} is gated: accept its terms on its page, and set HF_TOKEN to a "
                "token of that account"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return DataError(
                f"{self.address}: there is no such revision: give a branch, a tag or a commit of "
                f"hf://{self.address.name}"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return DataError(
                f"{self.address} is not on the hub, or is private: correct the name, or give "
                f"{token} that may read it"
            )
        gone = isinstance(error, errors.EntryNotFoundError)
        if gone and not isinstance(error, errors.LocalEntryNotFoundError):
            return DataError(f"{self.address}: a file of it is not there: use another revision")
        if status in (401, 403):
            return DataError(
                f"{self.address} may not be read ({status}): give {token} that may read it"
            )
        if status is not None:
            return DataError(f"{self.address}: the hub answered {status}: wait, and {_AGAIN}")
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(
                f"the disk of {constants.HF_HUB_CACHE} is full: free some space, or set HF_HOME to "
                f"a folder on another disk, and {_AGAIN}"
            )
        if isinstance(error, RequestException | errors.LocalEntryNotFoundError | ConnectionError):
            return DataError(
                f"{self.address} cannot be reached ({_reason(error)}): check the network and "
                f"HF_ENDPOINT, and {_AGAIN}"
            )
        if isinstance(error, OSError) and "Consistency check failed" in str(error):
            return DataError(f"{self.address}: a file arrived with another size: {_AGAIN}")
        return None


def _reason(error: BaseException) -> str:
    """Why a connection failed: the name of the innermost error, as its text may be long."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = getattr(error, "strerror", None) or type(error).__name__
    return str(text)[:80]


def _remotes(info: Any) -> dict[str, Remote]:
    found = {}
    for file in info.siblings or ():
        lfs = file.lfs or {}
        digest = str(lfs.get("sha256") or file.blob_id or "")
        found[file.rfilename] = Remote(file.rfilename, int(file.size or 0), digest, digest)
    return found


def _bytes(files: Mapping[str, Remote], name: str) -> int:
    return files[name].bytes if name in files else 0  # offline, what is missing is not listed


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # renamed meanwhile
        return 0
