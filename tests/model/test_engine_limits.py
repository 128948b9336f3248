"""What vLLM cannot do is said before anything is loaded.

python -m pytest tests/model/test_engine_limits.py
"""

import json
from dataclasses import replace

import pytest

from r1zero import config
from r1zero.config import UserError
from r1zero.distributed import layout
from r1zero.model.families import read_shape
from r1zero.rollout import engine_limits
from tests.model.config_values import DEEPSEEK, DEEPSEEK_V2, MINIMAL, QWEN3, YARN

ROLLOUT = config.Rollout(max_prompt_tokens=100, max_response_tokens=27, kv_cache_gib=0.0625)
DENSE = dict(MINIMAL[QWEN3], head_dim=32, max_position_embeddings=128)
LATENT = dict(MINIMAL[DEEPSEEK], kv_lora_rank=256, qk_rope_head_dim=64)
STRETCHED = dict(LATENT, max_position_embeddings=320, rope_scaling=YARN)


def check(folder, model, device="cpu", **rollout):
    (folder / "config.json").write_text(json.dumps(model))
    cfg = config.Config(
        run=config.Run(device=device, dtype="float32"),
        model=config.Model(path=str(folder)),
        rollout=replace(ROLLOUT, **rollout),
    )
    engine_limits.check(cfg, read_shape(folder), layout.carve(cfg.layout, 1))


@pytest.mark.parametrize(
    "model, rollout",
    [(DENSE, {}), (dict(DENSE, head_dim=48), {}), (LATENT, {}), (STRETCHED, dict(max_response_tokens=219))],
)
def test_what_the_engine_can_do_passes(tmp_path, model, rollout):
    check(tmp_path, model, **rollout)


@pytest.mark.parametrize(
    "model, rollout, words",
    [
        (DENSE, dict(max_response_tokens=28), "+ 1 = 129 exceeds the model's max_position_embeddings = 128 ("),
        (STRETCHED, dict(max_response_tokens=220), "+ 1 = 321 exceeds the model's max_position_embeddings = 320 ("),
        (
            dict(STRETCHED, max_position_embeddings=640),
            dict(max_response_tokens=220),
            "+ 1 = 321 exceeds the model's original_max_position_embeddings x factor = 320 (",
        ),
        (dict(DENSE, head_dim=24), {}, "config.json: head_dim = 24; vLLM on a CPU supports only 32, 48, 64,"),
        (
            dict(LATENT, kv_lora_rank=128),
            {},
            "kv_lora_rank + qk_rope_head_dim = 192; vLLM on a CPU supports only 320, 512 and 576",
        ),
        (dict(LATENT, hidden_size=48), {}, "hidden_size = 48; vLLM on a CPU supports only multiples of 32"),
        # One token of 4 layers of 2 x 2 heads of 32 elements of 4 bytes takes 2 KiB.
        (
            DENSE,
            dict(kv_cache_gib=127 * 2048 / 2**30),
            "has room for 127 tokens of the model, but max_prompt_tokens + max_response_tokens + 1 = 128",
        ),
    ],
)
def test_what_it_cannot_do_is_a_sentence(tmp_path, model, rollout, words):
    with pytest.raises(UserError) as caught:
        check(tmp_path, model, **rollout)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "routing, refused",
    [
        (dict(topk_method="group_limited_greedy", n_group=4, topk_group=2), True),
        (dict(topk_method="group_limited_greedy", n_group=4, topk_group=4), False),
        (dict(topk_method="greedy", n_group=4, topk_group=2), False),
    ],
)
def test_the_kernel_of_the_npu_chooses_groups_as_deepseek_v3_does(tmp_path, routing, refused):
    model = dict(MINIMAL[DEEPSEEK_V2], kv_lora_rank=256, qk_rope_head_dim=64, **routing)
    check(tmp_path, model)
    if not refused:
        return check(tmp_path, model, device="npu")
    with pytest.raises(UserError, match='config.json: topk_method = "group_limited_greedy"; vllm-ascend scores'):
        check(tmp_path, model, device="npu")


def test_the_kernels_of_the_cpu_bind_no_other_device(tmp_path):
    check(tmp_path, dict(LATENT, kv_lora_rank=128, hidden_size=48), device="npu")


def test_a_model_without_experts_has_no_routing_to_replay(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    cfg = config.Config(
        model=config.Model(path=str(tmp_path)), rollout=ROLLOUT, train=config.Train(routing_replay=True)
    )
    with pytest.raises(UserError, match=r"train.routing_replay = true, but the model has no experts \(.*config.json\)"):
        engine_limits.check(cfg, read_shape(tmp_path), layout.carve(cfg.layout, 1))


def test_vllm_ascend_loses_experts_where_tensor_ranks_divide_the_tokens(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LATENT))
    shape = read_shape(tmp_path)
    for device, grid, refused in (
        ("npu", dict(tensor_parallel_size=2, enable_expert_parallel=True), True),
        ("npu", dict(data_parallel_size=2, enable_expert_parallel=True), False),
        ("npu", dict(tensor_parallel_size=2), False),
        ("cpu", dict(tensor_parallel_size=2, enable_expert_parallel=True), False),
    ):
        cfg = config.Config(
            run=config.Run(device=device),
            model=config.Model(path=str(tmp_path)),
            layout=config.Layout(rollout=config.VllmGrid(**grid)),
            rollout=ROLLOUT,
            train=config.Train(routing_replay=True),
        )
        if not refused:
            engine_limits.check(cfg, shape, layout.carve(cfg.layout, 2))
            continue
        with pytest.raises(UserError, match=r"and tensor_parallel_size = 2: vllm-ascend then returns the experts of a"):
            engine_limits.check(cfg, shape, layout.carve(cfg.layout, 2))
