"""train.py itself on the twin's ranks, as torchrun would start it."""

import runpy
import sys

from tests.twin.engines import exact_prefill
from tests.twin.environment import ROOT


def train(rank: int, arguments: list[str]) -> int:
    """The exit status."""
    sys.argv = ["train.py", *arguments]
    try:
        with exact_prefill():
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
