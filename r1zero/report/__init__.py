"""One self-contained HTML page about a run, or about several on the same axes: `python -m r1zero.report`."""
