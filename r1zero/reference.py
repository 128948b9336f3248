"""The reference's logprobs of the responses of an iteration.

Where the ranks of the reference do not generate (a split layout), they would be idle during the rollout. Except with
expert parallelism or routing replay, they then compute the logprobs of each piece of the samples as soon as its
responses have ended. A piece is one micro-batch.
Neither its samples nor its data-parallel rank depend on the lengths of responses, so the logprobs are the same
whichever response ends first.
"""

from itertools import chain, groupby

import numpy as np
import torch
from torch import Tensor

from r1zero import division
from r1zero.batch import Batch, Prompt, Response
from r1zero.config import Config
from r1zero.distributed.exchange import BatchLengths, Exchange
from r1zero.distributed.layout import Layout, reference_runs_ahead
from r1zero.distributed.mailbox import Mailbox
from r1zero.roles import Roles

PIECES_PER_STAGE = 2
"""Pieces for which a pipeline waits, for each of its stages, so that the stages work at the same time."""


class Reference:
    """Computes the reference's logprobs, on one rank."""

    def __init__(
        self,
        cfg: Config,
        layout: Layout,
        rank: int,
        roles: Roles,
        exchange: Exchange,
        chosen: tuple[int, int] | None = None,
    ):
        """chosen: as in Exchange.to_grid."""
        self.cfg, self.layout, self.rank, self.roles, self.exchange = cfg, layout, rank, roles, exchange
        self.chosen = chosen
        self.grid = layout.reference_grids.dense
        rollout, recipe, share = cfg.rollout, cfg.grpo, cfg.grpo.prompts_per_iteration // layout.engines
        self.pieces = division.pieces(
            layout.engines,
            share,
            recipe.group_size,
            division.surely_fit(
                rollout.max_prompt_tokens,
                rollout.max_response_tokens,
                recipe.group_size,
                cfg.train.micro_batch_tokens,
                cfg.train.share_prompts,
            ),
        )
        """The numbers of the samples of each piece of a round. Piece i belongs to data-parallel rank i % size."""
        self.piece_of = [i for i, piece in enumerate(self.pieces) for _ in piece]
        self.mailbox = Mailbox(cfg.run.timeout_s) if reference_runs_ahead(cfg, layout) else None
        self._round = (0, 0)
        self._ended: dict[int, dict[int, Response]] = {}
        """Piece -> sample -> response, for the responses that have ended while others are still being decoded."""
        self._logprobs: dict[int, Tensor] = {}
        """Sample of the iteration, counted over its rounds -> reference logprobs, if this rank has computed them."""

    def begin_round(self, iteration: int, number: int) -> None:
        """Begin round `number` of an iteration, before its rollout. number: 0 for the first."""
        self._round = iteration, number

    def see(self, prompts: list[Prompt], first_group: int, responses: list[Response]) -> None:
        """Send the pieces that these responses complete to the ranks of the reference.

        prompts: those of this rank's engine. first_group: the group of the first of them.
        """
        if self.mailbox is None or self.layout.rollout.coordinate(self.rank, "tp"):
            return
        size = self.cfg.grpo.group_size
        for response in responses:
            sample = (first_group + response.prompt) * size + response.sample
            number = self.piece_of[sample]
            ended, piece = self._ended.setdefault(number, {}), self.pieces[number]
            ended[sample] = response
            if len(ended) == len(piece):
                del self._ended[number]
                message = _write(number, prompts, [ended[i] for i in piece])
                self.mailbox.send(self._box(self._round[1], number % self.grid.size("dp")), message)

    def run_ahead(self) -> None:
        """Compute the logprobs of all pieces of the round, each as soon as it has come.

        Does nothing on a rank without the reference, or if it shares its ranks with the engines.
        """
        if self.mailbox is None or self.rank not in self.grid:
            return
        number, dp = self._round[1], self.grid.coordinate(self.rank, "dp")
        stages, first = self.grid.size("pp"), self._round[1] * len(self.piece_of)
        count, longest = self._count(dp), self._count(0)
        at_once = PIECES_PER_STAGE * stages if stages > 1 else 1
        with self.roles.reference_model() as model:
            for begin in range(0, longest, at_once):
                numbers = range(begin, min(begin + at_once, longest))
                messages = [self.mailbox.receive(self._box(number, dp), n) for n in numbers if n < count]
                batch, parts = self._read(messages)
                parts += [[]] * (len(numbers) - len(parts))  # all data-parallel ranks run the same number
                values = model.logprobs(batch, parts)
                if values is not None:
                    of_samples = values.split(batch.response_lengths_B.tolist())
                    self._logprobs |= dict(zip((batch.ids_B + first).tolist(), of_samples, strict=True))

    def logprobs(
        self, mine: Batch | None, batch: Batch | None, lengths: BatchLengths, groups: list[int]
    ) -> Tensor | None:
        """Returns the (R,) reference logprobs of this rank's training batch, on the last pipeline stage of the trainer.

        Returns None on other ranks, and on all ranks if grpo.kl_coef is 0. mine: the samples of this rank's
        engine. batch: those of the trainer. groups: those of which the batch consists, counted over all rounds.
        Collective over the world.
        """
        if self.cfg.grpo.kl_coef == 0.0:
            return None
        if self.mailbox is not None:
            return self._collect(lengths, groups)
        if self.layout.reference is None:
            return self._compute(batch)
        theirs = self.exchange.to_grid(mine, lengths, self.grid, self.chosen)
        shards = self.exchange.shards(lengths, self.grid)
        return self.exchange.regrid(self._compute(theirs), lengths, shards, self.grid, self.layout.train.dense)

    def _compute(self, batch: Batch | None) -> Tensor | None:
        if batch is None:
            return None
        with self.roles.reference_model() as model:
            return model.logprobs(batch)

    def _collect(self, lengths: BatchLengths, groups: list[int]) -> Tensor | None:
        """Send the logprobs that were computed during the rollout to the ranks that train."""
        assert self.mailbox is not None
        size, prompts = self.cfg.grpo.group_size, self.cfg.grpo.prompts_per_iteration
        samples = [group * size + sample for group in groups for sample in range(size)]
        shards: list[list[int]] = [[] for _ in range(self.grid.size("dp"))]
        for at, sample in enumerate(samples):
            shards[self.piece_of[sample % (prompts * size)] % len(shards)].append(at)
        values = None
        if self._logprobs:
            own = shards[self.grid.coordinate(self.rank, "dp")]
            values = torch.cat([torch.empty(0), *(self._logprobs[samples[at]] for at in own)])
        moved = self.exchange.regrid(values, lengths, shards, self.grid, self.layout.train.dense)
        self._logprobs = {}
        # All ranks of the reference have read their messages: at the end of a round they take part in gather_rewards.
        if self.rank in self.grid and self.rank == self.grid.at(dp=(dp := self.grid.coordinate(self.rank, "dp"))):
            for number in range(self._round[1] + 1):
                self.mailbox.remove(self._box(number, dp), self._count(dp))
        return moved

    def _count(self, dp: int) -> int:
        """Returns the number of pieces of a round that a data-parallel rank computes."""
        return len(range(dp, len(self.pieces), self.grid.size("dp")))

    def _box(self, number: int, dp: int) -> str:
        return f"{self._round[0]}/{number}/{dp}"

    def _read(self, messages: list[bytes]) -> tuple[Batch, list[list[int]]]:
        """Returns the samples of these pieces as a batch with tokens only, numbered as in their round, and the
        positions of the samples of each piece."""
        ids: list[int] = []
        lengths: list[tuple[int, int]] = []
        tokens = [np.zeros(0, np.int32)]
        parts: list[list[int]] = []
        for message in messages:
            number, samples = _parse(np.frombuffer(message, np.int32))
            parts.append(list(range(len(ids), len(ids) + len(samples))))
            ids += self.pieces[number]
            lengths += [(len(prompt), len(response)) for prompt, response in samples]
            tokens += [part for sample in samples for part in sample]
        ids_B = torch.tensor(ids, dtype=torch.long)
        lengths_B2 = torch.tensor(lengths, dtype=torch.long).view(-1, 2)
        batch = Batch(
            ids_B=ids_B,
            groups_B=ids_B // self.cfg.grpo.group_size if self.cfg.train.share_prompts else ids_B,
            prompt_lengths_B=lengths_B2[:, 0],
            response_lengths_B=lengths_B2[:, 1],
            tokens_T=torch.from_numpy(np.concatenate(tokens)).long(),
            advantages_B=torch.zeros(len(ids)),
            scored_B=torch.ones(len(ids)),
            rollout_logprobs_R=torch.empty(0),
            ref_logprobs_R=torch.empty(0),
        )
        return batch, parts


def _write(number: int, prompts: list[Prompt], responses: list[Response]) -> bytes:
    """Returns a piece as int32 numbers: its own, and for each prompt the lengths of it and of its responses, and all
    their tokens."""
    numbers = [number]
    for prompt, group in groupby(responses, lambda response: response.prompt):
        texts = [prompts[prompt].token_ids, *(response.token_ids for response in group)]
        numbers += [len(texts), *map(len, texts), *chain.from_iterable(texts)]
    return np.array(numbers, np.int32).tobytes()


def _parse(numbers: np.ndarray) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Undo `_write`. Returns the piece's number, and prompt and response of each sample."""
    samples, at = [], 1
    while at < len(numbers):
        count = int(numbers[at])
        ends = at + 1 + count + np.cumsum(numbers[at + 1 : at + 1 + count])
        prompt, *responses = np.split(numbers[: ends[-1]], [at + 1 + count, *ends[:-1]])[1:]
        samples += [(prompt, response) for response in responses]
        at = int(ends[-1])
    return int(numbers[0]), samples
