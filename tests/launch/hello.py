"""Stands in for train.py under the launch scripts: joins the world as train.py does and says who is where."""

import json
import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))  # the launch scripts start it as a file
from r1zero.distributed import device, launcher, world


def main() -> None:
    launch = launcher.read_launch()
    world.join(launch, device.DEVICES["cpu"], timeout_s=120)
    total = torch.tensor([launch.rank + 1.0])
    dist.all_reduce(total)
    said = {
        "rank": launch.rank,
        "size": launch.size,
        "local_rank": launch.local_rank,
        "local_size": launch.local_size,
        "launcher": launch.launcher,
        "sum": total.item(),
        "host": socket.gethostname(),
        "arguments": sys.argv[1:],
        "R1ZERO_MARK": os.environ.get("R1ZERO_MARK"),
        "affinity": len(os.sched_getaffinity(0)),
    }
    everyone: list = [None] * launch.size
    dist.all_gather_object(everyone, said)
    if launch.rank == 0:
        sys.stdout.write(json.dumps(everyone) + "\n")
    world.leave(launch)


if __name__ == "__main__":
    main()
