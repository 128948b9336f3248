"""Measures the seconds that planning, and compiling the weight synchronisation, take for several numbers of ranks.

python -m tests.bench.plan
"""

import time

from rich.console import Console
from rich.table import Table

from r1zero import config, plan
from r1zero.distributed import layout
from r1zero.model import families
from r1zero.weight_sync import rounds
from r1zero.weight_sync.routes import Routes


def main() -> None:
    table = Table("ranks", "seconds to plan", "seconds to compile for one rank", "rounds")
    for world in (384, 1536, 12288):
        cfg = config.load("configs/a3.toml", [f"grpo.prompts_per_iteration={world}"], config.Config)
        start = time.perf_counter()
        plan.plan(cfg, world)
        planned = time.perf_counter()
        routes = Routes(layout.carve(cfg.layout, world), families.model_shape(cfg.model), True, "npu")
        schedule = rounds.schedule(routes, 2, cfg.sync.staging_mib << 20)
        rounds.compile_for(routes, schedule, 0)
        table.add_row(str(world), f"{planned - start:.2f}", f"{time.perf_counter() - planned:.2f}", str(len(schedule)))
    Console().print(table)


if __name__ == "__main__":
    main()
