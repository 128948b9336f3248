"""scipy.stats."""

from statistics import NormalDist
from types import SimpleNamespace

norm = SimpleNamespace(ppf=NormalDist().inv_cdf)
