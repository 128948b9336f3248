"""Only so that MindSpeed's modules with Triton kernels can be imported; what is launched says that it cannot be run."""

from collections.abc import Callable
from typing import Any

__version__ = "3.2.0"


class Kernel:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = function.__name__

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        raise NotImplementedError(f"the twin cannot run the Triton kernel {self.__name__}")


def jit(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return Kernel(function) if function else Kernel


def autotune(*_: Any, **__: Any) -> Callable[[Kernel], Kernel]:
    return lambda kernel: kernel


heuristics = autotune


class Config:
    def __init__(self, *_: Any, **__: Any) -> None: ...


def cdiv(x: int, y: int) -> int:
    return -(-x // y)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


from triton import backends, compiler, language, runtime  # noqa: F401  of twin_absent
