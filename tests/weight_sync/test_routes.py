"""The compiled plan, simulated: every rank as data, no process and no torch.

python -m pytest tests/weight_sync/test_routes.py
"""

from collections import defaultdict

import numpy as np
import pytest

from r1zero import config
from r1zero.config import UserError
from r1zero.distributed import layout
from r1zero.model.families import read_shape
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight
from r1zero.weight_sync import rounds as planned
from r1zero.weight_sync.routes import Routes, Span, axis, match
from tests import fast
from tests.weight_sync.shapes import CASES, DEEPSEEK, QWEN, carve

A3 = ("configs/a3.toml", "configs/a3_aligned.toml")
BF16 = 2


def engine_rows(name: str, length: int, shape: Shape, tp: int, t: int) -> tuple[int, int]:
    """vLLM's own rules, said again: QKVParallelLinear (repeated heads), VocabParallelEmbedding (padding to 64), plain
    cuts."""
    if ".k_proj." in name or ".v_proj." in name:
        heads = shape.kv_heads
        each, head = max(1, heads // tp), t // max(1, tp // heads)
        d = length // heads
        return head * each * d, (head + 1) * each * d
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        padded = (length + 63) // 64 * 64
        return min(length, padded // tp * t), min(length, padded // tp * (t + 1))
    assert length % tp == 0
    return length // tp * t, length // tp * (t + 1)


def wanted_by(rank: int, weight: Weight, shape: Shape, plan: layout.Layout, routes: Routes) -> tuple[int, int] | None:
    """The oracle: what the engine on a rank keeps, from ranks' positions alone."""
    if rank not in plan.rollout.ranks:
        return None
    tp, dp = plan.rollout.size("tp"), plan.rollout.size("dp")
    place, length = plan.rollout.ranks.index(rank), weight.shape[axis(weight)]
    if ".shared_experts." in weight.name and routes.device == "cpu" and routes.expert_parallel and tp > 1 and dp > 1:
        return 0, length  # vLLM's use_sequence_parallel_moe: tokens are cut instead
    if weight.expert is not None and routes.expert_parallel:
        each = shape.moe.experts // (tp * dp)
        return (0, length) if weight.expert // each == place % (tp * dp) else None
    return (0, length) if weight.cut is None else engine_rows(weight.name, length, shape, tp, place % tp)


def held_by(rank: int, weight: Weight, shape: Shape, plan: layout.Layout) -> list[tuple[int, int]]:
    """The oracle: what the trainer on a rank holds, by megatron-core's order tp, ep or dp, pp (innermost first)."""
    ranks = plan.train.dense.ranks
    if rank not in ranks:
        return []
    place, tp, pp = ranks.index(rank), plan.train.dense.size("tp"), plan.train.dense.size("pp")
    stage, within = divmod(place, len(ranks) // pp)
    counts = plan.train.pipeline_layers or (shape.layers // pp,) * pp
    stages = {
        "first": {0},
        "last": {pp - 1},
        "both ends": {0, pp - 1},
        "layer": {next(s for s in range(pp) if (weight.layer or 0) < sum(counts[: s + 1]))},
    }[weight.place]
    if stage not in stages:
        return []
    t, length = within % tp, weight.shape[axis(weight)]
    if weight.expert is not None:
        ep = plan.train.experts.size("ep")
        if ep > 1:
            return [(0, length)] if within % ep == weight.expert // (shape.moe.experts // ep) else []
    return [(0, length)] if weight.cut is None else [(length // tp * t, length // tp * (t + 1))]


@pytest.fixture(
    scope="module", params=[*fast.only(CASES, [*CASES, A3[0]]), pytest.param(A3[1], marks=pytest.mark.long)]
)
def plan(request: pytest.FixtureRequest) -> tuple[Routes, list[planned.Round], int]:
    if request.param in CASES:
        shape, grids, expert_parallel = CASES[request.param]
        bound, device = 4096, "cpu"
    else:
        cfg = config.load(request.param, [], config.Config)
        shape, grids, expert_parallel = (
            read_shape(cfg.model.shape),
            layout.carve(cfg.layout, 384),
            cfg.layout.rollout.enable_expert_parallel,
        )
        bound, device = 512 << 20, "npu"
    routes = Routes(grids, shape, expert_parallel, device)
    return routes, planned.schedule(routes, BF16, bound), bound


def test_every_needed_byte_is_written_once_from_a_rank_that_holds_it(plan: tuple) -> None:
    routes, rounds, _ = plan
    written: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    sources: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for _, piece in planned.pieces(routes, rounds):
        weight = routes.weights[piece.weight]
        key = piece.source, piece.weight
        if key not in sources:
            sources[key] = held_by(piece.source, weight, routes.shape, routes.layout)
        assert any(first <= piece.first < piece.end <= end for first, end in sources[key]), (weight.name, piece)
        written[piece.target, piece.weight].append((piece.first, piece.end))
    count = 0
    for number, weight in enumerate(routes.weights):
        ranks = range(routes.layout.size)
        if weight.expert is not None and len(routes.weights) > 40000:
            ranks = (
                weight.expert // 2,
                weight.expert // 2 + 128,
                weight.expert // 2 + 256,
            )  # a surplus stays in `written`
        for rank in ranks:
            wanted = wanted_by(rank, weight, routes.shape, routes.layout, routes)
            got = sorted(written.pop((rank, number), []))
            if wanted is None or wanted[0] == wanted[1]:
                assert not got, (weight.name, rank)
                continue
            edges = [wanted[0], *(end for _, end in got)]
            assert [first for first, _ in got] == edges[:-1] and edges[-1] == wanted[1], (
                weight.name,
                rank,
                wanted,
                got,
            )
            count += 1
    assert not written and count >= len(routes.weights)


def test_nothing_travels_that_is_there_and_staging_stays_in_bounds(plan: tuple) -> None:
    routes, rounds, bound = plan
    held: dict[tuple[int, int], list[tuple[int, int]]] = {}
    staged = np.zeros((len(rounds), routes.layout.size), np.int64)
    largest = 0
    for number, piece in planned.pieces(routes, rounds):
        if piece.source == piece.target:
            continue
        weight = routes.weights[piece.weight]
        key = piece.target, piece.weight
        if key not in held:
            held[key] = held_by(piece.target, weight, routes.shape, routes.layout)
        assert not any(first < piece.end and piece.first < end for first, end in held[key]), (weight.name, piece)
        size = planned.unit_bytes(weight, BF16) * (piece.end - piece.first)
        staged[number, piece.source] += size
        staged[number, piece.target] += size
        largest = max(largest, planned.unit_bytes(weight, BF16) * len(routes.route(weight).hops))
    assert staged.max() <= max(bound, largest), "only a weight of which one row is more than the bound may exceed it"
    if len(routes.weights) > 40000:
        assert staged.max() <= bound


@pytest.mark.parametrize("path", A3)
def test_traffic_of_384_dies_is_even(path: str, capsys: pytest.CaptureFixture) -> None:
    cfg = config.load(path, [], config.Config)
    routes = Routes(layout.carve(cfg.layout, 384), read_shape(cfg.model.shape), True, "npu")
    sent, got, kept = (np.zeros(384, np.int64) for _ in range(3))
    for weight in routes.weights:
        each = planned.unit_bytes(weight, BF16)
        for rank, (out, back) in routes.route(weight).traffic.items():
            sent[rank] += out * each
            got[rank] += back * each
        for hop in routes.route(weight).hops:
            if hop.source == hop.target:
                kept[hop.source] += each * (hop.end - hop.first)
    assert (got + kept == (got + kept)[0]).all(), "every die ends with the same number of bytes"
    assert (
        20.3e9 < (got + kept)[0] < 20.4e9
    )  # 10.1 GB dense and 10.2 GB of experts; absorbed weights are derived, not sent
    assert sent.sum() == got.sum() and sent.max() < 1.15 * sent.mean() and got.max() < 1.05 * got.mean()
    with capsys.disabled():
        figures = ", ".join(
            f"{name} {x.mean() / 1e9:.2f} (max {x.max() / 1e9:.2f})"
            for name, x in {"sent": sent, "received": got, "copied in place": kept}.items()
        )
        print(f"\n{path}: GB per die: {figures}; most sent / mean {sent.max() / sent.mean():.3f}")


def test_aligned_grids_exchange_within_pipeline_groups_only() -> None:
    cfg = config.load(A3[1], [], config.Config)
    routes = Routes(layout.carve(cfg.layout, 384), read_shape(cfg.model.shape), True, "npu")
    kinds = {id(routes.route(weight)): routes.route(weight) for weight in routes.weights}.values()
    assert all(hop.source % 128 == hop.target % 128 for route in kinds for hop in route.hops)


def test_recipe_grids_meet_few_peers() -> None:
    """TP 4 both sides: a dense shard comes from the same pipeline group, experts from the six owners of a die's two
    experts."""
    cfg = config.load(A3[0], [], config.Config)
    routes = Routes(layout.carve(cfg.layout, 384), read_shape(cfg.model.shape), True, "npu")
    peers = defaultdict(set)
    for weight in routes.weights:
        for hop in routes.route(weight).hops:
            if weight.expert is None:
                assert hop.source % 64 == hop.target % 64
            else:
                peers[hop.target].add(hop.source)
    assert {len(found) for found in peers.values()} == {6} and len(peers) == 384


def test_targets_are_dealt_to_holders_in_turn() -> None:
    hops = match({0: Span(0, 8), 1: Span(0, 8)}, {rank: Span(2, 6) for rank in range(6)})
    assert [(h.source, h.target) for h in hops] == [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4), (1, 5)]
    assert all((h.first, h.end) == (2, 6) for h in hops)


@pytest.mark.parametrize(
    "shape, grids, expert_parallel, words",
    [
        (QWEN, carve(3, (1, 1, 1), (3, 1)), False, ["tensor_parallel_size = 3", "num_attention_heads = 8"]),
        (
            DEEPSEEK,
            carve(12, (1, 1, 4), (2, 3), True),
            True,
            ["2 x data_parallel_size 3 = 6", "8 experts", "1 or 2 would"],
        ),
        (QWEN, carve(2, (1, 1, 1), (1, 2), True), True, ["enable_expert_parallel", "no experts"]),
    ],
)
def test_an_engine_that_does_not_divide_is_refused_with_the_cure(
    shape: Shape, grids: layout.Layout, expert_parallel: bool, words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        Routes(grids, shape, expert_parallel, "cpu")
    assert all(word in str(refused.value) for word in words), refused.value
