"""The committed pairs and labels."""

import csv
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[1] / "inputs" / "reward"


class Pair(NamedTuple):
    category: str
    right: bool
    label: str
    answer: str


def read_pairs(name: str = "pairs.tsv") -> list[Pair]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [Pair(category, verdict == "right", label, answer) for category, verdict, label, answer in rows]


def read_labels() -> list[tuple[str, int, str]]:
    """(data set, how often, label)"""
    with (DATA / "labels.tsv").open(encoding="utf-8", newline="") as file:
        return [(name, int(n), label) for name, n, label in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def forget() -> None:
    """Empties every cache of a decision, ours and math-verify's."""
    from math_verify.parser import extract_latex, parse_latex_cached

    from r1zero.reward.equality import answers, leaves, meaning, numerals, solver

    for cached in (
        answers._tidied,
        meaning.read,
        leaves.tree_of,
        solver.parse,
        numerals.numeral,
        extract_latex,
        parse_latex_cached,
    ):
        cached.cache_clear()
