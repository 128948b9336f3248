"""The samples of one engine in one iteration: prompts, responses and grades.

`Grader` decides which rank grades a response and collects the results. The rules run in the processes of reward/.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.batch import Batch, Prompt, Response
from r1zero.config import Config
from r1zero.data import tokenizer
from r1zero.distributed.layout import Layout
from r1zero.reward import Score, Scorer, Submission, dump_unscored
from r1zero.reward.rules import has_base_format

OUTCOMES = ("scored", "timeout", "failed")


@dataclass(frozen=True)
class Samples:
    """The P prompts of an engine and their B = P * G responses, in (prompt, sample) order."""

    prompts: list[Prompt]
    responses: list[Response]
    first_id: int
    """Number within the iteration of the first sample in this list."""


@dataclass(frozen=True)
class Graded:
    """The grades of B samples, equal on all tensor-parallel ranks of an engine. float64 on the CPU unless stated."""

    rewards_B: Tensor
    """Weighted sum of the rules' values; 0.0 for a sample that was not scored."""
    scored_B: Tensor
    """bool."""
    outcomes_B: Tensor
    """int64: index into OUTCOMES."""
    rule_scores: dict[str, Tensor]
    """Rule -> (B,) values; 0.0 for a sample that was not scored."""
    in_format_B: Tensor
    """1.0 for a response in the format that base_acc rewards."""

    def outcome(self, sample: int) -> str:
        """Returns the outcome of one sample, one of OUTCOMES."""
        return OUTCOMES[int(self.outcomes_B[sample])]

    def scores(self, sample: int) -> dict[str, float]:
        """Returns rule -> value for one sample."""
        return {rule: float(values_B[sample]) for rule, values_B in self.rule_scores.items()}


class Grader:
    """Grades an engine's finished responses while others are still being decoded.

    All tensor-parallel ranks of an engine hold every response; each rank grades its share of them.
    """

    def __init__(
        self,
        cfg: Config,
        layout: Layout,
        rank: int,
        scorer: Scorer | None,
        model_tokenizer: Any,
        stop_token_ids: list[int],
    ):
        self.folder = Path(cfg.run.dir) / cfg.run.name
        self.cfg, self.scorer, self.tokenizer = cfg, scorer, model_tokenizer
        self.dropped = tokenizer.dropped_ids(model_tokenizer, stop_token_ids)
        # Of the engine's `peers` tensor-parallel ranks, this one grades every peers-th sample, beginning with `turn`.
        self.peers, self.turn = 1, 0
        self.group: dist.ProcessGroup | None = None
        for members in layout.rollout.groups("tp"):  # every rank must create every group, in the same order
            group = dist.new_group(list(members), backend="gloo") if len(members) > 1 else None
            if rank in members:
                self.peers, self.turn, self.group = len(members), members.index(rank), group
        self.submitted: dict[int, tuple[str, str]] = {}
        """Sample -> (response, label), for the samples that this rank is grading."""

    def submit(self, prompts: list[Prompt], responses: list[Response]) -> None:
        """Start grading finished responses, for `collect`. prompts: the list that was given to the engine."""
        started = self.start(prompts, responses, self.cfg.grpo.group_size)
        self.submitted |= {sample: (one.response, one.label) for sample, one in started.items()}

    def start(self, prompts: list[Prompt], responses: list[Response], group_size: int) -> dict[int, Submission]:
        """Start grading this rank's share of finished responses, of which each prompt has `group_size`.

        Returns what the scorer got, by the number of the sample: prompt * group_size + sample.
        """
        submissions: dict[int, Submission] = {}
        for response in responses:
            sample = response.prompt * group_size + response.sample
            if sample % self.peers == self.turn:
                prompt = prompts[response.prompt]
                submissions[sample] = Submission(self.text(response), prompt.label, prompt.text, prompt.additional)
        self.require_scorer().submit_all(submissions)
        return submissions

    def require_scorer(self) -> Scorer:
        """Returns this rank's scorer. Raises RuntimeError on a rank without an engine."""
        if self.scorer is None:
            raise RuntimeError("this rank has no engine, so it does not grade")
        return self.scorer

    def text(self, response: Response) -> str:
        """Returns the text to grade: without special tokens and without the stop token."""
        return tokenizer.decode(self.tokenizer, response.token_ids, self.dropped)

    def through_tokens(self, text: str) -> str:
        """Returns the text that would be graded if the engine had sampled the tokens of `text`."""
        return tokenizer.decode(self.tokenizer, self.tokenizer.encode(text, add_special_tokens=False), self.dropped)

    def collect(self, count: int) -> Graded:
        """Wait for the grades of all `count` samples. Collective over the tensor-parallel ranks of the engine."""
        rules = list(self.cfg.reward.rules)
        scores: dict[Any, Score] = self.require_scorer().collect()
        dump_unscored(self.folder / "unscored.jsonl", scores, self.submitted)
        submitted, self.submitted = self.submitted, {}
        # One tensor of reward, outcome, format and each rule's value, so that one all-reduce shares everything.
        table = torch.zeros(count, 3 + len(rules), dtype=torch.float64)
        for sample, score in scores.items():
            in_format = has_base_format(submitted[sample][0])
            table[sample] = torch.tensor(_row(score, in_format, rules), dtype=torch.float64)
        if self.group is not None:
            dist.all_reduce(table, group=self.group)
        rewards_B, outcomes_B, in_format_B, *values = table.unbind(1)
        by_rule = dict(zip(rules, values, strict=True))
        return Graded(rewards_B, outcomes_B == 0, outcomes_B.long(), by_rule, in_format_B)


def _row(score: Score, in_format: bool, rules: list[str]) -> list[float]:
    scored = score.outcome == "scored"
    values = [score.scores[rule] if scored else 0.0 for rule in rules]
    return [score.reward if scored else 0.0, OUTCOMES.index(score.outcome), float(in_format), *values]


def to_batch(samples: Samples, advantages_B: Tensor, scored_B: Tensor) -> Batch:
    """Returns the samples of an engine as a training batch without reference logprobs."""
    prompts = [samples.prompts[r.prompt] for r in samples.responses]
    flat = [t for p, r in zip(prompts, samples.responses, strict=True) for t in (*p.token_ids, *r.token_ids)]
    return Batch(
        ids_B=torch.arange(samples.first_id, samples.first_id + len(prompts)),
        groups_B=torch.tensor([r.prompt for r in samples.responses], dtype=torch.long),
        prompt_lengths_B=torch.tensor([len(p.token_ids) for p in prompts]),
        response_lengths_B=torch.tensor([len(r.token_ids) for r in samples.responses]),
        tokens_T=torch.tensor(flat),
        advantages_B=advantages_B,
        scored_B=scored_B.float(),
        rollout_logprobs_R=torch.tensor([x for r in samples.responses for x in r.logprobs], dtype=torch.float32),
        ref_logprobs_R=torch.empty(0),
        experts_T=_chosen_experts(samples.responses),
    )


def _chosen_experts(responses: list[Response]) -> Tensor:
    """Returns `Batch.experts_T`: the engine has chosen no experts for the last token of a response."""
    parts = [r.experts for r in responses if r.experts is not None]
    if not parts:
        return torch.empty(0, dtype=torch.int16)
    last = torch.full_like(parts[0][:1], -1)
    return torch.cat([part for chosen in parts for part in (chosen, last)])
