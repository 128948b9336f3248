"""What a resumed run finds of the run before it: whole lines of whole iterations, whatever the samples say.

python -m pytest tests/observability/test_metrics.py
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.config import UserError
from r1zero.observability import metrics, plots

TEXT = st.text(st.sampled_from('a\n\r\x0b\x0c\x1c\x85\u2028\u2029é😀"\\'), max_size=6)


@settings(deadline=None)
@given(texts=st.lists(TEXT, max_size=8), kept=st.integers(0, 9), torn=st.integers(0, 40))
def test_the_lines_of_later_iterations_and_a_torn_last_line_are_dropped(
    texts: list[str], kept: int, torn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "samples.jsonl"
    path.unlink(missing_ok=True)
    for iteration, text in enumerate(texts, 1):
        metrics.append(path, iteration, [{"response": text}])
    whole = path.read_bytes() if texts else b""
    path.write_bytes(whole + '{"iteration": 0, "response": "é\u2028😀"}'.encode()[:torn])
    metrics.truncate_after(path, kept)
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    assert rows == [{"iteration": i, "response": text} for i, text in enumerate(texts, 1) if i <= kept]
    metrics.append(path, 99, [{"response": "\u2028"}])
    metrics.truncate_after(path, 99)
    assert path.read_bytes().count(b"\n") == len(rows) + 1


def test_reading_ends_a_line_at_a_line_feed_alone(tmp_path: Path) -> None:
    metrics.append(tmp_path / "metrics.jsonl", 1, [{"x": "\u2028\x85"}])
    assert metrics.read(tmp_path) == [{"iteration": 1, "x": "\u2028\x85"}]


@pytest.mark.parametrize("line", ['{"iteration": 1', "[]", '{"x": 1}', '{"iteration": null}', "\udcff"])
def test_a_line_that_is_damaged_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 1}\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match="metrics.jsonl:2: is not a line of a run .*; remove it"):
        metrics.truncate_after(path, 1)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_record_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("elsewhere.jsonl")
    metrics.append(tmp_path / "metrics.jsonl", 1, [{}])
    metrics.append(tmp_path / "metrics.jsonl", 2, [{}])
    metrics.truncate_after(tmp_path / "metrics.jsonl", 1)
    assert (tmp_path / "metrics.jsonl").is_symlink() and (
        tmp_path / "elsewhere.jsonl"
    ).read_text() == '{"iteration": 1}\n'


@pytest.mark.parametrize("name", ["plain", "$x_{$", "a\nb", "100%"])
def test_curves_are_drawn_for_a_run_of_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for iteration in (1, 2):
        metrics.append(tmp_path / name / "metrics.jsonl", iteration, [{key: 0.5 for _, key, _ in plots.CURVES}])
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots.draw(tmp_path / name))
