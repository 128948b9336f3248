"""Compares the job with TRL's GRPOTrainer: python -m tests.bench.trl CONFIG [--rounds 3] [--steps 8] [--ranks 2]
[--venv FOLDER] [--hidden WIDTH --layers N] [section.key=value ...], or the same with --half-billion instead of CONFIG.

Both get the same model, prompts, lengths, type and number of cores, and run in turns; medians and their ratio are
printed. TRL runs in a virtual environment of its own, made at the first use beside the installed packages, whose torch
and transformers it shares. With --hidden and --layers the model is a random Qwen2 of that size with the tokenizer and
the prompts of CONFIG; otherwise it is that of CONFIG. With --half-billion the job is that of tests.bench.real in bf16:
a random model with the shape of Qwen2.5-0.5B, one process with two threads. Tokens are those of prompts and responses
of all samples, however often a trainer computes them. On a shared machine only the ratio is meaningful, and processor
seconds are steadier than wall seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1zero import config
from r1zero.config import Config
from r1zero.data.prompts import PromptSet
from tests.bench import step, work

PACKAGES = ("trl==1.16.0", "accelerate", "datasets")
WARM_UP = step.WARM_UP


def environment(folder: Path) -> Path:
    """Returns the Python of TRL's virtual environment, and makes it if necessary."""
    python, done = folder / "bin/python", folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
    # Written at every use, because the environment may have been made beside another one that is gone.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    if not done.exists():
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        done.touch()
    return python


def peer(python: Path, cfg: Config, steps: int) -> list[dict[str, float]]:
    """Returns the steps of TRL's trainer, without the warm-up."""
    prompts = PromptSet.open(cfg.data.path)
    with tempfile.TemporaryDirectory() as folder:
        task: dict[str, Any] = {
            "model": str(Path(cfg.model.path).resolve()),
            "prompts": [{"prompt": prompts[i].text, "label": prompts[i].label} for i in range(min(512, len(prompts)))],
            "prompts_per_step": cfg.grpo.prompts_per_iteration,
            "group_size": cfg.grpo.group_size,
            "response_tokens": cfg.rollout.max_response_tokens,
            "batch": 64,
            "threads": len(os.sched_getaffinity(0)),
            "dtype": cfg.run.dtype,
            "lr": cfg.optimizer.lr,
            "kl_coef": cfg.grpo.kl_coef,
            "steps": steps + WARM_UP,
            "folder": folder,
        }
        script = Path(__file__).with_name("trl_peer.py")
        cores = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        (Path(folder) / "task.json").write_text(json.dumps(task), encoding="utf-8")
        # -P: otherwise `import trl` would find this file.
        command = [str(python), "-P", "-W", "ignore", str(script), f"{folder}/task.json"]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=cores, cwd=folder).stdout
    lines = [json.loads(line.removeprefix("STEP ")) for line in said.splitlines() if line.startswith("STEP ")]
    return lines[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    work.add_arguments(parser)
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "trl-venv")
    args = parser.parse_intermixed_args()
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path, ranks, overrides = work.prepare(parser, args, Path(folder))
        cfg = config.load(path, overrides, Config)
        python = environment(args.venv)
        for _ in range(args.rounds):
            ours += step.run(path, ranks, args.steps, overrides)
            theirs += peer(python, cfg, args.steps)
    Console().print(table(ours, theirs, ranks))


def table(ours: list[dict[str, float]], theirs: list[dict[str, float]], ranks: int) -> Table:
    """Returns medians per step of both, and the ratio of their tokens/s."""

    def median(lines: list[dict[str, float]], name: str) -> float:
        return statistics.median(line.get(name, 0.0) for line in lines)

    rates = median(ours, "e2e_tps") * ranks, statistics.median(line["tokens"] / line["seconds"] for line in theirs)
    shown = Table("per step", "the job", "TRL")
    shown.add_row("seconds", f"{median(ours, 'timing/all'):.3f}", f"{median(theirs, 'seconds'):.3f}")
    shown.add_row("rollout", f"{median(ours, 'timing/rollout'):.3f}", f"{median(theirs, 'rollout'):.3f}")
    shown.add_row("reference", f"{median(ours, 'timing/reference_model'):.3f}", f"{median(theirs, 'logprobs'):.3f}")
    shown.add_row("update", f"{median(ours, 'timing/update'):.3f}", f"{median(theirs, 'update'):.3f}")
    shown.add_row("tokens/s", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}")
    shown.caption = (
        f"the job has {rates[0] / rates[1]:.2f} times as many tokens/s; medians of {len(ours)} and {len(theirs)} steps"
    )
    return shown


if __name__ == "__main__":
    work.run(main)
