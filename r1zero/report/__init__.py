"""Makes a self-contained HTML page about a run, or about several runs on the same axes: `python -m r1zero.report`."""
