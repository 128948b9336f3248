"""How each field of config.json is treated, as data, and the check of a file against a table of fields. Needs no torch.

A field is read (it describes the model), supported with certain values only, or has no effect on the logits. A field
that is in no table is refused by name: Hugging Face or vLLM may act on it, and the trainer would then train a different
model than the published one.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from r1zero.config import UserError

LARGEST = 2**31 - 1
"""Largest integer."""
MOST = 1e18
"""Largest other number."""
SHOWN = 60
"""Number of characters of a value that a message shows."""
REQUIRED = object()
"""The default of a field that every file must state."""


@dataclass(frozen=True)
class Kind:
    """The values that a field may have. It is as strict as Hugging Face's config classes, which the engine uses."""

    says: str
    """Completes the sentence "it must be ..."."""
    holds: Callable[[Any], bool]


def whole(least: int = 1) -> Kind:
    """An integer of at least `least`."""
    return Kind(f"a whole number of at least {least}", lambda value: type(value) is int and least <= value <= LARGEST)


def real(least: float = 0.0) -> Kind:
    """A float. Hugging Face does not accept 1 in place of 1.0."""
    return Kind(
        f"a number of at least {least:g}, written with a decimal point or an exponent",
        lambda value: type(value) is float and least <= value <= MOST,
    )


def number(least: float = 0.0) -> Kind:
    """An integer or a float of at least `least`."""
    return Kind(f"a number of at least {least:g}", lambda value: type(value) in (int, float) and least <= value <= MOST)


def positive(kind: Kind) -> Kind:
    """A number of `kind` that is greater than 0."""
    return Kind(kind.says.replace("of at least 0", "greater than 0"), lambda value: kind.holds(value) and value > 0)


def one_of(*texts: str) -> Kind:
    """One of the given texts."""
    return Kind(f"one of {', '.join(texts)}", lambda value: isinstance(value, str) and value in texts)


def optional(kind: Kind) -> Kind:
    """A value of `kind`, or null."""
    return Kind(f"{kind.says}, or null", lambda value: value is None or kind.holds(value))


FRACTION = Kind(
    "a number from 0 to 1, written with a decimal point or an exponent",
    lambda value: type(value) is float and 0 <= value <= 1,
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))
TEXTS = Kind(
    "a list of strings", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
)
SECTION = Kind("an object", lambda value: isinstance(value, dict))
ANYTHING = Kind("anything", lambda value: True)
ID = Kind("a token id", lambda value: type(value) is int and -1 <= value <= LARGEST)
IDS = Kind(
    "a token id or a list of them",
    lambda value: ID.holds(value) or (isinstance(value, list) and all(map(ID.holds, value))),
)
LABELS = Kind(
    "an object whose keys are numbers", lambda value: isinstance(value, dict) and all(key.isdecimal() for key in value)
)
BLOCK = Kind(
    "a list of two whole numbers of at least 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(whole().holds, value)),
)


@dataclass(frozen=True)
class Field:
    """How one field of config.json is treated."""

    kind: Kind = ANYTHING
    default: Any = REQUIRED
    """Hugging Face's value if the file does not state the field."""
    only: tuple[Any, ...] | None = None
    """The supported values; others are refused. (): no value is supported. None: any that the kind allows."""
    why: str = ""
    """Completes the sentence that refuses a value."""
    effect: bool = True
    """Whether the value can change a logit."""

    def allows(self, value: Any) -> bool:
        """Whether a value is supported."""
        if self.only is None:
            return self.kind.holds(value)
        return any(type(value) is type(allowed) and value == allowed for allowed in self.only)

    @property
    def wanted(self) -> str:
        """The second half of an error message, which states the allowed values."""
        if self.only is None:
            values = f"it must be {self.kind.says}"
        elif self.only:
            values = f"only {' or '.join(map(shown, self.only))} is supported"
        else:
            values = "this field is not supported"
        return f"{values}: {self.why}" if self.why else values


def read(kind: Kind, default: Any = REQUIRED, why: str = "") -> Field:
    """A field that describes the model. why: the reason for the kind, or the cure."""
    return Field(kind, default, why=why)


def only(*values: Any, why: str = "", default: Any = None) -> Field:
    """A field of which only the given values are supported. why: the reason."""
    return Field(default=default, only=values, why=why)


def no_effect(kind: Kind) -> Field:
    """A field that does not change any logit."""
    return Field(kind, default=None, effect=False)


Fields = dict[str, Field]


class Config(dict[str, Any]):
    """A config.json, a file in configs/model/ with the same keys in TOML, or one section of either."""

    def __init__(self, values: Mapping[str, Any], path: Path, prefix: str = ""):
        super().__init__(values)
        self.path, self.prefix = path, prefix

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Raises UserError if the file cannot be read or is not an object."""
        toml = path.suffix == ".toml"
        try:
            # transformers and vLLM cannot read config.json with a byte-order mark. Only this program reads
            # configs/model/.
            text = path.read_text(encoding="utf-8-sig" if path.suffix == ".toml" else "utf-8")
            values = tomli.loads(text) if toml else json.loads(text)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); model.path must be a folder in Hugging Face's format"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: is not {'TOML' if toml else 'JSON'}: {error}; copy it again from its model"
            ) from None
        if not isinstance(values, dict):
            raise UserError(
                f"{path}: is a JSON {type(values).__name__} and must be an object; copy it again from its model"
            )
        return cls(values, path)

    def checked(self, fields: Fields, what: str) -> "Config":
        """Returns the values, with defaults for missing fields.

        TOML has no null: a field that every file must state is null if a TOML file does not state it, and may be null.
        what: the subject of the table, as in "is not known for ...". Raises UserError if a field is missing or unknown,
        or if its value is not allowed.
        """
        for name, field in fields.items():
            if name in self and not field.allows(self[name]):
                raise self.refusal(name, field.wanted)
        for name in (name for name in self if name not in fields):
            raise self.refusal(
                name,
                f"this field is not known for {what}, and Hugging Face or vLLM may act on it; if the model does "
                "not depend on it, remove it from the file",
            )
        toml = self.path.suffix == ".toml"
        for name, field in fields.items():
            if name not in self and field.default is REQUIRED and not (toml and field.allows(None)):
                raise UserError(f"{self.path}: {self.prefix}{name} is missing; {field.wanted}")
        defaults = {name: None if field.default is REQUIRED else field.default for name, field in fields.items()}
        return Config(defaults | self, self.path, self.prefix)

    def section(self, name: str, fields: Fields, what: str) -> "Config":
        """Returns a section of the file, which must exist, checked against `fields`."""
        return Config(self[name], self.path, f"{self.prefix}{name}.").checked(fields, what)

    def refusal(self, name: str, why: str) -> UserError:
        """Returns the error that refuses a field's value."""
        as_text = name if name.isprintable() else repr(name)
        return UserError(f"{self.path}: {self.prefix}{as_text} = {shown(self[name])}; {why}")


def shown(value: Any) -> str:
    """Returns a value in JSON notation, truncated to SHOWN characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
