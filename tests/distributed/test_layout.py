"""Carving as data: megatron's and vLLM's rank orders, the 384-die layouts, and refusals that name the cure."""

import pytest

from r1zero import config
from r1zero.config import MegatronGrid, UserError, VllmGrid
from r1zero.distributed import layout

A3 = config.Layout(
    train=MegatronGrid(
        tensor_model_parallel_size=4,
        pipeline_model_parallel_size=6,
        expert_model_parallel_size=64,
        pipeline_layers=(11, 11, 10, 10, 10, 9),
    ),
    rollout=VllmGrid(tensor_parallel_size=4, data_parallel_size=32, enable_expert_parallel=True),
)


def test_the_384_die_layout_has_the_groups_of_megatrons_tp_cp_ep_dp_pp_order():
    a3 = layout.carve(A3, 384)
    assert a3.train.dense.group(5, "tp") == (4, 5, 6, 7)
    assert a3.train.dense.group(5, "dp") == tuple(range(1, 64, 4))
    assert a3.train.dense.group(5, "pp") == (5, 69, 133, 197, 261, 325)
    assert a3.train.experts.groups("ep") == [tuple(range(s, s + 64)) for s in range(0, 384, 64)]
    assert len(a3.train.experts.groups("edp")) == 384
    assert a3.rollout.axes == (("tp", 4), ("dp", 32), ("replica", 3)) and a3.engines == 96
    assert a3.engine_of(200) == 50 and a3.rollout.coordinate(200, "replica") == 1


@pytest.mark.parametrize("tp, pp, ep, size", [(2, 2, 4, 8), (1, 1, 2, 4), (2, 1, 1, 4), (2, 2, 2, 8), (4, 2, 8, 16)])
def test_groups_equal_megatrons_own(tp, pp, ep, size):
    from megatron.core.parallel_state import RankGenerator

    grids = layout.carve(
        config.Layout(
            train=MegatronGrid(
                tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, expert_model_parallel_size=ep
            )
        ),
        size,
    ).train
    order = "tp-cp-ep-dp-pp"
    dense = RankGenerator(tp=tp, ep=1, dp=size // tp // pp, pp=pp, cp=1, order=order)
    etp = tp if ep == 1 else 1
    experts = RankGenerator(tp=etp, ep=ep, dp=size // (etp * ep * pp), pp=pp, cp=1, order=order)

    def plain(groups):
        return sorted(tuple(g) for g in groups)

    for axis in ("tp", "dp", "pp"):
        assert plain(grids.dense.groups(axis)) == plain(dense.get_ranks(axis))
    for ours, theirs in (("etp", "tp"), ("ep", "ep"), ("edp", "dp"), ("pp", "pp")):
        assert plain(grids.experts.groups(ours)) == plain(experts.get_ranks(theirs))


def test_at_and_coordinate_are_inverse():
    grid = layout.carve(A3, 384).train.dense
    for rank in grid.ranks:
        assert grid.at(**{axis: grid.coordinate(rank, axis) for axis, _ in grid.axes}) == rank


def test_three_disjoint_grids_in_a_world_of_four():
    split = layout.carve(
        config.Layout(
            train=MegatronGrid(ranks="0-1", tensor_model_parallel_size=2),
            reference=MegatronGrid(ranks="2"),
            rollout=VllmGrid(ranks="3"),
        ),
        4,
    )
    assert split.train.dense.ranks == (0, 1) and split.reference.dense.ranks == (2,) and split.rollout.ranks == (3,)


@pytest.mark.parametrize(
    "cfg, size, words",
    [
        (config.Layout(train=MegatronGrid(tensor_model_parallel_size=3)), 4, ["layout.train", "tp 3", "4 ranks"]),
        (config.Layout(train=MegatronGrid(expert_model_parallel_size=3)), 4, ["expert_model_parallel_size", "4 ranks"]),
        (config.Layout(train=MegatronGrid(ranks="0-5")), 4, ["layout.train.ranks", "0-5", "world of 4"]),
        (config.Layout(train=MegatronGrid(ranks="0-2")), 4, ["0-2", "0-3", "overlap"]),
        (config.Layout(train=MegatronGrid(ranks="0"), rollout=VllmGrid(ranks="1")), 3, ["2", "no role"]),
        (config.Layout(rollout=VllmGrid(tensor_parallel_size=3)), 4, ["layout.rollout", "3", "4 ranks"]),
        (config.Layout(rollout=VllmGrid(data_parallel_size=2)), 4, ["data_parallel_size", "enable_expert_parallel"]),
        (config.Layout(train=MegatronGrid(ranks="x-1")), 4, ["layout.train.ranks", "x-1"]),
        (config.Layout(train=MegatronGrid(tensor_model_parallel_size=0)), 4, ["tensor_model_parallel_size = 0"]),
        (
            config.Layout(train=MegatronGrid(pipeline_model_parallel_size=2, pipeline_layers=(1, 2, 3))),
            4,
            ["pipeline_layers", "3", "2"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_field_and_both_values(cfg, size, words):
    with pytest.raises(UserError) as error:
        layout.carve(cfg, size)
    assert all(word in str(error.value) for word in words), error.value


def test_prompts_that_do_not_divide_over_engines_are_refused_with_a_number_that_does():
    cfg = config.Config(grpo=config.Grpo(prompts_per_iteration=6))
    with pytest.raises(UserError, match="6.*4 rollout engines.*use 8"):
        layout.check_batch(cfg, layout.carve(cfg.layout, 4))
