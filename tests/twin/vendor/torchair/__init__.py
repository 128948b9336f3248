"""The vendor's graph compiler, of which modules with graph converters register theirs when they are imported; the rest
is absent."""

from collections.abc import Callable
from typing import Any

from twin_absent import Absent, absent


def register_fx_node_ge_converter(operator: Any) -> Callable[[Any], Any]:
    return lambda converter: converter


def __getattr__(name: str) -> Absent:
    if name.startswith("__"):
        raise AttributeError(name)
    return absent(f"torchair.{name}")
