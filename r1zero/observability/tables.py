"""Rows of responses as Parquet files, which pandas and pyarrow read: a folder of them reads as one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1zero.config import UserError, reason


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same columns, compressed. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(list(rows)), aside, compression="zstd")
    aside.replace(path)


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of several files. Raises UserError for a file that is torn."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: is torn or not Parquet ({reason(error)}); remove it") from None
    return rows
