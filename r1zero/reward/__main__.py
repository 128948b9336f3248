"""Grade a file: `python -m r1zero.reward FILE.jsonl --rules base_acc,acc [--deadline S]`.

Each line of FILE is an object with `response` and `label`. Standard output gets one line of JSON for each, in order:

    {"outcome": "scored", "equal": true, "scores": {"base_acc": 1.0, "acc": 1.0}, "ms": 0.4}

`outcome` is scored, timeout or failed; `equal` says whether the last box equals the label, format aside (null unless
scored); `ms` is the time in the worker. Workers and limits are those of training. Everything else goes to standard
error; the exit status is 0, or 2 where the rules or the file are not usable.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from r1zero.reward.score import RewardError, Score, Scorer

_BATCH = 1000
_INTERRUPTED, _CLOSED = 130, 141  # what a shell reports for SIGINT and SIGPIPE


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m r1zero.reward", description="Grade responses against labels.")
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help='lines of {"response": ..., "label": ...}')
    parser.add_argument("--rules", default="base_acc", help="names with commas between, or path.py:function")
    parser.add_argument("--deadline", type=float, default=5.0, metavar="S", help="seconds for one response")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="grading processes")
    options = parser.parse_args(arguments)
    try:
        grade_file(options.file, options.rules.split(","), options.workers, options.deadline)
    except RewardError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; closing must not fail again
        return _CLOSED
    return 0


def grade_file(path: Path, rules: list[str], workers: int, deadline_s: float) -> None:
    """Writes one JSON line to standard output for each line of the file.

    Raises:
        RewardError: a rule or a line that cannot be used; what came before it is graded and written.
    """
    with Scorer(dict.fromkeys(rules, 1.0), workers, deadline_s) as scorer:
        rows = enumerate(read_rows(path))
        while batch := list(itertools.islice(rows, _BATCH)):
            for key, (response, label) in batch:
                scorer.submit(key, response, label)
            for score in scorer.collect().values():
                sys.stdout.write(json.dumps(as_json(score)) + "\n")
            sys.stdout.flush()


def as_json(score: Score) -> dict[str, object]:
    return {"outcome": score.outcome, "equal": score.equal, "scores": score.scores, "ms": round(score.ms, 3)}


def read_rows(path: Path) -> Iterator[tuple[str, str]]:
    """(response, label) of each line that is not blank.

    Raises:
        RewardError: naming the file and the line.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _read_row(f"{path}:{number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"{path} cannot be read: {error}") from error


def _read_row(where: str, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RewardError(f"{where}: not a line of JSON: {error}") from error
    for name in ("response", "label"):
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            raise RewardError(f'{where}: the line must be an object with the text field "{name}"')
    return row["response"], row["label"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
