"""What the twin's processes run in: a second virtual environment, the compiled device, and the variables that lead to
them.

The environment holds the Python code of the two pinned wheels and comes before the packages of the environment that
runs the tests. Of the wheels' compiled halves vLLM's is left out, as in a build for NPUs, and vllm-ascend's is
replaced. Made once for what it is made of, under R1ZERO_TWIN or ~/.cache/r1zero/twin."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from tests import wheels
from tests.twin import schemas

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ASCEND, VLLM, TORCH_NPU = wheels.PINNED
SOC = "A3"
"""The package index has vllm-ascend built for A2; for A3 it is built from source (launch/README.md)."""
COMPILED_HALF = '"""Takes the place of the compiled library."""\n\nfrom twin_ascend import *  # noqa: F403\n'


@dataclass(frozen=True)
class Environment:
    python: Path
    variables: dict[str, str]


def folder() -> Path:
    return Path(os.environ.get("R1ZERO_TWIN", Path.home() / ".cache" / "r1zero" / "twin"))


@cache
def environment() -> Environment:
    """Made if need be, which takes about a minute. Skips the test where something that it is made of cannot be had."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the twin's device is compiled with g++, which is not there; what runs on the twin was NOT tested")
    site = sysconfig.get_path("purelib")
    packages = _made(
        "packages", [HERE / "environment.py", HERE / "schemas.py"], [sys.version, site, *wheels.PINNED], _make_packages
    )
    device = _made(
        "device", sorted((HERE / "device").iterdir()), [torch.__version__, site], lambda at: _compile(compiler, at)
    )
    return Environment(
        packages / "bin" / "python",
        {
            "PYTHONPATH": os.pathsep.join(map(str, _paths())),
            "TWIN_DEVICE": str(device / "npu_device.so"),
            "TWIN_WHEELS": str(packages / "wheels"),
            "TWIN_SCHEMAS": str(packages / "schemas.json"),
            # What launch/env-a3.sh and the Python side do not set, and a test must.
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "VLLM_LOGGING_LEVEL": "ERROR",
            # Facts about model classes that vLLM finds in a process of its own: two versions overwrite each other's.
            "VLLM_CACHE_ROOT": str(packages / "cache"),
        },
    )


def mindspeed() -> Path | None:
    """The checkout of the pinned commit that R1ZERO_MINDSPEED names."""
    return Path(os.environ["R1ZERO_MINDSPEED"]).resolve() if os.environ.get("R1ZERO_MINDSPEED") else None


def _paths() -> list[Path]:
    checkout = mindspeed()
    return [HERE / "vendor", *([HERE / "with_mindspeed", checkout] if checkout else [HERE / "without_mindspeed"]), ROOT]


def _made(kind: str, sources: list[Path], facts: list[str], make: Callable[[Path], None]) -> Path:
    """The folder for these contents; made aside and renamed, so that it is whole or not there."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path in sources:
        digest.update(path.read_bytes())
    final = folder() / f"{kind}-{digest.hexdigest()[:16]}"
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=final.parent))
    try:
        make(aside)
        aside.rename(final)
    except OSError:
        if not final.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def _make_packages(at: Path) -> None:
    archives = {requirement: wheels.wheel(requirement) for requirement in wheels.PINNED}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(at)], check=True)
    target = at / "wheels"
    for requirement, wanted in (
        (VLLM, lambda name: not name.endswith(".so")),
        (ASCEND, lambda name: not re.search(r"\.so$|/_cann_ops_custom/", name)),
        (
            TORCH_NPU,
            lambda name: (
                (name.startswith("torch_npu/contrib/") and "transfer_to_npu" in name)
                or name.endswith("/apis_config.json")
            ),
        ),
    ):
        archives[requirement].extractall(target, [name for name in archives[requirement].namelist() if wanted(name)])
    (target / "vllm_ascend" / "vllm_ascend_C.py").write_text(COMPILED_HALF)
    (target / "vllm_ascend" / "_build_info.py").write_text(f'__device_type__ = "{SOC}"\n')
    (at / "schemas.json").write_text(json.dumps(schemas.all_of_them()))
    packages = next((at / "lib").glob("python*/site-packages"))
    (packages / "twin.pth").write_text(f"../../../wheels\n{sysconfig.get_path('purelib')}\n")


def _compile(compiler: str, at: Path) -> None:
    base = Path(torch.__file__).parent
    subprocess.run(
        [
            compiler,
            "-std=c++20",
            "-O1",
            "-w",
            "-shared",
            "-fPIC",
            f"-I{base}/include",
            f"-I{base}/include/torch/csrc/api/include",
            str(HERE / "device" / "npu_device.cpp"),
            "-o",
            str(at / "npu_device.so"),
            f"-L{base}/lib",
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
            f"-Wl,-rpath,{base}/lib",
        ],
        check=True,
    )
