"""Rows of JSON, JSONL and Parquet files, each with its place; a row that cannot be read costs only itself."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from r1zero.config import UserError


class Record(NamedTuple):
    file: Path
    line: int
    """From 1; of a Parquet file the row."""
    value: dict[str, Any] | None
    problem: str
    """Why there is no value; empty where there is one."""
    progress: float
    """Share of the file that has been read."""
    element: int = 0
    """Number in a JSON list, from 1; 0 in other files."""

    @property
    def source(self) -> str:
        return f"{self.file}:{self.line}" + (f" (element {self.element})" if self.element else "")


def files(path: str) -> list[Path]:
    """A data file, or all data files of a folder in order of name. Raises UserError where there is none."""
    root = Path(path)
    found = sorted(p for p in root.iterdir() if p.suffix in READERS) if root.is_dir() else [root]
    if not found or not all(p.is_file() for p in found):
        raise UserError(
            f"input = {path!r}: there is no such file, or a folder without {', '.join(READERS)}; name the data to read"
        )
    if root.suffix not in READERS and not root.is_dir():
        raise UserError(f"input = {path!r}: the name ends in {root.suffix!r}; it must end in {', '.join(READERS)}")
    return found


def read(path: Path) -> Iterator[Record]:
    """The rows of one file in order. Raises UserError where the file as a whole is torn or of another kind."""
    try:
        yield from READERS[path.suffix](path)
    except OSError as error:
        # Arrow tells of a torn footer in an OSError of several lines.
        raise UserError(f"{path}: cannot be read ({error.strerror or str(error).splitlines()[0]}); copy it again") from None


def _lines(path: Path) -> Iterator[Record]:
    size, done = max(path.stat().st_size, 1), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            done += len(line)
            if line.strip():
                value, problem = _parse((line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n"))
                yield Record(path, number, value, problem, done / size)


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        return _object(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}"
    except json.JSONDecodeError as error:
        return None, f"is not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested thousands deep
        return None, f"is not JSON that can be read: {error}"


def _object(value: Any) -> tuple[dict[str, Any] | None, str]:
    if isinstance(value, dict):
        return value, ""
    return None, f"is a JSON {type(value).__name__}; a row is an object"


def _json(path: Path) -> Iterator[Record]:
    """A list of objects; a file that begins with an object is read as lines, as many a .json file is written."""
    with path.open("rb") as file:
        if file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            yield from _lines(path)
            return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: is not UTF-8; save the file as UTF-8") from None
    yield from _elements(path, text)


def _elements(path: Path, text: str) -> Iterator[Record]:
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at = _skip_space(text, 0)
    if not text.startswith("[", at):
        raise UserError(f"{path}: holds neither a JSON list nor an object a line; write the rows as a list of objects")
    at, number = _skip_space(text, at + 1), 0
    closed = text.startswith("]", at)
    while not closed:
        number, line, counted = number + 1, line + text.count("\n", counted, at), at
        where = f"{path}:{line} (element {number})"
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: is not JSON: {error}; mend it: in a torn list the later rows cannot be told apart"
            ) from None
        yield Record(path, line, *_object(value), at / len(text), number)
        at = _skip_space(text, at)
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            raise UserError(
                f"{where}: is followed by neither a comma nor the end of the list; the file is torn or needs mending"
            )
        at = _skip_space(text, at + 1)
    if text[at + (number == 0) :].strip():
        raise UserError(f"{path}: goes on after the end of its list; keep one list a file")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _parquet(path: Path) -> Iterator[Record]:
    try:
        with pa.parquet.ParquetFile(path) as file:
            number, total = 0, max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=1024):
                for i in range(batch.num_rows):
                    number += 1
                    yield Record(path, number, *_row(batch, i), number / total)
    except (
        pa.ArrowException,
        ValueError,
        OverflowError,
    ) as error:  # a torn file may even spell its columns in no UTF-8
        raise UserError(
            f"{path}: is torn or not Parquet ({(str(error) or type(error).__name__).splitlines()[0]}); copy it again"
        ) from None


def _row(batch: pa.RecordBatch, i: int) -> tuple[dict[str, Any] | None, str]:
    try:
        return {name: column[i].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}, ""
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python cannot hold
        return None, f"cannot be read: {error}"


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {".json": _json, ".jsonl": _lines, ".parquet": _parquet}
