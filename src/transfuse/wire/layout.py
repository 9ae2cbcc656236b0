"""One way to declare a binary structure, used for FUSE, and for every other format the project reads.

A structure is a class whose annotations are its fields in header order, each with an explicit width::

    class GetattrIn(WireStruct):
        getattr_flags: u32
        dummy: u32
        fh: u64

From that the class gets ``SIZE``, ``FIELDS`` (name, offset, size), a constructor with keyword arguments that default to
zero, ``decode``/``encode``, and ``codec(order)``: a ready ``struct.Struct`` over the flattened fields for hot paths,
which work on the plain tuple (0.2 µs for 40 bytes, an instance costs 0.5 µs).

Fields follow one another with no gaps: what C pads must be declared. ``pad(n)`` declares bytes that are written as zero
and not kept. Byte order is an argument ("<" or ">"), or fixed for a format by ``class X(WireStruct, order="<")``; it is
never the host's. ``fixed(T, n)`` is an array, ``chars(n)`` is n raw bytes. ``since(T, minor)`` marks a field that older
peers do not send: ``size_at(minor)`` gives the shorter length.

This module knows nothing of any protocol and does no I/O.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args, get_origin

from transfuse.errors import RemoteProtocolError

__all__ = [
    "ByteOrder",
    "FieldInfo",
    "WireStruct",
    "chars",
    "fixed",
    "i16",
    "i32",
    "i64",
    "pad",
    "since",
    "u8",
    "u16",
    "u32",
    "u64",
]

ByteOrder = Literal["<", ">"]
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Scalar:
    """One integer; `code` is its character in the struct module's language."""

    code: str


@dataclass(frozen=True, slots=True)
class Chars:
    """`count` raw bytes, kept as one bytes value of exactly that length."""

    count: int


@dataclass(frozen=True, slots=True)
class Padding:
    """`count` bytes that carry nothing."""

    count: int


@dataclass(frozen=True, slots=True)
class Array:
    """`count` items of an integer or structure, kept as a tuple."""

    item: Any
    count: int


@dataclass(frozen=True, slots=True)
class Since:
    """A field that exists from protocol minor `minor` on."""

    minor: int


u8 = Annotated[int, Scalar("B")]
u16 = Annotated[int, Scalar("H")]
u32 = Annotated[int, Scalar("I")]
u64 = Annotated[int, Scalar("Q")]
i16 = Annotated[int, Scalar("h")]
i32 = Annotated[int, Scalar("i")]
i64 = Annotated[int, Scalar("q")]


def pad(count: int) -> Any:
    """`count` bytes of padding: zero when encoded, ignored when decoded."""
    return Annotated[None, Padding(count)]


def chars(count: int) -> Any:
    """A field of `count` raw bytes."""
    return Annotated[bytes, Chars(count)]


def fixed(item: Any, count: int) -> Any:
    """An array of `count` integers or structures."""
    return Annotated[tuple, Array(item, count)]


def since(field: Any, minor: int) -> Any:
    """Mark `field` as sent only by peers of protocol minor `minor` or newer."""
    return Annotated[field, Since(minor)]


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """One declared field: where it lies and how it is written."""

    name: str
    offset: int
    size: int
    kind: Any
    """Scalar, Chars, Padding, Array, or a WireStruct class."""
    since: int | None
    """Protocol minor that introduced it, or None."""


def _resolve(annotation: Any) -> tuple[Any, int | None]:
    """The kind of a field and the minor it appeared in."""
    minor: int | None = None
    kind: Any = annotation
    if get_origin(annotation) is Annotated:
        kind = get_args(annotation)[0]
        for mark in annotation.__metadata__:
            if isinstance(mark, Since):
                minor = mark.minor
            else:
                kind = mark
    return kind, minor


def _format(kind: Any) -> str:
    match kind:
        case Scalar(code):
            return code
        case Chars(count):
            return f"{count}s"
        case Padding(count):
            return f"{count}x"
        case Array(item, count):
            return _format(_resolve(item)[0]) * count
        case type() if issubclass(kind, WireStruct):
            return kind.FORMAT
    raise TypeError(f"{kind!r} is not a field type")


def _width(kind: Any) -> int:
    """How many values of the flattened tuple the field takes."""
    match kind:
        case Padding():
            return 0
        case Array(item, count):
            return _width(_resolve(item)[0]) * count
        case type() if issubclass(kind, WireStruct):
            return kind.WIDTH
    return 1


def _build(kind: Any, values: list[Any], at: int) -> Any:
    """The Python value of a field from its slice of the flattened tuple."""
    match kind:
        case Array(item, count):
            inner = _resolve(item)[0]
            step = _width(inner)
            return tuple(_build(inner, values, at + i * step) for i in range(count))
        case type() if issubclass(kind, WireStruct):
            return kind._from_values(values[at : at + kind.WIDTH])
    return values[at]


def _flatten(kind: Any, value: Any) -> Iterator[Any]:
    match kind:
        case Array(item, count):
            if len(value) != count:
                raise ValueError(f"{len(value)} items where {count} belong")
            inner = _resolve(item)[0]
            for one in value:
                yield from _flatten(inner, one)
        case Chars(count):
            # struct's "s" would cut or fill a value of another length without a word.
            if len(value) != count:
                raise ValueError(f"{len(value)} bytes where {count} belong")
            yield value
        case type() if issubclass(kind, WireStruct):
            for field in kind.FIELDS:
                if not isinstance(field.kind, Padding):
                    yield from _flatten(field.kind, getattr(value, field.name))
        case _:
            yield value


def _zero(kind: Any) -> Any:
    match kind:
        case Chars(count):
            return bytes(count)
        case Array(item, count):
            return tuple(_zero(_resolve(item)[0]) for _ in range(count))
        case type() if issubclass(kind, WireStruct):
            return kind()
    return 0


class _StructType(type):
    """Turns the annotations of a class into slots before the class exists."""

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], order: ByteOrder | None = None
    ) -> Any:
        annotations: dict[str, Any] = namespace.get("__annotations__", {})
        if bases and not name.startswith("_"):
            scope = sys.modules[namespace["__module__"]].__dict__
            fields = []
            offset = 0
            for field_name, annotation in annotations.items():
                if isinstance(annotation, str):
                    if annotation.startswith("ClassVar"):
                        continue
                    # The annotation is our own source text (PEP 563), never data from outside.
                    annotation = eval(annotation, scope)
                kind, minor = _resolve(annotation)
                size = struct.calcsize("<" + _format(kind))
                if getattr(kind, "ORDER", None) not in (None, order):
                    raise TypeError(f"{name}.{field_name}: a structure in order {kind.ORDER!r} inside one in {order!r}")
                fields.append(FieldInfo(field_name, offset, size, kind, minor))
                offset += size
            kept = tuple(field.name for field in fields if not isinstance(field.kind, Padding))
            namespace["__slots__"] = kept
            namespace["__match_args__"] = kept
            namespace["FIELDS"] = tuple(fields)
            namespace["FORMAT"] = "".join(_format(field.kind) for field in fields)
            namespace["WIDTH"] = sum(_width(field.kind) for field in fields)
            namespace["SIZE"] = offset
            namespace["ORDER"] = order
            namespace["FLAT"] = all(isinstance(field.kind, Scalar | Chars | Padding) for field in fields)
            namespace["_codecs"] = {}
        else:
            namespace["__slots__"] = ()
        return super().__new__(mcls, name, bases, namespace)

    def __init__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], order: ByteOrder | None = None
    ) -> None:
        super().__init__(name, bases, namespace)


class WireStruct(metaclass=_StructType):
    """Base of all declared structures. Treat instances as values: do not change one after decoding it."""

    SIZE: ClassVar[int] = 0
    FORMAT: ClassVar[str] = ""
    WIDTH: ClassVar[int] = 0
    FIELDS: ClassVar[tuple[FieldInfo, ...]] = ()
    ORDER: ClassVar[ByteOrder | None] = None
    FLAT: ClassVar[bool] = True
    _codecs: ClassVar[dict[str, struct.Struct]] = {}

    def __init__(self, **values: Any) -> None:
        for field in self.FIELDS:
            if not isinstance(field.kind, Padding):
                value = values.pop(field.name) if field.name in values else _zero(field.kind)
                setattr(self, field.name, value)
        if values:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(values))!r}")

    @classmethod
    def codec(cls, order: ByteOrder | None = None) -> struct.Struct:
        """The struct.Struct over all fields, flattened, in the given byte order."""
        order = cls.ORDER or order or "<"
        found = cls._codecs.get(order)
        if found is None:
            found = cls._codecs[order] = struct.Struct(order + cls.FORMAT)
        return found

    @classmethod
    def size_at(cls, minor: int) -> int:
        """Bytes that a peer of protocol minor `minor` sends: the fields up to the first that is newer."""
        for field in cls.FIELDS:
            if field.since is not None and field.since > minor:
                return field.offset
        return cls.SIZE

    @classmethod
    def decode(cls, buffer: Buffer, offset: int = 0, order: ByteOrder | None = None) -> Self:
        """Read one structure at `offset`.

        Raises RemoteProtocolError naming structure and offset when fewer than SIZE bytes are there.
        """
        if len(buffer) - offset < cls.SIZE or offset < 0:
            raise RemoteProtocolError(
                f"{cls.__name__} at {offset:#x}: {max(0, len(buffer) - offset)} bytes where {cls.SIZE} belong"
            )
        return cls._from_values(cls.codec(order).unpack_from(buffer, offset))

    @classmethod
    def _from_values(cls, values: Any) -> Self:
        self = cls.__new__(cls)
        if cls.FLAT:
            for name, value in zip(cast(Any, cls).__slots__, values, strict=True):
                setattr(self, name, value)
            return self
        at = 0
        for field in cls.FIELDS:
            if not isinstance(field.kind, Padding):
                setattr(self, field.name, _build(field.kind, values, at))
                at += _width(field.kind)
        return self

    def values(self) -> tuple[Any, ...]:
        """The flattened fields, in the order `codec` packs them."""
        return tuple(_flatten(type(self), self))

    def encode(self, order: ByteOrder | None = None) -> bytes:
        """The structure as SIZE bytes. A field that does not fit its width raises struct.error."""
        return self.codec(order).pack(*self.values())

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.values() == other.values()

    def __hash__(self) -> int:
        return hash((type(self), self.values()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in cast(Any, type(self)).__slots__)
        return f"{type(self).__name__}({inside})"
