"""The project's engine over the real vllm-ascend 0.23.0, against transformers in fp32.

python -m pytest tests/twin/test_engine.py
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests import fast
from tests.twin import engines, project
from tests.twin.client import Twin
from tests.twin.engines import Life
from tests.twin.project import Case, VllmGrid

TOLERANCE = 1e-5
BF16_TOLERANCE = 0.03
"""Of the mean: in bfloat16 a token may take another expert."""
YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 128,
    }
}
LENGTHS = [5, 9, 14, 20]
SCRATCH = ("AttentionLayer", "kv_cache", "chunked_prefill_workspace", "RoutedExpertsCapturer", "routed_experts_slot")
"""Parts of the names of what holds nothing from one step to the next but the keys and values of an empty cache."""
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("dense", {}),
    "Qwen2 with tied embeddings": ("dense", {"tie_word_embeddings": True}),
    "Qwen3": ("qwen3", {}),
    "DeepSeek-V3": ("experts", {}),
    "DeepSeek-V3 with YaRN": ("experts", YARN),
}
IN_FAST = ("DeepSeek-V3 with YaRN",)
"""The family that tests without the slow ones load."""
GRIDS = {
    "dense over TP2": ("Qwen2", VllmGrid(tensor_parallel_size=2)),
    "experts cut by TP2": ("DeepSeek-V3", VllmGrid(tensor_parallel_size=2)),
    "experts over TP2": ("DeepSeek-V3", VllmGrid(tensor_parallel_size=2, enable_expert_parallel=True)),
    "experts over DP2": ("DeepSeek-V3", VllmGrid(data_parallel_size=2, enable_expert_parallel=True)),
}
WAYS = {
    "npu_moe_distribute_dispatch_v2",
    "npu_moe_distribute_combine_v2",
    "npu_moe_token_permute",
    "npu_moe_token_unpermute",
}
"""Of tokens to experts on other ranks: few tokens go by the first two (decoding), more by the others (prefill)."""


@pytest.fixture(scope="module")
def live(twin: Twin) -> Callable[..., list[Life]]:
    """live(case, size) -> each rank's life; one run for a case, whoever asks."""
    lived: dict[tuple[Any, ...], list[Life]] = {}

    def get(case: Case, size: int = 1, exact: bool = True, ahead: bool = True) -> list[Life]:
        key = (case, size, exact, ahead)
        if key not in lived:
            lived[key] = twin.run(engines.live, case, exact, ahead, size=size)
        return lived[key]

    return get


@pytest.fixture(scope="module")
def case(checkpoint: Callable[..., str]) -> Callable[..., Case]:
    def make(family: str, **fields: Any) -> Case:
        kind, changes = FAMILIES[family]
        old, new = (checkpoint(kind, seed, **changes) for seed in (1, 2))
        return Case(old, (old, new, old), **{"prompts": project.prompts(LENGTHS), **fields})

    return make


def gaps(case: Case, lives: list[Life]) -> list[float]:
    """Of each rank's engine after each load, between transformers and scores and sampled logprobs."""
    engines = project.carve(case, len(lives)).engines
    return [
        project.gap(project.share(case, engines, rank * engines // len(lives)), answer, path)
        for rank, life in enumerate(lives)
        for path, answer in zip(case.loads, life.answers, strict=True)
    ]


def check(case: Case, lives: list[Life], tolerance: float = TOLERANCE) -> None:
    """After every load the engine computes what transformers does with those weights; asleep it frees the device; what
    sleeping loses is there again."""
    assert max(gaps(case, lives)) < tolerance
    for life in lives:
        assert life.worker == "NPUWorker"
        first, second, third = ([r.token_ids for r in answer.responses] for answer in life.answers)
        assert first == third != second
        assert life.asleep < 0.3 * life.awake, "graphs stay"
        assert (life.replays > life.recorded > 0) == case.graph
        assert life.ahead == (case.grid.data_parallel_size == 1 and not case.routing_replay)
        assert [
            (found.tag, found.names) for found in life.unregistered if not found.renewed and found.tag == "weights"
        ] == []
        assert [
            found.names
            for found in life.unregistered
            if found.tag != "weights" and not any(part in name for name in found.names for part in SCRATCH)
        ] == []


def check_experts(case: Case, lives: list[Life]) -> None:
    """The experts that come with the responses are those of transformers, for all tokens but the last."""
    engines = project.carve(case, len(lives)).engines
    for rank, life in enumerate(lives):
        mine = project.share(case, engines, rank * engines // len(lives))
        for path, answer in zip(case.loads, life.answers, strict=True):
            texts = project.texts(mine, answer)
            for response, expected in zip(answer.responses, project.models.chosen_experts(path, texts), strict=True):
                assert response.experts is not None
                assert response.experts.long().sort(-1).values.tolist() == expected[:-1].tolist()


@pytest.mark.parametrize("family", fast.only(IN_FAST, FAMILIES))
def test_load_generate_sleep_wake_and_reload(
    live: Callable[..., list[Life]], case: Callable[..., Case], family: str
) -> None:
    chosen = case(family)
    check(chosen, live(chosen))


LOST = {
    "Qwen2": {"vllm_ascend.ops.rotary_embedding._cos_cache", "vllm_ascend.ops.rotary_embedding._sin_cache"},
    "DeepSeek-V3 with YaRN": {"AscendMLAImpl.W_UV", "AscendMLAImpl.W_UK_T"},
}


@pytest.mark.parametrize("family", fast.only(IN_FAST, LOST))
def test_what_sleeping_loses_is_found(live: Callable[..., list[Life]], case: Callable[..., Case], family: str) -> None:
    """The control of `check`: these are the tensors that this release keeps beside parameters and buffers."""
    (life,) = live(case(family))
    assert {name for found in life.unregistered if found.tag == "weights" for name in found.names} == LOST[family]


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_over_two_ranks(live: Callable[..., list[Life]], case: Callable[..., Case], grid: str) -> None:
    family, degrees = GRIDS[grid]
    experts = family == "DeepSeek-V3" and grid != "experts over TP2"  # refused there: see rollout/engine_limits.py
    chosen = case(family, grid=degrees, max_num_seqs=8, max_num_batched_tokens=256, routing_replay=experts)
    lives = live(chosen, 2)
    if experts:
        check_experts(chosen, lives)
    check(chosen, lives)
    if degrees.enable_expert_parallel:
        assert [list(life.answers[0].owned_experts) for life in lives] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert all(life.calls.get(f"npu::{way}") for life in lives for way in WAYS)


@pytest.mark.slow
def test_engines_that_share_experts_may_end_at_different_times(
    live: Callable[..., list[Life]], case: Callable[..., Case]
) -> None:
    """Prompts 0 and 1 can only stop at once, the others run to the limit: the first engine steps on for the second."""
    chosen = case(
        "DeepSeek-V3",
        grid=GRIDS["experts over DP2"][1],
        stop_token_ids=tuple(range(0, 512, 2)),
        group_size=4,
        iteration=1,
    )
    lives = live(chosen, 2)
    lengths = [max(len(r.token_ids) for r in life.answers[0].responses) for life in lives]
    assert lengths[0] != lengths[1]
    check(chosen, lives)


@pytest.mark.slow
def test_neither_graphs_nor_steps_scheduled_ahead_change_a_token(
    live: Callable[..., list[Life]], case: Callable[..., Case]
) -> None:
    """Responses end at different times, by a stop token that is known a step later."""
    chosen = case("Qwen2", stop_token_ids=tuple(range(0, 512, 12)), group_size=4, max_num_seqs=5)
    (usual,), (plain,) = live(chosen), live(replace(chosen, graph=False), ahead=False)
    assert usual.ahead and usual.replays and not plain.ahead and not plain.recorded
    for one, other in zip(usual.answers, plain.answers, strict=True):
        assert [r.token_ids for r in one.responses] == [r.token_ids for r in other.responses]
        assert len({len(r.token_ids) for r in one.responses}) > 3
    assert max(gaps(chosen, [usual])) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Qwen2", "DeepSeek-V3 with YaRN"])
def test_samples_of_one_prompt_all_see_the_whole_prompt(
    live: Callable[..., list[Life]], case: Callable[..., Case], family: str
) -> None:
    """Prompts of more than a block, whose samples share a prefix in the cache, in one scheduler step and in chunks of
    100 tokens. vllm-ascend's latent attention would forget the prefix if chunked prefill were off: from the second
    sample on most of the prompt would not be seen, without an error."""
    chosen = case(
        family,
        prompts=project.prompts([200, 300]),
        group_size=3,
        max_prompt_tokens=300,
        max_num_batched_tokens=1024,
        max_num_seqs=4,
        routing_replay=family != "Qwen2",
    )
    chunked = replace(chosen, max_num_batched_tokens=100)
    (whole,), (parts,) = live(chosen), live(chunked)
    check(chosen, [whole])
    check(chunked, [parts])
    for one, other in zip(whole.answers, parts.answers, strict=True):
        assert [r.token_ids for r in one.responses] == [r.token_ids for r in other.responses]
        # Of the three samples of a prompt the second and third find its whole blocks: one, and two.
        assert one.cached_tokens == other.cached_tokens == 128 * 2 * (1 + 2)
    if chosen.routing_replay:
        check_experts(chosen, [whole])
        check_experts(chunked, [parts])


@pytest.mark.slow
@pytest.mark.parametrize("seats", [1, pytest.param(3, marks=pytest.mark.long)])
def test_tokens_depend_on_seed_and_prompt_not_on_what_is_decoded_beside_them(
    live: Callable[..., list[Life]], case: Callable[..., Case], seats: int
) -> None:
    chosen = case("Qwen2")
    (together,), (alone,) = (live(replace(chosen, max_num_seqs=n)) for n in (64, seats))
    assert [r.token_ids for r in alone.answers[0].responses] == [r.token_ids for r in together.answers[0].responses]
    assert len({tuple(r.token_ids) for r in together.answers[0].responses}) == len(together.answers[0].responses)


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param("Qwen2", marks=pytest.mark.long), "DeepSeek-V3 with YaRN"])
def test_bfloat16_is_near_fp32(live: Callable[..., list[Life]], case: Callable[..., Case], family: str) -> None:
    chosen = case(family, dtype="bfloat16")
    (life,) = live(chosen, exact=False)
    for path, answer in zip(chosen.loads, life.answers, strict=True):
        theirs = project.expected(chosen, answer, path)
        errors = [abs(a - b) for x, y in zip(answer.scores, theirs, strict=True) for a, b in zip(x, y, strict=True)]
        assert TOLERANCE < sum(errors) / len(errors) < BF16_TOLERANCE


@pytest.mark.parametrize("family", fast.only(IN_FAST, ["Qwen2", "DeepSeek-V3 with YaRN"]))
def test_what_the_engine_computes_with_can_be_asked_for(twin: Twin, case: Callable[..., Case], family: str) -> None:
    """The parity gate looks at it when it has stopped a run: every weight in every place where it is kept, and hidden
    states."""
    chosen = case(family)
    tokens = list(range(8, 40))
    (found,) = twin.run(engines.inspect, chosen, tokens)
    assert found.unlike == () and found.places > 30
    theirs = project.hidden_states(chosen.path, tokens)
    assert found.hidden.keys() == theirs.keys() and len(theirs) == 4
    assert max(float((found.hidden[layer] - states).abs().max()) for layer, states in theirs.items()) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family, block_bytes", [("Qwen2", 196608), ("DeepSeek-V3 with YaRN", 491520)])
def test_responses_that_a_full_cache_puts_off_are_sampled_the_same(
    live: Callable[..., list[Life]], case: Callable[..., Case], family: str, block_bytes: int
) -> None:
    """Each of the eight responses grows into a second block of 128 tokens; the small cache has room for eleven."""
    prompts = project.prompts([120, 121, 122, 123])
    chosen = case(family, prompts=prompts, max_prompt_tokens=128, max_num_batched_tokens=1024)
    chosen = replace(chosen, loads=chosen.loads[:1])
    (roomy,), (tight,) = (live(replace(chosen, kv_cache_gib=gib)) for gib in (0.0625, 11.5 * block_bytes / 2**30))
    assert roomy.answers[0].preemptions == 0 < tight.answers[0].preemptions
    assert [r.token_ids for r in tight.answers[0].responses] == [r.token_ids for r in roomy.answers[0].responses]
