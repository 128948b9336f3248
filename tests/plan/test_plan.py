"""The planner against arithmetic done by hand for DeepSeek-V3 on A3, and against the models' published sizes.

python -m pytest tests/plan
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tomli
import tomli_w

from r1zero import config, plan
from r1zero.config import Config, UserError, limits
from r1zero.distributed import layout
from r1zero.model import families
from r1zero.model.weights import weights
from r1zero.plan import communicators, duration, machine, memory, workload
from r1zero.plan.machine import machine_for
from r1zero.rollout import engine_limits
from r1zero.weight_sync.routes import Routes
from tests import fast
from tests.bench import real

ROOT = Path(__file__).parents[2]
GB = 1e9


def load(name: str, *overrides: str) -> Config:
    return config.load(
        str(ROOT / "configs" / f"{name}.toml"),
        [f"model.shape={ROOT}/configs/model/{SHAPES[name]}.toml", *overrides],
        Config,
    )


# What the engine keeps of DeepSeek-V3 on a die, TP 4 and EP 128, element by element (bf16, the routers' biases fp32).
MLA = 11_010_048 + 4_128_768 + 2_048 + (37_748_736 + 16_777_216 + 117_440_512) // 4  # q_a, kv_a, norms; q_b, kv_b, o
DENSE = 3 * 396_361_728 // 4 + 58 * (44_040_192 // 4 + 1_835_008) + 61 * (MLA + 14_336) + 7_168 + 2 * 926_679_040 // 4
EXPERTS = 58 * 2 * 44_040_192
ABSORBED = 61 * 128 * 256 * 512 // 4  # kv_b again, in decoding's shape
ENGINE_BYTES = 2 * (DENSE + EXPERTS) + 4 * 58 * 256

SHAPES = {
    "a3": "deepseek_v3_671b",
    "a3_aligned": "deepseek_v3_671b",
    "a3_qwen2.5_7b": "qwen2.5_7b",
    "a3_qwen2.5_32b": "qwen2.5_32b",
}
WORLDS = {"a3": 384, "a3_aligned": 384, "a3_qwen2.5_7b": 16, "a3_qwen2.5_32b": 16}


def books_of(cfg: Config, world: int) -> workload.MemoryInputs:
    grids = layout.carve(cfg.layout, world)
    routes = Routes(grids, families.model_shape(cfg.model), cfg.layout.rollout.enable_expert_parallel, cfg.run.device)
    return workload.memory_inputs(cfg, grids, routes, machine_for(cfg, world))


@pytest.fixture(scope="module")
def recipe() -> plan.Plan:
    return plan.plan(load("a3"), 384)


@pytest.mark.parametrize(
    "model, parameters",
    {
        "deepseek_v3_671b": 671_026_419_200,
        "qwen2.5_0.5b": 494_032_768,
        "qwen2.5_math_1.5b": 1_543_714_304,
        "deepseek_v2_236b": 235_741_434_880,
        "deepseek_v2_lite_16b": 15_706_484_224,
        "moonlight_16b": 15_960_110_208,
        "qwen2.5_7b": 7_615_616_512,
        "qwen2.5_32b": 32_763_876_352,
        "qwen3_8b": 8_190_735_360,
        "llama3.1_8b": 8_030_261_248,
        "llama3.1_70b": 70_553_706_496,
        "mistral_nemo_12b": 12_247_782_400,
        "qwen3_30b_a3b": 30_532_122_624,
        "qwen3_235b_a22b": 235_093_634_560,
    }.items(),
)
def test_parameters_are_the_published_ones(model: str, parameters: int) -> None:
    assert sum(w.size for w in weights(families.read_shape(ROOT / "configs" / "model" / f"{model}.toml"))) == parameters


PLANNED = [
    file
    for pattern in ("configs/*.toml", "configs/recipes/*.toml")
    for file in sorted(ROOT.glob(pattern))
    if "shape" in tomli.loads(file.read_text(encoding="utf-8"))["model"]
]
"""The configs that can be planned without weights."""


@pytest.mark.parametrize("file", PLANNED, ids=lambda file: file.stem)
def test_every_shipped_config_fits_its_machine(file: Path) -> None:
    cfg = config.load(str(file), [], Config)
    limits.check(cfg)
    shape, grids = families.model_shape(cfg.model), layout.carve(cfg.layout, cfg.layout.world)
    engine_limits.check(cfg, shape, grids)
    made = plan.plan(cfg, cfg.layout.world)
    assert not made.problems and made.world == cfg.layout.world
    assert made.batch["updates per iteration"] == cfg.grpo.mini_batches * cfg.grpo.epochs


def test_the_recipe_agrees_with_the_hand_arithmetic(recipe: plan.Plan) -> None:
    memory_by_roles = [row.phase_memory for row in recipe.places]
    update = [phase_memory.device["update"] for phase_memory in memory_by_roles]
    assert max(u["weights"] + u["gradients"] for u in update) / GB == pytest.approx(16.3, abs=0.05)
    assert {phase_memory.device["rollout"]["engine weights"] for phase_memory in memory_by_roles} == {
        ENGINE_BYTES + 2 * ABSORBED
    }
    assert pytest.approx(20.8, abs=0.05) == (ENGINE_BYTES + 2 * ABSORBED) / GB
    assert recipe.batch["cache for that many full sequences, GB per rank"] == 27.6
    assert {kind: round(n / GB) for kind, n in recipe.host.items()} == {
        "optimizer": 381,
        "weights": 87,
        "reference": 87,
    }
    assert 30 > max(phase_memory.total("update") for phase_memory in memory_by_roles) / GB > 25, (
        "about 30 GB while training"
    )
    assert 50 < max(phase_memory.total("rollout") for phase_memory in memory_by_roles) / GB < 60, (
        "about 57 GB while generating"
    )
    assert recipe.active_parameters / 1e9 == pytest.approx(36.62, abs=0.02)
    assert recipe.stages == ((0, 11), (11, 11), (22, 10), (32, 10), (42, 10), (52, 9))
    assert recipe.batch["responses per data-parallel rank"] == 768 and recipe.batch["prompts per engine"] == 4
    totals = {name: sum(seconds.values()) for name, seconds in recipe.durations.items()}
    assert totals["pessimistic"] > totals["expected"] > totals["optimistic"]
    assert recipe.seconds == recipe.durations["expected"]
    separate = plan.plan(load("a3", "train.share_prompts=false"), 384)  # as MindSpeed-RL computes prompts
    assert separate.tokens_per_second / 384 == pytest.approx(105, rel=0.1), "as MindSpeed-RL published it"
    for phase in ("reference", "update"):
        assert 0.85 * separate.seconds[phase] < recipe.seconds[phase] < 0.95 * separate.seconds[phase], phase


@pytest.mark.parametrize("name", ["a3", "a3_qwen2.5_7b"])
@pytest.mark.parametrize("overrides", [(), ("train.share_prompts=false",), ("plan.assume.prompt_share=0.5",)])
def test_the_tokens_and_micro_batches_of_the_trainer_are_those_of_drawn_lengths(
    name: str, overrides: tuple[str, ...]
) -> None:
    from r1zero.division import SampleSize, balance, count_tokens, micro_batches

    inputs = books_of(load(name, *overrides), WORLDS[name])
    recipe, train, ranks = inputs.cfg.grpo, inputs.cfg.train, inputs.layout.train.dense.size("dp")
    prompt, response = workload.mean_lengths(inputs)
    draw = random.Random(0)
    sizes = [
        SampleSize(
            g if train.share_prompts else g * recipe.group_size + i,
            round(prompt),
            round(draw.uniform(0.5, 1.5) * response),
        )
        for g in range(recipe.prompts_per_iteration)
        for i in range(recipe.group_size)
    ]
    packs = [micro_batches([sizes[i] for i in shard], train.micro_batch_tokens) for shard in balance(sizes, ranks)]
    shards = [[sizes[i] for i in shard] for shard in balance(sizes, ranks)]
    tokens = sum(count_tokens(shard, pack) for shard, found in zip(shards, packs, strict=True) for pack in found)
    assert workload.computed_tokens(inputs, inputs.layout.train) == pytest.approx(tokens / len(sizes), rel=0.06)
    assert workload.micro_batches(inputs) == pytest.approx(max(map(len, packs)), rel=0.25)


# (tp, pp, ep, layers, world): GB of weights, gradients and Adam's state on the worst die, to the hand arithmetic's own
# digit
TRAIN_LAYOUTS = [
    ((4, 6, 64, "[11,11,10,10,10,9]", 384), (5.4, 10.9, 23.8, 16.3)),
    ((4, 6, 64, "[9,10,10,10,11,11]", 384), (5.9, 11.8, 24.0, 17.7)),
    ((4, 8, 16, "[7,7,8,8,8,8,8,7]", 384), (12.4, 24.8, 23.1, 37.2)),
    ((4, 12, 32, "[5,5,5,5,5,5,5,5,5,5,5,6]", 384), (5.5, 11.1, 26.4, 16.6)),
    ((4, 3, 128, "[21,20,20]", 384), (7.1, 14.3, 21.8, 21.4)),
    ((2, 6, 64, "[11,11,10,10,10,9]", 384), (7.5, 15.1, 23.8, 22.6)),
    ((8, 6, 64, "[11,11,10,10,10,9]", 384), (4.8, 9.7, 24.0, 14.5)),
    ((4, 8, 32, "[7,7,8,8,8,8,8,7]", 256), (6.8, 13.6, 34.7, 20.3)),
]


@pytest.mark.parametrize("layout_, expected", fast.only(TRAIN_LAYOUTS[:2], TRAIN_LAYOUTS), ids=str)
def test_trainer_bytes_of_eight_layouts(layout_: tuple, expected: tuple) -> None:
    tp, pp, ep, layers, world = layout_
    cfg = load(
        "a3",
        f"layout.train.tensor_model_parallel_size={tp}",
        f"layout.train.pipeline_model_parallel_size={pp}",
        f"layout.train.expert_model_parallel_size={ep}",
        f"layout.train.pipeline_layers={layers}",
        "layout.rollout.data_parallel_size=16",
    )
    inputs = books_of(cfg, world)
    weights = [memory.weight_bytes(s, 2) / GB for s in inputs.train]
    gradients = [4 * s.elements / GB for s in inputs.train]
    adam = [memory.optimizer_bytes(s, inputs.layout.train, 2) / GB for s in inputs.train]
    worst = max(range(pp), key=lambda s: weights[s])
    assert weights[worst] == pytest.approx(expected[0], abs=0.051)
    assert gradients[worst] == pytest.approx(expected[1], abs=0.06)
    assert max(adam) == pytest.approx(expected[2], abs=0.5)
    assert weights[worst] + gradients[worst] == pytest.approx(expected[3], abs=0.06)


ENGINE_LAYOUTS = [
    (1, 128, 46.5, 6.9),
    (2, 64, 29.4, 13.8),
    (4, 32, 20.8, 27.6),
    (4, 16, 31.1, 27.6),
    (8, 8, 26.8, 55.3),
    (8, 16, 16.6, 55.3),
]


@pytest.mark.parametrize("tp, dp, weights, full_cache", fast.only(ENGINE_LAYOUTS[1:3], ENGINE_LAYOUTS))
def test_engine_bytes_of_six_layouts(tp: int, dp: int, weights: float, full_cache: float) -> None:
    cfg = load(
        "a3",
        f"layout.rollout.tensor_parallel_size={tp}",
        f"layout.rollout.data_parallel_size={dp}",
        "rollout.max_num_seqs=1024",
    )
    inputs = books_of(cfg, 384)
    rollout = memory.phase_memory(inputs, memory.roles_of(inputs.layout, 0, True)).device["rollout"]
    assert rollout["engine weights"] / GB == pytest.approx(weights, abs=0.1)
    assert memory.cache_need(inputs)[1] / GB == pytest.approx(full_cache, abs=0.06)


@pytest.mark.parametrize("tokens, mebibytes", [(32, 239), (64, 478), (128, 956), (512, 3824)])
@pytest.mark.parametrize("data_parallel", [16, 32])
def test_the_fused_dispatch_needs_the_buffer_of_ascends_formula(
    tokens: int, mebibytes: int, data_parallel: int
) -> None:
    cfg = load("a3", f"layout.rollout.data_parallel_size={data_parallel}")
    need = communicators.mc2_buffer(families.model_shape(cfg.model), layout.carve(cfg.layout, 384), 4 * tokens)
    assert need / (1 << 20) == pytest.approx(mebibytes, rel=0.005)


def test_the_environment_of_the_recipe_has_the_buffer_that_the_plan_supposes() -> None:
    lines = (ROOT / "launch" / "env-a3.sh").read_text().splitlines()
    assert f"export HCCL_BUFFSIZE={machine_for(load('a3'), 384).buffer_mb:.0f}" in [
        line.partition("#")[0].strip() for line in lines
    ]


def test_a_sync_brings_every_rank_its_engines_bytes(recipe: plan.Plan) -> None:
    t = recipe.traffic
    assert t.kept + t.in_node + t.between_nodes == 384 * ENGINE_BYTES, "absorbed copies are made, not sent"
    assert t.imbalance < 1.15 and t.peers == 11  # six owners of its experts and five pipeline peers, itself not counted


def test_groups_lie_where_the_recipe_wants_them(recipe: plan.Plan) -> None:
    found = {group.kind.name: group for group in recipe.groups}
    assert found["train tp"].nodes == found["engine tp"].nodes == 1
    assert (found["train ep"].size, found["train ep"].count, found["train ep"].nodes) == (64, 6, 4)
    assert found["engine ep"].examples[1] == tuple(range(128, 256))
    assert "train edp" not in found, "each expert is on one rank"
    assert (found["train tp-dp"].size, found["train tp-dp"].count) == (64, 6), "the routers count tokens by stage"
    assert found["train tp-dp-pp"].size == 384


@pytest.mark.parametrize(
    "overrides",
    [
        ("rollout.kv_cache_gib=60",),
        ("train.offload=false", "rollout.kv_cache_gib=28"),
        ("optimizer.offload=false", "rollout.kv_cache_gib=30"),
        ("train.recompute=none", "train.micro_batch_tokens=65536"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_cure_that_works(overrides: tuple[str, ...]) -> None:
    (problem,) = plan.plan(load("a3", *overrides), 384).problems
    assert "GB are usable" in problem and "With " in problem, problem
    cure = problem.partition("With ")[2].partition(" it would need")[0].split(" and ")
    assert not plan.plan(
        load("a3", *overrides, *(text.replace(" = ", "=").replace('"', "") for text in cure)), 384
    ).problems


@pytest.mark.parametrize(
    "overrides, words",
    [
        (("rollout.max_num_seqs=512",), ["HCCL_BUFFSIZE of 9", "lower max_num_seqs to 136"]),
        (("plan.assume.host_memory_gb=500",), ["host memory needs 555 GB of 500", "more nodes"]),
        (("plan.assume.memory_gib=20",), ["No change of type, reference, offload", "more ranks"]),
    ],
)
def test_other_shortages_are_named(overrides: tuple[str, ...], words: list[str]) -> None:
    problems = " ".join(plan.plan(load("a3", *overrides), 384).problems)
    assert all(word in problems for word in words), problems


@pytest.mark.parametrize(
    "gib, cure", [(34, 'run.dtype = "bfloat16"'), (16, "2 ranks on this machine"), (5, "on more machines")]
)
def test_ranks_on_a_cpu_share_this_machines_memory_and_the_cure_names_type_reference_and_fewer_ranks(
    monkeypatch, gib, cure
) -> None:
    """Qwen2.5-0.5B's shape on four ranks of a host with so much memory."""
    shape = tomli.loads((ROOT / "configs/model/qwen2.5_7b.toml").read_text()) | dict(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )
    monkeypatch.setattr(machine.host, "total_memory", lambda: gib << 30)
    path = Path(tempfile.mkdtemp()) / "shape.toml"
    path.write_text(tomli_w.dumps(shape))
    overrides = [f"model.shape={path}", "model.path=", "rollout.kv_cache_gib=0.25", "rollout.max_num_seqs=16"]
    made = plan.plan(config.load(str(ROOT / "configs/cpu.toml"), overrides, Config), 4)
    assert made.machine.memory_gib == gib / 4
    assert made.problems and cure in made.problems[0], made.problems


@pytest.mark.parametrize(
    "overrides, world, words",
    [
        ((), 400, ["tp 4 x pp 6 = 24 does not divide its 400 ranks"]),
        (("layout.train.pipeline_layers=[11,11,10,10,10,10]",), 384, ["adds up to 62", "61 layers"]),
        (
            ("layout.rollout.data_parallel_size=24",),
            384,
            ["4 x data_parallel_size 24 = 96", "256 experts", "8 or 16 or 32 would"],
        ),
        (("layout.train.expert_model_parallel_size=128",), 384, ["ep 128 x pp 6", "64 ranks of a stage"]),
        (("grpo.prompts_per_iteration=100",), 384, ["not a multiple of the 96 rollout engines", "use 192"]),
        (("train.recompute_layers=[9,9]",), 384, ["= [9, 9]", "have [11, 11, 10, 10, 10, 9]"]),
        (("train.recompute_layers=[11,11,10,10,10,10]",), 384, ["have [11, 11, 10, 10, 10, 9]", "at most"]),
        (("train.recompute=none", "train.recompute_layers=[1,0,0,0,0,0]"), 384, ['recompute = "none"', "remove"]),
        (("plan.assume.mfu=0.3",), 384, ["no mfu", "mfu_update"]),
        (("plan.assume.tflops=-1",), 384, ["cannot be negative"]),
        ((), 0, ["at least 1"]),
    ],
)
def test_what_does_not_divide_is_one_sentence(overrides: tuple[str, ...], world: int, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        plan.plan(load("a3", *overrides), world)
    assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value), refused.value


def test_the_fewest_recomputed_layers_leave_a_tenth_of_the_memory_and_save_time(recipe: plan.Plan) -> None:
    """Later stages keep fewer micro-batches, so they need fewer; one layer less in any stage does not fit."""
    (note,) = [text for text in recipe.notes if "recompute_layers" in text]
    layers = json.loads(note.partition(" = ")[2].partition("]")[0] + "]")
    assert layers == sorted(layers, reverse=True) and layers[0] > layers[-1]

    def made(counts: list[int]) -> plan.Plan:
        return plan.plan(load("a3", f"train.recompute_layers={counts}"), 384)

    def fullest(found: plan.Plan, stage: int) -> int:
        return max(p.phase_memory.total("update") for p in found.places if p.place.train == stage)

    limit = 0.9 * recipe.machine.memory_gib * workload.GIB
    fewest = made(layers)
    assert not fewest.problems and not [text for text in fewest.notes if "recompute_layers" in text]
    for stage, count in enumerate(layers):
        assert fullest(fewest, stage) <= limit
        if count:
            assert fullest(made([*layers[:stage], count - 1, *layers[stage + 1 :]]), stage) > limit
    none, full = (plan.plan(load("a3", f"train.recompute={way}"), 384).seconds["update"] for way in ("none", "full"))
    assert none < fewest.seconds["update"] < full


def test_selective_recomputation_lies_between_none_and_full() -> None:
    ways = [plan.plan(load("a3", f"train.recompute={way}"), 384) for way in ("none", "selective", "full")]
    stored = [max(p.phase_memory.total("update") for p in made.places) for made in ways]
    assert stored[0] > stored[1] > stored[2]
    assert ways[0].seconds["update"] < ways[1].seconds["update"] < ways[2].seconds["update"]


def test_graphs_need_memory_in_every_phase_while_they_are_on(recipe: plan.Plan) -> None:
    """Seven sizes up to 32 decoded responses, each with an assumed part of its own, and the activations of the
    largest."""
    off = plan.plan(load("a3", "rollout.graph=false"), 384)
    for on, without in zip(recipe.places, off.places, strict=True):
        for phase, kinds in on.phase_memory.device.items():
            assert kinds["graphs"] == on.phase_memory.total(phase) - without.phase_memory.total(phase)
            sizes = engine_limits.graph_sizes(load("a3").rollout.max_num_seqs)
            assert 1 < kinds["graphs"] / (len(sizes) * recipe.machine.graph_mib * workload.MIB) < 1.5


def test_a_shape_file_of_another_model_is_refused(tmp_path: Path) -> None:
    stated = tomli.loads((ROOT / "configs/model/qwen2.5_7b.toml").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stated, "num_hidden_layers": 29}))
    with pytest.raises(UserError, match=r"states layers = 28, .*config.json states 29"):
        plan.plan(load("a3_qwen2.5_7b", f"model.path={tmp_path}"), 16)


def test_an_assumption_changes_what_it_names(recipe: plan.Plan) -> None:
    other = plan.plan(load("a3", "plan.assume.decode_overhead_ms=51"), 384)
    assert other.seconds["decode"] - recipe.seconds["decode"] == pytest.approx(2048 * 1e-3)
    assert {k: v for k, v in other.seconds.items() if k != "decode"} == {
        k: v for k, v in recipe.seconds.items() if k != "decode"
    }


def test_several_updates_take_their_passes_and_the_old_policy_one_more(recipe: plan.Plan) -> None:
    cfg = load("a3", "grpo.mini_batches=4", "grpo.epochs=2")
    other = plan.plan(cfg, 384).seconds
    # The policy's own forward pass takes as long as the reference's, which has the same weights on the same ranks.
    assert other["old logprobs"] == recipe.seconds["reference"]
    assert 2 * recipe.seconds["update"] < other["update"] < 8 * recipe.seconds["update"]
    engines = plan.plan(load("a3", "grpo.mini_batches=4", 'grpo.old_logprobs="rollout"'), 384).seconds
    assert "old logprobs" not in engines and "old logprobs" not in recipe.seconds


def test_the_rows_of_a_chunk_of_logits_are_those_of_the_trainer() -> None:
    from r1zero import logprobs

    assert (memory.LOGIT_ROWS, memory.KEPT_LOGITS_BYTES) == (logprobs.ROWS, logprobs.KEPT_BYTES)
    assert memory.LOGIT_BLOCK_BYTES == logprobs.BLOCK_BYTES


def test_split_roles_leave_each_others_lines_out() -> None:
    cfg = load("a3_qwen2.5_7b", 'layout.train.ranks="0-7"', 'layout.rollout.ranks="8-15"')
    places = {row.place.rollout: row for row in plan.plan(cfg, 16).places}
    assert places[True].ranks == places[False].ranks == 8
    assert set(places[True].phase_memory.device["rollout"]) == {
        "communicators",
        "runtime",
        "engine weights",
        "KV cache",
        "graphs",
        "workspace",
    }
    assert (
        "KV cache" not in places[False].phase_memory.device["rollout"]
        and "gradients" in places[False].phase_memory.device["update"]
    )


def test_the_plan_needs_no_torch_and_its_json_says_the_same(recipe: plan.Plan) -> None:
    code = (
        "import sys; from r1zero import config, plan; cfg = config.load('configs/a3.toml', [], config.Config); "
        "code = plan.main(cfg, 384, True); assert not {'torch', 'megatron', 'vllm'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    data = json.loads(done.stdout)
    assert data["fits"] and data["parameters"] == 671_026_419_200
    assert data == json.loads(json.dumps(plan.as_data(recipe)))


def test_the_tables_say_what_the_data_say(recipe: plan.Plan) -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    plan.render(recipe, Console(file=out, width=150))
    for text in (
        "671,026,419,200 parameters",
        "train tp-dp-pp",
        "20.83",
        "555.4",
        "fits",
        "mfu_update 0.18",
        "0,64..320",
    ):
        assert text in out.getvalue(), text


@pytest.mark.slow
def test_12288_ranks_are_planned() -> None:
    made = plan.plan(load("a3", "grpo.prompts_per_iteration=12288"), 12288)
    assert not made.problems and made.nodes == 768 and sum(row.ranks for row in made.places) == 12288


def test_the_benchmarks_find_the_planned_bytes_of_each_phase():
    found = real.planned(["configs/recipes/gsm8k_0.5b.toml"])
    assert set(real.PHASES.values()) <= set(found) and all(found.values())


def test_the_embeddings_gradient_is_planned_where_it_is_more_than_the_activations() -> None:
    """With short sequences, on the first stage: a quarter of 129,280 x 7,168 elements in bf16, for TP4."""
    short = ("rollout.max_prompt_tokens=32", "rollout.max_response_tokens=32", "train.micro_batch_tokens=64")
    for row in plan.plan(load("a3", "train.recompute=full", *short), 384).places:
        update = row.phase_memory.device["update"]
        assert ("embedding gradient" in update) == (row.place.train == 0)
        if row.place.train == 0:
            assert update["activations"] + update["embedding gradient"] == 129_280 // 4 * 7_168 * 2


def test_on_a_cpu_the_embeddings_gradient_takes_no_tensor_of_its_own() -> None:
    short = ("rollout.max_prompt_tokens=32", "rollout.max_response_tokens=32", "train.micro_batch_tokens=64")
    for device, expected in (("npu", True), ("cpu", False)):
        cfg = load("a3_qwen2.5_7b", f"run.device={device}", "train.recompute=full", *short)
        update = plan.plan(cfg, 16).places[0].phase_memory.device["update"]
        assert ("embedding gradient" in update) == expected, device


def test_the_reference_takes_no_time_of_its_own_on_ranks_that_would_wait_for_the_rollout():
    split = ("layout.train.ranks=0-7", "layout.rollout.ranks=8-15")
    together, apart = (
        duration.seconds(books_of(load("a3_qwen2.5_7b", "layout.world=16", *overrides), 16))
        for overrides in ((), split)
    )
    assert together["reference"] > 0 and apart["reference"] == 0.0
    assert apart["prefill"] + apart["decode"] > 2 * together["reference"]  # on half of the ranks
