"""What each artifact, registered version and file came from, and what was made from it.

    lineage = read_lineage(artifacts, versions)
    lineage.trace("champion")      # everything before and after it

Manifests and the registry's tags name everything by its digest, so nothing else is read. What they
name and is no longer here is part of the lineage, too.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.core.artifact import Manifest, every_kept, main_folder, sha256_of_file
from pipeline.core.errors import ArtifactError, ConfigError, short
from pipeline.core.paths import MANIFEST
from pipeline.tracking.registry_reader import STORE, Version

DIGEST = "digest."  # of a version's tags, and a stage's name
LEAST_PREFIX = 6  # characters of a digest that is not given whole
SHOWN = 12  # characters of a digest
Kind = Literal["file", "artifact", "version"]
_KINDS: Sequence[Kind] = ("file", "artifact", "version")


@dataclass(frozen=True)
class Node:
    """A thing with a digest.

    id: its kind and digest, or the number of a version. name: of the stage, the file, or the
        version. digest: of its content; "" of a version. places: where it is, relative to the
        project; none: it is no longer here. facts: what else is known, as JSON.
    """

    id: str
    kind: Kind
    name: str
    digest: str = ""
    places: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """As in "finetune 58f01e20b2c1"."""
        return f"{self.name} {self.digest[:SHOWN]}".strip()


@dataclass(frozen=True)
class Trace:
    """of: what was asked for. before: what it came from, the first things first. after: what was
    made from it, in the order in which it was made."""

    of: Sequence[Node]
    before: Sequence[Node]
    after: Sequence[Node]


@dataclass
class Lineage:
    """nodes: by id. sources: by id, the ids of what it was made from. marks: by another digest of a
    node (its manifest's seal or fingerprint, a file's sha256), ids, and the file's name."""

    nodes: dict[str, Node] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    marks: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, node: Node, sources: Iterable[str] = ()) -> None:
        """Add a node, or what is new about one that is there."""
        if known := self.nodes.get(node.id):
            places = tuple(dict.fromkeys((*known.places, *node.places)))
            node = replace(known, places=places, facts={**node.facts, **known.facts})
        self.nodes[node.id] = node
        have = self.sources[node.id]
        have += [source for source in sources if source not in have]

    @cached_property
    def order(self) -> dict[str, int]:
        """A place for each id, after those of everything that it was made from."""
        order: dict[str, int] = {}
        kinds = {kind: i for i, kind in enumerate(_KINDS)}

        def rank(node: Node) -> tuple[int, str, str]:
            return kinds[node.kind], str(node.facts.get("made", "")), node.name

        def visit(node_id: str, above: frozenset[str]) -> None:
            if node_id in order or node_id in above:
                return
            for source in sorted(self.sources[node_id], key=lambda i: rank(self.nodes[i])):
                visit(source, above | {node_id})
            order[node_id] = len(order)

        for node in sorted(self.nodes.values(), key=rank):
            visit(node.id, frozenset())
        return order

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """By id, the ids of what was made from it."""
        users: dict[str, list[str]] = defaultdict(list)
        for node_id, sources in self.sources.items():
            for source in sources:
                users[source].append(node_id)
        return users

    def before(self, *ids: str) -> list[Node]:
        """Everything that these were made from, the first things first."""
        return self._reached(ids, self.sources)

    def after(self, *ids: str) -> list[Node]:
        """Everything that was made from these, in the order in which it was made."""
        return self._reached(ids, self.users)

    def all(self) -> list[Node]:
        return sorted(self.nodes.values(), key=lambda node: self.order[node.id])

    def trace(self, wanted: str) -> Trace:
        """What `find` finds, with everything before and after it.

        Raises:
            ConfigError, ArtifactError: as find() does.
        """
        of = self.find(wanted)
        ids = [node.id for node in of]
        return Trace(of, self.before(*ids), self.after(*ids))

    def find(self, wanted: str) -> list[Node]:
        """What a name means: an artifact's (finetune), a version's (3, champion), a path, or the
        beginning of a digest, seal or fingerprint, of a file too. Several artifacts can hold one
        file.

        Raises:
            ConfigError: the beginning of a digest is that of several. ArtifactError: there is no
            such thing.
        """
        for found in (self._version(wanted), self._path(wanted), self._digest(wanted)):
            if found:
                return [self.nodes[node_id] for node_id in dict.fromkeys(found)]
        raise ArtifactError(
            f"nothing here is called {short(wanted)}: give an artifact ({self._names()}), a "
            "version's number or alias, a path, or at least "
            f"{LEAST_PREFIX} characters of a digest"
        )

    def _names(self) -> str:
        names = dict.fromkeys(n.name for n in self.all() if n.kind == "artifact" and n.places)
        return ", ".join(names) or "there is none yet: run stage=all"

    def _reached(self, ids: Iterable[str], links: Mapping[str, Sequence[str]]) -> list[Node]:
        first = list(ids)
        seen, waiting = set(first), list(first)
        while waiting:
            for other in links.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return [self.nodes[i] for i in sorted(seen - set(first), key=lambda i: self.order[i])]

    def _version(self, wanted: str) -> list[str]:
        number = wanted.removeprefix("version ")
        return [
            node.id
            for node in self.nodes.values()
            if node.kind == "version"
            and (number == str(node.facts["number"]) or wanted in node.facts["aliases"])
        ]

    def _path(self, wanted: str) -> list[str]:
        """By an artifact's name or folder, a file in one, or a file that one was made from."""
        at = [
            (len(place), node.id)
            for node in self.nodes.values()
            if node.kind == "artifact"
            for place in node.places
            if _is_at(wanted, place)
        ]
        if at:  # a run of a sweep has artifacts of the same names, in deeper folders
            return [min(at)[1]]
        path = Path(wanted)
        for folder in path.parents:
            if (folder / MANIFEST).is_file():
                return self._path(str(folder))
        for node in self.nodes.values():
            if node.kind == "file" and any(_same_place(path, place) for place in node.places):
                return [node.id]
        if path.is_file() and (found := self._digest(sha256_of_file(path))):
            return found
        inside = (
            node.id
            for node in self.nodes.values()
            if node.kind == "file"
            and any(_same_place(folder, p) for folder in path.parents for p in node.places)
        )
        return list(inside) if path.exists() else []

    def _digest(self, wanted: str) -> list[str]:
        digest = wanted.lower().removeprefix("sha256:")
        if not re.fullmatch(rf"[0-9a-f]{{{LEAST_PREFIX},64}}", digest):
            return []
        found = {n.digest for n in self.nodes.values() if n.digest.startswith(digest)}
        found |= {mark for mark in self.marks if mark.startswith(digest)}
        if len(found) > 1:
            ids = {i for mark in found for i in self._with(mark)}
            if len(ids) > 1:
                named = ", ".join(f"{self._words(mark)}" for mark in sorted(found)[:4])
                raise ConfigError(
                    f"{wanted} is the beginning of {len(found)} digests ({named}): give more of it"
                )
        return [i for mark in found for i in self._with(mark)]

    def _with(self, digest: str) -> list[str]:
        own = [node.id for node in self.nodes.values() if node.digest == digest]
        return [*own, *(node_id for node_id, _ in self.marks.get(digest, ()))]

    def _words(self, digest: str) -> str:
        names = [self.nodes[i].name for i in self._with(digest)]
        return f"{digest[: 2 * SHOWN]} of {' and '.join(dict.fromkeys(names))}"


def read_lineage(artifacts: Path, versions: Iterable[Version] = ()) -> Lineage:
    """The lineage of a project's artifacts, those of other settings and of sweeps too, and of the
    versions in its registry. A manifest that cannot be read is left out."""
    lineage, folder = Lineage(), main_folder(artifacts)
    for place, manifest in every_kept(artifacts):
        _add_artifact(lineage, place, manifest, folder)
    for version in versions:
        _add_version(lineage, version)
    return lineage


def _add_artifact(lineage: Lineage, place: Path, manifest: Manifest, folder: Path) -> None:
    node_id, sources = artifact_id(manifest.stage, manifest.digest), []
    for path, digest in _files(manifest):
        sources.append(f"file {digest}")
        lineage.add(Node(sources[-1], "file", path, digest, (path,)))
    for stage, digest in manifest.inputs.items():
        sources.append(artifact_id(stage, digest))
        lineage.add(Node(sources[-1], "artifact", stage, digest))
    facts = {
        "kind": manifest.kind,
        "made": manifest.created,
        "bytes": manifest.bytes,
        "fingerprint": manifest.fingerprint,
        "commit": manifest.code.get("commit", ""),
        "failure": manifest.failure,
    }
    prepare = manifest.config.get("prepare")
    if isinstance(prepare, Mapping) and prepare.get("mask_pii"):
        facts["masked"] = list(prepare["mask_pii"])
    where = place.relative_to(folder).as_posix() if place.is_relative_to(folder) else str(place)
    node = Node(node_id, "artifact", manifest.stage, manifest.digest, (f"{folder}/{where}",), facts)
    lineage.add(node, sources)
    for mark in (manifest.seal, manifest.fingerprint):
        lineage.marks[mark].append((node_id, ""))
    for name, entry in manifest.files.items():
        lineage.marks[entry["sha256"]].append((node_id, name))


def _add_version(lineage: Lineage, version: Version) -> None:
    made_from = {
        key.removeprefix(DIGEST): digest
        for key, digest in version.tags.items()
        if key.startswith(DIGEST)
    }
    sources = []
    for stage, digest in made_from.items():
        sources.append(artifact_id(stage, digest))
        lineage.add(Node(sources[-1], "artifact", stage, digest))
    facts = {
        "number": version.number,
        "model": version.name,
        "aliases": list(version.aliases),
        "gate": version.tags.get("gate", ""),
        "store": version.tags.get(STORE, ""),
        "forgotten": version.forgotten,
    }
    lineage.add(Node(version_id(version.number), "version", version.title, facts=facts), sources)


def artifact_id(stage: str, digest: str) -> str:
    return f"{stage} {digest}"


def version_id(number: int) -> str:
    return f"version {number}"


def _files(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Path and digest of each file or folder outside the artifacts that a stage read."""
    files = manifest.environment.get("files")
    if isinstance(files, Mapping):
        for path, digest in files.items():
            if isinstance(digest, str):
                yield str(path), digest


def _is_at(wanted: str, place: str) -> bool:
    """Whether a name or path means an artifact's folder: `finetune`, `.variants/finetune-…`."""
    return place.endswith(f"/{wanted.rstrip('/')}") or _same_place(Path(wanted), place)


def _same_place(path: Path, place: str) -> bool:
    return path.absolute() == Path(place).absolute()
