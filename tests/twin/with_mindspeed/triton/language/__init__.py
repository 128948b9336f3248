"""triton.language: constants are made when modules with kernels are imported; the rest is named only."""

from typing import Any

from twin_absent import Absent, absent


class constexpr:
    def __init__(self, value: Any) -> None:
        self.value = value


def __getattr__(name: str) -> Absent:
    if name.startswith("__"):
        raise AttributeError(name)
    return absent(f"triton.language.{name}")
