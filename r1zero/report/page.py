"""Makes an HTML page with charts, configs and samples of runs."""

import re
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from r1zero.config import Config, plain, read_json
from r1zero.report import charts, samples
from r1zero.report.charts import PALETTE, Chart, Series
from r1zero.report.runs import RunData, flat_config

HERE = Path(__file__).parent
PUBLISHED = HERE / "reference_671b.json"
FAINT = "#808890"
SAMPLES_SHOWN = 3
LENGTH_BINS = 24
RATE_EDGES = tuple(np.linspace(0, 1, 11).tolist())

# Title, note, pattern of the names of metrics, whether the y-axis begins at 0, whether it is logarithmic.
FIGURES: tuple[tuple[str, str, str, bool, bool], ...] = (
    ("Reward", "mean over the responses of an iteration", r"grpo/rewards/mean", True, False),
    ("Response length", "mean tokens", r"response_length/mean", True, False),
    ("Reward by rule", "mean over responses, for each rule", r"(?!grpo/).*_rewards/mean", False, False),
    ("KL to the reference", "mean per token", r"actor/kl_loss", False, False),
    ("Entropy", "nats per token", r"actor/entropy", True, False),
    ("Gradient norm", "global 2-norm before clipping", r"grad_norm", False, False),
    ("Logprob gap of engine and trainer", "mean absolute difference per token", r"rollout_gap/mean", False, True),
    ("Groups without signal", "share of groups whose rewards are all equal", r"frac_reward_zero_std", True, False),
    ("Truncated responses", "share of responses at the maximum length", r"response_length/clip_ratio", True, False),
    ("Throughput", "tokens/s per rank, whole iteration", r"e2e_tps", True, False),
)


def render(runs: list[RunData], published: bool) -> str:
    """Returns the HTML of a page that needs no network access.

    published: also draw the published curves of DeepSeek-R1-Zero-671B.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html.j2").render(
        title=", ".join(run.name for run in runs),
        runs=[
            {"name": run.name, "colour": _colour(i), "tiles": _tiles(run), "environment": run.environment}
            for i, run in enumerate(runs)
        ],
        charts=[*_curves(runs, published), *_evaluations(runs), *_own_charts(runs)],
        marks=[(run.name, run.alarms, run.saves) for run in runs],
        differences=differences(runs),
        samples=[(run.name, samples.chosen(run.samples, SAMPLES_SHOWN)) for run in runs if run.samples],
        published=read_json(PUBLISHED, "install the package again")["what"] if published else "",
    )


def _breakable(name: str) -> Markup:
    """Returns the name of a key or a path as HTML that may be broken into lines after its separators."""
    return Markup(re.sub(r"([._/:])", r"\1<wbr>", str(escape(name))))


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _tiles(run: RunData) -> list[tuple[str, str]]:
    """Returns (name, value) of the results that are shown at the top of the page."""
    reward, length, speed = (run.curve(n)[1] for n in ("grpo/rewards/mean", "response_length/mean", "e2e_tps"))
    found = [("iterations", str(int(run.lines[-1]["iteration"])))]
    if reward:
        found.append((f"reward, {_first_and_last(reward)}", f"{reward[0]:.3f} → {mean(reward[-10:]):.3f}"))
    if length:
        name = f"response length, {_first_and_last(length)}"
        found.append((name, f"{length[0]:.0f} → {mean(length[-10:]):.0f} tokens"))
    if speed:
        found.append(("tokens/s per rank", f"{mean(speed):,.0f}"))
    for name in run.names(r"eval/[^/]+/pass@1"):
        x, y = run.curve(name)
        best = max(range(len(y)), key=y.__getitem__)
        found.append((f"best {name.removeprefix('eval/')}", f"{y[best]:.3f} after iteration {x[best]:.0f}"))
    return found


def _first_and_last(values: list[float]) -> str:
    return f"first → mean of {'last 10' if len(values) > 10 else 'all'}"


def _curves(runs: list[RunData], published: bool) -> list[dict[str, Any]]:
    """Returns the charts of FIGURES that have data. With a single run, its alarms and saves are marked."""
    behind = read_json(PUBLISHED, "install the package again") if published else {}
    keys = {"Reward": "reward", "Response length": "response_length_mean"}
    found = []
    for title, note, pattern, from_zero, logarithmic in FIGURES:
        series = _series(runs, pattern, band=title == "Response length")
        only_one_rule = title == "Reward by rule" and len(series) <= len(runs)
        if only_one_rule or not any(len(one.x) for one in series):
            continue
        explained = f"{note}; the band is minimum to maximum" if any(one.band for one in series) else note
        if published and title in keys:
            y = behind[keys[title]]
            series.append(Series("671B, published", range(len(y)), y, FAINT, faint=True))
        chart = Chart(title, explained, series, logarithmic, from_zero, _marks(runs))
        found.append({"title": title, "note": explained, "svg": Markup(charts.lines(chart))})
    return found


def _marks(runs: list[RunData]) -> list[tuple[float, str]]:
    if len(runs) > 1:
        return []
    return [*((float(i), "save") for i in runs[0].saves), *((float(i), "alarm") for i, _ in runs[0].alarms)]


def _series(runs: list[RunData], pattern: str, *, band: bool = False) -> list[Series]:
    """Returns one curve for each run and each metric that matches the pattern.

    If a run has several such metrics, each curve has the name of its metric. Colours tell apart runs, and line styles
    the metrics; of a single run, colours tell apart the metrics.
    """
    found: list[Series] = []
    several = max(len(run.names(pattern)) for run in runs) > 1
    for i, run in enumerate(runs):
        for number, name in enumerate(run.names(pattern)):
            x, y = run.curve(name)
            short = name.removesuffix("_rewards/mean").rpartition("/")[2]
            label = (f"{run.name} {short}" if len(runs) > 1 else short) if several else run.name
            edges = None
            if band and len(runs) == 1:
                edges = _band(run, x, "response_length/min", "response_length/max")
            colour, style = (_colour(i), number) if len(runs) > 1 else (_colour(number), 0)
            found.append(Series(label, x, y, colour, style=style, band=edges))
    return found


def _band(run: RunData, x: list[float], low: str, high: str) -> tuple[list[float], list[float]] | None:
    """Returns the values of the metrics `low` and `high`, or None unless both have one at each of the iterations x."""
    edges = run.curve(low), run.curve(high)
    return (edges[0][1], edges[1][1]) if edges[0][0] == edges[1][0] == x else None


def _evaluations(runs: list[RunData]) -> list[dict[str, Any]]:
    """Returns one chart for each evaluated set: pass@1 with its interval, pass@n and maj@n."""
    found = []
    for name in dict.fromkeys(n.split("/")[1] for run in runs for n in run.names(r"eval/[^/]+/pass@1")):
        series = []
        for i, run in enumerate(runs):
            x, y = run.curve(f"eval/{name}/pass@1")
            band = _band(run, x, f"eval/{name}/pass@1/low", f"eval/{name}/pass@1/high")
            prefix = f"{run.name} " if len(runs) > 1 else ""
            if x:
                series.append(Series(f"{prefix}pass@1", x, y, _colour(i), band=band))
            of_set = f"eval/{re.escape(name)}"
            extra = [*run.names(rf"{of_set}/pass@\d+")[1:][-1:], *run.names(rf"{of_set}/maj@\d+")]
            for k, key in enumerate(extra, 1):
                colour, style = (_colour(i), k) if len(runs) > 1 else (_colour(k), 0)
                series.append(Series(prefix + key.rpartition("/")[2], *run.curve(key), colour, style=style))
        explained = "; the band is the 95 % bootstrap interval of pass@1" if any(one.band for one in series) else ""
        note = f"share of prompts{explained}"
        chart = Chart(f"Evaluation: {name}", note, series, from_zero=True)
        found.append({"title": chart.title, "note": note, "svg": Markup(charts.lines(chart))})
    return found


def _own_charts(runs: list[RunData]) -> list[dict[str, Any]]:
    """Returns the charts that can show only one run each."""
    found = []
    for run in runs:
        of_run = f": {run.name}" if len(runs) > 1 else ""
        lines = [line for line in run.lines if line["iteration"] and "timing/all" in line]
        names = [n for n in run.names(r"timing/.*") if n != "timing/all"]
        names.sort(key=lambda n: -sum(line.get(n, 0.0) for line in lines))
        if lines:
            parts = {n.removeprefix("timing/"): [line.get(n, 0.0) for line in lines] for n in names[:7]}
            if names[7:]:
                parts["other phases"] = [sum(line.get(n, 0.0) for n in names[7:]) for line in lines]
            title, note = f"Seconds of an iteration{of_run}", "by phase"
            svg = charts.stacked(title, [line["iteration"] for line in lines], parts)
            found.append({"title": title, "note": note, "svg": Markup(svg)})
        if run.lengths:
            title, note = f"Lengths of responses{of_run}", "tokens; darker: a larger share of the responses"
            edges = _length_edges(max(map(max, run.lengths.values())))
            columns = [np.histogram(lengths, edges)[0].tolist() for lengths in run.lengths.values()]
            svg = charts.heatmap(title, list(run.lengths), columns, edges)
            found.append({"title": title, "note": note, "svg": Markup(svg)})
        for name, by_iteration in run.pass_rates.items():
            title, note = f"Pass rates of prompts, {name}{of_run}", "pass rate; darker: a larger share of the prompts"
            columns = [np.histogram(rates, RATE_EDGES)[0].tolist() for rates in by_iteration.values()]
            svg = charts.heatmap(title, list(by_iteration), columns, RATE_EDGES)
            found.append({"title": title, "note": note, "svg": Markup(svg)})
    return found


def _length_edges(longest: int) -> list[float]:
    """Returns the boundaries of at most LENGTH_BINS bins that hold equally many lengths from 0 to `longest`."""
    width = longest // LENGTH_BINS + 1
    return [float(width * i) for i in range(longest // width + 2)]


def differences(runs: list[RunData]) -> list[tuple[str, str, list[str]]]:
    """Returns (key, default value, value of each run) for each config key that differs from its default in any run.

    The defaults are those of the published recipe. A missing value is shown as a dash. Keys in which the runs differ
    from each other come first.
    """
    recipe = flat_config(plain(Config()))
    configs = [run.config for run in runs]
    keys = sorted({key for config in configs for key in config} | set(recipe if all(configs) else ()))
    rows = [(key, recipe.get(key, "—"), [config.get(key, "—") for config in configs]) for key in keys]
    changed = [row for row in rows if any(value != row[1] for value in row[2])]
    return sorted(changed, key=lambda row: len(set(row[2])) == 1)
