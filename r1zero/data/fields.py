"""Reads values of a row: the value of a column, or of a path such as `reward_model.ground_truth`, as text or label."""

import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from r1zero.config import suggest
from r1zero.reward.rules import ALTERNATIVES

_ABSENT = object()


def lookup(record: Any, column: str) -> Any:
    """Returns the value of a column, or None if the row lacks it. Raises ValueError if a part of `a.b` is no object."""
    value = _reach(record, column) if isinstance(record, dict) else None
    return None if value is _ABSENT else value


def _reach(record: dict[str, Any], column: str) -> Any:
    if column in record or "." not in column:
        return record.get(column, _ABSENT)
    head, _, rest = column.partition(".")
    inner = _from_json(record.get(head, _ABSENT))
    if inner is None or inner is _ABSENT:
        return inner
    if not isinstance(inner, dict):
        raise ValueError(f"{head!r} is a {type(inner).__name__} and must be an object that holds {rest!r}")
    return _reach(inner, rest)


def _from_json(value: Any) -> Any:
    """Returns the object that a text in JSON stands for, or its list of texts; anything else unchanged.

    A list of numbers, such as [1, 2], stays a text, because it may be an interval.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_texts = isinstance(found, list) and bool(found) and all(isinstance(one, str) for one in found)
    return found if isinstance(found, dict) or is_texts else value


def present(record: dict[str, Any], column: str) -> Any:
    """Returns the value of a column. Raises ValueError if the row lacks it or it is null."""
    value = _reach(record, column)
    if value is _ABSENT:
        raise ValueError(f"has no {column!r}; {_missing(record, column)}")
    if value is None:
        raise ValueError(f"{column!r} is null")
    return value


def _missing(record: dict[str, Any], column: str, outer: str = "") -> str:
    """Returns the hint about a column that the row lacks. Of `a.b`, it names the keys of the object `a` if there is
    one."""
    head, _, rest = column.partition(".")
    inner = record.get(head)
    if rest and isinstance(inner, dict) and inner:
        return _missing(inner, rest, f"{outer}{head}.")
    spell = (lambda name: repr(f"{outer}{name}")) if outer else repr
    return suggest(column, map(str, record), "column", spell) if record else "the row is empty"


def text(record: dict[str, Any], column: str) -> str:
    """Returns a text, or a number as text. Raises ValueError if the row has neither, or only white space."""
    value = present(record, column)
    found = as_text(value[0] if isinstance(value, list) and len(value) == 1 else value)
    if found is None:
        hint = '; handler = "messages" reads chat messages' if is_chat(value) else ""
        raise ValueError(f"{column!r} is {short(value)} and must be a text or a number{hint}")
    if not found.strip():
        raise ValueError(f"{column!r} is empty")
    return found


def label(record: dict[str, Any], column: str) -> str:
    """Returns the label: a text, a number, or a list of these or of texts in JSON, any of which is correct.

    Raises ValueError for anything else.
    """
    value = _reach(record, column)
    if isinstance(decoded := _from_json(value), list):
        value, record = decoded, {column: decoded}
    if not isinstance(value, list) or len(value) < 2:
        return text(record, column).strip()
    every = [(as_text(one) or "").strip() for one in value]
    if not all(every):
        raise ValueError(f"{column!r} is {short(value)} and must be a list of texts or numbers that are not empty")
    return ALTERNATIVES.join(every)


def as_text(value: Any) -> str | None:
    """Returns a text unchanged and a finite number as text; None for anything else."""
    if isinstance(value, np.generic | pa.Scalar):
        value = value.item() if isinstance(value, np.generic) else value.as_py()
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(value) if isinstance(value, int) or math.isfinite(value) else None


def optional(record: dict[str, Any], column: str) -> str:
    value = lookup(record, column) if column else None
    return "" if value is None or value == "" else text(record, column)


def is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in value)
    )


def are_pairs(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in value
    )


def short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
