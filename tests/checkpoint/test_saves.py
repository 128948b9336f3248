"""Whatever happens to a save or to its files, a complete checkpoint is found, or the user is told why not.

python -m pytest tests/checkpoint/test_saves.py
"""

import os
import shutil
import subprocess

import pytest

from r1zero.checkpoint import step_folders
from r1zero.config import Checkpoint
from tests.checkpoint import cases
from tests.model.cases import grid


@pytest.mark.slow
def test_a_save_that_dies_at_any_moment_leaves_the_checkpoint_before_or_its_own_and_the_next_save_clears_up(
    ranks, models, tmp_path
):
    (seen,) = ranks.run(cases.die_at_every_moment, models("qwen2"), tmp_path / "checkpoints", size=1)
    assert {what for what, *_ in seen} == {"write", "_sync", "rename", "replace", "rmtree"}
    assert all(iteration == value for _, iteration, value, _ in seen)
    order = [iteration for _, iteration, *_ in seen]
    assert order == sorted(order) and set(order) == {2, 3}  # before the rename the old one, from then on the new one
    for _, iteration, _, names in seen:
        assert set(names) == {"latest", "step_4", f"step_{iteration}"}


@pytest.fixture(scope="module")
def two(ranks, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    ranks.run(cases.save_two, models("qwen2"), grid(), folder, size=2)
    return folder


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a truncated shard": (lambda f: os.truncate(f / "__1_1.distcp", 5000), r"__1_1.distcp has 5000 bytes of \d+"),
    "one flipped bit of the weights": (
        lambda f: flip(f / "__0_0.distcp"),
        "__0_0.distcp has other content than was written",
    ),
    "one flipped bit of the optimizer": (
        lambda f: flip(f / "__1_1.distcp", 0.9),
        "__1_1.distcp has other content than was written",
    ),
    "a missing shard": (lambda f: (f / "__1_0.distcp").unlink(), "__1_0.distcp is missing"),
    "a flipped bit of the index": (lambda f: flip(f / ".metadata"), ".metadata has other content than was written"),
    "another iteration in the manifest": (
        lambda f: (f / "manifest.json").write_text(
            (f / "manifest.json").read_text().replace('"iteration": 2', '"iteration": 9')
        ),
        "manifest.json was altered",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "an empty manifest": (lambda f: os.truncate(f / "manifest.json", 0), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_torn_checkpoint_is_named_in_one_warning_and_the_one_before_is_taken(ranks, two, tmp_path, name):
    damage, complaint = DAMAGES[name]
    folder = shutil.copytree(two, tmp_path / "checkpoints")
    damage(folder / "step_2")
    first, second = ranks.run(cases.newest, folder, size=2)
    assert second == (1, [])
    assert first[0] == 1 and len(first[1]) == 1
    with pytest.raises(AssertionError, match=f"step_2 is corrupt and is skipped: .*{complaint}"):
        raise AssertionError(first[1][0])


def test_when_none_is_complete_the_run_does_not_start_anew_by_itself(ranks, two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "checkpoints")
    flip(folder / "step_1" / "__0_0.distcp")
    (folder / "step_2" / "common.pt").unlink()
    for sentence in ranks.run(cases.newest, folder, size=2):
        assert (
            "none of its checkpoints is complete (step_2: common.pt is missing; step_1: __0_0.distcp has other content"
            in sentence
        )
        assert "remove the folder to start anew" in sentence


def test_without_a_checkpoint_there_is_nothing_to_resume(ranks, tmp_path):
    assert ranks.run(cases.newest, tmp_path / "checkpoints", size=2) == [(None, []), (None, [])]
    (tmp_path / "checkpoints" / "step_3.tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert ranks.run(cases.newest, tmp_path / "checkpoints", size=2) == [(None, []), (None, [])]


@pytest.mark.parametrize(
    "how, expected", [("disk", "the disk has 0.000 GB free; make room"), ("quota", cases.FILE_TOO_LARGE)]
)
def test_without_room_every_rank_says_so_in_a_sentence_and_the_checkpoint_before_stays(
    ranks, models, tmp_path, how, expected
):
    folder = tmp_path / "checkpoints"
    for sentence in ranks.run(cases.save_without_room, models("qwen2"), grid(), folder, how, size=2):
        assert expected in sentence and "step_2: " in sentence and "\n" not in sentence
    assert ranks.run(cases.newest, folder, size=1) == [(1, [])]
    assert (folder / "latest").read_text() == "step_1\n" and not (folder / "step_2").exists()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode:
        pytest.skip("a small disk cannot be mounted here (needs root): a disk that fills up was NOT tried")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_during_a_save_costs_that_save_only(ranks, models, small_disk):
    shares = [0.0, 0.1, 0.4, 0.7, 0.95]
    (seen,) = ranks.run(cases.save_while_the_disk_fills, models("qwen2"), small_disk, shares, size=1)
    for number, (sentence, there, newest, after) in enumerate(seen):
        assert "No space left on device" in sentence and "make room" in sentence and "\n" not in sentence
        assert newest == 1 and there == ["latest", f"step_{2 * number + 1}"], (
            "the old one stays, and nothing takes its room"
        )
        assert after == ["latest", f"step_{2 * number + 2}"]


def test_the_newest_and_every_nth_are_kept(ranks, models, tmp_path):
    assert ranks.run(cases.save_six, models("qwen2"), tmp_path / "checkpoints", size=1) == [
        ["latest", "step_3", "step_5", "step_6"]
    ]


def test_a_checkpoint_of_another_model_is_refused_in_a_sentence(ranks, models, two):
    (sentence,) = ranks.run(cases.load_another_model, models("qwen3"), two, size=1)
    assert "step_2: is a checkpoint of another model: it lacks" in sentence and "\n" not in sentence


def save_aside(folder, step):
    aside = folder / f"step_{step}.tmp"
    assert step_folders.prepare(folder, aside, 0) == ""
    step_folders.put_in_place(aside, folder / f"step_{step}", Checkpoint(keep=1))


def test_a_link_to_the_checkpoints_is_followed_and_one_to_an_old_step_is_dropped_without_what_it_leads_to(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.symlink_to("big/checkpoints")  # leads nowhere yet
    save_aside(folder, 1)
    (folder / "step_1").rename(tmp_path / "archived")
    (tmp_path / "archived" / "kept").write_text("")
    (folder / "step_1").symlink_to(tmp_path / "archived")
    save_aside(folder, 2)
    assert folder.is_symlink() and (tmp_path / "archived" / "kept").exists()
    assert {p.name for p in folder.glob("step_*")} == {"step_2"} and not list(folder.glob("*.old.tmp"))


def test_a_save_takes_the_memory_of_two_pieces_as_the_plan_says(ranks, models, tmp_path):
    """`--plan` states two pieces of CHUNK_BYTES; here they are smaller. The rest is what Python and torch allocate."""
    piece = 4 << 20
    ((grown, written),) = ranks.run(cases.memory_of_a_save, models("qwen2"), tmp_path / "checkpoints", piece, size=1)
    assert written > 10 * piece
    assert grown < 2 * piece + (6 << 20)
