"""Rows of responses as Parquet files, which pandas and pyarrow read: a folder of them reads as one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same columns, compressed. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(list(rows)), aside, compression="zstd")
    aside.replace(path)
