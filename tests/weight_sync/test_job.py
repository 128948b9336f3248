"""The compiled reshard in the real job: megatron-core trains, vLLM's own loader takes the parts, the engines agree.

python -m pytest tests/weight_sync/test_job.py
"""

import pytest
import torch

from r1zero import config
from r1zero.config import MegatronGrid, VllmGrid
from tests import jobs

# name: (family, ranks, train, rollout)
ALL = {
    "dense, TP2 PP2 to TP1": (
        "qwen2",
        4,
        dict(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, pipeline_layers=(2, 1)),
        {},
    ),
    "dense, split, PP2 to TP2": (
        "qwen2",
        4,
        dict(ranks="0-1", pipeline_model_parallel_size=2, pipeline_layers=(1, 2)),
        dict(ranks="2-3", tensor_parallel_size=2),
    ),
    "experts, EP4 to TP2 x DP2": (
        "deepseek_v3",
        4,
        dict(tensor_model_parallel_size=2, expert_model_parallel_size=4),
        dict(tensor_parallel_size=2, data_parallel_size=2, enable_expert_parallel=True),
    ),
    "experts, split, TP2 EP2 to TP2": (
        "deepseek_v3",
        4,
        dict(ranks="0-1", tensor_model_parallel_size=2, expert_model_parallel_size=2),
        dict(ranks="2-3", tensor_parallel_size=2),
    ),
    "Llama, PP2 to TP2": (
        "llama",
        2,
        dict(pipeline_model_parallel_size=2, pipeline_layers=(2, 1)),
        dict(tensor_parallel_size=2),
    ),
    "Mistral, TP2 to TP2": ("mistral", 2, dict(tensor_model_parallel_size=2), dict(tensor_parallel_size=2)),
    "Qwen3-MoE, TP2 EP2 to experts over TP2": (
        "qwen3_moe",
        2,
        dict(tensor_model_parallel_size=2, expert_model_parallel_size=2),
        dict(tensor_parallel_size=2, enable_expert_parallel=True),
    ),
    "DeepSeek-V2, TP2 EP2 to experts over TP2": (
        "deepseek_v2",
        2,
        dict(tensor_model_parallel_size=2, expert_model_parallel_size=2),
        dict(tensor_parallel_size=2, enable_expert_parallel=True),
    ),
    "DeepSeek-V2-Lite, PP2 to TP2": (
        "deepseek_v2_lite",
        2,
        dict(pipeline_model_parallel_size=2, pipeline_layers=(2, 1)),
        dict(tensor_parallel_size=2),
    ),
    "Moonlight, TP2 EP2 to TP2": (
        "moonlight",
        2,
        dict(tensor_model_parallel_size=2, expert_model_parallel_size=2),
        dict(tensor_parallel_size=2),
    ),
    # The algebra of configs/a3.toml, shrunk: stages of four ranks with experts over all of each, engines of TP x DP
    # with experts over both, two replicas, each replica as large as a stage but cut otherwise.
    "rehearsal of 384 dies: TP2 PP2 EP4 to TP2 x DP2 x 2": (
        "deepseek_v3",
        8,
        dict(
            tensor_model_parallel_size=2,
            pipeline_model_parallel_size=2,
            expert_model_parallel_size=4,
            pipeline_layers=(2, 1),
        ),
        dict(tensor_parallel_size=2, data_parallel_size=2, enable_expert_parallel=True),
    ),
}

CASES = [
    pytest.param(name, marks=pytest.mark.long if "split" in name else pytest.mark.slow) for name in ALL
]  # splits: test_job has more


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return {
        family: jobs.make_base(tmp_path_factory.mktemp(family), family)
        for family in {family for family, *_ in ALL.values()}
    }


def train_two_steps(rank: int, cfg: config.Config) -> tuple[list[dict], int, int]:
    """Two steps. Then every weight of the engine is spoilt, and its scores are taken after a sync and after the generic
    path.

    Returns the steps' figures, how many weights are written in place, and how many sequences score otherwise.
    """

    def use(trainer) -> tuple[list[dict], int, int]:
        from r1zero.model import build, mapping
        from tests.oracles import gathered_weights as generic

        engine, chunks, shape, grids = trainer.roles.engine, trainer.roles.chunks, trainer.roles.shape, trainer.layout
        trainer.roles.to_rollout(trainer.sync)
        figures = [trainer.step(i) for i in (1, 2)]
        sequences = [[5 + (7 * i + j) % 200 for j in range(20)] for i in range(4)]
        scores = []

        def by_oracle() -> None:
            local = mapping.local_tensors(chunks, shape, grids.train) if chunks else {}
            receivers = generic.engine_receivers(grids.rollout, shape, cfg.layout.rollout.enable_expert_parallel)
            tensors = generic.stream(local, shape, grids.train, receivers, build.DTYPES[cfg.run.dtype])
            if engine:
                engine.reload(tensors)
            for _ in tensors:
                pass

        for push in (lambda: trainer.sync.push(chunks, engine), by_oracle):
            if engine:
                engine._llm.apply_model(spoil)
            push()
            scores.append(engine.score(sequences) if engine else [])
        same = sum(a == b and not torch.tensor(a).isnan().any() for a, b in zip(*scores, strict=True))
        return figures, len(trainer.sync.writers), len(scores[0]) - same

    return jobs.with_trainer(rank, cfg, use)


def spoil(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))


@pytest.mark.parametrize("name", CASES)
def test_engines_fed_by_the_compiled_reshard_agree_with_the_trainer_and_with_the_generic_path(
    ranks, bases, name
) -> None:
    family, size, train, rollout = ALL[name]
    layout = config.Layout(train=MegatronGrid(**train), rollout=VllmGrid(**rollout))
    results = ranks.run(train_two_steps, jobs.job_config(bases[family], layout), size=size)
    for figures in results[0][0]:
        assert figures["rollout_gap/max"] < 1e-5
    assert [other for _, _, other in results] == [0] * size
    generates = layout.rollout.ranks == "all"
    assert all(written >= 8 for _, written, _ in results[0 if generates else 2 :]), (
        "norms and embedding are written in place on a CPU too"
    )
