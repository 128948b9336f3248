"""What a vendor's start-up leaves behind: a stand-in patches torch as MindSpeed's adaptor does (core_r0.16.0,
requirements_basic.py).

python -m pytest tests/distributed/test_device.py
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import patience

ADAPTOR = """
import sys, types
from functools import wraps
from importlib.machinery import ModuleSpec
import torch, torch.distributed as dist

SEEN = list(sys.argv)

def view_wrapper(fn):
    @wraps(fn)
    def wrapper(tensor, *args, **kwargs):
        return fn(tensor if tensor.is_contiguous() else tensor.contiguous(), *args, **kwargs)
    return wrapper

def all_reduce_wrapper(fn):
    @wraps(fn)
    def wrapper(*args, **kwargs):
        if torch.is_tensor(args[0]) and args[0].dtype == torch.double:
            args = list(args)
            args[0] = args[0].float()
            fn(*args, **kwargs)
            args[0] = args[0].double()
            return None
        return fn(*args, **kwargs)
    return wrapper

torch.Tensor.view = view_wrapper(torch.Tensor.view)
patched, plain = all_reduce_wrapper(dist.all_reduce), dist.all_reduce
for module in list(sys.modules.values()):
    if getattr(module, "all_reduce", None) is plain:
        module.all_reduce = patched
for name in ("flash_attn", "flash_attn.flash_attn_interface"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__file__ = "mindspeed.dummy_module.py"
    sys.modules[name].__spec__ = ModuleSpec(name, None)
"""
PROGRAM = """
import importlib.util, os, sys
import torch, torch.distributed as dist
from dataclasses import replace
from r1zero.distributed import device

device.DEVICES["cpu"] = replace(device.DEVICES["cpu"], imports=("adaptor",))
if {undone}:
    device.start("cpu", 0)
else:
    import adaptor
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{store}", rank=rank, world_size=2)
doubles = torch.full((3,), rank + 1.0, dtype=torch.float64)
dist.all_reduce(doubles)
strided = torch.zeros(4, 6)[:, :2]
strided.view(2, 2, 2)[0, 0, 0] = 1.0
print(doubles.tolist(), float(strided.sum()), importlib.util.find_spec("flash_attn"), sys.modules["adaptor"].SEEN[1:])
dist.destroy_process_group()
"""


def said(tmp_path: Path, undone: bool) -> list[str]:
    (tmp_path / "adaptor.py").write_text(ADAPTOR)
    program = PROGRAM.format(undone=undone, store=tmp_path / f"store{undone}")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, str(rank)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": "", "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    return [patience.communicate(rank)[0].strip() for rank in ranks]


def test_what_the_vendors_adaptor_does_to_torch_is_undone(tmp_path: Path) -> None:
    assert said(tmp_path, True) == ["[3.0, 3.0, 3.0] 1.0 None []"] * 2


@pytest.mark.slow
def test_without_it_sums_of_doubles_and_writes_are_lost(tmp_path: Path) -> None:
    first, second = said(tmp_path, False)
    assert first.startswith("[1.0, 1.0, 1.0] 0.0 ModuleSpec") and second.startswith("[2.0, 2.0, 2.0] 0.0")


def printed(code: str, **environment: str) -> str:
    """What a process prints that starts the CPU as its device and then runs the code."""
    program = f"from r1zero.distributed import device\ndevice.start('cpu', 0)\nimport torch\n{code}"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": "", "PYTHONPATH": root, **environment},
        check=True,
    )
    return done.stdout


def test_torchs_threads_spin_before_they_sleep() -> None:
    said = printed("torch.ones(3).sum()", OMP_DISPLAY_ENV="verbose")
    assert "GOMP_SPINCOUNT = '10000'" in said, said
    assert "GOMP_SPINCOUNT = '7'" in printed("", OMP_DISPLAY_ENV="verbose", GOMP_SPINCOUNT="7")


def test_freed_memory_is_used_again_without_page_faults() -> None:
    code = """
from resource import RUSAGE_SELF, getpagesize, getrusage
def faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    [torch.ones(1024 * getpagesize(), dtype=torch.uint8) for _ in range(32)]
    return getrusage(RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""
    first, second = map(int, printed(code, THP_MEM_ALLOC_ENABLE="0").split())
    assert first >= 32 * 1024 and second < first / 4


def test_freed_memory_is_given_back_if_the_host_has_less_left() -> None:
    code = """
from pathlib import Path
from r1zero.distributed import host
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * host.os.sysconf("SC_PAGE_SIZE") >> 20
[torch.ones(4 << 20, dtype=torch.uint8) for _ in range(64)]
for available in (512 << 20, 128 << 20):
    host.available_memory = lambda: available
    host.give_back_memory("cpu")
    print(resident(), host.unused_memory() >> 20)
"""
    kept, unused, left, _ = map(int, printed(code).split())
    assert 250 < unused < 512 and 250 < kept - left < 300


def test_every_sized_group_is_one_that_megatron_asks_options_for() -> None:
    import inspect
    import re

    from megatron.core import parallel_state

    from r1zero.distributed import device

    asked = set(re.findall(r'get_nccl_options\("(\w+)"', inspect.getsource(parallel_state.initialize_model_parallel)))
    assert set(device.BUFFERS_MB) <= asked and {"tp", "pp", "dp_cp", "ep", "mp"} <= asked


def test_groups_get_options_on_npu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from r1zero.distributed import device

    vendor = SimpleNamespace(
        _C=SimpleNamespace(_distributed_c10d=SimpleNamespace(ProcessGroupHCCL=SimpleNamespace(Options=SimpleNamespace)))
    )
    monkeypatch.setitem(sys.modules, "torch_npu", vendor)
    assert device.group_options("npu", "mp").hccl_config == {"hccl_buffer_size": 20}
    assert device.group_options("npu", "embd") is None and device.group_options("cuda", "mp") is None


def test_a_device_that_is_not_there_is_a_sentence_of_one_rank_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from r1zero import config
    from r1zero.config import errors
    from r1zero.distributed import device

    monkeypatch.setattr(errors, "ERROR_WAIT_S", 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    for there, says in (
        (0, "has no such device that its packages can use; set run.device to one that it has"),
        (2, "has 2 devices but more ranks were started on it; start one rank per device"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        for local_rank in range(there, there + 2):
            with pytest.raises(config.UserError, match=f"run.device = 'cuda': .* {says}") as caught:
                device.start("cuda", local_rank)
            assert isinstance(caught.value, config.CollectiveError) == (local_rank > there)
    assert device.start("cuda", 1).kind == "cuda"


def test_a_vendors_package_that_is_not_there_is_a_sentence() -> None:
    from r1zero import config
    from r1zero.distributed import device

    with pytest.raises(
        config.UserError, match="run.device = 'npu': .* can use .No module named 'torch_npu'.; set run.device to one"
    ):
        device.start("npu", 0)


@pytest.mark.parametrize(
    "kind, cpuinfo, dtype",
    [
        ("cpu", "flags\t\t: fpu avx512f avx512_bf16", "bfloat16"),
        ("cpu", "flags\t\t: fpu amx_bf16", "bfloat16"),
        ("cpu", "flags\t\t: fpu avx2 avx512f", "float32"),
        ("cpu", "Features\t: fp asimd bf16 svebf16", "bfloat16"),
        ("cpu", "Features\t: fp asimd\nmodel name : not bf16", "float32"),
        ("cpu", None, "float32"),
        ("npu", "flags : fpu", "bfloat16"),
    ],
)
def test_auto_is_the_type_that_the_machine_multiplies(
    tmp_path: Path, kind: str, cpuinfo: str | None, dtype: str
) -> None:
    from r1zero import config
    from r1zero.distributed import device

    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    assert device.resolve_dtype(config.Run(device=kind, dtype="auto"), file).dtype == dtype
    assert device.resolve_dtype(config.Run(device=kind, dtype="float32"), file).dtype == "float32"
