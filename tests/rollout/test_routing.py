"""The experts that an engine returns with its responses, against those that transformers chooses in fp32.

python -m pytest tests/rollout/test_routing.py
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from r1zero import config
from r1zero.config import UserError, VllmGrid
from r1zero.rollout import arguments
from r1zero.rollout.engine import Engine
from tests import fast
from tests.oracles import tiny_models as models
from tests.rollout import cases
from tests.rollout.cases import Case, prompts

LONG = [5, 9, 150, 20]
"""Lengths of prompts, of which one is longer than a block of the prefix cache."""
CASES = {
    "Qwen3-MoE": ("qwen3_moe", 1, {}),
    "DeepSeek-V3": ("experts", 1, {}),
    "DeepSeek-V2": ("deepseek_v2", 1, {}),
    # The responses need a second block, and there are 8 blocks for 12 requests.
    "Qwen3-MoE, some requests are preempted": (
        "qwen3_moe",
        1,
        dict(prompts=prompts([120, 121, 122, 123]), kv_cache_gib=0.0015, max_num_seqs=64),
    ),
    "experts cut by TP2": ("experts", 2, dict(grid=VllmGrid(tensor_parallel_size=2))),
    "experts over TP2": ("experts", 2, dict(grid=VllmGrid(tensor_parallel_size=2, enable_expert_parallel=True))),
    "experts over DP2": ("experts", 2, dict(grid=VllmGrid(data_parallel_size=2, enable_expert_parallel=True))),
}


@pytest.mark.parametrize("name", fast.only(["Qwen3-MoE", "DeepSeek-V3"], CASES))
def test_the_experts_of_all_tokens_but_the_last_are_those_of_transformers(checkpoint, ranks, name):
    kind, size, fields = CASES[name]
    path = checkpoint(kind, 1)
    fields = (
        dict(prompts=prompts(LONG), group_size=3, max_prompt_tokens=160, max_num_seqs=2, routing_replay=True) | fields
    )
    case = Case(path, (path,), **fields)
    engines = case.grid.data_parallel_size
    for rank, answer in enumerate(ranks.run(cases.answer, case, size=size)):
        texts = cases.texts(cases.share(case, engines, rank * engines // size), answer)
        for response, text, expected in zip(answer.responses, texts, models.chosen_experts(path, texts), strict=True):
            assert len(response.experts) == len(text) - 1
            assert torch.equal(response.experts.long().sort(-1).values, expected[:-1])
        assert bool(answer.preemptions) == ("preempted" in name)
        if name == "Qwen3-MoE":  # vLLM has no prefix cache for latent attention on a CPU
            # The third response to the long prompt begins with the cached blocks of the first.
            assert answer.computed_tokens < sum(len(text) - 1 for text in texts)


def test_experts_that_an_engine_did_not_record_are_not_taken_for_the_first_one():
    engine = object.__new__(Engine)
    engine._dense_layers = 1
    recorded = np.array([[[0, 0], [3, 5]], [[0, 0], [1, 0]]], np.uint8)
    sampled = SimpleNamespace(
        token_ids=[7], logprobs=SimpleNamespace(logprobs=[-0.5]), routed_experts=recorded, finish_reason="stop"
    )
    output = SimpleNamespace(request_id="0-0", outputs=[sampled])
    assert engine._response(output, with_experts=True).experts.tolist() == [[[3, 5]], [[1, 0]]]
    recorded[1] = 0
    with pytest.raises(UserError, match="did not return all tokens' experts; set train.routing_replay to false"):
        engine._response(output, with_experts=True)


def test_where_the_choice_is_read_after_each_step_no_step_runs_ahead_or_from_a_graph_that_does_not_report_it():
    found = {
        (device, replay): (arguments.schedules_ahead(cfg), arguments.records_graphs(cfg))
        for device in ("cuda", "npu")
        for replay in (False, True)
        for cfg in [config.Config(run=config.Run(device=device), train=config.Train(routing_replay=replay))]
    }
    assert found == {
        ("cuda", False): (True, True),
        ("cuda", True): (False, False),
        ("npu", False): (True, True),
        ("npu", True): (False, True),
    }
