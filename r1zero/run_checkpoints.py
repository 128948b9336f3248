"""The checkpoints of one run: what they hold beside the model, and how they are written, completed and resumed from."""

import logging
from pathlib import Path

from r1zero.checkpoint import step_folders
from r1zero.checkpoint.saving import PendingSave
from r1zero.checkpoint.schedule import SaveSchedule
from r1zero.config import CollectiveError, UserError
from r1zero.data.prompts import PromptOrder
from r1zero.evaluation.best import Best
from r1zero.guard.skipped import SkipLimit
from r1zero.roles import Roles

log = logging.getLogger(__name__)


class RunCheckpoints:
    """Saves and resumes a run. A rank that does not train takes part as well, but writes nothing.

    A save runs in the background from `begin` to `finish`; there is at most one. `order`, `skip_limit` and `best` are
    the parts of the run's state that live outside the model.
    """

    def __init__(
        self,
        folder: Path,
        roles: Roles,
        schedule: SaveSchedule,
        *,
        order: PromptOrder,
        skip_limit: SkipLimit,
        best: Best,
    ):
        self.folder = folder / "checkpoints"
        self.roles, self.schedule = roles, schedule
        self.order, self.skip_limit, self.best = order, skip_limit, best
        self.iteration = 0
        """Of the save that `begin` has started and `finish` has not completed; 0 if there is none."""
        self._pending: PendingSave | None = None
        self._speaks = roles.rank == roles.layout.train.dense.ranks[0]
        """Whether this rank reports for all ranks that train."""

    def begin(self, iteration: int) -> None:
        """Start to save the state after `iteration`. Weights and optimizer must not change until `finish`.

        Collective over the ranks that train. Raises UserError if the disk is too full, unless the run may continue
        without this checkpoint.
        """
        state = {"order": self.order.state(), "skipped": self.skip_limit.in_a_row, **self.best.state()}
        try:
            self._pending = self.roles.begin_save(self.folder, iteration, state)
        except UserError as error:
            self._tolerate(iteration, error)
        else:
            self.iteration = iteration

    def finish(self) -> None:
        """Complete the save that was begun, if any. Collective, and raises UserError, like `begin`."""
        iteration, self.iteration = self.iteration, 0
        if not self._pending:
            return
        try:
            self._pending.finish()
            self._mark_best()
        except UserError as error:
            self._tolerate(iteration, error)
        finally:
            self._pending = None

    def resume(self) -> int:
        """Continue from the newest checkpoint in the run's folder. Returns its iteration, or 0 if there is none."""
        extra = self.roles.resume(self.folder, self.roles.cfg.checkpoint.resume)
        if not extra:
            return 0
        self.order.load(extra["order"])
        self.skip_limit.in_a_row = extra["skipped"]
        self.best.load(extra)
        self._mark_best()
        return extra["iteration"]

    def load_newest(self) -> int:
        """Load the weights of the newest checkpoint and return its iteration. Raises UserError if there is none.

        The position in the data is not read, so that a run may be evaluated without the keys of its data.
        """
        extra = self.roles.resume(self.folder, "auto")
        if not extra:
            raise CollectiveError(f"--eval: {self.folder} holds no checkpoint; name a folder")
        return extra["iteration"]

    def load(self, path: Path) -> int:
        """Load the checkpoint in the folder `path` and return its iteration. Raises UserError if it is not complete."""
        return self.roles.load(step_folders.open_checkpoint(path))["iteration"]

    def _tolerate(self, iteration: int, error: UserError) -> None:
        if not self.schedule.tolerates_failed_save(iteration):
            raise error
        if self._speaks:
            log.warning('%s; the run continues, because checkpoint.on_failed_save = "continue"', error)

    def _mark_best(self) -> None:
        if self.best.iteration and self._speaks:
            step_folders.mark_best(self.folder, self.best.iteration)
