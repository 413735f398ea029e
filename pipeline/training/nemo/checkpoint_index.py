"""The index of a distributed checkpoint, `weights/.metadata`: read without running any of it.

    index = read_index(folder / "weights" / ".metadata")     # torch's Metadata object
    pickle.dump(canonical(index), stream)                    # the same bytes for the same weights

torch writes the index as a pickle, and pickle.load calls whatever functions the file names. Here
the opcodes of the pickle build plain data: lists, dicts, and records of what the file says about an
object. Only then are torch's objects made, from values whose types were checked. A file that names
anything else than the classes of an index is refused.
"""

from __future__ import annotations

import pickletools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ArtifactError

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.metadata import Metadata

INDEX = ".metadata"

_METADATA = "torch.distributed.checkpoint.metadata"
_INDEX_CLASS = f"{_METADATA}.Metadata"
_STORED = "torch.distributed.checkpoint.filesystem._StorageInfo"
_LAYOUT = "torch.serialization._get_layout"
_OBJECT = f"{_METADATA}.BytesStorageMetadata"
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
# What an index may name. Nothing in this list is called while the file is read.
_NAMES = frozenset(
    {
        _INDEX_CLASS,
        _STORED,
        _LAYOUT,
        "torch.Size",
        *(f"torch.{dtype}" for dtype in _DTYPES),
        *(
            f"{_METADATA}.{name}"
            for name in (
                *("TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
                *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
            )
        ),
    }
)
_SHARD = re.compile(r"__\d{1,6}_\d{1,6}\.distcp")
_MAX_DIMENSIONS = 16


class NotAnIndex(ValueError):
    """The file holds something that is not in the index of a checkpoint."""


def read_index(
    file: Path, again: str = "make the checkpoint again", *, others: bool = False
) -> Metadata:
    """The index of a checkpoint.

    again: what to do if it is none, for the message. others: it may have been written by another
    program, which also put objects beside the tensors and plans of its own into it. They are parsed
    as records of names, and left out.

    Raises:
        ArtifactError: the file cannot be read, or holds anything but an index.
    """
    try:
        return _index_of(read_plain(file.read_bytes(), others=others), others=others)
    except (OSError, NotAnIndex) as error:
        raise ArtifactError(
            f"{file} is not the index of a checkpoint ({error}), so nothing of it is read: {again}"
        ) from error


def canonical(index: Metadata) -> Metadata:
    """The index with what reading needs and in sorted order: neither the id of the save, nor the
    folder that was written to, nor the plans of the ranks that wrote."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        StorageMeta,
        TensorProperties,
        TensorStorageMetadata,
    )

    tensors = {}
    for name, tensor in sorted(index.state_dict_metadata.items()):
        if not isinstance(tensor, TensorStorageMetadata):
            raise TypeError(f"{name} is not a tensor; checkpoints here hold tensors only")
        tensors[sys.intern(name)] = TensorStorageMetadata(
            TensorProperties(tensor.properties.dtype),
            _size(tensor.size),
            [ChunkStorageMetadata(_size(c.offsets), _size(c.sizes)) for c in tensor.chunks],
        )
    places = {
        MetadataIndex(sys.intern(key.fqn), key.offset, key.index): _StorageInfo(
            sys.intern(place.relative_path), place.offset, place.length
        )
        for key, place in sorted(
            index.storage_data.items(), key=lambda item: (item[0].fqn, tuple(item[0].offset or ()))
        )
    }
    shapes = {
        sys.intern(name): {k: tuple(v) for k, v in sorted(data.items())}
        for name, data in sorted((getattr(index, "mcore_data", None) or {}).items())
    }
    return _with_shapes(
        Metadata(tensors, storage_data=places, storage_meta=StorageMeta(), version=index.version),
        shapes,
    )


def _with_shapes(index: Metadata, shapes: Mapping[str, Any]) -> Metadata:
    """Add Megatron-Core's part: shapes of flattened tensors. Its own class of an index has it too,
    but torch alone could not read that."""
    index.mcore_data = shapes  # type: ignore[attr-defined]
    return index


def _size(sizes: Sequence[int]) -> torch.Size:
    import torch

    return torch.Size(list(sizes))  # an object of its own: a pickle shows which ones are shared


# ---- The pickle's opcodes, without calls ----


@dataclass(frozen=True)
class Named:
    """A name in the file, as "package.module.name". It is never looked up."""

    name: str


@dataclass(eq=False)
class Described:
    """An object as the file describes it: what would make it, from which arguments and state."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_plain(data: bytes, *, others: bool = False) -> Any:
    """The value of a pickle, with a `Described` for each object.

    others: names and opcodes may be in it that no index needs. Nothing is called then, either.

    Raises:
        NotAnIndex: an opcode, a name or an order of opcodes that no index has.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int = 1) -> list[Any]:
        floor = marks[-1] if marks else 0
        if len(stack) - count < floor:
            raise NotAnIndex("it takes more values than it holds")
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    def pop_mark() -> list[Any]:
        if not marks:
            raise NotAnIndex("it has an end without a beginning")
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    def top(kind: type) -> Any:
        if not stack or type(stack[-1]) is not kind:
            raise NotAnIndex(f"it adds to what is no {kind.__name__.lower()}")
        return stack[-1]

    def fill(values: list[Any]) -> None:
        if others and stack and type(stack[-1]) is not dict:
            return  # items of an object that no index needs
        if len(values) % 2:
            raise NotAnIndex("it has a key without a value")
        try:
            top(dict).update(zip(values[::2], values[1::2], strict=True))
        except TypeError:
            raise NotAnIndex("it has a list as a key") from None

    for opcode, argument in _opcodes(data):
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "SHORT_BINUNICODE" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode[-1]))))
            case "APPEND" | "APPENDS":
                values = pop() if opcode == "APPEND" else pop_mark()
                if not (others and stack and type(stack[-1]) is Described):
                    top(list).extend(values)
            case "SETITEM":
                fill(pop(2))
            case "SETITEMS":
                fill(pop_mark())
            case "MEMOIZE":
                value = pop()[0]
                stack.append(value)
                memo[len(memo)] = value
            case "BINGET" | "LONG_BINGET":
                if argument not in memo:
                    raise NotAnIndex("it refers to what it did not keep")
                stack.append(memo[argument])
            case "STACK_GLOBAL":
                stack.append(_named(*pop(2), others=others))
            case "REDUCE" | "NEWOBJ":
                made, arguments = pop(2)
                if type(made) is not Named or type(arguments) is not tuple:
                    raise NotAnIndex("it calls what has no name")
                stack.append(Described(made.name, arguments))
            case "BUILD":
                state = pop()[0]
                described = top(Described)
                if described.state is not None:
                    raise NotAnIndex("it sets the state of an object twice")
                described.state = state
            case "BINFLOAT" | "SHORT_BINBYTES" | "BINBYTES" | "LONG4" | "BINUNICODE8" if others:
                stack.append(argument)
            case "EMPTY_SET" if others:
                stack.append([])
            case "ADDITEMS" if others:
                pop_mark()
            case "FROZENSET" if others:
                stack.append(tuple(pop_mark()))
            case "NEWOBJ_EX" if others:
                made, arguments, _ = pop(3)
                if type(made) is not Named or type(arguments) is not tuple:
                    raise NotAnIndex("it calls what has no name")
                stack.append(Described(made.name, arguments))
            case "STOP":
                if len(stack) != 1 or marks:
                    raise NotAnIndex("it ends in the middle")
                return stack[0]
            case _:
                raise NotAnIndex(f"it has the opcode {opcode}")
    raise NotAnIndex("it has no end")


def _opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(data):
            yield opcode.name, argument
    except (ValueError, UnicodeError, OverflowError) as error:
        raise NotAnIndex("it is not a whole pickle") from error


def _named(module: Any, name: Any, *, others: bool = False) -> Named:
    if type(module) is not str or type(name) is not str:
        raise NotAnIndex("it has a name that is no text")
    if (full := f"{module}.{name}") not in _NAMES and not others:
        raise NotAnIndex(f"it names {full[:100]!r}")
    return Named(full)


# ---- torch's objects, from plain data ----


def _index_of(plain: Any, *, others: bool = False) -> Metadata:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta

    fields = _fields(plain, _INDEX_CLASS)
    entries = list(_dict(fields, "state_dict_metadata"))
    objects = {
        name for name, entry in entries
        if others and type(entry) is Described and entry.name == _OBJECT
    }  # fmt: skip
    tensors = {_text(name): _tensor(entry) for name, entry in entries if name not in objects}
    places = {}
    for key, place in _dict(fields, "storage_data"):
        index, stored = _fields(key, f"{_METADATA}.MetadataIndex"), _fields(place, _STORED)
        name, offset = _text(index.get("fqn")), index.get("offset")
        if name in objects:
            continue
        if name not in tensors:
            raise NotAnIndex(f"it has a place for {name[:100]!r}, which is no tensor of it")
        if stored.get("transform_descriptors"):
            raise NotAnIndex("it asks for a transformation of the bytes")
        if not _SHARD.fullmatch(file := _text(stored.get("relative_path"))):
            raise NotAnIndex(f"it names the file {file[:100]!r}")
        number = index.get("index")
        places[
            MetadataIndex(
                name,
                None if offset is None else _sizes(offset),
                None if number is None else _number(number),
            )
        ] = _StorageInfo(file, _number(stored.get("offset")), _number(stored.get("length")))
    shapes = {}
    for name, data in () if others else _dict(fields, "mcore_data"):
        if type(data) is not dict:
            raise NotAnIndex("its shapes are of another kind")
        shapes[_text(name)] = {
            _text(k): tuple(_sizes(v)) if type(v) is Described else _numbers(v)
            for k, v in data.items()
        }
    version = fields.get("version")
    return _with_shapes(
        Metadata(
            tensors,
            storage_data=places,
            storage_meta=StorageMeta(),
            version=None if version is None else _text(version),
        ),
        shapes,
    )


def _tensor(plain: Any) -> Any:
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    fields = _fields(plain, f"{_METADATA}.TensorStorageMetadata")
    size, chunks = _sizes(fields.get("size")), fields.get("chunks")
    if type(chunks) is not list:
        raise NotAnIndex("a tensor has no list of parts")
    parts = []
    for chunk in chunks:
        part = _fields(chunk, f"{_METADATA}.ChunkStorageMetadata")
        offsets, sizes = _sizes(part.get("offsets")), _sizes(part.get("sizes"))
        if len(offsets) != len(size) or len(sizes) != len(size):
            raise NotAnIndex("a part has another number of dimensions than its tensor")
        parts.append(ChunkStorageMetadata(offsets, sizes))
    return TensorStorageMetadata(TensorProperties(_dtype(fields.get("properties"))), size, parts)


def _dtype(plain: Any) -> torch.dtype:
    """The type of a tensor. The other properties have one value in all checkpoints."""
    import torch

    state = _described(plain, f"{_METADATA}.TensorProperties").state
    if type(state) is not tuple or len(state) != 5:
        raise NotAnIndex("a tensor's properties are of another kind")
    dtype, layout, gradient, memory, pinned = state
    if type(dtype) is not Named or dtype.name.removeprefix("torch.") not in _DTYPES:
        raise NotAnIndex("a tensor has no type")
    plain_memory = _described(memory, f"{_METADATA}._MEM_FORMAT_ENCODING").arguments
    strided = _described(layout, _LAYOUT).arguments
    if strided != ("torch.strided",) or plain_memory != (0,):
        raise NotAnIndex("a tensor is not stored row by row")
    if type(gradient) is not bool or type(pinned) is not bool:
        raise NotAnIndex("a tensor's properties are of another kind")
    found: torch.dtype = getattr(torch, dtype.name.removeprefix("torch."))
    return found


def _described(plain: Any, name: str) -> Described:
    if type(plain) is not Described or plain.name != name:
        raise NotAnIndex(f"it has no {name.rpartition('.')[2]} where one belongs")
    return plain


def _fields(plain: Any, name: str) -> Mapping[str, Any]:
    described = _described(plain, name)
    if described.arguments or type(described.state) is not dict:
        raise NotAnIndex(f"a {name.rpartition('.')[2]} is of another kind")
    return described.state


def _dict(fields: Mapping[str, Any], name: str) -> Iterator[tuple[Any, Any]]:
    if type(value := fields.get(name)) is not dict:
        raise NotAnIndex(f"it has no {name}")
    yield from value.items()


def _sizes(plain: Any) -> torch.Size:
    described = _described(plain, "torch.Size")
    if len(described.arguments) != 1:
        raise NotAnIndex("it has a size without numbers")
    return _size(_numbers(described.arguments[0]))


def _numbers(plain: Any) -> tuple[int, ...]:
    if type(plain) is not tuple or len(plain) > _MAX_DIMENSIONS:
        raise NotAnIndex("it has a size that is no list of numbers")
    return tuple(_number(number) for number in plain)


def _number(plain: Any) -> int:
    if type(plain) is not int or not 0 <= plain < 2**62:
        raise NotAnIndex("it has a number that is none, or too large")
    return plain


def _text(plain: Any) -> str:
    if type(plain) is not str:
        raise NotAnIndex("it has a name that is no text")
    return plain
