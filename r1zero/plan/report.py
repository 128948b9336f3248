"""Prints the plan, as tables or as JSON."""

import itertools
import json
import sys
from dataclasses import fields

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r1zero.config import Config
from r1zero.plan.build import Plan, as_data, plan
from r1zero.plan.communicators import Group
from r1zero.plan.machine import RATES
from r1zero.plan.memory import PHASES, RolesMemory
from r1zero.plan.workload import GIB

GB = 1e9


def main(cfg: Config, world: int, as_json: bool) -> int:
    """Print the plan. Returns 0 if it fits and 2 if not. Raises UserError if layout, batch and model do not agree."""
    made = plan(cfg, world)
    if as_json:
        sys.stdout.write(json.dumps(as_data(made), indent=1) + "\n")
    else:
        console = Console()
        render(made, console if console.is_terminal else Console(width=150))
    return 2 if made.problems else 0


def render(made: Plan, console: Console) -> None:
    """Print the plan as tables."""
    console.print(
        f"[bold]{escape(made.config)}[/]: {made.world} ranks on {made.nodes} nodes, {made.parameters:,} parameters, "
        f"{made.active_parameters / 1e9:.2f} B of them active per token"
    )
    console.print(
        "pipeline stages: " + ", ".join(f"layers {start}-{start + count - 1}" for start, count in made.stages)
    )
    console.print(_groups(made.groups))
    console.print(_pairs("Batch", made.batch, lambda v: f"{v:,.10g}"))
    console.print(_memory(made))
    console.print(_stages(made))
    if made.host:
        host = sum(made.host.values())
        console.print(
            _pairs(
                "Pinned host memory of the fullest node, GB", {**made.host, "total": host}, lambda v: f"{v / GB:.1f}"
            )
        )
    saved = made.checkpoint
    console.print(
        f"one checkpoint: {saved['bytes'] / GB:,.1f} GB on disk, {saved['host bytes per rank'] / GB:.2f} GB of host "
        f"memory per rank while it is written, {saved['seconds']:,.0f} s (estimate)"
    )
    t = made.traffic
    console.print(
        _pairs(
            "One weight sync, GB",
            {
                "already in place": t.kept,
                "within nodes": t.in_node,
                "between nodes": t.between_nodes,
                "sent per rank, mean": t.mean_sent,
                "sent per rank, maximum": t.most_sent,
                "received per rank, maximum": t.most_received,
            },
            lambda v: f"{v / GB:,.2f}",
        )
    )
    console.print(f"imbalance of the bytes sent: {t.imbalance:.3f}; a rank receives from at most {t.peers} others")
    console.print(_durations(made))
    for name, rates in RATES[made.device].items():
        console.print(f"  {name}: {escape(rates.source)}", highlight=False)
    console.print("with these assumptions (plan.assume.NAME=VALUE changes one):")
    console.print(
        "  " + ", ".join(f"{f.name} {getattr(made.machine, f.name):g}" for f in fields(made.machine)), highlight=False
    )
    for note in made.notes:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False)
    for problem in made.problems:
        console.print(f"[bold red]does not fit[/] {escape(problem)}", highlight=False)
    if not made.problems:
        worst = made.worst
        used, limit = worst.phase_memory.total(worst.phase_memory.worst) / GB, made.machine.memory_gib * GIB / GB
        console.print(
            f"[bold green]fits[/] the fullest phase, {worst.phase_memory.worst}, needs {used:.1f} of {limit:.1f} GB",
            highlight=False,
        )


def _durations(made: Plan) -> Table:
    """Returns the seconds of one iteration by phase, and the tokens per second, for each set of rates."""
    table = Table("phase", title="Seconds per iteration (estimate)", title_justify="left")
    for name in made.durations:
        table.add_column(name, justify="right")
    for phase in made.seconds:
        table.add_row(phase, *(f"{seconds[phase]:,.1f}" for seconds in made.durations.values()))
    totals = [sum(seconds.values()) for seconds in made.durations.values()]
    tokens = made.tokens_per_second * sum(made.seconds.values())
    table.add_section()
    table.add_row("total", *(f"{total:,.1f}" for total in totals))
    table.add_row("tokens/s", *(f"{tokens / total:,.0f}" for total in totals))
    table.add_row("tokens/s per rank", *(f"{tokens / total / made.world:.1f}" for total in totals))
    return table


def _groups(groups: tuple[Group, ...]) -> Table:
    table = Table("group", "size", "count", "nodes", "for example", "carries", title="Groups", title_justify="left")
    for g in groups:
        table.add_row(
            g.kind.name, str(g.size), str(g.count), str(g.nodes), "  ".join(_spell(e) for e in g.examples), g.kind.note
        )
    return table


def _spell(ranks: tuple[int, ...]) -> str:
    """Returns ranks in short form: 0-3, or 0,4..60 for a constant stride, or a list."""
    steps = {b - a for a, b in itertools.pairwise(ranks)}
    if len(ranks) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{ranks[0]}-{ranks[-1]}" if step == 1 else f"{ranks[0]},{ranks[1]}..{ranks[-1]}"
    if len(ranks) <= 6:
        return ",".join(map(str, ranks))
    return f"{ranks[0]},{ranks[1]},..{ranks[-1]}"


def _pairs(title: str, values: dict[str, float], spell) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in values.items():
        table.add_row(key, spell(value))
    return table


def _memory(made: Plan) -> Table:
    """Returns the memory of the fullest rank, by phase."""
    worst = made.worst
    kinds = sorted({kind for lines in worst.phase_memory.device.values() for kind in lines})
    table = Table(
        "kind", title=f"GB on the device of the fullest rank ({_where(worst)}), by phase", title_justify="left"
    )
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for kind in kinds:
        table.add_row(kind, *(f"{worst.phase_memory.device[phase].get(kind, 0) / GB:.2f}" for phase in PHASES))
    table.add_section()
    table.add_row("total", *(f"{worst.phase_memory.total(phase) / GB:.2f}" for phase in PHASES))
    return table


def _stages(made: Plan) -> Table:
    table = Table("roles of the rank", "ranks", title="Total GB, by roles", title_justify="left")
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for row in made.places:
        table.add_row(_where(row), str(row.ranks), *(f"{row.phase_memory.total(phase) / GB:.2f}" for phase in PHASES))
    return table


def _where(row: RolesMemory) -> str:
    place = row.place
    names = [
        f"train stage {place.train}" if place.train is not None else "",
        f"reference stage {place.reference}" if place.reference is not None and place.train is None else "",
        "rollout" if place.rollout else "",
    ]
    return " + ".join(name for name in names if name)
