"""Reads the folder of a run for a report. Every file except metrics.jsonl may be missing."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1zero.config import UserError, read_json, read_text, read_toml, reason

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
    """Returns the contents of a run's folder. Raises UserError if it has no metrics, or if a file in it is corrupt."""
    file = folder / "metrics.jsonl"
    lines = [
        {name: float("nan") if value is None else value for name, value in row.items()}
        for row in _rows(file, required=True)
    ]
    if not any(line.get("iteration") for line in lines):
        raise UserError(f"{file}: contains no iteration; {CURE}")
    config = folder / "config.toml"
    environment = folder / "environment.json"
    return RunData(
        name=folder.resolve().name,
        folder=folder,
        lines=lines,
        config=dict(_flat(read_toml(str(config)), "")) if config.is_file() else {},
        samples=_rows(folder / "samples.jsonl", required=False),
        environment=read_json(environment, "remove it") if environment.is_file() else {},
        pass_rates=_pass_rates(folder / "eval"),
        lengths=_lengths(folder / "samples"),
    )


def _rows(file: Path, *, required: bool) -> list[dict[str, Any]]:
    if not required and not file.is_file():
        return []
    rows = []
    for number, line in enumerate(read_text(file, CURE).split("\n"), 1):
        if not line:
            continue
        try:
            rows.append({"iteration": 0, **json.loads(line)})
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{file}:{number}: is not a line that a run wrote ({error}); remove it") from None
    return rows


def _pass_rates(folder: Path) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    for file in folder.glob("step_*/*.pass_rates.jsonl"):
        name, match = file.name.removesuffix(".pass_rates.jsonl"), STEP.fullmatch(file.parent.name)
        if match:
            found.setdefault(name, {})[int(match[1])] = [row["pass_rate"] for row in _rows(file, required=True)]
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
