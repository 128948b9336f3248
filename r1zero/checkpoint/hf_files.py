"""Reads slices of Hugging Face folders, and dequantises FP8 blocks.

The only module that imports safetensors' reader.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from r1zero.checkpoint import hf_folder
from r1zero.checkpoint.hf_folder import some
from r1zero.config import UserError
from r1zero.model.families import fp8_block
from r1zero.model.placement import Part
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight

FP8 = "F8_E4M3"
TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, FP8: torch.float8_e4m3fn}
"""Types of weights."""
SCALE_TYPES = ("F32", "BF16", "F16", "F8_E8M0")
SCALE = "_scale_inv"
"""Suffix of the name of an FP8 weight's scales."""
ROWS = 4096
"""Number of rows of two tensors that are compared at a time."""

Facts = dict[str, tuple[tuple[int, ...], str]]
"""Tensor -> shape and type, as stated by the files."""


class HfFolder:
    """An open folder. `read` reads only the bytes that it returns."""

    def __init__(self, path: str | Path, shape: Shape, weights: list[Weight]):
        """Raises UserError if files are missing, corrupt or ambiguous, if tensors are missing, unknown or in two files,
        or if shapes or types are not the model's."""
        self.path = Path(path)
        self._block = fp8_block(self.path)
        self._where: dict[str, str] = {}
        self._open: dict[str, safe_open] = {}
        facts = self._read_facts()
        _check_names(self.path, shape, weights, facts)
        for weight in weights:
            _check_facts(self.path, weight, facts, self._block)
        if shape.tied and "lm_head.weight" in facts:
            self._check_tied_head(facts)
        self.dtypes = {w.name: torch.bfloat16 if facts[w.name][1] == FP8 else TYPES[facts[w.name][1]] for w in weights}
        """Type of each weight; for an FP8 weight bfloat16."""

    def read(self, weight: Weight, part: Part) -> Tensor:
        """Returns one rectangle of a tensor, in the file's type; FP8 blocks as float32."""
        piece = self._slice(weight.name)[part]
        if piece.dtype != torch.float8_e4m3fn:
            return piece
        size = self._block
        assert size is not None  # _check_facts refuses FP8 weights without the size of a block
        blocks = tuple(
            slice(cut.start // length, -(-cut.stop // length)) for cut, length in zip(part, size, strict=True)
        )
        offset = tuple(cut.start % length for cut, length in zip(part, size, strict=True))
        return dequantise(piece, self._slice(weight.name + SCALE)[blocks], offset, size)

    def _read_facts(self) -> Facts:
        facts: Facts = {}
        for name in hf_folder.weight_files(self.path):
            file = _open(self.path / name)
            for tensor in file.keys():  # noqa: SIM118 (not a dict)
                if tensor in facts:
                    raise UserError(
                        f"{self.path}: {tensor} is both in {self._where[tensor]} and in {name}; one of the files is "
                        "left from another save: download or convert the folder again"
                    )
                piece = file.get_slice(tensor)
                self._where[tensor], facts[tensor] = name, (tuple(piece.get_shape()), piece.get_dtype())
        hf_folder.check_index(self.path, self._where)
        return facts

    def _slice(self, tensor: str) -> Any:
        """Returns a slice object.

        Only the last two files stay mapped, as mapped pages count as this process's memory.
        """
        name = self._where[tensor]
        file = self._open.pop(name, None) or _open(self.path / name)
        self._open = {**dict(list(self._open.items())[-1:]), name: file}
        return file.get_slice(tensor)

    def _check_tied_head(self, facts: Facts) -> None:
        """Check that a separate head equals the embedding, because only the embedding is read."""
        embedding, head = "model.embed_tokens.weight", "lm_head.weight"
        rows = facts[embedding][0][0]
        same = facts[embedding] == facts[head] and all(
            torch.equal(self._slice(embedding)[first : first + ROWS], self._slice(head)[first : first + ROWS])
            for first in range(0, rows, ROWS)
        )
        if not same:
            raise UserError(
                f"{self.path}: tie_word_embeddings = true, but {head} differs from {embedding}; set "
                "tie_word_embeddings to false in config.json, or remove the head from the file"
            )


def _check_names(path: Path, shape: Shape, weights: list[Weight], facts: Facts) -> None:
    expected = {weight.name for weight in weights}
    missing = sorted(expected - facts.keys())
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(expected)} tensors are missing ({some(missing)}); "
            "download or convert the folder again"
        )
    unknown = sorted(name for name in facts.keys() - expected if not _left_out(name, shape, expected))
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} tensors are not part of {shape.family} ({some(unknown)}); "
            "config.json does not describe these weights"
        )


def _check_facts(path: Path, weight: Weight, facts: Facts, block: tuple[int, int] | None) -> None:
    """Check one weight and its scales."""
    (dims, kind), scales = facts[weight.name], facts.get(weight.name + SCALE)
    if dims != weight.shape:
        raise UserError(
            f"{path}: {weight.name} has shape {list(dims)}, but config.json implies {list(weight.shape)}; "
            "use the config.json of these weights"
        )
    if kind not in TYPES:
        raise UserError(
            f"{path}: {weight.name} is of type {kind}; supported are {', '.join(TYPES)}: "
            "convert the checkpoint to bfloat16 first"
        )
    if kind != FP8:
        if scales:
            raise UserError(
                f"{path}: {weight.name} is of type {kind} and has scales ({weight.name}{SCALE}), which only {FP8} "
                "needs; download or convert the folder again"
            )
        return
    if block is None:
        raise UserError(
            f"{path}: {weight.name} is of type {FP8}, but config.json has no quantization_config, whose "
            "weight_block_size says which elements share a scale; download the folder again"
        )
    if scales is None:
        raise UserError(
            f"{path}: {weight.name} is of type {FP8} and has no scales ({weight.name}{SCALE}); "
            "download the folder again"
        )
    wanted = tuple(-(-size // step) for size, step in zip(dims, block, strict=True)) if len(dims) == 2 else None
    if scales[0] != wanted or scales[1] not in SCALE_TYPES:
        raise UserError(
            f"{path}: {weight.name}{SCALE} has shape {list(scales[0])} and type {scales[1]}; with weight_block_size = "
            f"{list(block)} a weight of shape {list(dims)} has scales of shape {list(wanted or ())} and of one of the "
            f"types {', '.join(SCALE_TYPES)}; download or convert the folder again"
        )


def _left_out(name: str, shape: Shape, expected: set[str]) -> bool:
    """Whether a tensor is not a weight of the main model: multi-token prediction, FP8 scales, or a tied head's copy."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return (
        (layer is not None and int(layer[1]) >= shape.layers)
        or name.removesuffix(SCALE) in expected
        or (shape.tied and name == "lm_head.weight")
        or name.endswith("rotary_emb.inv_freq")
    )


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); download or convert it again") from None
    except SafetensorError as error:
        raise UserError(
            f"{path}: is corrupt or not a safetensors file ({error}); download or convert it again"
        ) from None


def dequantise(values: Tensor, scales: Tensor, offset: tuple[int, ...], block: tuple[int, int]) -> Tensor:
    """Multiply FP8 values by the scale of their block. Returns float32.

    values: (m, n). scales: one for each block that the values touch. offset: row and column of values[0, 0] within the
    first block. block: rows and columns of a block.
    """
    rows, columns = (
        (torch.arange(count) + first) // size for count, first, size in zip(values.shape, offset, block, strict=True)
    )
    return values.float().mul_(scales.float()[rows][:, columns])
