"""pytest tests/prompts/test_records.py"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.config import UserError
from r1zero.data import records

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"problem": TEXT, "answer": TEXT}), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


def write(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline=""
        )
    else:
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8", newline="")
    return file


def read(file: Path) -> list[records.Record]:
    return list(records.read(file))


@settings(deadline=None)
@given(rows=ROWS)
def test_the_three_formats_give_back_what_was_written(rows: list[dict], folder: Path) -> None:
    for suffix in records.READERS:
        assert [r.value for r in read(write(folder / f"rows{suffix}", rows))] == rows


def test_a_row_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"a": "1\u2028"}, {"a": "2"}, {"a": "3"}]
    lines = tmp_path / "rows.jsonl"
    lines.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(rows[0], ensure_ascii=False).encode() + b'\r\n\n{"a": "2"}\n{"a": "3"}'
    )
    assert [(r.source, r.value) for r in read(lines)] == [
        (f"{lines}:{n}", row) for n, row in zip((1, 3, 4), rows, strict=True)
    ]
    listed = tmp_path / "rows.json"
    listed.write_text('[{"a":\n"1\u2028"},\n\n{"a": "2"}, {"a":"3"}\n]', encoding="utf-8")
    assert [(r.source, r.value) for r in read(listed)] == [
        (f"{listed}:1 (element 1)", rows[0]),
        (f"{listed}:4 (element 2)", rows[1]),
        (f"{listed}:4 (element 3)", rows[2]),
    ]
    table = write(tmp_path / "rows.parquet", rows)
    assert [r.source for r in read(table)] == [f"{table}:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": ', "is not JSON: Expecting value at column"),
        (b"[1]", "is a JSON list; a row is an object"),
        (b"7", "is a JSON int"),
        (b'{"a": "\xff"}', "is not UTF-8: byte 8 is 0xff"),
        (b"[" * 200_000, "is not JSON that can be read"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON that can be read: Exceeds the limit"),
        (b"\x00", "is not JSON"),
    ],
)
def test_a_bad_line_costs_only_itself(line: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    first, bad, last = read(file)
    assert (first.value, last.value) == ({"a": 1}, {"a": 3})
    assert bad.value is None and bad.source == f"{file}:2" and problem in bad.problem


def test_an_element_that_is_no_object_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[{"a": 1}, 2, null, {"a": 3}]')
    assert [r.value for r in read(file)] == [{"a": 1}, None, None, {"a": 3}]
    assert "element 2" in read(file)[1].source


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('\n{"a": 1}\n{"a": 2}\n')
    assert [r.source for r in read(file)] == [f"{file}:2", f"{file}:3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds neither a JSON list nor an object a line"),
        (b'"x"', "holds neither"),
        (b"[", ":1 (element 1): is not JSON"),
        (b'[{"a": 1}\n{"a": 2}]', ":1 (element 1): is followed by neither a comma nor the end"),
        (b'[{"a": 1},\n]', ":2 (element 2): is not JSON"),
        (b'[{"a": 1}]\n[{"a": 2}]', "goes on after the end of its list"),
        (b'[\n"\xff"]', ":2: is not UTF-8"),
        (b"[]]", "goes on after"),
    ],
)
def test_a_torn_list_is_refused_with_its_line(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(file)
    assert str(file) in str(caught.value) and message in str(caught.value)


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(" [ ] \n")
    assert read(tmp_path / "rows.json") == []


def test_progress_rises_to_one(tmp_path: Path) -> None:
    for suffix in records.READERS:
        shares = [r.progress for r in read(write(tmp_path / f"rows{suffix}", [{"a": "x"}] * 50))]
        assert shares == sorted(shares) and 0 < shares[0] < 0.1 and shares[-1] > 0.9


@settings(deadline=None)
@given(rows=ROWS, cut=st.floats(0, 1, exclude_max=True), suffix=st.sampled_from([".json", ".parquet"]))
def test_a_file_cut_short_is_never_read_as_a_shorter_one(
    rows: list[dict], cut: float, suffix: str, folder: Path
) -> None:
    file = write(folder / f"cut{suffix}", rows)
    content = file.read_bytes()
    file.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(UserError, match="cut"):
        read(file)


@settings(deadline=None)
@given(
    rows=ROWS,
    at=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    suffix=st.sampled_from(list(records.READERS)),
)
def test_a_flipped_byte_is_a_bad_row_or_a_sentence(
    rows: list[dict], at: float, byte: int, suffix: str, folder: Path
) -> None:
    file = write(folder / f"flipped{suffix}", rows)
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] = byte
    file.write_bytes(content)
    outcome(file)


@settings(deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from(list(records.READERS)))
def test_any_bytes_are_bad_rows_or_a_sentence(content: bytes, suffix: str, folder: Path) -> None:
    file = folder / f"any{suffix}"
    file.write_bytes(content)
    outcome(file)


def outcome(file: Path) -> None:
    try:
        rows = read(file)
    except UserError as error:
        assert str(file) in str(error)
    else:
        assert all(r.source.startswith(f"{file}:") and (r.value is None) == bool(r.problem) for r in rows)


def test_a_folder_is_all_its_data_files_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.json"):
        write(tmp_path / name, [{"a": "x"}])
    (tmp_path / "README.md").write_text("not data")
    assert [p.name for p in records.files(str(tmp_path))] == ["a.parquet", "b.jsonl", "c.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.jsonl", "there is no such file"), ("", "a folder without"), ("x.csv", "ends in '.csv'")],
)
def test_no_data_is_a_sentence(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(UserError, match=message):
        records.files(str(tmp_path / name))
