"""pytest tests/data/test_records.py"""

import json
import shutil
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
    elif file.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2 if len(rows) < 7 else None)
    else:
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8", newline="")
    return file


def read(file: Path) -> list[records.Record]:
    return list(records.read(file))


@settings(deadline=None)
@given(rows=ROWS)
def test_every_format_gives_back_what_was_written(rows: list[dict], folder: Path) -> None:
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


def test_a_row_is_any_json_value(tmp_path: Path) -> None:
    """What a row must be is its handler's business."""
    for name, content in (("rows.json", '[{"a": 1}, 2, null, [3]]'), ("rows.jsonl", '{"a": 1}\n2\nnull\n[3]\n')):
        (tmp_path / name).write_text(content)
        assert [(r.value, r.problem) for r in read(tmp_path / name)] == [({"a": 1}, ""), (2, ""), (None, ""), ([3], "")]


A, B = {"a": 1}, {"a": 2}


@pytest.mark.parametrize(
    ("content", "rows", "lines"),
    [
        (json.dumps({"data": [A, B]}), [A, B], [1, 1]),
        (json.dumps({"data": [A, B]}, indent=1), [A, B], [3, 6]),
        (json.dumps({"version": "1.0", "data": [A, B], "tags": ["x"]}, indent=1), [A, B], [4, 7]),
        ('{"data": [\n{"a": 1}\n]}', [A], [2]),
        ('{"data": [\n{"a": 1},\n{"a": 2}\n],\n"n": 2}\n', [A, B], [2, 3]),
        ('{"turns": [[{"a": 1}], [{"a": 2}]]}', [[A], [B]], [1, 1]),
        ("\ufeff" + json.dumps({"data": [A, B]}), [A, B], [1, 1]),
        ('{"a": 1}', [A], [1]),
        ('\n{\n"a": 1}', [A], [2]),
        ('{"a": 1}\n{"a": 2}', [A, B], [1, 2]),
        ('{"a": [{"b": 1}]}\n{"a": 2}', [{"a": [{"b": 1}]}, B], [1, 2]),
    ],
)
def test_a_json_file_may_hold_its_list_of_rows_in_an_object(
    content: str, rows: list, lines: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(content, encoding="utf-8")
    found = read(file)
    assert [(r.value, r.problem) for r in found] == [(row, "") for row in rows]
    assert [r.line for r in found] == lines


@settings(deadline=None)
@given(rows=ROWS, indent=st.sampled_from([None, 0, 2]), before=st.booleans(), after=st.booleans())
def test_rows_in_an_object_are_those_of_the_list(
    rows: list[dict], indent: int | None, before: bool, after: bool, folder: Path
) -> None:
    wrapped = {**({"version": [1, "x"]} if before else {}), "data": rows, **({"n": {"data": 2}} if after else {})}
    file = folder / "wrapped.json"
    file.write_text(json.dumps(wrapped, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert [r.value for r in read(file)] == rows


def test_of_json_lines_a_damaged_first_one_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('{"a": \n{"a": 2}\n{"a": 3}\n')
    assert [r.value for r in read(file)] == [None, {"a": 2}, {"a": 3}]


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('\n{"a": 1}\n{"a": 2}\n')
    assert [r.source for r in read(file)] == [f"{file}:2", f"{file}:3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds neither a JSON list nor one object per line"),
        (b'"x"', "holds neither"),
        (b"[", ":1 (element 1): is not JSON"),
        (b'[{"a": 1}\n{"a": 2}]', ":1 (element 1): is followed by neither a comma nor the end"),
        (b'[{"a": 1},\n]', ":2 (element 2): is not JSON"),
        (b'[{"a": 1}]\n[{"a": 2}]', "continues after the end of its list"),
        (b'[\n"\xff"]', ":2: is not UTF-8"),
        (
            b'{"train": [{"a": 1}], "test": [{"a": 2}]}',
            "has lists of rows under 'train', 'test'; keep one list per file",
        ),
        (b'{"data": [\n{"a": 1},\n{"a": 2}', "is corrupt or not JSON"),
        (b'{"data": [{"a": 1}', "is corrupt or not JSON"),
        (b'{\n"a": 1\n}\n{\n"a": 2\n}', "continues after its first object"),
        (b"[]]", "continues after"),
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
@given(
    rows=ROWS,
    cut=st.floats(0, 1, exclude_max=True),
    suffix=st.sampled_from([".json", ".parquet", ".arrow"]),
    inside=st.booleans(),
)
def test_a_file_cut_short_is_never_read_as_a_shorter_one(
    rows: list[dict], cut: float, suffix: str, inside: bool, folder: Path
) -> None:
    file = write(folder / f"cut{suffix}", rows)
    if inside and suffix == ".json":
        file.write_text(
            json.dumps({"version": 1, "data": rows}, indent=1, ensure_ascii=False), encoding="utf-8", newline=""
        )
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
        assert all(r.source.startswith(f"{file}:") and (r.value is None or not r.problem) for r in rows)


def test_a_folder_is_all_its_data_files_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.json"):
        write(tmp_path / name, [{"a": "x"}])
    for name in ("README.md", "._b.jsonl", ".hidden.json"):
        (tmp_path / name).write_text("not data")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "more.json").mkdir()
    assert [p.name for p in records.files(str(tmp_path))] == ["a.parquet", "b.jsonl", "c.json"]


def test_a_folder_of_folders_names_them(tmp_path: Path) -> None:
    for name in ("train", "test", ".cache"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="files of its own; name one of its folders: 'test', 'train'"):
        records.files(str(tmp_path))


def test_a_link_that_leads_nowhere_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "rows.json").symlink_to("gone.json")
    (found,) = records.files(str(tmp_path))
    with pytest.raises(UserError, match="rows.json: cannot be read .No such file"):
        read(found)


@pytest.mark.parametrize("name", ["with space", "co:lon", "quo'te\"s", "new\nline", "中文"])
def test_a_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    for suffix in records.READERS:
        file = write(tmp_path / f"{name}{suffix}", [{"a": "x"}])
        assert [r.value for r in read(records.files(str(file))[0])] == [{"a": "x"}]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "there is no such file"),
        ("", "is a folder without"),
        ("x.csv", "ends in '.csv'"),
        ("x.csv/y.json", "there is no such file"),
        ("n" * 5000, "cannot be read .File name too long"),
    ],
)
def test_no_data_is_a_sentence(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(UserError, match=message):
        records.files(str(tmp_path / name))


def test_a_file_name_that_is_not_utf_8_is_a_sentence(tmp_path: Path) -> None:
    open(bytes(tmp_path) + b"/\xff.json", "w").close()
    with pytest.raises(UserError, match="has bytes that are not UTF-8"):
        records.files(str(tmp_path))


SAVED = Path("tests/inputs/prompts/saved")
"""Written by Dataset.save_to_disk of datasets 5.2.0, with two files."""


def test_a_saved_data_set_is_read_in_its_own_order(tmp_path: Path) -> None:
    shutil.copytree(SAVED, tmp_path / "saved")
    (tmp_path / "saved" / "cache-1.arrow").write_bytes(b"no data of this set")
    rows = [row for file in records.files(str(tmp_path / "saved")) for row in read(file)]
    assert [row.value["reward_model"]["ground_truth"] for row in rows] == ["0", "2", "4", "6", "8"]
    assert rows[3].source == f"{tmp_path}/saved/data-00001-of-00002.arrow:1" and not any(row.problem for row in rows)
    assert rows[0].value["prompt"][1] == {"role": "user", "content": "What is 0+0?"}


def test_arrows_file_format_is_read_too(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3]})
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert [(r.line, r.value) for r in read(tmp_path / "rows.arrow")] == [(1, A), (2, B), (3, {"a": 3})]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state.json": "{"}, "state.json: is corrupt or not JSON"),
        ({"state.json": "{}"}, "state.json: lists no files, or files that are missing; save the data set again"),
        ({"state.json": '{"_data_files": [{"filename": "none.arrow"}]}'}, "or files that are missing"),
        ({"state.json": '{"_data_files": [1, {}]}'}, "or files that are missing"),
        (
            {"state.json": '{"_data_files": [{"filename": "data-00000-of-00002.arrow"}], "_indices_data_files": [1]}'},
            "selects rows by an index; call flatten_indices()",
        ),
    ],
)
def test_a_folder_that_is_no_whole_data_set_is_one_sentence(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(SAVED, folder)
    for name, content in change.items():
        (folder / name).write_text(content)
    with pytest.raises(UserError) as caught:
        records.files(str(folder))
    assert message.replace("{}", str(folder)) in str(caught.value) and "\n" not in str(caught.value)


def test_of_a_saved_data_set_with_splits_one_must_be_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(SAVED, tmp_path / split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match="files of its own; name one of its folders: 'test', 'train'"):
        records.files(str(tmp_path))
    assert len(records.files(str(tmp_path / "test"))) == 2
