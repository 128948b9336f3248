"""The parity gate: after a weight sync, every engine and the trainer must compute the same logprobs for the same
tokens.

Each engine samples a few tokens for some prompts, and then scores the same texts as prompts. Three results are
compared: the engine's logprobs while decoding, its logprobs while prefilling, and the trainer's logprobs. One prompt is
long and is answered twice, so that the second response begins from the prefix cache, like the responses of a group.
Each check takes other prompts than the one before, so that all experts are used over time.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.batch import Batch, Prompt
from r1zero.config import CollectiveError, Config
from r1zero.data.prompts import PromptSet
from r1zero.distributed.exchange import Exchange
from r1zero.distributed.layout import Layout
from r1zero.guard import localizer
from r1zero.roles import Roles
from r1zero.weight_sync.transfer import Compiled

TOLERANCE = {
    ("float32", False): 1e-5,
    ("float32", True): 1e-5,
    ("float16", False): 0.005,
    ("float16", True): 0.02,
    ("bfloat16", False): 0.05,
    ("bfloat16", True): 0.1,
}
"""(run.dtype, whether the model has experts) -> limit for the mean absolute difference of the logprobs.

In fp32 2e-7 to 4e-6 was measured, in fp16 2e-4 for a dense model and 2e-3 with experts. In bf16 dense models have 5e-3
to 2e-2, and models with experts 1e-2 to 3e-2, because rounding makes the two implementations choose different experts.
exp(0.05) is the error of a token's probability above which NeMo-RL's documentation considers a run broken.
"""

TIED_TOLERANCE = 0.1
"""In fp32, the same limit for tokens that follow a tie between experts: a token for which rounding may have made the
two implementations choose different experts, and the tokens after it, which attend to it. It is the limit of bf16,
where nearly all tokens of a model with experts are such tokens."""

LONG = 160
"""Tokens of the long prompt: more than the 128 of a block of the prefix cache on Ascend."""

DECODED, PREFILLED, TIED_DECODED, TIED_PREFILLED, LARGEST = range(5)
"""The columns of a table of absolute differences of logprobs: decoded - prefilled and prefilled - trainer, first for
the tokens before any tie and then for those that follow one; and the largest of the second column."""


class Asked(NamedTuple):
    """What an engine answered."""

    batch: Batch
    """The texts, with their logprobs as prompts."""
    decoded_BN: Tensor
    """Absolute differences of the logprobs of the N sampled tokens of each text: decoded - prefilled."""


@dataclass(frozen=True)
class Comparison:
    """The differences of all engines."""

    gaps_E5: Tensor
    """Means over the tokens of each engine, 0 where there are none; in the last column the largest."""
    tied_share: float
    """Share of the tokens that follow a tie."""
    worst: int
    """Number of the sample for which the trainer differs most from its limit."""
    tokens: int
    """Number of its first tokens that show the difference: those before a tie, or all."""

    def disagreeing(self, limits: dict[int, float]) -> list[int]:
        """Returns the engines beyond a limit. limits: column -> largest mean."""
        rows = self.gaps_E5.tolist()
        return [e for e, row in enumerate(rows) if any(row[column] > limit for column, limit in limits.items())]


class ParityGate:
    """Called by every rank of the world after each sync, while engine and trainer are both on the device."""

    def __init__(self, cfg: Config, roles: Roles, exchange: Exchange, compiled: Compiled, prompts: PromptSet):
        self.cfg, self.layout, self.rank = cfg, roles.layout, roles.rank
        self.roles, self.exchange, self.compiled = roles, exchange, compiled
        self._all = prompts
        self.prompts = self._choose(0)
        self.tolerance = cfg.parity.tolerance or TOLERANCE[cfg.run.dtype, roles.shape.moe is not None]
        self.finds_ties = cfg.run.dtype == "float32" and roles.shape.moe is not None
        tied = max(self.tolerance, TIED_TOLERANCE)
        self.limits = {DECODED: self.tolerance, PREFILLED: self.tolerance, TIED_DECODED: tied, TIED_PREFILLED: tied}

    @property
    def sample_tolerance(self) -> float:
        """The limit for the mean over the run's own samples, which may include tokens that follow a tie."""
        return self.limits[TIED_PREFILLED] if self.finds_ties else self.tolerance

    def after_sync(self, iteration: int) -> dict[str, float]:
        """Check if a check is due: at a start (iteration 0) and once per parity.every_syncs iterations.

        Returns the metrics, or {} if none is due. Raises CollectiveError on all ranks if an engine disagrees.
        """
        every = self.cfg.parity.every_syncs
        if not self.prompts or (iteration and (not every or iteration % every)):
            return {}
        self.prompts = self._choose(iteration // every if every else 0)
        asked = self._ask()
        comparison = self._compare(asked)
        engines = comparison.disagreeing(self.limits)
        if engines:
            raise CollectiveError(
                f"parity gate {f'after iteration {iteration}' if iteration else 'at the start'}: "
                f"{self._sentence(comparison, engines, asked)}"
            )
        found = {
            "parity/mean": float(comparison.gaps_E5[:, PREFILLED].max()),
            "parity/max": float(comparison.gaps_E5[:, LARGEST].max()),
        }
        return found | ({"parity/tied": comparison.tied_share} if self.finds_ties else {})

    def _choose(self, check: int) -> list[Prompt]:
        """Returns the prompts of a check; the first two are the same, long one."""
        count = min(self.cfg.parity.prompts, len(self._all))
        chosen = [self._all[(check * count + i) % len(self._all)] for i in range(count)]
        if not chosen:
            return []
        tokens = [token for prompt in chosen for token in prompt.token_ids]
        tokens *= -(-LONG // len(tokens))
        long = replace(chosen[0], token_ids=tuple(tokens[: min(LONG, self.cfg.rollout.max_prompt_tokens)]))
        return [long, long, *chosen[1:]]

    def _ask(self) -> Asked | None:
        """Returns the texts of this rank's engine, scored as prompts; None on a rank without an engine."""
        if self.roles.engine is None:
            return None
        responses = self.roles.engine.probe(self.prompts, self._sampled())
        texts = [[*p.token_ids, *r.token_ids] for p, r in zip(self.prompts, responses, strict=True)]
        scores = self.roles.engine.score(texts)
        prefilled_BN = torch.tensor([of_text[-self._sampled() :] for of_text in scores])
        decoded_BN = (torch.tensor([r.logprobs for r in responses]) - prefilled_BN).abs()
        return Asked(texts_batch(texts, scores, self.layout.engine_of(self.rank) * len(texts)), decoded_BN)

    def _sampled(self) -> int:
        return min(self.cfg.parity.tokens, self.cfg.rollout.max_response_tokens)

    def _compare(self, asked: Asked | None) -> Comparison:
        samples = self.layout.engines * len(self.prompts)
        mine = asked.batch if asked else None
        lengths = self.exchange.gather_lengths(mine, self.exchange.shares(samples))
        batch = self.exchange.to_grid(mine, lengths, self.layout.train.dense)
        values, untied_B = self._trainers(batch, lengths.response_lengths_B)
        table_B5 = torch.zeros(samples, 5)
        if asked:
            first_B = asked.batch.response_lengths_B - self._sampled()
            for sample, first, gaps in zip(asked.batch.ids_B.tolist(), first_B.tolist(), asked.decoded_BN, strict=True):
                untied = max(0, int(untied_B[sample]) - first)
                table_B5[sample, DECODED], table_B5[sample, TIED_DECODED] = gaps[:untied].sum(), gaps[untied:].sum()
        if values is not None and batch is not None:
            gaps_R = (values - batch.rollout_logprobs_R).abs()
            for sample, gaps in zip(batch.ids_B.tolist(), gaps_R.split(batch.response_lengths_B.tolist()), strict=True):
                before, after = gaps[: untied_B[sample]], gaps[untied_B[sample] :]
                table_B5[sample, PREFILLED], table_B5[sample, TIED_PREFILLED] = before.sum(), after.sum()
                table_B5[sample, LARGEST] = before.max() if len(before) else 0.0
        # A NaN counts as an infinite difference, because a maximum would ignore it.
        table_B5 = table_B5.nan_to_num(nan=torch.inf).to(self.exchange.device)
        dist.all_reduce(table_B5, dist.ReduceOp.MAX)
        counts_B4 = _counts(lengths.response_lengths_B, untied_B, self._sampled())
        return _comparison(table_B5.cpu(), counts_B4, self.limits, self.layout.engines)

    def _trainers(self, batch: Batch | None, lengths_B: Tensor) -> tuple[Tensor | None, Tensor]:
        """Returns the trainer's logprobs, on the ranks of its last stage, and for each sample of the world the number
        of its logprobs that do not follow a tie.

        lengths_B: the number of logprobs of each sample of the world.
        """
        policy = self.roles.policy
        if not self.finds_ties:
            return (policy.logprobs(batch) if policy and batch is not None else None), lengths_B
        untied_B, values = lengths_B.to(self.exchange.device, torch.int32), None
        if policy and batch is not None:
            values, before_B = policy.logprobs_and_ties(batch)
            # The logprob of a text's token t is computed from its token t - 1.
            untied_B[batch.ids_B.to(untied_B.device)] = before_B.minimum(batch.response_lengths_B).to(untied_B)
        dist.all_reduce(untied_B, dist.ReduceOp.MIN)
        return values, untied_B.cpu().long()

    def _sentence(self, comparison: Comparison, engines: list[int], asked: Asked | None) -> str:
        gaps = comparison.gaps_E5[engines[0]].tolist()
        where = ", ".join(f"{e} (ranks {', '.join(map(str, ranks_of(self.layout, e)))})" for e in engines)
        found = f"logprobs of engine{'s' * (len(engines) > 1)} {where} differ from the trainer's by "
        if max(gaps[DECODED], gaps[PREFILLED]) > self.tolerance:
            found += (
                f"{gaps[PREFILLED]:.2g} on average (largest {gaps[LARGEST]:.2g}; decoding from its own prefill: "
                f"{gaps[DECODED]:.2g}), but parity.tolerance is {self.tolerance:.2g}"
            )
        else:
            found += (
                f"{gaps[TIED_PREFILLED]:.2g} on average for tokens that follow a tie between experts (decoding from "
                f"its own prefill: {gaps[TIED_DECODED]:.2g}), for which the limit is {self.limits[TIED_PREFILLED]:.2g}"
            )
        suspects = localizer.FaultLocalizer(self.cfg, self.layout, self.rank, self.roles, self.compiled)
        owner = ranks_of(self.layout, comparison.worst // len(self.prompts))[0]
        tokens = suspects.share_tokens(asked.batch if asked else None, comparison.worst, owner)
        return f"{found}; {suspects.explain(tokens[: comparison.tokens], engines)}"


def ranks_of(layout: Layout, engine: int) -> list[int]:
    """Returns the world ranks of an engine."""
    return [r for r in layout.rollout.ranks if layout.engine_of(r) == engine]


def texts_batch(texts: list[list[int]], scores: list[list[float]], first_id: int) -> Batch:
    """Returns whole texts as samples of which all but the first token are the response. scores: their logprobs."""
    lengths = torch.tensor([len(t) for t in texts])
    ids_B = torch.arange(first_id, first_id + len(texts))
    return Batch(
        ids_B=ids_B,
        groups_B=ids_B,
        prompt_lengths_B=torch.ones_like(lengths),
        response_lengths_B=lengths - 1,
        tokens_T=torch.tensor([t for text in texts for t in text]),
        advantages_B=torch.zeros(len(texts)),
        scored_B=torch.ones(len(texts)),
        rollout_logprobs_R=torch.tensor([x for of_text in scores for x in of_text], dtype=torch.float32),
        ref_logprobs_R=torch.empty(0),
    )


def _counts(lengths_B: Tensor, untied_B: Tensor, sampled: int) -> Tensor:
    """Returns (B, 4) numbers of tokens in the first columns of the table. The last `sampled` of each are decoded."""
    decoded_B = (untied_B - lengths_B + sampled).clamp(min=0)
    return torch.stack([decoded_B, untied_B, sampled - decoded_B, lengths_B - untied_B], 1)


def _comparison(table_B5: Tensor, counts_B4: Tensor, limits: dict[int, float], engines: int) -> Comparison:
    """table_B5: sums over the tokens of each sample, and the largest. counts_B4: the numbers of these tokens."""
    sums_B4, largest_B = table_B5[:, :LARGEST], table_B5[:, LARGEST]
    counts_E4 = counts_B4.view(engines, -1, 4).sum(1)
    means_E4 = sums_B4.view(engines, -1, 4).sum(1) / counts_E4.clamp(min=1)
    beyond_B4 = sums_B4 / counts_B4.clamp(min=1) / torch.tensor([limits[column] for column in range(LARGEST)])
    worst = int(beyond_B4[:, [PREFILLED, TIED_PREFILLED]].amax(1).argmax())
    untied, tied = counts_B4[worst, [PREFILLED, TIED_PREFILLED]].tolist()
    shown = untied if untied and beyond_B4[worst, PREFILLED] >= beyond_B4[worst, TIED_PREFILLED] else untied + tied + 1
    return Comparison(
        gaps_E5=torch.cat([means_E4, largest_B.view(engines, -1).amax(1, keepdim=True)], 1),
        tied_share=float(counts_E4[:, TIED_PREFILLED].sum() / counts_E4[:, [PREFILLED, TIED_PREFILLED]].sum()),
        worst=worst,
        tokens=shown,
    )
