"""Convert weights between Hugging Face's format and megatron's distributed checkpoints.

Runs alone or under mpirun, torchrun or srun.

python convert.py to-mcore CONFIG OUT [section.key=value ...]               convert model.path, for model.checkpoint
python convert.py to-hf    CONFIG CHECKPOINT OUT [section.key=value ...]    convert a step of a run, or from to-mcore
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from r1zero import config
from r1zero.config import UserError
from r1zero.distributed import device, launcher, world

PATIENCE_S = 7 * 24 * 3600
"""Timeout of collectives. Processes that have finished their share wait this long for the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, folders in (("to-mcore", ["out"]), ("to-hf", ["checkpoint", "out"])):
        command = commands.add_parser(name)
        for argument in ("config", *folders):
            command.add_argument(argument, type=Path)
        command.add_argument("overrides", nargs="*", metavar="section.key=value", help="override one key of the file")
    options = parser.parse_args()
    launch = launcher.stand_in()
    try:
        launch = launcher.read_launch()
        world.abort_on_exception(launch)
        cfg = config.load(str(options.config), options.overrides, config.Config)
    except UserError as error:  # every process raises the same error; the first prints it before another ends the job
        if launch.rank == 0:
            sys.stderr.write(f"convert.py: {error}\n")
        else:
            time.sleep(config.ERROR_WAIT_S)
        sys.exit(2)
    try:
        device.start("cpu", 0)
        if launch.size > 1:
            world.join(launch, device.DEVICES["cpu"], PATIENCE_S)
        _convert(options, cfg, launch)
    except UserError as error:
        if launch.rank:  # give the first process time to print an error that it shares, and to end the job
            time.sleep(config.ERROR_WAIT_S)
        if not isinstance(error, config.CollectiveError) or launch.rank == 0:
            sys.stderr.write(f"convert.py: {error}\n")
        if launch.size > 1:
            world.abort(launch, 2)
        sys.exit(2)
    if launch.size > 1:
        world.leave(launch)


def _convert(options: argparse.Namespace, cfg: config.Config, launch: launcher.Launch) -> None:
    from r1zero.checkpoint import conversion
    from r1zero.model import families

    shape = families.model_shape(cfg.model)
    workers = conversion.Workers(launch.rank, launch.size, _barrier(launch.size))
    console = Console(stderr=True, quiet=launch.rank > 0)
    columns = TextColumn(options.command), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:

        def progress(total: int) -> Callable[[int], None]:
            """Show the first process's own share of the work, as an estimate for all processes."""
            task = bar.add_task("", total=total / launch.size)
            return lambda done: bar.update(task, advance=done)

        if options.command == "to-mcore":
            conversion.to_mcore(shape, Path(cfg.model.path), options.out, workers, progress)
        else:
            conversion.to_hf(shape, cfg.model, options.checkpoint, options.out, workers, progress)
    console.print(f"wrote {options.out}", markup=False, highlight=False, soft_wrap=True)


def _barrier(size: int) -> Callable[[], None]:
    if size == 1:
        return lambda: None
    import torch.distributed as dist

    return dist.barrier


if __name__ == "__main__":
    main()
