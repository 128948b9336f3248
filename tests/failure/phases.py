"""A job of the step's phases with nothing in them but a collective, under the real watchdog: its imports cost 2 s and
not 10.

mpirun -np 4 python tests/failure/phases.py FOLDER [key=value of the config's run section ...]
"""

import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import torch
import torch.distributed as dist

from r1zero import config
from r1zero.distributed import device, launcher, world
from r1zero.observability import logs, metrics
from r1zero.watchdog import heartbeat
from tests.failure import accidents

APART = ("rollout", "non_overlap_rule_reward")
"""Phases in which no rank waits for another."""
TOGETHER = ("dispatch", "reference_model", "update", "resharding_to_infer", "save")


def main() -> None:
    launch = launcher.read_launch()
    world.abort_on_exception(launch)
    accidents.install()
    run = config.Run(**{key: int(value) for key, value in (argument.split("=") for argument in sys.argv[2:])})
    world.join(launch, device.DEVICES["cpu"], run.timeout_s)
    with heartbeat.watch_rank(run, launch, logs.start(Path(sys.argv[1]), launch.rank), (config.UserError,)) as watch:
        stopwatch = metrics.Stopwatch()
        stopwatch.observers.append(watch.phase)
        for stopwatch.iteration in range(1, 4):
            for name in APART + TOGETHER:
                with stopwatch.phase(name):
                    time.sleep(0.1)
                    if name in TOGETHER:
                        dist.all_reduce(torch.ones(1))
        world.leave(launch)


if __name__ == "__main__":
    main()
