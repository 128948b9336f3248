"""Conversion of a TOML file and `section.key=value` arguments to a tree of frozen dataclasses, and back.

Paths: in a TOML file in a folder called `configs`, or in `configs/data`, `configs/model` or `configs/recipes`, a path
is relative to the folder above `configs`. In any other TOML file, and on the command line, it is relative to the
working directory. Fields that hold a path are annotated as `LocalPath`; those that may name a user's function, as
`OwnFunction`.
"""

import dataclasses
import os
import re
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tomli
import tomli_w

from r1zero.config.errors import UserError
from r1zero.config.files import check_utf8, read_text
from r1zero.config.suggestions import suggest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LocalPath = Annotated[str, "path"]
"""Path of a local file or folder; empty: none."""
OwnFunction = Annotated[str, "path.py:function"]
"""A name that the program knows, or a function in a file of the user, as `path.py:function`."""
_REPLACED = {"grpo.clip_ratio": "set grpo.clip_low and grpo.clip_high to its value instead"}
"""Key of an earlier version -> the keys to set instead."""
_CONFIG_FOLDERS = re.compile(r"(.*)/configs(/data|/model|/recipes)?", re.DOTALL)


T = TypeVar("T", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a value comes from."""

    place: str
    """How errors about the value begin: with the TOML file, or the argument."""
    start: str
    """The folder to which relative paths refer; empty: the working directory."""


def load(path: str, overrides: list[str], cls: type[T]) -> T:
    """Read a TOML file into the dataclass `cls` and apply `section.key=value` overrides. Raises UserError."""
    tree = read_toml(path)
    for text in overrides:
        _override(tree, text)
    return _build(cls, tree, _Source(path, _start(path)), "")


def _start(path: str) -> str:
    """Returns the folder to which relative paths in a TOML file refer; empty: the working directory."""
    found = _CONFIG_FOLDERS.fullmatch(os.path.dirname(os.path.abspath(path)))
    start = (found[1] or "/") if found else ""
    check_utf8(start, repr(path))
    return "" if start == os.getcwd() else start


def read_toml(path: str) -> dict[str, Any]:
    """Read a TOML file. Raises UserError with file and line if the file is missing or is not TOML."""
    try:
        return tomli.loads(read_text(path, "name an existing TOML file"))
    except (ValueError, RecursionError) as error:  # ValueError also for a number with thousands of digits
        raise UserError(f"{path}: is not TOML: {error}") from None


def dump(config: Any) -> str:
    """Returns the resolved config as TOML. Loading it gives an equal config."""
    return tomli_w.dumps(plain(config))


def plain(value: Any) -> Any:
    """Returns a dataclass or a tuple as dicts and lists, for TOML and JSON. Fields that are None are omitted."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: plain(item) for name, item in pairs if item is not None}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


class _Argument(str):
    """A value from the command line. Its type depends on the field that it is for."""

    source: _Source

    def parsed(self) -> Any:
        try:
            return tomli.loads(f"x = {self}")["x"]
        except (ValueError, RecursionError):
            return str(self)


class _ArgumentSection(dict[str, Any]):
    """A section that exists only because an argument names one of its keys."""

    source: _Source


def _override(tree: dict[str, Any], text: str) -> None:
    source = _Source(f"argument {text!r}", "")
    check_utf8(text, source.place)
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{source.place}: is neither an option nor section.key=value; see --help")
    *sections, name = key.strip().split(".")
    for section in sections:
        if section not in tree:
            tree[section] = _ArgumentSection()
            tree[section].source = source
        tree = tree[section]
        if not isinstance(tree, dict):
            raise UserError(f"{source.place}: {section!r} is a value, not a section")
    tree[name] = _Argument(value)
    tree[name].source = source


def _build(cls: type[T], tree: dict[str, Any], source: _Source, prefix: str) -> T:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in tree.items():
        if key not in fields:
            place = getattr(value, "source", source).place
            if prefix + key in _REPLACED:
                raise UserError(f"{place}: {prefix}{key} no longer exists; {_REPLACED[prefix + key]}")
            hint = suggest(key, fields, spell=lambda known: prefix + known)
            raise UserError(f"{place}: unknown key {prefix}{_spelt(key)}; {hint}")
    values = {name: tree[name] if name in tree else _default(field, source, prefix) for name, field in fields.items()}
    return cls(**{name: _convert(hints[name], value, source, prefix + name) for name, value in values.items()})


def _default(field: dataclasses.Field[Any], source: _Source, prefix: str) -> Any:
    """Returns the default as if it were written in the file, so that a default path refers to the same folder."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is dataclasses.MISSING:
        raise UserError(f"{source.place}: {prefix}{field.name} is missing and has no default")
    return {} if dataclasses.is_dataclass(field.default_factory) else field.default_factory()


def _convert(hint: Any, value: Any, source: _Source, name: str) -> Any:
    source = getattr(value, "source", source)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _located(_convert(args[0], value, source, name), args[1], source, name)
    inner = [a for a in args if a is not type(None)]
    if type(None) in args and len(inner) == 1:
        return None if value is None else _convert(inner[0], value, source, name)
    if isinstance(value, _Argument):  # run.name=7 is a text, run.seed=7 a number
        parsed = value.parsed()
        value = str(value) if hint is str and not isinstance(parsed, str) else parsed
    if origin in (typing.Union, types.UnionType):  # a number or a word
        words = [word for a in inner if typing.get_origin(a) is Literal for word in typing.get_args(a)]
        if value in words:
            return str(value)
        if type(value) not in inner:
            known = ", ".join(map(repr, words))
            raise UserError(f"{source.place}: {name} = {_shown(value)}; it must be a number or {known}")
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{source.place}: {name} = {_shown(value)} is a value; it must be a section")
        return _build(hint, value, source, name + ".")
    if origin is Literal:
        if value not in args:
            raise UserError(f"{source.place}: {name} = {_shown(value)}; it must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], v, source, f"{name}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        names = {key: f"{name}.{_spelt(key)}" for key in value}
        return {
            _convert(args[0], k, source, names[k]): _convert(args[1], v, source, names[k]) for k, v in value.items()
        }
    if hint is Any and isinstance(value, dict):
        return {key: _convert(Any, inner, source, f"{name}.{_spelt(key)}") for key, inner in value.items()}
    if hint is float and type(value) is int:
        if abs(value) >= 1 << 1023:
            raise UserError(f"{source.place}: {name} = {_shown(value)} is too large; it must be less than 1e308")
        return float(value)
    if hint is Any or type(value) is (origin or hint):
        return value
    raise UserError(
        f"{source.place}: {name} = {_shown(value)} is of type {type(value).__name__}; "
        f"it must be {getattr(origin or hint, '__name__', hint)}"
    )


def _spelt(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer with over 4,300 digits
        return "a number too long to show"


def _located(value: str, kind: str, source: _Source, name: str) -> str:
    """Returns a path, or the path of a user's function, relative to the folder of its source."""
    path, colon, function = value.rpartition(":") if kind == "path.py:function" else (value, "", "")
    if "\0" in path:
        raise UserError(f"{source.place}: {name} = {value!r} has a null character, which no path has")
    return os.path.join(source.start, path) + colon + function if source.start and path else value
