"""Small shapes whose dimensions all differ, so that a mistaken axis shows."""

from r1zero import config
from r1zero.distributed import layout
from r1zero.distributed.layout import Layout
from r1zero.model.shape import Mla, Moe, Shape

QWEN = Shape(
    family="Qwen2ForCausalLM",
    layers=4,
    hidden_size=24,
    ffn_hidden_size=40,
    heads=8,
    kv_heads=2,
    head_dim=6,
    vocab_size=1280,
    max_positions=64,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    tied=False,
    qkv_bias=True,
)
TIED = Shape(**{**QWEN.__dict__, "tied": True})
DEEPSEEK = Shape(
    family="DeepseekV3ForCausalLM",
    layers=5,
    hidden_size=20,
    ffn_hidden_size=48,
    heads=8,
    kv_heads=8,
    head_dim=10,
    vocab_size=640,
    max_positions=64,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    tied=False,
    mla=Mla(q_lora_rank=12, kv_lora_rank=14, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=7),
    moe=Moe(
        experts=8,
        topk=2,
        groups=2,
        topk_groups=1,
        ffn_hidden_size=16,
        shared_experts=1,
        first_dense_layers=1,
        routed_scaling_factor=2.5,
    ),
)


def carve(
    size: int,
    train: tuple,
    rollout: tuple,
    expert_parallel: bool = False,
    train_ranks: str = "all",
    rollout_ranks: str = "all",
    layers: tuple[int, ...] = (),
) -> Layout:
    """train: (tp, pp, ep); rollout: (tp, dp)."""
    tp, pp, ep = train
    return layout.carve(
        config.Layout(
            train=config.MegatronGrid(
                ranks=train_ranks,
                tensor_model_parallel_size=tp,
                pipeline_model_parallel_size=pp,
                expert_model_parallel_size=ep,
                pipeline_layers=layers,
            ),
            rollout=config.VllmGrid(
                ranks=rollout_ranks,
                tensor_parallel_size=rollout[0],
                data_parallel_size=rollout[1],
                enable_expert_parallel=expert_parallel,
            ),
        ),
        size,
    )


DEEP = (2, 1, 1, 1)
CASES = {  # name: (shape, layout, expert parallel)
    "one rank": (QWEN, carve(1, (1, 1, 1), (1, 1)), False),
    "tp2 to tp2, in place": (QWEN, carve(4, (2, 1, 1), (2, 1)), False),
    "tp2 to tp4": (QWEN, carve(4, (2, 1, 1), (4, 1)), False),
    "tp2 pp2 to tp8, heads repeated": (QWEN, carve(8, (2, 2, 1), (8, 1)), False),
    "tied, pp4 to replicas": (TIED, carve(8, (1, 4, 1), (2, 1)), False),
    "split, tp2 pp2 to tp2": (QWEN, carve(8, (2, 2, 1), (2, 1), train_ranks="0-3", rollout_ranks="4-7"), False),
    "split, engines first, uneven": (TIED, carve(7, (2, 2, 1), (1, 1), train_ranks="3-6", rollout_ranks="0-2"), False),
    "moe, experts cut by tp": (DEEPSEEK, carve(4, (2, 1, 1), (4, 1)), False),
    "moe, ep4 to ep4": (DEEPSEEK, carve(8, (2, 2, 4), (2, 2), True, layers=(3, 2)), True),
    "moe, ep2 to ep8": (DEEPSEEK, carve(8, (1, 4, 2), (4, 2), True, layers=DEEP), True),
    "moe, ep8 to experts cut by tp2": (DEEPSEEK, carve(8, (4, 1, 8), (2, 1)), False),
    "moe, split, ep2 to ep4": (DEEPSEEK, carve(8, (2, 2, 2), (2, 2), True, "4-7", "0-3", (4, 1)), True),
}
