"""pytest tests/data/test_handlers.py"""

import datetime
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.config import UserError
from r1zero.data import handlers
from r1zero.data.handlers import Example, MapKeys
from r1zero.reward.rules import ALTERNATIVES

KEYS = MapKeys(prompt="problem", response="answer")


def outcome(name: str, record: dict[str, Any], keys: MapKeys = KEYS) -> Example | str:
    return handlers.apply(handlers.find(name), record, keys)


def test_the_label_is_what_response_maps_to() -> None:
    assert outcome("columns", {"problem": "1+1?", "answer": " 2\n", "x": 3}) == Example("1+1?", "2")


def test_query_goes_below_the_prompt_and_may_be_absent() -> None:
    keys = MapKeys(prompt="instruction", query="input", response="output")
    assert outcome("columns", {"instruction": "Add.", "input": "1, 1", "output": "2"}, keys) == Example(
        "Add.\n1, 1", "2"
    )
    assert outcome("columns", {"instruction": "1+1?", "output": "2"}, keys) == Example("1+1?", "2")
    assert outcome("columns", {"input": "1+1?", "output": "2"}, keys) == Example("1+1?", "2")


def test_system_and_history_come_from_their_columns() -> None:
    keys = MapKeys(prompt="p", response="r", system="s", history="h")
    assert outcome("columns", {"p": "b", "r": 2, "s": "S", "h": [["a", "A"]]}, keys) == Example(
        "b", "2", "S", (("a", "A"),)
    )
    assert outcome("columns", {"p": "b", "r": 2, "s": None, "h": None}, keys) == Example("b", "2")


def test_a_dotted_name_reaches_into_an_object_unless_a_column_has_that_name() -> None:
    keys = MapKeys(prompt="problem", response="reward_model.ground_truth")
    assert outcome("columns", {"problem": "q", "reward_model": {"ground_truth": "34"}}, keys) == Example("q", "34")
    assert outcome("columns", {"problem": "q", "reward_model.ground_truth": "35"}, keys) == Example("q", "35")
    assert (
        outcome("columns", {"problem": "q", "reward_model": "34"}, keys)
        == "'reward_model' is a str and must be an object that holds 'ground_truth'"
    )


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ('["1/2", "x+1"]', f"1/2{ALTERNATIVES}x+1"),
        (' ["7"] ', "7"),
        ("[1, 2]", "[1, 2]"),  # an interval, or a list of two numbers
        ('["1"', '["1"'),
        ("[]", "[]"),
        ("{1, 2}", "{1, 2}"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_label_may_be_a_list_of_texts_in_json(label: str, expected: str) -> None:
    assert outcome("columns", {"problem": "q", "answer": label}) == Example("q", expected)


def test_a_dotted_name_reaches_into_an_object_in_json() -> None:
    keys = MapKeys(prompt="problem", response="reward_model.truth.value")
    record = {"problem": "q", "reward_model": '{"style": "rule", "truth": {"value": ["2", "2.0"]}}'}
    assert outcome("columns", record, keys) == Example("q", f"2{ALTERNATIVES}2.0")
    record["reward_model"] = '{"style": "rule", "truth": "{\\"value\\": 34}"}'
    assert outcome("columns", record, keys) == Example("q", "34")
    record["reward_model"] = '{"style": "rule"'
    assert outcome("columns", record, keys) == "'reward_model' is a str and must be an object that holds 'truth.value'"


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (204, "204"),
        (0.5, "0.5"),
        (["\\frac12"], "\\frac12"),
        ("  x ", "x"),
        (0, "0"),
        (10**400, str(10**400)),
        (Decimal("12.50"), "12.50"),
        (Decimal("1E+3"), "1000"),
        ([Decimal("2.0")], "2.0"),
        (np.int64(7), "7"),
        (np.float32(0.5), "0.5"),
        (pa.scalar("x"), "x"),
        (pa.scalar(Decimal("1.5")), "1.5"),
    ],
)
def test_a_number_or_a_list_of_one_is_a_label(label: Any, text: str) -> None:
    assert outcome("columns", {"problem": "q", "answer": label}) == Example("q", text)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"problem": "q"}, "has no 'answer'; the only column is 'problem'"),
        ({}, "has no 'problem'; the row is empty"),
        ({"problem": "q", "answr": "2"}, "has no 'answer'; the nearest column is 'answr'"),
        ({"problem": "q", "answer": None}, "'answer' is null"),
        ({"problem": "q", "answer": Decimal("NaN")}, "'answer' is Decimal('NaN') and must be a text or a number"),
        (
            {"problem": "q", "answer": datetime.date(2025, 1, 2)},
            "'answer' is datetime.date(2025, 1, 2) and must be a text or a number",
        ),
        (
            {"problem": "q", "answer": np.datetime64("2025-01-02")},
            "'answer' is np.datetime64('2025-01-02') and must be a text or a number",
        ),
        (["q", "2"], "is a JSON list; a row must be an object, unless a handler of your own reads it"),
        (None, "is a JSON NoneType; a row must be an object, unless a handler of your own reads it"),
        ({"problem": " \n", "answer": "2"}, "'problem' is empty"),
        ({"problem": "q", "answer": ""}, "'answer' is empty"),
        ({"problem": "q", "answer": True}, "'answer' is True and must be a text or a number"),
        ({"problem": "q", "answer": float("nan")}, "'answer' is nan and must be a text or a number"),
        (
            {"problem": "q", "answer": ["1", None]},
            "'answer' is ['1', None] and must be a list of texts or numbers that are not empty",
        ),
        (
            {"problem": "q", "answer": {"a": "x" * 200}},
            "'answer' is {'a': '" + "x" * 70 + "... and must be a text or a number",
        ),
        ({"problem": "q\ud800", "answer": "2"}, "has the lone surrogate '\\ud800', which is not a character"),
    ],
)
def test_a_row_that_is_not_what_the_map_says_gives_the_reason(record: Any, reason: str) -> None:
    assert outcome("columns", record) == reason


def test_a_null_inside_an_object_is_told_from_a_column_that_is_missing() -> None:
    keys = MapKeys(prompt="problem", response="reward_model.ground_truth")
    assert outcome("columns", {"problem": "q", "reward_model": None}, keys) == "'reward_model.ground_truth' is null"
    assert outcome("columns", {"problem": "q", "reward_model": {"ground_truth": None}}, keys).endswith("is null")
    assert outcome("columns", {"problem": "q", "reward_model": {}}, keys).startswith(
        "has no 'reward_model.ground_truth'"
    )


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ("reward_model.ground_trut", "the nearest column is 'reward_model.ground_truth'"),
        ("reward_model.x", "the columns are 'reward_model.style', 'reward_model.ground_truth'"),
        ("reward_modl.ground_truth", "the nearest column is 'reward_model'"),
    ],
)
def test_the_hint_about_a_dotted_name_lists_what_the_object_has(column: str, hint: str) -> None:
    row = {"prompt": "q", "reward_model": {"style": "rule", "ground_truth": "34"}}
    assert outcome("columns", row, MapKeys(prompt="prompt", response=column)) == f"has no {column!r}; {hint}"


def test_a_wrong_column_of_messages_and_a_wrong_handler_are_told() -> None:
    row = {"prompt": [{"role": "user", "content": "q"}], "answer": "2"}
    keys = MapKeys(prompt="prompt", response="answer")
    assert outcome("messages", row, MapKeys(prompt="promt", response="answer")) == (
        "has no 'promt'; the nearest column is 'prompt'"
    )
    assert outcome("messages", row | {"prompt": None}, keys) == "'prompt' is null"
    assert str(outcome("columns", row, keys)).endswith('; handler = "messages" reads chat messages')


def test_gsm8k_takes_the_label_from_after_the_marks() -> None:
    keys = MapKeys(prompt="question", response="answer")
    row = {"question": "How much?", "answer": "20 * 61 = <<20*61=1220>>1220\n#### 1,220"}
    assert outcome("gsm8k", row, keys) == Example("How much?", "1220")
    assert outcome("gsm8k", row | {"answer": "1220"}, keys) == "'answer' has no final answer after ####"


def test_messages_are_a_chat_that_ends_with_the_question() -> None:
    keys = MapKeys(prompt="prompt", response="reward_model.ground_truth")
    said = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "b"},
    ]
    row = {"prompt": said, "reward_model": {"ground_truth": "34", "style": "rule"}}
    assert outcome("messages", row, keys) == Example("b", "34", "S", (("a", "A"),))
    assert outcome("messages", row | {"prompt": said[3:]}, keys) == Example("b", "34")
    for wrong in (said[:3], said[2:], [], "b", [{"role": "user"}], None, said[:1]):
        assert isinstance(outcome("messages", row | {"prompt": wrong}, keys), str)


def own(folder: Path, body: str) -> str:
    (folder / "own.py").write_text(body)
    return f"{folder / 'own.py'}:take"


def test_an_own_handler_is_a_function_of_record_and_keys(tmp_path: Path) -> None:
    name = own(tmp_path, "def take(record, keys):\n    return record['n'][0] + '=', record[keys.response], 'S'\n")
    assert outcome(name, {"n": ["1+1"], "answer": "2"}) == Example("1+1=", "2", "S")
    assert outcome(name, {"answer": "2"}) == "'n'"
    assert outcome(name, {"n": 3, "answer": "2"}) == "'int' object is not subscriptable"
    assert outcome(name, {"n": [""], "answer": ""}) == "the handler returned an empty question or label"


def test_an_own_handler_gets_whatever_the_row_is(tmp_path: Path) -> None:
    name = own(tmp_path, "def take(record, keys):\n    return record[0]['value'], str(record[1])\n")
    assert outcome(name, [{"value": "1+1="}, 2]) == Example("1+1=", "2")
    assert outcome(own(tmp_path, "def take(record, keys):\n    return repr(record), '2'\n"), None) == Example(
        "None", "2"
    )


TUPLE = "; it must return a tuple of question and label, and may add the system text and the history"
PAIRS = "it must be a list of (question, answer) pairs"


@pytest.mark.parametrize(
    ("returned", "result"),
    [
        ({"question": "q", "label": "2"}, "the handler returned the dict {'question': 'q', 'label': '2'}" + TUPLE),
        ("ab", "the handler returned the str 'ab'" + TUPLE),
        (None, "the handler returned the NoneType None" + TUPLE),
        (("q",), "the handler returned the tuple ('q',)" + TUPLE),
        (("q", "2", "", [], ""), "the handler returned the tuple ('q', '2', '', [], '')" + TUPLE),
        (("q", 2), "the handler returned 2 as its label; it must be a text"),
        ((["q"], "2"), "the handler returned ['q'] as its question; it must be a text"),
        (("q", "2", None), "the handler returned None as its system text; it must be a text"),
        (("q", "2", "", "ab"), "the handler returned 'ab' as its history; " + PAIRS),
        (("q", "2", "", {"a": "b"}), "the handler returned {'a': 'b'} as its history; " + PAIRS),
        (("q", "2", "", [("a",)]), "the handler returned [('a',)] as its history; " + PAIRS),
        (("q", "2", "", ["ab"]), "the handler returned ['ab'] as its history; " + PAIRS),
        (["q", "2"], Example("q", "2")),
        (("q", "2", "S"), Example("q", "2", "S")),
        (("q", "2", "S", [["a", "A"]]), Example("q", "2", "S", (("a", "A"),))),
        (Example("q", "2", "S", (("a", "A"),)), Example("q", "2", "S", (("a", "A"),))),
        ((np.str_("q"), "2"), Example("q", "2")),
    ],
)
def test_what_an_own_handler_returns_is_checked_by_type(returned: Any, result: Any) -> None:
    assert handlers.apply(lambda record, keys: returned, {}, KEYS) == result


@pytest.mark.parametrize(
    "body",
    [
        "from neighbour import label\ndef take(record, keys):\n    return 'q', label\n",
        "def take(record, keys):\n    from neighbour import label\n    return 'q', label\n",
        "from neighbour import take\n",
        "take = lambda record, keys: ('q', '7')\n",
        (
            "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    a: int = 7\n"
            "def take(record, keys):\n    return 'q', str(A().a)\n"
        ),
    ],
)
def test_an_own_handler_may_import_its_neighbours_and_be_any_callable(body: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    (tmp_path / "neighbour.py").write_text("label = '7'\ndef take(record, keys):\n    return 'q', label\n")
    assert outcome(own(tmp_path, body), {}) == Example("q", "7")


@pytest.mark.parametrize("folder", ["with space", "co:lon", "quo'te\"s", "new\nline", "中文"])
def test_an_own_handlers_file_may_lie_in_a_folder_of_any_name(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    assert outcome(own(tmp_path / folder, "def take(record, keys):\n    return 'q', '7'\n"), {}) == Example("q", "7")


def test_a_bug_in_an_own_handler_is_not_taken_for_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        outcome(own(tmp_path, "def take(record, keys):\n    return 1 / 0\n"), {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8", "the nearest known one is 'gsm8k'; a handler of your own is written path.py:function"),
        ("verl", "the known ones are 'columns', 'gsm8k', 'messages'; a handler of your own is written"),
        ("none.py:take", "there is no file 'none.py'"),
        ("{}/own.py:tke", "defines no function 'tke'"),
        ("{}/own.txt:take", "must end in .py"),
        ("{}/torn.py:take", "torn.py:1:"),
        ("{}/lost.py:take", "lost.py cannot be loaded (No module named 'no_such_package')"),
        ("{}/neighbour.py:take", "bad.py:2:"),
        ("{}:take", "there is no file"),
        ("a" * 5000 + ".py:take", "cannot be read (File name too long)"),
    ],
)
def test_a_handler_that_is_not_there_is_a_sentence(name: str, message: str, tmp_path: Path) -> None:
    for file, body in (
        ("own.py", "def take(): ..."),
        ("own.txt", ""),
        ("torn.py", "def take(:"),
        ("lost.py", "import no_such_package"),
        ("neighbour.py", "import bad"),
        ("bad.py", "\ndef take(:"),
    ):
        (tmp_path / file).write_text(body)
    with pytest.raises(UserError) as caught:
        handlers.find(name.format(tmp_path))
    assert message in str(caught.value)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "user", "b"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    record=st.dictionaries(st.sampled_from(["a", "a.b", "q", "s", "h"]), ANY),
    name=st.sampled_from(list(handlers.HANDLERS)),
)
def test_any_record_is_an_example_of_texts_or_a_reason(record: dict[str, Any], name: str) -> None:
    result = outcome(name, record, MapKeys(prompt="a", query="q", response="a.b", system="s", history="h"))
    if isinstance(result, str):
        assert result
    else:
        assert result.question.strip() and result.label.strip()
        "".join([*result[:3], *(t for pair in result.history for t in pair)]).encode("utf-8")
