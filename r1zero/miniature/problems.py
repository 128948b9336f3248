"""Chains of digits with + and -, split by hash into parts for the corpus, for RL training, and for evaluation."""

import hashlib
import json
import operator
import random
from pathlib import Path

from r1zero.config import UserError, read_text

WHICH = "name a file of problems that `make` wrote"
MAX_TERMS = 4
MAX_TOTAL = 20
OPERATORS = {"+": operator.add, "-": operator.sub}
SHARES = {"heldout": 10, "train": 25, "corpus": 65}
"""Per cent of all expressions. Each part is drawn only from its own expressions."""


def prompt(expression: str) -> str:
    """Returns the prompt, identical in the corpus, in the data handler and in evaluation."""
    return f"Question: {expression}=?\nAssistant:\n"


def steps(expression: str) -> list[str]:
    """Returns the chain of thought, one fact per step: "7+8-3" is ["7+8=15", "15-3=12"]."""
    total = int(expression[0])
    facts = []
    for sign, digit in zip(expression[1::2], expression[2::2], strict=True):
        result = OPERATORS[sign](total, int(digit))
        facts.append(f"{total}{sign}{digit}={result}")
        total = result
    return facts


def answer(expression: str) -> str:
    """Returns the value of a chain, as text."""
    return steps(expression)[-1].partition("=")[2]


def terms(expression: str) -> int:
    """Returns the number of digits in a chain."""
    return (len(expression) + 1) // 2


def expressions() -> list[str]:
    """Returns all chains of 2 to MAX_TERMS digits whose running total stays within 0 to MAX_TOTAL: 43,829."""
    chains = {str(digit): digit for digit in range(10)}
    found: list[str] = []
    for _ in range(MAX_TERMS - 1):
        longer = {}
        for chain, total in chains.items():
            for sign, apply in OPERATORS.items():
                for digit in range(10):
                    if 0 <= (result := apply(total, digit)) <= MAX_TOTAL:
                        longer[f"{chain}{sign}{digit}"] = result
        chains = longer
        found += chains
    return found


def part(expression: str) -> str:
    """Returns the part to which an expression belongs, which depends only on its hash, not on a seed or sampling."""
    percent = int.from_bytes(hashlib.sha256(expression.encode()).digest()[:8]) % 100
    for name, share in SHARES.items():
        if percent < share:
            return name
        percent -= share
    raise AssertionError("SHARES do not add up to 100")


def split() -> dict[str, dict[int, list[str]]]:
    """Returns part -> number of terms -> expressions."""
    parts: dict[str, dict[int, list[str]]] = {name: {n: [] for n in range(2, MAX_TERMS + 1)} for name in SHARES}
    for expression in expressions():
        parts[part(expression)][terms(expression)].append(expression)
    return parts


def draw(pool: dict[int, list[str]], count: int, rng: random.Random) -> list[str]:
    """Returns `count` different expressions in random order, distributed as evenly over the lengths as possible."""
    chosen: list[str] = []
    for left, n in zip(range(len(pool), 0, -1), sorted(pool), strict=True):
        wanted = (count - len(chosen)) // left
        chosen += rng.sample(pool[n], min(wanted, len(pool[n])))
    rng.shuffle(chosen)
    return chosen


def write(path: Path, chosen: list[str]) -> None:
    """Write one row per problem: {"problem": "7+8-3", "answer": "12"}."""
    rows = (json.dumps({"problem": expression, "answer": answer(expression)}) for expression in chosen)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict[str, str]]:
    """Read a file of problems. Raises UserError for a file that `write` did not write."""
    lines = enumerate(read_text(path, WHICH).split("\n"), 1)
    rows = [_row(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not rows:
        raise UserError(f"{path}: has no problem; {WHICH}")
    return rows


def _row(line: str, where: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON: {error}; {WHICH}") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("problem", "answer")):
        raise UserError(f"{where}: has no texts under 'problem' and 'answer'; {WHICH}")
    return row
