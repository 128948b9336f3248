"""Modules that the vendors import and that nothing here uses: any name can be taken from them, and using one says what
is missing."""

import functools
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# module: its version, where somebody asks
ABSENT = {
    "gguf": "0.19.0",
    "msgpack": "1.1.0",
    "scipy": "1.17.1",  # vLLM's other formats and connectors; vllm-ascend's expert balancing
    "torchvision": "0.25.0",  # vLLM's models of pictures, which vllm-ascend patches at its start
    "torch_npu._inductor": "",
    "torch_npu.multiprocessing": "",
    "torch_npu.profiler": "",
    "torchair": "",
    "triton.language": "",
    "triton.runtime": "",
    "triton.backends": "",
    "triton.compiler": "",  # beside tests/twin/with_mindspeed
}


class Absent(type):
    """The kind of a name of such a module: a class, so that it can be subclassed and asked about, of which nothing can
    be made."""

    def __getattr__(cls, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{cls.__name__}.{name}")

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the twin has no {cls.__name__}")


@functools.cache
def absent(name: str) -> Absent:
    return Absent(name, (), {})


class AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{self.__name__}.{name}")


class Finder:
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        if any(name == module or name.startswith(module + ".") for module in ABSENT):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        module = AbsentModule(spec.name)
        module.__version__ = ABSENT.get(spec.name, "")
        return module

    def exec_module(self, module: ModuleType) -> None: ...


def install() -> None:
    sys.meta_path.append(Finder())  # last: what there is is found first
