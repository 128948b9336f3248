"""`train.py --doctor`: compares this machine with what the project expects. It needs no config and no other ranks."""

import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from r1zero.preflight.facts import SHARED, versions
from r1zero.preflight.rows import CheckResult

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""Relevant CPU features, by Linux's names. On x86 the CPU builds of torch and vLLM require the first one."""
PYTHON = (3, 11), (3, 13)
"""The oldest and the newest supported version of Python, as in requires-python of pyproject.toml."""
OPEN_MPI_5 = re.compile(r"\(Open MPI\) 5\.")
TOOLS = {"cuda": "nvidia-smi", "npu": "npu-smi"}
"""run.device -> a tool that comes with the driver of such devices."""
LEAST_SHARED_MB, LEAST_FILES = 64, 1024
"""Smallest free shared memory, in MB (10^6 bytes), and smallest limit on open files."""
MB = 1e6


def examine() -> Iterator[CheckResult]:
    """Yields the result of each check. A result that is not "ok" states the fix."""
    yield from _packages()
    yield _mpi()
    yield _instructions()
    yield from _devices()
    yield _shared_memory()
    yield _open_files()


def _packages() -> Iterator[CheckResult]:
    """Compares the installed versions with requirements.txt, if that file exists."""
    pinned = {}
    if REQUIREMENTS.is_file():
        found = re.findall(r"^([\w.-]+)==(\S+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE)
        pinned = {_plain(name): version for name, version in found}
    for name, version in versions().items():
        expected = pinned.get(_plain(name))
        if name == "python":
            yield _python(version)
        elif expected and version != expected:
            cure = "run launch/install.sh, or use the versions that launch/ lists for the device"
            yield CheckResult(name, version, expected, "warning", "", cure)
        elif expected:
            yield CheckResult(name, version, expected)
        elif version != "none":
            yield CheckResult(name, version, "any")


def _python(version: str) -> CheckResult:
    """version: as of platform.python_version()."""
    expected = " to ".join(f"{major}.{minor}" for major, minor in PYTHON)
    if PYTHON[0] <= tuple(map(int, version.split(".")[:2])) <= PYTHON[1]:
        return CheckResult("python", version, expected)
    return CheckResult("python", version, expected, "failed", "", "run launch/install.sh with one of these versions")


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _mpi() -> CheckResult:
    launcher = shutil.which("mpirun")
    if launcher is None:
        return CheckResult("mpirun", "none", "Open MPI 5", "warning", "", "use torchrun, or run launch/install.sh")
    said = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout
    first_line = said.partition("\n")[0]
    found = f"{first_line or 'an unknown version'} at {launcher}"
    if OPEN_MPI_5.search(first_line):
        return CheckResult("mpirun", found, "Open MPI 5")
    cure = "use torchrun, or run launch/install.sh and put the mpirun that it installs first in PATH"
    return CheckResult("mpirun", found, "Open MPI 5", "warning", "", cure)


def _instructions() -> CheckResult:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    flags = set(re.findall(r"\w+", " ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE))))
    found = ", ".join(name for name in INSTRUCTIONS if name in flags) or "none of the relevant features"
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    row = CheckResult("CPU", f"{os.cpu_count()} cores, {platform.machine()}, {found}", "avx2" if on_x86 else "any")
    if on_x86 and text and "avx2" not in flags:
        return CheckResult(row.what, row.found, row.expected, "failed", "", "use a CPU with avx2, or another device")
    return row


def _devices() -> Iterator[CheckResult]:
    for device, tool in TOOLS.items():
        found = shutil.which(tool)
        yield CheckResult(
            f"device {device}", f"{tool} at {found}" if found else f"no {tool}", f"for run.device={device} only"
        )


def _shared_memory() -> CheckResult:
    free = shutil.disk_usage(SHARED).free / MB if SHARED.is_dir() else 0.0
    found, expected = f"{free:,.0f} MB free in {SHARED}", f"{LEAST_SHARED_MB} MB for engines of several ranks"
    if free >= LEAST_SHARED_MB:
        return CheckResult("shared memory", found, expected)
    cure = "give the container more shared memory (--shm-size, --ipc=host)"
    return CheckResult("shared memory", found, expected, "warning", "", cure)


def _open_files() -> CheckResult:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        return CheckResult(
            "open files", shown, f"at least {LEAST_FILES}", "warning", "", f"run ulimit -n {LEAST_FILES}"
        )
    return CheckResult("open files", shown, f"at least {LEAST_FILES}")
