"""From dataclasses to plain JSON and back: the one reader, writer and checker of everything in a record.

A dataclass describes a block; each of its fields is made by `key`, which says what it means and in which unit. Types
may be str, int, float, bool, `JSON`, a Literal of texts, list[T], dict[str, T], T | None, or another such dataclass. A
field with a dataclass as its type is never None in Python: a block with nothing in it is written as null.
"""

import math
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

JSON: TypeAlias = Any  # what JSON can hold and nobody here defines: str, int, float, bool, None, lists, dicts of these
Reader: TypeAlias = Callable[[object], Any]  # what JSON holds → the value; raises Malformed
T = TypeVar("T")

REQUIRED: Any = MISSING
LARGEST = 1 << 63  # whole numbers are smaller
DEEPEST = 32  # levels of lists and dicts inside one key


class Malformed(ValueError):
    """Something is not what the record's definition says: `problem`, at `path`."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(f"{path or 'it'} {problem}")
        self.problem, self.path = problem, path

    def inside(self, name: str) -> "Malformed":
        """The same, told from the block or list that has it under `name`."""
        return Malformed(self.problem, f"{name}.{self.path}" if self.path else name)


def key(meaning: str, unit: str = "", default: object = None) -> Any:
    """A key of a record: what it means, its unit, and what it is where there is nothing to say (a class: a new one)."""
    metadata = {"meaning": meaning, "unit": unit}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def to_plain(block: object) -> JSON:
    """A dataclass as plain JSON, with every key; a block inside it that is empty is None."""
    return {name: _plain(getattr(block, name)) for name in names(block.__class__)}


def _plain(value: object) -> JSON:
    if is_dataclass(value):
        return None if is_empty(value) else to_plain(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def is_empty(block: Any) -> bool:
    """Whether nothing has been written into a block: every field is what it is by itself."""
    default = _empty(block.__class__)
    return default is not None and block == default


@cache
def _empty(cls: type) -> object:
    return None if required_keys(cls) else cls()


def required_keys(cls: type) -> tuple[str, ...]:
    """The keys that a block cannot do without."""
    return tuple(one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING)


def names(block: Any) -> tuple[str, ...]:
    """The keys of a block (or of its class), in the order in which they are written."""
    return tuple(block.__dataclass_fields__)


@cache
def types_of(cls: type) -> dict[str, object]:
    """Key → type, for each key of a block."""
    return get_type_hints(cls)


def from_plain(cls: type[T], value: object) -> T:
    """A dataclass from plain JSON; keys that it does not have are passed over.

    Raises Malformed, with the path, for the first key that is missing or not of its type.
    """
    kind: Any = cls
    return reader_of(kind)(value)


@cache
def reader_of(kind: Hashable) -> Reader:
    """The function that reads one type, made once."""
    if kind in PLAIN:
        return PLAIN[kind]
    if is_dataclass(kind):
        return _block_reader(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if _is_optional(kind):
        return _optional_reader(_without_none(kind))
    if origin is Literal:
        return _choice_reader(arguments)
    if origin is list:
        return _list_reader(arguments[0])
    if origin is dict and arguments[0] is str:
        return _dict_reader(arguments[1])
    raise TypeError(f"a record has no values of type {kind}")


def _without_none(kind: object) -> object:
    inner = [part for part in get_args(kind) if part is not type(None)]
    if len(inner) != 1 or len(get_args(kind)) != 2:
        raise TypeError(f"a record has no values of type {kind}")
    return inner[0]


def _block_reader(cls: type) -> Reader:
    readers = {name: reader_of(kind) for name, kind in types_of(cls).items()}
    required = required_keys(cls)

    def read(value: object) -> object:
        if value is None and not required:
            return cls()
        if type(value) is not dict:
            raise Malformed(f"is {described(value)}, not an object")
        values = {}
        name = ""
        try:
            for name, part in value.items():
                if name in readers:
                    values[name] = readers[name](part)
        except Malformed as error:
            raise error.inside(name) from None
        for name in required:
            if name not in values:
                raise Malformed("is missing", name)
        return cls(**values)

    return _fast_reader(cls, readers, read)


# What a value of JSON must be to be taken as it is.
TAKEN = {
    str: "type({0}) is str",
    bool: "type({0}) is bool",
    int: f"type({{0}}) is int and {-LARGEST} < {{0}} < {LARGEST}",
    float: "type({0}) is float and {0} - {0} == 0.0",
}


def _fast_reader(cls: type, readers: Mapping[str, Reader], careful: Reader) -> Reader:
    """The same as `careful` in a quarter of the time: code for this class alone, made as dataclasses make theirs."""
    lines = ["def read(value):", " if type(value) is not dict:", "  return careful(value)"]
    lines += [" get, block = value.get, new(cls)", " try:"]
    for name, kind in types_of(cls).items():
        inner = _without_none(kind) if _is_optional(kind) else kind
        conditions = [TAKEN[inner].format("part")] if inner in TAKEN else []
        conditions += ["part is None"] if _is_optional(kind) else []
        lines.append(f"  part = get({name!r}, default_{name})")
        lines.append(f"  block.{name} = part if {' or '.join(conditions) or False} else read_{name}(part)")
    lines += [" except Malformed:", "  return careful(value)", " return block"]
    names_in_it: dict[str, Any] = {"cls": cls, "new": object.__new__, "careful": careful, "Malformed": Malformed}
    names_in_it |= {f"read_{name}": reader for name, reader in readers.items()}
    names_in_it |= {f"default_{one.name}": None if one.default is MISSING else one.default for one in fields(cls)}
    exec("\n".join(lines), names_in_it)
    return names_in_it["read"]


def _is_optional(kind: object) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _optional_reader(kind: object) -> Reader:
    reader = reader_of(kind)

    def read(value: object) -> object:
        return None if value is None else reader(value)

    return read


def _choice_reader(choices: tuple[str, ...]) -> Reader:
    def read(value: object) -> str:
        if type(value) is not str or value not in choices:
            raise Malformed(f"is {described(value)}, not one of {', '.join(choices)}")
        return value

    return read


def _list_reader(kind: object) -> Reader:
    reader = reader_of(kind)

    def read(value: object) -> list[object]:
        if value is None:
            return []
        if type(value) is not list:
            raise Malformed(f"is {described(value)}, not a list")
        if kind is float and _all_finite(value):
            return value
        return [reader(part) for part in value]

    return read


def _dict_reader(kind: object) -> Reader:
    reader = reader_of(kind)

    def read(value: object) -> dict[str, object]:
        if value is None:
            return {}
        if type(value) is not dict:
            raise Malformed(f"is {described(value)}, not an object")
        if (kind is str or kind is bool) and {kind}.issuperset(map(type, value.values())):
            return value
        values = {}
        name = ""
        try:
            for name, part in value.items():
                values[name] = reader(part)
        except Malformed as error:
            raise error.inside(name) from None
        return values

    return read


def _all_finite(values: list[JSON]) -> bool:
    """Whether these are floats, all finite; of some that are, it is not known."""
    return {float}.issuperset(map(type, values)) and math.isfinite(sum(values))


def _text(value: object) -> str:
    if type(value) is not str:
        raise Malformed(f"is {described(value)}, not a text")
    return value


def _integer(value: object) -> int:
    if type(value) is not int or not -LARGEST < value < LARGEST:
        raise Malformed(f"is {described(value)}, not a whole number")
    return value


def _number(value: object) -> float:
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if type(value) is int and -LARGEST < value < LARGEST:
        return value
    raise Malformed(f"is {described(value)}, not a finite number")


def _truth(value: object) -> bool:
    if type(value) is not bool:
        raise Malformed(f"is {described(value)}, not true or false")
    return value


def _json(value: JSON, depth: int = 0) -> JSON:
    """Free-form JSON as it is; numbers must be finite and the nesting within reason."""
    kind = type(value)
    if kind in SIMPLE:
        return value
    if kind is int or kind is float:
        return _number(value)
    if depth == DEEPEST:
        raise Malformed(f"is nested deeper than {DEEPEST} levels")
    if kind is list:
        for part in value:
            if type(part) not in SIMPLE:
                _json(part, depth + 1)
    elif kind is dict:
        for name, part in value.items():
            if type(part) not in SIMPLE:
                try:
                    _json(part, depth + 1)
                except Malformed as error:
                    raise error.inside(str(name)) from None
    else:
        raise Malformed(f"is {described(value)}, which JSON does not have")
    return value


SIMPLE = frozenset([str, bool, type(None)])
PLAIN: dict[object, Reader] = {str: _text, int: _integer, float: _number, bool: _truth, JSON: _json}


def described(value: object) -> str:
    """A value in a few words, for a message: "null", "a list", "'adam'"."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= LARGEST:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
