"""Train a model: python train.py CONFIG [section.key=value ...], alone or under mpirun, torchrun or srun."""

import argparse
import logging
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

from r1zero import config, plan
from r1zero.config import UserError, limits
from r1zero.distributed import device, launcher, layout, threads, world
from r1zero.evaluation import target
from r1zero.model import families, placement
from r1zero.observability import logs
from r1zero.reward import RewardError, Scorer, check_rules
from r1zero.rollout import engine_limits

log = logging.getLogger("r1zero.train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", help="a TOML file, such as configs/cpu.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override one key of the file")
    parser.add_argument(
        "--plan", action="store_true", help="print layout, memory, traffic and duration, then exit; needs no device"
    )
    parser.add_argument(
        "--world",
        type=int,
        metavar="RANKS",
        help="with --plan: size of the world, if the config does not state it or for another size",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="start all ranks, try once everything that a step needs, print the results, then exit",
    )
    parser.add_argument(
        "--eval",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="evaluate a Hugging Face folder, a checkpoint, or the newest checkpoint of the run, then exit",
    )
    parser.add_argument(
        "--doctor", action="store_true", help="print what this machine has beside what is expected, then exit"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show on rank 0 what the start is doing, with the seconds of each part"
    )
    parser.add_argument("--json", action="store_true", help="with --plan: print JSON")
    args = parser.parse_intermixed_args()
    if args.doctor:
        sys.exit(doctor())
    if args.config is None:
        parser.error("a config is required: a TOML file, such as configs/cpu.toml")
    if "=" in (args.eval or ""):  # an override that follows --eval is no folder
        args.overrides, args.eval = [args.eval, *args.overrides], ""
    launch = launcher.stand_in()
    try:
        launch = launcher.read_launch()
        world.abort_on_exception(launch)
        if args.verbose and launch.rank == 0:
            logs.be_verbose()
        cfg = config.load(args.config, args.overrides, config.Config)
        limits.check(cfg)
        cfg = replace(cfg, run=choose_dtype(cfg.run, launch.rank))
        evaluated = None
        if args.eval is not None:
            cfg, evaluated = target.resolve(cfg, args.eval)
        if args.plan:
            sys.exit(plan.main(cfg, args.world or cfg.layout.world or launch.size, args.json))
        layout.check_world(cfg.layout, launch.size)
        grids = layout.carve(cfg.layout, launch.size)
        layout.check_batch(cfg, grids)
        shape = families.model_shape(cfg.model)
        for role in filter(None, (grids.train, grids.reference)):
            placement.check(shape, role)
        placement.recomputed_layers(cfg.train, shape, grids.train)
        engine_limits.check(cfg, shape, grids)
        check_rules(cfg.reward.rules)
    except (UserError, RewardError) as error:
        # Every rank raises the same error. Rank 0 prints it, before the exit of another rank can end the job.
        if launch.rank == 0:
            sys.stderr.write(f"{error}\n")
        else:
            time.sleep(config.ERROR_WAIT_S)
        sys.exit(2)
    log.info("start: the config and the layout are valid")
    try:
        train(cfg, grids, launch, args.check, evaluated)
    except (UserError, RewardError) as error:
        if launch.rank == 0 or not isinstance(error, config.CollectiveError):
            sys.stderr.write(f"{error}\n")
        world.abort(launch, 2)


def choose_dtype(run: config.Run, rank: int) -> config.Run:
    """Returns the section with a definite type, and says on rank 0 which one "auto" became."""
    chosen = device.resolve_dtype(run)
    if chosen != run and rank == 0:
        sys.stderr.write(f'run.dtype = "auto": {chosen.dtype} on this {run.device}\n')
    return chosen


def doctor() -> int:
    """Look at this machine alone. Returns the exit status: 2 where something would stop every run."""
    from r1zero import preflight
    from r1zero.preflight.doctor import examine

    rows = list(preflight.show(examine(), 0))
    return 2 if any(row.grade == "failed" for row in rows) else 0


def train(
    cfg: config.Config, grids: layout.Layout, launch: launcher.Launch, check: bool, evaluated: target.Target | None
) -> None:
    """Run this rank, from joining the world to leaving it.

    check: only run the checks and trials of --check. evaluated: only evaluate these weights.
    """
    # The grading processes are started first, so that they inherit neither MPI nor the device.
    scorer = None
    if launch.rank in grids.rollout:
        reward = cfg.reward
        scorer = Scorer(reward.rules, reward.workers_per_rank, reward.deadline_s, reward.worker_memory_mib)
    if cfg.run.deterministic:
        device.make_deterministic(cfg.run.device)
    chosen = threads.given(cfg.run)
    row = device.start(cfg.run.device, launch.local_rank)
    world.join(launch, row, cfg.run.timeout_s)
    log.info(
        "start: torch is loaded, %d ranks have joined the world, %d threads on each",
        launch.size,
        threads.start(cfg.run, chosen, families.model_shape(cfg.model).hidden_size),
    )
    from r1zero import preflight
    from r1zero.checkpoint.run_lock import RunLock
    from r1zero.watchdog import heartbeat

    folder = Path(cfg.run.dir) / cfg.run.name
    rows = preflight.before(cfg, grids, launch)
    if check:
        rows = list(preflight.show(rows, launch.rank))
    preflight.stop_if_failed(rows)
    lock = RunLock(folder) if launch.rank == 0 else None
    log_file = logs.start(folder / "logs", launch.rank)
    log.info("start: the machine is checked")
    with heartbeat.watch_rank(cfg.run, launch, log_file, (UserError, RewardError)) as watch:
        if lock:
            watch.renewals.append(lock.renew)
        with device.quiet_imports():
            from r1zero.trainer import Trainer

        log.info("start: megatron-core is loaded")
        trainer = Trainer(cfg, grids, launch, scorer, device.torch_device(cfg.run.device))
        trainer.watch.observers.append(watch.phase)
        links = preflight.links(trainer.roles.groups(), launch.size, trainer.device)
        if check:
            rows += preflight.show(chain(links, preflight.trial(trainer)), launch.rank)
            preflight.stop_if_failed(rows)
            trainer.roles.close()
        else:
            preflight.warn(rows + links, launch.rank)
            if evaluated:
                trainer.evaluate(evaluated)
            else:
                if launch.rank == 0:
                    preflight.record_environment(folder, launch.size)
                trainer.run()
        if scorer:
            scorer.close()
        if lock:
            lock.release()
        world.leave(launch)


if __name__ == "__main__":
    main()
