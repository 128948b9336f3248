"""Every patch of vLLM and every argument for a CPU is needed: without it numbers are wrong, or the engine does not run
at all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1zero.config import VllmGrid
from tests import fast
from tests.oracles.generation import TOLERANCE, gap
from tests.rollout import cases
from tests.rollout.cases import Case, prompts

SILENT = [
    ("vllm experts packed on reload", "experts", {}),
    ("compilation_config", "experts", {}),
    ("vllm latent norms", "experts", {"rms_norm_eps": 0.1}),
    ("tied head", "dense", {"tie_word_embeddings": True}),
]


@pytest.mark.parametrize("left_out, kind, changes", fast.only(SILENT[:1], SILENT))
def test_without_it_logprobs_are_silently_wrong(checkpoint, ranks, left_out, kind, changes):
    old, new = (checkpoint(kind, seed, **changes) for seed in (1, 2))
    whole = Case(old, (old, new), prompts([5, 9, 14, 20]))
    for case, right in ((whole, True), (replace(whole, without=(left_out,)), False)):
        (answer,) = ranks.run(cases.answer, case, size=1)
        assert (gap(case, answer) < TOLERANCE) == right
        assert right or gap(case, answer) > 100 * TOLERANCE


FAILING = [
    ("vllm gather of rows", "NotImplementedError"),
    ("vllm scatter of rows", "NotImplementedError"),
    ("vllm latent attention", "Unsupported block size"),
    ("vllm shutdown", "Default process group has not been initialized"),
]


@pytest.mark.parametrize("left_out, error", fast.only(FAILING[:1], FAILING))
def test_without_it_the_engine_fails(checkpoint, ranks, left_out, error):
    path, grid = checkpoint("experts", 1), VllmGrid(data_parallel_size=2, enable_expert_parallel=True)
    case = Case(path, (path,), prompts([5, 9]), grid=grid, without=(left_out,))
    with pytest.raises(AssertionError, match=error):
        ranks.run(cases.answer, case, size=2)


@pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(), reason="vLLM has another backend on processors with AMX only"
)
def test_without_the_attention_backend_latent_attention_in_fp32_does_not_start_on_amx(checkpoint, ranks):
    path = checkpoint("experts", 1)
    with pytest.raises(AssertionError, match="expect weight to be bfloat16"):
        ranks.run(cases.answer, Case(path, (path,), prompts([5, 9]), without=("attention_config",)), size=1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_engine_keeps_one_copy_of_embedding_and_head(checkpoint, ranks, tied):
    path = checkpoint("dense", 1, tie_word_embeddings=tied)
    (found,) = ranks.run(cases.copies, Case(path, (path, path), prompts([5])), size=1)
    # The embedding is looked up and the head is packed; a head with weights of its own does not keep them beside the
    # packed copy.
    assert found == {"embedding packed": False, "head packed": True, "head plain": tied}


@pytest.mark.parametrize(
    "left_out, wrong", [("vllm embedding", {"embedding packed": True}), ("vllm tied embedding", {"head plain": False})]
)
def test_without_it_there_is_another_copy_or_one_too_few(checkpoint, ranks, left_out, wrong):
    path = checkpoint("dense", 1, tie_word_embeddings=True)
    (found,) = ranks.run(cases.copies, Case(path, (path, path), prompts([5]), without=(left_out,)), size=1)
    assert found | wrong == found


@pytest.fixture
def no_shared_memory_of_vllms_own():
    """Remove what the engine leaves on the host under vLLM's own names, because the next run would fail with it."""

    def remove() -> None:
        for path in Path("/dev/shm").iterdir():
            if "cpushm" in path.name and "r1zero" not in path.name:
                path.unlink()

    remove()
    yield
    remove()


@pytest.mark.slow
def test_without_it_the_engine_leaves_another_number_of_threads(checkpoint, ranks):
    check_trace(checkpoint, ranks, "vllm thread count", "threads")


@pytest.mark.slow
@pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(),
    reason="vLLM's build for processors without AVX-512 has no shared memory",
)
def test_without_it_the_engine_leaves_shared_memory(checkpoint, ranks, no_shared_memory_of_vllms_own):
    check_trace(checkpoint, ranks, "vllm shared memory name", "shared memory")


def check_trace(checkpoint, ranks, left_out, trace):
    path, grid = checkpoint("dense", 1), VllmGrid(tensor_parallel_size=2)
    case = Case(path, (path,), prompts([5, 9]), grid=grid)
    assert ranks.run(cases.answer, case, size=2)[0].left_over == {}
    assert trace in ranks.run(cases.answer, replace(case, without=(left_out,)), size=2)[0].left_over


@pytest.mark.slow
def test_without_the_expert_map_wrong_experts_answer_or_the_process_dies(checkpoint, ranks):
    path = checkpoint("experts", 1)
    grid = VllmGrid(tensor_parallel_size=2, enable_expert_parallel=True)
    case = Case(path, (path,), prompts([5, 9, 14]), grid=grid, without=("vllm expert map",))
    try:
        answers = ranks.run(cases.answer, case, size=2)
        assert all(gap(case, answer) > 100 * TOLERANCE for answer in answers)
    except AssertionError as error:
        assert "it died, with status -11" in str(error)  # a segmentation fault


@pytest.mark.slow
def test_without_the_grid_over_some_ranks_engines_on_them_do_not_start(checkpoint, ranks):
    path = checkpoint("dense", 1)
    case = Case(path, (path,), prompts([5, 9]), grid=VllmGrid(ranks="1-2", tensor_parallel_size=2), train_ranks="0")
    ranks.run(cases.answer, case, size=3)
    with pytest.raises(AssertionError):
        ranks.run(cases.answer, replace(case, without=("vllm grid over some ranks",)), size=3)
