"""Graphs of torch.npu: what operators do while a graph is recorded, done again on the same tensors at each replay.

As on the device, a graph keeps the addresses of its recording and the values that Python computed meanwhile. It refuses
what a device cannot record: reading a tensor on the host, and results of another shape. A replay stops before an event
that nobody has recorded yet and goes on when somebody does; the attention's arguments are replaced in between
(`graph_task_update_begin`). Memory is not that of a pool: a recorded result stays as long as its graph.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PYTHON = ("vllm",)
"""Namespaces of operators that are written in Python: a graph records the operators that they call."""
KERNELS = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)


class ExternalEvent:
    """An event that a replay waits for, and another stream records."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.recorded = False

    def wait(self, stream: Any = None) -> None:
        if _recording:
            _recording[-1].steps.append(_Wait(self))

    def reset(self, stream: Any = None) -> None:
        if _recording:
            _recording[-1].steps.append(_Reset(self))

    def record(self, stream: Any = None) -> None:
        self.recorded = True
        for graph in list(_stopped):
            graph._go_on()


@dataclass
class _Wait:
    event: ExternalEvent


@dataclass
class _Reset:
    event: ExternalEvent

    def do(self) -> None:
        self.event.recorded = False


@dataclass
class _Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]

    def do(self) -> None:
        made = _tensors_after_waiting(self.function(*self.args, **self.kwargs))
        for old, new in zip(self.results, made, strict=True):
            if old.shape != new.shape:
                raise RuntimeError(f"a graph's {self.function} made {tuple(new.shape)} in place of {tuple(old.shape)}")
            if new.data_ptr() != old.data_ptr():
                old.copy_(new)


def _tensors_after_waiting(out: Any) -> list[Tensor]:
    found = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, torch.ScriptObject) and leaf._type().qualified_name().endswith("c10d.Work"):
            Work.unbox(leaf).wait()
    return found


@dataclass(eq=False)
class NPUGraph:
    steps: list[Any] = field(default_factory=list)
    _at: int = 0

    def replay(self) -> None:
        REPLAYS.append(len(self.steps))
        self._at = 0
        _stopped.append(self)
        self._go_on()

    @torch.inference_mode()
    def _go_on(self) -> None:
        while self._at < len(self.steps):
            step = self.steps[self._at]
            if isinstance(step, _Wait) and not step.event.recorded:
                return
            if not isinstance(step, _Wait):
                step.do()
            self._at += 1
        _stopped.remove(self)

    def reset(self) -> None:
        self.steps.clear()

    def pool(self) -> tuple[int, int]:
        return graph_pool_handle()


RECORDED: list[int] = []
REPLAYS: list[int] = []
"""Number of steps of each graph that was recorded, and replayed, in order."""
_recording: list[NPUGraph] = []
_stopped: list[NPUGraph] = []


class _Recorder(TorchDispatchMode):
    """Appends calls of operators on device tensors to `steps`. do: also call them."""

    def __init__(self, steps: list[Any], do: bool = True) -> None:
        super().__init__()
        self.steps, self.do = steps, do

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in PYTHON:
            with self:
                return func.redispatch(KERNELS, *args, **kwargs)
        if not self.do:
            self.steps.append(_Call(func, args, kwargs, tree_leaves(kwargs["out"])))
            return tuple(kwargs["out"])
        given = _on_device(args) or _on_device(kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and given:
            raise RuntimeError("a tensor is read on the host while a graph is recorded")
        out = func(*args, **kwargs)
        results = _tensors_after_waiting(out)
        if given and any(result.device.type == "cpu" for result in results):
            raise RuntimeError(f"{func} copies to the host while a graph is recorded")
        if (given or _on_device(out)) and not _is_view(func, results, args, kwargs):
            self.steps.append(_Call(func, args, kwargs, results))
        return out


def _is_view(func: Any, results: list[Tensor], args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the results are other views of tensors that are given: nothing for a device to do. Other libraries'
    signatures do not tell what an operator writes."""
    if func.namespace != "aten" or func._schema.is_mutable or not results:
        return False
    given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    return all(result.untyped_storage().data_ptr() in given for result in results)


def _on_device(values: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.device.type == "npu" for leaf in tree_leaves(values))


@contextlib.contextmanager
def graph(npu_graph: NPUGraph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
    _recording.append(npu_graph)
    try:
        with _Recorder(npu_graph.steps):
            yield
    finally:
        _recording.pop()
    RECORDED.append(len(npu_graph.steps))


def graph_pool_handle() -> tuple[int, int]:
    return 0, 1


@dataclass(frozen=True)
class _Group:
    """Steps of a graph that can be replaced."""

    graph: NPUGraph
    begin: int
    end: int


_begins: list[int] = []
_updates: list[tuple[_Group, _Recorder]] = []


def graph_task_group_begin(stream: Any) -> None:
    _begins.append(len(_recording[-1].steps))


def graph_task_group_end(stream: Any) -> _Group:
    return _Group(_recording[-1], _begins.pop(), len(_recording[-1].steps))


def graph_task_update_begin(stream: Any, handle: _Group) -> None:
    recorder = _Recorder([], do=False)
    recorder.__enter__()
    _updates.append((handle, recorder))


def graph_task_update_end(stream: Any) -> None:
    handle, recorder = _updates.pop()
    recorder.__exit__(None, None, None)
    if len(recorder.steps) != handle.end - handle.begin:
        raise RuntimeError(f"{len(recorder.steps)} operators replace {handle.end - handle.begin} of a graph")
    handle.graph.steps[handle.begin : handle.end] = recorder.steps


def is_current_stream_capturing() -> bool:
    return bool(_recording)
