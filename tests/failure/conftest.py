"""What the tests of failures share: a base model, and jobs that start in seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1zero import config
from tests import jobs

ROOT = Path(__file__).parents[2]


class Zygote:
    """See tests/failure/zygote.py; its process is started by the first job."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def job(self, size: int, arguments: list[str], log: Path, accident: str = "none 0 none 0 0", *, launcher_kills: bool = False) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "tests.failure.zygote"], cwd=ROOT, text=True,
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        order = dict(size=size, arguments=arguments, accident=accident, log=str(log), launcher_kills=launcher_kills)
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        if self._process:
            self._process.stdin.close()
            self._process.wait(30)


@pytest.fixture(scope="session")
def zygote():
    found = Zygote()
    yield found
    found.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a random model, its data, and job.toml: a short job on it."""
    folder = jobs.make_base(tmp_path_factory.mktemp("base"), "qwen2")
    (folder / "job.toml").write_text(config.dump(jobs.job_config(folder, config.Layout())))
    return folder
