"""Measures the speed and the memory of convert.py: python -m tests.bench.convert [--gigabytes 2] [--ranks 1] [--folder
DIR]

Makes a Qwen2 model with random weights in bf16, converts it to megatron's format and back, and compares both with the
speed at which the disk copies the same files. Peak memory is that of the largest process, with its imports. It is also
given for anonymous memory alone, because pages of mapped files count as resident as long as memory is plentiful. The
shard is the model's bytes divided by the number of ranks.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from r1zero.model.families import read_shape
from r1zero.model.weights import weights

HIDDEN, MLP, VOCABULARY = 2048, 8192, 32768


def make(folder: Path, gigabytes: float) -> tuple[int, int]:
    """Write the model. Returns the bytes of all its weights, and of the largest one."""
    layer = 2 * (HIDDEN * HIDDEN * 2 + HIDDEN * 1024 + 3 * HIDDEN * MLP)
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * HIDDEN) / layer))
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            dict(
                architectures=["Qwen2ForCausalLM"],
                model_type="qwen2",
                hidden_size=HIDDEN,
                intermediate_size=MLP,
                num_hidden_layers=layers,
                num_attention_heads=16,
                num_key_value_heads=4,
                vocab_size=VOCABULARY,
                max_position_embeddings=4096,
                rms_norm_eps=1e-6,
                rope_theta=1e4,
                tie_word_embeddings=False,
                hidden_act="silu",
                dtype="bfloat16",
            )
        )
    )
    index, total, largest = {}, 0, 0
    for number, weight in enumerate(weights(read_shape(folder))):
        tensor = torch.randn(weight.shape).bfloat16()
        save_file({weight.name: tensor}, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
        index[weight.name] = f"model-{number:05d}.safetensors"
        total, largest = total + tensor.nbytes, max(largest, tensor.nbytes)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return total, largest


def timed(work: Callable[[], None]) -> float:
    os.sync()
    began = time.perf_counter()
    work()
    os.sync()
    return time.perf_counter() - began


def peak(command: list[str]) -> tuple[float, int, int]:
    """Run a command. Returns its seconds, and the peak resident and peak anonymous bytes of its largest process.

    Anonymous memory is sampled 20 times per second.
    """
    most = [0, 0]

    def work() -> None:
        done = subprocess.Popen(command)
        while done.poll() is None:
            for pid in family(done.pid):
                most[:] = [max(was, now) for was, now in zip(most, memory(pid), strict=True)]
            time.sleep(0.05)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command)

    return timed(work), most[0], most[1]


def family(pid: int) -> list[int]:
    """Returns the ids of a process and of its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [pid, *(p for child in children for p in family(int(child)))]


def memory(pid: int) -> tuple[int, int]:
    """Returns the peak resident bytes of a process, and its current anonymous bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    kib = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in lines)
        if name in ("VmHWM", "RssAnon")
    }
    return kib.get("VmHWM", 0) * 1024, kib.get("RssAnon", 0) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", help="folder on the disk to measure; default: the system's temporary folder")
    args = parser.parse_args()
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    launcher = (
        [str(Path(sys.executable).with_name("mpirun")), "-np", str(args.ranks), "--oversubscribe"]
        if args.ranks > 1
        else []
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        total, largest = make(folder / "hf", args.gigabytes)
        (folder / "run.toml").write_text(f'[model]\npath = "{folder / "hf"}"\n')
        convert = [*launcher, sys.executable, "-W", "ignore", "convert.py"]
        rows = {"copy": (timed(lambda: shutil.copytree(folder / "hf", folder / "copy")), 0, 0)}
        shutil.rmtree(folder / "copy")
        rows["to-mcore"] = peak([*convert, "to-mcore", str(folder / "run.toml"), str(folder / "mcore")])
        rows["to-hf"] = peak([*convert, "to-hf", str(folder / "run.toml"), str(folder / "mcore"), str(folder / "back")])
    table = Table("", "seconds", "GB/s", "speed / copy", "peak MB per process", "of which anonymous", "allowed MB")
    allowed = total / args.ranks + 2 * largest + 300e6
    for what, (seconds, resident, own) in rows.items():
        memory_used = [f"{n / 1e6:.0f}" for n in (resident, own, allowed)] if resident else [""] * 3
        table.add_row(
            what, f"{seconds:.1f}", f"{total / seconds / 1e9:.2f}", f"{rows['copy'][0] / seconds:.0%}", *memory_used
        )
    table.caption = f"{total / 1e9:.2f} GB, {args.ranks} ranks; allowed: shard + 2 tensors + 300 MB"
    Console().print(table)


if __name__ == "__main__":
    main()
