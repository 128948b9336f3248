"""The page about runs: self-contained, with every part that the folders have.

python -m pytest tests/report/test_report.py
"""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from r1zero.report import charts, page, runs, samples
from r1zero.report.__main__ import main
from r1zero.report.charts import Chart, Series

RESPONSE = r"<think>2 < 3 & so</think><answer>\boxed{\frac{1}{2}}</answer>"


def write_run(folder: Path, iterations: int = 40, **figures: float) -> Path:
    folder.mkdir()
    lines = [{"iteration": 0, "eval/math/pass@1": 0.1, "eval/math/pass@1/low": 0.0, "eval/math/pass@1/high": 0.2}]
    for i in range(1, iterations + 1):
        line = {
            "iteration": i,
            "grpo/rewards/mean": i / 100,
            "base_acc_rewards/mean": i / 100,
            "step_rewards/mean": 0.5,
            "response_length/mean": 10.0 + i,
            "response_length/min": 1.0,
            "response_length/max": 99.0,
            "rollout_gap/mean": 10.0 ** (-7 + i / 10),
            "grad_norm": None if i == 3 else 0.5,
            "timing/all": 2.0,
            "timing/rollout": 1.5,
            "timing/save": 0.1 if i == 11 else 0.0,
            "e2e_tps": 123.0,
            **({"alarm/loss_spike": 1.0} if 20 <= i < 22 else {}),
            **figures,
        }
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.toml").write_text('[grpo]\ngroup_size = 8\n[run]\nname = "x"\n')
    rows = [
        {"iteration": i, "prompt": "Q <b>", "response": RESPONSE, "label": "1/2", "reward": r}
        for i, r in ((1, 1.0), (2, -0.5), (3, None))
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "environment.json").write_text('{"command": "train.py x", "torch": "2.13.0"}')
    evaluated = folder / "eval" / "step_0"
    evaluated.mkdir(parents=True)
    (evaluated / "math.pass_rates.jsonl").write_text('{"pass_rate": 0.5}\n{"pass_rate": 1.0}\n')
    kept = folder / "samples" / "iteration_2"
    kept.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"length": 5}, {"length": 50}]), kept / "engine_0.parquet")
    return folder


class Checker(HTMLParser):
    """Whether every element that must be closed is, and nothing is fetched."""

    VOID = ("meta", "br", "wbr", "hr", "img", "input", "link", "path", "use", "rect", "circle", "line")

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.titles = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
        self.titles += [v for k, v in attrs if k == "aria-label"]

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open.pop() == tag


@pytest.fixture
def made(tmp_path):
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", 12)
    return tmp_path


def check(file: Path) -> Checker:
    text = file.read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.open and not checker.fetched
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text) and "mathdefault" not in text
    return checker


def test_one_run_has_every_chart_table_and_sample(made, capsys):
    assert main([str(made / "one"), "--published"]) == 0
    assert capsys.readouterr().out == f"wrote {made / 'one' / 'report.html'}\n"
    titles = check(made / "one" / "report.html").titles
    assert {"Reward", "Reward by rule", "Response length", "Evaluation: math", "Seconds of an iteration"} <= set(titles)
    assert {"Pass rates of prompts, math", "Lengths of responses"} <= set(titles) and len(titles) == len(set(titles))
    text = (made / "one" / "report.html").read_text()
    assert "grpo.<wbr>group_<wbr>size" in text and "<code>8</code>" in text and "train.py x" in text
    assert "Q &lt;b&gt;" in text and "2 &lt; 3 &amp; so" in text
    assert "alarms began at iteration 20 (loss_spike)" in text and "saved after iterations 10" in text
    assert text.count("671B, published") >= 2 and len(text) < 2_000_000


def test_several_runs_are_on_the_same_axes_and_their_configs_side_by_side(made):
    (made / "two" / "config.toml").write_text("[grpo]\ngroup_size = 16\n[optimizer]\nlr = 1e-6\n")
    output = made / "both.html"
    assert main([str(made / "one"), str(made / "two"), "-o", str(output)]) == 0
    check(output)
    found = page.differences([runs.read(made / "one"), runs.read(made / "two")])
    assert [key for key, _, _ in found][:3] == ["grpo.group_size", "optimizer.lr", "run.name"]
    by_key = {key: (recipe, values) for key, recipe, values in found}
    assert by_key["grpo.group_size"] == ("32", ["8", "16"]) and by_key["run.name"][1] == ['"x"', "—"]
    assert "671B, published" not in output.read_text()


def test_keys_in_which_runs_differ_come_first_and_bands_are_named_if_they_are_drawn(made):
    (made / "two" / "config.toml").write_text('[grpo]\ngroup_size = 8\n[run]\nname = "y"\n')
    both = [runs.read(made / name) for name in ("one", "two")]
    keys = [key for key, _, _ in page.differences(both)]
    assert keys[0] == "run.name" and keys[1:] == sorted(keys[1:]) and "grpo.group_size" in keys
    pages = [page.render(both[:1], False), page.render(both, False)]
    assert ["the band is minimum to maximum" in text for text in pages] == [True, False]
    assert [text.count('class="differs"') for text in pages] == [0, 1]


def test_a_bin_of_lengths_has_a_whole_number_of_them():
    assert page._length_edges(3) == [0, 1, 2, 3, 4]
    for longest in (1, 23, 24, 29, 100, 8192):
        edges = page._length_edges(longest)
        widths = {b - a for a, b in itertools.pairwise(edges)}
        assert len(widths) == 1 and widths.pop().is_integer() and edges[-2] <= longest < edges[-1]
        assert len(edges) <= page.LENGTH_BINS + 1


@pytest.mark.parametrize(("values", "low"), [((0.2, 0.4), 0), ((-0.5, 0.4), -0.5), ((0, 0), 0)])
def test_the_whole_curve_is_inside_the_axes_also_below_zero(monkeypatch, values, low):
    """A negative reward is not cut off by an axis that begins at 0."""
    drawn = []
    monkeypatch.setattr(charts, "_svg", lambda draw, title: drawn.append(draw) or "")
    charts.lines(Chart("t", "", [Series("r", [1, 2], list(values), "#000000")], from_zero=True))
    axes = Figure().subplots()
    drawn[0](axes)
    assert axes.get_ylim()[0] == low if low == 0 else axes.get_ylim()[0] <= low


def test_the_ticks_of_a_narrow_range_differ():
    text = charts.lines(Chart("t", "", [Series("r", [1, 2], [3.21e-7, 3.44e-7], "#000000")], logarithmic=True))
    ticks = re.findall(r">(\d[^<]*e[^<]*)<", text)
    assert len(ticks) > 2 and len(ticks) == len(set(ticks))


def test_of_several_runs_each_has_one_colour_and_each_metric_one_line_style(tmp_path, monkeypatch):
    values = {f"eval/math/{metric}": 0.5 for metric in ("pass@1", "pass@4", "maj@4")}
    both = [runs.read(write_run(tmp_path / name, 2, **values)) for name in ("one", "two")]
    for title in ("Reward by rule", "Evaluation: math"):
        alone, together = (charts_of(some, monkeypatch)[title] for some in (both[:1], both))
        assert len({one.colour for one in alone}) == len(alone) > 1 and {one.style for one in alone} == {0}
        assert [one.colour for one in together] == [charts.PALETTE[0]] * len(alone) + [charts.PALETTE[1]] * len(alone)
        assert [one.style for one in together] == [*range(len(alone))] * 2


def test_a_run_with_nothing_but_metrics_has_a_page(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "metrics.jsonl").write_text('{"iteration": 1, "grpo/rewards/mean": 0.5}\n')
    assert main([str(tmp_path / "bare")]) == 0
    assert check(tmp_path / "bare" / "report.html").titles == ["Reward"]


def charts_of(runs_read, monkeypatch) -> dict[str, list]:
    """Returns title -> the series of the chart of lines, which is not drawn here."""
    drawn = {}
    monkeypatch.setattr(page.charts, "lines", lambda chart: drawn.update({chart.title: chart.series}) or "")
    page.render(runs_read, False)
    return drawn


@pytest.mark.parametrize("name", ["gsm.8", "a+b", "gsm(8", "x|y"])
def test_the_name_of_a_set_is_not_a_pattern(tmp_path, monkeypatch, name):
    values = {f"eval/{name}/{metric}": 0.5 for metric in ("pass@1", "pass@2", "pass@4", "maj@4")}
    values |= {"eval/gsm_8/pass@1": 0.25, "eval/gsm_8/pass@2": 0.25, "eval/gsm_8/maj@2": 0.25}
    series = charts_of([runs.read(write_run(tmp_path / "one", 2, **values))], monkeypatch)[f"Evaluation: {name}"]
    assert [one.name for one in series] == ["pass@1", "pass@4", "maj@4"]
    assert all(set(one.y) == {0.5} for one in series)


def test_a_curve_without_both_edges_at_each_point_has_no_band(tmp_path, monkeypatch):
    lengths = {"response_length/mean": 5.0, "response_length/min": 1.0, "response_length/max": 9.0}
    lines = [
        {"eval/none/pass@1": 0.5, "eval/half/pass@1": 0.5, "eval/half/pass@1/low": 0.4},
        {"eval/none/pass@1": 0.5, "eval/half/pass@1": 0.5, "eval/half/pass@1/low": 0.4},
    ]
    for i, line in enumerate(lines, 1):
        line |= {"iteration": i, **lengths, "eval/full/pass@1": 0.5}
        line |= {"eval/full/pass@1/low": 0.4, "eval/full/pass@1/high": 0.6}
    del lines[1]["response_length/max"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = charts_of([runs.read(tmp_path)], monkeypatch)
    bands = {title: drawn[title][0].band for title in drawn}
    assert bands["Evaluation: none"] is None and bands["Evaluation: half"] is None
    assert bands["Evaluation: full"] == ([0.4, 0.4], [0.6, 0.6]) and bands["Response length"] is None


def test_the_parts_of_a_response_are_marked_and_its_text_is_kept():
    html = samples.highlighted(RESPONSE)
    assert '<span class="thought">2 &lt; 3 &amp; so</span>' in html
    assert r'<span class="box">\boxed{\frac{1}{2}}</span>' in html
    assert re.sub(r"<[^>]*>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == RESPONSE


SAMPLE = {"iteration": 1, "prompt": "Q", "response": "R", "label": "1", "reward": 1.0}
PASS_RATES = "eval/step_0/math.pass_rates.jsonl"


@pytest.mark.parametrize(
    "file, line",
    [
        ("metrics.jsonl", {"grpo/rewards/mean": 0.5}),
        ("metrics.jsonl", {"iteration": "2", "grpo/rewards/mean": 0.5}),
        ("metrics.jsonl", {"iteration": None}),
        ("metrics.jsonl", {"iteration": 2, "grpo/rewards/mean": "much"}),
        ("metrics.jsonl", {"iteration": 2, "timing/all": [1.0]}),
        ("metrics.jsonl", {"iteration": 2, "e2e_tps": 10**400}),
        *(("samples.jsonl", {k: v for k, v in SAMPLE.items() if k != name}) for name in SAMPLE),
        ("samples.jsonl", SAMPLE | {"reward": "1.0"}),
        ("samples.jsonl", SAMPLE | {"response": None}),
        (PASS_RATES, {"prompt": "Q"}),
        (PASS_RATES, {"pass_rate": "0.5"}),
        (PASS_RATES, {"pass_rate": None}),
    ],
)
def test_a_line_that_lacks_a_field_or_has_text_for_a_number_is_skipped_and_counted(tmp_path, caplog, file, line):
    folder = write_run(tmp_path / "one", 2)
    before = runs.read(folder)
    assert not caplog.records
    with open(folder / file, "a") as lines:
        lines.write(2 * (json.dumps(line) + "\n"))
    with open(folder / "samples.jsonl", "a") as lines:
        lines.write("{}\n")
    after = runs.read(folder)
    for part in ("lines", "samples", "pass_rates"):
        assert repr(getattr(after, part)) == repr(getattr(before, part))
    counts = {"metrics.jsonl": "metrics.jsonl: 2, samples.jsonl: 1", "samples.jsonl": "samples.jsonl: 3"}
    expected = counts.get(file, f"samples.jsonl: 1, {PASS_RATES}: 2")
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == f"{folder}: skipped 3 lines that lack a field or hold text instead of a number ({expected})"


def test_a_file_of_pass_rates_without_any_valid_line_has_no_chart(tmp_path):
    folder = write_run(tmp_path / "one", 2)
    (folder / PASS_RATES).write_text('{"pass_rate": "high"}\n')
    assert runs.read(folder).pass_rates == {}
    assert main([str(folder)]) == 0


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "metrics.jsonl: cannot be read"),
        ("", "metrics.jsonl: contains no iteration"),
        ('{"iteration": 0}\n', "metrics.jsonl: contains no iteration"),
        ('{"iteration": 1}\n[1]\n', "metrics.jsonl:2: is not a line that a run wrote"),
        ('{"iteration": 1}\nnone\n', "metrics.jsonl:2: is not a line that a run wrote"),
    ],
)
def test_a_folder_that_is_no_run_is_one_sentence_and_nothing_is_written(tmp_path, capsys, content, sentence):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert main([str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_one_sentence(made, capsys):
    assert main([str(made / "one"), "-o", str(made / "none" / "page.html")]) == 2
    assert "page.html: cannot be written (No such file or directory); name another file" in capsys.readouterr().err
