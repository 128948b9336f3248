"""The loop and the step. Every rank calls every stage; a rank outside a stage's grid passes through it."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from r1zero.observability import metrics, step_metrics
from r1zero import grading
from r1zero.batch import Batch
from r1zero.config import Config, UserError, dump
from r1zero.observability.plots import draw
from r1zero.data import tokenizer as tokens
from r1zero.data.prompts import PromptOrder, PromptSet
from r1zero.distributed.device import seed
from r1zero.distributed.exchange import Census, Exchange
from r1zero.grading import Judge, Samples
from r1zero.guard import skipped
from r1zero.observability.alarms import Bell
from r1zero.guard.parity import Gate
from r1zero.distributed.layout import Layout
from r1zero.model.families import read_shape, weights
from r1zero.checkpoint.hf_files import HfFolder
from r1zero.reward import Scorer, refuse_share
from r1zero.roles import Roles
from r1zero.checkpoint.schedule import Saving
from r1zero.weight_sync.sync import Sync
from r1zero.distributed.world import Launch

log = logging.getLogger(__name__)


class Trainer:
    def __init__(self, cfg: Config, layout: Layout, launch: Launch, scorer: Scorer | None, device: torch.device):
        self.cfg, self.layout, self.rank, self.device = cfg, layout, launch.rank, device
        self.folder = Path(cfg.run.dir) / cfg.run.name
        self.folder.mkdir(parents=True, exist_ok=True)
        seed(cfg.run.seed, cfg.run.deterministic)
        tokenizer = tokens.load(cfg.model.path)
        self.prompts = PromptSet.open(cfg.data.path)
        self.prompts.check(tokens.digest(cfg.model.path))
        self.prompts.check_length(cfg.rollout.max_prompt_tokens)
        self.order = PromptOrder(len(self.prompts), cfg.run.seed, cfg.data.shuffle)
        tokens.check_marks(tokenizer)
        stops = tokens.stop_ids(tokenizer, self.prompts.meta["stop_token_ids"])
        shape = read_shape(cfg.model.path)
        tokens.check_ids(tokenizer, stops, shape.vocab_size)
        if launch.local_rank == 0 and not cfg.model.checkpoint:   # weights are loaded last: refuse a folder before that
            HfFolder(cfg.model.path, shape, weights(shape))
        self.judge = Judge(cfg, layout, launch.rank, scorer, tokenizer, stops)
        self.roles = Roles(cfg, layout, launch.rank, device, stop_token_ids=stops,
                           forbidden_ids=tokens.missing_ids(tokenizer, shape.vocab_size))
        self.exchange = Exchange(layout, launch.rank, device)
        self.sync = Sync(cfg, layout, self.roles.shape, launch.rank, device)
        self.gate = Gate(cfg, layout, launch.rank, self.roles, self.exchange, self.sync.compiled, self.prompts)
        self.patience = skipped.Patience(cfg.optimizer.max_skipped, self.folder)
        self.watch = metrics.Stopwatch()
        self.saving = Saving(cfg.checkpoint, cfg.run.iterations, launch.rank)
        self.done = 0
        self.record: metrics.Record | None = None

    def run(self) -> None:
        """Iterate until done, or until a signal asks for the end; the folder then holds metrics, samples, curves and checkpoints."""
        self.saving.listen()
        self._resume()
        if self.rank == 0:
            (self.folder / "config.toml").write_text(dump(self.cfg), encoding="utf-8")
            self.record = metrics.Record(self.folder, self.done, self.cfg.run.iterations)
            self.bell = Bell(self.cfg.alarms, metrics.read(self.folder) if self.done else [])
        if self.rank == self.layout.rollout.ranks[0]:
            metrics.keep_until(self.folder / "samples.jsonl", self.done)
        self.hand_over(0)
        self.watch.lap()
        for iteration in range(self.done + 1, self.cfg.run.iterations + 1):
            self.watch.iteration = iteration
            reached = self.step(iteration)
            self.done = iteration
            with self.watch.phase("record"):
                if self.record:
                    alarms, lines = self.bell.see(iteration, reached)
                    self.record.write(iteration, reached | alarms)
                    for line in lines:
                        self.record.say(line)
            self.patience.see(reached)
            if self.saving.is_last(iteration):
                self._close_record()   # before the last save: a finished run is not lost to a disk or a memory that is full
            if self.saving.due(iteration):
                with self.watch.phase("save"):
                    self.save()
            if self.saving.stop:
                break
        self._close_record()
        self.roles.close()

    def _close_record(self) -> None:
        if self.record:
            self.record.close()
            for path in draw(self.folder):
                self.record.say(f"drew {path}")
            self.record = None

    def step(self, iteration: int) -> dict[str, float]:
        """prompts -> rollout -> reward -> advantage -> exchange -> reference -> update -> sync. Returns the metrics, on every rank."""
        cfg, watch, roles = self.cfg, self.watch, self.roles
        with watch.phase("rollout"):
            samples = self._generate(iteration)
        with watch.phase("non_overlap_rule_reward"):
            table = self.judge.collect(len(samples.responses)) if samples else None
        with watch.phase("adv"):
            mine = grading.to_batch(samples, table, cfg.grpo.group_size) if samples else None
        with watch.phase("dispatch"):
            census = self.exchange.census(mine, cfg.grpo.prompts_per_iteration * cfg.grpo.group_size)
            batch = self.exchange.to_grid(mine, census, self.layout.train.dense)
        with watch.phase("resharding_to_train"):
            roles.to_training()
        with watch.phase("reference_model"):
            ref_logprobs = self._reference(mine, batch, census)
        with watch.phase("update"):
            trained = roles.update(batch, ref_logprobs, census.loss_tokens)
            if trained.get("skipped"):
                skipped.keep(self.folder, iteration, self.rank, roles.policy, batch, ref_logprobs)
        parity = self.hand_over(iteration)
        with watch.phase("record"):
            totals, peaks = self._reduce(samples, table, trained)
            self._dump(iteration, samples, table)
        return step_metrics.named(cfg, totals, peaks, census.loss_tokens) | parity | step_metrics.speeds(totals, watch.lap(), self.layout.size)

    def hand_over(self, iteration: int) -> dict[str, float]:
        """The engines get the trained weights, and show that they compute the same with them. 0: at a start. Returns the gate's figures."""
        with self.watch.phase("resharding_to_infer"):
            self.roles.to_rollout(self.sync)
        with self.watch.phase("parity"):
            found = self.gate.after_sync(iteration)
        with self.watch.phase("resharding_to_infer"):
            self.roles.settle()
        return found

    def _generate(self, iteration: int) -> Samples | None:
        """Every rank takes the iteration's prompts from the order; each engine answers its own contiguous share."""
        rows = self.order.take(self.cfg.grpo.prompts_per_iteration)
        if self.roles.engine is None:
            return None
        share = len(rows) // self.layout.engines
        first = self.layout.engine_of(self.rank) * share
        # A row that comes again, in a later epoch or in this iteration, is another prompt: its responses have other seeds.
        before = (iteration - 1) * len(rows) + first
        prompts = [replace(self.prompts[row], index=before + k) for k, row in enumerate(rows[first:first + share])]
        self.judge.prompts = prompts
        responses = self.roles.engine.generate(prompts, self.cfg.grpo.group_size, iteration, self.judge.submit)
        return Samples(prompts, responses, first * self.cfg.grpo.group_size)

    def _reference(self, mine: Batch | None, batch: Batch | None, census: Census) -> Tensor | None:
        """(R,) of this rank's training batch on train's last stage; None elsewhere, and without KL."""
        if self.cfg.grpo.kl_coef == 0.0:
            return None
        if self.layout.reference is None:
            return self.roles.reference_logprobs(batch)
        grid = self.layout.reference.dense
        theirs = self.exchange.to_grid(mine, census, grid)
        values = self.roles.reference_logprobs(theirs)
        return self.exchange.between(values, census, grid, self.layout.train.dense)

    def _reduce(self, samples: Samples | None, table: Tensor | None,
                trained: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and peaks over the world; an engine's figures are counted once, by its first rank."""
        tally = metrics.Tally()
        first = samples is not None and self.layout.rollout.coordinate(self.rank, "tp") == 0
        step_metrics.tally(tally, self.cfg, samples if first else None, table)
        step_metrics.tally_training(tally, trained)
        self.saving.tally(tally)
        totals, peaks = tally.reduce(self.device)
        self.saving.agree(peaks)
        refuse_share(int(totals["timeouts"]), int(totals["failures"]), int(totals["samples"]), self.cfg.reward.max_unscored_share)
        return totals, peaks

    def _dump(self, iteration: int, samples: Samples | None, table: Tensor | None) -> None:
        """The first responses to a few of the first engine's prompts."""
        if self.rank != self.layout.rollout.ranks[0]:
            return
        rows = []
        for k in range(0, len(samples.responses), self.cfg.grpo.group_size)[:self.cfg.metrics.dump_samples]:
            response = samples.responses[k]
            prompt = samples.prompts[response.prompt]
            rows.append({"prompt": prompt.text, "response": self.judge.text(response), "label": prompt.label,
                         "outcome": grading.OUTCOMES[int(table[k, 1])], "reward": float(table[k, 0]) if table[k, 1] == 0 else None,
                         "scores": dict(zip(self.cfg.reward.rules, table[k, 2:].tolist(), strict=True)) if table[k, 1] == 0 else {}})
        metrics.append(self.folder / "samples.jsonl", iteration, rows)

    def save(self) -> None:
        """Raises UserError where there is no room, unless the run may go on without."""
        if self.record:
            self.record.flush()
        try:
            self.roles.save(self.folder / "checkpoints", self.done, {"order": self.order.state(), "skipped": self.patience.in_a_row})
        except UserError as error:
            if not self.saving.forgives(self.done):
                raise
            if self.rank == self.layout.train.dense.ranks[0]:
                log.warning('%s; the run goes on, as checkpoint.on_failed_save = "continue"', error)

    def _resume(self) -> None:
        """Continue the folder's newest checkpoint, where there is one."""
        extra = self.roles.resume(self.folder / "checkpoints", self.cfg.checkpoint.resume)
        if extra:
            self.done = extra["iteration"]
            self.order.load(extra["order"])
            self.patience.in_a_row = extra["skipped"]
