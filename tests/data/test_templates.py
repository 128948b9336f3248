"""pytest tests/data/test_templates.py"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.config import UserError
from r1zero.data import encoders, templates, tokenizer

SHIPPED = "configs/model/templates.json"
PREAMBLE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks "
    "about the reasoning process in the mind and then provides the user with the answer. The reasoning process and "
    "answer are enclosed "
    "within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here "
    "</think><answer> answer "
    "here </answer>. Put your final answer within \\boxed{}."
)
IM = "<|im_start|>{}\n{}<|im_end|>\n"
TEXTS = {
    "deepseek3_r1": f"<bos>{PREAMBLE} <｜User｜>1+1?<｜Assistant｜>",
    "qwen_r1": IM.format("system", "You are a helpful assistant.")
    + IM.format("user", PREAMBLE + "\n1+1?")
    + "<|im_start|>assistant\n",
    "qwen": IM.format("system", "You are a helpful assistant.") + IM.format("user", "1+1?") + "<|im_start|>assistant\n",
    "qwen_math": IM.format("system", "Please reason step by step, and put your final answer within \\boxed{}.")
    + IM.format("user", "1+1?")
    + "<|im_start|>assistant\n",
    "llama3": "<bos><|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "default": "Human: 1+1?\nAssistant:",
    "empty": "1+1?",
    "quickstart": "Question: 1+1?=?\nAssistant:\n",
}


def prompt(path: str, name: str, tokenizer_path: str, question: str, **given) -> tuple[list[int], str]:
    loaded, tok = templates.load(path, name), tokenizer.load(tokenizer_path)
    eos = tokenizer.single_token(tok, loaded.stop_words[0]) if loaded.replace_eos else tok.eos_token_id
    values = {"system": "", "history": (), "thinking": False} | given
    return tokenizer.encode(tok, templates.render(loaded, question, **values), eos, tokenizer.control_tokens(tok))


@pytest.mark.parametrize("name", TEXTS)
def test_a_shipped_template_gives_this_very_text(name: str, tokenizer_path: str) -> None:
    assert prompt(SHIPPED, name, tokenizer_path, "1+1?")[1] == TEXTS[name]


def test_the_texts_above_cover_every_shipped_template() -> None:
    assert {entry["name"] for entry in json.loads(Path(SHIPPED).read_text(encoding="utf-8"))} == set(TEXTS)


@pytest.mark.parametrize("name", ["deepseek3_r1", "llama3"])
def test_the_begin_token_stands_once_though_the_tokenizer_would_add_its_own(name: str, tokenizer_path: str) -> None:
    tok = tokenizer.load(tokenizer_path)
    assert tok.encode("x")[0] == tok.bos_token_id
    ids, _ = prompt(SHIPPED, name, tokenizer_path, "1+1?")
    assert ids[0] == tok.bos_token_id and ids.count(tok.bos_token_id) == 1


def test_a_template_without_prefix_has_no_begin_token(tokenizer_path: str) -> None:
    assert tokenizer.load(tokenizer_path).bos_token_id not in prompt(SHIPPED, "qwen_r1", tokenizer_path, "1+1?")[0]


def test_merges_do_not_cross_from_one_slot_into_the_next(tokenizer_path: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"name": "t", "format_prefix": {"slots": ["t"]}, "format_user": {"slots": ["{{content}}"]}})
    tok = tokenizer.load(tokenizer_path)
    assert prompt(file, "t", tokenizer_path, "he")[0] == tok.convert_tokens_to_ids(["t", "h", "e"])
    assert tok.encode("the", add_special_tokens=False) == [tok.convert_tokens_to_ids("the")]


def write(folder: Path, *entries: dict) -> str:
    file = folder / "templates.json"
    file.write_text(json.dumps(list(entries)))
    return str(file)


def slots(*values) -> dict:
    return {"slots": list(values)}


def test_system_of_the_data_takes_the_place_of_the_default(tokenizer_path: str) -> None:
    assert prompt(SHIPPED, "qwen", tokenizer_path, "1+1?", system="S")[1].startswith(IM.format("system", "S"))


def test_earlier_turns_are_parted_by_the_separator_and_ended_by_what_replaces_the_end_token(
    tokenizer_path: str,
) -> None:
    text = prompt(SHIPPED, "qwen", tokenizer_path, "b?", system="S", history=(("a?", "A"),))[1]
    user = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert text == IM.format("system", "S") + user.format("a?") + "A<|im_end|>" + "\n" + user.format("b?")


def test_efficient_eos_leaves_the_end_token_out_of_earlier_answers(tokenizer_path: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"name": "with"}, {"name": "without", "efficient_eos": True})
    texts = [prompt(file, name, tokenizer_path, "b", history=(("a", "A"),))[1] for name in ("with", "without")]
    assert texts == ["aA<eos>b", "aAb"]


def test_llama2_puts_the_system_text_inside_the_first_question(tokenizer_path: str, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {
            "name": "llama2",
            "format_user": slots(["bos_token"], "[INST] {{content}} [/INST]"),
            "format_system": slots("<<SYS>>\n{{content}}\n<</SYS>>\n\n"),
            "efficient_eos": True,
        },
    )
    text = prompt(file, "llama2", tokenizer_path, "b", system="S", history=(("a", "A"),))[1]
    assert text == "<bos>[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST]A<bos>[INST] b [/INST]"


def test_a_reasoning_template_ends_with_an_empty_thought_unless_thinking(tokenizer_path: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"name": "qwen3", "template_class": "ReasoningTemplate", "efficient_eos": True})
    history = (("a", "<think>\nt\n</think>\n\nA"),)
    assert prompt(file, "qwen3", tokenizer_path, "b", history=history)[1] == "aAb<think>\n\n</think>\n\n"
    assert prompt(file, "qwen3", tokenizer_path, "b", history=history, thinking=True)[1] == "aAb"


def test_the_digest_covers_thinking_where_it_changes_the_prompt(tokenizer_path: str, tmp_path: Path) -> None:
    """The digest without thinking is that of the entry, as in data that was prepared before it covered thinking."""
    entries = [{"name": "plain", "efficient_eos": True}]
    entries.append({"name": "qwen3", "template_class": "ReasoningTemplate", "efficient_eos": True})
    file = tmp_path / "templates.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    for entry in entries:
        of_entry = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
        off, on = (
            encoders.find(tokenizer_path, encoders.How(str(file), entry["name"], thinking, {}, False)).digest
            for thinking in (False, True)
        )
        assert off == of_entry and (on != off) == (entry["name"] == "qwen3")


def test_a_token_slot_is_that_token_and_an_unknown_one_is_an_error(tokenizer_path: str, tmp_path: Path) -> None:
    entry = {"format_user": slots({"token": "<|eot_id|>"}, "{{content}}")}
    file = write(
        tmp_path, {"name": "t", **entry}, {"name": "u", "format_user": slots({"token": "<none>"}, "{{content}}")}
    )
    assert prompt(file, "t", tokenizer_path, "q")[0][0] == tokenizer.load(tokenizer_path).convert_tokens_to_ids(
        "<|eot_id|>"
    )
    with pytest.raises(UserError, match="'<none>' is 6 tokens"):
        prompt(file, "u", tokenizer_path, "q")


@settings(deadline=None)
@given(question=st.text(st.characters(codec="utf-8")))
def test_the_users_own_braces_are_never_filled(question: str) -> None:
    loaded = templates.load(SHIPPED, "quickstart")
    for text in (question, "{{content}}" + question, question + "{{idx}}"):
        (piece,) = templates.render(loaded, text, "", (), False)
        assert piece.text == f"Question: {text}=?\nAssistant:\n"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"format_usr": slots("{{content}}")},
            "entry 1 (t): unknown field 'format_usr'; the nearest known one is 'format_user'",
        ),
        ({"format_user": slots("Human:")}, "entry 1 (t).format_user: has {{content}} 0 times"),
        ({"format_user": slots("{{content}}", "{{content}}")}, "entry 1 (t).format_user: has {{content}} 2 times"),
        ({"format_user": slots("{{content}} {{name}}")}, "nothing fills the placeholder {{name}}"),
        ({"format_user": slots("{{content}}", 3)}, "entry 1 (t).format_user.slots[1] = 3"),
        ({"format_user": slots("{{content}}", ["pad_token"])}, "entry 1 (t).format_user.slots[1] = ['pad_token']"),
        (
            {"format_user": "{{content}}"},
            "entry 1 (t).format_user = '{{content}}'; it must be an object with a list under \"slots\"",
        ),
        (
            {"format_prefix": slots("{{content}}")},
            "entry 1 (t).format_prefix: the slot '{{content}}' has a placeholder",
        ),
        ({"default_system": "\ud800"}, "entry 1 (t): has the lone surrogate '\\ud800'"),
        ({"format_user": False}, "entry 1 (t).format_user = False; it must be an object"),
        ({"format_prefix": []}, "entry 1 (t).format_prefix = []; it must be an object"),
        ({"stop_words": 0}, "entry 1 (t).stop_words = 0; it must be a list"),
        ({"stop_words": ""}, "entry 1 (t).stop_words = ''; it must be a list"),
        ({"replace_eos": 0}, "entry 1 (t).replace_eos = 0; it must be true or false"),
        ({"efficient_eos": ""}, "entry 1 (t).efficient_eos = ''; it must be true or false"),
        ({"default_system": 0}, "entry 1 (t).default_system = 0; it must be a text"),
        ({"template_class": ""}, "entry 1 (t).template_class = ''"),
        ({"stop_words": "<|im_end|>"}, "entry 1 (t).stop_words = '<|im_end|>'"),
        ({"stop_words": [""]}, "entry 1 (t).stop_words = ['']"),
        ({"replace_eos": True}, "entry 1 (t): replace_eos is true without stop_words"),
        ({"replace_eos": "yes"}, "entry 1 (t).replace_eos = 'yes'; it must be true or false"),
        ({"default_system": 1}, "entry 1 (t).default_system = 1"),
        ({"template_class": "Other"}, "entry 1 (t).template_class = 'Other'"),
    ],
)
def test_a_wrong_entry_is_named_with_its_field(entry: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        templates.load(write(tmp_path, {"name": "t", **entry}), "t")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"{", "is corrupt or not JSON"),
        (b"\xff", "templates.json:1: is not UTF-8"),
        (b"{}", "is a JSON dict"),
        (b"[1]", "entry 1 has no name"),
        (b'[{"name": "a"}, {"name": 2}]', "entry 2 has no name"),
        (b"[" * 100_000, "is corrupt or not JSON"),
        (b"[]", "has no template 't'; the file is empty"),
        (b'[{"name": "tt"}, {"name": "x"}]', "has no template 't'; the nearest template is 'tt'"),
        (b'[{"name": "a"}, {"name": "b"}, {"name": "b"}]', "has no template 't'; the templates are 'a', 'b'"),
        (b'[{"name": "t"}, {"name": "t"}]', "has 2 templates named 't'"),
    ],
)
def test_a_wrong_file_gets_one_sentence(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "templates.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        templates.load(str(file), "t")
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_a_null_field_is_an_absent_one_and_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    nulls = dict.fromkeys(set(templates.FIELDS) - {"name"})
    plain, null = (templates.load(write(tmp_path, {"name": "t", **fields}), "t") for fields in ({}, nulls))
    assert dataclasses.replace(null, digest="") == dataclasses.replace(plain, digest="")
    file = tmp_path / "bom.json"
    file.write_text('[{"name": "t"}]', encoding="utf-8-sig")
    assert templates.load(str(file), "t") == plain


def test_texts_are_what_the_template_itself_writes() -> None:
    assert templates.texts(templates.load(SHIPPED, "quickstart")) == ["Question: ", "=?\nAssistant:\n"]
    assert "<|im_end|>\n" in templates.texts(templates.load(SHIPPED, "qwen"))


def test_the_parts_of_a_prompt_that_are_the_datas_are_marked(tmp_path: Path) -> None:
    slots_of = {
        "format_user": slots("<{{idx}}: {{content}}>"),
        "format_system": slots("[{{content}}]"),
        "default_system": "own",
    }
    loaded = templates.load(write(tmp_path, {"name": "t", **slots_of}), "t")
    for system, theirs in (("", ["a", "A", "b"]), ("S", ["S", "a", "A", "b"])):
        pieces = templates.render(loaded, "b", system, (("a", "A"),), False)
        assert [p.text[begin:end] for p in pieces for begin, end in p.given] == theirs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("{{content}}"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["slots", "token", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
ENTRY = st.dictionaries(st.sampled_from(templates.FIELDS + templates.UNUSED_FIELDS + ("other",)), JSON, max_size=5)


@settings(deadline=None)
@given(entries=st.lists(ENTRY | ENTRY.map(lambda e: e | {"name": "t"}), max_size=3) | JSON)
def test_whatever_the_file_holds_it_renders_or_is_refused(
    entries: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.json"
    file.write_text(json.dumps(entries))
    try:
        loaded = templates.load(str(file), "t")
    except UserError as error:
        assert str(file) in str(error)
        return
    rendered = templates.render(loaded, "QUESTION", "", (), False)
    assert "".join(piece.text for piece in rendered).count("QUESTION") == 1


@pytest.mark.skipif("R1ZERO_DATA" not in os.environ, reason="R1ZERO_DATA names no folder")
def test_the_references_own_file_loads_unchanged() -> None:
    file = Path(os.environ["R1ZERO_DATA"]) / "mindspeed_rl_templates.json"
    if not file.is_file():
        pytest.skip(f"{file} is absent: MindSpeed-RL's configs/model/templates.json")
    for entry in json.loads(file.read_text(encoding="utf-8")):
        rendered = templates.render(templates.load(str(file), entry["name"]), "QUESTION", "", (), False)
        assert "QUESTION" in "".join(piece.text for piece in rendered)
