"""Who holds what, as data: on 384 ranks as on two.

python -m pytest tests/model/test_placement.py
"""

import json
from math import prod

import pytest

from r1zero import config
from r1zero.config import UserError
from r1zero.distributed import layout
from r1zero.model import placement
from r1zero.model.families import read_shape
from r1zero.model.weights import weights
from tests.model.config_values import DEEPSEEK, MINIMAL, QWEN2
from tests.oracles.published import PUBLISHED


def carved(size, **degrees):
    names = dict(
        tp="tensor_model_parallel_size",
        pp="pipeline_model_parallel_size",
        ep="expert_model_parallel_size",
        layers="pipeline_layers",
    )
    grid = config.MegatronGrid(**{names[key]: value for key, value in degrees.items()})
    return layout.carve(config.Layout(train=grid), size).train


def shape_of(folder, config_json):
    (folder / "config.json").write_text(json.dumps(config_json))
    return read_shape(folder)


TINY, V3 = MINIMAL[DEEPSEEK], PUBLISHED["DeepSeek-V3"]


@pytest.mark.parametrize(
    "size, degrees",
    [
        (1, {}),
        (4, dict(tp=2)),
        (4, dict(tp=2, pp=2)),
        (4, dict(ep=4)),
        (8, dict(tp=2, pp=2, ep=4)),
        (8, dict(tp=2, ep=2, pp=2, layers=(1, 3))),
    ],
)
def test_each_element_of_each_weight_is_held_by_as_many_ranks_as_the_layout_copies_it(tmp_path, size, degrees):
    shape, grids = shape_of(tmp_path, TINY), carved(size, **degrees)
    for weight in weights(shape):
        holders = placement.holders(weight, shape, grids)
        grid, axis = placement.grid_of(weight, grids)
        copies = len(grid.ranks) // grid.size("pp") // (grid.size("ep") if weight.expert is not None else 1)
        assert sum(prod(cut.stop - cut.start for cut in part) for part in holders.values()) == (
            weight.size * copies // (grid.size(axis) if weight.cut is not None else 1)
        )
        for rank in range(size):
            assert placement.local_part(weight, shape, grids, rank) == holders.get(rank)


def test_the_384_die_layout_holds_5_4_gigabytes_on_its_fullest_rank(tmp_path):
    shape, grids = shape_of(tmp_path, V3), carved(384, tp=4, pp=6, ep=64, layers=(11, 11, 10, 10, 10, 9))
    held = dict.fromkeys(range(384), 0)
    for weight in weights(shape):
        for rank, part in placement.holders(weight, shape, grids).items():
            held[rank] += 2 * prod(cut.stop - cut.start for cut in part)
    assert max(held.values()) == pytest.approx(5.4e9, rel=0.01)


def test_a_tied_embedding_lives_at_both_ends_of_the_pipeline(tmp_path):
    shape = shape_of(tmp_path, dict(MINIMAL[QWEN2], tie_word_embeddings=True))
    embedding = weights(shape)[0]
    grids = carved(2, pp=2)
    assert set(placement.holders(embedding, shape, grids)) == {0, 1}
    names = [placement.parameter_name(embedding, shape, grids, stage) for stage in (0, 1)]
    assert names == ["embedding.word_embeddings.weight", "output_layer.weight"]
    assert "lm_head.weight" not in {w.name for w in weights(shape)}


@pytest.mark.parametrize(
    "size, degrees, words",
    [
        (8, dict(tp=8), "num_attention_heads = 4"),
        (3, dict(tp=3), "num_attention_heads"),
        (3, dict(pp=3), "pipeline_layers"),
        (2, dict(pp=2, layers=(3, 2)), "adds up to 5"),
        (2, dict(pp=2, layers=(4, 0)), "at least one"),
        (3, dict(ep=3), "8 experts"),
    ],
)
def test_degrees_that_do_not_cut_the_model_are_refused(tmp_path, size, degrees, words):
    with pytest.raises(UserError, match=words):
        placement.check(shape_of(tmp_path, TINY), carved(size, **degrees))


def test_spread_experts_need_experts(tmp_path):
    with pytest.raises(UserError, match="no experts"):
        placement.check(shape_of(tmp_path, MINIMAL[QWEN2]), carved(2, ep=2))
