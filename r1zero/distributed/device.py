"""The three supported devices: cpu/gloo, cuda/nccl and npu/hccl, and the start-up that each needs before torch."""

import gc
import importlib
import os
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1zero.config import Run, UserError, shared_error
from r1zero.distributed import host


@dataclass(frozen=True)
class Device:
    """What a kind of device needs at start-up."""

    kind: str
    backend: str
    """Backend of torch.distributed."""
    environment: tuple[tuple[str, str], ...]
    """Variables to set before the vendor's first import, unless the user has set them."""
    imports: tuple[str, ...]
    """Packages to import in this order, before megatron and vLLM."""
    deterministic: tuple[tuple[str, str], ...]
    """Variables to set for run.deterministic, so that libraries outside torch give bit-equal results."""


DEVICES = {
    # One thread per rank, unless r1zero/distributed/threads.py finds more cores. Threads that spin while they wait
    # stall other ranks on their cores. Threads that sleep at once lose more time between two operators than most
    # operators take. So those of libgomp, which torch uses, spin for about a tenth of a millisecond, and those of other
    # runtimes do not. torch.compile costs 3 s at the first sample without a gain for small models. vLLM's allocator is
    # sized by kv_cache_memory_bytes.
    # The first use of new memory causes a page fault for every page. With huge pages there are fewer of them, if the
    # kernel's setting for transparent huge pages is madvise or always.
    "cpu": Device(
        "cpu",
        "gloo",
        (
            ("OMP_NUM_THREADS", "1"),
            ("OMP_WAIT_POLICY", "PASSIVE"),
            ("GOMP_SPINCOUNT", "10000"),
            ("TORCHDYNAMO_DISABLE", "1"),
            ("THP_MEM_ALLOC_ENABLE", "1"),
            ("VLLM_TARGET_DEVICE", "cpu"),
        ),
        (),
        (),
    ),
    # megatron-core asserts CUDA_DEVICE_MAX_CONNECTIONS=1 for the overlap of tensor parallelism. For determinism, cuBLAS
    # needs a separate workspace per stream, and NCCL must sum in the ring's order instead of the switch's.
    "cuda": Device(
        "cuda",
        "nccl",
        (("CUDA_DEVICE_MAX_CONNECTIONS", "1"),),
        (),
        (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"), ("NCCL_ALGO", "Ring")),
    ),
    # MindSpeed's adaptor patches megatron-core and must be imported before it.
    "npu": Device(
        "npu",
        "cpu:gloo,npu:hccl",
        (
            ("CUDA_DEVICE_MAX_CONNECTIONS", "1"),
            ("HCCL_CONNECT_TIMEOUT", "1800"),
            ("HCCL_EXEC_TIMEOUT", "3600"),
            # vLLM compiles ahead of time by default. MindSpeed's torch.compile returns the function as it is.
            ("VLLM_USE_AOT_COMPILE", "0"),
        ),
        ("torch_npu", "mindspeed.megatron_adaptor"),
        # For determinism: the order of sums in HCCL and LCCL, and of the splits along K in the matrix products of CANN
        # and ATB. None of these has been tried on a device.
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
"""HCCL only: MiB of each of the two buffers of a megatron-core communicator, by megatron-core's name of the group.

Without an entry, a communicator uses HCCL_BUFFSIZE, which is set for the engine's expert dispatch. The groups for norms
and losses transfer only a few numbers.
"""

COMMON = (
    ("TOKENIZERS_PARALLELISM", "false"),
    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),  # the engine runs in this process
    ("VLLM_USE_V2_MODEL_RUNNER", "0"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("HF_HUB_OFFLINE", "1"),  # models and data are local folders
    ("VLLM_LOGGING_LEVEL", "ERROR"),
    ("TORCH_CPP_LOG_LEVEL", "ERROR"),
    ("TORCH_LOGS", "-torch._library.triton"),  # it warns that triton is missing, which nothing here needs
)


BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "svebf16")
"""Flags of /proc/cpuinfo of processors that multiply bfloat16 in hardware: those of x86, then those of Arm."""


def resolve_dtype(run: Run, cpuinfo: Path = Path("/proc/cpuinfo")) -> Run:
    """Returns the section with run.dtype = "auto" replaced by the type that is fast on this machine."""
    if run.dtype != "auto":
        return run
    if run.device != "cpu":
        return replace(run, dtype="bfloat16")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return replace(run, dtype="bfloat16" if flags.intersection(BF16_FLAGS) else "float32")


def make_deterministic(kind: str) -> None:
    """Set the device's variables for run.deterministic, before `start`. They override those that the user has set."""
    os.environ.update(DEVICES[kind].deterministic)


def seed(number: int, deterministic: bool) -> None:
    """Seed Python's, numpy's and torch's generators. deterministic: allow only torch's deterministic algorithms."""
    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
    torch.use_deterministic_algorithms(deterministic)


def start(kind: str, local_rank: int) -> Device:
    """Set the environment, import the vendor's packages, and make the rank's device the current one.

    Raises UserError if the host has no such device, or fewer of them than ranks.
    """
    device = DEVICES[kind]
    for name, value in COMMON + device.environment:
        os.environ.setdefault(name, value)
    try:
        with _hidden_arguments(), quiet_imports(), undo_mindspeed_patches() if device.imports else nullcontext():
            for vendor in device.imports:
                importlib.import_module(vendor)
    except ImportError as error:
        raise _without(kind, 0, local_rank, f" ({error})") from None
    if kind == "cpu":
        host.keep_memory()
    else:
        there = module(kind).device_count() if module(kind).is_available() else 0
        if local_rank >= there:
            raise _without(kind, there, local_rank)
        module(kind).set_device(local_rank)
    return device


def _without(kind: str, there: int, local_rank: int, why: str = "") -> UserError:
    """Returns the error of a rank that has no device. Only the first such rank on each host prints it."""
    host = socket.gethostname()
    if there:
        said = (
            f"run.device = {kind!r}: {host} has {there} device{'s' * (there > 1)} but more ranks were started on it; "
            "start one rank per device"
        )
    else:
        said = (
            f"run.device = {kind!r}: {host} has no such device that its packages can use{why}; "
            "set run.device to one that it has, or start on a host with this device (launch/README.md)"
        )
    return shared_error(said, speaker=local_rank == there)


def module(kind: str) -> Any:
    """Returns torch.cpu, torch.cuda or torch.npu."""
    import torch

    return torch.get_device_module(kind)


def torch_device(kind: str) -> Any:
    """Returns the rank's torch.device."""
    import torch

    return torch.device("cpu") if kind == "cpu" else torch.device(kind, module(kind).current_device())


def set_expandable_segments(kind: str, allowed: bool) -> None:
    """Toggle expandable segments of torch's allocator (NPU only; on CUDA, vLLM does it).

    They are on for training, because they prevent fragmentation. They must be off before vllm-ascend's sleep allocator
    takes memory, because it needs contiguous blocks.
    """
    if kind == "npu":
        module(kind).empty_cache()  # the setting applies only to memory that is allocated afterwards
        module(kind).memory._set_allocator_settings(f"expandable_segments:{allowed}")


def group_options(kind: str, group: str) -> Any:
    """Returns the options of new_group for one of megatron-core's groups; None if there are none."""
    if kind != "npu" or group not in BUFFERS_MB:
        return None
    options = sys.modules["torch_npu"]._C._distributed_c10d.ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": BUFFERS_MB[group]}
    return options


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Disable garbage collection while many modules are imported, which reduces 6.0 s of imports to 4.3 s.

    Afterwards all live objects are frozen, so that the five collections at vLLM's start do not traverse them.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


@contextmanager
def undo_mindspeed_patches() -> Iterator[None]:
    """Undo patches of MindSpeed's adaptor that change other libraries for the whole process, including vLLM:

    * `dist.all_reduce` of float64 reduces a float32 copy and drops it: every rank silently keeps its own values.
    * `Tensor.view` of a non-contiguous tensor returns a copy: a write through it is lost.
    * An empty `flash_attn` package, which vLLM 0.23 finds and then fails to import a module from (ApplyRotaryEmb).

    Not undone: torch.compile and torch.jit.script do nothing, so that functions that use them run eagerly.
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
    """Hide sys.argv, which MindSpeed parses at import to set megatron configuration attributes from unknown flags."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv
