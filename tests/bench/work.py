"""The work of the benchmarks that compare the job with something else, as their command lines name it."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from r1zero import config
from r1zero.config import Config, UserError

HALF_BILLION = [
    "run.dtype=bfloat16",
    "run.threads=2",
    "train.micro_batch_tokens=2048",  # TRL computes all samples at once
    "checkpoint.after_last=false",
]
"""What differs from the job of tests.bench.real, whose own reward rule TRL does not have."""


def run(main: Callable[[], None]) -> None:
    """Call the `main` of a benchmark. An error in its arguments, or of a program that it starts and that has said what
    is wrong, is shown as one sentence, and the exit status is 2."""
    try:
        main()
    except UserError as error:
        said = str(error)
    except subprocess.CalledProcessError as error:
        said = f"{shlex.join(map(str, error.cmd))}: ended with status {error.returncode}, for the reason above"
    else:
        return
    sys.stderr.write(f"{said}\n")
    sys.exit(2)


def count(text: str) -> int:
    """An argument that is a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `prepare` reads, and --rounds and --steps."""
    parser.add_argument("arguments", nargs="*", help="CONFIG, section.key=value ...")
    parser.add_argument("--half-billion", action="store_true")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--steps", type=count, default=8)
    parser.add_argument("--ranks", type=count)
    parser.add_argument("--hidden", type=count, default=0)
    parser.add_argument("--layers", type=count, default=4)


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace, folder: Path) -> tuple[str, int, list[str]]:
    """Returns config, number of ranks and overrides. A model that has to be made is written below `folder`.

    Paths to what is made are absolute, because the job may run in another folder.
    """
    from tests.bench import real  # which uses `run`

    configs = [word for word in args.arguments if "=" not in word]
    if len(configs) + args.half_billion != 1:
        parser.error(f"give either one CONFIG or --half-billion; the configs are {configs}")
    overrides = [word for word in args.arguments if "=" in word]
    ranks = args.ranks or (1 if args.half_billion else 2)
    if args.half_billion:
        made_in = real.FOLDER.resolve()
        [path, *job] = real.prepare(made_in, real.half_billion(made_in, True))
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
