"""Converts weights between Hugging Face's format and megatron's distributed checkpoints, tensor by tensor.

The result does not depend on a layout, and no process holds a shard of the model: each writes its own files of the
result, and reads only what they contain.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo

from r1zero.checkpoint import hf_export, manifest
from r1zero.checkpoint.dist_files import SUFFIX, Chunk, DistFolder, append, place, write_index
from r1zero.checkpoint.hf_files import HfFolder
from r1zero.checkpoint.manifest import CorruptError, HashedFile
from r1zero.checkpoint.staging import StagingFolder
from r1zero.config import Model, UserError
from r1zero.model.placement import Part, part
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight, weights

SMALLEST, LARGEST, ABOUT = 256 << 20, 4 << 30, 32
"""Smallest and largest size of a file in bytes; between these limits there are about ABOUT files."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Workers:
    """The processes that convert together, and this one's position among them."""

    rank: int
    size: int
    barrier: Callable[[], None]


@dataclass(frozen=True)
class FusedChunk:
    """A chunk of the checkpoint, and the HF tensors in it: one, or those that are fused in blocks."""

    chunk: Chunk
    members: tuple[Weight, ...]


def to_mcore(shape: Shape, source: Path, out: Path, workers: Workers, progress: Callable[[int], Progress]) -> None:
    """Convert a Hugging Face folder.

    Raises UserError if the folder is corrupt or not of this shape, if OUT exists, or if the disk is too small.
    """
    every = weights(shape)
    folder = HfFolder(source, shape, every)
    fingerprint = hf_export.fingerprint(source)
    pieces = _pieces(shape, every, folder.dtypes)
    buckets = _buckets([(piece, hf_export.nbytes(piece.chunk.dtype, piece.chunk.sizes)) for piece in pieces])
    files = {f"__{i}_0{SUFFIX}": pieces for i, pieces in enumerate(buckets)}
    made_of = {"shape": _shape_digest(shape), "weights": fingerprint}
    stage = StagingFolder(
        out,
        {"to": "mcore", **made_of},
        [(name, _size(pieces)) for name, pieces in files.items()],
        workers.rank,
        workers.size,
        workers.barrier,
    )

    def write(file: HashedFile, name: str) -> list[list[Any]]:
        return [_where(append(file, _fused(piece, folder, shape))) for piece, _ in files[name]]

    stage.write(write, progress(sum(map(_size, files.values()))))
    if workers.rank == 0:
        notes = stage.notes()
        segments = {name: note["segments"] for name, note in notes.items()}
        with stage.writable():
            write_index(
                stage.aside,
                [
                    (piece.chunk, _StorageInfo(*where))
                    for name, pieces in files.items()
                    for (piece, _), where in zip(pieces, notes[name]["facts"], strict=True)
                ],
            )
            segments |= {
                name: manifest.adopt(stage.aside / name) for name in (".metadata", "common.pt", "metadata.json")
            }
            manifest.seal(stage.aside, made_of, segments)
        stage.publish()
    workers.barrier()


def to_hf(
    shape: Shape, model: Model, checkpoint: Path, out: Path, workers: Workers, progress: Callable[[int], Progress]
) -> None:
    """Convert a checkpoint to Hugging Face's format, with the types, config and tokenizer of model.path.

    Raises UserError in the cases of `to_mcore`.
    """
    source = Path(model.path)
    every = weights(shape)
    folder = open_weights(checkpoint, shape)
    dtypes = HfFolder(source, shape, every).dtypes
    buckets = _buckets([((w.name, dtypes[w.name], w.shape), hf_export.nbytes(dtypes[w.name], w.shape)) for w in every])
    files = {hf_export.file_name(i, len(buckets)): [entry for entry, _ in bucket] for i, bucket in enumerate(buckets)}
    by_name = {w.name: w for w in every}
    purpose = {
        "to": "hf",
        "shape": _shape_digest(shape),
        "manifest": manifest.digest(folder.facts),
        "types": hf_export.fingerprint(source),
    }
    sizes = [(name, _size(bucket)) for name, bucket in zip(files, buckets, strict=True)]
    stage = StagingFolder(out, purpose, sizes, workers.rank, workers.size, workers.barrier)

    def write(file: HashedFile, name: str) -> None:
        hf_export.write_header(file, files[name])
        for tensor, dtype, _ in files[name]:
            hf_export.write_tensor(file, read(folder, by_name[tensor], part(by_name[tensor], 1, 0)).to(dtype))

    stage.write(write, progress(sum(size for _, size in sizes)))
    if workers.rank == 0:
        with stage.writable():
            hf_export.finish(stage.aside, files, model)
        stage.publish()
    workers.barrier()


def open_weights(path: Path, shape: Shape) -> DistFolder:
    """Open a checkpoint's weights. Raises UserError if the path is not a complete checkpoint of this model."""
    try:
        folder = DistFolder(path, shape)
    except CorruptError as error:
        if below := _checkpoints_below(path):
            raise UserError(
                f"{path}: contains checkpoints but is not one itself; name one of them: {', '.join(map(str, below))}"
            ) from None
        raise UserError(
            f"{path}: is not a complete checkpoint ({error}); convert again, or name another step"
        ) from None
    if wrong := folder.problems(weights(shape)):
        raise UserError(
            f"{path}: is a checkpoint of another model: it lacks {len(wrong)} tensors ({', '.join(wrong[:3])}"
            f"{', ...' if len(wrong) > 3 else ''}); name the config with which it was made"
        )
    return folder


def _checkpoints_below(path: Path) -> list[Path]:
    """Returns the checkpoints in a run's folder, or in its checkpoints' folder, oldest first."""
    with suppress(OSError):
        sealed = [p.parent for steps in ("checkpoints/step_*", "step_*") for p in path.glob(f"{steps}/{manifest.NAME}")]
        return sorted((p for p in sealed if p.suffix != ".tmp"), key=lambda p: (len(p.name), p.name))
    return []


def check_source(folder: DistFolder, source_fingerprint: str) -> None:
    """Raises UserError if the checkpoint was made from other weights than those of the fingerprint."""
    made_of = folder.facts.get("weights")
    if made_of != source_fingerprint:
        raise UserError(
            f"{folder.path}: was made from other weights (fingerprint {str(made_of)[:12]}) than model.path has now "
            f"({source_fingerprint[:12]}); run convert.py to-mcore again, or correct model.checkpoint"
        )


def _shape_digest(shape: Shape) -> str:
    return manifest.digest(asdict(shape))


def read(folder: DistFolder, weight: Weight, piece: Part) -> Tensor:
    """`folder.read`, with a UserError if the content is corrupt."""
    try:
        return folder.read(weight, piece)
    except CorruptError as error:
        raise UserError(f"{folder.path}: is corrupt ({error}); convert again, or name another step") from None


def _pieces(shape: Shape, every: list[Weight], dtypes: dict[str, torch.dtype]) -> list[FusedChunk]:
    groups: dict[tuple[Any, ...], list[Weight]] = {}
    for weight in every:
        at = place(weight, shape)
        groups.setdefault((at.key, at.index, weight.first if weight.blocks == 1 else None), []).append(weight)
    found = []
    for (key, index, first), members in groups.items():
        at, width = place(members[0], shape), members[0].shape[1:]
        rows = at.rows if first is None else members[0].shape[0]
        chunk = Chunk(
            key,
            at.shape(members[0]),
            dtypes[members[0].name],
            (*index, first or 0, *(0 for _ in width)),
            (*(1 for _ in index), rows, *width),
        )
        found.append(FusedChunk(chunk, tuple(members)))
    return found


def _fused(piece: FusedChunk, folder: HfFolder, shape: Shape) -> Tensor:
    """Returns the chunk's content."""
    chunk, members = piece.chunk, piece.members
    if members[0].blocks == 1:
        return folder.read(members[0], part(members[0], 1, 0)).to(chunk.dtype).reshape(chunk.sizes)
    out = torch.empty(chunk.sizes[len(chunk.sizes) - len(members[0].shape) :], dtype=chunk.dtype)
    for weight in members:
        tensor = folder.read(weight, part(weight, 1, 0))
        for hf, fused, rows in place(weight, shape).runs:
            out[fused : fused + rows] = tensor[hf : hf + rows]
    return out.view(chunk.sizes)


def _where(info: _StorageInfo) -> list[Any]:
    return [info.relative_path, info.offset, info.length]


def _buckets(items: list[tuple[Any, int]]) -> list[list[tuple[Any, int]]]:
    """Group items, given with their sizes, into files, keeping their order."""
    limit = min(max(sum(size for _, size in items) // ABOUT, SMALLEST), LARGEST)
    buckets: list[list[tuple[Any, int]]] = [[]]
    for item, size in items:
        if buckets[-1] and _size(buckets[-1]) + size > limit:
            buckets.append([])
        buckets[-1].append((item, size))
    return buckets


def _size(bucket: list[tuple[Any, int]]) -> int:
    return sum(size for _, size in bucket)
