"""What is not the same on all ranks, or not enough, is one line with place and cure before anything is built."""

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from r1zero import config
from r1zero.distributed import layout
from r1zero.preflight import timings
from r1zero.preflight.agree import Needs, compare
from r1zero.preflight.facts import Facts, digest, write_trouble
from r1zero.preflight.rows import CheckResult, format_ranks
from tests import jobs

ROOT = Path(__file__).parent.parent.parent
NEEDS = Needs(
    checkpoint=10**9, checkpoints=3, memory=(10**9,) * 4, on_host=True, shared=(4 * 10**6,) * 4, queue=24 * 10**6
)


def facts(rank, **changes):
    plain = dict(
        rank=rank,
        host=f"node{rank // 2}",
        code="c" * 64,
        settings={"run.seed": "1", "grpo.kl_coef": "0.1"},
        packages={"torch": "2.13"},
        data="d" * 64,
        weights="w" * 64 if rank % 2 == 0 else "",
        clock=1e9 + rank,
        free_disk=10**10,
        trouble="",
        free_memory=10**11,
        free_shared=64 * 10**6,
    )
    return Facts(**plain | changes)


def troubles(*changed, needs=NEEDS):
    """Rows that are not in order, of four ranks on two hosts of which some have other facts."""
    others = dict(changed)
    return [
        row for row in compare([facts(rank, **others.get(rank, {})) for rank in range(4)], needs) if row.grade != "ok"
    ]


def test_four_equal_ranks_are_in_order():
    assert troubles() == []


@pytest.mark.parametrize(
    "rank, change, grade, line",
    [
        (
            3,
            {"settings": {"run.seed": "2", "grpo.kl_coef": "0.1"}},
            "failed",
            "config run.seed of rank 3 on node1: found 2, expected 1 as on 3 other ranks",
        ),
        (
            0,
            {"packages": {"torch": "2.12"}},
            "failed",
            "package torch of rank 0 on node0: found 2.12, expected 2.13 as on 3 other ranks",
        ),
        (1, {"code": "x" * 64}, "failed", "code of rank 1 on node0: found xxxxxxxxxxxx, expected cccccccccccc"),
        (2, {"data": "x" * 64}, "failed", "data (data.path) of rank 2 on node1"),
        (2, {"weights": "x" * 64}, "failed", "weights (model.path, model.checkpoint) of rank 2 on node1"),
        (1, {"clock": 1e9 + 3600}, "warning", "clock of rank 1 on node0: found 3598 s off, expected within 30 s"),
        (
            1,
            {"trouble": "/full: Read-only file system"},
            "failed",
            "run folder of rank 1 on node0: found /full: Read-only file system",
        ),
        (
            3,
            {"free_disk": 5 * 10**8},
            "failed",
            "disk of rank 3 on node1: found 0.500 GB free, expected 1.000 GB per checkpoint, 3 of them",
        ),
        (3, {"free_disk": 2 * 10**9}, "warning", "disk of rank 3 on node1: found 2.000 GB free"),
        (
            3,
            {"free_memory": 10**9},
            "warning",
            "memory of node1: found 1.00 GB available, expected 2.00 GB for its 2 ranks, according to the plan",
        ),
    ],
)
def test_one_rank_that_differs_is_one_line_with_place_both_values_and_cure(rank, change, grade, line):
    (row,) = troubles((rank, change))
    assert row.grade == grade and row.line.startswith(line) and row.cure and row.line.endswith(row.cure)


def test_a_host_with_too_little_shared_memory_is_named():
    assert troubles((2, {"free_shared": 32 * 10**6})) == []
    (row,) = troubles((2, {"free_shared": 32 * 10**6 - 1}))
    assert row.grade == "failed" and row.line == (
        "shared memory of node1: found 32.0 MB free in /dev/shm, expected 32.0 MB for the engines' tensor groups; "
        "give the container more (--shm-size, --ipc=host), remount /dev/shm with a larger size, or lower "
        "layout.rollout.tensor_parallel_size"
    )
    assert troubles((2, {"free_shared": 0}), needs=dataclasses.replace(NEEDS, shared=(0,) * 4, queue=0)) == [], (
        "engines of one rank"
    )


def test_ranks_are_spoken_by_host_and_in_ranges():
    assert format_ranks([0, 1, 2, 5, 9], dict(enumerate("aaaabbbbcccc"))) == "ranks 0-2 on a, rank 5 on b, rank 9 on c"


def test_a_slow_group_is_named_and_a_busy_machine_is_not():
    hosts = dict(enumerate("aabbccdd"))
    even = {"train tp": [((i, i + 1), 0.005 + 0.001 * i) for i in range(0, 8, 2)]}
    assert [row.grade for row in timings.judge(even, hosts)] == ["ok"]
    slow = {"train tp": [*even["train tp"][:3], ((6, 7), 0.2)]}
    (row,) = timings.judge(slow, hosts)
    assert row.grade == "warning" and row.line.startswith(
        "link train tp of ranks 6-7 on d: found 200.0 ms for 1 MiB, expected 8.0 ms"
    )


def test_a_digest_sees_other_bytes_names_and_sizes_and_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w.safetensors").write_bytes(bytes(1 << 20))
    before = digest([tmp_path / "a"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert digest([tmp_path / "b"]) == before
    for change in (
        lambda f: f.write_bytes(bytes((1 << 20) + 1)),
        lambda f: f.rename(f.with_name("v.safetensors")),
        lambda f: f.write_bytes(b"\1" + bytes((1 << 20) - 1)),
        lambda f: f.write_bytes(bytes((1 << 20) - 1) + b"\1"),
    ):
        shutil.rmtree(tmp_path / "b")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        change(tmp_path / "b" / "w.safetensors")
        assert digest([tmp_path / "b"]) != before


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("/proc/self/mem")  # there, and an error to read, for root too
    with pytest.raises(config.UserError, match="model.safetensors: cannot be read .Input/output error"):
        digest([tmp_path])


def test_a_run_folder_is_made_where_its_link_leads_and_what_stands_against_it_is_said(tmp_path):
    (tmp_path / "run").symlink_to("big/run")
    assert write_trouble(tmp_path / "run", 0) == "" and list((tmp_path / "big" / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    assert write_trouble(tmp_path / "file" / "run", 0) == f"{tmp_path}/file/run: Not a directory"
    assert write_trouble(Path("/proc/none/run"), 0) == "/proc/none/run: No such file or directory"
    assert write_trouble(tmp_path / ("x" * 5000), 0).endswith("File name too long")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big", "file", "run"]


def check_before(rank, cfgs, patches):
    """The rows that are not in order, of a world whose ranks start with their own configs, and package versions or
    disks."""
    from r1zero import preflight
    from r1zero.distributed import launcher

    size = len(cfgs)
    version, usage = patches.get(rank, (None, None))
    import importlib.metadata

    real = importlib.metadata.version
    with (
        mock.patch.object(
            importlib.metadata, "version", lambda name: version if version and name == "numpy" else real(name)
        ),
        mock.patch.object(
            shutil,
            "disk_usage",
            lambda path, real=shutil.disk_usage: real(path)._replace(free=usage) if usage is not None else real(path),
        ),
    ):
        rows = preflight.before(
            cfgs[rank], layout.carve(cfgs[rank].layout, size), launcher.Launch(rank, size, rank, size, "none")
        )
    try:
        preflight.stop_if_failed(rows)
        stopped = ""
    except config.CollectiveError as error:
        stopped = str(error)
    return [row for row in rows if row.grade != "ok"], stopped


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("qwen2"), "qwen2")


def test_real_ranks_agree_and_one_with_another_config_data_package_or_folder_stops_all(ranks, base, tmp_path):
    cfg = jobs.job_config(base, config.Layout(), run=dict(dir=str(tmp_path / "runs")))

    def found(second=cfg, patches={}):
        results = ranks.run(check_before, [cfg, second], patches, size=2)
        assert results[0] == results[1]  # all ranks come to the same end
        return results[0]

    assert found() == ([], "")
    other = dataclasses.replace(cfg, grpo=dataclasses.replace(cfg.grpo, kl_coef=0.25))
    (row,), stopped = found(other)
    assert row.line.startswith(f"config grpo.kl_coef of rank 1 on {socket.gethostname()}: found 0.25, expected 0.05")
    assert stopped == f"preflight: {row.line}"
    shutil.copytree(base / "data", tmp_path / "data")
    bad = bytearray((tmp_path / "data" / "prompts.arrow").read_bytes())
    bad[5000] ^= 1
    (tmp_path / "data" / "prompts.arrow").write_bytes(bad)
    rows, _ = found(dataclasses.replace(cfg, data=config.Data(path=str(tmp_path / "data"))))
    assert [row.what for row in rows] == ["config data.path", "data (data.path)"]
    (row,), stopped = found(patches={1: ("1.0.0", None)})
    assert row.line.startswith("package numpy of rank 1") and "found 1.0.0" in stopped
    (row,), stopped = found(patches={1: (None, 1000)})
    assert row.line.startswith("disk of rank 1") and "0.000 GB free" in stopped
    (tmp_path / "file").write_text("")
    nowhere = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, dir=str(tmp_path / "file")))
    rows, stopped = found(nowhere)
    assert [row.what for row in rows] == ["config run.dir", "run folder"] and "Not a directory" in stopped


def link_rows(rank, cfg):
    """Kinds of links that were timed on a real trainer and engine, and what --check's trial says of them."""
    import torch.distributed as dist

    from r1zero import preflight

    def use(trainer):
        found = preflight.links(trainer.roles.groups(), 2, trainer.device)
        trials = list(preflight.trial(trainer))
        dist.barrier()
        assert not (trainer.folder / "check").exists()
        full = mock.Mock(side_effect=config.UserError("the disk is full"))
        with mock.patch.object(trainer.roles, "begin_save", full):
            failed = list(preflight.trial(trainer))
        every = frozenset(range(512))  # a tokenizer that loses all it is given
        with mock.patch.object(trainer.grader, "dropped", every):
            lossy = list(preflight.trial(trainer))
        return found, trials, failed, lossy

    return jobs.with_trainer(rank, cfg, use)


@pytest.mark.slow
def test_links_are_timed_and_a_sync_a_token_a_sample_and_a_checkpoint_are_tried(ranks, base):
    grids = config.Layout(
        train=config.MegatronGrid(tensor_model_parallel_size=2), rollout=config.VllmGrid(tensor_parallel_size=2)
    )
    cfg = jobs.job_config(base, grids)
    results = ranks.run(link_rows, cfg, size=2)
    assert results[0] == results[1] or [r[0] for r in results]  # times are gathered, so they are the same
    found, trials, failed, lossy = results[0]
    assert [row.what for row in found] == ["link world", "link train tp", "link rollout tp"]
    assert [(row.what, row.grade) for row in trials] == [
        ("a generated token", "ok"),
        ("a graded sample", "ok"),
        ("a checkpoint", "ok"),
    ]
    assert "parity" in trials[0].found and "GB" in trials[2].found
    assert lossy[1].grade == "failed" and "after encoding and decoding, which give ''" in lossy[1].line
    assert failed[-1].grade == "failed" and "the disk is full" in failed[-1].line and "ranks 0-1 on" in failed[-1].line


def run_alone(*arguments, **environment):
    command = [sys.executable, "-W", "ignore", "train.py", "configs/cpu.toml", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def test_a_taken_port_is_one_sentence(base, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_alone(
            "--verbose",
            f"model.path={base}/base",
            f"data.path={base}/data",
            "model.checkpoint=",
            f"run.dir={tmp_path}",
            RANK="0",
            WORLD_SIZE="1",
            LOCAL_RANK="0",
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "MASTER_PORT" in line]
    assert re.search(
        r"^ +[1-9]?\d\.\d\d s +\+\d+\.\d\d s  start: the config and the layout are valid$", done.stderr, re.M
    )
    assert f"127.0.0.1:{port}" in line and "it cannot listen there" in line and "set MASTER_PORT to a free one" in line


def test_a_taken_port_of_torchrun_is_one_sentence_too():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {**os.environ, "NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = subprocess.run(
            ["bash", "launch/torchrun.sh", "1", "configs/a3.toml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
        )
    assert done.returncode == 2
    assert done.stderr == (
        f"port {port} of {socket.gethostname()}, where the ranks are to meet, is taken; "
        "set MASTER_PORT to a free one on every node\n"
    )


def test_check_prints_a_line_for_each_check_and_the_line_of_what_failed_and_exits_with_2(base, tmp_path):
    (tmp_path / "file").write_text("")
    done = run_alone(
        f"model.path={base}/base", f"data.path={base}/data", "model.checkpoint=", f"run.dir={tmp_path}/file", "--check"
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "failed  run folder: found " in done.stdout and "ok      package: found " in done.stdout
    assert (
        f"preflight: run folder of rank 0 on {socket.gethostname()}: found {tmp_path}/file/quickstart: Not a directory"
        in done.stderr
    )


IN_SHARED = """mount -t tmpfs -o size=$0 tmpfs /dev/shm && exec torchrun --nproc-per-node 2 "$@" """


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_said_of_shared_memory_is_what_the_engine_takes(threads, base, tmp_path):
    """One page less is refused; with the very bytes the engine starts."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a mount cannot be made here (needs root): the engine's own shared memory was NOT limited")
    exact = 2 * (min(threads, os.cpu_count()) * (4 << 20) + 4096) + 24 * (1 << 20) + 4096
    job = [
        "train.py",
        "configs/cpu.toml",
        "--check",
        f"model.path={base}/base",
        f"data.path={base}/data",
        "model.checkpoint=",
        f"run.dir={tmp_path}",
        "layout.rollout.tensor_parallel_size=2",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for size, fits in ((exact, True), (exact - 8192, False)):
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", IN_SHARED, str(size), *job],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (done.returncode == 0) == fits, done.stderr[-3000:]
        assert ("preflight: shared memory of" in done.stderr) == (not fits) and (
            "a generated token" in done.stdout
        ) == fits


def test_a_row_without_a_place_needs_none():
    assert CheckResult("clock", "1", "2", "failed", cure="wait").line == "clock: found 1, expected 2; wait"
