"""The engine in a world of one, against transformers in fp32."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from r1zero.rollout.engine import request_seed
from tests import fast
from tests.oracles import tiny_models as models
from tests.oracles.generation import TOLERANCE, expected, gap, redrawn, worst
from tests.rollout import cases
from tests.rollout.cases import Answer, Case, prompts


@pytest.fixture(scope="module")
def dense(checkpoint, ranks) -> tuple[Case, Answer]:
    path = checkpoint("dense", 1)
    case = Case(path, (path,), prompts([5, 9, 14, 20, 33, 40]), group_size=4)
    return case, ranks.run(cases.answer, case, size=1)[0]


def test_logprobs_of_sampled_tokens_are_those_of_the_tempered_and_masked_model(dense):
    case, answer = dense
    theirs = expected(case, answer)
    sampled = [of_all[-len(r.token_ids) :] for r, of_all in zip(answer.responses, theirs, strict=True)]
    assert worst([r.logprobs for r in answer.responses], sampled) < TOLERANCE
    assert worst([r.logprobs for r in answer.responses], [[p * 0.7 for p in s] for s in sampled]) > 0.1


def test_score_gives_the_same_logprobs_for_prompt_and_response(dense):
    case, answer = dense
    assert worst(answer.scores, expected(case, answer)) < TOLERANCE


def test_a_response_ends_with_a_stop_token_or_at_the_limit(dense):
    case, answer = dense
    for response in answer.responses:
        stopped = response.token_ids[-1] in case.stop_token_ids
        assert response.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(response.token_ids) == case.max_response_tokens
        assert not set(response.token_ids[:-1]) & set(case.stop_token_ids)


def test_the_engine_leaves_generators_threads_environment_and_shared_memory_as_they_were(dense):
    assert dense[1].left_over == {}


def test_forbidden_ids_are_never_sampled_and_have_no_share_of_the_probability(dense, ranks):
    case = replace(dense[0], forbidden_ids=tuple(range(12, 512)), stop_token_ids=(7,))
    (answer,) = ranks.run(cases.answer, case, size=1)
    assert {token for r in answer.responses for token in r.token_ids} <= set(range(12))
    theirs = [of_all[-len(r.token_ids) :] for r, of_all in zip(answer.responses, expected(case, answer), strict=True)]
    assert worst([r.logprobs for r in answer.responses], theirs) < TOLERANCE
    assert {r.finish_reason for r in answer.responses} == {"stop", "length"}


def test_a_model_published_in_fp8_is_generated_with_as_trained(dense, ranks, tmp_path):
    case, answer = dense
    shutil.copytree(case.path, tmp_path / "fp8")
    shape = json.loads((tmp_path / "fp8/config.json").read_text())
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    (tmp_path / "fp8/config.json").write_text(json.dumps({**shape, "quantization_config": fp8}))
    (same,) = ranks.run(cases.answer, replace(case, path=str(tmp_path / "fp8")), size=1)
    assert [r.token_ids for r in same.responses] == [r.token_ids for r in answer.responses]


def test_finished_responses_are_handed_over_while_others_decode(dense, ranks):
    case = replace(dense[0], stop_token_ids=tuple(range(0, 512, 8)))
    (answer,) = ranks.run(cases.answer, case, size=1)
    assert answer.still_decoding[0] > 0 and answer.still_decoding[-1] == 0
    assert len(set(answer.still_decoding)) > 3


@pytest.mark.parametrize("seats", fast.only([3], [3, 64]))
def test_tokens_depend_on_seed_and_prompt_not_on_what_is_decoded_beside_them(dense, ranks, seats):
    case, together = dense
    for first in range(0, len(case.prompts), 3):
        part = replace(case, prompts=case.prompts[first : first + 3], max_num_seqs=seats)
        (alone,) = ranks.run(cases.answer, part, size=1)
        same = [r for r in together.responses if first <= r.prompt < first + 3]
        assert [r.token_ids for r in alone.responses] == [r.token_ids for r in same]


def test_the_sampled_tokens_are_those_of_the_draw_from_transformers_distributions(dense):
    case, answer = dense
    assert [r.token_ids for r in answer.responses] == redrawn(case, answer)


def test_a_response_alone_equals_it_in_a_batch_of_256(dense, ranks):
    case = replace(dense[0], prompts=dense[0].prompts[:4], group_size=64, max_num_seqs=256)
    (together,) = ranks.run(cases.answer, replace(case, max_response_tokens=8), size=1)
    assert len({tuple(r.token_ids) for r in together.responses}) > 250
    for p in range(4):
        alone = replace(case, prompts=case.prompts[p : p + 1], group_size=1, max_response_tokens=8, max_num_seqs=1)
        (answer,) = ranks.run(cases.answer, alone, size=1)
        assert answer.responses[0].token_ids == together.responses[64 * p].token_ids


def test_first_tokens_have_the_distribution_of_the_model(dense, ranks):
    """Chi-square over all ids that are expected more than five times, 8,000 draws with fixed seeds. The statistic of n
    cells has mean n and standard deviation sqrt(2 n)."""
    case = replace(dense[0], prompts=dense[0].prompts[:1], group_size=8000, max_response_tokens=1, max_num_seqs=256)
    ((responses,),) = ranks.run(cases.evaluate, case, [case.temperature], size=1)
    sequence, forbidden = [*case.prompts[0].token_ids, 0], list(case.forbidden_ids)
    (row,) = models.distributions(case.path, [sequence], case.temperature, forbidden)
    expected = row[-1].exp() * 8000
    counts = torch.bincount(torch.tensor([r.token_ids[0] for r in responses]), minlength=len(expected))
    common = expected > 5
    cells = (counts - expected)[common] ** 2 / expected[common]
    assert counts[forbidden].sum() == 0 and len(cells) > 50
    assert cells.sum() < len(cells) + 5 * math.sqrt(2 * len(cells))


def test_an_evaluation_draws_at_its_own_temperature_and_takes_the_likeliest_tokens_at_0(dense, ranks):
    case = replace(dense[0], prompts=dense[0].prompts[:3])
    found = ranks.run(cases.evaluate, case, [0.7, 0.0, 1.1, 0.7], size=1)[0]
    same = [r for r in dense[1].responses if r.prompt < 3 and r.sample < case.group_size]
    assert [r.token_ids for r in found[0]] == [r.token_ids for r in found[3]] == [r.token_ids for r in same]
    at_1 = replace(case, temperature=1.1)
    answer = replace(dense[1], responses=found[2])
    assert [r.token_ids for r in found[2]] == redrawn(at_1, answer) != [r.token_ids for r in same]
    greedy = replace(dense[1], responses=found[1])
    rows = models.distributions(case.path, cases.texts(case, greedy), 1.0, list(case.forbidden_ids))
    for response, of_all in zip(found[1], rows, strict=True):
        assert response.token_ids == of_all[-len(response.token_ids) :].argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_prompts_longer_than_a_scheduler_step_are_prefilled_in_chunks_and_sample_the_same(checkpoint, ranks, kind):
    """vLLM on a CPU raises the step to the longest sequence if the model has latent attention."""
    path = checkpoint(kind, 1)
    case = Case(path, (path,), prompts([100, 150, 20, 149]), max_prompt_tokens=150, max_num_batched_tokens=1024)
    (whole,), (chunked,) = (
        ranks.run(cases.answer, replace(case, max_num_batched_tokens=tokens), size=1) for tokens in (1024, 64)
    )
    assert [r.token_ids for r in chunked.responses] == [r.token_ids for r in whole.responses]
    assert gap(case, chunked) < TOLERANCE
    assert whole.longest_step > 300 and (chunked.longest_step <= 64) == (kind == "dense")


def test_hidden_states_of_a_sequence_in_chunks_are_put_together(dense, ranks):
    case, tokens = replace(dense[0], max_prompt_tokens=150), list(range(8, 158))
    (whole,), (chunked,) = (
        ranks.run(cases.hidden, replace(case, max_num_batched_tokens=budget), tokens, size=1) for budget in (512, 64)
    )
    assert whole.keys() == chunked.keys() == {-1, 0, 1, 2}
    for layer, states in whole.items():
        assert states.shape == chunked[layer].shape == (150, 128)
        assert abs(states - chunked[layer]).max() < TOLERANCE


def test_samples_iterations_and_prompts_differ(dense, ranks):
    case, answer = dense
    assert len({tuple(r.token_ids) for r in answer.responses}) == len(answer.responses)
    (later,) = ranks.run(cases.answer, replace(case, iteration=1), size=1)
    assert all(a.token_ids != b.token_ids for a, b in zip(answer.responses, later.responses, strict=True))


def test_prompts_longer_than_a_cache_block_share_it_and_sample_the_same(checkpoint, ranks):
    path = checkpoint("dense", 1)
    case = Case(path, (path,), prompts([200, 300]), group_size=4, max_prompt_tokens=300, max_num_batched_tokens=512)
    (together,), (alone,) = (ranks.run(cases.answer, replace(case, max_num_seqs=seats), size=1) for seats in (8, 1))
    assert [r.token_ids for r in together.responses] == [r.token_ids for r in alone.responses]
    assert worst(together.scores, expected(case, together)) < TOLERANCE


def test_more_prompt_tokens_than_one_scheduler_step_takes(checkpoint, ranks):
    path = checkpoint("dense", 1)
    case = Case(path, (path,), prompts([40] * 12), group_size=2, max_num_batched_tokens=57, max_num_seqs=16)
    (answer,) = ranks.run(cases.answer, case, size=1)
    assert worst(answer.scores, expected(case, answer)) < TOLERANCE


def test_responses_that_a_full_cache_puts_off_are_sampled_the_same(checkpoint, ranks):
    path = checkpoint("dense", 1)
    case = Case(path, (path,), prompts([120, 121, 122, 123]), max_prompt_tokens=128, max_num_batched_tokens=512)
    (roomy,), (tight,) = (ranks.run(cases.answer, replace(case, kv_cache_gib=gib), size=1) for gib in (0.0625, 0.0015))
    assert roomy.preemptions == 0 < tight.preemptions
    assert [r.token_ids for r in tight.responses] == [r.token_ids for r in roomy.responses]
    assert gap(case, tight) < TOLERANCE


RELOADED = {
    "untied": ("dense", {}),
    "tied": ("dense", {"tie_word_embeddings": True}),
    "Qwen3": ("qwen3", {}),
    "Llama": ("llama", {}),
    "Mistral": ("mistral", {}),
    "Qwen3-MoE": ("qwen3_moe", {}),
    "DeepSeek-V2": ("deepseek_v2", {}),
    "DeepSeek-V2-Lite": ("deepseek_v2_lite", {}),
    "Moonlight": ("moonlight", {}),
    "experts": ("experts", {}),
}


@pytest.mark.parametrize("name", fast.only(["tied", "experts"], RELOADED))
def test_after_a_reload_the_engine_is_a_fresh_engine_of_the_new_weights(checkpoint, ranks, name):
    kind, changes = RELOADED[name]
    old, new = checkpoint(kind, 1, **changes), checkpoint(kind, 2, **changes)
    case = Case(old, (old, new), prompts([5, 9, 14, 20, 33, 40]))
    (reloaded,) = ranks.run(cases.answer, case, size=1)
    (fresh,) = ranks.run(cases.answer, replace(case, loads=(new,)), size=1)
    assert reloaded.responses == fresh.responses and reloaded.scores == fresh.scores
    assert worst(reloaded.scores, expected(case, reloaded)) < TOLERANCE
    assert gap(case, reloaded, old) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype, bound", [("bfloat16", 0.1), ("float16", 0.0125)])  # three bits more
def test_sixteen_bits_are_near_fp32(dense, ranks, dtype, bound):
    case = replace(dense[0], dtype=dtype, prompts=dense[0].prompts[:2])
    (answer,) = ranks.run(cases.answer, case, size=1)
    assert TOLERANCE < worst(answer.scores, expected(case, answer)) < bound


def test_request_seeds_fit_63_bits_and_tell_all_four_numbers_apart():
    keys = [(1, 2, 3, 4), (2, 1, 3, 4), (1, 2, 4, 3), (1, 23, 4, 0), (12, 3, 4, 0), (1, 2, 3, 5)]
    seeds = {request_seed(*key) for key in keys}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(1, 2, 3, 4) == 6166540439935100110  # a run continued with newer code samples the same
