"""Bytes that one weight sync transfers, by type of link, computed from the routes."""

from dataclasses import dataclass

import numpy as np

from r1zero.weight_sync.rounds import unit_bytes
from r1zero.weight_sync.routes import Route, Routes


@dataclass(frozen=True)
class Traffic:
    """Bytes of one weight sync, over all ranks unless stated otherwise."""

    kept: int
    """Already on the rank that needs them: copied within its device, or not at all."""
    in_node: int
    between_nodes: int
    most_sent: int
    """Largest number of bytes that one rank sends."""
    mean_sent: int
    most_received: int
    peers: int
    """Largest number of ranks from which one rank receives."""

    @property
    def imbalance(self) -> float:
        """Largest over mean number of bytes sent by a rank."""
        return self.most_sent / self.mean_sent if self.mean_sent else 1.0


def sync_traffic(routes: Routes, itemsize: int, node_ranks: int) -> Traffic:
    """Sum the routes of all weights. Weights of one kind share a route, so 12,288 ranks take only seconds."""
    units: dict[int, tuple[Route, int]] = {}
    for weight in routes.weights:
        route = routes.route(weight)
        units[id(route)] = route, units.get(id(route), (route, 0))[1] + unit_bytes(weight, itemsize)
    size = routes.layout.size
    sent, received, totals = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(3, np.int64)
    pairs: set[int] = set()
    for route, each in units.values():
        hops = np.array(route.hops, np.int64).reshape(-1, 4)
        source, target, bytes_ = hops[:, 0], hops[:, 1], (hops[:, 3] - hops[:, 2]) * each
        away = source != target
        node = source // node_ranks == target // node_ranks
        totals += bytes_[~away].sum(), bytes_[away & node].sum(), bytes_[away & ~node].sum()
        np.add.at(sent, source[away], bytes_[away])
        np.add.at(received, target[away], bytes_[away])
        pairs.update((target[away] * size + source[away]).tolist())
    peers = np.bincount([pair // size for pair in pairs], minlength=1) if pairs else np.zeros(1, np.int64)
    kept, in_node, between = (int(n) for n in totals)
    return Traffic(kept, in_node, between, int(sent.max()), int(sent.mean()), int(received.max()), int(peers.max()))
