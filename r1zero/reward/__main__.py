"""Grade a file: `python -m r1zero.reward FILE.jsonl --rules base_acc,acc [--deadline S] [--memory MIB]`.

Each line of FILE is an object with a text `response` and a text or number `label`. For rules of your own it may also
have a text `prompt` and an object `additional`. For each line, one line of JSON is written to standard output:

    {"outcome": "scored", "equal": true, "scores": {"base_acc": 1.0, "acc": 1.0}, "ms": 0.4}

`outcome` is scored, timeout or failed. `equal` tells whether the last box equals the label, regardless of the format
(null unless scored). `ms` is the time in the worker. Workers and limits are those of training. Everything else goes to
standard error. The exit status is 0, or 2 if the rules or the file cannot be used.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1zero.config.errors import RewardError
from r1zero.reward.scorer import MEMORY_MIB, Score, Scorer

_BATCH = 1000
_INTERRUPTED, _CLOSED = 130, 141  # what a shell reports for SIGINT and SIGPIPE


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m r1zero.reward", description="Grade responses against labels.")
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help='lines of {"response": ..., "label": ...}')
    parser.add_argument("--rules", default="base_acc", help="names separated by commas, or path.py:function")
    parser.add_argument("--deadline", type=float, default=5.0, metavar="S", help="seconds to grade one response")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="number of grading processes")
    parser.add_argument("--memory", type=int, default=MEMORY_MIB, metavar="MIB", help="memory of a grading process")
    options = parser.parse_args(arguments)
    try:
        with Scorer(
            dict.fromkeys(options.rules.split(","), 1.0), options.workers, options.deadline, options.memory
        ) as scorer:
            grade_file(options.file, scorer)
    except RewardError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has ended. Without this, closing standard output would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED
    return 0


def grade_file(path: Path, scorer: Scorer) -> None:
    """Write one JSON line to standard output for each line of the file.

    Raises:
        RewardError: a rule or a line cannot be used. Everything before it was graded and written.
    """
    rows = enumerate(read_rows(path))
    while batch := list(itertools.islice(rows, _BATCH)):
        for key, row in batch:
            scorer.submit(key, *row)
        for score in scorer.collect().values():
            sys.stdout.write(json.dumps(as_json(score)) + "\n")
        sys.stdout.flush()


def as_json(score: Score) -> dict[str, object]:
    """Returns a score as the fields of an output line."""
    return {"outcome": score.outcome, "equal": score.equal, "scores": score.scores, "ms": round(score.ms, 3)}


class _Number(str):
    """A number of the file as text, because a label may be a number."""


def read_rows(path: Path) -> Iterator[tuple[str, str, str, dict[str, Any] | None]]:
    """Yields (response, label, prompt, additional) for each line that is not blank. A byte-order mark is skipped.

    Raises:
        RewardError: with the file and the line.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogatepass", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _read_row(f"{path}:{number}", line)
    except (OSError, UnicodeError) as error:
        raise RewardError(f"{path} cannot be read: {error}") from error


def _read_row(where: str, line: str) -> tuple[str, str, str, dict[str, Any] | None]:
    try:
        row = json.loads(line, parse_int=_Number, parse_float=_Number)
    except (ValueError, RecursionError) as error:
        raise RewardError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(row, dict):
        raise RewardError(f'{where}: the line must be an object with the text fields "response" and "label"')
    fields: dict[str, Any] = {"response": None, "label": None, "prompt": "", "additional": None} | row
    for name, kinds in (("response", "text"), ("label", "text or number"), ("prompt", "text")):
        value = fields[name]
        if not isinstance(value, str) or (isinstance(value, _Number) and "number" not in kinds):
            raise RewardError(f'{where}: the line must have the {kinds} "{name}"')
    if not isinstance(fields["additional"], dict | None):
        raise RewardError(f'{where}: "additional" must be an object')
    return fields["response"], str(fields["label"]), fields["prompt"], fields["additional"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
