"""The real job with an accident on one of its ranks, over which engines and trainer are cut in two.

python -m pytest tests/failure/test_job.py -m "long or not long"
"""

import re
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import pytest

from tests import patience, shared_memory

SLOWNESS = ceil(patience.slowness())
DEADLINE_S, SILENCE_S, PROMISE_S = 10 * SLOWNESS, 8 * SLOWNESS, 15 * SLOWNESS
"""phase_timeout_s, silence_timeout_s, and what may pass beyond them to the last rank's end: longer where others use the
same cores."""
GRIDS = ["layout.train.tensor_model_parallel_size=2", "layout.rollout.tensor_parallel_size=2"]
SPLIT = ["layout.train.ranks=0", "layout.rollout.ranks=1"]
PHASES = ("rollout", "non_overlap_rule_reward", "reference_model", "update", "resharding_to_infer", "save")


def check(
    ranks, base: Path, folder: Path, size: int, accident: tuple[str, int, str], grids: Sequence[str] = GRIDS
) -> None:
    kind, rank, phase = accident
    before = shared_memory.left_behind()
    log = folder / "log"
    arguments = [
        str(base / "job.toml"),
        f"run.dir={folder}",
        f"run.phase_timeout_s={DEADLINE_S}",
        f"run.silence_timeout_s={SILENCE_S}",
        "checkpoint.every_iterations=1",
        *grids,
    ]
    ended = ranks.job(size, arguments, log, f"{kind} {rank} {phase} 2 0")
    out = log.read_text()
    # No launcher has helped: a rank ends by itself; one that is stopped by a neighbour.
    statuses = [-9 if (kind, r) == ("stop", rank) else 1 for r in range(size)]
    assert ended["statuses"] == statuses, f"{ended}\n{out[-5000:]}"
    name = rf"rank {rank} of {size} on \S+ \(process \d+\)"
    said = {
        "exception": rf"{name} failed in phase {phase} of iteration 2",
        "hang": rf"{name} is late: \d+ s in phase {phase} of iteration 2",
        "stop": rf"{name} has given no sign of life for \d+ s; it was in phase {phase} of iteration 2",
    }[kind]
    assert len(re.findall(said, out)) == 1, out[-5000:]
    assert len(re.findall(rf"rank \d of {size} on", out)) == 1, out[-5000:]  # once, and nobody else
    if kind == "exception":
        assert out.rstrip().endswith(f"Accident: in {phase}") and out.count("Traceback") == 1, out[-5000:]
    if kind == "hang":
        assert f"rank {rank} is not in a collective; it stands at:" in out and "time.sleep(1e6)" in out, out[-5000:]
    promise = PROMISE_S + {"exception": 0, "hang": DEADLINE_S, "stop": SILENCE_S}[kind]
    assert ended["ended"] - float(re.search(r"ACCIDENT (\S+)", out)[1]) < promise
    assert not ended["left"]
    time.sleep(0.1)
    assert shared_memory.left_behind() <= before


@pytest.mark.slow
@pytest.mark.parametrize("kind, rank, phase", [("exception", 1, "save"), ("hang", 1, "rollout"), ("stop", 0, "update")])
def test_the_job_names_the_culprit_and_leaves_nothing(ranks, base, tmp_path, kind, rank, phase):
    check(ranks, base, tmp_path, 2, (kind, rank, phase))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exception", "hang"])
def test_a_trainer_that_waits_for_responses_is_not_the_culprit(ranks, base, tmp_path, kind):
    """It is in the rollout like the engine, and computes the reference of what has come."""
    check(ranks, base, tmp_path, 2, (kind, 1, "rollout"), SPLIT)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["exception", "hang", "stop"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_job_of_two_engines_names_the_culprit_in_every_phase(ranks, base, tmp_path, kind, phase):
    check(ranks, base, tmp_path, 4, (kind, 3, phase))
