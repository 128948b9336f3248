"""What a run's folder says of it, read for people: every part may be missing except metrics.jsonl."""

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
"""Iterations and values."""

CURE = "name the folder of a run that has finished an iteration, such as runs/quickstart"
STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class RunData:
    name: str
    folder: Path
    lines: list[Line]
    """metrics.jsonl; iteration 0 is an evaluation before the first iteration."""
    config: dict[str, str]
    """section.key -> value as TOML has it; empty where config.toml is missing."""
    samples: list[dict[str, Any]]
    environment: dict[str, str]
    pass_rates: dict[str, dict[int, list[float]]]
    """Evaluated set -> iteration -> each prompt's pass rate."""
    lengths: dict[int, list[int]]
    """Iteration -> tokens of each response, where metrics.dump kept them all."""

    def curve(self, name: str) -> Curve:
        """Where the figure is there and finite."""
        points = [(line["iteration"], line[name]) for line in self.lines if isfinite(line.get(name, float("nan")))]
        return [x for x, _ in points], [y for _, y in points]

    def names(self, pattern: str) -> list[str]:
        """Figures whose whole name matches, in order of appearance."""
        every = dict.fromkeys(name for line in self.lines for name in line)
        return [name for name in every if re.fullmatch(pattern, name)]

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """Iteration at which each alarm began, and its kind."""
        found, before = [], set[str]()
        for line in self.lines:
            now = {name.removeprefix("alarm/") for name in line if name.startswith("alarm/")}
            found += [(int(line["iteration"]), kind) for kind in sorted(now - before)]
            before = now
        return found

    @property
    def saves(self) -> list[int]:
        """Iterations after which a checkpoint was saved; its time is part of the iteration after."""
        found = [int(line["iteration"]) - 1 for line in self.lines if line.get("timing/save")]
        kept = (STEP.fullmatch(path.name) for path in (self.folder / "checkpoints").glob("step_*"))
        return sorted({*found, *(int(match[1]) for match in kept if match)})


def read(folder: Path) -> RunData:
    """Raises UserError where the folder has no metrics, or a file of it is damaged."""
    file = folder / "metrics.jsonl"
    lines = [
        {name: float("nan") if value is None else value for name, value in row.items()}
        for row in _rows(file, required=True)
    ]
    if not any(line.get("iteration") for line in lines):
        raise UserError(f"{file}: holds no iteration; {CURE}")
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
            raise UserError(f"{file}:{number}: is no line of a run ({error}); remove it") from None
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
            raise UserError(f"{file}: is torn or not Parquet ({reason(error)}); remove it") from None
        found.setdefault(int(file.parent.name.removeprefix("iteration_")), []).extend(column)
    return dict(sorted(found.items()))


def flat_config(tree: dict[str, Any]) -> dict[str, str]:
    """section.key -> value as JSON."""
    return dict(_flat(tree, ""))


def _flat(tree: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(tree, ensure_ascii=False)
