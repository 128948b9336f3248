"""What TensorBoard's files contain, read back by TensorBoard's own reader.

python -m pytest tests/observability/test_board.py
"""

import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import DEFAULT_SIZE_GUIDANCE, EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from r1zero import config
from r1zero.observability import board
from r1zero.observability.metrics import append
from tests.observability.test_trackers import EVALUATED, VALUES

NAMED = {f"train/{name}": value for name, value in VALUES.items()} | EVALUATED
HOSTILE = "<script>alert(1)</script>\n# no heading\u2028*a* ```\r\n```  \\boxed{2}"


def configured(iterations: int = 4) -> config.Config:
    sets = {"math": config.EvaluationSet(path="m")}
    return config.Config(
        run=config.Run(iterations=iterations),
        evaluation=config.Evaluation(sets=sets),
        reward=config.Reward(rules={"base_acc": 1.0, "format": 0.5}),
    )


def record(folder: Path, iterations: range, cfg: config.Config) -> None:
    """Write what a run of these iterations writes: two samples in each, with the reward and length of three."""
    one = board.Board(folder, iterations[0], cfg)
    for i in iterations:
        rows = [{"prompt": f"p{i}", "response": HOSTILE, "label": "2", "reward": 0.5, "scores": {}}, {"response": "b"}]
        append(folder / "samples.jsonl", i, rows)
        spread = {"train/response_length": torch.tensor([i, 10, 10]), "train/empty": torch.tensor([])}
        one.write(i, NAMED, spread)
    one.flush()
    one.close()


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), dict.fromkeys(DEFAULT_SIZE_GUIDANCE, 0))
    return events.Reload()


def texts(events: EventAccumulator, tag: str) -> dict[int, str]:
    return {e.step: e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{tag}/text_summary")}


def test_scalars_histograms_and_texts_are_those_of_the_run(tmp_path):
    record(tmp_path, range(1, 5), configured())
    events = read(tmp_path)
    assert {tag: events.Scalars(tag)[-1].value for tag in NAMED} == pytest.approx(NAMED, nan_ok=True)
    found = [(e.step, e.histogram_value.num, e.histogram_value.sum) for e in events.Histograms("train/response_length")]
    assert found == [(i, 3, 20 + i) for i in range(1, 5)] and events.Tags()["histograms"] == ["train/response_length"]
    assert list(texts(events, "samples/1")) == list(texts(events, "samples/2")) == [1, 2, 3, 4]


def test_each_line_of_a_sample_is_shown_as_it_is(tmp_path):
    record(tmp_path, range(1, 2), configured())
    first = texts(read(tmp_path), "samples/1")[1]
    outside = [line for line in first.splitlines() if line and not line.startswith("    ")]
    assert outside == ["**prompt**", "**response**"]
    assert "    iteration 1, reward 0.5, label 2\n" in first and "    <script>alert(1)</script>\n    # no h" in first
    from tensorboard import plugin_util  # what the browser gets

    shown = plugin_util.markdown_to_safe_html(first)
    assert "<script" not in shown and "<h1" not in shown and "&lt;script&gt;" in shown and "<em>" not in shown


@pytest.mark.parametrize("line", ["a bc " * 100, "x" * 500, " " * 300 + "\t\tend"])
def test_a_long_line_is_wrapped_without_loss(line):
    shown = board.markdown({"iteration": 1, "response": line}).split("**response**\n\n")[1].split("\n")
    assert "".join(part.removeprefix("    ") for part in shown) == line and max(map(len, shown)) <= 104


def test_the_layout_selects_metrics_that_a_run_has(tmp_path):
    record(tmp_path, range(1, 3), configured())
    events = read(tmp_path)
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    patterns = [pattern for one in layout.category for chart in one.chart for pattern in chart.multiline.tag]
    unseen = [p for p in patterns if not any(re.search(p, tag) for tag in NAMED)]
    assert len(patterns) == 9 and unseen == ["train/response_format/mean$"]  # which VALUES lacks
    titles = [chart.title for chart in layout.category[0].chart]
    assert titles == ["reward", "response length", "evaluation (pass@1)", "gap of engine and trainer"]


def test_the_hyperparameters_are_those_of_the_config_and_belong_to_the_run_itself(tmp_path):
    cfg = configured()
    record(tmp_path, range(1, 3), cfg)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    found = read(tmp_path).summary_metadata
    data = {tag: one.plugin_data.content for tag, one in found.items() if tag.startswith("_hparams_")}
    said = {tag: HParamsPluginData.FromString(content) for tag, content in data.items()}
    values = said["_hparams_/session_start_info"].session_start_info.hparams
    assert set(values) == set(board.HYPERPARAMETERS) and values["optimizer.lr"].number_value == cfg.optimizer.lr
    assert values["grpo.advantage"].string_value == "group" and "base_acc" in values["reward.rules"].string_value
    results = [m.name.tag for m in said["_hparams_/experiment"].experiment.metric_infos]
    assert results == ["train/grpo/rewards/mean", "train/response_length/mean", "eval/math/pass@1"]
    assert said["_hparams_/session_end_info"].session_end_info.status == 1  # STATUS_SUCCESS


def test_a_resumed_run_hides_what_came_after_its_checkpoint_and_repeats_no_text(tmp_path):
    record(tmp_path, range(1, 4), configured())
    (tmp_path / "samples.jsonl").write_text("")
    append(tmp_path / "samples.jsonl", 1, [{"response": "kept"}])
    record(tmp_path, range(2, 5), configured())
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload()  # which TensorBoard itself uses
    for tag in ("train/e2e_tps", "train/response_length", "samples/1/text_summary"):
        assert [e.step for e in events.Tensors(tag)] == [1, 2, 3, 4], tag


def test_a_long_run_writes_the_responses_of_some_iterations(tmp_path):
    record(tmp_path, range(1, 301), configured(300))
    assert list(texts(read(tmp_path), "samples/1")) == [1, *range(6, 301, 6)]


def test_lines_of_a_later_iteration_and_an_incomplete_line_are_left_for_later(tmp_path):
    one = board.Board(tmp_path, 1, configured())
    append(tmp_path / "samples.jsonl", 1, [{"response": "a"}, {"response": "b"}])
    append(tmp_path / "samples.jsonl", 2, [{"response": "c"}])
    one.write(1, NAMED, {})
    one.flush()
    append(tmp_path / "samples.jsonl", 2, [{"response": "d"}])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"iteration": 2')
    one.write(2, NAMED, {})
    one.close()
    events = read(tmp_path)
    ends = [[text[-1] for text in texts(events, f"samples/{k}").values()] for k in (1, 2)]
    assert ends == [["a", "c"], ["b", "d"]]


def test_an_error_is_named_once_and_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / "samples.jsonl").write_text("{\n")
    one = board.Board(tmp_path, 1, configured())
    one.write(1, NAMED, {})
    one.write(4, NAMED, {})
    one.flush()
    one.close()
    (said,) = (r.getMessage() for r in caplog.records if "tensorboard failed" in r.getMessage())
    assert "(JSONDecodeError: " in said and said.endswith("; the run continues, and metrics.jsonl has all metrics")
    assert [e.step for e in read(tmp_path).Scalars("train/e2e_tps")] == [1, 4]
