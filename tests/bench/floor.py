"""Measures vLLM alone with the requests of a run: mpirun -np RANKS python -m tests.bench.floor CONFIG RUN FIRST
[section.key=value ...]

Started by tests/bench/step.py --floor. RUN is the folder of a run with metrics.dump = "all". Each rank has an engine of
its own, with the model's shape and random weights, and asks it for responses to the prompts of its share, as long as
those of each iteration of the run, from FIRST on. Nothing of this project is in the engine: no draw of tokens, no
masked ids, no grading. The ranks begin together. Rank 0 prints a JSON object with `rollout`: the seconds until the last
rank was ready, for each iteration.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from r1zero import config
from r1zero.config import Config
from r1zero.data.prompts import PromptSet
from r1zero.distributed import device, launcher, layout, world
from r1zero.model import overrides
from r1zero.observability import tables
from r1zero.patches import patched
from r1zero.rollout import isolation
from r1zero.rollout.arguments import engine_arguments
from r1zero.rollout.engine import ADAPTERS

WARM_UP = 2


def recorded(run: Path, first: int, rank: int) -> list[list[dict[str, Any]]]:
    """Returns the rows that the engine of this rank recorded in each iteration, after WARM_UP times the first."""
    last = max(int(folder.name.removeprefix("iteration_")) for folder in (run / "samples").iterdir())
    files = [run / "samples" / f"iteration_{i}" / f"engine_{rank}.parquet" for i in range(first, last + 1)]
    return [tables.read([file]) for file in files[:1] * WARM_UP + files]


def opened(description: str | None) -> tuple[Config, launcher.Launch, list[list[tuple[list[int], int]]]]:
    """Read the command line. Returns, for each iteration, the tokens of the prompts and the lengths of the responses of
    this rank's engine."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config")
    parser.add_argument("run", type=Path)
    parser.add_argument("first", type=int)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    cfg = config.load(args.config, args.overrides, Config)
    launch, prompts = launcher.read_launch(), PromptSet.open(cfg.data.path)
    requests = [
        [(list(prompts[row["row"]].token_ids), row["length"]) for row in rows]
        for rows in recorded(args.run, args.first, launch.rank)
    ]
    return cfg, launch, requests


def main() -> None:
    cfg, launch, requests = opened(__doc__)
    world.join(launch, device.start(cfg.run.device, launch.local_rank), cfg.run.timeout_s)
    seconds = measure(cfg, requests)
    if launch.rank == 0:
        sys.stdout.write(json.dumps({"rollout": seconds}) + "\n")
    world.leave(launch)


def measure(cfg: Config, requests: list[list[tuple[list[int], int]]]) -> list[float]:
    """Returns the seconds of each iteration after the warm-up, until the last rank was ready."""
    with device.quiet_imports():
        from vllm import LLM

    grids, adapter = layout.carve(cfg.layout, dist.get_world_size()), ADAPTERS[cfg.run.device]
    with (
        isolation.environment(grids, dist.get_rank()),
        isolation.as_world(grids.rollout.ranks),
        adapter.during_construction(),
    ):
        engine = LLM(**engine_arguments(cfg, overrides.stated_config(cfg.model))).llm_engine
    found = []
    for number, of_iteration in enumerate(requests):
        dist.barrier()
        began = time.perf_counter()
        generate(engine, number, of_iteration)
        last = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
        dist.all_reduce(last, dist.ReduceOp.MAX)
        found.append(float(last))
        engine.reset_prefix_cache()
    with patched({"vllm shutdown": lambda destroy: lambda group=None: group and destroy(group)}):
        engine.engine_core.shutdown()
    return found[WARM_UP:]


def generate(engine: Any, number: int, requests: list[tuple[list[int], int]]) -> None:
    """Let the engine answer all requests with as many tokens as they state, and their logprobs."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for i, (tokens, length) in enumerate(requests):
        params = SamplingParams(
            max_tokens=length, ignore_eos=True, logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        engine.add_request(f"{number}-{i}", {"prompt_token_ids": tokens}, params)
    while engine.has_unfinished_requests():
        engine.step()


if __name__ == "__main__":
    main()
