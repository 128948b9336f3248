"""The training loop and the training step.

Every rank calls every phase of the step. A rank that has no role in a phase has no data for it (None), and only takes
part in the collectives over all ranks.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from r1zero import grpo
from r1zero.batch import Batch, Response
from r1zero.checkpoint.hf_files import HfFolder
from r1zero.checkpoint.schedule import SaveSchedule
from r1zero.config import Config
from r1zero.data import tokenizer
from r1zero.data.prompts import PromptOrder, PromptSet
from r1zero.distributed.device import seed
from r1zero.distributed.exchange import Exchange, Rewards
from r1zero.distributed.launcher import Launch
from r1zero.distributed.layout import Layout
from r1zero.evaluation.best import Best
from r1zero.evaluation.evaluator import Evaluator
from r1zero.evaluation.sets import open_sets
from r1zero.evaluation.target import Target
from r1zero.grading import Graded, Grader, Samples
from r1zero.groups import Round, choose_groups, is_enough, merge_rounds, own_batch, updates
from r1zero.guard import skipped
from r1zero.guard.parity import ParityGate
from r1zero.model.families import read_shape
from r1zero.model.weights import weights
from r1zero.observability import metrics, step_metrics, trackers
from r1zero.observability.progress import Progress
from r1zero.observability.recorder import SampleRecorder
from r1zero.observability.writer import RunWriter, show_evaluation
from r1zero.reference import Reference
from r1zero.reward import Scorer, refuse_share
from r1zero.roles import Roles
from r1zero.run_checkpoints import RunCheckpoints
from r1zero.shaping import engine_rewards, sample_kl
from r1zero.weight_sync.sync import Sync

log = logging.getLogger(__name__)


class Trainer:
    """One rank of a training run."""

    def __init__(self, cfg: Config, layout: Layout, launch: Launch, scorer: Scorer | None, device: torch.device):
        self.cfg, self.layout, self.rank, self.device = cfg, layout, launch.rank, device
        self.folder = Path(cfg.run.dir) / cfg.run.name
        self.folder.mkdir(parents=True, exist_ok=True)
        trackers.check(cfg.metrics.trackers)
        seed(cfg.run.seed, cfg.run.deterministic)
        model_tokenizer = tokenizer.load(cfg.model.path)
        self.prompts = PromptSet.open(cfg.data.path)
        digest = tokenizer.digest(cfg.model.path)
        self.prompts.check(digest)
        self.prompts.check_length(cfg.rollout.max_prompt_tokens)
        held_out = open_sets(cfg, self.prompts, digest)
        self.order = PromptOrder(len(self.prompts), cfg.run.seed, cfg.data.shuffle)
        tokenizer.check_marks(model_tokenizer)
        stops = tokenizer.stop_ids(model_tokenizer, self.prompts.meta["stop_token_ids"])
        shape = read_shape(cfg.model.path, cfg.model.overrides)
        tokenizer.check_ids(model_tokenizer, stops, shape.vocab_size)
        if launch.local_rank == 0 and not cfg.model.checkpoint:
            # The weights are loaded last, so this reads their headers now to refuse an unusable folder early.
            HfFolder(cfg.model.path, shape, weights(shape))
        self.grader = Grader(cfg, layout, launch.rank, scorer, model_tokenizer, stops)
        self.recorder = SampleRecorder(cfg, layout, launch.rank, self.folder, self.grader.text)
        self.watch, self.progress = metrics.Stopwatch(), Progress()
        self.evaluator = Evaluator(cfg, layout, launch.rank, self.grader, held_out, self.progress)
        self.best = Best(cfg.evaluation.best)
        log.info("start: prompts and tokenizer are loaded")
        self.roles = Roles(
            cfg,
            layout,
            launch.rank,
            device,
            stop_token_ids=stops,
            forbidden_ids=tokenizer.missing_ids(model_tokenizer, shape.vocab_size),
        )
        self.exchange = Exchange(layout, launch.rank, device)
        self.chosen = shape.choices if cfg.train.routing_replay else None
        self.reference = Reference(cfg, layout, launch.rank, self.roles, self.exchange, self.chosen)
        self.sync = Sync(cfg, layout, self.roles.shape, launch.rank, device)
        self.gate = ParityGate(cfg, self.roles, self.exchange, self.sync.compiled, self.prompts)
        self.skip_limit = skipped.SkipLimit(cfg.optimizer.max_skipped, self.folder)
        self.schedule = SaveSchedule(cfg.checkpoint, cfg.run.iterations, launch.rank)
        self.checkpoints = RunCheckpoints(
            self.folder, self.roles, self.schedule, order=self.order, skip_limit=self.skip_limit, best=self.best
        )
        self.distributions: dict[str, Tensor] = {}
        """The rewards and lengths of the last batch, for histograms."""
        self.done = 0
        """Number of finished iterations, including those before the checkpoint that this run resumed from."""

    def run(self) -> None:
        """Run the remaining iterations, or stop earlier when a signal asks for it.

        Afterwards the run's folder holds metrics, samples, plots and checkpoints.
        """
        self.schedule.listen()
        self.done = self.checkpoints.resume()
        self.recorder.truncate_after(self.done)
        writer = RunWriter(self.folder, self.done, self.cfg, self.gate.sample_tolerance) if self.rank == 0 else None
        self._show_progress()
        self.sync_and_check(0)
        log.info("start: the engines have the weights, and the first rollout begins")
        if not self.done and self.evaluator.due(0):
            before = self._evaluate("step_0")
            if writer:
                writer.write_evaluation(0, before)
        self.watch.lap()
        remaining = range(self.done + 1, self.cfg.run.iterations + 1)
        for iteration in remaining:
            self.watch.iteration = iteration
            values = self.step(iteration)
            self.done = iteration
            if self.evaluator.due(iteration):
                values |= self._evaluate(f"step_{iteration}")
            if iteration == 1:
                self.recorder.look_at_first(values)
            is_best = self.best.see(iteration, values)
            with self.watch.phase("record"):
                if writer:
                    writer.write(iteration, values, self.distributions)
            self.skip_limit.see(values)
            last = self.schedule.is_last(iteration)
            if writer and last:
                writer.close()  # before the last save, so that a full disk does not cost a finished run its plots
            if self.schedule.due(iteration) or is_best:
                with self.watch.phase("save"):
                    if writer and not last:
                        writer.flush()
                    self.recorder.flush()
                    self.checkpoints.begin(iteration)
                    if last:
                        self.checkpoints.finish()
            if last:
                break
        if writer and not remaining:
            writer.close_finished()
        self.recorder.close()
        self.progress.close()
        self.roles.close()

    def evaluate(self, target: Target) -> None:
        """Evaluate the weights of `target`, print the metrics, and write responses and pass rates to the run's `eval`.

        Raises UserError if there is no such checkpoint.
        """
        if target.newest:
            self.done = self.checkpoints.load_newest()
        elif target.checkpoint:
            self.done = self.checkpoints.load(target.checkpoint)
        self._show_progress()
        self.sync_and_check(0)
        name = f"step_{self.done}" if self.done else Path(self.cfg.model.path).resolve().name
        values = self._evaluate(name)
        self.progress.close()
        if self.rank == 0:
            show_evaluation(values, f"responses and pass rates: {self.folder / 'eval' / name}")
        self.roles.close()

    def _show_progress(self) -> None:
        if self.rank == 0:
            self.watch.observers.append(self.progress.phase)
            self.progress.start()

    def _evaluate(self, name: str) -> dict[str, float]:
        """Evaluate all sets with the engines' current weights. Returns the metrics, and the seconds that it took."""
        self.watch.lap()
        with self.watch.phase("evaluation"):
            values = self.evaluator.run(self.roles.engine, self.device, self.folder / "eval" / name)
        # The lap ends here, so that tokens/s and timing/all of the next iteration cover training alone.
        return values | {"timing/evaluation": self.watch.lap()["timing/evaluation"]}

    def step(self, iteration: int) -> dict[str, float]:
        """Run one iteration: prompts, rollout, grading, advantages, exchange, reference, update and weight sync.

        Returns the metrics of the iteration, equal on every rank.
        """
        cfg, watch, roles = self.cfg, self.watch, self.roles
        rounds: list[Round] = []
        while not rounds or not is_enough(cfg, rounds):
            rounds.append(self._sample_and_grade(iteration, len(rounds)))
        samples, graded = merge_rounds(rounds)
        chosen = choose_groups(cfg, rounds, self.layout.engines)
        with watch.phase("adv"):
            advantages_B = self._advantages(chosen.rewards)
            mine = own_batch(cfg, samples, graded, chosen, advantages_B) if samples and graded else None
        with watch.phase("dispatch"):
            lengths = self.exchange.gather_lengths(mine, chosen.engine_B)
            batch = self.exchange.to_grid(mine, lengths, self.layout.train.dense, self.chosen)
        with watch.phase("resharding_to_train"):
            roles.to_training()
        with watch.phase("reference_model"):
            ref_logprobs_R = self.reference.logprobs(mine, batch, lengths, chosen.groups)
            if batch is not None and ref_logprobs_R is not None:
                batch = replace(batch, ref_logprobs_R=ref_logprobs_R)
        batch = self._with_old_policy(batch)
        if cfg.grpo.kl_in == "reward":
            with watch.phase("adv"):
                batch = self._with_kl_in_reward(batch, chosen.rewards)
        if self.checkpoints.iteration:
            with watch.phase("save"):
                self.checkpoints.finish()
        with watch.phase("record"):
            self.distributions = step_metrics.distributions(chosen.rewards, lengths)
            # Before the reduction, so that rank 0 finds the samples of all iterations in samples.jsonl.
            self.recorder.record(iteration, samples, graded)
        with watch.phase("update"):
            update = roles.update(batch, updates(cfg, iteration, lengths))
            if batch is not None and update.get("skipped"):
                skipped.keep(self.folder, iteration, self.rank, roles.require_policy(), batch)
            # Ranks that do not train wait here for the others, so on all ranks the time counts as that of the update.
            sums, peaks = self._reduce(samples, graded, update)
        parity = self.sync_and_check(iteration)
        return (
            step_metrics.step_metrics(cfg, sums, peaks, lengths.loss_tokens * cfg.grpo.epochs)
            | step_metrics.rounds(cfg, len(rounds), len(chosen.groups) / chosen.drawn)
            | parity
            | step_metrics.speeds(sums, watch.lap(), self.layout.size)
        )

    def sync_and_check(self, iteration: int) -> dict[str, float]:
        """Send the trained weights to the engines, then check that engines and trainer compute the same logprobs.

        iteration: 0 at the start of a run. Returns the metrics of the parity gate.
        """
        with self.watch.phase("resharding_to_infer"):
            self.roles.to_rollout(self.sync)
        with self.watch.phase("parity"):
            parity = self.gate.after_sync(iteration)
        with self.watch.phase("resharding_to_infer"):
            self.roles.offload_trainer()
        return parity

    def _sample_and_grade(self, iteration: int, number: int) -> Round:
        """Run round `number` of rollout and grading; the first is 0.

        Returns this engine's samples and grades, and the rewards of all engines' samples.
        """
        graded = mine = None
        with self.watch.phase("rollout"):
            self.reference.begin_round(iteration, number)
            samples = self._generate(iteration)
        with self.watch.phase("non_overlap_rule_reward"):
            if samples:
                graded = self.grader.collect(len(samples.responses))
        # A rank without an engine waits here for the engines, so there the time counts as that of the rollout.
        with self.watch.phase("adv" if self.roles.engine else "rollout"):
            if samples and graded:
                mine = engine_rewards(self.cfg, samples, graded)
            count = self.cfg.grpo.prompts_per_iteration * self.cfg.grpo.group_size
            return Round(samples, graded, self.exchange.gather_rewards(mine, self.exchange.shares(count)))

    def _generate(self, iteration: int) -> Samples | None:
        """Generate the responses of this rank's engine. Returns None on a rank without an engine.

        All ranks take the same prompts for the round, and each engine answers its own contiguous share of them. The
        grader gets a response as soon as it ends.
        """
        position = self.order.taken
        rows = self.order.take(self.cfg.grpo.prompts_per_iteration)
        if self.roles.engine is None:
            self.reference.run_ahead()
            return None
        share = len(rows) // self.layout.engines
        first = self.layout.engine_of(self.rank) * share
        prompts = [self.prompts[row] for row in rows[first : first + share]]
        self.progress.expect(share * self.cfg.grpo.group_size)

        def on_finished(responses: list[Response]) -> None:
            self.progress.see(responses)
            self.grader.submit(prompts, responses)
            self.reference.see(prompts, first, responses)

        # The seeds depend on the position in the run's order, so a prompt that is drawn again gets new responses.
        responses = self.roles.engine.generate(
            prompts, self.cfg.grpo.group_size, iteration, position + first, on_finished
        )
        return Samples(prompts, responses, first * self.cfg.grpo.group_size)

    def _advantages(self, rewards: Rewards) -> Tensor:
        """Returns the (B,) float32 advantages of all samples of the iteration, by the formula of grpo.advantage."""
        by_group = (-1, self.cfg.grpo.group_size)
        formula = grpo.ADVANTAGES[self.cfg.grpo.advantage]
        return formula(rewards.rewards_B.view(by_group), rewards.scored_B.view(by_group)).flatten()

    def _with_old_policy(self, batch: Batch | None) -> Batch | None:
        """Returns the batch with the logprobs of the old policy, the denominator of the importance ratio.

        With a single update and the KL in the loss they equal the policy's own, so the batch is returned without them.
        """
        recipe = self.cfg.grpo
        if recipe.old_logprobs == "rollout":
            return batch if batch is None else replace(batch, old_logprobs_R=batch.rollout_logprobs_R)
        if recipe.kl_in == "loss" and recipe.mini_batches * recipe.epochs == 1:
            return batch
        with self.watch.phase("old_log_p"):
            old_logprobs_R = self.roles.old_logprobs(batch)
        return batch if batch is None or old_logprobs_R is None else replace(batch, old_logprobs_R=old_logprobs_R)

    def _with_kl_in_reward(self, batch: Batch | None, rewards: Rewards) -> Batch | None:
        """Returns the batch with advantages from the rewards minus `kl_coef` times the KL of each response."""
        kl_B = ids_B = None
        if batch is not None and self.roles.require_policy().is_reporting_rank:
            kl_B, ids_B = sample_kl(self.cfg.grpo.kl_estimator, batch), batch.ids_B
        total_B = self.exchange.sum_by_sample(kl_B, ids_B, len(rewards.rewards_B))
        net = rewards._replace(rewards_B=rewards.rewards_B - self.cfg.grpo.kl_coef * total_B)
        return None if batch is None else replace(batch, advantages_B=self._advantages(net)[batch.ids_B])

    def _reduce(
        self, samples: Samples | None, graded: Graded | None, update: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the sums and the maxima over the world. Each engine's samples are counted once, by its first rank.

        Raises RewardError if more than reward.max_unscored_share of the samples could not be scored.
        """
        reducer = metrics.MetricReducer()
        first = samples is not None and self.layout.rollout.coordinate(self.rank, "tp") == 0
        step_metrics.add_samples(reducer, self.cfg, samples if first else None, graded, self.prompts.datasets)
        step_metrics.add_update(reducer, update)
        self.schedule.add_requests(reducer)
        sums, peaks = reducer.reduce(self.device)
        self.schedule.decide(peaks)
        refuse_share(
            int(sums["timeouts"]), int(sums["failures"]), int(sums["samples"]), self.cfg.reward.max_unscored_share
        )
        return sums, peaks
