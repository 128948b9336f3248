"""A TOML file and `section.key=value` arguments to a tree of frozen dataclasses, and back; the errors that users see.

Paths. In a TOML file that lies in a folder called `configs`, or in `configs/data` or `configs/model`, a path is
relative to the folder above `configs`. In any other TOML file, and on the command line, it is relative to the working
directory. Fields that hold a path are annotated as `LocalPath`, those that may name a user's function as `OwnFunction`.
"""

import dataclasses
import difflib
import json
import os
import re
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli
import tomli_w

LocalPath = Annotated[str, "path"]
"""A file or folder of this machine; empty: none."""
OwnFunction = Annotated[str, "path.py:function"]
"""A name known to the program, or a function of the user's own as `path.py:function`."""
_CONFIG_FOLDERS = re.compile(r"(.*)/configs(/data|/model)?", re.DOTALL)
_HALF = re.compile("[\ud800-\udfff]")
"""How Python spells bytes of an argument or a file name that are not UTF-8."""


class UserError(Exception):
    """What the user can mend: one sentence with the field or line, both values and the cure. Never a traceback."""


class Agreed(UserError):
    """Found by all ranks of a world together, and raised on each: one of them says it."""


SPEAKER_S = 3.0
"""Seconds that ranks wait for the one of them that speaks, as the first to leave may end the job."""


def found_alike(text: str, speaker: bool) -> UserError:
    """The error of ranks that find the same before they have met. One of them, the speaker, says it."""
    if speaker:
        return UserError(text)
    time.sleep(SPEAKER_S)
    return Agreed(text)


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a value was written."""

    place: str
    """What an error about the value begins with: the TOML file, or the argument."""
    start: str
    """The folder that relative paths are relative to; empty: the working directory."""


def load(path: str, overrides: list[str], cls: type[T]) -> T:
    """Read a TOML file into the dataclass `cls`, with `section.key=value` overrides on top. Raises UserError."""
    tree = read_toml(path)
    for text in overrides:
        _override(tree, text)
    return _build(cls, tree, _Source(path, _start(path)), "")


def _start(path: str) -> str:
    """The folder that relative paths of a TOML file are relative to; empty: the working directory."""
    found = _CONFIG_FOLDERS.fullmatch(os.path.dirname(os.path.abspath(path)))
    start = (found[1] or "/") if found else ""
    check_utf8(start, repr(path))
    return "" if start == os.getcwd() else start


def check_utf8(text: str, place: str) -> None:
    """Raises UserError about `place` where a text has half surrogates."""
    if _HALF.search(text):
        raise UserError(
            f"{place}: has bytes that are not UTF-8, which no TOML or JSON file can record; rename the file or folder"
        )


def read_text(path: str | Path, cure: str) -> str:
    """A user's UTF-8 file, without its byte-order mark. Raises UserError; `cure` says what to do instead."""
    with readable(path, cure):
        content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: is not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from None


def read_json(path: str | Path, cure: str) -> Any:
    """A user's JSON file. Raises UserError where it cannot be read or is not JSON."""
    try:
        return json.loads(read_text(path, cure))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is torn or not JSON ({error}); {cure}") from None


def read_toml(path: str) -> dict[str, Any]:
    """Raises UserError with file and line where the file is missing or is not TOML."""
    try:
        return tomli.loads(read_text(path, "name an existing TOML file"))
    except (ValueError, RecursionError) as error:   # also of a number of thousands of digits
        raise UserError(f"{path}: is not TOML: {error}") from None


@contextmanager
def readable(what: object, cure: str) -> Iterator[None]:
    """An OSError inside becomes a UserError about `what`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be read ({reason(error)}); {cure}") from None


def reason(error: BaseException) -> str:
    """An exception in a few words: the system's, or else the first line of its own."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return said.splitlines()[0]


def dump(config: Any) -> str:
    """The resolved config as TOML; `load` of it gives an equal config."""
    return tomli_w.dumps(plain(config))


def plain(value: Any) -> Any:
    """As TOML and JSON have it; what is None is left out."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: plain(item) for name, item in pairs if item is not None}
    return list(value) if isinstance(value, tuple) else value


class _Argument(str):
    """A value from the command line: what it is depends on the field it is for."""

    source: _Source

    def parsed(self) -> Any:
        try:
            return tomli.loads(f"x = {self}")["x"]
        except (ValueError, RecursionError):
            return str(self)


class _ArgumentSection(dict[str, Any]):
    """A section that is there only because an argument names a key of it."""

    source: _Source


def _override(tree: dict[str, Any], text: str) -> None:
    source = _Source(f"argument {text!r}", "")
    check_utf8(text, source.place)
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{source.place}: is neither an option nor section.key=value")
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
            nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)[0]
            place = getattr(value, "source", source).place
            raise UserError(f"{place}: unknown key {prefix}{_spelt(key)}; the nearest known one is {prefix}{nearest}")
    values = {name: tree[name] if name in tree else _default(field, source, prefix) for name, field in fields.items()}
    return cls(**{name: _convert(hints[name], value, source, prefix + name) for name, value in values.items()})


def _default(field: dataclasses.Field[Any], source: _Source, prefix: str) -> Any:
    """The default as if it were written in the file, so that a default path is relative to the same folder."""
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
    if isinstance(value, _Argument):   # run.name=7 is text, run.seed=7 a number
        parsed = value.parsed()
        value = str(value) if hint is str and not isinstance(parsed, str) else parsed
    if dataclasses.is_dataclass(hint):
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
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or type(value) is (origin or hint):
        return value
    raise UserError(f"{source.place}: {name} = {_shown(value)} is of type {type(value).__name__}; "
                    f"it must be {getattr(origin or hint, '__name__', hint)}")


def _spelt(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:   # an integer of over 4,300 digits
        return "a number too long to show"


def _located(value: str, kind: str, source: _Source, name: str) -> str:
    """A path, or the path of an own function, from where those of its source start."""
    path, colon, function = value.rpartition(":") if kind == "path.py:function" else (value, "", "")
    if "\0" in path:
        raise UserError(f"{source.place}: {name} = {value!r} has a null character, which no path has")
    return os.path.join(source.start, path) + colon + function if source.start and path else value
