"""The whole step on every kind of layout: engines agree, three grids part, and the layout changes nothing but who does
it."""

import dataclasses
import gc
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1zero import config
from r1zero.config import MegatronGrid, VllmGrid
from tests import jobs


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.fixture(scope="module")
def deepseek_v3(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("deepseek_v3"), "deepseek_v3")


def grids(train=None, reference=None, rollout=None):
    return config.Layout(
        train=MegatronGrid(**(train or {})),
        reference=MegatronGrid(**reference) if reference else None,
        rollout=VllmGrid(**(rollout or {})),
    )


TP2, EP2 = {"tensor_model_parallel_size": 2}, {"expert_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2, "pipeline_layers": (2, 1)}
ONE = grids()
UPDATES = 3
SAME = ("grpo/rewards/mean", "response_length/mean", "actor/pg_loss", "actor/kl_loss", "actor/entropy", "grad_norm")
# name: (ranks, layout)
DENSE = {
    "two replicas, train DP2": (2, grids()),
    "rollout TP2, train TP2": (2, grids(TP2, rollout={"tensor_parallel_size": 2})),
    "two replicas, train PP2": (2, grids(PP2)),
    "split, rollout TP1": (2, grids({"ranks": "0"}, rollout={"ranks": "1"})),
    "split, train TP2, rollout TP2": (
        4,
        grids({"ranks": "0-1"} | TP2, rollout={"ranks": "2-3", "tensor_parallel_size": 2}),
    ),
    "three grids of 3": (3, grids({"ranks": "0"}, {"ranks": "1"}, {"ranks": "2"})),
    "three grids of 4": (4, grids({"ranks": "0-1"} | TP2, {"ranks": "2"}, {"ranks": "3"})),
}
EXPERTS = {
    "one rank": (1, grids()),
    "train EP2, two replicas": (2, grids(EP2)),
    "train EP2, rollout TP2 with experts spread": (
        2,
        grids(EP2, rollout={"tensor_parallel_size": 2, "enable_expert_parallel": True}),
    ),
    "train EP2 TP2, rollout TP2": (2, grids(EP2 | TP2, rollout={"tensor_parallel_size": 2})),
    "split, train EP2, rollout with experts over two engines": (
        4,
        grids(
            {"ranks": "0-1"} | EP2, rollout={"ranks": "2-3", "data_parallel_size": 2, "enable_expert_parallel": True}
        ),
    ),
}


@dataclass(frozen=True)
class Seen:
    """What one rank saw of a short job."""

    figures: list
    tokens: dict
    """(row of the prompt, sample) -> tokens that this rank's engine sampled in the first step, with the weights as
    loaded."""
    references: list
    """(tokens, prompt lengths, response lengths, reference logprobs) of this rank's first training batch, where it has
    them."""
    grown: int
    """Bytes of tensors that the job added to this process, the key-value cache left out."""


def tensor_bytes():
    gc.thaw()  # what the imports froze is not listed otherwise; see tests/ranks.py
    gc.collect()
    storages = {}
    for o in gc.get_objects():
        if type(o) in (torch.Tensor, torch.nn.Parameter) and o.device.type == "cpu":
            storages[o.untyped_storage().data_ptr()] = o.untyped_storage().nbytes()
    return sum(n for n in storages.values() if n < 8 << 20)


def steps(rank, cfg, count, stale=False):
    before = tensor_bytes()

    def use(trainer):
        sampled, references = [], []
        generate, reference = trainer._generate, trainer.reference.logprobs

        def keep_reference(mine, batch, lengths, groups):
            values = reference(mine, batch, lengths, groups)
            if values is not None and not references:
                references.append((batch.tokens_T, batch.prompt_lengths_B, batch.response_lengths_B, values))
            return values

        trainer._generate = lambda iteration: sampled.append(generate(iteration)) or sampled[-1]
        trainer.reference.logprobs = keep_reference
        trainer.sync_and_check(0)
        if stale:
            trainer.sync.push = lambda chunks, engine: None
        figures = [trainer.step(i) for i in range(1, count + 1)]
        tokens = {
            (s.first_id + r.prompt * cfg.grpo.group_size, r.sample): r.token_ids
            for s in sampled[:1]
            if s
            for r in s.responses
        }
        return Seen(figures, tokens, references, tensor_bytes() - before)

    return jobs.with_trainer(rank, cfg, use)


def tokens_of(results):
    """Prompt and sample -> tokens, from all engines; tensor-parallel peers must agree."""
    every = {}
    for seen in results:
        for key, value in seen.tokens.items():
            assert every.setdefault(key, value) == value
    return every


@pytest.fixture(scope="module")
def dense(ranks, qwen2):
    """dense(size, layout) -> what each rank of the dense model's job saw, run when it is first asked for."""
    seen = {}

    def get(size, layout):
        if (size, layout) not in seen:
            seen[size, layout] = ranks.run(steps, jobs.job_config(qwen2, layout), UPDATES, size=size)
        return seen[size, layout]

    return get


@pytest.fixture(scope="module")
def alone(dense):
    """The dense model in a world of one."""
    return dense(1, ONE)


def check_same(alone, results, tolerances=(1e-5,) * UPDATES):
    """tolerances: the relative ones, of the first iterations."""
    for one, many, tolerance in zip(alone[0].figures, results[0].figures, tolerances, strict=False):
        for key in SAME:
            assert many[key] == pytest.approx(one[key], rel=tolerance, abs=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_dense_engines_agree_after_every_update_and_the_layout_changes_neither_tokens_nor_metrics(dense, alone, name):
    size, layout = DENSE[name]
    results = dense(size, layout)
    assert max(f["rollout_gap/max"] for f in results[0].figures) < 1e-5
    if layout.rollout.tensor_parallel_size == 1:
        assert tokens_of(results) == tokens_of(alone)
    if layout.train.tensor_model_parallel_size == 1:
        check_same(alone, results)
    else:
        # Its gradients are rounded differently. On a processor with AVX2 one of the 32 responses of the second
        # iteration is another one, and training goes on from it.
        check_same(alone, results, (1e-5, 0.05))


def steps_with_all_away(rank, cfg):
    """Three steps, the last after a save and a load; bytes of weights, gradients and optimizer state while engines
    generate, and the most of the state during passes."""
    from tests.plan import live

    def use(trainer):
        policy, roles = trainer.roles.policy, trainer.roles
        params = list(policy.chunks[0].parameters())

        def state():
            return sum(live.storages(live.optimizer_tensors(policy.optimizer)).values())

        schedule, during = policy._schedule, []
        policy._schedule = lambda *args, **kwargs: (
            during.append(state() - sum(live.storages(params).values())) or schedule(*args, **kwargs)
        )
        roles.to_rollout(trainer.sync)
        roles.offload_trainer()
        figures = [trainer.step(i) for i in (1, 2)]
        trainer.checkpoints.begin(2)
        trainer.checkpoints.finish()
        assert trainer.checkpoints.resume() == 2
        roles.to_rollout(trainer.sync)
        roles.offload_trainer()
        away = [sum(live.storages([*params, *(p.main_grad for p in params)]).values()), state()]
        return [*figures, trainer.step(3)], away, during

    return jobs.with_trainer(rank, cfg, use)


@pytest.mark.slow
@pytest.mark.parametrize("family, dtype", [("qwen2", "float32"), ("deepseek_v3", "bfloat16")])
def test_weights_gradients_and_optimizer_that_wait_on_the_host_change_nothing(ranks, request, family, dtype):
    """In bf16 the optimizer keeps weights of its own in fp32; experts have an optimizer of theirs."""
    folder = request.getfixturevalue(family)
    run = dict(name="away", dir=str(folder / "runs"), iterations=3, dtype=dtype, seed=7)
    (plain,) = ranks.run(steps, jobs.job_config(folder, ONE, run=run), 3, size=1)
    cfg = jobs.job_config(folder, ONE, train=dict(offload=True), optimizer=dict(lr=3e-3, offload=True), run=run)
    ((figures, away, during),) = ranks.run(steps_with_all_away, cfg, size=1)
    for ours, theirs in zip(figures, plain.figures, strict=True):
        assert ours["grad_norm"] == theirs["grad_norm"] and ours["actor/pg_loss"] == theirs["actor/pg_loss"]
    assert away[0] == 0 and away[1] < 1000 and max(during) < 1000, "only Adam's counters of steps stay"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERTS)
def test_engines_with_experts_agree_after_every_update(ranks, deepseek_v3, name):
    size, layout = EXPERTS[name]
    # With run.seed 7 a token's second and third expert have routing scores 6e-8 apart, and rounding selects the expert.
    cfg = jobs.job_config(deepseek_v3, layout, run={"seed": 8})
    results = ranks.run(steps, cfg, UPDATES, size=size)
    assert max(f["rollout_gap/max"] for f in results[0].figures) < 1e-5
    tokens_of(results)


@pytest.mark.slow
def test_ranks_without_a_sample_take_part_all_the_same(ranks, qwen2):
    """Two responses and one parity prompt for two ranks that train, three of the reference and one engine."""
    few = dict(grpo=dict(prompts_per_iteration=1, group_size=2, kl_coef=0.05))
    layout = grids({"ranks": "0-1"}, {"ranks": "2-4"}, {"ranks": "5"})
    results = [
        ranks.run(
            steps,
            dataclasses.replace(jobs.job_config(qwen2, place, **few), parity=config.Parity(prompts=1)),
            2,
            size=size,
        )
        for place, size in ((ONE, 1), (layout, 6))
    ]
    check_same(results[0], results[1])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "deepseek_v3"])
def test_stale_weights_show_in_the_gap_at_once(ranks, family, request):
    folder = request.getfixturevalue(family)
    results = ranks.run(steps, jobs.job_config(folder, ONE), 2, True, size=1)
    first, second = (f["rollout_gap/max"] for f in results[0].figures)
    assert first < 1e-5 and second > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["three grids of 3", "three grids of 4"])
def test_a_reference_on_ranks_of_its_own_equals_transformers_and_no_rank_holds_a_strangers_weights(dense, qwen2, name):
    size, layout = DENSE[name]
    results = dense(size, layout)
    ((tokens_T, prompts_B, responses_B, ref_R),) = results[0].references
    model = AutoModelForCausalLM.from_pretrained(qwen2 / "base", dtype=torch.float32, attn_implementation="eager")
    forbidden = [
        i
        for i in range(model.config.vocab_size)
        if i not in set(AutoTokenizer.from_pretrained(qwen2 / "base").get_vocab().values())
    ]
    at = 0
    for sequence, prompt in zip(tokens_T.split((prompts_B + responses_B).tolist()), prompts_B.tolist(), strict=True):
        with torch.no_grad():
            logits = model(sequence[None]).logits[0, prompt - 1 : -1].index_fill(1, torch.tensor(forbidden), -torch.inf)
        expected = logits.log_softmax(1).gather(1, sequence[prompt:, None])[:, 0]
        torch.testing.assert_close(ref_R[at : at + len(expected)], expected, atol=1e-5, rtol=1e-5)
        at += len(expected)
    weights = sum(p.numel() * 4 for p in model.parameters())
    train, reference, rollout = results[0].grown, results[-2].grown, results[-1].grown
    tp = layout.train.tensor_model_parallel_size
    assert train == pytest.approx(4 * weights / tp, rel=0.25)  # weights, gradients and Adam's two moments
    assert reference == pytest.approx(weights, rel=0.25)
    assert rollout == pytest.approx(weights, rel=0.5)  # packed by vLLM


def update_once(rank, cfg, lengths_of_micro_batches):
    """Gradient norm and figures of one update on the same samples, cut to other micro-batches."""

    def use(trainer):
        trainer.sync_and_check(0)
        return trainer.step(1)

    return [
        jobs.with_trainer(rank, dataclasses.replace(cfg, train=config.Train(micro_batch_tokens=n)), use)
        for n in lengths_of_micro_batches
    ]


@pytest.mark.slow
def test_the_loss_does_not_depend_on_how_the_batch_is_cut(ranks, qwen2):
    (figures,) = ranks.run(update_once, jobs.job_config(qwen2, ONE), [64, 200, 4096], size=1)
    for other in figures[1:]:
        for key in SAME:
            assert other[key] == pytest.approx(figures[0][key], rel=1e-5, abs=1e-6), key
