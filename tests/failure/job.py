"""train.py with an accident: python tests/failure/job.py CONFIG [section.key=value ...], under mpirun or torchrun."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import train
from tests.failure import accidents

if __name__ == "__main__":
    accidents.install()
    train.main()
