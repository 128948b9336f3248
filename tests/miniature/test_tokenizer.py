"""pytest tests/miniature/test_tokenizer.py"""

import json
import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from r1zero.miniature import corpus, problems, tokenizer

THOUGHT = "<think> 7+8=15 15-3=12 </think><answer> \\boxed{12} </answer>"
BUILT = tokenizer.build()


@pytest.fixture(scope="module", params=["qwen2", "deepseek_v3"])
def reloaded(request, tmp_path_factory):
    """As AutoTokenizer reads the saved files beside a config of each family: it picks another class for each."""
    folder = tmp_path_factory.mktemp(request.param)
    BUILT.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": request.param}))
    return AutoTokenizer.from_pretrained(folder)


def test_the_task_is_one_token_a_sign_number_and_tag():
    text = problems.prompt("7+8-3") + THOUGHT
    pieces = [BUILT.decode([i]) for i in BUILT(text).input_ids]
    asked = ["Question:", " ", *"7+8-3=?\n", "Assistant:", "\n"]
    thought = ["<think>", " ", *"7+8=", "15", " ", "15", *"-3=", "12", " ", "</think>"]
    assert pieces == [*asked, *thought, "<answer>", " ", "\\boxed{", "12", "}", " ", "</answer>"]


def test_tags_and_numbers_are_ordinary_text_and_only_the_end_is_special():
    ids = [*BUILT(THOUGHT).input_ids, BUILT.eos_token_id]
    assert BUILT.decode(ids, skip_special_tokens=True) == THOUGHT
    assert BUILT.all_special_tokens == [tokenizer.END]


def test_ids_are_dense_and_some_rows_of_the_embedding_belong_to_no_token():
    assert sorted(BUILT.get_vocab().values()) == list(range(len(BUILT)))
    assert len(BUILT) == 256 + 1 + len(tokenizer.WORDS) + len(tokenizer.NUMBERS) < tokenizer.VOCAB_SIZE


def test_the_saved_tokenizer_encodes_as_the_built_one(reloaded):
    for manner in corpus.MANNERS:
        text = problems.prompt("7+8-3") + manner("7+8-3", random.Random(1))
        assert reloaded(text).input_ids == BUILT(text).input_ids
        assert reloaded.decode(reloaded(text).input_ids) == text
    assert reloaded.eos_token_id == reloaded.pad_token_id == BUILT.eos_token_id
    assert reloaded.bos_token is None


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_any_normalised_text_survives_encoding(text):
    text = unicodedata.normalize("NFC", text)
    assert BUILT.decode(BUILT(text).input_ids) == text


@pytest.mark.slow
def test_vllm_reads_the_saved_tokenizer_alike(tmp_path):
    from vllm.tokenizers import get_tokenizer

    BUILT.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    read = get_tokenizer(str(tmp_path))
    text = problems.prompt("7+8-3") + THOUGHT
    assert read.encode(text) == BUILT(text).input_ids
    assert read.decode(read.encode(text)) == text
