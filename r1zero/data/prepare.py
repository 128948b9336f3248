"""What preprocess.py does: turns rows into examples, prompts and token ids, and replaces the output in one step."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from r1zero.config import UserError, suggest
from r1zero.data import encoders, fields, handlers, records, selection, store, tokenizer
from r1zero.data.data_config import DataConfig, parts
from r1zero.data.handlers import Example
from r1zero.data.records import Record
from r1zero.data.selection import LeftOut

PERCENTILES = (0, 50, 90, 99, 100)
SHOWN = 10
"""Number of bad rows that are printed; rejected.jsonl has them all."""
_BATCH_ROWS = 1024

Row = dict[str, Any]
"""Column of store.schema -> value."""


@dataclass
class Counts:
    """Numbers of rows, by what became of them."""

    rows: int = 0
    kept: int = 0
    too_long: int = 0
    bad: int = 0
    left_out: int = 0
    """Good rows that `[selection]` does not keep."""


@dataclass
class Report:
    """The result of preprocessing, for the user."""

    counts: Counts = field(default_factory=Counts)
    lengths: list[int] = field(default_factory=list)
    """Number of tokens of every prompt, including those that were too long."""
    complaints: list[str] = field(default_factory=list)
    """The first bad rows, with location and reason."""
    stop_token_ids: list[int] = field(default_factory=list)
    by_source: Counter[str] = field(default_factory=Counter)
    """Number of prompts kept of each of several sources."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user about things that are not errors."""

    def percentiles(self) -> dict[str, int]:
        """Returns nearest-rank percentiles of the prompts' numbers of tokens."""
        values = np.percentile(self.lengths, PERCENTILES, method="inverted_cdf")
        return {f"p{p}": int(v) for p, v in zip(PERCENTILES, values, strict=True)}


Progress = Callable[[Path, float, Counts], None]
"""Called with the file, the share of it that was read, and the counts so far."""


def prepare(cfg: DataConfig, progress: Progress) -> Report:
    """Preprocess one data set. Raises UserError, in which case nothing was written."""
    if cfg.max_prompt_tokens < 1:
        raise UserError(f"max_prompt_tokens = {cfg.max_prompt_tokens}; it must be at least 1")
    every = {name: Examples(part) for name, part in parts(cfg).items()}
    weights = {name: one.weight for name, one in cfg.sources.items() if one.weight is not None}
    selection.check(cfg.selection, weights)
    files = {name: records.files(examples.cfg.input) for name, examples in every.items()}
    encoder = encoders.find(cfg.tokenizer, _how(cfg))
    additional = next(iter(every.values())).additional
    with store.replaced(cfg.output) as folder:
        report = Report(stop_token_ids=encoder.stop_token_ids, notes=encoder.notes)
        all_rows = (
            (record, _row(record, examples, encoder, name))
            for name, examples in every.items()
            for record in _watched(files[name], report, progress)
        )
        rows = selection.select(all_rows, cfg.selection, cfg.max_prompt_tokens, weights)
        schema = store.schema(additional, has_sources=len(every) > 1)
        _write(folder, schema, cfg.max_prompt_tokens, rows, report)
        _check_columns(list(every.values()))
        _check_kept(cfg, report)
        _write_meta(folder, cfg, encoder, [file for some in files.values() for file in some], report)
    return report


def _how(cfg: DataConfig) -> encoders.How:
    return encoders.How(
        cfg.templates, cfg.template, cfg.enable_thinking, cfg.template_arguments, cfg.allow_special_tokens
    )


def _check_columns(every: list["Examples"]) -> None:
    """Raises UserError about a configured column that no row has. An additional column may be in any of the sources."""
    additional = "dataset_additional_keys"
    nowhere = set.intersection(*(examples.unseen[additional] for examples in every))
    _refuse_columns(additional, nowhere, every)
    for examples in every:
        for name, columns in examples.unseen.items():
            if name != additional:
                _refuse_columns(name, columns, [examples])


def _refuse_columns(name: str, missing: set[str], where: list["Examples"]) -> None:
    if missing and any(examples.rows for examples in where):
        inputs = " or ".join(examples.cfg.input for examples in where)
        column = min(missing)
        hint = suggest(column, sorted(set[str]().union(*(examples.columns for examples in where))), "column")
        raise UserError(f"{name}: no row of {inputs} has a column {column!r}; {hint}")


def _check_kept(cfg: DataConfig, report: Report) -> None:
    """Raises UserError if no row was kept, or none of a source."""
    if report.counts.kept:
        for name, one in cfg.sources.items():
            if len(cfg.sources) > 1 and not report.by_source[name]:
                raise UserError(
                    f"sources.{name}.input = {one.input!r}: none of its rows is kept; preprocess it alone to see "
                    "why, or remove it"
                )
        return
    why = "; the files are empty"
    if report.counts.left_out:
        why = f": [selection] leaves out all {report.counts.left_out} good ones"
    elif report.complaints:
        why = f", the first because {report.complaints[0]}"
    elif report.lengths:
        why = f", all over max_prompt_tokens = {cfg.max_prompt_tokens}; the shortest has {min(report.lengths)}"
    field, rows = (f"input = {cfg.input!r}", "its") if cfg.input else ("sources", "their")
    raise UserError(f"{field}: none of {rows} {report.counts.rows} rows is kept{why}")


class Examples:
    """Turns records into examples, and notes which columns occur: a column that no row has is a misspelt name."""

    def __init__(self, cfg: DataConfig):
        self.cfg = cfg
        self.handler = handlers.find(cfg.handler)
        # "labels" is the reference's name for the label, which is always kept.
        self.additional = tuple(key for key in cfg.dataset_additional_keys if key != "labels")
        if cfg.map_keys is None:
            raise UserError(f"map_keys is missing and has no default (it says which columns of {cfg.input} to read)")
        self.keys = keys = cfg.map_keys
        self.unseen = {
            "dataset_additional_keys": set(self.additional),
            "map_keys.solution": {keys.solution} - {""},
            "map_keys.query": {keys.query} - {""},
            "map_keys.system": {keys.system} - {""},
            "map_keys.history": {keys.history} - {""},
        }
        self.rows, self.columns = 0, set[str]()

    def of(self, record: Record) -> Example | str:
        """Returns the example, or why the row is bad."""
        if record.problem:
            return record.problem
        self.rows += 1
        self.columns.update(map(str, record.value) if isinstance(record.value, dict) else ())
        for wanted in self.unseen.values():
            wanted -= {column for column in wanted if self._has(record.value, column)}
        return handlers.apply(self.handler, record.value, self.keys)

    def _has(self, value: Any, column: str) -> bool:
        try:
            return isinstance(value, dict) and (column in value or fields.lookup(value, column) is not None)
        except ValueError:
            return False

    def kept(self, record: Record) -> dict[str, str | None]:
        """Returns the additional columns as texts. Raises ValueError if one cannot be encoded as UTF-8."""
        values = {key: fields.lookup(record.value, key) for key in self.additional}
        texts = {key: _spelt(v) for key, v in values.items()}
        for value in texts.values():
            (value or "").encode("utf-8")
        return texts


def _spelt(value: Any) -> str | None:
    found = fields.as_text(value)
    return json.dumps(value, default=str) if found is None and value is not None else found


def _watched(files: list[Path], report: Report, progress: Progress) -> Iterator[Record]:
    for file in files:
        for record in records.read(file):
            report.counts.rows += 1
            yield record
            if report.counts.rows % 64 == 0:
                progress(file, record.progress, report.counts)
        progress(file, 1.0, report.counts)


def _write(
    folder: Path, schema: pa.Schema, max_prompt_tokens: int, rows: Iterator[tuple[Record, Row | str]], report: Report
) -> None:
    """Write the rows that are kept to prompts.arrow, the others with the reason to rejected.jsonl, and count them."""
    counts, batch = report.counts, []
    with (
        pa.OSFile(str(folder / store.PROMPTS), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        (folder / store.REJECTED).open("w", encoding="utf-8") as rejected,
    ):
        for record, row in rows:
            reason = row if isinstance(row, str) else ""
            if isinstance(row, LeftOut):
                counts.left_out += 1
            elif isinstance(row, str):
                counts.bad += 1
                report.complaints += [f"{record.source} {row}"] if len(report.complaints) < SHOWN else []
            elif len(row["token_ids"]) > max_prompt_tokens:
                counts.too_long += 1
                reason = f"its prompt has {len(row['token_ids'])} tokens, over max_prompt_tokens = {max_prompt_tokens}"
            else:
                counts.kept += 1
                report.by_source[row.get("dataset", "")] += 1
                batch.append(row)
            if reason:
                rejected.write(json.dumps({"source": record.source, "reason": reason}) + "\n")
            if not isinstance(row, str):
                report.lengths.append(len(row["token_ids"]))
            if len(batch) == _BATCH_ROWS:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def _row(record: Record, examples: Examples, encoder: encoders.Encoder, dataset: str) -> Row | str:
    example = examples.of(record)
    if isinstance(example, str):
        return example
    try:
        additional = examples.kept(record)
    except (ValueError, RecursionError) as error:
        return f"dataset_additional_keys: {error}"
    try:
        token_ids, text = encoder.encode(example)
    except ValueError as error:  # a chat template may refuse what others take
        return str(error)
    row = {"token_ids": token_ids, "text": text, "label": example.label, "source": record.source, "dataset": dataset}
    return row | {"additional": additional} if additional else row


def _write_meta(folder: Path, cfg: DataConfig, encoder: encoders.Encoder, files: list[Path], report: Report) -> None:
    prompts = folder / store.PROMPTS
    meta = {
        "format": store.FORMAT,
        "inspect": store.inspect_command(cfg.output),
        "rows": report.counts.kept,
        "counts": dataclasses.asdict(report.counts),
        "tokens": report.percentiles(),
        "longest_prompt": max(length for length in report.lengths if length <= cfg.max_prompt_tokens),
        "max_prompt_tokens": cfg.max_prompt_tokens,
        "tokenizer": {"path": cfg.tokenizer, "digest": tokenizer.digest(cfg.tokenizer)},
        "template": {"path": os.path.abspath(encoder.path), "name": cfg.template, "digest": encoder.digest},
        "stop_words": list(encoder.stop_words),
        "stop_token_ids": report.stop_token_ids,
        "datasets": dict(report.by_source) if len(cfg.sources) > 1 else {},
        "sources": [{"path": os.path.abspath(file), "sha256": store.file_digest(file)} for file in files],
        "config": dataclasses.asdict(cfg),
        "bytes": prompts.stat().st_size,
        "sha256": store.file_digest(prompts),
    }
    # The working directory may contain bytes that are not UTF-8. They are written as \udcXX, which JSON can read.
    content = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
    (folder / store.META).write_text(content, encoding="utf-8", errors="backslashreplace")
