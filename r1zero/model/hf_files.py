"""Hugging Face folders: the only door to safetensors. Reads slices and dequantises FP8 blocks."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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
        self._where: dict[str, str] = {}
        self._open: dict[str, safe_open] = {}
        facts: dict[str, tuple[tuple[int, ...], str]] = {}
        for name in _file_names(self.path):
            file = _open(self.path / name)
            for tensor in file.keys():
                piece = file.get_slice(tensor)
                self._where[tensor], facts[tensor] = name, (tuple(piece.get_shape()), piece.get_dtype())
        self._check(shape, weights, facts)

    def read(self, weight: Weight, part: Part) -> Tensor:
        """One rectangle of a tensor, in the file's type; FP8 blocks come as float32."""
        piece = self._slice(weight.name)[part]
        if piece.dtype != torch.float8_e4m3fn:
            return piece
        rows, columns = part
        name = f"{weight.name}_scale_inv"
        blocks = (slice(rows.start // BLOCK, -(-rows.stop // BLOCK)), slice(columns.start // BLOCK, -(-columns.stop // BLOCK)))
        return dequantise(piece, self._slice(name)[blocks], rows.start % BLOCK, columns.start % BLOCK)

    def _slice(self, tensor: str) -> Any:
        """Files are mapped into memory, where what was read of them counts as this process's: only the last two stay so."""
        name = self._where[tensor]
        file = self._open.pop(name, None) or _open(self.path / name)
        self._open = {**dict(list(self._open.items())[-1:]), name: file}
        return file.get_slice(tensor)

    def _check(self, shape: Shape, weights: list[Weight], facts: dict[str, tuple[tuple[int, ...], str]]) -> None:
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
            found = facts[name][0]
            if found != dims:
                raise UserError(f"{self.path}: {name} has shape {list(found)}, config.json asks for {list(dims)}")
        unscaled = [name for name in expected if facts[name][1] == "F8_E4M3" and f"{name}_scale_inv" not in facts]
        if unscaled:
            raise UserError(f"{self.path}: {len(unscaled)} FP8 tensors have no scales (_scale_inv of {_some(unscaled)}); download it again")


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
    return values.float().mul_(scales.float()[rows][:, columns])
