"""The work of the benchmarks that compare the job with something else, as their command lines name it."""

import argparse
import shutil
from pathlib import Path

from r1zero import config
from r1zero.config import Config
from tests.bench import real

HALF_BILLION = [
    "run.dtype=bfloat16",
    "run.threads=2",
    "train.micro_batch_tokens=2048",  # TRL computes all samples at once
    "checkpoint.after_last=false",
]
"""What differs from the job of tests.bench.real, whose own reward rule TRL does not have."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `prepare` reads, and --rounds and --steps."""
    parser.add_argument("arguments", nargs="*", help="CONFIG, section.key=value ...")
    parser.add_argument("--half-billion", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--hidden", type=int, default=0)
    parser.add_argument("--layers", type=int, default=4)


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace, folder: Path) -> tuple[str, int, list[str]]:
    """Returns config, number of ranks and overrides. A model that has to be made is written below `folder`."""
    configs = [word for word in args.arguments if "=" not in word]
    if len(configs) + args.half_billion != 1:
        parser.error(f"give either one CONFIG or --half-billion; the configs are {configs}")
    overrides = [word for word in args.arguments if "=" in word]
    ranks = args.ranks or (1 if args.half_billion else 2)
    if args.half_billion:
        [path, *job] = real.prepare(real.FOLDER, real.half_billion(real.FOLDER, True))
        overrides = [*job, *HALF_BILLION, *overrides]
    else:
        [path] = configs
    if args.hidden:
        source = config.load(path, overrides, Config).model.path
        made = random_model(folder, source, args.hidden, args.layers)
        overrides = [*overrides, f"model.path={made}", "model.checkpoint="]
    return path, ranks, overrides


def random_model(folder: Path, source: str, hidden: int, layers: int) -> Path:
    """Write a random Qwen2 with the tokenizer of the folder `source`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(source)
    shape.update(
        dict(
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=hidden // 4,
            layer_types=["full_attention"] * layers,
        )
    )
    torch.manual_seed(0)
    made = shutil.copytree(source, folder / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(made)
    return made
