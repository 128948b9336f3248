"""Every list of requirements resolves: by pip itself, which installs nothing.

python -m pytest tests/launch/test_requirements.py -m long
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import wheels

ROOT = Path(__file__).parents[2]
APART = ("triton-ascend", "vllm-ascend", "mindspeed", "torch-npu")
"""launch/README.md installs the first three one by one and without dependencies, because pip alone cannot resolve them.
The last one's wheel for x86 requires the build of torch for CPUs, which has an index of its own."""


def plain_torch(line: str) -> str:
    """The build of torch for CPUs has an index of its own (launch/install.sh); the version itself is on any index."""
    return line.replace("+cpu", "")


def together(line: str) -> str:
    return "" if line.startswith(APART) else line


# file: (what is done to its lines, options of pip)
FILES: dict[str, tuple[Callable[[str], str], list[str]]] = {
    "requirements.txt": (plain_torch, ["--no-deps"]),
    "launch/requirements-cuda.txt": (str, []),
    "launch/requirements-npu.txt": (together, []),
}


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_pip_resolves(tmp_path: Path, name: str) -> None:
    change, options = FILES[name]
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    (tmp_path / "requirements.txt").write_text("\n".join(map(change, lines)), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--retries", "1"]
    command += [*options, "-r", str(tmp_path / "requirements.txt")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"no answer from the package index in 900 s; {name} was NOT resolved")
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    if done.returncode and any("from versions: none" in line for line in said):
        pytest.skip(f"no package index can be reached; {name} was NOT resolved")
    assert done.returncode == 0, done.stderr


def test_torch_npu_requires_the_torch_of_the_list_and_nothing_else() -> None:
    """It is left out of the resolution above."""
    lines = (ROOT / "launch/requirements-npu.txt").read_text(encoding="utf-8").splitlines()
    assert wheels.PINNED[2] in lines
    archive = wheels.wheel(wheels.PINNED[2])
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    required = [line for line in archive.read(name).decode().splitlines() if line.startswith("Requires-Dist: ")]
    assert [plain_torch(line.partition(": ")[2].replace(" ", "")) for line in required] == ["torch==2.10.0"]
    assert "torch==2.10.0" in lines
