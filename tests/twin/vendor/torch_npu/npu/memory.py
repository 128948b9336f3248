"""torch_npu.npu.memory, and the half of vllm-ascend's sleeping allocator that is compiled.

A pool's owner is told of each block that is taken and given back while the pool is in use. Where CANN would unmap the
memory of a block, here it becomes untouchable; where it maps it again, it is filled with NaN."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

from torch_npu.device import library

SETTINGS: list[str] = []
"""What the allocator was told, in order."""
Handle = tuple[int, int, int, int]
"""vllm-ascend's: device, size, address, and a second handle that is not needed here."""

_TAKES = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_GIVES = ctypes.CFUNCTYPE(None, ctypes.c_int64)
_callbacks: list[Any] = []


def init_module(python_malloc: Callable[[Handle], None], python_free: Callable[[int], Handle]) -> None:
    """Of vllm_ascend_C (vllm_ascend/device_allocator/camem.py): the callbacks of the pool's owner."""
    takes = _TAKES(lambda device, size, pointer: python_malloc((device, size, pointer, pointer)))
    gives = _GIVES(lambda pointer: python_free(pointer) and None)
    _callbacks.append((takes, gives))  # C keeps no reference
    library.twin_pool_callbacks(takes, gives)


def python_unmap_and_release(device: int, size: int, pointer: int, handle: int) -> None:
    if library.twin_sleep(pointer):
        raise RuntimeError(f"no block of a pool that is awake begins at {pointer:#x}")


def python_create_and_map(device: int, size: int, pointer: int, handle: int) -> None:
    if library.twin_wake(pointer):
        raise RuntimeError(f"no block that sleeps begins at {pointer:#x}")


class NPUPluggableAllocator:
    def __init__(self, path_to_so_file: str | None, alloc_fn_name: str, free_fn_name: str) -> None:
        self._allocator = self


class MemPool:
    def __init__(self, allocator: Any = None) -> None:
        self.id = (0, 1)


@contextlib.contextmanager
def use_mem_pool(pool: MemPool, device: Any = None) -> Iterator[None]:
    library.twin_pool(1)
    try:
        yield
    finally:
        library.twin_pool(0)


def _set_allocator_settings(settings: str) -> None:
    SETTINGS.append(settings)


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return library.twin_total() - library.twin_held(), library.twin_total()


def memory_allocated(device: Any = None) -> int:
    return library.twin_held()


memory_reserved = memory_allocated


def max_memory_allocated(device: Any = None) -> int:
    return library.twin_peak()


max_memory_reserved = max_memory_allocated


def reset_peak_memory_stats(device: Any = None) -> None:
    library.twin_reset_peak()


reset_max_memory_allocated = reset_peak_memory_stats


def memory_stats(device: Any = None) -> dict[str, int]:
    held, peak = library.twin_held(), library.twin_peak()
    return {
        "allocated_bytes.all.current": held,
        "allocated_bytes.all.peak": peak,
        "reserved_bytes.all.current": held,
        "reserved_bytes.all.peak": peak,
        "num_alloc_retries": 0,
        "num_ooms": 0,
    }


def memory_snapshot() -> list[Any]:
    return []


def _snapshot(device: Any = None) -> dict[str, Any]:
    return {}


def _record_memory_history(enabled: str | None = "all", *_: Any, **__: Any) -> None: ...


def empty_cache() -> None: ...
