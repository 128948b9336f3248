"""Reads the folder of a run for a report. Every file except metrics.jsonl may be missing."""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1zero.config import UserError, read_json, read_text, read_toml, reason

log = logging.getLogger(__name__)

Line = dict[str, float]
Curve = tuple[list[float], list[float]]
"""Iterations, and the value of each."""

CURE = "name the folder of a run that has finished an iteration, such as runs/quickstart"
STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class RunData:
    """The contents of a run's folder."""

    name: str
    folder: Path
    lines: list[Line]
    """The lines of metrics.jsonl. Iteration 0 is the evaluation before the first iteration."""
    config: dict[str, str]
    """section.key -> value as JSON; empty if config.toml is missing."""
    samples: list[dict[str, Any]]
    """The lines of samples.jsonl; empty if it is missing."""
    environment: dict[str, str]
    """The contents of environment.json; empty if it is missing."""
    pass_rates: dict[str, dict[int, list[float]]]
    """Evaluated set -> iteration -> pass rate of each prompt."""
    lengths: dict[int, list[int]]
    """Iteration -> length of each response in tokens; empty unless the run had metrics.dump = "all"."""

    def curve(self, name: str) -> Curve:
        """Returns the curve of one metric, without the iterations in which it is missing or not finite."""
        points = [(line["iteration"], line[name]) for line in self.lines if isfinite(line.get(name, float("nan")))]
        return [x for x, _ in points], [y for _, y in points]

    def names(self, pattern: str) -> list[str]:
        """Returns the metrics whose full name matches a regular expression, in order of first appearance."""
        every = dict.fromkeys(name for line in self.lines for name in line)
        return [name for name in every if re.fullmatch(pattern, name)]

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """The iteration at which each alarm began, and its kind."""
        found, before = [], set[str]()
        for line in self.lines:
            now = {name.removeprefix("alarm/") for name in line if name.startswith("alarm/")}
            found += [(int(line["iteration"]), kind) for kind in sorted(now - before)]
            before = now
        return found

    @property
    def saves(self) -> list[int]:
        """The iterations after which a checkpoint was saved. The time of a save counts for the following iteration."""
        found = [int(line["iteration"]) - 1 for line in self.lines if line.get("timing/save")]
        kept = (STEP.fullmatch(path.name) for path in (self.folder / "checkpoints").glob("step_*"))
        return sorted({*found, *(int(match[1]) for match in kept if match)})


def read(folder: Path) -> RunData:
    """Returns the contents of a run's folder. Raises UserError if it has no metrics, or if a file in it is corrupt.

    Lines that lack a field or hold text instead of a number are skipped, and counted in one warning.
    """
    file, skipped = folder / "metrics.jsonl", Counter[Path]()
    lines = [
        {name: float("nan") if value is None else value for name, value in row.items()}
        for row in _rows(file, _is_metrics, skipped)
    ]
    if not any(line.get("iteration") for line in lines):
        raise UserError(f"{file}: contains no iteration; {CURE}")
    samples = _rows(folder / "samples.jsonl", _is_sample, skipped) if (folder / "samples.jsonl").is_file() else []
    pass_rates = _pass_rates(folder / "eval", skipped)
    if skipped:
        counts = ", ".join(f"{path.relative_to(folder)}: {count}" for path, count in skipped.items())
        message = "%s: skipped %d lines that lack a field or hold text instead of a number (%s)"
        log.warning(message, folder, skipped.total(), counts)
    config = folder / "config.toml"
    environment = folder / "environment.json"
    return RunData(
        name=folder.resolve().name,
        folder=folder,
        lines=lines,
        config=dict(_flat(read_toml(str(config)), "")) if config.is_file() else {},
        samples=samples,
        environment=read_json(environment, "remove it") if environment.is_file() else {},
        pass_rates=pass_rates,
        lengths=_lengths(folder / "samples"),
    )


def _is_number(value: object) -> bool:
    """Returns whether a value from JSON is a number that fits a float. NaN and infinity count as numbers."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _is_metrics(row: dict[str, Any]) -> bool:
    return type(row.get("iteration")) is int and all(value is None or _is_number(value) for value in row.values())


def _is_sample(row: dict[str, Any]) -> bool:
    texts = all(isinstance(row.get(name), str) for name in ("prompt", "response", "label"))
    reward = "reward" in row and (row["reward"] is None or _is_number(row["reward"]))
    return texts and reward and type(row.get("iteration")) is int


def _is_pass_rate(row: dict[str, Any]) -> bool:
    return _is_number(row.get("pass_rate"))


def _rows(file: Path, is_valid: Callable[[dict[str, Any]], bool], skipped: Counter[Path]) -> list[dict[str, Any]]:
    """Returns the valid lines of a file, and adds the number of the others to `skipped`."""
    rows = []
    for number, line in enumerate(read_text(file, CURE).split("\n"), 1):
        if not line:
            continue
        try:
            row = dict[str, Any](**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{file}:{number}: is not a line that a run wrote ({error}); remove it") from None
        if is_valid(row):
            rows.append(row)
        else:
            skipped[file] += 1
    return rows


def _pass_rates(folder: Path, skipped: Counter[Path]) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    for file in folder.glob("step_*/*.pass_rates.jsonl"):
        name, match = file.name.removesuffix(".pass_rates.jsonl"), STEP.fullmatch(file.parent.name)
        rates = [row["pass_rate"] for row in _rows(file, _is_pass_rate, skipped)] if match else []
        if match and rates:
            found.setdefault(name, {})[int(match[1])] = rates
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def _lengths(folder: Path) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for file in sorted(folder.glob("iteration_*/engine_*.parquet")):
        try:
            column = pq.read_table(file, columns=["length"])["length"].to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: is not a readable Parquet file ({reason(error)}); remove it") from None
        found.setdefault(int(file.parent.name.removeprefix("iteration_")), []).extend(column)
    return dict(sorted(found.items()))


def flat_config(tree: dict[str, Any]) -> dict[str, str]:
    """Returns section.key -> value as JSON, for a config as nested dicts."""
    return dict(_flat(tree, ""))


def _flat(tree: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(tree, ensure_ascii=False)
