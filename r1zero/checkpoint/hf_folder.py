"""Finds the weight files of a Hugging Face folder, and refuses a folder that is ambiguous, stale or incomplete.

transformers reads model.safetensors if it exists, and otherwise the files that the index names. Other programs read
every *.safetensors. If these are different files, the folder means different weights to different programs.
"""

import json
from pathlib import Path
from typing import Any

from r1zero.config import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = ("*.bin", "*.pth", "*.pt")
POINTER = b"version https://git-lfs"
POINTER_SIZE = 1024
"""A pointer file is smaller than this many bytes; most have about 130."""


def weight_files(path: Path) -> list[str]:
    """Returns the sorted names of the safetensors files. Raises UserError if they are ambiguous or some are missing."""
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder; model.path must be a folder in Hugging Face's format")
    _refuse_unfinished(path)
    there = sorted(file.name for file in path.glob("*.safetensors"))
    index = read_index(path)
    if index is None:
        _refuse_without_index(path, there)
        return [SINGLE]
    named = sorted(set(index.values()))
    if SINGLE in there and SINGLE not in named:
        raise UserError(
            f"{path}: has {SINGLE} beside {INDEX}, which names {some(named)}: one of the two was left from an earlier "
            "save; remove it"
        )
    if missing := [name for name in named if name not in there]:
        raise UserError(
            f"{path}: {len(missing)} of the {len(named)} files that {INDEX} names are missing ({some(missing)}); "
            "download or convert the folder again"
        )
    if extra := [name for name in there if name not in named]:
        raise UserError(
            f"{path}: {len(extra)} safetensors files are not named by {INDEX} ({some(extra)}); remove them if they are "
            "left from an earlier save, or else download the folder again"
        )
    return named


def read_index(path: Path) -> dict[str, str] | None:
    """Returns tensor -> file from the folder's index, or None without an index. Raises UserError for an invalid one."""
    if not (path / INDEX).exists():
        return None
    try:
        index: Any = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if index and all(isinstance(name, str) for name in index.values()):
            return index
        reason = "its weight_map names no files"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise UserError(
        f"{path / INDEX}: is not an index of safetensors files ({reason}); download or convert the folder again"
    ) from None


def check_index(path: Path, where: dict[str, str]) -> None:
    """Raises UserError if a tensor is in a different file than the index states. where: tensor -> the file it is in."""
    stale = [name for name, file in (read_index(path) or {}).items() if where.get(name, file) != file]
    if stale:
        raise UserError(
            f"{path}: {len(stale)} tensors are in other files than {INDEX} states ({some(stale)}); the index belongs "
            "to another save: download or convert the folder again"
        )


def _refuse_unfinished(path: Path) -> None:
    unfinished = [*path.glob("*.incomplete"), *path.glob(".cache/huggingface/download/**/*.incomplete")]
    if unfinished:
        raise UserError(
            f"{unfinished[0]}: a download into this folder has not finished; start it again, or remove this file if "
            "the folder is complete"
        )
    for file in sorted(path.iterdir()):
        if file.is_file() and file.stat().st_size < POINTER_SIZE and file.read_bytes().startswith(POINTER):
            raise UserError(f"{file}: is a Git LFS pointer and not the file itself; run `git lfs pull` in the folder")


def _refuse_without_index(path: Path, there: list[str]) -> None:
    if SINGLE in there:
        if extra := [name for name in there if name != SINGLE]:
            raise UserError(
                f"{path}: has {len(extra)} other safetensors files beside {SINGLE} ({some(extra)}); remove those that "
                "are left from an earlier save"
            )
        return
    if there:
        raise UserError(
            f"{path}: has {len(there)} safetensors files ({some(there)}), but no {INDEX} that names them; "
            "download or convert the folder again"
        )
    if pickled := sorted(file.name for pattern in PICKLED for file in path.glob(pattern)):
        raise UserError(
            f"{path}: has its weights in pickles only ({some(pickled)}); load it with transformers and save it again, "
            "which writes safetensors"
        )
    raise UserError(f"{path / SINGLE}: is missing; the folder must hold {SINGLE}, or {INDEX} and the files it names")


def some(names: list[str]) -> str:
    """Returns the first of many names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
