"""What Trainer refuses before an engine or a model is built.

python -m pytest tests/model/test_before_loading.py
"""

import json
import shutil
from unittest import mock

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from r1zero import config
from r1zero.config import UserError
from r1zero.data import tokenizer
from r1zero.distributed import launcher, layout
from tests import jobs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("qwen2"), "qwen2")


def refusal(rank, folder):
    """The sentence that Trainer ends with, where nothing was built before."""
    from r1zero import trainer

    cfg = jobs.job_config(folder, config.Layout())
    launch, grids = launcher.Launch(rank, 1, rank, 1, "none"), layout.carve(cfg.layout, 1)
    with mock.patch.object(trainer, "Roles", side_effect=RuntimeError("engine and trainer would be built now")):
        try:
            trainer.Trainer(cfg, grids, launch, None, "cpu")
        except UserError as error:
            return str(error)


def other_tensors(base):
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if "norm" in name}, base / "model.safetensors")


def smaller_vocabulary(base):
    weights, stated = load_file(base / "model.safetensors"), json.loads((base / "config.json").read_text())
    ends = {name: weights[name][:260].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(weights | ends, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(stated | {"vocab_size": 260}))


def strange_end(base):
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 384]}))


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (
            smaller_vocabulary,
            "base': has ids up to 357, but the model's vocab_size is 260; copy the model's own tokenizer",
        ),
        (strange_end, "stop token id 384: is not below the model's vocab_size = 384; correct eos_token_id in"),
        (other_tensors, "tensors are missing (lm_head.weight, model.embed_tokens.weight,"),
        (
            lambda base: shutil.copyfile(base / "model.safetensors", base / "old.safetensors"),
            "has 1 other safetensors files beside",
        ),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_built(ranks, made, tmp_path, spoil, sentence):
    folder = shutil.copytree(made, tmp_path / "job")
    spoil(folder / "base")
    said = ranks.run(refusal, folder, size=1)[0]
    assert said and sentence in said


def test_ids_below_the_vocabulary_size_pass(made):
    encode = AutoTokenizer.from_pretrained(made / "base")
    largest = max(encode.get_vocab().values())
    tokenizer.check_ids(encode, [0, largest], largest + 1)
    for stops, size in (([], largest), ([-1], largest + 1), ([largest + 1], largest + 1)):
        with pytest.raises(UserError, match=f"vocab_size (is|=) {size}"):
            tokenizer.check_ids(encode, stops, size)
