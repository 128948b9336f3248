"""Stands in for train.py: fails with the status that its second argument says, as often as its third says, and counts
in the first."""

import os
import sys
from pathlib import Path

folder, status, times = sys.argv[1:]
if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK")) == "0":
    count = Path(folder) / "count"
    tried = len(count.read_text()) if count.exists() else 0
    count.write_text("x" * (tried + 1))
    if tried < int(times):
        sys.exit(int(status))
