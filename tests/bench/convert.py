"""How fast weights convert, and in how much memory: python -m tests.bench.convert [--gigabytes 2] [--ranks 1] [--folder DIR]

Makes a random Qwen2 in bf16, converts it to megatron's format and back as convert.py does, and sets both beside the disk's own speed
at copying the same files. Peak memory is the largest process's, imports included; the shard is the model's bytes over the ranks.
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

from r1zero.model.families import read_shape, weights

HIDDEN, MLP, VOCABULARY = 2048, 8192, 32768


def make(folder: Path, gigabytes: float) -> tuple[int, int]:
    """Returns the bytes of all weights and of the largest one."""
    layer = 2 * (HIDDEN * HIDDEN * 2 + HIDDEN * 1024 + 3 * HIDDEN * MLP)
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * HIDDEN) / layer))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=4, vocab_size=VOCABULARY, max_position_embeddings=4096, rms_norm_eps=1e-6,
        rope_theta=1e4, tie_word_embeddings=False, hidden_act="silu", dtype="bfloat16")))
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


def peak(command: list[str]) -> tuple[float, int]:
    """Seconds and the largest resident bytes of any process of the command."""
    code = ("import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)")
    found: list[int] = []

    def work() -> None:
        done = subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE, text=True)
        found.append(int(done.stdout.split()[-1]) * 1024)
    return timed(work), found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", help="on the disk to be measured; default: the system's temporary folder")
    args = parser.parse_args()
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    launcher = [str(Path(sys.executable).with_name("mpirun")), "-np", str(args.ranks), "--oversubscribe"] if args.ranks > 1 else []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        total, largest = make(folder / "hf", args.gigabytes)
        (folder / "run.toml").write_text(f'[model]\npath = "{folder / "hf"}"\n')
        convert = [*launcher, sys.executable, "-W", "ignore", "convert.py"]
        rows = {"copy": (timed(lambda: shutil.copytree(folder / "hf", folder / "copy")), None)}
        shutil.rmtree(folder / "copy")
        rows["to-mcore"] = peak([*convert, "to-mcore", str(folder / "run.toml"), str(folder / "mcore")])
        rows["to-hf"] = peak([*convert, "to-hf", str(folder / "run.toml"), str(folder / "mcore"), str(folder / "back")])
    table = Table("", "seconds", "GB/s", "of the copy's speed", "peak MB a process", "allowed MB")
    allowed = total / args.ranks + 2 * largest + 300e6
    for what, (seconds, resident) in rows.items():
        table.add_row(what, f"{seconds:.1f}", f"{total / seconds / 1e9:.2f}", f"{rows['copy'][0] / seconds:.0%}",
                      "" if resident is None else f"{resident / 1e6:.0f}", "" if resident is None else f"{allowed / 1e6:.0f}")
    table.caption = f"{total / 1e9:.2f} GB, {args.ranks} ranks; allowed: shard + 2 tensors + 300 MB"
    Console().print(table)


if __name__ == "__main__":
    main()
