"""The reference in split layouts: its logprobs are computed during the rollout, and are those of a single process."""

import itertools

import pytest
import torch
import torch.distributed as dist

from r1zero import config
from r1zero.config import MegatronGrid, VllmGrid
from r1zero.distributed.layout import carve, reference_runs_ahead
from tests import fast, jobs
from tests.test_trainer import SAME

PP2 = {"pipeline_model_parallel_size": 2, "pipeline_layers": (2, 1)}
TP2 = {"tensor_model_parallel_size": 2}


def grids(train, rollout, reference=None):
    return config.Layout(
        train=MegatronGrid(**train),
        reference=MegatronGrid(**reference) if reference else None,
        rollout=VllmGrid(**rollout),
    )


TWO = grids({"ranks": "0"}, {"ranks": "1"})
"""A trainer, which also holds the reference, and an engine."""


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("qwen2"), "qwen2")


def first_step(rank, cfg):
    """The metrics of the first step, and sample -> reference logprobs of this rank's training batch."""

    def use(trainer):
        logprobs, found = trainer.reference.logprobs, {}

        def keep(mine, batch, lengths, groups):
            values = logprobs(mine, batch, lengths, groups)
            if values is not None:
                found.update(zip(batch.ids_B.tolist(), values.split(batch.response_lengths_B.tolist()), strict=True))
            return values

        trainer.reference.logprobs = keep
        trainer.sync_and_check(0)
        return trainer.step(1), found, trainer.reference.mailbox is not None

    return jobs.with_trainer(rank, cfg, use)


def logprobs_of(results):
    """Sample -> logprobs, from the ranks of the last stage, of which those of a tensor group must agree."""
    every = {}
    for _, found, _ in results:
        for sample, values_R in found.items():
            torch.testing.assert_close(every.setdefault(sample, values_R), values_R, atol=0, rtol=0)
    return every


# name: (ranks, layout, fields of [train])
LAYOUTS = {
    "reference beside the trainer": (2, TWO, {}),
    "three ranks of the reference, two engines": (
        6,
        grids({"ranks": "0"}, {"ranks": "1-2"}, {"ranks": "3-5"}),
        dict(micro_batch_tokens=90),  # pieces of two samples
    ),
    "stages of the reference": (
        4,
        grids({"ranks": "0"}, {"ranks": "1"}, {"ranks": "2-3"} | PP2),
        dict(micro_batch_tokens=90),
    ),
    "tensor ranks, a sample for each piece, no shared prompts": (
        4,
        grids({"ranks": "0-1"} | TP2, {"ranks": "2-3", "tensor_parallel_size": 2}),
        dict(micro_batch_tokens=56, share_prompts=False),
    ),
}


@pytest.mark.parametrize("name", fast.only(["reference beside the trainer"], LAYOUTS))
def test_the_logprobs_are_those_of_a_single_process(ranks, qwen2, name):
    size, layout, train = LAYOUTS[name]
    alone = ranks.run(first_step, jobs.job_config(qwen2, config.Layout()), size=1)
    split = ranks.run(first_step, jobs.job_config(qwen2, layout, **({"train": train} if train else {})), size=size)
    assert [ahead for _, _, ahead in alone + split] == [False] + [True] * size
    expected, found = logprobs_of(alone), logprobs_of(split)
    assert found.keys() == expected.keys() and len(found) == 32
    for sample, values_R in found.items():
        torch.testing.assert_close(values_R, expected[sample], atol=1e-5, rtol=1e-5)
    for key in SAME:
        assert split[0][0][key] == pytest.approx(alone[0][0][key], rel=1e-5, abs=1e-5), key


def test_a_rank_without_a_role_in_a_phase_counts_its_waiting_as_that_phase(ranks, qwen2):
    """The rollout of a trainer ends when all rewards are known, which the engine counts in three phases. There is no
    reference here, so the trainer only waits."""
    cfg = jobs.job_config(qwen2, TWO, grpo=dict(kl_coef=0.0))
    trainer, engine = (figures for figures, *_ in ranks.run(first_step, cfg, size=2))
    rollout = sum(engine[f"timing/{phase}"] for phase in ("rollout", "non_overlap_rule_reward", "adv"))
    # Both wait for each other at the end of the phase. Otherwise the seconds differ by a factor of thousands.
    assert trainer["timing/rollout"] > rollout / 10
    assert engine["timing/update"] > trainer["timing/update"] / 10
    assert trainer["vllm_tps"] < 10 * engine["vllm_tps"]


@pytest.mark.slow
def test_the_logprobs_do_not_depend_on_the_order_in_which_responses_end(ranks, qwen2):
    """With four requests at a time the first prompts are answered first; with 64 the shortest responses end first."""
    by_order = [
        logprobs_of(
            ranks.run(
                first_step,
                jobs.job_config(
                    qwen2,
                    grids({"ranks": "0"}, {"ranks": "1"}, {"ranks": "2-3"}),
                    rollout=dict(max_num_seqs=at_once),
                    train=dict(micro_batch_tokens=90),
                ),
                size=4,
            )
        )
        for at_once in (4, 64)
    ]
    assert by_order[0].keys() == by_order[1].keys()
    assert all(torch.equal(by_order[0][sample], by_order[1][sample]) for sample in by_order[0])


@pytest.mark.slow
def test_several_rounds_make_the_batch_of_a_single_process(ranks, qwen2):
    """Samples of groups that are left out have logprobs which nobody asks for."""
    grpo = dict(prompts_per_iteration=8, group_size=4, kl_coef=0.05, dynamic_sampling=True, max_rounds=3)
    reward = dict(rules={jobs.RARE_RULE: 1.0})
    alone, split = (
        ranks.run(first_step, jobs.job_config(qwen2, layout, grpo=grpo, reward=reward), size=size)
        for layout, size in ((config.Layout(), 1), (TWO, 2))
    )
    assert alone[0][0]["dynamic_sampling/rounds"] > 1
    expected, found = logprobs_of(alone), logprobs_of(split)
    assert found.keys() == expected.keys()
    for sample, values_R in found.items():
        torch.testing.assert_close(values_R, expected[sample], atol=1e-5, rtol=1e-5)


def messages_left(rank, cfg):
    """The boxes and messages of the store while the reference reads its first piece, and after two steps."""

    def use(trainer):
        store, receive, seen = trainer.reference.mailbox._store, trainer.reference.mailbox.receive, []

        def look(box, number):
            message = receive(box, number)
            seen.append(len(store.list_keys()))
            return message

        trainer.reference.mailbox.receive = look
        trainer.sync_and_check(0)
        for iteration in (1, 2):
            trainer.step(iteration)
        dist.barrier()
        return seen[:1], store.list_keys()

    return jobs.with_trainer(rank, cfg, use)


def test_no_message_is_left_in_the_store(ranks, qwen2):
    (before, after), _ = ranks.run(messages_left, jobs.job_config(qwen2, TWO), size=2)
    assert before[0] >= 2 and after == []


def wait_for_the_reference(rank, cfg):
    """The engine sends its second piece only when the reference has computed the first."""

    def use(trainer):
        mailbox, model = trainer.reference.mailbox, trainer.roles.policy
        sent = itertools.count()

        def hold(box, message, send=mailbox.send):
            if next(sent) == 1:
                mailbox.receive("computed", 0)
            send(box, message)

        def tell(batch, parts=None, logprobs=model and model.logprobs):
            values = logprobs(batch, parts)
            mailbox.__class__.send(mailbox, "computed", b"")
            return values

        trainer.sync_and_check(0)
        mailbox.send = hold
        if model:
            model.logprobs = tell
        trainer.step(1)
        return next(sent)

    return jobs.with_trainer(rank, cfg, use)


def test_the_reference_begins_before_the_rollout_has_ended(ranks, qwen2):
    cfg = jobs.job_config(qwen2, TWO, run=dict(timeout_s=60), train=dict(micro_batch_tokens=90))
    trainer, engine = ranks.run(wait_for_the_reference, cfg, size=2)
    assert (trainer, engine) == (0, 16), "the pieces that each rank has sent"


@pytest.mark.parametrize(
    "layout, size, fields, ahead",
    [
        (TWO, 2, {}, True),
        (grids({"ranks": "0"}, {"ranks": "0"}, {"ranks": "1"}), 2, {}, True),
        (config.Layout(), 2, {}, False),
        (TWO, 2, dict(grpo=config.Grpo(kl_coef=0.0)), False),
        (TWO, 2, dict(train=config.Train(routing_replay=True)), False),
        (grids({"ranks": "0-1", "expert_model_parallel_size": 2}, {"ranks": "2"}), 3, {}, False),
    ],
)
def test_only_idle_ranks_whose_results_are_reproducible_compute_ahead(layout, size, fields, ahead):
    assert reference_runs_ahead(config.Config(layout=layout, **fields), carve(layout, size)) == ahead
