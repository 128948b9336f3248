"""Which of the good rows become prompts, and in what order: `[selection]` of a file of configs/data/."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from r1zero.config import LocalPath, UserError
from r1zero.data import pass_rates
from r1zero.data.records import Record


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Applied in the order of these fields to the rows that are good and not too long."""

    deduplicate: bool = False
    """Keep the first of the rows with the same rendered prompt and label."""
    split: Literal["all", "train", "held_out"] = "all"
    """A row belongs to one side by a hash of its rendered prompt, whatever the other rows are."""
    held_out_share: float = 0.1
    """Share of the rows that belong to held_out."""
    pass_rates: LocalPath = ""
    """A pass_rates.jsonl that an evaluation of the same prompts wrote; a row that it lacks is left out."""
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    """Keep the rows whose pass rate is in between, both ends included."""
    sample: int = 0
    """Keep so many rows, chosen by a hash of the prompt and `seed`, in the order of the file; 0: all."""
    seed: int = 0
    limit: int = 0
    """Keep the first so many rows; 0: all."""
    order: Literal["file", "pass_rate"] = "file"
    """pass_rate: the highest pass rate first, so the easiest prompts come first (a curriculum, where data.shuffle
    is false)."""


class LeftOut(str):
    """The reason why a good row is not selected."""


Row = dict[str, Any]
Rows = Iterable[tuple[Record, Row | str]]


def check(cfg: Selection) -> None:
    """Raises UserError naming the field, its value and what is allowed."""
    for name in ("held_out_share", "min_pass_rate", "max_pass_rate"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise UserError(f"selection.{name} = {getattr(cfg, name)}; it must be between 0 and 1")
    for name in ("limit", "sample"):
        if getattr(cfg, name) < 0:
            raise UserError(f"selection.{name} = {getattr(cfg, name)}; it must be at least 0, which keeps all rows")
    if cfg.min_pass_rate > cfg.max_pass_rate:
        raise UserError(
            f"selection.min_pass_rate = {cfg.min_pass_rate} is above selection.max_pass_rate = {cfg.max_pass_rate}, so "
            "no row could be kept; lower the one or raise the other"
        )
    by_rate = [
        name
        for name, value, unset in (
            ("min_pass_rate", cfg.min_pass_rate, 0.0),
            ("max_pass_rate", cfg.max_pass_rate, 1.0),
            ("order", cfg.order, "file"),
        )
        if value != unset
    ]
    if by_rate and not cfg.pass_rates:
        raise UserError(f"selection.{by_rate[0]} needs selection.pass_rates; {pass_rates.CURE}")


def select(rows: Rows, cfg: Selection, max_prompt_tokens: int) -> Iterator[tuple[Record, Row | str]]:
    """The rows with a LeftOut in place of those that are not selected. Bad and too long rows pass as they are.

    Raises UserError where the file of pass rates is not one, or has none of these prompts.
    """
    rates = pass_rates.read(cfg.pass_rates) if cfg.pass_rates else None
    judge = _Judge(cfg, rates)
    waits = bool(cfg.sample or cfg.limit) or cfg.order != "file"
    held: list[tuple[Record, Row]] = []
    for record, row in rows:
        if isinstance(row, str) or len(row["token_ids"]) > max_prompt_tokens:
            yield record, row
        elif reason := judge.reason(row):
            yield record, LeftOut(reason)
        elif waits:
            held.append((record, row))
        else:
            yield record, row
    if rates is not None and judge.seen and not judge.found:
        raise UserError(
            f"selection.pass_rates = {cfg.pass_rates!r}: has none of these prompts; evaluate the prompts as the same "
            "tokenizer and template make them"
        )
    yield from _chosen(held, cfg, rates or {})


def _chosen(
    held: list[tuple[Record, Row]], cfg: Selection, rates: pass_rates.Rates
) -> Iterator[tuple[Record, Row | str]]:
    """Sample, limit and order, which need all rows."""
    kept = list(range(len(held)))
    if cfg.sample:
        hashes = [_share(row["text"], f"sample {cfg.seed}") for _, row in held]
        kept = sorted(sorted(kept, key=hashes.__getitem__)[: cfg.sample])
    kept = kept[: cfg.limit or None]
    left_out = set(range(len(held))) - set(kept)
    if cfg.order == "pass_rate":
        kept.sort(key=lambda i: -rates[held[i][1]["text"], held[i][1]["label"]])
    yield from (held[i] for i in kept)
    for i in sorted(left_out):
        yield held[i][0], LeftOut(f"not among the rows that sample = {cfg.sample} and limit = {cfg.limit} keep")


class _Judge:
    """What can be said of one row after the other."""

    def __init__(self, cfg: Selection, rates: pass_rates.Rates | None):
        self.cfg, self.rates = cfg, rates
        self.known: set[tuple[str, str]] = set()
        self.seen = self.found = 0

    def reason(self, row: Row) -> str:
        """Why the row is left out; empty: it is not."""
        cfg, key = self.cfg, (row["text"], row["label"])
        if cfg.deduplicate:
            if key in self.known:
                return "has the prompt and label of an earlier row"
            self.known.add(key)
        held_out = _share(row["text"], "split") < cfg.held_out_share
        if cfg.split != "all" and held_out != (cfg.split == "held_out"):
            return f"belongs to the other side of split = {cfg.split}"
        if self.rates is None:
            return ""
        self.seen += 1
        if key not in self.rates:
            return f"has no pass rate in {cfg.pass_rates}"
        self.found += 1
        rate = self.rates[key]
        inside = cfg.min_pass_rate <= rate <= cfg.max_pass_rate
        return (
            "" if inside else f"has the pass rate {rate:g}, outside of {cfg.min_pass_rate:g} to {cfg.max_pass_rate:g}"
        )


def _share(text: str, purpose: str) -> float:
    """A number from 0 to 1 that depends on the text and the purpose only."""
    digest = hashlib.blake2b(f"{purpose}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
