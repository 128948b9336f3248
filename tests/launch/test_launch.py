"""The launch scripts, run: one machine and two, the second simulated. tests/launch/hello.py stands in for train.py.

python -m pytest tests/launch
"""

import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import wheels

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "TRAIN": "tests/launch/hello.py",
        "R1ZERO_MARK": "carried",
        **more,
    }


def start(script: str, *arguments: str, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [str(LAUNCH / script), *arguments],
        env=environment(**more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ranks_of(process: subprocess.Popen) -> list[dict[str, Any]]:
    out, error = process.communicate(timeout=280)
    assert process.returncode == 0, error
    return json.loads(next(line for line in out.splitlines() if line.startswith("[{")))


def check(ranks: list[dict[str, Any]], size: int, per_node: int, launcher: str) -> None:
    assert [r["rank"] for r in ranks] == list(range(size))
    assert all(r["size"] == size and r["sum"] == size * (size + 1) / 2 and r["launcher"] == launcher for r in ranks)
    assert [r["local_rank"] for r in ranks] == [i % per_node for i in range(size)], "ranks fill node after node"
    assert all(r["local_size"] == per_node and r["R1ZERO_MARK"] == "carried" for r in ranks)
    assert all(r["arguments"] == ["configs/a3.toml", "run.name=x"] for r in ranks)
    assert all(r["affinity"] == len(os.sched_getaffinity(0)) for r in ranks), "a launcher bound its ranks to cores"


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


ARGUMENTS = ("configs/a3.toml", "run.name=x")


@pytest.mark.slow
def test_mpirun_on_one_machine() -> None:
    check(ranks_of(start("mpirun.sh", "3", *ARGUMENTS)), 3, 3, "openmpi")


@pytest.mark.slow
def test_torchrun_on_one_machine() -> None:
    check(ranks_of(start("torchrun.sh", "3", *ARGUMENTS)), 3, 3, "torchrun")


@pytest.mark.slow
def test_a_mistake_that_all_ranks_find_is_said_though_the_rank_that_says_it_is_late() -> None:
    """mpirun ends the others when the first rank leaves."""
    train = [sys.executable, "train.py", "configs/cpu.toml", "grpo.kl_cof=0"]
    late = ["bash", "-c", 'sleep 1; exec "$@"', "late", *train]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        ["mpirun", "--oversubscribe", "-np", "1", *late, ":", "-np", "2", *train],
        cwd=ROOT,
        env=environment(**root),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("argument 'grpo.kl_cof=0': unknown key") == 1


@pytest.mark.slow
def test_torchrun_on_two_nodes() -> None:
    """Two agents with their own node numbers meet on one port, the second started first: ranks keep the nodes'
    order."""
    more = {"NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "IFNAME": "lo"}
    second = start("torchrun.sh", "2", *ARGUMENTS, NODE_RANK="1", **more)
    first = start("torchrun.sh", "2", *ARGUMENTS, NODE_RANK="0", **more)
    check(ranks_of(first), 4, 2, "torchrun")
    assert second.wait(60) == 0


def can_unshare() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, check=False).returncode
    )


@pytest.mark.slow
def test_mpirun_on_two_hosts(tmp_path: Path) -> None:
    """Two hosts in a hostfile; instead of ssh, an agent that starts MPI's daemon here under the other host's name."""
    if not can_unshare():
        pytest.skip("namespaces cannot be made here (needs root): two hosts were NOT simulated")
    (tmp_path / "hosts").write_text("node-a slots=2\nnode-b slots=2\n")
    (tmp_path / "etc-hosts").write_text("127.0.0.1 localhost node-a node-b\n")
    agent = tmp_path / "agent"
    agent.write_text(f"""#!/bin/sh
host=$1; shift
exec unshare --uts --mount sh -c 'mount --bind {tmp_path}/etc-hosts /etc/hosts && \\
    hostname "$0" && exec sh -c "$*"' "$host" "$@"
""")
    agent.chmod(0o755)
    ranks = ranks_of(
        start(
            "mpirun.sh",
            "4",
            *ARGUMENTS,
            HOSTFILE=str(tmp_path / "hosts"),
            RANKS_PER_NODE="2",
            IFNAME="lo",
            PRTE_MCA_plm_ssh_agent=str(agent),
            PRTE_MCA_plm_ssh_no_tree_spawn="1",
        )
    )
    check(ranks, 4, 2, "openmpi")
    assert [r["host"] for r in ranks] == ["node-a", "node-a", "node-b", "node-b"]


@pytest.mark.slow
def test_slurm_through_a_stand_in(tmp_path: Path) -> None:
    """There is no Slurm here. A stand-in for srun starts two tasks with the variables that Slurm's manual promises."""
    srun = tmp_path / "srun"
    srun.write_text("""#!/bin/sh
for option in --mpi=none --distribution=block:block --cpu-bind=none --kill-on-bad-exit=1 --export=ALL; do
    [ "$1" = "$option" ] || { echo "unexpected $1" >&2; exit 9; }
    shift
done
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 "$@" & done
wait
""")
    srun.chmod(0o755)
    env = environment(SLURM_SUBMIT_DIR=str(ROOT), MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    process = subprocess.Popen(
        [str(LAUNCH / "slurm.sh"), *ARGUMENTS], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    check(ranks_of(process), 2, 2, "srun")


@pytest.mark.parametrize("script", ["mpirun.sh", "torchrun.sh"])
def test_without_arguments_a_script_says_how_to_use_it(script: str) -> None:
    done = start(script)
    _, error = done.communicate(timeout=30)
    assert done.returncode == 2 and "configs/cpu.toml" in error and "RUN_ENV" in error


@pytest.mark.parametrize(
    "arguments", [["--retries"], ["--retries", "two", "2", "configs/cpu.toml"], ["--retries", "-1"]]
)
def test_a_number_of_retries_that_is_none_is_refused(arguments: list[str]) -> None:
    done = start("mpirun.sh", *arguments)
    _, error = done.communicate(timeout=30)
    assert (
        done.returncode == 2
        and error == f"--retries {(*arguments, '')[1]}: name the number of times that a failed job is started again\n"
    )


def test_a_node_without_its_number_is_refused() -> None:
    done = start("torchrun.sh", "2", *ARGUMENTS, NODES="2", MASTER_ADDR="127.0.0.1", NODE_RANK="")
    _, error = done.communicate(timeout=30)
    assert done.returncode != 0 and "set NODE_RANK to the number of this node, 0 to 1" in error


@pytest.mark.parametrize(
    "script, status, failures, tried, ends",
    [
        ("mpirun.sh", "9", "1", 2, 0),
        ("mpirun.sh", "9", "5", 3, 9),
        ("mpirun.sh", "2", "5", 1, 2),  # what the user must mend fails again
        ("torchrun.sh", "9", "1", 2, 0),
    ],
)
def test_a_failed_job_is_tried_again(tmp_path, script, status, failures, tried, ends):
    process = start(script, "--retries", "2", "1", str(tmp_path), status, failures, TRAIN="tests/launch/tries.py")
    process.communicate(timeout=120)
    assert ((tmp_path / "count").read_text(), process.returncode) == ("x" * tried, ends)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_leave_the_machine_alone(script: Path) -> None:
    text = script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    commands = "\n".join(line.partition("#")[0] for line in text.splitlines())
    own = re.sub(r'kill -\S+ ("\$job"|\$who)', "", commands)
    assert not re.search(r"(^|[\s;&|(])(pkill|killall|kill|reboot|sysctl|npu-smi)\s", own), (
        "acts on other processes or the machine"
    )
    if script.name in ("mpirun.sh", "torchrun.sh", "slurm.sh"):
        assert len(text.splitlines()) <= 30


@pytest.mark.parametrize(
    "to, more, bold", [("pipe", {}, False), ("terminal", {}, True), ("terminal", {"NO_COLOR": "1"}, False)]
)
def test_scripts_write_in_bold_on_terminals_only(to: str, more: dict[str, str], bold: bool) -> None:
    say = next(line for line in (LAUNCH / "install.sh").read_text().splitlines() if line.startswith("say()"))
    read, write = pty.openpty() if to == "terminal" else os.pipe()
    subprocess.run(
        ["bash", "-c", f"{say}; say one two"], stdout=write, check=True, env={"PATH": os.environ["PATH"], **more}
    )
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    assert said.strip() == ("\x1b[1mone two\x1b[0m" if bold else "one two")
    escapes = [line for script in SCRIPTS for line in script.read_text().splitlines() if "033" in line]
    assert escapes == [say], "a script writes colours of its own"


def installed(folder: Path, *made: str) -> subprocess.CompletedProcess:
    """What launch/install.sh says beside a .venv with these files. No Python is found, so it never gets further."""
    (folder / "launch").mkdir()
    shutil.copy(LAUNCH / "install.sh", folder / "launch")
    (folder / "requirements.txt").touch()
    for name in made:
        (folder / ".venv" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / ".venv" / name).touch()
    command = ["bash", str(folder / "launch/install.sh")]
    return subprocess.run(
        command, env={"PATH": os.environ["PATH"], "PYTHON": "none"}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "made, said",
    [
        (["bin/python"], ".venv was not made by launch/install.sh"),
        (["bin/python", ".installed"], "No Python 3.11"),  # of other requirements: it is made again
        (["bin/python", ".installing"], "No Python 3.11"),  # an installation that was interrupted
        ([], "No Python 3.11"),
    ],
)
def test_an_environment_that_the_script_did_not_make_is_not_replaced(tmp_path, made: list[str], said: str) -> None:
    done = installed(tmp_path, *made)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert all((tmp_path / ".venv" / name).exists() for name in made)


def sourced(**before: str) -> dict[str, str]:
    shell = f"set -eu; source {LAUNCH}/env-a3.sh; env -0"
    done = subprocess.run(
        ["bash", "-c", shell], env={"PATH": os.environ["PATH"], **before}, capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def test_the_recipes_environment() -> None:
    found = sourced()
    assert found["HCCL_CONNECT_TIMEOUT"] == "1800" and found["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    timeouts = [int(found[name]) for name in ("HCCL_EXEC_TIMEOUT", "HCCL_EVENT_TIMEOUT", "ACL_DEVICE_SYNC_TIMEOUT")]
    assert timeouts == sorted(set(timeouts)), "each must exceed the one before, or the wrong error comes first"
    assert "expandable_segments:True" not in found["PYTORCH_NPU_ALLOC_CONF"]
    assert sourced(HCCL_CONNECT_TIMEOUT="77")["HCCL_CONNECT_TIMEOUT"] == "77", "the user's own value stays"
    # A collective's own deadline must come before torch's, whose message names no rank.
    import tomli

    for name in ("a3", "a3_aligned"):
        assert tomli.loads((ROOT / "configs" / f"{name}.toml").read_text())["run"]["timeout_s"] > timeouts[-1]


def test_every_variable_of_the_recipe_says_why() -> None:
    lines = (LAUNCH / "env-a3.sh").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"(export|set_default) [A-Z]", line):
            above = next(x for x in reversed(lines[:number]) if not x.startswith(("export", "set_default")) or "#" in x)
            assert "#" in line or above.startswith("#") or "#" in above, line


def requirements(name: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (LAUNCH / name).read_text().splitlines()]
    return dict(re.match(r"([\w.-]+)\s*(.*)", line).groups() for line in lines if line)


def test_the_npu_set_is_what_vllm_ascend_asks_for_save_transformers() -> None:
    pinned = requirements("requirements-npu.txt")
    metadata = next(name for name in wheels.wheel(wheels.PINNED[0]).namelist() if name.endswith("METADATA"))
    asked = dict(
        re.match(r"Requires-Dist: ([\w.-]+)(.*)", line).groups()
        for line in wheels.wheel(wheels.PINNED[0]).read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist")
    )
    exact = {name: rule for name, rule in asked.items() if rule.startswith("==") and name != "transformers"}
    assert {name: pinned.get(name) for name in exact} == exact
    # Build tools, a server and stores for disaggregated caches are not needed to generate in process.
    unused = {
        "cmake",
        "packaging",
        "pip",
        "setuptools",
        "setuptools-scm",
        "wheel",
        "pandas-stubs",
        "fastapi",
        "memfabric-hybrid",
        "memcache-hybrid",
        "opencv-python-headless",
    }
    missing = {name.replace("_", "-") for name in asked} - unused - set(pinned)
    assert not missing
    assert pinned["mindspeed"].startswith("@ git+") and "@e4772499" in pinned["mindspeed"], (
        "the index has only a placeholder of that name"
    )
    assert list(pinned)[-1] == "triton-ascend"


@pytest.mark.parametrize("name", ["requirements-npu.txt", "requirements-cuda.txt"])
def test_our_own_packages_have_one_version_on_every_device(name: str) -> None:
    ours = [
        "latex2mathml",
        "math-verify",
        "mpi4py",
        "pyarrow",
        "pytest",
        "rich",
        "safetensors",
        "sympy",
        "tensorboard",
        "tomli",
        "tomli_w",
        "megatron-core",
    ]
    cpu = dict(
        line.strip().split("==")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert {n: requirements(name)[n] for n in ours} == {n: "==" + cpu[n] for n in ours}
