"""Selects and orders the good rows that become prompts: the section `[selection]` of the files in configs/data/."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from r1zero.config import LocalPath, UserError
from r1zero.data import mixture, pass_rates
from r1zero.data.records import Record


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Applied in the order of these fields, to the rows that are good and not too long."""

    deduplicate: bool = False
    """Of the rows with the same rendered prompt and label, keep only the first."""
    split: Literal["all", "train", "held_out"] = "all"
    """Keep only this part of the rows. A hash of the rendered prompt decides to which part a row belongs, so that it
    does not depend on the other rows."""
    held_out_share: float = 0.1
    """Expected share of the rows that belong to held_out."""
    pass_rates: LocalPath = ""
    """A pass_rates.jsonl file that an evaluation of the same prompts wrote. A row that is not in it is left out."""
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    """Keep the rows whose pass rate is between these two values, both included."""
    sample: int = 0
    """Number of rows to keep, chosen by a hash of the prompt and `seed`. They stay in the order of the file. 0: all,
    or, if the sources have weights, as many as these permit."""
    seed: int = 0
    """Another seed chooses another sample."""
    limit: int = 0
    """Number of rows to keep, counted from the first. 0: all."""
    order: Literal["file", "pass_rate"] = "file"
    """file: the order of the input. pass_rate: descending pass rate, so that the easiest prompts come first. With
    data.shuffle = false this is a curriculum."""


class LeftOut(str):
    """The reason why a good row is not selected."""


Row = dict[str, Any]
Rows = Iterable[tuple[Record, Row | str]]


def check(cfg: Selection, weights: Mapping[str, float]) -> None:
    """Raises UserError if a field has an impossible value, or if two fields contradict each other.

    weights: those of the sources; empty if they have none.
    """
    if cfg.limit and weights:
        raise UserError(
            f"selection.limit = {cfg.limit} would keep the first rows, whatever the weights of the sources are; set "
            "selection.sample instead"
        )
    for name in ("held_out_share", "min_pass_rate", "max_pass_rate"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise UserError(f"selection.{name} = {getattr(cfg, name)}; it must be between 0 and 1")
    for name in ("limit", "sample"):
        if getattr(cfg, name) < 0:
            raise UserError(f"selection.{name} = {getattr(cfg, name)}; it must be at least 0 (0 keeps all rows)")
    if cfg.min_pass_rate > cfg.max_pass_rate:
        raise UserError(
            f"selection.min_pass_rate = {cfg.min_pass_rate} is above selection.max_pass_rate = {cfg.max_pass_rate}, so "
            "that no row would be kept; lower the former or raise the latter"
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


def select(
    rows: Rows, cfg: Selection, max_prompt_tokens: int, weights: Mapping[str, float]
) -> Iterator[tuple[Record, Row | str]]:
    """Yields every row, with a LeftOut in place of each row that is not selected.

    rows: a record and its prompt, or the reason why it has none. Bad rows, and rows whose prompt is longer than
    max_prompt_tokens, are passed through unchanged. weights: source of a row -> its weight; empty: no source has one.
    Raises UserError if cfg.pass_rates cannot be read as a file of pass rates, or if it contains none of these prompts,
    or if the weights cannot be met.
    """
    rates = pass_rates.read(cfg.pass_rates) if cfg.pass_rates else None
    judge = _Judge(cfg, rates)
    waits = bool(cfg.sample or cfg.limit or weights) or cfg.order != "file"
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
            f"selection.pass_rates = {cfg.pass_rates!r}: contains none of these prompts; evaluate prompts that were "
            "made with the same tokenizer and template"
        )
    yield from _chosen(held, cfg, rates or {}, weights)


def _chosen(
    held: list[tuple[Record, Row]], cfg: Selection, rates: pass_rates.Rates, weights: Mapping[str, float]
) -> Iterator[tuple[Record, Row | str]]:
    """Applies `sample`, the weights, `limit` and `order`, which need all rows."""
    kept = list(range(len(held)))
    if cfg.sample or weights:
        hashes = [_share(row["text"], f"sample {cfg.seed}") for _, row in held]
        kept.sort(key=hashes.__getitem__)
        kept = sorted(_of_each(kept, held, cfg, weights) if weights else kept[: cfg.sample])
    kept = kept[: cfg.limit or None]
    left_out = set(range(len(held))) - set(kept)
    if cfg.order == "pass_rate":
        kept.sort(key=lambda i: -rates[held[i][1]["text"], held[i][1]["label"]])
    yield from (held[i] for i in kept)
    for i in sorted(left_out):
        by = "the weights of the sources and " if weights else ""
        yield held[i][0], LeftOut(f"is not among the rows kept by {by}sample = {cfg.sample} and limit = {cfg.limit}")


def _of_each(
    order: list[int], held: list[tuple[Record, Row]], cfg: Selection, weights: Mapping[str, float]
) -> list[int]:
    """Returns the first rows in `order` of each source, as many as its weight permits."""
    source = [row["dataset"] for _, row in held]
    left = mixture.quotas(Counter(source), weights, cfg.sample)
    kept = []
    for i in order:
        if left[source[i]]:
            left[source[i]] -= 1
            kept.append(i)
    return kept


class _Judge:
    """Applies the fields for which each row can be decided when it is read."""

    def __init__(self, cfg: Selection, rates: pass_rates.Rates | None):
        self.cfg, self.rates = cfg, rates
        self.known: set[tuple[str, str]] = set()
        self.seen = self.found = 0

    def reason(self, row: Row) -> str:
        """Returns why the row is left out, or an empty text if it is not."""
        cfg, key = self.cfg, (row["text"], row["label"])
        if cfg.deduplicate:
            if key in self.known:
                return "has the same prompt and label as an earlier row"
            self.known.add(key)
        held_out = _share(row["text"], "split") < cfg.held_out_share
        if cfg.split != "all" and held_out != (cfg.split == "held_out"):
            return f"does not belong to split = {cfg.split}"
        if self.rates is None:
            return ""
        self.seen += 1
        if key not in self.rates:
            return f"has no pass rate in {cfg.pass_rates}"
        self.found += 1
        rate = self.rates[key]
        inside = cfg.min_pass_rate <= rate <= cfg.max_pass_rate
        return "" if inside else f"has the pass rate {rate:g}, not in {cfg.min_pass_rate:g} to {cfg.max_pass_rate:g}"


def _share(text: str, purpose: str) -> float:
    """Returns a number from 0 to 1 that depends only on the text and the purpose."""
    digest = hashlib.blake2b(f"{purpose}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
