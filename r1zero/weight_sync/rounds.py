"""Schedules the transfers in rounds of one collective each, with a bound on what any rank stages. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from r1zero.model.weights import Weight
from r1zero.weight_sync.routes import Hop, Route, Routes, axis


class Unit(NamedTuple):
    """Part number `part` of the `parts` of the transfer of one weight: this part of each of its hops."""

    weight: int
    """Index in `Routes.weights`."""
    part: int
    parts: int

    def cut(self, hop: Hop) -> Hop:
        """Returns this unit's part of a hop."""
        length = hop.end - hop.first
        return hop._replace(
            first=hop.first + length * self.part // self.parts, end=hop.first + length * (self.part + 1) // self.parts
        )


@dataclass(frozen=True)
class Round:
    """One collective, with the units that it transfers."""

    fp32: bool
    """Whether the round's data type is fp32; otherwise it is the run's type. A round has one data type."""
    units: tuple[Unit, ...]


class Transfer(NamedTuple):
    """An interval of a weight that one rank sends to another in a round, or copies if source and target are equal."""

    weight: int
    source: int
    target: int
    first: int
    end: int


def order(routes: Routes) -> list[int]:
    """Returns the order of the weights, with the layers of the pipeline stages interleaved.

    Each round then has layers of every stage, so that all stages send at the same time.
    """
    starts = [routes.stage_of_layer.index(s) for s in routes.stage_of_layer]

    def key(item: tuple[int, Weight]) -> tuple[int, int, int]:
        number, weight = item
        if weight.layer is None:
            return (-1 if weight.place in ("first", "both ends") else len(starts), 0, number)
        return weight.layer - starts[weight.layer], weight.layer, number

    return [number for number, _ in sorted(enumerate(routes.weights), key=key)]


def unit_bytes(weight: Weight, itemsize: int) -> int:
    """Returns the bytes of one unit (row or column) of the weight's axis."""
    return weight.size // weight.shape[axis(weight)] * (4 if weight.fp32 else itemsize)


def schedule(routes: Routes, itemsize: int, staging_bytes: int) -> list[Round]:
    """Returns rounds in which no rank sends and receives more than `staging_bytes` in total.

    A single unit of an axis is transferred even if it exceeds the bound.
    """
    numbers = order(routes)
    rounds = []
    for fp32 in (False, True):
        ours = [n for n in numbers if routes.weights[n].fp32 == fp32]
        rounds += [Round(fp32, tuple(units)) for units in _first_fit(routes, ours, itemsize, staging_bytes)]
    return rounds


class _Load:
    """The units of the axis that each rank sends and receives, at most, in one of `count` parts of a route."""

    def __init__(self, route: Route, count: int):
        of: dict[int, int] = {}
        for hop in route.hops:
            for rank in (hop.source, hop.target) if hop.source != hop.target else ():
                of[rank] = of.get(rank, 0) - (hop.first - hop.end) // count
        self.count = count
        self.ranks = np.fromiter(of.keys(), np.int64, len(of))
        self.units = np.fromiter(of.values(), np.int64, len(of))
        self.earliest = 0
        """No round before this one has room for the route. It only grows, because rounds only fill up."""

    @staticmethod
    def under(route: Route, bound: int, length: int) -> "_Load":
        """Returns the load with the fewest parts that keep each rank within `bound` units, or parts of one unit."""
        load = _Load(route, 1)
        while load.units.size and int(load.units.max()) > bound and load.count < length:
            more = -(-load.count * int(load.units.max()) // max(1, bound))
            load = _Load(route, min(length, max(load.count + 1, more)))
        return load


def _first_fit(routes: Routes, numbers: list[int], itemsize: int, staging_bytes: int) -> list[list[Unit]]:
    """Put each unit in the first round that has room on all its ranks.

    One full rank therefore does not end a round for the others.
    """
    rounds: list[list[Unit]] = []
    staged: list[np.ndarray] = []
    loads: dict[tuple[int, int], _Load] = {}
    for number in numbers:
        weight, route = routes.weights[number], routes.route(routes.weights[number])
        each = unit_bytes(weight, itemsize)
        if (id(route), each) not in loads:
            loads[id(route), each] = _Load.under(route, staging_bytes // each, weight.shape[axis(weight)])
        load = loads[id(route), each]
        for index in range(load.count):
            added = load.units * each
            at = load.earliest
            while (
                at < len(rounds)
                and added.size
                and int((staged[at][load.ranks] + added).max()) > staging_bytes
                and rounds[at]
            ):
                at += 1
            if at == len(rounds):
                rounds.append([])
                staged.append(np.zeros(routes.layout.size, np.int64))
            rounds[at].append(Unit(number, index, load.count))
            staged[at][load.ranks] += added
            load.earliest = at
    return rounds


def pieces(routes: Routes, rounds: list[Round]) -> Iterator[tuple[int, Transfer]]:
    """Yields every transfer and copy on all ranks, with the number of its round."""
    for number, r in enumerate(rounds):
        for unit in r.units:
            for hop in routes.route(routes.weights[unit.weight]).hops:
                cut = unit.cut(hop)
                if cut.first < cut.end:
                    yield number, Transfer(unit.weight, *cut)


@dataclass(frozen=True)
class Task:
    """One rank's transfers in one round. Sender and receiver sort them alike, so buffers need no header."""

    fp32: bool
    sends: tuple[Transfer, ...]
    """Sorted by target, then in the round's order."""
    receives: tuple[Transfer, ...]
    """Sorted by source, then in the round's order."""
    copies: tuple[Transfer, ...]


def compile_for(routes: Routes, rounds: list[Round], rank: int) -> list[Task]:
    """Returns the tasks of one rank, one per round."""
    tasks = []
    for r in rounds:
        sends: list[Transfer] = []
        receives: list[Transfer] = []
        copies: list[Transfer] = []
        for unit in r.units:
            for hop in routes.route(routes.weights[unit.weight]).of_rank.get(rank, ()):
                cut = unit.cut(hop)
                if cut.first < cut.end:
                    kind = copies if hop.source == hop.target else sends if hop.source == rank else receives
                    kind.append(Transfer(unit.weight, *cut))
        sends.sort(key=lambda piece: piece.target)
        receives.sort(key=lambda piece: piece.source)
        tasks.append(Task(r.fp32, tuple(sends), tuple(receives), tuple(copies)))
    return tasks
