"""pytest tests/data/test_tokenizer.py"""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from r1zero.config import UserError
from r1zero.data import tokenizer
from r1zero.data.templates import Segment
from tests.data.conftest import SPECIAL, build_tokenizer


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")).filter(lambda t: not any(s in t for s in SPECIAL)))
def test_byte_level_text_survives_encoding_and_decoding(text: str, tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    ids, shown = tokenizer.encode(tok, [Segment("bos"), Segment("text", text), Segment("eos")], tok.eos_token_id, {})
    assert shown == f"<bos>{text}<eos>" and ids[0] == tok.bos_token_id and ids[-1] == tok.eos_token_id
    assert decode(tok, ids) == text


def decode(tok, ids: list[int], *stops: int) -> str:
    return tokenizer.decode(tok, ids, tokenizer.dropped_ids(tok, stops))


LOADED: dict = {}


def cached(path: str):
    if path not in LOADED:
        LOADED[path] = tokenizer.load(path)
    return LOADED[path]


def test_spaces_before_punctuation_are_left_as_they_are(tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    assert decode(tok, tok.encode("a , b . 's n't", add_special_tokens=False)) == "a , b . 's n't"


def test_decoding_leaves_out_special_tokens_and_the_stop_tokens_given(tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    ids = tok.encode("<think>a</think><|im_end|><eos>", add_special_tokens=False)
    assert decode(tok, ids) == "<think>a</think>"
    assert decode(tok, ids, tok.convert_tokens_to_ids("a")) == "<think></think>"
    assert decode(tok, ids, tok.convert_tokens_to_ids("</think>")) == "<think>a</think>", "the rules look for it"


def test_a_tokenizer_without_begin_token_adds_none(tmp_path: Path) -> None:
    tok = tokenizer.load(build_tokenizer(tmp_path, special=["<eos>"], adds_bos=False))
    assert tokenizer.encode(tok, [Segment("bos"), Segment("text", "a")], tok.eos_token_id, {}) == (tok.encode("a"), "a")


def test_missing_ids_are_those_below_the_vocabulary_size_that_no_token_has(tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    assert tokenizer.missing_ids(tok, len(tok)) == []
    assert tokenizer.missing_ids(tok, len(tok) + 3) == [len(tok), len(tok) + 1, len(tok) + 2]
    assert tokenizer.missing_ids(tok, 10) == []


def test_end_ids_are_the_tokenizers_and_the_generation_configs(tmp_path: Path) -> None:
    tok = tokenizer.load(build_tokenizer(tmp_path))
    file = tmp_path / "generation_config.json"
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert tokenizer.eos_ids(tok) == (tok.eos_token_id,)
    for value, ids in (([3, tok.eos_token_id], {3}), (3, {3}), (None, set()), ([], set())):
        file.write_text(json.dumps({"eos_token_id": value}))
        assert tokenizer.eos_ids(tok) == tuple(sorted(ids | {tok.eos_token_id}))
    tok.eos_token = None
    assert tokenizer.eos_ids(tok) == (7,)
    file.write_text("{")
    with pytest.raises(UserError, match="generation_config.json: is corrupt"):
        tokenizer.eos_ids(tok)


@pytest.mark.parametrize("value", ["<eos>", ["<eos>"], [1, "2"], True, 1.5, -1, {"a": 1}, [None]])
def test_an_end_id_that_is_none_is_named(value: object, tmp_path: Path) -> None:
    tok = tokenizer.load(build_tokenizer(tmp_path))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError) as caught:
        tokenizer.eos_ids(tok)
    assert f"generation_config.json: eos_token_id = {value!r}; it must be the number of a token" in str(caught.value)


def test_without_any_end_token_training_is_refused_unless_the_template_has_a_stop_word(tmp_path: Path) -> None:
    tok = tokenizer.load(build_tokenizer(tmp_path))
    tok.eos_token = None
    assert tokenizer.stop_ids(tok, [5]) == [5]
    with pytest.raises(UserError, match="no response would ever end; name the model's end token"):
        tokenizer.stop_ids(tok, [])


FORMAT = "<think> a b </think><answer> \\boxed{1} </answer>"


@pytest.mark.parametrize("special", [(), ("<think>", "</think>"), (*tokenizer.MARKS, "{")])
def test_what_the_rules_look_for_is_graded_also_where_it_is_a_special_token(
    special: tuple[str, ...], tmp_path: Path
) -> None:
    tok = tokenizer.load(build_tokenizer(tmp_path, special=[*SPECIAL, *special], ordinary=()))
    tokenizer.check_marks(tok)
    ids = tok.encode(f"<|im_start|>{FORMAT}<|im_end|><eos>", add_special_tokens=False)
    assert decode(tok, ids, tok.convert_tokens_to_ids("<eos>")) == FORMAT


@settings(deadline=None)
@given(parts=st.lists(st.sampled_from([*SPECIAL, "<think>", "a ", "é", "\n", "the"]), max_size=8))
def test_a_response_without_special_marks_decodes_as_transformers_does(parts: list[str], tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    ids = tok.encode("".join(parts), add_special_tokens=False)
    assert decode(tok, ids) == tok.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def lossy(folder: Path) -> str:
    """A tokenizer of words, to which every other word is unknown."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "<": 1, ">": 2, "think": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}'
    )
    return str(folder)


def test_a_tokenizer_that_loses_a_mark_or_a_templates_text_is_refused(tmp_path: Path) -> None:
    tok = tokenizer.load(lossy(tmp_path / "lossy"))
    with pytest.raises(UserError, match="where '<think>', which the reward rules look for, is lost"):
        tokenizer.check_marks(tok)
    with pytest.raises(UserError, match="template t: its 'Question' is '.UNK.' to the tokenizer"):
        tokenizer.check_texts(tok, "template t", ["Question"])


def test_markers_that_are_no_tokens_are_found(tokenizer_path: str) -> None:
    texts = ["<|im_start|>user\n", "<|eom|><｜User｜><｜Tool｜>", "a <|eom|> b |> <think> <|x"]
    assert tokenizer.split_markers(cached(tokenizer_path), texts) == ["<|eom|>", "<｜Tool｜>"]


WORDS = st.sampled_from([*SPECIAL, "<think>", "im_end|>", "<|", "a", " ", "\n", "é", "the"])


@settings(deadline=None)
@given(
    asked=st.lists(WORDS, min_size=1, max_size=6), before=st.lists(WORDS, max_size=3), after=st.lists(WORDS, max_size=3)
)
@example(asked=["<|"], before=[], after=["im_end|>"])
def test_control_tokens_of_the_data_are_text_and_those_of_the_template_tokens(
    asked: list[str], before: list[str], after: list[str], tokenizer_path: str
) -> None:
    tok = cached(tokenizer_path)
    own, content = ["".join(before), "".join(after)], "".join(asked)
    piece = Segment("text", own[0] + content + own[1], ((len(own[0]), len(own[0] + content)),))
    controls = tokenizer.control_tokens(tok)
    ids, text = tokenizer.encode(tok, [piece], None, controls)
    assert tok.decode(ids) == text == piece.text
    plain = [i for part in own for i in tok.encode(part, add_special_tokens=False)]
    assert [i for i in ids if i in controls] == [i for i in plain if i in controls]
    assert tokenizer.encode(tok, [piece], None, {})[0] == tok.encode(piece.text, add_special_tokens=False)
    whole = tok.encode(piece.text, add_special_tokens=False)
    # The data may also spell a control token together with the template's text, as in the example.
    spelt = any(i in controls for i in tok.encode(content, add_special_tokens=False))
    if not spelt and [i for i in whole if i in controls] == [i for i in plain if i in controls]:
        assert ids == whole, "merges between the parts are as they were"


def test_the_digest_is_of_what_the_tokenizer_does_not_of_its_files(tokenizer_path: str, tmp_path: Path) -> None:
    same = tokenizer.digest(tokenizer_path)
    cached(tokenizer_path).save_pretrained(str(tmp_path / "saved"))
    assert tokenizer.digest(str(tmp_path / "saved")) == same
    assert tokenizer.digest(shutil.copytree(tokenizer_path, tmp_path / "copied")) == same
    assert tokenizer.digest(build_tokenizer(tmp_path / "more", ordinary=("<think>", "</think>", "\\boxed{"))) != same
    merges = tmp_path / "merges"
    shutil.copytree(tokenizer_path, merges)
    content = json.loads((merges / "tokenizer.json").read_text())
    content["model"]["merges"].remove(["th", "e"])  # the token stays, its merge goes: "the" is split in another way
    (merges / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer.digest(str(merges)) != same


def test_a_stop_word_of_several_tokens_is_an_error(tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    assert tokenizer.single_token(tok, "<|im_end|>") == tok.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(UserError, match="'<|end|>' is 7 tokens in this tokenizer"):
        tokenizer.single_token(tok, "<|end|>")


def damage(folder: Path, name: str, content: str | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has none of tokenizer.json"),
        ("tokenizer.json", '{"version": "1.0", "model"', "tokenizer.json: is corrupt or not JSON"),
        ("tokenizer.json", "[]", "tokenizer.json: is a JSON list and must be an object"),
        ("tokenizer.json", "{}", "cannot be loaded (KeyError"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is corrupt or not JSON"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["own.Own", null]}}', "cannot be loaded (ValueError"),
        ("config.json", '{"model_type": "qwen2"', "config.json: is corrupt or not JSON"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "None"}}', "cannot be loaded ("),
        ("tokenizer_config.json", "null", "tokenizer_config.json: is a JSON NoneType and must be an object"),
        ("tokenizer_config.json", "\ufeff{}", "tokenizer_config.json: begins with a byte-order mark"),
        ("config.json", "\ufeff{}", "config.json: begins with a byte-order mark"),
    ],
)
def test_a_damaged_folder_is_a_sentence_and_none_of_its_code_is_run(
    name: str, content: str | None, message: str, tokenizer_path: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tokenizer_path, tmp_path / "damaged"))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    damage(folder, name, content)
    with pytest.raises(UserError) as caught:
        tokenizer.load(str(folder))
    assert message in str(caught.value) and str(folder) in str(caught.value)


def test_a_config_alone_makes_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match="has none of tokenizer.json"):
        tokenizer.load(str(tmp_path))
