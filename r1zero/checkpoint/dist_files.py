"""Reads and writes megatron-core's distributed checkpoints (`torch_dist`) tensor by tensor, without megatron.

Such a checkpoint does not depend on a layout. Each tensor has a key and a full shape, and consists of chunks. Each
chunk is the output of one `torch.save` inside some file; `.metadata` records where. One function (`place`) knows the
keys of megatron's modules, so a Hugging Face tensor can be read or written without a model that contains it.
"""

import itertools
import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view
from torch.serialization import get_crc32_options, set_crc32_options

from r1zero.checkpoint import manifest
from r1zero.checkpoint.manifest import CorruptError, HashedFile
from r1zero.model.placement import Part
from r1zero.model.shape import Shape
from r1zero.model.weights import FusedRows, Weight

SUFFIX = ".distcp"


@dataclass(frozen=True)
class CheckpointSlot:
    """Position of an HF tensor in the checkpoint."""

    key: str
    lead: tuple[tuple[int, int], ...]
    """(index, size) of the axes that precede the parameter's own: the layer, or the expert."""
    rows: int
    """Number of rows of the fused, unsplit parameter."""
    runs: tuple[FusedRows, ...]
    """Where the rows of the HF tensor are among them."""

    @property
    def index(self) -> tuple[int, ...]:
        """Index on the axes that precede the parameter's own."""
        return tuple(i for i, _ in self.lead)

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Returns the shape of the checkpoint's tensor."""
        return (*(n for _, n in self.lead), self.rows, *weight.shape[1:])


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a checkpoint's tensor that is stored as one unit."""

    key: str
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    dtype: torch.dtype
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def place(weight: Weight, shape: Shape) -> CheckpointSlot:
    """Returns the position of an HF tensor, according to megatron-core 0.16.

    If all layers are alike they are stacked under one key; otherwise each has its own. Experts are always stacked.
    """
    key = weight.parameter.replace("local_experts.{e}", "experts")
    lead: tuple[tuple[int, int], ...] = ()
    if weight.layer is not None and shape.moe is None:
        key, lead = f"decoder.layers.{key}", ((weight.layer, shape.layers),)
    elif weight.layer is not None:
        key = f"decoder.layers.{weight.layer}.{key}"
    if weight.expert is not None:
        lead = ((weight.expert, shape.require_moe().experts),)
    return CheckpointSlot(key, lead, weight.total or weight.shape[0], weight.fused_rows())


class DistFolder:
    """An open checkpoint of weights or of a training run. `read` loads and verifies chunks as needed, one at a time."""

    def __init__(self, path: Path, shape: Shape):
        """Raises CorruptError if the folder is not a checkpoint."""
        self.path, self.shape = path, shape
        self.facts = manifest.read(path)
        ends = {
            name: itertools.accumulate((length for length, _ in segments), initial=0)
            for name, segments in self.facts["files"].items()
        }
        self._sha256 = {
            (name, begin): found
            for name, segments in self.facts["files"].items()
            for begin, (_, found) in zip(ends[name], segments, strict=False)
        }
        try:
            metadata = FileSystemReader(path).read_metadata()
        except (OSError, pickle.UnpicklingError, EOFError) as error:
            raise CorruptError(f".metadata cannot be read ({error})") from None
        self._tensors = {
            key: found
            for key, found in metadata.state_dict_metadata.items()
            if isinstance(found, TensorStorageMetadata)
        }
        self._where: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self._last: tuple[MetadataIndex, Tensor] | None = None

    def problems(self, weights: Iterable[Weight]) -> list[str]:
        """Returns the names of weights that are missing, or that have a different shape here."""
        places = [(w, place(w, self.shape)) for w in weights]
        return [
            f"{w.name} (shape {list(self._tensors[p.key].size)} in place of {list(p.shape(w))})"
            if p.key in self._tensors
            else w.name
            for w, p in places
            if p.key not in self._tensors or tuple(self._tensors[p.key].size) != p.shape(w)
        ]

    def dtype(self, weight: Weight) -> torch.dtype:
        """Returns the type in which a weight is stored."""
        return self._tensors[place(weight, self.shape).key].properties.dtype

    def read(self, weight: Weight, part: Part) -> Tensor:
        """Returns one rectangle of an HF tensor, in the checkpoint's type."""
        at = place(weight, self.shape)
        ones = tuple(1 for _ in at.lead)
        out = torch.empty([cut.stop - cut.start for cut in part], dtype=self.dtype(weight))
        sizes, columns = out.shape[1:], tuple(cut.start for cut in part[1:])
        for hf, fused, rows in at.runs:
            first, last = max(hf, part[0].start), min(hf + rows, part[0].stop)
            if first < last:
                offsets = (*at.index, first - hf + fused, *columns)
                piece = self.region(at.key, offsets, (*ones, last - first, *sizes))
                out[first - part[0].start : last - part[0].start] = piece.view(last - first, *sizes)
        return out

    def region(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """Returns a rectangle of one of the checkpoint's tensors. Raises CorruptError if some of it has no content."""
        if key not in self._tensors:
            raise CorruptError(f"it has no {key}")
        found = self._tensors[key]
        out = torch.empty(sizes, dtype=found.properties.dtype)
        left = out.numel()
        for chunk in found.chunks:
            low = [max(a, b) for a, b in zip(offsets, chunk.offsets, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                target = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offsets, strict=True))
                source = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, chunk.offsets, strict=True))
                out[target] = self._load(MetadataIndex(key, chunk.offsets))[source]
                left -= out[target].numel()
        if left:
            raise CorruptError(f"{key} has no content for {left} elements of {list(sizes)} at {list(offsets)}")
        return out

    def _load(self, index: MetadataIndex) -> Tensor:
        """Load and verify one chunk. The last one is cached, because the tensors fused in it are read in a row."""
        if self._last is None or self._last[0] != index:
            self._last = None
            info = self._where[index]
            try:
                with open(self.path / info.relative_path, "rb") as file:
                    file.seek(info.offset)
                    if manifest.sha256(file, info.length) != self._sha256.get((info.relative_path, info.offset)):
                        raise CorruptError(
                            f"{info.relative_path} has other content than was written (sha256 of {index.fqn} differs)"
                        )
                    chunk = cast(IO[bytes], _create_file_view(file, info.offset, info.length))
                    self._last = (index, torch.load(chunk, map_location="cpu", weights_only=True))
            except OSError as error:
                raise CorruptError(f"{info.relative_path} cannot be read ({error})") from None
        return self._last[1]


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Disable torch's checksum, which takes half as much time again. Every segment already has a sha256."""
    was = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(was)


def append(file: HashedFile, data: Tensor) -> _StorageInfo:
    """Append one chunk to a file, and return its position."""
    offset = file.tell()
    data = data.detach().to("cpu")
    with _without_crc32():
        # torch.save would write the whole storage of which a view is a part.
        torch.save(data.clone() if data.untyped_storage().nbytes() != data.nbytes else data, file.binary)
    file.segment()
    return _StorageInfo(file.path.name, offset, file.tell() - offset)


def write_index(folder: Path, chunks: list[tuple[Chunk, _StorageInfo]]) -> None:
    """Write the files that turn the written chunks into a megatron checkpoint."""
    tensors: dict[str, TensorStorageMetadata] = {}
    for chunk, _ in chunks:
        row = tensors.setdefault(
            chunk.key, TensorStorageMetadata(TensorProperties(dtype=chunk.dtype), torch.Size(chunk.shape), [])
        )
        row.chunks.append(ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)))
    where = {MetadataIndex(chunk.key, chunk.offsets): info for chunk, info in chunks}
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(Metadata({**tensors}, storage_data=where, version=CURRENT_DCP_VERSION), file)
    torch.save({}, folder / "common.pt")
    backends = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    (folder / "metadata.json").write_text(json.dumps(backends), encoding="utf-8")
