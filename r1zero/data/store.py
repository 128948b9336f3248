"""The folder that preprocess.py writes and train.py reads: memory-mapped prompts.arrow, readable meta.json.

prompts.arrow   Arrow IPC: token_ids, text, label, source (file:line), additional (the kept columns, as texts)
meta.json       counts, token percentiles, tokenizer and template and source digests, stop_token_ids
rejected.jsonl  one line for each row that was bad or too long, with its place and why
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
"""What a reader relies on. The rest of meta.json is for people."""


def schema(additional: tuple[str, ...]) -> pa.Schema:
    kept = [("additional", pa.struct([(key, pa.string()) for key in additional]))] if additional else []
    return pa.schema(
        [
            ("token_ids", pa.list_(pa.int32())),
            ("text", pa.string()),
            ("label", pa.string()),
            ("source", pa.string()),
            *kept,
        ]
    )


def inspect_command(folder: str) -> str:
    """A command that shows the first three rows with pyarrow alone."""
    file = str(Path(folder) / PROMPTS)
    rows = f"pa.ipc.open_file(pa.memory_map({file!r})).get_batch(0).slice(0, 3).to_pylist()"
    return f"python -c {shlex.quote(f'import pyarrow as pa; [print(row) for row in {rows}]')}"


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replaced(folder: str) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well and vanishes when it does not.

    A link is written through. Raises UserError where `folder` holds something else than prompts, or cannot be written.
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
    except OSError as error:  # a full disk; a file elsewhere is an own handler's business
        if error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(output.parent):
            raise
        raise UserError(f"output = {folder!r}: cannot be written ({reason(error)}); make room for it") from None
    finally:
        if before.exists() and not output.exists():
            before.rename(output)
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # not empty, if all went well
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
    """Raises UserError where the folder is missing, not ours, or torn. field: of the config, which names the folder."""
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
    """The rows, memory-mapped. Raises UserError where the file is missing, torn, or not what `meta` describes."""
    file = Path(folder) / PROMPTS
    with readable(file, "run preprocess.py again"):
        size = file.stat().st_size if file.is_file() else 0
    if size != meta["bytes"]:
        raise UserError(
            f"{file}: has {size} bytes and {META} says {meta['bytes']}; it is torn or incomplete: "
            "run preprocess.py again"
        )
    # A flipped bit in an offset would end the process in Arrow's own code, far from here.
    with readable(file, "run preprocess.py again"):
        found = file_digest(file)
    if found != meta["sha256"]:
        raise UserError(f"{file}: is not what {META} says was written (its sha256 differs); run preprocess.py again")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: is torn ({reason(error)}); run preprocess.py again") from None
    if len(table) != meta["rows"] or not {"token_ids", "text", "label", "source"} <= set(table.column_names):
        raise UserError(
            f"{file}: holds {len(table)} rows of {table.column_names} and {META} says {meta['rows']}; "
            "run preprocess.py again"
        )
    return table
