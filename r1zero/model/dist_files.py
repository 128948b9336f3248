"""Files of megatron-core's distributed checkpoint (`torch_dist`), read and written tensor by tensor, without megatron.

Such a checkpoint knows nothing of layouts: each of its tensors has a key and a full shape, and lies in chunks, each a
`torch.save` somewhere in a file; `.metadata` says where. What megatron's modules call a weight there is one rule (`place`),
so that a Hugging Face tensor can be read or written without a model that has it.
"""

import io
import itertools
import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _create_file_view
from torch.futures import Future
from torch.serialization import get_crc32_options, set_crc32_options

from r1zero.model import manifest
from r1zero.model.families import Weight
from r1zero.model.manifest import HashedFile, Segment, Torn
from r1zero.model.placement import Part
from r1zero.model.shape import Shape

SUFFIX = ".distcp"


@dataclass(frozen=True)
class Place:
    """Where an HF tensor lies in the checkpoint."""

    key: str
    lead: tuple[tuple[int, int], ...]
    """(index, size) of the axes that stand before the parameter's own: the layer, or the expert."""
    rows: int
    """Of the parameter, uncut and fused."""
    runs: tuple[tuple[int, int, int], ...]
    """(first row in the HF tensor, first row in the parameter, rows)."""

    @property
    def index(self) -> tuple[int, ...]:
        return tuple(i for i, _ in self.lead)

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Of the checkpoint's tensor."""
        return (*(n for _, n in self.lead), self.rows, *weight.shape[1:])


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a checkpoint's tensor that lies in one place."""

    key: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    dtype: torch.dtype
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def place(weight: Weight, shape: Shape) -> Place:
    """megatron-core 0.16: layers all alike are stacked under one key, others have a key each; experts are stacked always."""
    key = weight.parameter.replace("local_experts.{e}", "experts")
    lead: tuple[tuple[int, int], ...] = ()
    if weight.layer is not None and shape.moe is None:
        key, lead = f"decoder.layers.{key}", ((weight.layer, shape.layers),)
    elif weight.layer is not None:
        key = f"decoder.layers.{weight.layer}.{key}"
    if weight.expert is not None:
        lead = ((weight.expert, shape.moe.experts),)
    rows = weight.total or weight.shape[0]
    if weight.blocks == 1:   # gate before up, each whole: the key's order is that of the uncut parameter
        return Place(key, lead, rows, ((0, weight.first, weight.shape[0]),))
    each, stride, first = (n // weight.blocks for n in (weight.shape[0], rows, weight.first))
    return Place(key, lead, rows, tuple((i * each, i * stride + first, each) for i in range(weight.blocks)))


class DistFolder:
    """An open checkpoint folder, of weights or of a training run. `read` loads the chunks it needs, one at a time, and checks each."""

    def __init__(self, path: Path, shape: Shape):
        """Raises Torn where the folder is not a checkpoint."""
        self.path, self.shape = path, shape
        self.facts = manifest.read(path)
        ends = {name: itertools.accumulate((length for length, _ in segments), initial=0) for name, segments in self.facts["files"].items()}
        self._sha256 = {(name, begin): found for name, segments in self.facts["files"].items()
                        for begin, (_, found) in zip(ends[name], segments, strict=False)}
        try:
            metadata = FileSystemReader(path).read_metadata()
        except (OSError, pickle.UnpicklingError, EOFError) as error:
            raise Torn(f".metadata cannot be read ({error})") from None
        self._tensors = {key: found for key, found in metadata.state_dict_metadata.items() if isinstance(found, TensorStorageMetadata)}
        self._where: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self._last: tuple[MetadataIndex | None, Tensor | None] = (None, None)

    def problems(self, weights: Iterable[Weight]) -> list[str]:
        """Names of weights that are missing here, or lie here with another shape."""
        places = [(w, place(w, self.shape)) for w in weights]
        return [f"{w.name} (shape {list(self._tensors[p.key].size)} in place of {list(p.shape(w))})" if p.key in self._tensors else w.name
                for w, p in places if p.key not in self._tensors or tuple(self._tensors[p.key].size) != p.shape(w)]

    def dtype(self, weight: Weight) -> torch.dtype:
        return self._tensors[place(weight, self.shape).key].properties.dtype

    def read(self, weight: Weight, part: Part) -> Tensor:
        """One rectangle of an HF tensor, in the checkpoint's type."""
        at = place(weight, self.shape)
        found = self._tensors[at.key]
        out = torch.empty([cut.stop - cut.start for cut in part], dtype=found.properties.dtype)
        left = out.numel()
        for chunk in found.chunks:
            own = len(at.lead)
            if any(not o <= i < o + n for i, o, n in zip(at.index, chunk.offsets[:own], chunk.sizes[:own], strict=True)):
                continue
            overlaps = _overlaps(at, part, chunk.offsets[own:], chunk.sizes[own:])
            if not overlaps:
                continue
            tensor = self._load(MetadataIndex(at.key, chunk.offsets))
            tensor = tensor[tuple(i - o for i, o in zip(at.index, chunk.offsets, strict=False))]
            for target, source in overlaps:
                out[target] = tensor[source]
                left -= out[target].numel()
        if left:
            raise Torn(f"{at.key} has no content for {left} numbers of {weight.name}")
        return out

    def _load(self, index: MetadataIndex) -> Tensor:
        """One chunk; the last one is kept, as the tensors fused in it are asked for one after the other."""
        if self._last[0] != index:
            self._last = (None, None)
            info = self._where[index]
            try:
                with open(self.path / info.relative_path, "rb") as file:
                    file.seek(info.offset)
                    if manifest.sha256(file, info.length) != self._sha256.get((info.relative_path, info.offset)):
                        raise Torn(f"{info.relative_path} has other content than was written (sha256 of {index.fqn} differs)")
                    chunk = _create_file_view(file, info.offset, info.length)
                    self._last = (index, torch.load(chunk, map_location="cpu", weights_only=True))
            except OSError as error:
                raise Torn(f"{info.relative_path} cannot be read ({error})") from None
        return self._last[1]


def _overlaps(at: Place, part: Part, offsets: torch.Size, sizes: torch.Size) -> list[tuple[Part, Part]]:
    """(where in the piece, where in the chunk) for each run of rows that both have; the other axes are cut alike for all."""
    target, source = [], []
    for cut, offset, size in zip(part[1:], offsets[1:], sizes[1:], strict=True):
        first, last = max(cut.start, offset), min(cut.stop, offset + size)
        if first >= last:
            return []
        target.append(slice(first - cut.start, last - cut.start))
        source.append(slice(first - offset, last - offset))
    found = []
    for hf, fused, rows in at.runs:
        first = max(hf, part[0].start, offsets[0] - fused + hf)
        last = min(hf + rows, part[0].stop, offsets[0] + sizes[0] - fused + hf)
        if first < last:
            rows_here = slice(first - hf + fused - offsets[0], last - hf + fused - offsets[0])
            found.append(((slice(first - part[0].start, last - part[0].start), *target), (rows_here, *source)))
    return found


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Every segment has its sha256; torch's own sum would cost half as much again and is read by nobody."""
    was = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(was)


def append(file: HashedFile, data: Tensor | io.BytesIO) -> _StorageInfo:
    """One chunk to the end of a file. Returns where it lies."""
    offset = file.tell()
    if isinstance(data, io.BytesIO):
        file.write(data.getbuffer())
    else:
        data = data.detach().to("cpu")
        with _without_crc32():
            # torch.save writes the whole storage, of which a view has a part.
            torch.save(data.clone() if data.untyped_storage().nbytes() != data.nbytes else data, file)
    file.segment()
    return _StorageInfo(file.path.name, offset, file.tell() - offset)


def write_index(folder: Path, chunks: list[tuple[Chunk, _StorageInfo]]) -> None:
    """The files that make written chunks a checkpoint of megatron's."""
    tensors: dict[str, TensorStorageMetadata] = {}
    for chunk, _ in chunks:
        row = tensors.setdefault(chunk.key, TensorStorageMetadata(TensorProperties(dtype=chunk.dtype), torch.Size(chunk.shape), []))
        row.chunks.append(ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)))
    where = {MetadataIndex(chunk.key, chunk.offsets): info for chunk, info in chunks}
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(Metadata(tensors, storage_data=where, version=CURRENT_DCP_VERSION), file)
    torch.save({}, folder / "common.pt")
    backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backends), encoding="utf-8")


class Writer(FileSystemWriter):
    """torch's writer of distributed checkpoints, with weights and optimizer in files of their own, hashed as they are written."""

    def __init__(self, path: str):
        super().__init__(path)
        self.files: dict[str, list[Segment]] = {}
        """Of each file that this rank wrote."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        kinds = [[item for item in plan.items if item.index.fqn.startswith("optimizer.") == optimizer] for optimizer in (False, True)]
        for number, items in enumerate(kinds):
            if not items:
                continue
            path = Path(self.path) / f"{plan.storage_data.prefix}{number}{SUFFIX}"
            with HashedFile(path) as file:
                # Tensors first: a stream of bytes need not end where a tensor may begin.
                for item in sorted(items, key=lambda item: item.type == WriteItemType.BYTE_IO):
                    info = append(file, planner.resolve_data(item))
                    results.append(WriteResult(index=item.index, size_in_bytes=info.length, storage_data=info))
            self.files[path.name] = file.segments
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done
