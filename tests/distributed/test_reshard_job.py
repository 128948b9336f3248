"""The compiled reshard in the real job: megatron-core trains, vLLM's own loader takes the parts, the engines agree.

    python -m pytest tests/distributed/test_reshard_job.py
"""

import pytest
import torch

from r1zero import config
from r1zero.config import MegatronGrid, VllmGrid
from r1zero.model.families import read_shape
from tests import jobs

# name: (family, ranks, train, rollout)
CASES = {
    "dense, TP2 PP2 to TP1": ("qwen2", 4, dict(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, pipeline_layers=(2, 1)), {}),
    "dense, split, PP2 to TP2": ("qwen2", 4, dict(ranks="0-1", pipeline_model_parallel_size=2, pipeline_layers=(1, 2)),
                                 dict(ranks="2-3", tensor_parallel_size=2)),
    "experts, EP4 to TP2 x DP2": ("deepseek_v3", 4, dict(tensor_model_parallel_size=2, expert_model_parallel_size=4),
                                  dict(tensor_parallel_size=2, data_parallel_size=2, enable_expert_parallel=True)),
    "experts, split, TP2 EP2 to TP2": ("deepseek_v3", 4, dict(ranks="0-1", tensor_model_parallel_size=2, expert_model_parallel_size=2),
                                       dict(ranks="2-3", tensor_parallel_size=2)),
    # The algebra of configs/a3.toml, shrunk: stages of four ranks with experts over all of each, engines of TP x DP with experts over
    # both, two replicas, each replica as large as a stage but cut otherwise.
    "rehearsal of 384 dies: TP2 PP2 EP4 to TP2 x DP2 x 2": (
        "deepseek_v3", 8, dict(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, expert_model_parallel_size=4, pipeline_layers=(2, 1)),
        dict(tensor_parallel_size=2, data_parallel_size=2, enable_expert_parallel=True)),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return {family: jobs.make_base(tmp_path_factory.mktemp(family), family) for family in ("qwen2", "deepseek_v3")}


def train_two_steps(rank: int, cfg: config.Config) -> tuple[list[dict], bool]:
    """Two steps with the compiled reshard for the sync; then the engine's scores after it and after the generic sync."""
    def use(trainer) -> tuple[list[dict], bool]:  # noqa: ANN001
        from r1zero.reshard.push import CompiledSync

        generic, engine, chunks = trainer.sync, trainer.roles.engine, trainer.roles.chunks
        trainer.sync = CompiledSync(trainer.layout, read_shape(cfg.model.path), rank, cfg.run.dtype,
                                    cfg.layout.rollout.enable_expert_parallel, torch.device("cpu"), verify=True)
        trainer.sync.push(chunks, engine)
        figures = [trainer.step(i) for i in (1, 2)]
        sequences = [[5 + (7 * i + j) % 200 for j in range(20)] for i in range(4)]
        scores = []
        for sync in (trainer.sync, generic):
            sync.push(chunks, engine)
            scores.append(engine.score(sequences) if engine else None)
        return figures, scores[0] == scores[1]
    return jobs.with_trainer(rank, cfg, use)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_engines_fed_by_the_compiled_reshard_agree_with_the_trainer(ranks, bases, name) -> None:  # noqa: ANN001
    family, size, train, rollout = CASES[name]
    layout = config.Layout(train=MegatronGrid(**train), rollout=VllmGrid(**rollout))
    results = ranks.run(train_two_steps, jobs.job_config(bases[family], layout), size=size)
    for figures in results[0][0]:
        assert figures["rollout_gap/max"] < 1e-5
    assert all(same for _, same in results), "the generic sync's engine scores otherwise"
