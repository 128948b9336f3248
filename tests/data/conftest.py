"""A byte-level tokenizer made here, without a hub: 256 bytes, a few merges, special and ordinary added tokens."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<｜User｜>", "<｜Assistant｜>"]


def build_tokenizer(
    folder: Path,
    special: list[str] = SPECIAL,
    ordinary: tuple[str, ...] = ("<think>", "</think>"),
    adds_bos: bool = True,
) -> str:
    """`adds_bos`: as Llama's and DeepSeek's do, encoding puts the begin token in front unless it is told not to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), (":", "Ġ"), (">", "Ċ")]
    vocabulary = {token: i for i, token in enumerate(alphabet + ["".join(m) for m in merges])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(list(ordinary))
    if adds_bos:
        bos = [("<bos>", tokenizer.token_to_id("<bos>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=bos)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"} | (
        {"bos_token": "<bos>"} if "<bos>" in special else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tokenizer(tmp_path_factory.mktemp("byte_level"))
