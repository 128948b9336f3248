"""The tokenised prompts that train.py reads, and the seeded, resumable order in which it uses them."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from r1zero.batch import Prompt
from r1zero.config import UserError, readable
from r1zero.data import store, templates


class PromptSet:
    """A folder that preprocess.py wrote, memory-mapped so that the ranks of a node share its pages."""

    def __init__(self, path: str, meta: dict[str, Any], table: pa.Table):
        self.path, self.meta, self._table = path, meta, table
        has_several = "dataset" in table.column_names
        self.datasets: tuple[str, ...] = tuple(sorted(table["dataset"].unique().to_pylist())) if has_several else ()
        """The names of the sources, if there are several."""

    @classmethod
    def open(cls, path: str, field: str = "data.path") -> "PromptSet":
        """Open a folder of prompts. field: the field of the config that names it, for messages.

        Raises UserError if the folder is missing, was not written by preprocess.py, or is corrupt.
        """
        meta = store.read_meta(path, field)
        return cls(path, meta, store.read_prompts(path, meta))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Prompt:
        token_ids, label, text = (self._table[name][index].as_py() for name in ("token_ids", "label", "text"))
        dataset = self._table["dataset"][index].as_py() if self.datasets else ""
        additional = self.additional(index)
        return Prompt(index, tuple(token_ids), label, text, additional, dataset)

    def source(self, index: int) -> str:
        """Returns the origin of the row, as file:line."""
        return self._table["source"][index].as_py()

    def additional(self, index: int) -> dict[str, str | None]:
        """Returns the columns of the row that dataset_additional_keys kept."""
        return self._table["additional"][index].as_py() if "additional" in self._table.column_names else {}

    def check(self, tokenizer_digest: str) -> None:
        """Raises UserError if the tokenizer is not the one of the data, or if template or source files have changed.

        A source or template file that does not exist on this machine is not checked.
        """
        made_with = self.meta["tokenizer"]
        if made_with["digest"] != tokenizer_digest:
            raise UserError(
                f"data {self.path!r}: was made with the tokenizer of {made_with['path']} "
                f"(digest {made_with['digest'][:12]}), "
                f"but the model's has the digest {tokenizer_digest[:12]}; run preprocess.py with the model's tokenizer"
            )
        with readable(f"data {self.path!r}", "run preprocess.py again"):
            self._check_sources()
            self._check_template()

    def _check_sources(self) -> None:
        for source in self.meta["sources"]:
            now = store.file_digest(Path(source["path"])) if Path(source["path"]).is_file() else source["sha256"]
            if now != source["sha256"]:
                raise UserError(
                    f"data {self.path!r}: was made from {source['path']} with sha256 {source['sha256'][:12]}, "
                    f"which is {now[:12]} now; run preprocess.py again"
                )

    def _check_template(self) -> None:
        made = self.meta["template"]
        if not Path(made["path"]).is_file():
            return
        try:
            template = templates.load(made["path"], made["name"])
        except UserError as error:
            raise UserError(f"data {self.path!r}: the template that it was made with is gone: {error}") from None
        now = template.digest
        if made["digest"] not in (now, templates.prompts_digest(template, thinking=True)):
            raise UserError(
                f"data {self.path!r}: was made with the template {made['name']} with digest {made['digest'][:12]}, "
                f"which is {now[:12]} in {made['path']} now; run preprocess.py again"
            )

    def check_length(self, max_prompt_tokens: int) -> None:
        """Raises UserError if a prompt is longer than `rollout.max_prompt_tokens`."""
        if self.meta["longest_prompt"] > max_prompt_tokens:
            raise UserError(
                f"data {self.path!r}: its longest prompt has {self.meta['longest_prompt']} tokens, "
                "but rollout.max_prompt_tokens "
                f"is {max_prompt_tokens}; raise it, or run preprocess.py with max_prompt_tokens={max_prompt_tokens}"
            )


class PromptOrder:
    """An endless sequence of rows: each row once per epoch, in a different order in each epoch if `shuffle` is set.

    The order depends only on count, seed and epoch, so a resumed run continues where it stopped.
    """

    def __init__(self, count: int, seed: int, shuffle: bool):
        if count < 1:
            raise UserError("the data contains no prompts; run preprocess.py on data that does")
        self.count, self.seed, self.shuffle = count, seed, shuffle
        self._go_to(0, 0)

    def _go_to(self, epoch: int, position: int) -> None:
        self.epoch, self.position = epoch, position
        self._rows = list(range(self.count))
        if self.shuffle:
            # Sort by random() instead of shuffle(): only random() is guaranteed to stay the same for a seed.
            generator = random.Random(f"{self.seed} {epoch}")
            keys = [generator.random() for _ in self._rows]
            self._rows.sort(key=keys.__getitem__)

    @property
    def taken(self) -> int:
        """Number of rows taken since the beginning of the run."""
        return self.epoch * self.count + self.position

    def take(self, n: int) -> list[int]:
        """Returns the next `n` rows, continuing into the next epoch if this one ends."""
        taken: list[int] = []
        while len(taken) < n:
            if self.position == self.count:
                self._go_to(self.epoch + 1, 0)
            rows = self._rows[self.position : self.position + n - len(taken)]
            self.position += len(rows)
            taken += rows
        return taken

    def state(self) -> dict[str, Any]:
        """Returns the position as JSON values, for a checkpoint."""
        return {
            "count": self.count,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self.epoch,
            "position": self.position,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises UserError if it is of other data, another seed or other shuffling.
        """
        mine = self.state()
        for key, cure in (
            ("count", "resume with the same data"),
            ("seed", "resume with the same run.seed"),
            ("shuffle", "resume with the same data.shuffle"),
        ):
            if state.get(key) != mine[key]:
                raise UserError(
                    f"the checkpoint's order of prompts has {key} = {state.get(key)!r}, "
                    f"but this run has {mine[key]!r}; {cure}"
                )
        epoch, position = state.get("epoch"), state.get("position")
        if type(epoch) is not int or type(position) is not int or epoch < 0 or not 0 <= position <= self.count:
            raise UserError(
                f"the checkpoint's order of prompts is corrupt: epoch {epoch!r}, position {position!r} of "
                f"{self.count}; "
                "resume from another checkpoint"
            )
        self._go_to(epoch, position)
