"""Hugging Face folders: the only door to safetensors. Reads slices, dequantises FP8 blocks, writes folders whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from r1zero.config import UserError
from r1zero.model.families import Weight
from r1zero.model.placement import Part
from r1zero.model.shape import Shape

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BLOCK = 128
"""Rows and columns that share a scale in FP8 checkpoints (DeepSeek-V3, arXiv 2412.19437, section 3.3.2)."""


class HfFolder:
    """An open folder. `read` touches only the bytes asked for."""

    def __init__(self, path: str | Path, shape: Shape, weights: list[Weight]):
        """Raises UserError for files that are missing or torn, tensors that are missing or unknown, and other shapes."""
        self.path = Path(path)
        self._files = {name: _open(self.path / name) for name in _file_names(self.path)}
        self._where = {name: file for file in self._files.values() for name in file.keys()}
        self._check(shape, weights)

    def read(self, weight: Weight, part: Part) -> Tensor:
        """One rectangle of a tensor, in the file's type; FP8 blocks come as float32."""
        piece = self._where[weight.name].get_slice(weight.name)[part]
        if piece.dtype != torch.float8_e4m3fn:
            return piece
        rows, columns = part
        name = f"{weight.name}_scale_inv"
        blocks = (slice(rows.start // BLOCK, -(-rows.stop // BLOCK)), slice(columns.start // BLOCK, -(-columns.stop // BLOCK)))
        return dequantise(piece, self._where[name].get_slice(name)[blocks], rows.start % BLOCK, columns.start % BLOCK)

    def _check(self, shape: Shape, weights: list[Weight]) -> None:
        expected = {w.name: w.shape for w in weights}
        missing = sorted(expected.keys() - self._where.keys())
        if missing:
            raise UserError(f"{self.path}: {len(missing)} of {len(expected)} tensors are missing ({_some(missing)}); "
                            "download or convert the folder again")
        left = (name for name in self._where if name not in expected)
        unknown = sorted(name for name in left if not _left_out(name, shape, expected))
        if unknown:
            raise UserError(f"{self.path}: {len(unknown)} tensors are not part of {shape.family} ({_some(unknown)}); "
                            "config.json does not describe these weights")
        for name, dims in expected.items():
            found = tuple(self._where[name].get_slice(name).get_shape())
            if found != dims:
                raise UserError(f"{self.path}: {name} has shape {list(found)}, config.json asks for {list(dims)}")


def _left_out(name: str, shape: Shape, expected: dict[str, tuple[int, ...]]) -> bool:
    """Tensors that are no weights of the main model: multi-token prediction, scales of FP8 blocks, a tied head's copy."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return ((layer is not None and int(layer[1]) >= shape.layers) or name.removesuffix("_scale_inv") in expected
            or (shape.tied and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq"))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _file_names(path: Path) -> list[str]:
    if (path / INDEX).exists():
        try:
            return sorted(set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError) as error:
            raise UserError(f"{path / INDEX}: is not an index of safetensors files ({error})") from None
    return [SINGLE]


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the folder must hold {SINGLE}, or {INDEX} and the files it names") from None
    except SafetensorError as error:
        raise UserError(f"{path}: is torn or not a safetensors file ({error}); download or convert it again") from None


def dequantise(values: Tensor, scales: Tensor, row: int, column: int) -> Tensor:
    """FP8 values times the scale of their block, in float32.

    values (m, n), scales one for each block touched; row, column: offset of values[0, 0] in the first block.
    """
    rows = (torch.arange(values.shape[0]) + row) // BLOCK
    columns = (torch.arange(values.shape[1]) + column) // BLOCK
    return values.float() * scales.float()[rows][:, columns]


def start(folder: Path) -> None:
    """An empty folder to write parts into."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def write_part(folder: Path, rank: int, tensors: Iterable[tuple[str, Tensor]], file_bytes: int) -> dict[str, str]:
    """One rank's tensors into files of about `file_bytes` in `folder`. Returns tensor name -> file name."""
    placed: dict[str, str] = {}
    for number, bucket in enumerate(_buckets(tensors, file_bytes)):
        name = f"part-{rank:05d}-{number:05d}.safetensors"
        save_file(bucket, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(bucket, name)
    return placed


def _buckets(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    bucket: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors:
        if bucket and held + tensor.nbytes > limit:
            yield bucket
            bucket, held = {}, 0
        # A copy: what comes may be a view of a live parameter, or of one buffer shared by several.
        bucket[name] = tensor.detach().to("cpu", copy=True).contiguous()
        held += tensor.nbytes
    if bucket:
        yield bucket


def finish(folder: Path, out: Path, placed: dict[str, str], source: Path, dtype: torch.dtype) -> None:
    """Name the parts as Hugging Face does, add index, config and tokenizer of `source`, and move the whole to `out`.

    dtype: of the weights written, which config.json then states in place of what the source was stored in.
    """
    files = sorted(set(placed.values()))
    names = {old: SINGLE if len(files) == 1 else f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i, old in enumerate(files)}
    total = 0
    for old, new in names.items():
        total += (folder / old).stat().st_size
        os.replace(folder / old, folder / new)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: names[old] for name, old in sorted(placed.items())}}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".model", ".txt", ".jinja", ".py") and file.name != INDEX:
            shutil.copy2(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config |= dict.fromkeys(config.keys() & {"dtype", "torch_dtype"} or {"torch_dtype"}, str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    os.replace(folder, out)
