"""pytest tests/prompts/test_tokenizer.py"""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.config import UserError
from r1zero.data import tokenizer
from r1zero.data.templates import Piece
from tests.prompts.conftest import SPECIAL, build_tokenizer


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")).filter(lambda t: not any(s in t for s in SPECIAL)))
def test_byte_level_text_survives_encoding_and_decoding(text: str, tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    ids, shown = tokenizer.encode(tok, [Piece("bos"), Piece("text", text), Piece("eos")], tok.eos_token_id)
    assert shown == f"<bos>{text}<eos>" and ids[0] == tok.bos_token_id and ids[-1] == tok.eos_token_id
    assert tokenizer.decode(tok, ids) == text


LOADED: dict = {}


def cached(path: str):
    if path not in LOADED:
        LOADED[path] = tokenizer.load(path)
    return LOADED[path]


def test_spaces_before_punctuation_are_left_as_they_are(tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    assert tokenizer.decode(tok, tok.encode("a , b . 's n't", add_special_tokens=False)) == "a , b . 's n't"


def test_decoding_leaves_out_special_tokens_and_the_stop_tokens_given(tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    ids = tok.encode("<think>a</think><|im_end|><eos>", add_special_tokens=False)
    assert tokenizer.decode(tok, ids) == "<think>a</think>"
    assert tokenizer.decode(tok, ids, tok.convert_tokens_to_ids(["</think>"])) == "<think>a"


def test_a_tokenizer_without_begin_token_adds_none(tmp_path: Path) -> None:
    tok = tokenizer.load(build_tokenizer(tmp_path, special=["<eos>"], adds_bos=False))
    assert tokenizer.encode(tok, [Piece("bos"), Piece("text", "a")], tok.eos_token_id) == (tok.encode("a"), "a")


def test_missing_ids_are_those_below_the_vocabulary_size_that_no_token_has(tokenizer_path: str) -> None:
    tok = cached(tokenizer_path)
    assert tokenizer.missing_ids(tok, len(tok)) == []
    assert tokenizer.missing_ids(tok, len(tok) + 3) == [len(tok), len(tok) + 1, len(tok) + 2]
    assert tokenizer.missing_ids(tok, 10) == []


def test_end_ids_are_the_tokenizers_and_the_generation_configs(tmp_path: Path) -> None:
    tok = tokenizer.load(build_tokenizer(tmp_path))
    assert tokenizer.eos_ids(tok) == (tok.eos_token_id,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, tok.eos_token_id]}))
    assert tokenizer.eos_ids(tok) == (3, tok.eos_token_id)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="generation_config.json: is torn"):
        tokenizer.eos_ids(tok)


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
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has none of tokenizer.json"),
        ("tokenizer.json", '{"version": "1.0", "model"', "tokenizer.json: is torn or not JSON"),
        ("tokenizer.json", "[]", "tokenizer.json: is a JSON list and must be an object"),
        ("tokenizer.json", "{}", "cannot be loaded (KeyError"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is torn or not JSON"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["own.Own", null]}}', "cannot be loaded (ValueError"),
        ("config.json", '{"model_type": "qwen2"', "config.json: is torn or not JSON"),
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
