"""torch.npu: the part of torch_npu's device module that is asked for. Work is done when it is asked for, so streams
order nothing.

tests/twin/test_vendor_names.py checks that the vendor's module has each of these names.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from torch_npu.device import DEVICES, index, library
from torch_npu.npu import memory, random, utils  # noqa: F401
from torch_npu.npu.graphs import (  # noqa: F401
    ExternalEvent,
    NPUGraph,
    graph,
    graph_pool_handle,
    graph_task_group_begin,
    graph_task_group_end,
    graph_task_update_begin,
    graph_task_update_end,
    is_current_stream_capturing,
)
from torch_npu.npu.memory import (  # noqa: F401
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_max_memory_allocated,
    reset_peak_memory_stats,
)
from torch_npu.npu.random import (  # noqa: F401
    default_generators,
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    set_rng_state,
    set_rng_state_all,
)
from torch_npu.npu.utils import set_device

NAME = "Ascend910_9392"
SOC_VERSION = 250
"""An A3 die (vllm_ascend.utils.check_ascend_device_type: 250 to 255)."""


class Stream(torch.Stream):
    npu_stream = 0

    def __new__(cls, device: Any = None, priority: int = 0, **_: Any) -> "Stream":
        return super().__new__(cls, torch.device("npu", index(device)))

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> "Event":
        return event or Event()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None: ...


class Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "Event") -> float:
        return 0.0


class device(contextlib.ContextDecorator):
    def __init__(self, device: Any) -> None:
        self.index = index(device)

    def __enter__(self) -> None:
        self.before = library.twin_device()
        set_device(self.index)

    def __exit__(self, *_: Any) -> None:
        set_device(self.before)


@contextlib.contextmanager
def stream(stream: Any) -> Iterator[Any]:
    yield stream


_only = Stream()


def current_stream(device: Any = None) -> Stream:
    return _only


default_stream = current_stream


def current_device() -> int:
    return library.twin_device()


def device_count() -> int:
    return DEVICES


def is_available() -> bool:
    return True


is_initialized = is_bf16_supported = is_available


def _is_in_bad_fork() -> bool:
    return False


def get_device_name(device: Any = None) -> str:
    return NAME


def get_soc_version() -> int:
    return SOC_VERSION


def get_device_capability(device: Any = None) -> None:
    return None


def get_device_properties(device: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=NAME, total_memory=library.twin_total(), multi_processor_count=24, cube_core_num=24, vector_core_num=48
    )


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16]


def FloatTensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device="npu")


def synchronize(device: Any = None) -> None: ...


def init() -> None: ...


def _lazy_init() -> None: ...


def ipc_collect() -> None: ...


def set_stream(stream: Any) -> None: ...


def set_compile_mode(jit_compile: bool = False) -> None: ...


def set_option(option: dict[str, Any]) -> None: ...


def _lazy_call(function: Callable[[], Any], **_: Any) -> None:
    function()


amp = SimpleNamespace(
    autocast=functools.partial(torch.autocast, "npu"),
    autocast_mode=SimpleNamespace(),
    common=SimpleNamespace(),
    grad_scaler=SimpleNamespace(),
)
config = SimpleNamespace(allow_internal_format=True)
mstx = SimpleNamespace(range_start=lambda *_, **__: 0, range_end=lambda *_, **__: None, mark=lambda *_, **__: None)

torch._register_device_module("npu", sys.modules[__name__])
torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
sys.modules["torch.npu"] = sys.modules[__name__]
