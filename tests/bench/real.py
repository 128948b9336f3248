"""Trains a model of a real size on this machine: python -m tests.bench.real [FOLDER] [--untied] [--iterations 2]
[section.key=value ...]

Trains the model in a Hugging Face folder for a few iterations, resumes, exports, and prints seconds and bytes by phase,
with the bytes that the plan predicts. Without FOLDER it makes a model with the shape of Qwen2.5-0.5B and random
weights: vocabulary 151,936, two end tokens, tied embeddings unless --untied is given. Bytes are the process's anonymous
and shared memory (RssAnon and RssShmem, sampled 50 times per second), without pages that are mapped from files, and
without what the allocator keeps of freed blocks.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1zero.distributed import host
from tests.bench import work

SHAPE = dict(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151_936,
    max_position_embeddings=32_768,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
)
TOKENS = 151_643
"""Number of ordinary tokens of the tokenizer. The embedding has more rows."""
JOB = [
    "run.device=cpu",
    "data.shuffle=false",
    "rollout.max_prompt_tokens=64",
    "rollout.max_response_tokens=64",
    "rollout.max_num_seqs=16",
    "rollout.max_num_batched_tokens=1024",
    "rollout.kv_cache_gib=0.25",
    "grpo.prompts_per_iteration=4",
    "grpo.group_size=4",
    "train.micro_batch_tokens=512",
    "optimizer.lr=1e-6",
]
RULE = f'reward.rules={{"{Path(__file__).resolve()}:even_share" = 1.0}}'
FOLDER = Path("runs/bench_real")
PHASES = {
    "rollout": "rollout",
    "reference_model": "reference",
    "update": "update",
    "resharding_to_infer": "sync",
    "save": "save",
}
"""Phase of the step -> phase of the plan."""


def even_share(response: str, label: str) -> float:
    """Returns the share of characters with an even code, a reward that differs between random texts."""
    return sum(ord(c) % 2 == 0 for c in response) / max(1, len(response))


def make(folder: Path, tied: bool) -> None:
    """Write config.json, tokenizer, generation_config.json with two end tokens, and safetensors in bf16."""
    import torch
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2Tokenizer

    alphabet = sorted(ByteLevel.alphabet())
    words = [f"Ġw{i}" for i in range(TOKENS - len(alphabet))]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate([*alphabet, *words])}, merges=[])
    tokenizer.add_tokens([AddedToken(word, special=True) for word in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPE, tie_word_embeddings=tied, eos_token_id=TOKENS)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:  # the published model's key biases reach 145
            bias = layer.self_attn.k_proj.bias
            bias.normal_(std=2.0)[::16] *= 30
    model.generation_config.eos_token_id = [TOKENS, TOKENS + 2]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Memory(threading.Thread):
    """Measures the peak bytes of this process in each phase of the step."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.phase, self.peaks = "start", {}
        self.ended = threading.Event()

    def enter(self, phase: str, iteration: int) -> None:
        self._see()
        self.phase = phase or "between"

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self._see()

    def _see(self) -> None:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().split("\n") if ":" in line)
        now = sum(int(lines[kind].split()[0]) for kind in ("RssAnon", "RssShmem")) * 1024
        now -= host.unused_memory()  # freed by an earlier phase, and kept for the next step
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), now)


def job(arguments: list[str], out: str) -> None:
    """Run train.py while measuring its memory. At the end, the peaks of rank 0 go to the file `out`."""
    from r1zero.distributed import launcher
    from r1zero.observability import metrics

    memory, init = Memory(), metrics.Stopwatch.__init__

    def watched(self: Any) -> None:
        init(self)
        self.observers.append(memory.enter)

    metrics.Stopwatch.__init__ = watched
    memory.start()
    sys.argv = ["train.py", *arguments]
    import train

    try:
        train.main()
    finally:
        memory.ended.set()
        if launcher.read_launch().rank == 0:
            Path(out).write_text(json.dumps(memory.peaks))


def planned(arguments: list[str]) -> dict[str, int]:
    """Returns phase of the plan -> planned bytes of rank 0."""
    done = subprocess.run(
        [sys.executable, "train.py", *arguments, "--plan", "--json"], capture_output=True, text=True, check=False
    )
    memory = json.loads(done.stdout)["places"][0]["phase_memory"]["device"]
    return {phase: sum(kinds.values()) for phase, kinds in memory.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_intermixed_args()
    if args.folder and "=" in str(args.folder):
        args.overrides, args.folder = [str(args.folder), *args.overrides], None
    model = args.folder or half_billion(args.out, not args.untied)
    print_report(*measure(args.out, model, args.iterations, args.overrides))


def half_billion(out: Path, tied: bool) -> Path:
    """Returns the folder of the model with the shape of Qwen2.5-0.5B, and makes it if necessary."""
    model = out / ("tied" if tied else "untied")
    if not model.exists():
        begun = model.with_name(f"{model.name}.tmp")
        shutil.rmtree(begun, ignore_errors=True)  # of a run that ended while it was writing
        make(begun, tied)
        begun.rename(model)
    return model


def prepare(out: Path, model: Path) -> list[str]:
    """Write an empty config and the prompts of the miniature for this model.

    Returns the arguments of train.py: the config, JOB, model and data.
    """
    from r1zero.miniature import problems

    out.mkdir(parents=True, exist_ok=True)
    problems.write(out / "problems.jsonl", problems.draw(problems.split()["train"], 64, random.Random(0)))
    data = out / f"data_{model.name}"
    fields = [f"input={out}/problems.jsonl", f"tokenizer={model}", f"output={data}", "max_prompt_tokens=64"]
    command = [sys.executable, "preprocess.py", "configs/data/quickstart.toml", *fields]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (out / "job.toml").write_text("")
    return [str(out / "job.toml"), *JOB, f"model.path={model}", f"data.path={data}"]


def measure(
    out: Path, model: Path, iterations: int, overrides: list[str]
) -> tuple[list[dict[str, float]], dict[str, int], dict[str, int]]:
    """Run, resume once and export.

    Returns the lines of metrics.jsonl, and the measured and the planned bytes by phase.
    """
    from r1zero.observability import metrics

    name = f"run_{os.getpid()}"
    arguments = [*prepare(out, model), RULE, f"run.dir={out}", f"run.name={name}", *overrides]
    for last in (iterations, iterations + 1):
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.real", "--job", str(out / "peaks.json")]
        subprocess.run([*command, *arguments, f"run.iterations={last}"], check=True)
        if last == iterations:
            peaks = json.loads((out / "peaks.json").read_text())
    subprocess.run(
        [
            sys.executable,
            "convert.py",
            "to-hf",
            arguments[0],
            f"{out}/{name}/checkpoints/step_{last}",
            f"{out}/{name}/hf",
            *arguments[1:],
        ],
        check=True,
    )
    found = {}
    for phase, bytes_ in peaks.items():
        if phase in PHASES:
            found[PHASES[phase]] = max(bytes_, found.get(PHASES[phase], 0))
    return metrics.read(out / name), found, planned(arguments)


def print_report(lines: list[dict[str, float]], found: dict[str, int], said: dict[str, int]) -> None:
    table = Table("phase", "GB measured", "GB planned", "planned / measured")
    for phase, bytes_ in found.items():
        table.add_row(phase, f"{bytes_ / 1e9:.2f}", f"{said[phase] / 1e9:.2f}", f"{said[phase] / bytes_:.3f}")
    Console().print(table)
    seconds = {key.removeprefix("timing/"): value for key, value in lines[-2].items() if key.startswith("timing/")}
    Console().print(", ".join(f"{key} {value:.1f} s" for key, value in seconds.items()))
    Console().print(
        f"logprob gap of engine and trainer: mean {max(line['rollout_gap/mean'] for line in lines):.1e}, "
        f"max {max(line['rollout_gap/max'] for line in lines):.1e}; {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(sys.argv[3:], sys.argv[2])
    else:
        work.run(main)
