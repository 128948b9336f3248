"""One engine's share of an iteration: its prompts, the responses to them, their rewards and advantages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from r1zero import grpo
from r1zero.batch import Batch, Prompt, Response
from r1zero.config import Config
from r1zero.data import tokenizer as tokens
from r1zero.distributed.layout import Layout
from r1zero.reward import Score, Scorer, dump_unscored


OUTCOMES = ("scored", "timeout", "failed")


@dataclass(frozen=True)
class Samples:
    """The engine's P prompts and B = P * G responses, in (prompt, sample) order."""

    prompts: list[Prompt]
    responses: list[Response]
    first_id: int
    """Number in the iteration of the first sample here."""


class Judge:
    """Grades an engine's responses while others still decode. Under rollout TP every peer holds every text: each grades its turn."""

    def __init__(self, cfg: Config, layout: Layout, rank: int, scorer: Scorer | None, tokenizer: Any,
                 stop_token_ids: list[int]):
        self.folder = Path(cfg.run.dir) / cfg.run.name
        self.cfg, self.scorer, self.tokenizer = cfg, scorer, tokenizer
        self.dropped = tokens.dropped_ids(tokenizer, stop_token_ids)
        self.peers = self.turn = self.group = None
        for members in layout.rollout.groups("tp"):   # every rank makes every group, in one order
            group = dist.new_group(list(members), backend="gloo") if len(members) > 1 else None
            if rank in members:
                self.peers, self.turn, self.group = len(members), members.index(rank), group
        self.prompts: list[Prompt] = []
        self.texts: dict[int, tuple[str, str]] = {}
        """(response, label) of what is being graded."""

    def submit(self, response: Response) -> None:
        """Called by the engine as a response ends."""
        key = response.prompt * self.cfg.grpo.group_size + response.sample
        if key % self.peers == self.turn:
            prompt = self.prompts[response.prompt]
            self.texts[key] = self.text(response), prompt.label
            self.scorer.submit(key, *self.texts[key], prompt.text, prompt.additional)

    def text(self, response: Response) -> str:
        """As it is graded: without special tokens and the token that ended it."""
        return tokens.decode(self.tokenizer, response.token_ids, self.dropped)

    def through_tokens(self, text: str) -> str:
        """What would be graded if the engine sampled just the tokens of this text."""
        return tokens.decode(self.tokenizer, self.tokenizer.encode(text, add_special_tokens=False), self.dropped)

    def collect(self, count: int) -> torch.Tensor:
        """(B, 2 + rules): reward, outcome (its place in OUTCOMES) and each rule's value, equal on all peers."""
        names = list(self.cfg.reward.rules)
        table = torch.zeros(count, 2 + len(names), dtype=torch.float64)
        scores = self.scorer.collect()
        dump_unscored(self.folder / "unscored.jsonl", scores, self.texts)
        self.texts = {}
        for key, score in scores.items():
            table[key] = _row(score, names)
        if self.group is not None:
            dist.all_reduce(table, group=self.group)
        return table


def _row(score: Score, names: list[str]) -> torch.Tensor:
    scored = score.outcome == "scored"
    values = [score.scores[n] if scored else 0.0 for n in names]
    outcome = OUTCOMES.index(score.outcome)
    return torch.tensor([score.reward if scored else 0.0, outcome, *values], dtype=torch.float64)


def to_batch(samples: Samples, table: torch.Tensor, group_size: int) -> Batch:
    """Rewards to advantages within each group, and everything flat. table: Judge.collect's."""
    scored_PG = (table[:, 1] == 0).reshape(-1, group_size)
    advantages = grpo.advantages(table[:, 0].reshape(-1, group_size), scored_PG).flatten()
    prompts = [samples.prompts[r.prompt] for r in samples.responses]
    flat = [t for p, r in zip(prompts, samples.responses, strict=True) for t in (*p.token_ids, *r.token_ids)]
    return Batch(
        ids_B=torch.arange(samples.first_id, samples.first_id + len(prompts)),
        prompt_lengths_B=torch.tensor([len(p.token_ids) for p in prompts]),
        response_lengths_B=torch.tensor([len(r.token_ids) for r in samples.responses]),
        tokens_T=torch.tensor(flat), advantages_B=advantages, scored_B=scored_PG.flatten().float(),
        rollout_logprobs_R=torch.tensor([x for r in samples.responses for x in r.logprobs], dtype=torch.float32),
        ref_logprobs_R=torch.empty(0))
