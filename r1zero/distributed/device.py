"""Three rows: cpu/gloo, cuda/nccl, npu/hccl. The vendor's start-up, before torch or anything built on it is
imported."""

import ctypes
import gc
import importlib
import os
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from r1zero.config import UserError, found_alike


@dataclass(frozen=True)
class Device:
    kind: str
    backend: str
    """Of torch.distributed."""
    environment: tuple[tuple[str, str], ...]
    """Set before the vendor's first import, unless the user has set them."""
    imports: tuple[str, ...]
    """In this order, before megatron and vLLM."""
    deterministic: tuple[tuple[str, str], ...]
    """Set for run.deterministic: what libraries outside torch read to give the same bits twice."""


DEVICES = {
    # One thread a rank: spinning threads that share cores with other ranks stall at every barrier. torch.compile costs
    # 3 s at the first sample and gains nothing on small models. vLLM's own allocator is sized by kv_cache_memory_bytes.
    "cpu": Device(
        "cpu",
        "gloo",
        (
            ("OMP_NUM_THREADS", "1"),
            ("OMP_WAIT_POLICY", "PASSIVE"),
            ("TORCHDYNAMO_DISABLE", "1"),
            ("VLLM_TARGET_DEVICE", "cpu"),
        ),
        (),
        (),
    ),
    # megatron-core asserts CUDA_DEVICE_MAX_CONNECTIONS=1 for tensor parallel overlap.
    # cuBLAS: a workspace of its own for each stream. NCCL: sums in the ring's order, not in the switch's.
    "cuda": Device(
        "cuda",
        "nccl",
        (("CUDA_DEVICE_MAX_CONNECTIONS", "1"),),
        (),
        (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"), ("NCCL_ALGO", "Ring")),
    ),
    # MindSpeed's adaptor patches megatron-core and must come before it.
    "npu": Device(
        "npu",
        "cpu:gloo,npu:hccl",
        (("CUDA_DEVICE_MAX_CONNECTIONS", "1"), ("HCCL_CONNECT_TIMEOUT", "1800"), ("HCCL_EXEC_TIMEOUT", "3600")),
        ("torch_npu", "mindspeed.megatron_adaptor"),
        # The order of sums in HCCL and LCCL, and of the cuts along K in CANN's and ATB's matrix products. None was
        # tried.
        (
            ("HCCL_DETERMINISTIC", "true"),
            ("LCCL_DETERMINISTIC", "1"),
            ("CLOSE_MATMUL_K_SHIFT", "1"),
            ("ATB_MATMUL_SHUFFLE_K_ENABLE", "0"),
        ),
    ),
}

BUFFERS_MB = {
    "tp": 100,
    "pp": 100,
    "dp": 100,
    "dp_cp": 100,
    "ep": 256,
    "ep_tp": 256,
    "ep_dp": 100,
    "mp": 20,
    "tp_ep_mp": 20,
    "tp_ep_pp": 20,
    "tp_dp_cp": 20,
    "intra_dist_opt_instance": 20,
}
"""HCCL: MiB of each of the two buffers that a communicator of megatron-core's takes, by megatron-core's name of its
group. Without, each takes HCCL_BUFFSIZE, which the engine's dispatch of experts sets; the groups of norms and of the
loss carry a few
numbers."""

COMMON = (
    ("TOKENIZERS_PARALLELISM", "false"),
    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),  # the engine lives in this process
    ("VLLM_USE_V2_MODEL_RUNNER", "0"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("HF_HUB_OFFLINE", "1"),  # models and data are folders
    ("VLLM_LOGGING_LEVEL", "ERROR"),
    ("TORCH_CPP_LOG_LEVEL", "ERROR"),
    ("TORCH_LOGS", "-torch._library.triton"),  # it warns that there is no triton; nothing here needs it
)


def make_deterministic(kind: str) -> None:
    """The device's part of run.deterministic, before `start`; over what the user has set, as it is a promise."""
    os.environ.update(DEVICES[kind].deterministic)


def seed(number: int, deterministic: bool) -> None:
    """The process's own generators: Python's, numpy's, torch's. Deterministic: of torch's algorithms only those that
    are."""
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
    torch.use_deterministic_algorithms(deterministic)


def start(kind: str, local_rank: int) -> Device:
    """Set the environment and import the vendor's packages; the rank's device becomes the current one.

    Raises UserError where the host has no such device, or fewer than ranks were started on it.
    """
    device = DEVICES[kind]
    for name, value in COMMON + device.environment:
        os.environ.setdefault(name, value)
    try:
        with _hidden_arguments(), quiet_imports(), _torch_kept() if device.imports else nullcontext():
            for vendor in device.imports:
                importlib.import_module(vendor)
    except ImportError as error:
        raise _without(kind, 0, local_rank, f" ({error})") from None
    if kind != "cpu":
        there = module(kind).device_count() if module(kind).is_available() else 0
        if local_rank >= there:
            raise _without(kind, there, local_rank)
        module(kind).set_device(local_rank)
    return device


def _without(kind: str, there: int, local_rank: int, why: str = "") -> UserError:
    """The error of a rank that has no device; the first of them on each host says it."""
    host = socket.gethostname()
    if there:
        said = (
            f"run.device = {kind!r}: {host} has {there} device{'s' * (there > 1)} and more ranks were started on it; "
            "start one rank for each device"
        )
    else:
        said = (
            f"run.device = {kind!r}: {host} has no such device that its packages can use{why}; "
            "name the device it has (run.device), or start on a host with one (launch/README.md)"
        )
    return found_alike(said, speaker=local_rank == there)


def module(kind: str) -> Any:
    """torch.cpu, torch.cuda or torch.npu."""
    import torch

    return torch.get_device_module(kind)


def torch_device(kind: str) -> Any:
    """The rank's torch.device."""
    import torch

    return torch.device("cpu") if kind == "cpu" else torch.device(kind, module(kind).current_device())


def set_expandable_segments(kind: str, allowed: bool) -> None:
    """Whether torch's allocator joins what it frees: training then does not run out of memory in pieces, but what
    vllm-ascend's allocator for sleeping takes must be whole. NPU only: on CUDA vLLM sees to it."""
    if kind == "npu":
        module(kind).empty_cache()  # the setting is for what is taken from now on
        module(kind).memory._set_allocator_settings(f"expandable_segments:{allowed}")


UNUSED_BYTES = 256 << 20
"""What glibc's allocator may keep of freed memory before it is given back to the system."""


def give_back_memory(kind: str) -> None:
    """Return to the system what was freed in blocks of up to 32 MiB, which glibc keeps for its own use: after a pass
    over a real model that is gigabytes. CPU only; a device's allocator is its own. Costs nothing where little is
    kept."""
    libc = ctypes.CDLL(None)
    if kind != "cpu" or not hasattr(libc, "mallinfo2"):
        return
    libc.mallinfo2.restype = _MallocState
    if libc.mallinfo2().fordblks > UNUSED_BYTES:
        libc.malloc_trim(0)


class _MallocState(ctypes.Structure):
    """glibc's struct mallinfo2 (malloc.h)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def group_options(kind: str, group: str) -> Any:
    """What new_group takes for one of megatron-core's groups; None where there is nothing to say."""
    if kind != "npu" or group not in BUFFERS_MB:
        return None
    options = sys.modules["torch_npu"]._C._distributed_c10d.ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": BUFFERS_MB[group]}
    return options


@contextmanager
def quiet_imports() -> Iterator[None]:
    """No garbage collection while thousands of modules are made: 6.0 s of imports become 4.3 s. What is then alive is
    frozen, so that the collections that vLLM asks for at its start (five) do not walk it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


@contextmanager
def _torch_kept() -> Iterator[None]:
    """MindSpeed's adaptor patches for the whole process, vLLM included, what megatron-core asks of CUDA's libraries.
    Undone here:

    * `dist.all_reduce` of doubles reduces a copy in float and drops it: every rank keeps its own values, and no error
    is raised.
    * `Tensor.view` of what is not contiguous is a copy: a write through it is lost.
    * an empty `flash_attn` package, which vLLM 0.23 finds and then misses a module of (ApplyRotaryEmb).

    Left as it makes them: torch.compile and torch.jit.script do nothing, so that what asks for them runs eagerly.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    places = [(torch.Tensor, "view"), (dist, "all_reduce"), (distributed_c10d, "all_reduce")]
    plain = [getattr(owner, name) for owner, name in places]
    before = set(sys.modules)
    try:
        yield
    finally:
        for (owner, name), function in zip(places, plain, strict=True):
            setattr(owner, name, function)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)  # MindSpeed names a file that does not exist
            if name.partition(".")[0] == "flash_attn" and not os.path.exists(file or ""):
                del sys.modules[name]


@contextmanager
def _hidden_arguments() -> Iterator[None]:
    """MindSpeed parses sys.argv at import and turns every unknown flag into an attribute of megatron's
    configuration."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv
