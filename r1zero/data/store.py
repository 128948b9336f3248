"""The folder that preprocess.py writes and train.py reads: a memory-mapped prompts.arrow and a readable meta.json.

prompts.arrow   Arrow IPC: token_ids, text, label, source (file:line), additional (the kept columns, as texts),
                dataset (the name of one of several sources)
meta.json       counts, percentiles of tokens, digests of tokenizer, template and sources, stop_token_ids
rejected.jsonl  one line for each row that was invalid or too long, with its location and the reason
"""

import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from r1zero.config import UserError, read_json, readable, reason

FORMAT = "r1zero prompts 1"
PROMPTS, META, REJECTED = "prompts.arrow", "meta.json", "rejected.jsonl"
META_TYPES = {
    "format": str,
    "rows": int,
    "bytes": int,
    "sha256": str,
    "tokenizer": dict,
    "template": dict,
    "sources": list,
    "stop_token_ids": list,
    "longest_prompt": int,
}
"""The entries that readers use. The rest of meta.json is for people."""


def schema(additional: tuple[str, ...], *, has_sources: bool) -> pa.Schema:
    """Returns the Arrow schema of prompts.arrow.

    additional: names of the kept columns. has_sources: whether the prompts are from several sources.
    """
    dataset = [("dataset", pa.string())] if has_sources else []
    kept = [("additional", pa.struct([(key, pa.string()) for key in additional]))] if additional else []
    return pa.schema(
        [
            ("token_ids", pa.list_(pa.int32())),
            ("text", pa.string()),
            ("label", pa.string()),
            ("source", pa.string()),
            *kept,
            *dataset,
        ]
    )


def inspect_command(folder: str) -> str:
    """Returns a shell command that prints the first three rows with pyarrow alone."""
    file = str(Path(folder) / PROMPTS)
    rows = f"pa.ipc.open_file(pa.memory_map({file!r})).get_batch(0).slice(0, 3).to_pylist()"
    return f"python -c {shlex.quote(f'import pyarrow as pa; [print(row) for row in {rows}]')}"


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replaced(folder: str) -> Iterator[Path]:
    """Yields an empty folder that replaces `folder` if the block succeeds and is removed otherwise.

    A link is followed. Raises UserError if `folder` contains something else than prompts, or cannot be written.
    """
    output = Path(os.path.realpath(folder))
    try:
        if output.exists() and not (output / META).is_file():
            raise UserError(
                f"output = {folder!r}: exists and was not written by preprocess.py; name a new folder, or remove it"
            )
        made = [parent for parent in output.parents if not parent.exists()]
        output.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise UserError(f"output = {folder!r}: cannot be written ({reason(error)}); name another folder") from None
    before = aside.with_name(aside.name + ".before")
    try:
        yield aside
        _flush(aside)
        aside.chmod(0o777 & ~_umask())
        if output.exists():
            output.rename(before)
        aside.rename(output)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:  # for example a full disk; an error of a user's handler on another file is not handled
        if error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(output.parent):
            raise
        raise UserError(f"output = {folder!r}: cannot be written ({reason(error)}); make room for it") from None
    finally:
        if before.exists() and not output.exists():
            before.rename(output)
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # not empty after a success
            for parent in made:
                parent.rmdir()


def _flush(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_meta(folder: str, field: str = "data.path") -> dict[str, Any]:
    """Read meta.json. field: the field of the config that names the folder, for messages.

    Raises UserError if the folder is missing, has another format, or is corrupt.
    """
    file = Path(folder) / META
    if not folder:
        raise UserError(f"{field} is not set; name a folder that preprocess.py wrote")
    meta = read_json(file, f"{field} must be a folder that preprocess.py wrote: name one, or run preprocess.py")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise UserError(f"{file}: its format is {found!r} and must be {FORMAT!r}; run preprocess.py again")
    _check_types(meta, META_TYPES, f"{file}: ")
    for part in meta["sources"]:
        _check_types(part, {"path": str, "sha256": str}, f"{file}: sources: ")
    _check_types(meta["tokenizer"], {"path": str, "digest": str}, f"{file}: tokenizer: ")
    _check_types(meta["template"], {"path": str, "name": str, "digest": str}, f"{file}: template: ")
    for i in meta["stop_token_ids"]:
        _check_types({"stop_token_ids": i}, {"stop_token_ids": int}, f"{file}: ")
    return meta


def _check_types(values: Any, kinds: dict[str, type], where: str) -> None:
    for key, kind in kinds.items():
        value = values.get(key) if isinstance(values, dict) else values
        if not isinstance(values, dict) or type(value) is not kind:
            raise UserError(f"{where}{key} = {value!r} must be of type {kind.__name__}; run preprocess.py again")


def read_prompts(folder: str, meta: dict[str, Any]) -> pa.Table:
    """Returns the rows, memory-mapped.

    Raises UserError if the file is missing, corrupt, or not what `meta` describes.
    """
    file = Path(folder) / PROMPTS
    with readable(file, "run preprocess.py again"):
        size = file.stat().st_size if file.is_file() else 0
    if size != meta["bytes"]:
        raise UserError(
            f"{file}: has {size} bytes, but {META} states {meta['bytes']}; it is corrupt or incomplete: "
            "run preprocess.py again"
        )
    # Arrow's native code would crash later on a flipped bit in an offset.
    with readable(file, "run preprocess.py again"):
        found = file_digest(file)
    if found != meta["sha256"]:
        raise UserError(f"{file}: is not what {META} says was written (its sha256 differs); run preprocess.py again")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: is corrupt ({reason(error)}); run preprocess.py again") from None
    if len(table) != meta["rows"] or not {"token_ids", "text", "label", "source"} <= set(table.column_names):
        raise UserError(
            f"{file}: has {len(table)} rows of {table.column_names}, but {META} states {meta['rows']}; "
            "run preprocess.py again"
        )
    return table
