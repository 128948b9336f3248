"""A run that is killed again and again, at random moments, is in the end the run that never was.

python -m pytest tests/failure/test_kills.py -m "long or not long" -s
"""

import random
import shutil
import sys
from pathlib import Path

import pytest

from tests.checkpoint.runs import check_equal, figures

PHASES = (
    "rollout",
    "non_overlap_rule_reward",
    "dispatch",
    "reference_model",
    "update",
    "resharding_to_infer",
    "record",
    "save",
    "save",
)
"""Twice the phase whose every moment differs."""
TINY = ["rollout.max_response_tokens=8", "grpo.prompts_per_iteration=2", "grpo.group_size=2"]
TP2 = ["layout.train.tensor_model_parallel_size=2", "layout.rollout.tensor_parallel_size=2"]


def latest(folder: Path) -> int:
    file = folder / "checkpoints/latest"
    return int(file.read_text().strip().removeprefix("step_")) if file.exists() else 0


def moment(rng: random.Random, done: int, iterations: int, seconds: dict[str, float]) -> str:
    """A rank of two, a phase, an iteration not yet saved, and how far into the phase; not past the run's last save."""
    iteration = min(done + rng.randint(1, 2), iterations)
    phase = rng.choice(PHASES if iteration < iterations else PHASES[:-2])
    return f"kill {rng.randrange(2)} {phase} {iteration} {rng.uniform(0, seconds[phase]):.4f}"


def killed_often(ranks, base: Path, folder: Path, iterations: int, kills: int, overrides: list[str]) -> None:
    seed = random.randrange(10_000)
    rng = random.Random(seed)
    log = folder / "log"
    arguments = [
        str(base / "job.toml"),
        f"run.dir={folder}",
        f"run.iterations={iterations}",
        "checkpoint.every_iterations=1",
        *overrides,
    ]
    assert ranks.job(2, [*arguments, "run.name=whole"], log)["statuses"] == [0, 0], log.read_text()[-3000:]
    timed = list(map(dict, lines(folder / "whole")))[1:]  # the first iteration saves nothing before it
    seconds = {phase: sum(line[f"timing/{phase}"] for line in timed) / len(timed) for phase in PHASES}
    moments: list[str] = []
    while len(moments) < kills:
        accident = moment(rng, latest(folder / "cut"), iterations, seconds)
        ended = ranks.job(2, [*arguments, "run.name=cut"], log, accident, launcher_kills=True)
        said = f"seed {seed}, kill {len(moments) + 1}: {accident}, from iteration {latest(folder / 'cut')}"
        assert not ended["left"] and not ended["overdue"], f"{said}: {ended}"
        if -9 not in ended["statuses"]:  # it had run on to its end before the moment came
            assert ended["statuses"] == [0, 0], f"{said}: {ended}\n{log.read_text()[-3000:]}"
            shutil.rmtree(folder / "cut" / "checkpoints" / f"step_{iterations}")
            (folder / "cut/checkpoints/latest").write_text(f"step_{iterations - 1}\n")
            continue
        moments.append(accident)
    continue_elsewhere(ranks, folder, arguments, log)
    assert ranks.job(2, [*arguments, "run.name=cut"], log)["statuses"] == [0, 0], log.read_text()[-3000:]
    sys.stdout.write(
        f"seed {seed}: killed {kills} times in {iterations} iterations, at " + "; ".join(m[5:] for m in moments) + "\n"
    )
    check_equal(folder / "whole", folder / "cut", iterations)


def continue_elsewhere(ranks, folder: Path, arguments: list[str], log: Path) -> None:
    """The first step after the kills, under tensor parallelism in place of data parallelism."""
    done = latest(folder / "cut")
    shutil.copytree(folder / "cut", folder / "elsewhere")
    overrides = [*TP2, "run.name=elsewhere", f"run.iterations={done + 1}"]
    assert ranks.job(2, [*arguments, *overrides], log)["statuses"] == [0, 0], log.read_text()[-3000:]
    one, other = figures(folder / "whole")[done], figures(folder / "elsewhere")[done]
    tolerance = 1e-5 if "run.dtype=bfloat16" not in arguments else 1e-2
    for key in ("grad_norm", "actor/kl_loss", "actor/entropy", "grpo/rewards/mean"):
        assert other[key] == pytest.approx(one[key], rel=tolerance, abs=tolerance), key


def lines(folder: Path) -> list[dict]:
    import json

    return [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


@pytest.mark.slow
def test_two_kills_change_nothing(ranks, base, tmp_path):
    killed_often(ranks, base, tmp_path, 3, 2, [])


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twenty_kills_change_nothing(ranks, base, tmp_path, dtype):
    killed_often(ranks, base, tmp_path, 10, 20, [f"run.dtype={dtype}", *(TINY if dtype == "bfloat16" else [])])
