"""The door to safetensors: slices, FP8 blocks, and folders that do not fit.

python -m pytest tests/checkpoint/test_hf_files.py
"""

import json
import shutil
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1zero.checkpoint import hf_files
from r1zero.config import UserError
from r1zero.model.families import read_shape
from r1zero.model.weights import weights
from tests.model.folders import opened, rewrite


def test_a_slice_is_what_slicing_the_whole_gives(folder):
    source, whole = opened(folder), load_file(folder / "model.safetensors")
    for weight in weights(read_shape(folder)):
        part = tuple(slice(n // 4, n // 2) for n in weight.shape)
        assert torch.equal(source.read(weight, part), whole[weight.name][part])


def test_missing_tensors_are_listed(folder):
    rewrite(
        folder, lambda t: [t.pop(name) for name in ("model.norm.weight", "model.layers.2.mlp.experts.3.up_proj.weight")]
    )
    with pytest.raises(
        UserError,
        match=r"2 of \d+ tensors are missing \(model.layers.2.mlp.experts.3.up_proj.weight, model.norm.weight\)",
    ):
        opened(folder)


def test_unknown_tensors_are_listed_and_those_of_multi_token_prediction_left_out(folder):
    rewrite(
        folder,
        lambda t: t.update(
            {"model.layers.4.eh_proj.weight": torch.zeros(2), "model.layers.4.mlp.gate.weight": torch.zeros(2)}
        ),
    )
    opened(folder)
    rewrite(folder, lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(2)}))
    with pytest.raises(
        UserError, match="1 tensors are not part of DeepseekV3ForCausalLM .model.layers.1.self_attn.q_proj.bias"
    ):
        opened(folder)


def test_another_shape_than_the_configs_is_named(folder):
    rewrite(folder, lambda t: t.update({"lm_head.weight": torch.zeros(7, 64)}))
    with pytest.raises(UserError, match=r"lm_head.weight has shape \[7, 64\], but config.json implies \[128, 64\]"):
        opened(folder)


@pytest.mark.parametrize("kept", [0.9, 0.001])
def test_a_torn_file_is_named(folder, kept):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match="model.safetensors: is corrupt"):
        opened(folder)


def one_of_two(i):
    return f"model-{i:05d}-of-00002.safetensors"


def split(folder):
    """The single file in two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {one_of_two(1): names[::2], one_of_two(2): names[1::2]}
    for file, some in halves.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    index(folder, {name: file for file, some in halves.items() for name in some})


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def copy_first_shard(folder, name):
    split(folder)
    shutil.copyfile(folder / one_of_two(1), folder / name)


def stale_index(folder):
    split(folder)
    index(
        folder,
        {
            "model.norm.weight": one_of_two(1),
            "lm_head.weight": one_of_two(2),
            "model.embed_tokens.weight": one_of_two(1),
        },
    )


def twice(folder):
    split(folder)
    second = load_file(folder / one_of_two(2))
    save_file({**second, "lm_head.weight": torch.zeros(128, 64)}, folder / one_of_two(2))


def pickles_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unfinished(folder):
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "abc.0123.incomplete").write_bytes(b"")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 988097824\n"


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (
            lambda f: (f / "model.safetensors").unlink(),
            "model.safetensors: is missing; the folder must hold model.safetensors, or",
        ),
        (
            lambda f: (split(f), (f / one_of_two(2)).unlink()),
            "1 of the 2 files that model.safetensors.index.json names are missing .*00002-of",
        ),
        (
            lambda f: copy_first_shard(f, "model.safetensors"),
            "has model.safetensors beside model.safetensors.index.json, which names model-00001",
        ),
        (
            lambda f: copy_first_shard(f, "adapter.safetensors"),
            r"1 safetensors files are not named by model.safetensors.index.json .adapter.safetensors.",
        ),
        (
            lambda f: (split(f), (f / "model.safetensors.index.json").unlink()),
            "has 2 safetensors files .*, but no model.safetensors.index.json",
        ),
        (
            lambda f: shutil.copyfile(f / "model.safetensors", f / one_of_two(1)),
            "has 1 other safetensors files beside model.safetensors",
        ),
        (stale_index, r"\d+ tensors are in other files than model.safetensors.index.json states"),
        (twice, "lm_head.weight is both in model-00001-of-00002.safetensors and in model-00002"),
        (pickles_only, "has its weights in pickles only .pytorch_model.bin."),
        (unfinished, "abc.0123.incomplete: a download into this folder has not finished"),
        (lambda f: (f / "model.safetensors").write_text(POINTER), "model.safetensors: is a Git LFS pointer"),
        (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json: is a Git LFS pointer"),
        (lambda f: index(f, {}), "is not an index of safetensors files .its weight_map names no files"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[1]"), "is not an index of safetensors files"),
        (lambda f: index(f, {"a": 3}), "is not an index of safetensors files"),
        (
            lambda f: rewrite(f, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)})),
            "lm_head.weight is of type I8",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].double()})),
            "lm_head.weight is of type F64",
        ),
        (
            lambda f: rewrite(
                f, lambda t: t.update({"model.layers.0.mlp.down_proj.qweight": torch.zeros(8, 8, dtype=torch.int32)})
            ),
            "not part of DeepseekV3ForCausalLM .model.layers.0.mlp.down_proj.qweight",
        ),
    ],
)
def test_a_folder_that_is_ambiguous_stale_or_not_whole_is_refused(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)


def test_shards_with_their_index_and_a_single_file_that_an_index_names_are_read(folder):
    whole = load_file(folder / "model.safetensors")
    index(folder, dict.fromkeys(whole, "model.safetensors"))
    for prepare in (lambda: None, lambda: split(folder)):
        prepare()
        source = opened(folder)
        assert all(torch.equal(source.read(w, whole_of(w)), whole[w.name]) for w in weights(read_shape(folder)))


def whole_of(weight):
    return tuple(slice(0, n) for n in weight.shape)


@pytest.mark.parametrize(
    "change",
    [lambda head: head.index_add(0, torch.tensor([127]), torch.full((1, 64), 1e-3)), torch.Tensor.bfloat16],
    ids=["last row", "type"],
)
def test_the_head_of_a_tied_model_must_be_the_embedding(models, tmp_path, change):
    folder = shutil.copytree(models("qwen2_tied").folder, tmp_path / "model")
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    with mock.patch.object(hf_files, "ROWS", 50):
        opened(folder)
        rewrite(folder, lambda t: t.update({"lm_head.weight": change(t["lm_head.weight"])}))
        with pytest.raises(
            UserError, match="tie_word_embeddings = true, but lm_head.weight differs from model.embed_tokens.weight"
        ):
            opened(folder)
