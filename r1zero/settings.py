"""A TOML file and `section.key=value` arguments to a tree of frozen dataclasses, and back; and the errors that users see."""

import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli
import tomli_w


class UserError(Exception):
    """What the user can mend: one sentence with the field or line, both values and the cure. Never a traceback."""


class Agreed(UserError):
    """Found by all ranks of a world together, and raised on each: one of them says it."""


T = TypeVar("T")


def load(path: str, overrides: list[str], cls: type[T]) -> T:
    """Read a TOML file into the dataclass `cls`, with `section.key=value` overrides on top. Raises UserError."""
    tree = read_toml(path)
    for text in overrides:
        _override(tree, text)
    return _build(cls, tree, path, "")


def read_toml(path: str) -> dict[str, Any]:
    """Raises UserError with file and line where the file is missing or is not TOML."""
    try:
        return tomli.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name an existing TOML file") from None
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not TOML: {error}") from None


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

    def parsed(self) -> Any:
        try:
            return tomli.loads(f"x = {self}")["x"]
        except tomli.TOMLDecodeError:
            return str(self)


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"argument {text!r}: is neither an option nor section.key=value")
    *sections, name = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"argument {text!r}: {section!r} is a value, not a section")
    tree[name] = _Argument(value)


def _build(cls: type[T], tree: dict[str, Any], path: str, prefix: str) -> T:
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in tree:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            spelt = key if key.isprintable() else repr(key)
            raise UserError(f"{path}: unknown key {prefix}{spelt}; the nearest known one is {prefix}{nearest}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in tree
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise UserError(f"{path}: {prefix}{missing[0]} is missing and has no default")
    return cls(**{key: _convert(hints[key], value, path, prefix + key) for key, value in tree.items()})


def _convert(hint: Any, value: Any, path: str, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    inner = [a for a in args if a is not type(None)]
    if isinstance(value, _Argument):   # run.name=7 is text, run.seed=7 a number
        parsed = value.parsed()
        value = str(value) if hint is str and not isinstance(parsed, str) else parsed
    if type(None) in args and len(inner) == 1:
        return _convert(inner[0], value, path, name)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{path}: {name} = {value!r} is a value; it must be a section")
        return _build(hint, value, path, name + ".")
    if origin is Literal:
        if value not in args:
            raise UserError(f"{path}: {name} = {value!r}; it must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], v, path, f"{name}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: _convert(args[1], v, path, f"{name}.{k}") for k, v in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or type(value) is (origin or hint):
        return value
    raise UserError(f"{path}: {name} = {value!r} is of type {type(value).__name__}; "
                    f"it must be {getattr(origin or hint, '__name__', hint)}")
