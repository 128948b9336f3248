"""The parity gate: after a weight sync, every engine and the trainer must compute the same logprobs for the same
tokens.

Each engine samples a few tokens for some prompts, and then scores the same texts as prompts. Three results are
compared: the engine's logprobs while decoding, its logprobs while prefilling, and the trainer's logprobs. One prompt is
long and is answered twice, so that the second response begins from the prefix cache, like the responses of a group.
Each check takes other prompts than the one before, so that all experts are used over time.
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.batch import Batch, Prompt, Response
from r1zero.config import CollectiveError, Config
from r1zero.data.prompts import PromptSet
from r1zero.distributed.exchange import BatchLengths, Exchange
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

In fp32 2e-7 to 4e-6 was measured. In bf16 dense models have 5e-3 to 2e-2, and models with experts 1e-2 to 3e-2, because
rounding makes the two implementations choose different experts. exp(0.05) is the error of a token's probability above
which NeMo-RL's documentation considers a run broken.
"""

LONG = 160
"""Tokens of the long prompt: more than the 128 of a block of the prefix cache on Ascend."""

DECODED, PREFILLED, LARGEST = range(3)


@dataclass(frozen=True)
class Comparison:
    """Absolute differences of logprobs, one row per engine.

    Columns: mean of decoded - prefilled, mean of prefilled - trainer, largest of prefilled - trainer.
    """

    gaps_E3: Tensor
    worst_sample: int
    """Number of the sample for which the trainer differs most."""

    def disagreeing(self, tolerance: float) -> list[int]:
        """Returns the engines beyond the tolerance."""
        return [e for e, row in enumerate(self.gaps_E3.tolist()) if max(row[DECODED], row[PREFILLED]) > tolerance]


class ParityGate:
    """Called by every rank of the world after each sync, while engine and trainer are both on the device."""

    def __init__(self, cfg: Config, roles: Roles, exchange: Exchange, compiled: Compiled, prompts: PromptSet):
        self.cfg, self.layout, self.rank = cfg, roles.layout, roles.rank
        self.roles, self.exchange, self.compiled = roles, exchange, compiled
        self._all = prompts
        self.prompts = self._choose(0)
        self.tolerance = cfg.parity.tolerance or TOLERANCE[cfg.run.dtype, roles.shape.moe is not None]

    def after_sync(self, iteration: int) -> dict[str, float]:
        """Check if a check is due: at a start (iteration 0) and once per parity.every_syncs iterations.

        Returns the metrics, or {} if none is due. Raises CollectiveError on all ranks if an engine disagrees.
        """
        every = self.cfg.parity.every_syncs
        if not self.prompts or (iteration and (not every or iteration % every)):
            return {}
        self.prompts = self._choose(iteration // every if every else 0)
        mine = self._ask()
        comparison = self._compare(mine)
        engines = comparison.disagreeing(self.tolerance)
        if engines:
            raise CollectiveError(
                f"parity gate {f'after iteration {iteration}' if iteration else 'at the start'}: "
                f"{self._sentence(comparison, engines, mine)}"
            )
        prefilled = comparison.gaps_E3[:, PREFILLED:]
        return {"parity/mean": float(prefilled[:, 0].max()), "parity/max": float(prefilled[:, 1].max())}

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

    def _ask(self) -> tuple[Batch, Tensor] | None:
        """Returns the texts of this rank's engine with their logprobs as prompts, and for each text the mean distance
        of its logprobs while decoding from those."""
        if self.roles.engine is None:
            return None
        responses = self.roles.engine.probe(
            self.prompts, min(self.cfg.parity.tokens, self.cfg.rollout.max_response_tokens)
        )
        texts = [[*p.token_ids, *r.token_ids] for p, r in zip(self.prompts, responses, strict=True)]
        scores = self.roles.engine.score(texts)
        decoded = torch.tensor([_distance(r, scored) for r, scored in zip(responses, scores, strict=True)])
        return texts_batch(texts, scores, self.layout.engine_of(self.rank) * len(texts)), decoded

    def _compare(self, asked: tuple[Batch, Tensor] | None) -> Comparison:
        samples = self.layout.engines * len(self.prompts)
        mine = asked[0] if asked else None
        lengths = self.exchange.gather_lengths(mine, self.exchange.shares(samples))
        batch = self.exchange.to_grid(mine, lengths, self.layout.train.dense)
        table_B3 = torch.zeros(samples, 3)
        if asked:
            texts, decoded = asked
            table_B3[texts.ids_B, DECODED] = decoded
        if self.roles.policy and batch is not None:
            values = self.roles.policy.logprobs(batch)
            if values is not None and len(values):
                _fill(table_B3, batch, (values - batch.rollout_logprobs_R).abs())
        # A NaN counts as an infinite difference, because a maximum would ignore it.
        table_B3 = table_B3.nan_to_num(nan=torch.inf).to(self.exchange.device)
        dist.all_reduce(table_B3, dist.ReduceOp.MAX)
        return _comparison(table_B3.cpu(), lengths, self.layout.engines)

    def _sentence(self, comparison: Comparison, engines: list[int], asked: tuple[Batch, Tensor] | None) -> str:
        decoded, prefilled, largest = comparison.gaps_E3[engines[0]].tolist()
        where = ", ".join(f"{e} (ranks {', '.join(map(str, ranks_of(self.layout, e)))})" for e in engines)
        found = (
            f"logprobs of engine{'s' * (len(engines) > 1)} {where} differ from the trainer's by "
            f"{prefilled:.2g} on average (largest {largest:.2g}; decoding from its own prefill: {decoded:.2g}), but "
            f"parity.tolerance is {self.tolerance:.2g}"
        )
        suspects = localizer.FaultLocalizer(self.cfg, self.layout, self.rank, self.roles, self.compiled)
        owner = ranks_of(self.layout, comparison.worst_sample // len(self.prompts))[0]
        tokens = suspects.share_tokens(asked[0] if asked else None, comparison.worst_sample, owner)
        return f"{found}; {suspects.explain(tokens, engines)}"


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


def _distance(response: Response, scored: list[float]) -> float:
    pairs = zip(response.logprobs, scored[-len(response.logprobs) :], strict=True)
    return sum(abs(a - b) for a, b in pairs) / len(response.logprobs)


def _fill(table_B3: Tensor, batch: Batch, gaps_R: Tensor) -> None:
    for sample, gaps in zip(batch.ids_B.tolist(), gaps_R.split(batch.response_lengths_B.tolist()), strict=True):
        table_B3[sample, PREFILLED], table_B3[sample, LARGEST] = gaps.mean(), gaps.max()


def _comparison(table_B3: Tensor, lengths: BatchLengths, engines: int) -> Comparison:
    """Returns for each engine the mean over its tokens, and the largest value."""
    lengths_E = lengths.response_lengths_B.view(engines, -1, 1)
    table = table_B3.view(engines, -1, 3)
    means = (table[..., :LARGEST] * lengths_E).sum(1) / lengths_E.sum(1)
    return Comparison(torch.cat([means, table[..., LARGEST:].amax(1)], 1), int(table_B3[:, PREFILLED].argmax()))
