"""Updates that are skipped because loss or gradient is not finite: keeps their batches and limits their number."""

from collections.abc import Mapping
from pathlib import Path

import torch

from r1zero.batch import Batch
from r1zero.config import CollectiveError
from r1zero.policy import Policy


def keep(folder: Path, iteration: int, rank: int, policy: Policy, batch: Batch) -> None:
    """Write this data-parallel rank's share of the batch and the trainer's logprobs of it.

    Collective over the ranks that train. `torch.load(path, weights_only=True)` returns a dict of Batch's tensors and
    `logprobs_R`.
    """
    logprobs_R = policy.logprobs(batch)
    if not policy.is_reporting_rank:
        return
    path = folder / "skipped" / f"iteration_{iteration}_rank_{rank}.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save({**vars(batch), "logprobs_R": logprobs_R}, path)


class SkipLimit:
    """Counts consecutive skipped updates, alike on all ranks."""

    def __init__(self, limit: int, folder: Path):
        self.limit, self.folder, self.in_a_row = limit, folder, 0

    def see(self, values: Mapping[str, float]) -> None:
        """Count an iteration, from its metrics. Raises CollectiveError if the limit is reached."""
        if values["update/empty"]:
            return
        self.in_a_row = self.in_a_row + 1 if values["update/skipped"] else 0
        if self.in_a_row >= self.limit:
            raise CollectiveError(
                f"{self.in_a_row} updates in a row had a loss or gradient that is not finite and were skipped "
                f"(optimizer.max_skipped = {self.limit}); their batches are in {self.folder / 'skipped'}: look there "
                "for logprobs that are not finite, or lower optimizer.lr and start from an older checkpoint"
            )
