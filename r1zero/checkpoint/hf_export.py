"""Writes folders in Hugging Face's format tensor by tensor. The header comes first, because names, types and shapes are
known in advance.

The format: 8 bytes of length, a JSON header, then the tensors' bytes (github.com/huggingface/safetensors, "Format").
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1zero.checkpoint.hf_files import TYPES
from r1zero.checkpoint.hf_folder import INDEX, SINGLE, weight_files
from r1zero.checkpoint.manifest import HashedFile
from r1zero.config import Model, UserError
from r1zero.model import overrides

NAMES = {dtype: name for name, dtype in TYPES.items()}
COPIED = (".json", ".model", ".txt", ".jinja", ".py")
"""Suffixes of the files beside the weights: configuration, tokenizer, templates."""

Tensors = list[tuple[str, torch.dtype, tuple[int, ...]]]


def nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Returns the bytes of a tensor."""
    return torch.Size(shape).numel() * dtype.itemsize


def write_header(file: HashedFile, tensors: Tensors) -> None:
    """Write the header of a safetensors file."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + nbytes(dtype, shape)
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    file.segment()


def write_tensor(file: HashedFile, tensor: Tensor) -> None:
    """Append a tensor. The calls must follow the order of the header."""
    file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    file.segment()


def file_name(number: int, count: int) -> str:
    """Returns the name of file `number` (from 0) of `count` files."""
    return SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def finish(folder: Path, files: dict[str, Tensors], model: Model) -> None:
    """Write the index, copy the tokenizer from model.path, and write its config with model.overrides.

    The config's FP8 settings are dropped, because what is written here is not FP8.
    """
    source = Path(model.path)
    if len(files) > 1:
        total = sum(nbytes(dtype, shape) for tensors in files.values() for _, dtype, shape in tensors)
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, tensors in files.items() for name, _, _ in tensors},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    for path in source.iterdir():
        if path.is_file() and path.suffix in COPIED and path.name != INDEX:
            shutil.copyfile(path, folder / path.name)
    config = overrides.stated_config(model)
    if config.pop("quantization_config", None) is not None or model.overrides:
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def source_headers(path: Path) -> dict[str, dict[str, Any]]:
    """Returns tensor name -> dtype, shape, offsets and file, for all weight files. Raises UserError as
    `weight_files`."""
    found: dict[str, dict[str, Any]] = {}
    for file in weight_files(path):
        header = _header(path / file)
        found |= {name: {**entry, "file": file} for name, entry in header.items() if name != "__metadata__"}
    return found


def _header(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise UserError(f"{path}: is corrupt or not a safetensors file; download or convert it again")
        try:
            return json.loads(file.read(length))
        except ValueError as error:
            raise UserError(
                f"{path}: is corrupt or not a safetensors file ({error}); download or convert it again"
            ) from None


SAMPLES = 64
SAMPLE_BYTES = 4096


def fingerprint(path: Path) -> str:
    """Returns a hash of every header of a folder's weights and of samples of every file's content.

    It distinguishes models of the same shape, in seconds at any size.
    """
    found = hashlib.sha256(json.dumps(source_headers(path), sort_keys=True).encode())
    for name in weight_files(path):
        size = (path / name).stat().st_size
        found.update(f"{name} {size}".encode())
        with open(path / name, "rb") as file:
            for i in range(SAMPLES):
                file.seek(i * max(0, size - SAMPLE_BYTES) // SAMPLES)
                found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()
