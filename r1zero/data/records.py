"""Reads the rows of JSON, JSONL, Parquet and Arrow files with their location.

An unreadable row is reported and skipped. A folder that `save_to_disk` of the library datasets wrote is read with
pyarrow alone.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from r1zero.config import UserError, check_utf8, read_json, read_text, readable, reason

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Record(NamedTuple):
    """One row of a data file, with its location."""

    file: Path
    line: int
    """Line number, from 1; in a Parquet or Arrow file the row number."""
    value: Any
    """The row, usually an object; None if it cannot be read."""
    problem: str
    """Why the row cannot be read; empty if it can."""
    progress: float
    """Share of the file that has been read, from 0 to 1."""
    element: int = 0
    """Position in a JSON list, from 1; 0 in other files."""

    @property
    def source(self) -> str:
        return f"{self.file}:{self.line}" + (f" (element {self.element})" if self.element else "")


def files(path: str) -> list[Path]:
    """Returns a data file, or all data files of a folder sorted by name, without hidden ones.

    Of a saved data set of the library datasets, these are the files that it consists of, in its order. Raises UserError
    if there is none.
    """
    root, kinds = Path(path), ", ".join(READERS)
    with readable(f"input = {path!r}", "name the data to read"):
        if not root.is_dir():
            return [_data_file(path)]
        if all((root / name).is_file() for name in ("state.json", "dataset_info.json")):
            return _saved_files(root)
        inside = sorted(p for p in root.iterdir() if not p.name.startswith("."))
        found = [p for p in inside if p.suffix in READERS and not p.is_dir()]
        folders = ", ".join(repr(p.name) for p in inside if p.is_dir())
    if not found or (root / "dataset_dict.json").is_file():  # the latter has a folder for each split
        cure = f"name one of its folders: {folders}" if folders else "name the data to read"
        raise UserError(f"input = {path!r}: is a folder without {kinds} files of its own; {cure}")
    for file in found:
        check_utf8(str(file), repr(str(file)))
    return found


def _saved_files(root: Path) -> list[Path]:
    """Returns the files of a saved data set. Raises UserError if they are not all there."""
    cure = "save the data set again with save_to_disk"
    state = read_json(root / "state.json", cure)
    entries = state.get("_data_files") if isinstance(state, dict) else None
    listed = [one.get("filename") for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    names = [name for name in listed if isinstance(name, str) and (root / name).is_file()]
    if not names or len(names) < len(listed):
        raise UserError(f"{root / 'state.json'}: lists no files, or files that are missing; {cure}")
    if state.get("_indices_data_files"):  # written by versions of datasets before 2.0
        raise UserError(f"{root}: selects rows by an index; call flatten_indices() and {cure}")
    return [root / name for name in names]


def _data_file(path: str) -> Path:
    file, kinds = Path(path), ", ".join(READERS)
    if not file.is_file():
        raise UserError(f"input = {path!r}: there is no such file or folder; name a {kinds} file, or a folder of them")
    if file.suffix not in READERS:
        raise UserError(f"input = {path!r}: the name ends in {file.suffix!r}; it must end in {kinds}")
    return file


def read(path: Path) -> Iterator[Record]:
    """Yields the rows of one file in order. Raises UserError if the file as a whole is corrupt or of another kind."""
    with readable(path, "copy it again"):  # Arrow also reports a damaged footer as an OSError
        yield from READERS[path.suffix](path)


def _lines(path: Path) -> Iterator[Record]:
    size, done = max(path.stat().st_size, 1), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            done += len(line)
            if line.strip():
                value, problem = _parse((line.removeprefix(BOM_UTF8) if number == 1 else line).rstrip(b"\r\n"))
                yield Record(path, number, value, problem, done / size)


def _parse(line: bytes) -> tuple[Any, str]:
    try:
        return json.loads(line.decode("utf-8")), ""
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}"
    except json.JSONDecodeError as error:
        return None, f"is not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of nested brackets
        return None, f"is not JSON that can be read: {error}"


def _json(path: Path) -> Iterator[Record]:
    """Reads a list of rows, an object that contains one such list, or, as in many .json files, one object per line."""
    with path.open("rb") as file:
        head = [line.removeprefix(BOM_UTF8).strip() for line in islice(filter(bytes.strip, file), 2)]
    if len(head) == 2 and _is_object(head[0]):
        yield from _lines(path)
        return
    text = read_text(path, "copy it again")
    at = _skip_space(text, 0)
    if text.startswith("[", at):
        yield from _elements(path, text, at, alone=True)
    elif not text.startswith("{", at):
        raise UserError(
            f"{path}: holds neither a JSON list nor one object per line; write the rows as a list of objects"
        )
    elif _ends_early(text, at) and len(head) == 2 and _is_object(head[1]):  # JSON lines of which the first is damaged
        yield from _lines(path)
    else:
        value, start = _object(path, text, at)
        row = Record(path, 1 + text.count("\n", 0, at), value, "", 1.0)
        yield from [row] if start is None else _elements(path, text, start, alone=False)


def _is_object(line: bytes) -> bool:
    return isinstance(_parse(line)[0], dict)


def _ends_early(text: str, at: int) -> bool:
    """Whether an object's first line ends in a way that no line does on which an object continues."""
    return not text[at:].partition("\n")[0].rstrip().endswith(("{", "[", ","))


def _object(path: Path, text: str, at: int) -> tuple[Any, int | None]:
    """Returns the only object of a file, and where its list of rows begins, or None if the object itself is a row.

    Raises UserError.
    """
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is corrupt or not JSON ({error}); fix it, or write one object per line") from None
    if text[end:].strip():
        raise UserError(f"{path}: continues after its first object; write the rows as one list, or each on one line")
    lists = {key: start for key, start, inside in _members(text, at) if _has_rows(inside)}
    if len(lists) > 1:
        raise UserError(f"{path}: has lists of rows under {', '.join(map(repr, lists))}; keep one list per file")
    return value, next(iter(lists.values()), None)


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict | list) for row in value)


def _members(text: str, at: int) -> Iterator[tuple[str, int, Any]]:
    """Yields key, position of the value, and value of each member of the well-formed object that begins at `at`."""
    decoder = json.JSONDecoder()
    at = _skip_space(text, at + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        start = _skip_space(text, _skip_space(text, at) + 1)
        value, at = decoder.raw_decode(text, start)
        yield key, start, value
        at = _skip_space(text, at)
        at = _skip_space(text, at + 1) if text[at] == "," else at


def _elements(path: Path, text: str, at: int, *, alone: bool) -> Iterator[Record]:
    """Yields the elements of the list that begins at `at`. alone: nothing may follow the list."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at, number = _skip_space(text, at + 1), 0
    closed = text.startswith("]", at)
    while not closed:
        number, line, counted = number + 1, line + text.count("\n", counted, at), at
        where = f"{path}:{line} (element {number})"
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: is not JSON: {error}; fix it: the rows behind this element cannot be told apart"
            ) from None
        yield Record(path, line, value, "", at / len(text), number)
        at = _skip_space(text, at)
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            raise UserError(
                f"{where}: is followed by neither a comma nor the end of the list; the file is corrupt: copy it again"
            )
        at = _skip_space(text, at + 1)
    if alone and text[at + (number == 0) :].strip():
        raise UserError(f"{path}: continues after the end of its list; keep one list per file")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _parquet(path: Path) -> Iterator[Record]:
    try:
        with pa.parquet.ParquetFile(path) as file:
            total = max(file.metadata.num_rows, 1)
            for number, (value, problem) in enumerate(_rows(file.iter_batches(batch_size=1024)), 1):
                yield Record(path, number, value, problem, number / total)
    except (pa.ArrowException, ValueError, OverflowError) as error:  # even the names in a corrupt file may not be UTF-8
        raise UserError(f"{path}: is corrupt or not Parquet ({reason(error)}); copy it again") from None


def _arrow(path: Path) -> Iterator[Record]:
    """Reads Arrow's stream format, which the library datasets writes, or its file format."""
    size, number, done = max(path.stat().st_size, 1), 0, 0.0
    try:
        with pa.OSFile(str(path)) as file:
            for batch in _batches(file):
                batch.validate(full=True)  # otherwise a damaged offset would crash the process
                before, done = done, file.tell() / size
                for i, (value, problem) in enumerate(_rows([batch]), 1):
                    yield Record(path, number + i, value, problem, before + (done - before) * i / batch.num_rows)
                number += batch.num_rows
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"{path}: is corrupt or not Arrow ({reason(error)}); copy it again") from None


def _batches(file: pa.OSFile) -> Iterator[pa.RecordBatch]:
    """Yields the batches of an Arrow file. Raises ValueError if it is a stream without an end, as one cut short is."""
    if file.read(6) == b"ARROW1":
        table = pa.ipc.open_file(file)
        yield from (table.get_batch(i) for i in range(table.num_record_batches))
        return
    file.seek(max(file.size() - len(_END_OF_STREAM), 0))
    if file.read() != _END_OF_STREAM:
        raise ValueError("it does not end as a stream does")
    file.seek(0)
    yield from pa.ipc.open_stream(file)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Any, str]]:
    for batch in batches:
        yield from (_row(batch, i) for i in range(batch.num_rows))


def _row(batch: pa.RecordBatch, i: int) -> tuple[Any, str]:
    try:
        return {name: column[i].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}, ""
    except (ValueError, OverflowError) as error:  # a text that is not UTF-8, or a date that Python cannot represent
        return None, f"cannot be read: {error}"


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
