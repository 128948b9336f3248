"""Reads and writes rows as Parquet files. pandas and pyarrow can read a folder of such files as one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1zero.config import UserError, reason


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, which all have the same columns, to a compressed file. It appears only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(list(rows)), aside, compression="zstd")
    aside.replace(path)


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns the rows of several files, in order. Raises UserError if a file cannot be read or is corrupt."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: is not a readable Parquet file ({reason(error)}); remove it") from None
    return rows
